//! `holdfast load http`.

use std::fs;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, anyhow};
use holdfast_proto::v1::{LoadCount, LoadHttp, LoadHttpField, LoadPlan, LoadStatuses, LoadTls};

use super::run::{Asked, Load, at_least_one, make, nanoseconds, resolve, whole, within};
use crate::cli::Failure;
use crate::config::Span;

/// Send HTTP requests from agents, by number, by rate or by concurrency.
///
/// By rate (--rate or --stages) requests are due when they are due: one that finds no connection free waits, and its time
/// counts. Times are told from when a request was due (`request`), which is what a user waits, and from when it was sent
/// (`response`). Agents only load what their own configuration allows (holdfast-agent run --load-targets).
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast load http http://web/                        100 requests, one every 10 ms
  holdfast load http http://web/ --rate 500/s --for 1m --expect 'request.p99 < 20ms' --expect 'error_ratio < 0.1%'
  holdfast load http https://web/login -X POST -H 'Content-Type: application/json' --body '{\"user\": 1}' --status 201
  holdfast load http https://web/ --http2 --streams 10 --concurrency 100 --for 10s
  holdfast load http http://web/ --no-keep-alive --find-max 'request.p99 < 50ms'

What can be expected: request, response, connect, network with .p50 .p99 .p99.9 .mean .min .max; error_ratio, unexpected_status_ratio;
requests, answered, errors, unexpected_status, unexpected_body, request_timed_out, request_lost, malformed, unsent, insecure; rate;
where the target has an agent also established_there, accepted and served: connections, so many at least.

Exit codes: 0 it holds (nothing expected: no errors), 1 it does not, 2 a wrong call, 3 unknown: the agents were the limit,
not the target, the target's kernel did not establish what was established here or no process took it (unless what is expected
is of that), or there is no data, 4 it could not be done.")]
pub(super) struct Args {
    /// http://HOST[:PORT]/PATH or https://...
    #[arg(value_name = "URL")]
    url: Url,

    /// Requests to send, one after another
    #[arg(short = 'n', long, value_name = "N", allow_hyphen_values = true, value_parser = at_least_one(), default_value_t = 100, conflicts_with_all = ["rate", "stages", "concurrency", "find_max"])]
    requests: u64,

    /// Pause between two of them
    #[arg(short, long, value_name = "TIME", allow_hyphen_values = true, default_value = "10ms", conflicts_with_all = ["rate", "stages", "concurrency", "find_max"])]
    sleep: Span,

    /// Most connections at once, of all agents; with --concurrency as many as that needs
    #[arg(short, long, value_name = "N", allow_hyphen_values = true, value_parser = at_least_one(), default_value_t = 100)]
    connections: u64,

    /// How long a connection, a request's wait for one, or an answer may take
    #[arg(
        short,
        long,
        value_name = "TIME",
        allow_hyphen_values = true,
        default_value = "5s"
    )]
    timeout: Span,

    /// The method
    #[arg(short = 'X', long, value_name = "METHOD", default_value = "GET")]
    method: String,

    /// A header; may be given several times
    #[arg(short = 'H', long, value_name = "NAME: VALUE", value_parser = field)]
    header: Vec<(String, String)>,

    /// The body, or @FILE to read it from
    #[arg(long, value_name = "TEXT|@FILE", default_value = "")]
    body: String,

    /// Statuses that are no error, such as 200 or 200-299; may be given several times
    #[arg(long, value_name = "RANGE", allow_hyphen_values = true, default_value = "200-399", value_parser = statuses)]
    status: Vec<(u32, u32)>,

    /// What each answer's body must contain
    #[arg(long, value_name = "TEXT", default_value = "")]
    contains: String,

    /// A connection for each request
    #[arg(long)]
    no_keep_alive: bool,

    /// HTTP/2: over TLS if the server agrees to it, else without asking
    #[arg(long)]
    http2: bool,

    /// Requests at once on a connection
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = whole::<u32>(1..=u32::MAX.into()), default_value_t = 1, requires = "http2")]
    streams: u32,

    /// Trust the certificate authorities of this file (PEM) instead of those of the agents' machines
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    ca: Option<PathBuf>,

    /// Trust any certificate
    #[arg(long)]
    insecure: bool,

    #[command(flatten)]
    asked: Asked,
}

/// A URL of HTTP, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Url {
    text: String,
    is_secure: bool,
    /// Host, and port if there is one, as they stand there.
    authority: String,
    host: String,
    port: u16,
    path: String,
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fault = |why: &str| format!("`{text}` {why}; write http://HOST:PORT/PATH or https://...");
        let (scheme, rest) = text.split_once("://").ok_or_else(|| fault("is no URL"))?;
        let is_secure = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return Err(fault("is not of HTTP")),
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(at);
        if authority.contains('@') {
            return Err(fault("has a user: give --header 'Authorization: ...'"));
        }
        // The port begins after the last colon outside of the brackets that an IPv6 address has.
        let bracket = authority.rfind(']').map_or(0, |at| at + 1);
        let (host, port) = match authority[bracket..].find(':') {
            Some(at) => {
                let port = authority[bracket + at + 1..]
                    .parse()
                    .ok()
                    .filter(|port| *port > 0);
                (
                    &authority[..bracket + at],
                    port.ok_or_else(|| fault("has no port that is one, from 1 to 65535"))?,
                )
            }
            None => (authority, if is_secure { 443 } else { 80 }),
        };
        if host.is_empty() || (host.contains(':') && bracket == 0) {
            return Err(fault("has no host"));
        }
        Ok(Self {
            text: text.to_owned(),
            is_secure,
            authority: authority.to_owned(),
            host: host.to_owned(),
            port,
            path: if path.starts_with('/') {
                path.to_owned()
            } else {
                format!("/{path}")
            },
        })
    }
}

fn field(text: &str) -> Result<(String, String), String> {
    match text.split_once(':') {
        Some((name, value)) if !name.trim().is_empty() => {
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        }
        _ => Err(format!("`{text}` is no header; write 'NAME: VALUE'")),
    }
}

fn statuses(text: &str) -> Result<(u32, u32), String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.trim().parse(), last.trim().parse()) {
        (Ok(first), Ok(last)) if (100..=999).contains(&first) && first <= last && last <= 999 => {
            Ok((first, last))
        }
        _ => Err(format!(
            "`{text}` is no status, nor two from the lower to the higher: they are from 100 to 999; write 200 or 200-299"
        )),
    }
}

fn body(text: &str) -> Result<Vec<u8>, Failure> {
    match text.strip_prefix('@') {
        Some(path) => fs::read(path)
            .with_context(|| format!("the body cannot be read from {path}"))
            .map_err(Failure::Usage),
        None => Ok(text.as_bytes().to_vec()),
    }
}

impl Args {
    fn tls(&self) -> Result<Option<LoadTls>, Failure> {
        if !self.url.is_secure {
            if self.ca.is_some() || self.insecure {
                return Err(Failure::Usage(anyhow!("--ca and --insecure are of https://")));
            }
            return Ok(None);
        }
        let authorities = match &self.ca {
            Some(path) => fs::read(path)
                .with_context(|| format!("the authorities cannot be read from {}", path.display()))
                .map_err(Failure::Usage)?,
            None => Vec::new(),
        };
        Ok(Some(LoadTls {
            name: self.url.host.trim_matches(['[', ']']).to_owned(),
            authorities: authorities.into(),
            trust_anybody: self.insecure,
        }))
    }
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let url = &args.url;
    let address = resolve(&format!("{}:{}", url.host, url.port)).await?.to_string();
    let http = LoadHttp {
        version: if args.http2 { 2 } else { 1 },
        tls: args.tls()?,
        method: args.method.clone(),
        authority: url.authority.clone(),
        path: url.path.clone(),
        fields: args
            .header
            .iter()
            .map(|(name, value)| LoadHttpField {
                name: name.clone(),
                value: value.clone(),
            })
            .collect(),
        body: body(&args.body)?.into(),
        close: args.no_keep_alive,
        streams: args.streams,
        connections: args.connections,
        statuses: args
            .status
            .iter()
            .map(|&(first, last)| LoadStatuses { first, last })
            .collect(),
        wanted: args.contains.clone().into_bytes().into(),
    };
    let load = Load {
        plan: LoadPlan {
            targets: vec![address.clone()],
            timeout_ns: within("--timeout", args.timeout)?,
            http: Some(http),
            ..LoadPlan::default()
        },
        targets: vec![url.text.clone()],
        named: vec![format!("{} ({address})", url.text)],
        count: LoadCount {
            connections: args.requests,
            pause_ns: nanoseconds("--sleep", args.sleep)?,
        },
        of_what: "requests",
        mesh: None,
    };
    make(&args.asked, &load).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> (bool, String, u16, String) {
        let url: Url = text.parse().expect(text);
        (url.is_secure, url.host, url.port, url.path)
    }

    #[test]
    fn a_url_is_taken_apart() {
        let is = |text, secure, host: &str, port, path: &str| {
            assert_eq!(parts(text), (secure, host.to_owned(), port, path.to_owned()));
        };
        is("http://web", false, "web", 80, "/");
        is("https://web:8443/a/b?c=d#e", true, "web", 8443, "/a/b?c=d");
        is("HTTP://[::1]:81?x", false, "[::1]", 81, "/?x");
        is("https://[fd00::1]/", true, "[fd00::1]", 443, "/");
        for bad in [
            "web",
            "ftp://web",
            "http://",
            "http://:80",
            "http://web:0",
            "http://::1",
            "http://me@web",
        ] {
            let error = bad.parse::<Url>().expect_err(bad);
            assert!(error.contains("write http://"), "{error}");
        }
    }

    #[test]
    fn headers_and_statuses_are_read_as_people_write_them() {
        assert_eq!(field("X-Id:  7 "), Ok(("X-Id".into(), "7".into())));
        assert!(field("X-Id").is_err() && field(": 7").is_err());
        assert_eq!(
            (statuses("200"), statuses("200-299")),
            (Ok((200, 200)), Ok((200, 299)))
        );
        assert!(statuses("299-200").is_err() && statuses("20").is_err());
    }
}
