//! What came of a run: the parts of all agents together, and what is made of them. Pure.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use hdrhistogram::serialization::Deserializer;
use hdrhistogram::{Histogram, RecordError};
use holdfast_proto::v1::{LoadCounts, LoadReport};
use serde::{Deserialize, Serialize};

use super::counts;
use super::expect::{Expectation, Verdict};
use super::plan::Plan;
use crate::store::buckets::{bucket, middle};
use crate::store::runs as store_runs;

/// More than this share of attempts that were late by a millisecond, and the generator was the limit.
const LATE_SHARE: f64 = 0.01;

/// Times of losses that are kept.
const LOSSES: usize = 1_000;

/// Losses within this have one time, in nanoseconds, as agents tell them.
const AT_ONCE_NS: u64 = 1_000_000;

/// Different remarks of agents that are kept.
const REMARKS: usize = 16;

/// Everything that was counted.
#[derive(Debug)]
pub struct Outcome {
    pub elapsed_ns: u64,
    pub counts: LoadCounts,
    pub connect: Histogram<u64>,
    pub dial: Histogram<u64>,
    pub network: Histogram<u64>,
    pub error: Histogram<u64>,
    pub exchange: Histogram<u64>,
    pub request: Histogram<u64>,
    pub jitter: Histogram<u64>,
    /// What is recorded of jitter is one smoothed mean of each receiver (RFC 3550), and no distribution: the datagrams went one way.
    pub is_jitter_mean: bool,
    /// Answers by status, and what went wrong, in words.
    pub statuses: BTreeMap<u32, u64>,
    pub remarks: Vec<String>,
    pub lateness: Histogram<u64>,
    /// Of a closed loop, and of payload that goes back and forth: for how long threads of the generator were watched, and had no time left in
    /// that, added up.
    pub watched_ns: u64,
    pub saturated_ns: u64,
    /// Each attempt waits for one before; else only payload does, on its connection.
    pub is_closed_loop: bool,
    /// All attempts were due at once, so each waits for the generator to make those before.
    pub is_burst: bool,
    /// Attempts that timed out for what the kernels of both ends know to be behind the generator; and requests that were not sent since
    /// somebody denied them a connection, or while nothing answered an attempt to connect.
    pub confirmed: u64,
    pub denied: u64,
    pub unanswered: u64,
    /// Of the requests that timed out: those that the target's kernel had acknowledged, and nothing came from there in all their time.
    pub withheld: u64,
    /// Requests and datagrams that the machines that make the load held up, did not send, or dropped the answers of.
    pub hindered: u64,
    /// Of some handshakes TCP_INFO could not be asked.
    pub lacks_handshakes: bool,
    pub lost: Vec<Lost>,
    /// Somebody ended it before its time.
    pub is_stopped: bool,
    /// What the targets' kernels say of it; absent where no agent saw the other ends.
    pub there: Option<There>,
}

/// Connections that were lost by one cause, and when since the run's start: in one millisecond, or where there were too many of these, from
/// then until `last_ns`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    pub node: String,
    pub at_ns: u64,
    #[serde(default)]
    pub last_ns: u64,
    pub cause: String,
    /// One each in a result of before they were told together.
    #[serde(default = "one")]
    pub count: u64,
}

fn one() -> u64 {
    1
}

/// Adds what an agent recorded, of the same precision or a lesser one. Each time stays the highest that it may have been, as it
/// is in the part by itself: so what is made of the sum is what is made of all parts.
fn add_up(sum: &mut Histogram<u64>, part: &Histogram<u64>) -> Result<(), RecordError> {
    part.iter_recorded()
        .try_for_each(|value| sum.record_n(value.value_iterated_to(), value.count_at_value()))
}

/// A histogram that grows to what is added to it.
fn times() -> Histogram<u64> {
    growing(*DIGITS.start())
}

fn growing(digits: u8) -> Histogram<u64> {
    let mut times = Histogram::new(digits).expect("so many digits are allowed");
    times.auto(true);
    times
}

impl Default for Outcome {
    fn default() -> Self {
        Self {
            elapsed_ns: 0,
            counts: LoadCounts::default(),
            connect: times(),
            dial: times(),
            network: growing(*DIGITS.end()),
            error: times(),
            exchange: times(),
            request: times(),
            jitter: times(),
            is_jitter_mean: false,
            statuses: BTreeMap::new(),
            remarks: Vec::new(),
            lateness: times(),
            watched_ns: 0,
            saturated_ns: 0,
            is_closed_loop: false,
            is_burst: false,
            confirmed: 0,
            denied: 0,
            unanswered: 0,
            withheld: 0,
            hindered: 0,
            lacks_handshakes: false,
            lost: Vec::new(),
            is_stopped: false,
            there: None,
        }
    }
}

/// A report that cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a distribution of times cannot be read: {0}")]
pub struct Unreadable(String);

/// What the format V2 of HDR histograms begins with: its cookie, the bytes of the counts that follow, an offset, the digits,
/// the bounds and a ratio, most significant byte first.
const HEADER_BYTES: usize = 40;
const COOKIE: u32 = 0x1c84_9313;

/// Agents record three digits, and four of round trips. The library reserves what the header asks for: with five it would be 50 MB.
const DIGITS: RangeInclusive<u8> = 3..=4;

/// A distribution as it travels; empty where nothing was recorded.
///
/// # Errors
/// If it is none.
pub fn decode(encoded: &[u8]) -> Result<Option<Histogram<u64>>, Unreadable> {
    if encoded.is_empty() {
        return Ok(None);
    }
    check_header(encoded)?;
    let mut encoded = encoded;
    Deserializer::new()
        .deserialize(&mut encoded)
        .map(Some)
        .map_err(|error| Unreadable(error.to_string()))
}

/// Refuses what the library would take at its word: it reserves memory for as many bytes as the header names, whatever is
/// there, and negates the smallest number, nine bytes of ones, for as many empty buckets. No count that was recorded has
/// so many ones.
fn check_header(encoded: &[u8]) -> Result<(), Unreadable> {
    let word = |at: usize| {
        let bytes = encoded.get(at..).and_then(|rest| rest.first_chunk::<4>());
        bytes.map(|bytes| u32::from_be_bytes(*bytes))
    };
    let counts_bytes = encoded.len().checked_sub(HEADER_BYTES);
    match (word(0), word(4), word(12)) {
        (Some(cookie), ..) if cookie != COOKIE => {
            Err(Unreadable("it is no HDR histogram of the format V2".into()))
        }
        (_, Some(bytes), _) if counts_bytes != Some(bytes as usize) => Err(Unreadable(format!(
            "it has {} bytes, its header says {bytes} and the {HEADER_BYTES} of its own",
            encoded.len()
        ))),
        (_, _, Some(digits)) if !u8::try_from(digits).is_ok_and(|digits| DIGITS.contains(&digits)) => {
            Err(Unreadable(format!(
                "it has {digits} digits, agents record {} or {}",
                DIGITS.start(),
                DIGITS.end()
            )))
        }
        (Some(_), Some(_), Some(_)) if encoded[HEADER_BYTES..].windows(9).any(|nine| nine == [0xff; 9]) => {
            Err(Unreadable("it skips more buckets than there can be".into()))
        }
        (Some(_), Some(_), Some(_)) => Ok(()),
        _ => Err(Unreadable("it ends in its header".into())),
    }
}

impl Outcome {
    /// Adds a report of a node.
    ///
    /// # Errors
    /// If a distribution in it cannot be read; nothing is added then.
    pub fn add(&mut self, node: &str, report: &LoadReport) -> Result<(), Unreadable> {
        let parts = [
            (&mut self.connect, decode(&report.connect)?),
            (&mut self.dial, decode(&report.dial)?),
            (&mut self.network, decode(&report.network)?),
            (&mut self.error, decode(&report.error)?),
            (&mut self.exchange, decode(&report.exchange)?),
            (&mut self.request, decode(&report.request)?),
            (&mut self.jitter, decode(&report.jitter)?),
            (&mut self.lateness, decode(&report.lateness)?),
        ];
        for (sum, part) in parts {
            if let Some(part) = part {
                add_up(sum, &part).map_err(|error| Unreadable(error.to_string()))?;
            }
        }
        for (&status, count) in &report.statuses {
            *self.statuses.entry(status).or_insert(0) += count;
        }
        for remark in &report.remarks {
            let is_new = !self.remarks.contains(remark);
            if is_new && self.remarks.len() < REMARKS {
                self.remarks.push(remark.clone());
            }
        }
        counts::add(&mut self.counts, &report.counts.unwrap_or_default());
        self.denied = self.denied.saturating_add(report.denied);
        self.unanswered = self.unanswered.saturating_add(report.unanswered);
        self.withheld = self.withheld.saturating_add(report.withheld);
        self.hindered = self.hindered.saturating_add(report.hindered);
        self.lacks_handshakes |= report.lacks_handshakes;
        self.elapsed_ns = self.elapsed_ns.max(report.elapsed_ns);
        for lost in &report.lost {
            self.lost_then(Lost {
                node: node.to_owned(),
                at_ns: lost.at_ns,
                last_ns: lost.at_ns,
                cause: lost.cause.clone(),
                count: lost.count.max(1),
            });
        }
        Ok(())
    }

    /// Adds to what was lost in the same moment; without room for another one, to what was lost last in the same way.
    fn lost_then(&mut self, lost: Lost) {
        let has_room = self.lost.len() < LOSSES;
        let is_alike = |known: &&mut Lost| {
            let is_at_once = known.at_ns / AT_ONCE_NS == lost.at_ns / AT_ONCE_NS;
            (is_at_once || !has_room) && known.cause == lost.cause && known.node == lost.node
        };
        match self.lost.iter_mut().rev().find(is_alike) {
            Some(known) => {
                known.at_ns = known.at_ns.min(lost.at_ns);
                known.last_ns = known.last_ns.max(lost.last_ns);
                known.count = known.count.saturating_add(lost.count);
            }
            None if has_room => self.lost.push(lost),
            None => {}
        }
    }

    /// Why times may be the generator's own, in words, if they may: what waits for answers waits for a thread that has no time left too. In a
    /// closed loop and in a burst that is everything, else it is the exchanges.
    pub fn doubt(&self) -> Option<String> {
        if self.is_late_burst() {
            return Some(format!(
                "limited by the generator, which made {} of {} attempts 1 ms or more after they were due, all at once: a pause between \
                 them (--sleep) gives it time",
                self.counts.late,
                self.lateness.len()
            ));
        }
        is_saturated(self.watched_ns, self.saturated_ns).then(|| {
            format!(
                "limited by the generator, which had no CPU time left for {} of the run",
                share(self.saturated_ns, self.watched_ns)
            )
        })
    }

    /// Whether every attempt waits for the generator, and not only what goes back and forth.
    pub fn waits_for_the_generator(&self) -> bool {
        self.is_closed_loop || self.is_late_burst()
    }

    fn is_late_burst(&self) -> bool {
        self.is_burst && self.is_late()
    }

    fn is_late(&self) -> bool {
        self.counts.late as f64 > self.lateness.len() as f64 * LATE_SHARE
    }

    /// Requests that were not sent for what is known to be behind the generator.
    pub fn denied(&self) -> u64 {
        self.denied.saturating_add(self.unanswered.min(self.confirmed))
    }

    /// What may be the generator's own slowness and is known not to be.
    pub fn proven(&self) -> counts::Proven {
        counts::Proven {
            timed_out: self.confirmed,
            unsent: self.denied(),
            request_timed_out: self.withheld,
        }
    }

    /// What kept the generator from making the load that was asked for, in words.
    pub fn limits(&self) -> Vec<String> {
        let mut limits = Vec::new();
        let local = counts::local_limits(&self.counts);
        if local > 0 {
            limits.push(format!(
                "{local} attempts were not made for want of files, ports or permission on the nodes that make the load"
            ));
        }
        if self.hindered > 0 {
            limits.push(format!(
                "{} requests or datagrams were held up, not sent or not heard on the nodes that make the load, for want of connections, \
                 files, memory or permission there",
                self.hindered
            ));
        }
        // What goes one way is abandoned only where its receiver does not say what it has got.
        if self.is_jitter_mean && self.counts.request_abandoned > 0 {
            limits.push(format!(
                "what became of {} datagrams is not known: their targets did not say what they have got",
                self.counts.request_abandoned
            ));
        }
        let due = self.lateness.len();
        // That a burst takes a while is no lack of anything: see `doubt`.
        if self.is_late() && !self.is_burst {
            limits.push(format!(
                "{} of {due} attempts were made 1 ms or more after they were due: the nodes that make the load lack CPU, \
                 ask for less or use more agents",
                self.counts.late
            ));
        }
        limits
    }
}

/// Whether the generator was the limit of what waits for answers: of so much of it the times may be its own, as of attempts of an open loop
/// that are late.
pub fn is_saturated(watched_ns: u64, saturated_ns: u64) -> bool {
    saturated_ns as f64 > watched_ns as f64 * LATE_SHARE
}

/// A part of a time, in percent.
pub fn share(part_ns: u64, whole_ns: u64) -> String {
    format!("{:.0}%", part_ns as f64 / whole_ns.max(1) as f64 * 100.0)
}

/// A distribution, in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Times {
    pub count: u64,
    pub min_ns: u64,
    pub mean_ns: u64,
    pub dev_ns: u64,
    pub p50_ns: u64,
    pub p90_ns: u64,
    pub p99_ns: u64,
    pub p999_ns: u64,
    pub max_ns: u64,
}

impl Times {
    /// Of log buckets of microseconds, in their order: right to 1.6 %.
    pub fn of_buckets(buckets: &[(u16, u64)]) -> Self {
        let mut times = times();
        for &(bucket, count) in buckets {
            // It grows as it must.
            let _ = times.record_n((middle(bucket) * 1e3) as u64, count);
        }
        Self::of(&times)
    }

    pub fn of(times: &Histogram<u64>) -> Self {
        if times.is_empty() {
            return Self::default();
        }
        Self {
            count: times.len(),
            min_ns: times.min(),
            mean_ns: times.mean() as u64,
            dev_ns: times.stdev() as u64,
            p50_ns: times.value_at_quantile(0.5),
            p90_ns: times.value_at_quantile(0.9),
            p99_ns: times.value_at_quantile(0.99),
            p999_ns: times.value_at_quantile(0.999),
            max_ns: times.max(),
        }
    }
}

/// A distribution of nanoseconds as log buckets of microseconds, in their order.
pub fn buckets(times: &Histogram<u64>) -> Vec<(u16, u64)> {
    let mut buckets = BTreeMap::new();
    for value in times.iter_recorded() {
        let id = bucket(value.value_iterated_to() / 1_000);
        *buckets.entry(id).or_insert(0) += value.count_at_value();
    }
    buckets.into_iter().collect()
}

/// The result as it is stored and shown.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    /// False until the run has ended: nothing but `connections` is known then.
    #[serde(default)]
    pub is_over: bool,
    /// What was asked for; absent in a result of before it was stored.
    #[serde(default)]
    pub plan: Option<Plan>,
    /// How the kernels' records of its connections are found.
    #[serde(default)]
    pub connections: Connections,
    pub elapsed_ns: u64,
    /// By name.
    pub counts: BTreeMap<String, u64>,
    /// Likewise, of `counts`: what was seen of agents of a mesh as targets after they were last heard of. It proves nothing.
    #[serde(default)]
    pub own_doing: BTreeMap<String, u64>,
    /// Established at once: of one node the most, of several the most that they had in one interval of their reports, added up.
    pub most_open: u64,
    /// Established when the run ended, before the generator closed them, as the last reports before that say; absent: a node made none.
    pub open_at_end: Option<u64>,
    pub connect: Times,
    pub dial: Times,
    pub network: Times,
    pub error: Times,
    pub exchange: Times,
    #[serde(default)]
    pub request: Times,
    /// Of datagrams that went one way it has as many as there were receivers, and only its mean means something.
    #[serde(default)]
    pub jitter: Times,
    #[serde(default)]
    pub statuses: BTreeMap<u32, u64>,
    #[serde(default)]
    pub remarks: Vec<String>,
    pub lateness: Times,
    pub cpu_ns: u64,
    /// Of a closed loop, and of payload that goes back and forth, of all threads of the generators: for how long they were watched, and of
    /// that had no time left. Else zero.
    #[serde(default)]
    pub watched_ns: u64,
    #[serde(default)]
    pub saturated_ns: u64,
    /// Why all times but the network's may be the generator's own, for the loop was closed, or all was due at once; empty: they are not.
    #[serde(default)]
    pub doubt: String,
    /// Likewise those of exchanges alone, in an open loop.
    #[serde(default)]
    pub exchange_doubt: String,
    /// Of the requests that timed out: those that the target's kernel had acknowledged, and nothing came from there in all their time.
    #[serde(default)]
    pub withheld: u64,
    /// SYNs that were sent again are not among `counts`: their sockets could not be asked. The kernel's records have them.
    #[serde(default)]
    pub lacks_handshakes: bool,
    /// Between the first attempts of any two nodes, each against its own due time, and how far off that may be.
    pub skew_ns: u64,
    pub skew_error_ns: u64,
    /// What each agent did.
    #[serde(default)]
    pub parts: Vec<PartOf>,
    /// What each agent of a mesh did to each other; empty in any other run.
    #[serde(default)]
    pub pairs: Vec<Pair>,
    /// The distributions by the names of the fields above; log buckets of microseconds, and how many are in each.
    #[serde(default)]
    pub buckets: BTreeMap<String, Vec<(u16, u64)>>,
    pub expectations: Vec<Judged>,
    pub limits: Vec<String>,
    pub lost: Vec<Lost>,
    /// What the kernel of the nodes that made the load recorded of the same connections; absent: nothing in time.
    pub kernel: Option<Kernel>,
}

/// The part of one agent.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PartOf {
    pub node: String,
    /// By name.
    pub counts: BTreeMap<String, u64>,
    pub most_open: u64,
    pub cpu_ns: u64,
    /// As in the whole.
    #[serde(default)]
    pub watched_ns: u64,
    #[serde(default)]
    pub saturated_ns: u64,
    pub lateness: Times,
    /// By how much its first attempt was made after it was due; absent where it made none, and in a run without a result.
    pub lag_ns: Option<u64>,
    /// How far off its clock's difference from the collector's may be.
    pub clock_error_ns: u64,
    /// Why it ended before its part was done; empty: it was done, or all were stopped.
    pub trouble: String,
}

/// What one agent of a mesh did to another.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Pair {
    pub from: String,
    pub to: String,
    /// Where the other was reached; empty in a run without a result.
    pub address: String,
    /// By name.
    pub counts: BTreeMap<String, u64>,
    /// From when an attempt was due until it was established, and the round trips of the handshakes: of log buckets, right to 1.6 %.
    pub connect: Times,
    pub network: Times,
    /// False if it was lost in the middle; of a run without a result that is not known, and it is true.
    pub is_over: bool,
}

impl Pair {
    /// Attempts that were decided and not established, but for those that the end of the run cut off; and with those that were, all.
    pub fn failed(&self) -> (u64, u64) {
        let count = |name: &str| self.counts.get(name).copied().unwrap_or(0);
        let failed = counts::ERRORS.map(count).iter().sum();
        (failed, failed + count("established"))
    }
}

/// What was expected, what was seen, and whether it holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Judged {
    pub expected: String,
    pub seen: String,
    pub verdict: Verdict,
    /// What the target answered breaks it, whatever the generator lacked.
    #[serde(default)]
    pub is_broken_by_answers: bool,
    /// It is of what the target's kernel says.
    #[serde(default)]
    pub is_of_the_target: bool,
}

/// Which connections are a run's: those that one process of a node opened to the targets while it lasted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    /// Names of nodes and the process of each that made the load.
    pub generators: Vec<(String, u32)>,
    /// Addresses, IPv4 as ::ffff:a.b.c.d, and ports.
    pub targets: Vec<(String, u16)>,
    pub began_at_ns: i64,
    /// While it runs, when it ends at the latest.
    pub ended_at_ns: i64,
    /// How far off the generators' clocks may be from the collector's, which these moments are of; zero: it is not known. A process may make
    /// runs on the same targets one right after the other, and only the time tells their connections apart.
    #[serde(default)]
    pub margin_ns: i64,
}

/// The kernels' records of the run's connections, joined at both ends by address, port and time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    pub attempts: u64,
    pub established: u64,
    pub refused: u64,
    pub timed_out: u64,
    /// Given up by the generator before the kernel did: what is a time-out to it, where its own is the shorter one.
    #[serde(default)]
    pub aborted: u64,
    /// SYNs that were sent again; absent in a result of before it was asked for.
    #[serde(default)]
    pub syn_retransmits: Option<u64>,
    pub connect_p50_us: u64,
    pub connect_p99_us: u64,
    /// Of the established ones, those whose other end an agent recorded too.
    #[serde(default)]
    pub seen_by_target: u64,
    /// Of the established ones, those between addresses that several nodes have: their other ends were looked for on the client's own node
    /// alone.
    #[serde(default)]
    pub ambiguous: u64,
    /// How many those would be if the targets of which an agent recorded any had all that were established here.
    #[serde(default)]
    pub expected_at_target: u64,
    /// Connections that the agents there did not record meanwhile, of any: what is missing may be among these.
    #[serde(default)]
    pub left_out_at_target: u64,
    /// Of those that were expected and not seen, the ones that say nothing: nodes that nobody saw them on may have their address too, they were
    /// answered, or the clock of the target is too far off to find them by.
    #[serde(default)]
    pub untold_at_target: u64,
    /// All that they recorded until the run's end is stored.
    #[serde(default)]
    pub is_settled_at_target: bool,
    /// Of those that were seen, the ones that a process of the target is known to have taken, for accept() gave it to it, or it answered or
    /// closed them.
    #[serde(default)]
    pub taken_by_target: u64,
    /// Of those that were seen, the ones that stood for a while at targets of which no process is known to have taken any.
    #[serde(default)]
    pub untaken_by_target: u64,
    /// Of those, the ones in which the target sent payload.
    #[serde(default)]
    pub served_by_target: u64,
    /// How established connections ended: what the kernel says at our end, and at the target's.
    #[serde(default)]
    pub ends: Vec<Ends>,
    #[serde(default)]
    pub ends_at_target: Vec<Ends>,
    /// Why attempts failed or were slow.
    #[serde(default)]
    pub causes: Vec<Cause>,
}

/// Connections that ended in one way, by one process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ends {
    /// As `connections` has it.
    pub close_reason: String,
    pub node: String,
    /// Who had this end; zero and empty where that is not known.
    pub pid: u32,
    pub comm: String,
    pub connections: u64,
    pub first_at_ns: i64,
    pub last_at_ns: i64,
}

/// Attempts that have one cause.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// As `attempt_causes` has it.
    pub cause: String,
    pub outcome: String,
    /// The other end says so too.
    pub is_confirmed: bool,
    /// The node of the other end; empty where no agent has seen it.
    pub node: String,
    pub attempts: u64,
    /// In words, of one of them.
    pub evidence: String,
}

/// Causes of silence that are no matter of how fast the generator is.
const OF_THE_TARGET: [&str; 6] = [
    "listener_full",
    "dropped_by_listener",
    "filtered",
    "dropped_on_path",
    "reply_dropped",
    "host_down",
];

impl Cause {
    /// Both ends know that the attempts failed for what is behind the generator.
    fn is_of_the_target(&self) -> bool {
        self.is_confirmed
            && ["timed_out", "aborted"].contains(&self.outcome.as_str())
            && OF_THE_TARGET.contains(&self.cause.as_str())
    }

    /// What is known of it may become more: the other end has an agent, which has not said yet what it saw.
    pub fn is_awaited(&self) -> bool {
        let is_only_ours = !self.is_confirmed || self.cause == "process_gave_up";
        ["timed_out", "aborted"].contains(&self.outcome.as_str()) && !self.node.is_empty() && is_only_ours
    }
}

/// How far the kernels of targets that have an agent bear out what was established here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct There {
    /// Likewise established; taken by a process; answered with payload. So many at least: what came too late is not among them.
    pub established: u64,
    pub accepted: u64,
    pub served: u64,
    /// Of those toward these targets, the ones that are not among `established`, but for as many as their agents left out of any, and those that
    /// may be where no agent looks.
    pub missing: u64,
    /// Whether nothing more can come, but for what a process took that no agent sees: of so many, all toward these targets.
    pub exact_of: Option<u64>,
}

impl Kernel {
    /// Absent where no agent saw the other end of any.
    pub fn there(&self) -> Option<There> {
        let is_all_recorded =
            self.is_settled_at_target && self.left_out_at_target == 0 && self.untold_at_target == 0;
        let is_all_known = self.seen_by_target >= self.expected_at_target || is_all_recorded;
        (self.seen_by_target > 0).then_some(There {
            established: self.seen_by_target,
            accepted: self.taken_by_target.min(self.seen_by_target),
            served: self.served_by_target,
            missing: (self.expected_at_target)
                .saturating_sub(self.seen_by_target)
                .saturating_sub(self.left_out_at_target)
                .saturating_sub(self.untold_at_target),
            exact_of: (is_all_known && !self.lacks_ends_at_target()).then_some(self.expected_at_target),
        })
    }

    /// Whether the targets of which an agent recorded any have all that was established here, or never will.
    pub fn are_all_at_target(&self) -> bool {
        self.is_settled_at_target
            || self.seen_by_target.saturating_add(self.left_out_at_target) >= self.expected_at_target
    }

    /// Whether records of how connections ended at the target are to come still, if its agent sees them at all.
    pub fn lacks_ends_at_target(&self) -> bool {
        let ended: u64 = self.ends_at_target.iter().map(|ends| ends.connections).sum();
        let are_there = ended >= self.seen_by_target || self.ends_at_target.len() >= store_runs::WAYS;
        self.established > 0 && (self.seen_by_target == 0 || !are_there)
    }

    /// What the targets' kernels say against what was established here, in words.
    fn objections(&self) -> Vec<String> {
        [self.unestablished(), self.untaken()]
            .into_iter()
            .flatten()
            .collect()
    }

    /// That they did not establish, or may not have.
    fn unestablished(&self) -> Option<String> {
        let missing = self.there().map_or(0, |there| there.missing);
        let of = format!("{missing} of {} connections", self.expected_at_target);
        (missing > 0).then(|| match self.is_settled_at_target {
            true => format!(
                "{of} were established here and not by the target's kernel: a listener whose queue is full drops the last segment of their \
                 handshakes"
            ),
            false => format!("the target's agent has not told yet of {of} that were established here"),
        })
    }

    /// That no process took.
    fn untaken(&self) -> Option<String> {
        (self.untaken_by_target > 0).then(|| {
            format!(
                "{} connections were established by the target's kernel, and no process there is known to have taken any: accept() may never \
                 have been called",
                self.untaken_by_target
            )
        })
    }

    /// Attempts that timed out for what both ends know to be behind the generator. To the kernel those that the end of the run cut off, so
    /// many, are aborted by the generator too, and any of these may be one of them.
    pub fn confirmed(&self, abandoned: u64) -> u64 {
        let of_the_target = |outcome: &str| -> u64 {
            let causes = self.causes.iter().filter(|cause| cause.outcome == outcome);
            let of_the_target = causes.filter(|cause| cause.is_of_the_target());
            of_the_target.map(|cause| cause.attempts).sum()
        };
        of_the_target("timed_out") + of_the_target("aborted").saturating_sub(abandoned)
    }

    /// Attempts that failed for a reason that is named, confirmed or not: an other end without an agent never says anything.
    pub fn explained(&self) -> u64 {
        self.causes
            .iter()
            .filter(|cause| cause.outcome != "established")
            .map(|cause| cause.attempts)
            .sum()
    }
}

/// Counts without what nobody could count: that is not known to be zero.
pub fn known(mut counts: BTreeMap<String, u64>, lacks_handshakes: bool) -> BTreeMap<String, u64> {
    if lacks_handshakes {
        counts.remove(counts::OF_HANDSHAKES);
    }
    counts
}

impl Summary {
    pub fn of(outcome: &Outcome, expectations: &[Expectation]) -> Self {
        let doubt = outcome.doubt().unwrap_or_default();
        let (doubt, exchange_doubt) = match outcome.waits_for_the_generator() {
            true => (doubt, String::new()),
            false => (String::new(), doubt),
        };
        Self {
            is_over: true,
            elapsed_ns: outcome.elapsed_ns,
            counts: known(counts::named(&outcome.counts), outcome.lacks_handshakes),
            lacks_handshakes: outcome.lacks_handshakes,
            withheld: outcome.withheld,
            watched_ns: outcome.watched_ns,
            saturated_ns: outcome.saturated_ns,
            doubt,
            exchange_doubt,
            connect: Times::of(&outcome.connect),
            dial: Times::of(&outcome.dial),
            network: Times::of(&outcome.network),
            error: Times::of(&outcome.error),
            exchange: Times::of(&outcome.exchange),
            request: Times::of(&outcome.request),
            jitter: Times::of(&outcome.jitter),
            statuses: outcome.statuses.clone(),
            remarks: outcome.remarks.clone(),
            lateness: Times::of(&outcome.lateness),
            buckets: [
                ("connect", &outcome.connect),
                ("dial", &outcome.dial),
                ("network", &outcome.network),
                ("error", &outcome.error),
                ("exchange", &outcome.exchange),
                ("request", &outcome.request),
                ("jitter", &outcome.jitter),
                ("lateness", &outcome.lateness),
            ]
            .into_iter()
            .filter(|(name, times)| {
                let is_mean_alone = outcome.is_jitter_mean && *name == "jitter";
                !times.is_empty() && !is_mean_alone
            })
            .map(|(name, times)| (name.to_owned(), buckets(times)))
            .collect(),
            expectations: expectations
                .iter()
                .map(|expectation| {
                    let (seen, verdict) = expectation.judge(outcome);
                    Judged {
                        expected: expectation.text().to_owned(),
                        seen,
                        verdict,
                        is_broken_by_answers: verdict == Verdict::Violated
                            && expectation.is_broken_by_answers(outcome),
                        is_of_the_target: expectation.is_of_the_target(),
                    }
                })
                .collect(),
            limits: outcome.limits(),
            lost: outcome.lost.clone(),
            ..Self::default()
        }
    }

    /// Whether the run shows what was expected, and why not; or what limited it though it does. Where nothing was, that there were no errors and
    /// no losses. That the kernels of targets say nothing else is expected always. A
    /// generator that was the limit proves nothing against the target, nor for it; but that the target said no, that the kernels of
    /// both ends know who dropped what it sent, or that the target's kernel had it and nothing came back, it does prove.
    pub fn verdict(&self) -> (Verdict, Vec<String>) {
        if !self.limits.is_empty() {
            let mut reasons = self.proven();
            if !reasons.is_empty() {
                reasons.extend_from_slice(&self.limits);
                return (Verdict::Violated, reasons);
            }
            return (Verdict::Unknown, self.limits.clone());
        }
        let of = |wanted| {
            let judged = self
                .expectations
                .iter()
                .filter(move |judged| judged.verdict == wanted);
            judged
                .map(|judged| format!("{}: {}", judged.expected, judged.seen))
                .collect::<Vec<_>>()
        };
        let (violated, unknown) = (of(Verdict::Violated), of(Verdict::Unknown));
        if !violated.is_empty() {
            return (Verdict::Violated, violated);
        }
        if !unknown.is_empty() {
            return (Verdict::Unknown, unknown);
        }
        if !self.expectations.is_empty() {
            let against = self.against_what_was_expected();
            let verdict = match against.is_empty() {
                true => Verdict::Holds,
                false => Verdict::Unknown,
            };
            return (verdict, against);
        }
        let count = |name: &str| self.counts.get(name).copied().unwrap_or(0);
        if count("started") + count("requests") == 0 {
            return (Verdict::Unknown, vec!["no attempt was made".into()]);
        }
        if count("started") == 0 && count("request_abandoned") == count("requests") {
            return (Verdict::Unknown, vec!["no request was decided".into()]);
        }
        let mut reasons = self.bad(&ANSWERS);
        let silences = self.bad(&SILENCES);
        let (doubt, of_generator) = match self.doubt.is_empty() {
            false => (&self.doubt, silences.clone()),
            // Of a connection an exchange that took too long is a loss.
            true => (&self.exchange_doubt, self.bad(&["lost_timed_out"])),
        };
        let are_all_doubted = silences.len() == of_generator.len();
        if !doubt.is_empty() && !silences.is_empty() && are_all_doubted && self.proven().is_empty() {
            let doubted = |silence: String| format!("{silence}, {doubt}");
            return (Verdict::Unknown, silences.into_iter().map(doubted).collect());
        }
        reasons.extend(silences);
        let objections: Vec<_> = self.kernel.iter().flat_map(Kernel::objections).collect();
        if reasons.is_empty() && !objections.is_empty() {
            return (Verdict::Unknown, objections);
        }
        if reasons.is_empty() {
            // That nothing failed was seen, and the rate is one that both ends can do.
            let limited = format!("{}; its rate is what that could do", self.doubt);
            let is_limited = !self.doubt.is_empty();
            (
                Verdict::Holds,
                is_limited.then_some(limited).into_iter().collect(),
            )
        } else {
            (Verdict::Violated, reasons)
        }
    }

    /// What the targets' kernels say though all that was expected was seen here. What is wanted of them may be expected itself, and what they
    /// have not told yet is nothing against times and rates.
    fn against_what_was_expected(&self) -> Vec<String> {
        let says_what_is_wanted = self.expectations.iter().any(|judged| judged.is_of_the_target);
        let kernel = self.kernel.iter().filter(|_| !says_what_is_wanted);
        kernel
            .flat_map(|kernel| {
                [
                    kernel.unestablished().filter(|_| kernel.is_settled_at_target),
                    kernel.untaken(),
                ]
            })
            .flatten()
            .collect()
    }

    /// Whether something that the agents lacked, or were too slow for, may be why it is unknown.
    pub fn are_agents_the_limit(&self) -> bool {
        !self.limits.is_empty() || !self.doubt.is_empty() || !self.exchange_doubt.is_empty()
    }

    /// What holds against the target, whatever the generator lacked.
    fn proven(&self) -> Vec<String> {
        let has_own_doing = self.own_doing.values().any(|count| *count > 0);
        if !self.expectations.is_empty() {
            let broken = self
                .expectations
                .iter()
                .filter(|judged| judged.is_broken_by_answers);
            return broken
                .filter(|_| !has_own_doing)
                .map(|judged| format!("{}: {}", judged.expected, judged.seen))
                .collect();
        }
        let mut reasons = self.bad(&ANSWERS);
        // Silence alone is none, but its cause may be.
        let abandoned = self.counts.get("abandoned").copied().unwrap_or(0);
        let kernel = self
            .kernel
            .iter()
            .filter(|kernel| kernel.confirmed(abandoned) > 0);
        if !has_own_doing && !self.bad(&["timed_out"]).is_empty() {
            let causes = kernel.flat_map(|kernel| &kernel.causes);
            reasons.extend(causes.filter(|cause| cause.is_of_the_target()).map(|cause| {
                let (outcome, why) = (cause.outcome.replace('_', " "), cause.cause.replace('_', " "));
                format!("{} {outcome}: {why}", cause.attempts)
            }));
        }
        if self.withheld > 0 {
            reasons.push(format!(
                "{} requests timed out: the target's kernel had them, and nothing came back",
                self.withheld
            ));
        }
        reasons
    }

    /// Which of these there were, and how many.
    fn bad(&self, names: &[&str]) -> Vec<String> {
        let count = |name: &&str| {
            let of = |counts: &BTreeMap<String, u64>| counts.get(*name).copied().unwrap_or(0);
            of(&self.counts).saturating_sub(of(&self.own_doing))
        };
        // Of a connection the kernel's records say why, of a datagram nothing else does.
        let cause = |name: &str| match name {
            "refused" if self.is_of_datagrams() => ", nothing listens on that UDP port",
            _ => "",
        };
        names
            .iter()
            .filter(|name| count(name) > 0)
            .map(|name| format!("{name}: {}{}", count(name), cause(name)))
            .collect()
    }

    /// Connections that were lost, and of how many of these the times were kept.
    pub fn losses(&self) -> (u64, u64) {
        let count = |name: &str| self.counts.get(name).copied().unwrap_or(0);
        let timed = self
            .lost
            .iter()
            .fold(0, |sum: u64, lost| sum.saturating_add(lost.count));
        (counts::LOSSES.map(count).iter().sum(), timed)
    }

    /// As [`Outcome::is_jitter_mean`].
    pub fn is_jitter_mean(&self) -> bool {
        self.plan.as_ref().is_some_and(|plan| plan.one_way)
    }

    /// By its plan; where that was not stored yet, as [`counts::are_of_datagrams`].
    pub fn is_of_datagrams(&self) -> bool {
        let count = |name: &str| self.counts.get(name).copied().unwrap_or(0);
        match &self.plan {
            Some(plan) => plan.protocol == "UDP",
            None => count("requests") > 0 && count("started") == 0,
        }
    }
}

/// What the other end, or somebody on the way to it, answers that should not be. However late it was asked, that was its answer.
pub const ANSWERS: [&str; 9] = [
    "refused",
    "reset",
    "unreachable",
    "closed_by_peer",
    "reset_by_peer",
    "unexpected_status",
    "unexpected_body",
    "malformed",
    "insecure",
];

/// What may be a generator's own slowness too.
pub const SILENCES: [&str; 8] = [
    "timed_out",
    "failed",
    "lost_timed_out",
    "lost_unreachable",
    "lost_failed",
    "request_timed_out",
    "request_lost",
    "unsent",
];

/// A time with three digits and its unit.
pub fn human(ns: u64) -> String {
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (ns as f64 / 1e3, "us"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    let digits = match value {
        ..10.0 => 2,
        10.0..100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generator_that_was_the_limit_proves_nothing() {
        let mut outcome = Outcome::default();
        outcome.counts.started = 10;
        outcome.counts.established = 9;
        outcome.counts.local_ports = 1;
        let expected = [Expectation::parse("established = 10").unwrap()];
        let (verdict, reasons) = Summary::of(&outcome, &expected).verdict();
        assert_eq!(verdict, Verdict::Unknown);
        assert!(reasons[0].contains("1 attempts were not made"), "{reasons:?}");
        // Nor does a time-out, but a refusal does.
        outcome.counts.timed_out = 1;
        assert_eq!(Summary::of(&outcome, &[]).verdict().0, Verdict::Unknown);
        outcome.counts.refused = 2;
        let (verdict, reasons) = Summary::of(&outcome, &[]).verdict();
        assert_eq!(
            (verdict, reasons[0].as_str(), reasons.len()),
            (Verdict::Violated, "refused: 2", 2)
        );
        assert_eq!(Summary::of(&outcome, &expected).verdict().0, Verdict::Unknown);
    }

    #[test]
    fn an_expectation_that_the_target_broke_is_broken_however_late_the_generator_was() {
        let mut outcome = Outcome::default();
        outcome.counts.started = 10;
        outcome.counts.refused = 10;
        outcome.counts.late = 5;
        outcome.lateness.record_n(2_000_000, 10).unwrap();
        let verdict = |outcome: &Outcome, text: &str| {
            let expected = [Expectation::parse(text).unwrap()];
            Summary::of(outcome, &expected).verdict()
        };
        let (found, reasons) = verdict(&outcome, "error_ratio < 0.1%");
        assert_eq!(found, Verdict::Violated);
        assert_eq!(reasons[0], "error_ratio < 0.1%: 100.000%");
        assert!(reasons[1].contains("5 of 10 attempts"), "{reasons:?}");
        assert_eq!(verdict(&outcome, "refused = 0").0, Verdict::Violated);
        // What holds still is not proven, nor what is only short of something.
        assert_eq!(verdict(&outcome, "timed_out = 0").0, Verdict::Unknown);
        assert_eq!(verdict(&outcome, "established >= 1").0, Verdict::Unknown);
        // Of a silence that may be its own doing nothing counts, of an answer each does.
        (outcome.counts.refused, outcome.counts.timed_out) = (1, 9);
        assert_eq!(verdict(&outcome, "error_ratio < 20%").0, Verdict::Unknown);
        assert_eq!(verdict(&outcome, "error_ratio < 10%").0, Verdict::Violated);
    }

    #[test]
    fn a_cause_that_both_ends_know_is_proof_where_silence_is_none() {
        let mut outcome = Outcome::default();
        outcome.counts.started = 10;
        outcome.counts.timed_out = 10;
        outcome.counts.late = 5;
        outcome.lateness.record_n(2_000_000, 10).unwrap();
        let found = |outcome: &Outcome, cause: Cause, own_doing: u64| {
            let mut summary = Summary::of(outcome, &[]);
            summary.own_doing = [("timed_out".to_owned(), own_doing)].into();
            summary.kernel = Some(Kernel {
                causes: vec![cause],
                ..Kernel::default()
            });
            summary.verdict()
        };
        let full = Cause {
            cause: "listener_full".into(),
            outcome: "aborted".into(),
            is_confirmed: true,
            attempts: 10,
            ..Cause::default()
        };
        let (verdict, reasons) = found(&outcome, full.clone(), 0);
        assert_eq!(
            (verdict, reasons[0].as_str()),
            (Verdict::Violated, "10 aborted: listener full")
        );
        let unconfirmed = Cause {
            is_confirmed: false,
            ..full.clone()
        };
        assert_eq!(found(&outcome, unconfirmed, 0).0, Verdict::Unknown);
        // Nor is what the end of the run cut off.
        outcome.counts.abandoned = 9;
        assert_eq!(found(&outcome, full.clone(), 0).0, Verdict::Violated);
        outcome.counts.abandoned = 10;
        assert_eq!(found(&outcome, full.clone(), 0).0, Verdict::Unknown);
        outcome.counts.abandoned = 0;
        // What is the generator's own, and what came of a lost agent of a mesh, is none.
        let gave_up = Cause {
            cause: "process_gave_up".into(),
            ..full.clone()
        };
        assert_eq!(found(&outcome, gave_up, 0).0, Verdict::Unknown);
        assert_eq!(found(&outcome, full.clone(), 1).0, Verdict::Unknown);
        let slow = Cause {
            outcome: "established".into(),
            ..full
        };
        assert_eq!(found(&outcome, slow, 0).0, Verdict::Unknown);
    }

    #[test]
    fn what_the_kernel_of_the_target_does_not_bear_out_does_not_hold() {
        let full = Kernel {
            established: 1_000,
            expected_at_target: 1_000,
            seen_by_target: 129,
            ..Kernel::default()
        };
        let hung = Kernel {
            seen_by_target: 1_000,
            untaken_by_target: 990,
            ..full.clone()
        };
        let summary = |kernel: &Kernel, expected: &[&str]| {
            let mut outcome = Outcome {
                there: kernel.there(),
                ..Outcome::default()
            };
            (outcome.counts.started, outcome.counts.established) = (1_000, 1_000);
            let expected: Vec<_> = expected
                .iter()
                .map(|text| Expectation::parse(text).unwrap())
                .collect();
            let mut summary = Summary::of(&outcome, &expected);
            summary.kernel = Some(kernel.clone());
            summary
        };
        let verdict = |kernel: &Kernel, expected: &[&str]| {
            let (verdict, reasons) = summary(kernel, expected).verdict();
            (verdict, reasons.join("; "))
        };
        let is = |kernel: &Kernel, expected: &[&str], wanted, part: &str| {
            let (found, reasons) = verdict(kernel, expected);
            assert_eq!(found, wanted, "{expected:?}: {reasons}");
            assert!(reasons.contains(part), "{expected:?}: {reasons}");
        };
        is(&full, &[], Verdict::Unknown, "has not told yet of 871 of 1000");
        is(
            &hung,
            &[],
            Verdict::Unknown,
            "990 connections were established by the target's kernel",
        );
        // Where nobody sees the other ends nothing is said of them.
        is(&Kernel::default(), &[], Verdict::Holds, "");
        // Their agents may have left out as many as they say, and others may have what they do not see.
        let lossy = |left_out_at_target, untold_at_target| Kernel {
            left_out_at_target,
            untold_at_target,
            ..full.clone()
        };
        is(&lossy(3, 0), &[], Verdict::Unknown, "868 of 1000 connections");
        is(&lossy(3, 0), &["established = 1000"], Verdict::Unknown, "132 by");
        for all in [lossy(871, 0), lossy(0, 871), lossy(400, 471)] {
            is(&all, &[], Verdict::Holds, "");
            is(&all, &["established = 1000"], Verdict::Holds, "");
        }

        is(
            &full,
            &["established = 1000"],
            Verdict::Unknown,
            "129 by the target's kernel too",
        );
        is(&full, &["established >= 100"], Verdict::Holds, "");
        // Once all that its agent recorded is there, nothing more comes.
        let settled = Kernel {
            is_settled_at_target: true,
            ends_at_target: vec![Ends {
                connections: 129,
                ..Ends::default()
            }],
            ..full.clone()
        };
        for broken in ["established = 1000", "established_there = 1000", "served >= 1"] {
            is(&settled, &[broken], Verdict::Violated, "");
        }
        is(&settled, &["accepted >= 1"], Verdict::Unknown, "0 or more");
        is(
            &settled,
            &[],
            Verdict::Unknown,
            "871 of 1000 connections were established here and not by",
        );
        // Whatever else was expected, unless it is of that itself.
        let not_there = "871 of 1000 connections were established here and not by";
        is(&settled, &["error_ratio < 1%"], Verdict::Unknown, not_there);
        is(&settled, &["established >= 100"], Verdict::Unknown, not_there);
        is(
            &settled,
            &["error_ratio < 1%", "established_there >= 100"],
            Verdict::Holds,
            "",
        );
        is(&full, &["error_ratio < 1%"], Verdict::Holds, "");
        is(&hung, &["error_ratio < 1%"], Verdict::Unknown, "990 connections");
        assert!(!summary(&hung, &["error_ratio < 1%"]).are_agents_the_limit());
        is(&hung, &["established_there = 1000"], Verdict::Holds, "");
        // What its agent recorded nothing of may be at another node of its address.
        let shared = Kernel {
            untold_at_target: 871,
            ..settled.clone()
        };
        is(&shared, &["established = 1000"], Verdict::Holds, "");
        is(
            &shared,
            &["established_there = 1000"],
            Verdict::Unknown,
            "129 or more",
        );
        is(
            &full,
            &["established_there = 1000"],
            Verdict::Unknown,
            "129 or more",
        );
        is(&full, &["established_there < 100"], Verdict::Violated, "129");
        is(&hung, &["established_there = 1000"], Verdict::Holds, "");
        is(&hung, &["accepted >= 1"], Verdict::Unknown, "0 or more");
        is(&hung, &["served >= 1"], Verdict::Unknown, "0 or more");
        is(
            &Kernel::default(),
            &["accepted >= 1"],
            Verdict::Unknown,
            "no data",
        );
        let healthy = Kernel {
            taken_by_target: 1_000,
            served_by_target: 1_000,
            untaken_by_target: 0,
            ..hung
        };
        is(
            &healthy,
            &["accepted = 1000", "served = 1000"],
            Verdict::Holds,
            "",
        );
        is(&healthy, &[], Verdict::Holds, "");
    }

    #[test]
    fn an_expectation_is_broken_by_what_both_ends_know_and_by_what_was_denied() {
        let mut outcome = Outcome::default();
        outcome.counts.started = 10;
        outcome.counts.established = 2;
        outcome.counts.timed_out = 8;
        outcome.counts.late = 5;
        outcome.lateness.record_n(2_000_000, 10).unwrap();
        let verdict = |outcome: &Outcome, text: &str| {
            let expected = [Expectation::parse(text).unwrap()];
            Summary::of(outcome, &expected).verdict().0
        };
        assert_eq!(verdict(&outcome, "timed_out = 0"), Verdict::Unknown);
        outcome.confirmed = 5;
        assert_eq!(verdict(&outcome, "timed_out = 0"), Verdict::Violated);
        assert_eq!(verdict(&outcome, "error_ratio < 20%"), Verdict::Violated);
        // Only so many are known.
        assert_eq!(verdict(&outcome, "error_ratio < 60%"), Verdict::Unknown);
        let kernel = |outcome: &str, is_confirmed| Kernel {
            causes: vec![Cause {
                cause: "filtered".into(),
                outcome: outcome.into(),
                is_confirmed,
                attempts: 5,
                ..Cause::default()
            }],
            ..Kernel::default()
        };
        assert_eq!(kernel("timed_out", true).confirmed(0), 5);
        assert_eq!(kernel("timed_out", false).confirmed(0), 0);
        assert_eq!(kernel("established", true).confirmed(0), 0);
        // What the end of the run cut off did not time out to us, and only what timed out to the kernel is none of it.
        assert_eq!(kernel("aborted", true).confirmed(3), 2);
        assert_eq!(kernel("aborted", true).confirmed(7), 0);
        assert_eq!(kernel("timed_out", true).confirmed(3), 5);

        let mut outcome = Outcome::default();
        (outcome.counts.requests, outcome.counts.unsent) = (10, 10);
        (outcome.counts.started, outcome.counts.refused) = (4, 4);
        outcome.counts.late = 5;
        outcome.lateness.record_n(2_000_000, 10).unwrap();
        assert_eq!(verdict(&outcome, "error_ratio < 1%"), Verdict::Unknown);
        outcome.denied = 4;
        assert_eq!(verdict(&outcome, "error_ratio < 1%"), Verdict::Violated);
        assert_eq!(verdict(&outcome, "error_ratio < 50%"), Verdict::Unknown);
        // Each attempt that nothing answered, as both ends know, would have taken one more; the rest may have waited for the generator.
        (outcome.counts.timed_out, outcome.unanswered) = (2, 6);
        assert_eq!(verdict(&outcome, "unsent < 6"), Verdict::Unknown);
        outcome.confirmed = 2;
        assert_eq!(verdict(&outcome, "unsent < 6"), Verdict::Violated);
        assert_eq!(verdict(&outcome, "unsent < 7"), Verdict::Unknown);
        outcome.unanswered = 1;
        assert_eq!(verdict(&outcome, "unsent < 6"), Verdict::Unknown);
    }

    #[test]
    fn a_request_that_the_target_had_and_did_not_answer_timed_out_however_late_the_generator_was() {
        let mut outcome = Outcome::default();
        (outcome.counts.requests, outcome.counts.answered) = (10, 2);
        (outcome.counts.started, outcome.counts.established) = (8, 8);
        outcome.counts.request_timed_out = 8;
        outcome.counts.late = 5;
        outcome.lateness.record_n(2_000_000, 10).unwrap();
        let verdict = |outcome: &Outcome, expected: &[&str]| {
            let expected: Vec<_> = expected
                .iter()
                .map(|text| Expectation::parse(text).unwrap())
                .collect();
            Summary::of(outcome, &expected).verdict()
        };
        assert_eq!(verdict(&outcome, &["request_timed_out = 0"]).0, Verdict::Unknown);
        assert_eq!(verdict(&outcome, &[]).0, Verdict::Unknown);
        // Of so many it is known, and of no more.
        let report = LoadReport {
            withheld: 3,
            ..LoadReport::default()
        };
        outcome.add("web-1", &report).unwrap();
        assert_eq!(verdict(&outcome, &["request_timed_out = 0"]).0, Verdict::Violated);
        assert_eq!(
            verdict(&outcome, &["request_timed_out <= 2"]).0,
            Verdict::Violated
        );
        assert_eq!(verdict(&outcome, &["request_timed_out <= 3"]).0, Verdict::Unknown);
        assert_eq!(verdict(&outcome, &["error_ratio < 20%"]).0, Verdict::Violated);
        assert_eq!(verdict(&outcome, &["error_ratio < 50%"]).0, Verdict::Unknown);
        let (found, reasons) = verdict(&outcome, &[]);
        assert_eq!(found, Verdict::Violated);
        assert!(
            reasons[0].starts_with("3 requests timed out: the target's kernel had them"),
            "{reasons:?}"
        );
        // So it is where a closed loop has no time left.
        outcome.counts.late = 0;
        (outcome.watched_ns, outcome.saturated_ns, outcome.is_closed_loop) = (1_000, 900, true);
        assert_eq!(verdict(&outcome, &["request_timed_out = 0"]).0, Verdict::Violated);
        outcome.withheld = 0;
        assert_eq!(verdict(&outcome, &["request_timed_out = 0"]).0, Verdict::Unknown);
    }

    #[test]
    fn a_closed_loop_that_its_generator_limits_holds_by_what_was_answered_and_times_out_by_nobody_knows_whom()
    {
        let mut outcome = Outcome {
            watched_ns: 1_000,
            saturated_ns: 900,
            is_closed_loop: true,
            ..Outcome::default()
        };
        (outcome.counts.started, outcome.counts.established) = (10, 10);
        let (verdict, reasons) = Summary::of(&outcome, &[]).verdict();
        assert_eq!(verdict, Verdict::Holds);
        assert!(
            reasons[0].starts_with("limited by the generator") && reasons[0].contains("what that could do"),
            "{reasons:?}"
        );
        outcome.counts.timed_out = 2;
        let (verdict, reasons) = Summary::of(&outcome, &[]).verdict();
        assert_eq!(verdict, Verdict::Unknown);
        assert!(
            reasons[0].starts_with("timed_out: 2, limited by the generator"),
            "{reasons:?}"
        );
        outcome.counts.refused = 1;
        assert_eq!(Summary::of(&outcome, &[]).verdict().0, Verdict::Violated);
    }

    #[test]
    fn a_burst_holds_by_what_was_established_and_only_its_times_are_the_generators() {
        let mut outcome = Outcome {
            is_burst: true,
            ..Outcome::default()
        };
        (outcome.counts.started, outcome.counts.established) = (19_000, 19_000);
        outcome.counts.late = 18_000;
        outcome.lateness.record_n(200_000_000, 19_000).unwrap();
        outcome.connect.record_n(200_000_000, 19_000).unwrap();
        outcome.network.record_n(20_000, 19_000).unwrap();
        let verdict = |outcome: &Outcome, expected: &[&str]| {
            let expected: Vec<_> = expected
                .iter()
                .map(|text| Expectation::parse(text).unwrap())
                .collect();
            Summary::of(outcome, &expected).verdict()
        };
        let (found, reasons) = verdict(&outcome, &[]);
        assert_eq!(found, Verdict::Holds);
        assert!(
            reasons[0].contains("18000 of 19000 attempts") && reasons[0].contains("--sleep"),
            "{reasons:?}"
        );
        let of_others = [
            "established = 19000",
            "lost = 0",
            "network.p99 < 1ms",
            "error_ratio < 1%",
        ];
        assert_eq!(verdict(&outcome, &of_others).0, Verdict::Holds);
        for times in ["connect.p99 < 1s", "connect.p99 < 1ms"] {
            let (found, reasons) = verdict(&outcome, &[times]);
            assert_eq!(found, Verdict::Unknown, "{reasons:?}");
            assert!(reasons[0].contains("--sleep"), "{reasons:?}");
        }
        // Whose a silence is nobody knows, an answer is the target's.
        outcome.counts.timed_out = 1;
        assert_eq!(verdict(&outcome, &[]).0, Verdict::Unknown);
        outcome.counts.refused = 1;
        assert_eq!(verdict(&outcome, &[]).0, Verdict::Violated);
        // With a pause each has its own time, and is late for want of CPU.
        let paused = Outcome {
            is_burst: false,
            ..outcome
        };
        let (found, reasons) = verdict(&paused, &["established = 19000"]);
        assert_eq!(found, Verdict::Unknown);
        assert!(reasons[0].contains("lack CPU"), "{reasons:?}");
    }

    #[test]
    fn where_payload_goes_back_and_forth_an_exchange_that_took_too_long_is_nobody_knows_whose() {
        let mut outcome = Outcome {
            watched_ns: 1_000,
            saturated_ns: 900,
            ..Outcome::default()
        };
        (outcome.counts.started, outcome.counts.established) = (10, 10);
        assert_eq!(Summary::of(&outcome, &[]).verdict().0, Verdict::Holds);
        outcome.counts.lost_timed_out = 1;
        let (verdict, reasons) = Summary::of(&outcome, &[]).verdict();
        assert_eq!(verdict, Verdict::Unknown);
        assert!(
            reasons[0].starts_with("lost_timed_out: 1, limited by the generator"),
            "{reasons:?}"
        );
        // Attempts did not wait for it: how late they were tells of them.
        outcome.counts.timed_out = 1;
        assert_eq!(Summary::of(&outcome, &[]).verdict().0, Verdict::Violated);
    }

    #[test]
    fn what_could_not_be_counted_is_not_zero() {
        let mut outcome = Outcome::default();
        let counted = |outcome: &Outcome| Summary::of(outcome, &[]).counts.get("syn_retransmits").copied();
        assert_eq!(counted(&outcome), Some(0));
        outcome.lacks_handshakes = true;
        assert_eq!(counted(&outcome), None);
    }

    #[test]
    fn a_closed_udp_port_is_no_loss_however_late_the_datagrams_were() {
        let mut outcome = Outcome::default();
        outcome.counts.requests = 10;
        outcome.counts.refused = 8;
        outcome.counts.late = 10;
        outcome.lateness.record_n(2_000_000, 10).unwrap();
        outcome.counts.request_timed_out = 2;
        let (verdict, reasons) = Summary::of(&outcome, &[]).verdict();
        assert_eq!(verdict, Verdict::Violated);
        assert_eq!(reasons[0], "refused: 8, nothing listens on that UDP port");
        assert!(reasons[1].contains("10 of 10 attempts"), "{reasons:?}");
        outcome.counts.refused = 0;
        assert_eq!(Summary::of(&outcome, &[]).verdict().0, Verdict::Unknown);
    }

    #[test]
    fn what_the_nodes_that_make_the_load_hindered_proves_nothing() {
        let mut outcome = Outcome::default();
        let report = LoadReport {
            counts: Some(LoadCounts {
                requests: 10,
                answered: 8,
                unsent: 2,
                ..LoadCounts::default()
            }),
            hindered: 3,
            ..LoadReport::default()
        };
        outcome.add("web-1", &report).unwrap();
        let (verdict, reasons) = Summary::of(&outcome, &[]).verdict();
        assert_eq!(verdict, Verdict::Unknown);
        assert!(
            reasons[0].starts_with("3 requests or datagrams were held up"),
            "{reasons:?}"
        );
        outcome.counts.unexpected_status = 1;
        assert_eq!(Summary::of(&outcome, &[]).verdict().0, Verdict::Violated);
    }

    #[test]
    fn datagrams_of_which_a_receiver_says_nothing_are_not_known_to_have_come() {
        let mut outcome = Outcome {
            is_jitter_mean: true,
            ..Outcome::default()
        };
        (outcome.counts.requests, outcome.counts.answered) = (10, 5);
        outcome.counts.request_abandoned = 5;
        let expected = [Expectation::parse("error_ratio < 1%").unwrap()];
        for expected in [&expected[..], &[]] {
            let (verdict, reasons) = Summary::of(&outcome, expected).verdict();
            assert_eq!(verdict, Verdict::Unknown);
            assert!(reasons[0].contains("5 datagrams is not known"), "{reasons:?}");
        }
        outcome.is_jitter_mean = false;
        assert_eq!(Summary::of(&outcome, &expected).verdict().0, Verdict::Holds);
    }

    #[test]
    fn what_lost_agents_of_a_mesh_answered_is_not_held_against_them() {
        let mut outcome = Outcome::default();
        outcome.counts.started = 10;
        outcome.counts.established = 10;
        outcome.counts.reset_by_peer = 5;
        let mut summary = Summary::of(&outcome, &[]);
        summary.limits = vec!["the agent of db-1 was lost in the middle".into()];
        summary.own_doing = [("reset_by_peer".to_owned(), 5)].into();
        assert_eq!(summary.verdict().0, Verdict::Unknown);
        // What came before is.
        summary.own_doing = [("reset_by_peer".to_owned(), 3)].into();
        let (verdict, reasons) = summary.verdict();
        assert_eq!(
            (verdict, reasons[0].as_str()),
            (Verdict::Violated, "reset_by_peer: 2")
        );
    }

    #[test]
    fn without_expectations_errors_and_losses_are_what_does_not_hold() {
        let mut outcome = Outcome::default();
        assert_eq!(Summary::of(&outcome, &[]).verdict().0, Verdict::Unknown);
        outcome.counts.started = 10;
        outcome.counts.established = 10;
        assert_eq!(Summary::of(&outcome, &[]).verdict().0, Verdict::Holds);
        outcome.counts.reset_by_peer = 1;
        let (verdict, reasons) = Summary::of(&outcome, &[]).verdict();
        assert_eq!(
            (verdict, reasons),
            (Verdict::Violated, vec!["reset_by_peer: 1".to_owned()])
        );
    }

    #[test]
    fn each_loss_has_its_time_however_many_there_are() {
        let report = |at_ms: std::ops::Range<u64>, count| LoadReport {
            counts: Some(LoadCounts {
                reset_by_peer: count * at_ms.clone().count() as u64,
                ..LoadCounts::default()
            }),
            lost: at_ms
                .map(|ms| holdfast_proto::v1::LoadLoss {
                    at_ns: ms * 1_000_000,
                    cause: "reset_by_peer".into(),
                    count,
                })
                .collect(),
            ..LoadReport::default()
        };
        let mut outcome = Outcome::default();
        outcome.add("web-1", &report(0..3, 2_000)).unwrap();
        outcome.add("web-1", &report(2..5, 1_000)).unwrap();
        let lost: Vec<_> = outcome
            .lost
            .iter()
            .map(|lost| (lost.at_ns / 1_000_000, lost.count))
            .collect();
        assert_eq!(lost, [(0, 2_000), (1, 2_000), (2, 3_000), (3, 1_000), (4, 1_000)]);
        assert_eq!(Summary::of(&outcome, &[]).losses(), (9_000, 9_000));
        // An agent of before tells each, and in more moments than there is room for they have the stretch that they were in.
        let mut outcome = Outcome::default();
        outcome.add("web-1", &report(0..5_000, 0)).unwrap();
        assert_eq!(outcome.lost.len(), LOSSES);
        let last = outcome.lost.last().unwrap();
        assert_eq!(
            (last.at_ns, last.last_ns, last.count),
            (999_000_000, 4_999_000_000, 4_001)
        );
        // What came before is read as it was written.
        let before = r#"{"node":"web-1","at_ns":7,"cause":"reset_by_peer"}"#;
        assert_eq!(serde_json::from_str::<Lost>(before).unwrap().count, 1);
    }

    #[test]
    fn what_is_no_distribution_is_refused_and_adds_nothing() {
        let mut outcome = Outcome::default();
        let report = LoadReport {
            counts: Some(LoadCounts {
                started: 1,
                ..LoadCounts::default()
            }),
            network: vec![1, 2, 3].into(),
            ..LoadReport::default()
        };
        assert!(outcome.add("web-1", &report).is_err());
        assert_eq!(outcome.counts.started, 0);
    }

    #[test]
    fn a_sum_has_its_times_in_the_buckets_of_its_parts() {
        // As agents record them: to 64 ns, and so the times about a microsecond's end are one.
        let mut part = Histogram::new_with_bounds(64, 300_000_000_000, 3).unwrap();
        for time_ns in (60_000..70_000).step_by(7) {
            part.record(time_ns).unwrap();
        }
        let mut sum = times();
        add_up(&mut sum, &part).unwrap();
        assert_eq!(buckets(&sum), buckets(&part));
    }

    #[test]
    fn a_distribution_becomes_buckets_of_microseconds() {
        let mut times = Histogram::new(3).unwrap();
        for ns in [500, 900, 5_000, 5_200, 70_000] {
            times.record(ns).unwrap();
        }
        assert_eq!(buckets(&times), [(bucket(0), 2), (bucket(5), 2), (bucket(70), 1)]);
    }

    #[test]
    fn times_have_three_digits() {
        assert_eq!(
            [999, 1_234, 56_789_000, 2_000_000_000].map(human),
            ["999 ns", "1.23 us", "56.8 ms", "2.00 s"]
        );
    }
}
