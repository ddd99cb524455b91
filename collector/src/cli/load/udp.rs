//! `holdfast load udp`.

use anyhow::anyhow;
use holdfast_proto::datagram::LEAST_BYTES;
use holdfast_proto::v1::{LoadCount, LoadPlan, LoadUdp};

use super::run::{Asked, Load, at_least_one, make, nanoseconds, resolve, whole, within};
use crate::cli::Failure;
use crate::config::Span;

/// Send UDP datagrams from agents, by number or by rate, and tell which were lost, late, out of their order or doubled.
///
/// The target sends them back (any echo server does; holdfast load serve --udp is one). With --one-way it counts them instead and is
/// asked at the end, which only holdfast load serve --udp understands. Agents only load what their own configuration
/// allows (holdfast-agent run --load-targets).
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast load udp voice:5000                          100 datagrams, one every 10 ms
  holdfast load udp voice:5000 --rate 50/s --for 1m --bytes 172 --expect 'error_ratio < 1%' --expect 'jitter.p99 < 5ms'
  holdfast load udp voice:5000 --one-way --rate 1000/s --for 10s

What can be expected: request (from when one was due until it was back), response (since it was sent), jitter with .p50 .p99 .p99.9 .mean
.min .max (jitter with --one-way: .mean only); error_ratio, request_timed_out (lost), refused (nothing listens on the port, by ICMP), unreachable, reordered, duplicated; requests,
answered, errors; rate.

Exit codes: 0 it holds (nothing expected: no errors and no losses), 1 it does not, 2 a wrong call, 3 unknown: the agents were the limit, not the
target, or there is no data, 4 it could not be done.")]
pub(super) struct Args {
    /// HOST:PORT; several are taken in turn
    #[arg(required = true, value_name = "HOST:PORT")]
    targets: Vec<String>,

    /// Datagrams to send, one after another
    #[arg(short = 'n', long, value_name = "N", allow_hyphen_values = true, value_parser = at_least_one(), default_value_t = 100, conflicts_with_all = ["rate", "stages", "concurrency", "find_max"])]
    number: u64,

    /// Pause between two of them
    #[arg(short, long, value_name = "TIME", allow_hyphen_values = true, default_value = "10ms", conflicts_with_all = ["rate", "stages", "concurrency", "find_max"])]
    sleep: Span,

    /// Length of each, without the heads of UDP and IP
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true, default_value_t = 64, value_parser = whole::<u32>(LEAST_BYTES as u64..=MOST_BYTES))]
    bytes: u32,

    /// One that is not back after this time is lost
    #[arg(
        short,
        long,
        value_name = "TIME",
        allow_hyphen_values = true,
        default_value = "1s"
    )]
    timeout: Span,

    /// The target counts, and sends nothing back
    #[arg(long)]
    one_way: bool,

    #[command(flatten)]
    asked: Asked,
}

const _: () = assert!(LEAST_BYTES <= 64, "the default is no shorter than a head");

/// The longest datagram over IPv4, without its heads.
const MOST_BYTES: u64 = 65_507;

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    if args.asked.is_closed_loop() {
        return Err(Failure::Usage(anyhow!(
            "datagrams have a number or a rate: nothing says when there is room for the next, so --concurrency has no meaning"
        )));
    }
    let (mut addresses, mut named) = (Vec::new(), Vec::new());
    for target in &args.targets {
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
            timeout_ns: within("--timeout", args.timeout)?,
            udp: Some(LoadUdp {
                bytes: args.bytes,
                one_way: args.one_way,
            }),
            ..LoadPlan::default()
        },
        targets: args.targets,
        named,
        count: LoadCount {
            connections: args.number,
            pause_ns: nanoseconds("--sleep", args.sleep)?,
        },
        of_what: "datagrams",
        mesh: None,
    };
    make(&args.asked, &load).await
}
