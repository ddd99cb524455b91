//! `holdfast load tcp`.

use holdfast_proto::v1::{LoadCount, LoadPlan};

use super::run::{Asked, Each, Load, at_least_one, make, nanoseconds, resolve};
use crate::cli::Failure;
use crate::config::Span;

/// Open TCP connections from agents, by number, by rate or by concurrency.
///
/// By number (the default) all are kept open until the last is decided, and then for --hold. By rate (--rate or --stages)
/// attempts are made when they are due, whatever becomes of them, and by concurrency (--concurrency) as soon as there is
/// room; each connection is closed at once, or after --hold. Agents only load what their own configuration allows
/// (holdfast-agent run --load-targets).
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast load tcp web:80                              100 connections, one every 10 ms
  holdfast load tcp web:80 -c 5000 -s 1ms --hold 10m    5,000, held for 10 minutes, each watched for loss
  holdfast load tcp web:80 --rate 500/s --for 1m --expect 'connect.p99 < 20ms' --expect 'error_ratio < 0.1%'
  holdfast load tcp web:80 --stages '0 -> 5000/s in 2m, hold 5m' --from role=client --agents 3
  holdfast load tcp web:80 --find-max 'connect.p99 < 5ms'
  holdfast load tcp echo:7 --concurrency 64 --for 10s --payload 512 --rounds 100

What can be expected: connect, dial, network, exchange with .p50 .p99 .p99.9 .mean .min .max; error_ratio, lost_ratio,
refused_ratio, timed_out_ratio; established, errors, refused, timed_out, reset, unreachable, lost, closed; rate; where the target
has an agent also established_there, accepted and served: by its kernel, taken by a process, and answered, so many at least.

Exit codes: 0 it holds (nothing expected: no errors and no losses), 1 it does not, 2 a wrong call, 3 unknown: the agents were the
limit, not the target, the target's kernel did not establish what was established here or no process took it (unless what is
expected is of that), or there is no data, 4 it could not be done.")]
pub(super) struct Args {
    /// HOST:PORT, or HOST PORT; several HOST:PORT are tried in turn
    #[arg(required = true, value_name = "HOST:PORT")]
    targets: Vec<String>,

    /// Connections to open, one after another
    #[arg(short, long, value_name = "N", allow_hyphen_values = true, value_parser = at_least_one(), default_value_t = 100, conflicts_with_all = ["rate", "stages", "concurrency", "find_max"])]
    connections: u64,

    /// Pause between two of them
    #[arg(short, long, value_name = "TIME", allow_hyphen_values = true, default_value = "10ms", conflicts_with_all = ["rate", "stages", "concurrency", "find_max"])]
    sleep: Span,

    #[command(flatten)]
    each: Each,

    /// How connections are closed: at once and without a trace, or as programs do, which keeps a port taken for a minute
    #[arg(long, value_name = "rst|fin", default_value = "rst", value_parser = ["rst", "fin"])]
    close: String,

    #[command(flatten)]
    asked: Asked,
}

/// The targets as one text each, HOST:PORT: `HOST PORT` is one target in two words.
fn joined(words: &[String]) -> Vec<String> {
    match words {
        // Also one that is no port: it is told as one.
        [host, port] if port.parse::<i64>().is_ok() => {
            let is_bare_ipv6 = host.contains(':') && !host.starts_with('[');
            vec![if is_bare_ipv6 {
                format!("[{host}]:{port}")
            } else {
                format!("{host}:{port}")
            }]
        }
        words => words.to_vec(),
    }
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let targets = joined(&args.targets);
    let (mut addresses, mut named) = (Vec::new(), Vec::new());
    for target in &targets {
        let address = resolve(target).await?.to_string();
        named.push(if *target == address {
            address.clone()
        } else {
            format!("{target} ({address})")
        });
        addresses.push(address);
    }
    let load = Load {
        plan: LoadPlan {
            targets: addresses,
            finish: args.close == "fin",
            ..args.each.plan()?
        },
        targets,
        named,
        count: LoadCount {
            connections: args.connections,
            pause_ns: nanoseconds("--sleep", args.sleep)?,
        },
        of_what: "connections",
        mesh: None,
    };
    make(&args.asked, &load).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        joined(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn a_host_and_a_port_are_one_target() {
        assert_eq!(words(&["web", "80"]), ["web:80"]);
        assert_eq!(words(&["::1", "80"]), ["[::1]:80"]);
        assert_eq!(words(&["web", "65536"]), ["web:65536"]);
        assert_eq!(words(&["web:80", "db:5432"]), ["web:80", "db:5432"]);
    }
}
