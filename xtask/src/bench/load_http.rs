//! The HTTP part of the benchmark `load`: the engine and its peers ask the same server, which gives the same answer to all, each turn in a
//! network namespace of its own. What counts is the CPU of the client, all of its process, as the shell that starts it tells.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde_json::Value;

use super::load::{Engine, RATES, TARGET};
use super::rounds::{Comparison, Target};
use super::{Measurement, Subject, take_turns};
use crate::netns::Netns;
use crate::setup::oha;

/// Clients' threads: as many as the machine that the published figures are from has cores.
const THREADS: &str = "2";
/// Connections at once.
const CONNECTIONS: &str = "64";
const SECONDS: u64 = 5;
const PER_SECOND: &str = "requests/s";
const CPU: &str = "us of CPU per request";
const P99: &str = "p99 from the intended start, us";

/// Where a client says how much it did.
#[derive(Clone, Copy)]
enum Told {
    /// The number before these words.
    Before(&'static str),
    /// The number after these words, of requests in all.
    After(&'static str),
    /// The number after these words, of requests a second.
    Rate(&'static str),
    /// A member of the JSON that it prints; of requests in all.
    Json(&'static str),
    /// Likewise, of requests a second.
    JsonRate(&'static str),
}

impl Told {
    /// Requests, of a run that lasted so long.
    fn requests(self, output: &str) -> anyhow::Result<f64> {
        let number = |word: Option<&str>| word.and_then(|word| word.trim_matches(',').parse::<f64>().ok());
        let after = |words: &str| {
            let (_, rest) = output.split_once(words)?;
            number(rest.split_whitespace().next())
        };
        let json = |name: &str| {
            let value: Value = serde_json::from_str(output).ok()?;
            value.pointer(name)?.as_f64()
        };
        let found = match self {
            Self::Before(words) => output
                .split_once(words)
                .and_then(|(rest, _)| number(rest.split_whitespace().next_back())),
            Self::After(words) => after(words),
            Self::Rate(words) => after(words).map(|rate| rate * SECONDS as f64),
            Self::Json(name) => json(name),
            Self::JsonRate(name) => json(name).map(|rate| rate * SECONDS as f64),
        };
        found.with_context(|| format!("a client says nothing of how much it did: {output}"))
    }
}

/// A client with what it is called with.
struct Client<'a> {
    name: &'static str,
    engine: &'a Engine,
    program: PathBuf,
    arguments: Vec<String>,
    told: Told,
    /// Where in its JSON the latency is, and in which part of a second.
    p99: Option<(&'static str, f64)>,
    /// The figure that counts.
    is_rate: bool,
}

impl Subject for Client<'_> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn measure(&mut self) -> anyhow::Result<Measurement> {
        let netns = Netns::create("bench")?;
        let _server = self.engine.start(&netns, "serve", &["--threads", THREADS])?;
        // The shell's word of what its child took comes last on standard error.
        let script = "TIMEFORMAT='cpu %3U %3S'; time \"$@\"";
        let output = netns
            .command(Path::new("bash"))
            .args(["-c", script, "bash"])
            .arg(&self.program)
            .args(&self.arguments)
            .output()?;
        let (said, errors) = (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        );
        ensure!(output.status.success(), "{} failed: {errors}{said}", self.name);
        let times = errors.rsplit_once("cpu ").map(|(_, times)| times);
        let times = times.context("the shell says nothing of CPU time")?;
        let cpu_s: f64 = times
            .split_whitespace()
            .filter_map(|time| time.parse::<f64>().ok())
            .sum();
        let requests = self.told.requests(&said)?;
        let per_second = requests / SECONDS as f64;
        let cpu_us = cpu_s * 1e6 / requests;
        let (cost, mut figures) = if self.is_rate {
            (per_second, vec![(CPU, cpu_us)])
        } else {
            (cpu_us, vec![(PER_SECOND, per_second)])
        };
        if let Some((place, of_a_second)) = self.p99 {
            let value: Value = serde_json::from_str(&said).context("a client printed no JSON")?;
            let latency = value.pointer(place).and_then(Value::as_f64);
            let latency = latency.with_context(|| format!("{} says nothing of {place}", self.name))?;
            figures.push((P99, latency / of_a_second * 1e6));
        }
        Ok(Measurement {
            cost,
            figures,
            note: String::new(),
        })
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

const OURS: &str = "holdfast load";
const RING: &str = "bare io_uring";

fn ours<'a>(engine: &'a Engine, arguments: &str) -> Client<'a> {
    let millis = SECONDS * 1_000;
    Client {
        name: OURS,
        engine,
        program: engine.program.clone(),
        arguments: words(&format!(
            "http {TARGET} --threads {THREADS} --millis {millis} {arguments}"
        )),
        told: Told::Json("/answered"),
        p99: None,
        is_rate: false,
    }
}

fn peers<'a>(
    engine: &'a Engine,
    keep_alive: bool,
    is_rate: bool,
) -> anyhow::Result<Vec<Box<dyn Subject + 'a>>> {
    let url = format!("http://{TARGET}/");
    let peer = |name: &'static str, program: PathBuf, arguments: String, told: Told| {
        Box::new(Client {
            name,
            engine,
            program,
            arguments: words(&arguments),
            told,
            p99: None,
            is_rate,
        })
    };
    let close = |flag: &'static str| if keep_alive { "" } else { flag };
    let mut wrk = peer(
        "wrk",
        "wrk".into(),
        format!("-t{THREADS} -c{CONNECTIONS} -d{SECONDS}s"),
        Told::Before(" requests in "),
    );
    if !keep_alive {
        wrk.arguments
            .extend(["-H".to_owned(), "Connection: close".to_owned()]);
    }
    wrk.arguments.push(url.clone());
    let ab = format!(
        "-q {} -c {CONNECTIONS} -t {SECONDS} -n 10000000 {url}",
        if keep_alive { "-k" } else { "" }
    );
    let hey = format!(
        "-cpus {THREADS} -c {CONNECTIONS} -z {SECONDS}s {} {url}",
        close("-disable-keepalive")
    );
    let oha = format!(
        "--no-tui --output-format json -c {CONNECTIONS} -z {SECONDS}s {} {url}",
        close("--disable-keepalive")
    );
    let mut ours = ours(
        engine,
        &format!("--concurrency {CONNECTIONS} {}", close("--close")),
    );
    ours.is_rate = is_rate;
    let mut all: Vec<Box<dyn Subject + 'a>> = vec![
        wrk,
        Box::new(ours),
        peer("ab", "ab".into(), ab, Told::After("Complete requests:")),
        peer("hey", "hey".into(), hey, Told::Rate("Requests/sec:")),
        peer(
            "oha",
            oha::program()?,
            oha,
            Told::JsonRate("/summary/requestsPerSec"),
        ),
    ];
    if keep_alive {
        // It has no way to close a connection after a request.
        let h2load = format!("--h1 -t{THREADS} -c{CONNECTIONS} -D {SECONDS} {url}");
        all.push(peer(
            "h2load",
            "h2load".into(),
            h2load,
            Told::Before(" succeeded,"),
        ));
        // No client: two entries of a ring for each request, and answers that nobody reads.
        let millis = SECONDS * 1_000;
        let ask = format!("ask {TARGET} --threads {THREADS} --connections {CONNECTIONS} --millis {millis}");
        all.push(peer(RING, engine.program.clone(), ask, Told::Json("/answered")));
    }
    Ok(all)
}

/// Connections that are used again.
pub(super) fn kept(rounds: u32) -> anyhow::Result<Comparison> {
    let engine = Engine::build()?;
    take_turns(CPU, &mut peers(&engine, true, false)?, rounds)
}

/// A connection for each request.
pub(super) fn fresh(rounds: u32) -> anyhow::Result<Comparison> {
    let engine = Engine::build()?;
    take_turns(PER_SECOND, &mut peers(&engine, false, true)?, rounds)
}

/// Fixed rates, and what somebody would have waited; one after the other.
pub(super) fn exact(rounds: u32) -> anyhow::Result<Vec<Comparison>> {
    let engine = Engine::build()?;
    RATES
        .iter()
        .map(|&(_, per_second)| at_rate(&engine, per_second, rounds))
        .collect()
}

fn at_rate(engine: &Engine, per_second: u64, rounds: u32) -> anyhow::Result<Comparison> {
    let url = format!("http://{TARGET}/");
    let mut ours = ours(engine, &format!("--rate {per_second}"));
    ours.p99 = Some(("/request/p99_ns", 1e9));
    let oha = Client {
        name: "oha",
        engine,
        program: oha::program()?,
        arguments: words(&format!(
            "--no-tui --output-format json -q {per_second} --latency-correction -c {CONNECTIONS} -z {SECONDS}s {url}"
        )),
        told: Told::JsonRate("/summary/requestsPerSec"),
        p99: Some(("/latencyPercentiles/p99", 1.0)),
        is_rate: false,
    };
    let mut subjects: Vec<Box<dyn Subject>> = vec![Box::new(oha), Box::new(ours)];
    take_turns(CPU, &mut subjects, rounds)
}

/// Each target beside what was measured: ratios to a peer in the same round.
pub(super) fn verdict(kept: &Comparison, fresh: &Comparison, exact: &[Comparison]) -> String {
    let mut text = String::from("targets:\n");
    let mut line = |what: &str, target: Target, comparison: &Comparison, peer: &str, figure: Option<&str>| {
        text += &target.line(what, comparison.ratio_to(OURS, peer, figure));
    };
    for (peer, times) in [("wrk", 1.3), ("oha", 2.0), ("hey", 6.0)] {
        let what = format!("keep-alive: CPU per request over {peer}'s");
        line(&what, Target::AtMost(1.0 / times), kept, peer, None);
    }
    let what = "a connection each: requests/s over wrk's";
    line(what, Target::AtLeast(1.6), fresh, "wrk", None);
    for ((name, _), comparison) in RATES.iter().zip(exact) {
        let what = format!("{name}: p99 from the intended start over oha's");
        line(&what, Target::AtMost(1.0), comparison, "oha", Some(P99));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_say_of_themselves_is_read() {
        let is = |told: Told, output: &str, requests: f64| {
            assert_eq!(told.requests(output).expect("a number"), requests, "{output}");
        };
        is(
            Told::Before(" requests in "),
            "  1234 requests in 5.00s, 1.2MB read\n",
            1234.0,
        );
        is(
            Told::After("Complete requests:"),
            "Complete requests:      77\nFailed requests: 0",
            77.0,
        );
        is(Told::Rate("Requests/sec:"), "  Requests/sec:\t100.5\n", 502.5);
        is(
            Told::Before(" succeeded,"),
            "requests: 10 total, 10 started, 10 done, 9 succeeded, 1 failed",
            9.0,
        );
        is(Told::Json("/answered"), "{\"answered\": 3}", 3.0);
        is(
            Told::JsonRate("/summary/requestsPerSec"),
            "{\"summary\": {\"requestsPerSec\": 2.0}}",
            10.0,
        );
        assert!(Told::After("Complete requests:").requests("nothing").is_err());
    }
}
