//! What Holdfast says of every situation that a TCP connection can be in, held against what others say of it: the
//! processes themselves, the counters of the namespace, and `ss`. docs/TRUTH.md shows all of it.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{BufRead, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
};

use holdfast_agent::{
    cause::local_cause,
    outcome::{close_reason, outcome, resets},
};
use holdfast_agent_ebpf::event::{
    ConnectionRecord, SocketReport, attribution, flag, role, state, step_state,
};
use holdfast_proto::v1::{CloseReason, LocalCause, Outcome};
use nix::errno::Errno;
use serde::Deserialize;

use crate::{host::Host, watch::Watch};

const SITUATIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/foreign/situations.py");
const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/TRUTH.md");

/// The situation in which the programs come last.
const OLDER: &str = "older_than_the_agent";

/// A situation that the hook was too busy to see whole is made again, so often at most.
const TRIES: usize = 10;

/// What others say of a situation.
#[derive(Debug, Deserialize)]
struct Oracle {
    /// What the processes' calls returned, in the order of their accounts.
    calls: Vec<String>,
    attempts: Vec<Attempt>,
    ends: Vec<End>,
    /// What `ss` showed while something was open.
    ss: String,
    /// How much the namespace's counters grew.
    counters: BTreeMap<String, u64>,
    /// The resets that were on the wire, by their ports: from, to.
    resets: Vec<(u16, u16)>,
    /// Of these, the ports from which they came when the end's socket was gone.
    late: Vec<u16>,
    pids: BTreeMap<String, u32>,
}

/// An attempt as its process knows it.
#[derive(Debug, Deserialize)]
struct Attempt {
    who: String,
    /// The errno by name, `0`, or `closed`: the process did not wait any longer.
    result: String,
    port: u16,
}

/// A passive end as those know it who had it.
#[derive(Debug, Deserialize)]
struct End {
    /// The peer's port.
    port: u16,
    /// Whose call ended it, if any did.
    by: Option<String>,
}

/// What Holdfast saw of a situation.
#[derive(Debug, Default)]
struct Seen {
    /// While something was open: first records, and attempts that wait.
    meanwhile: Vec<ConnectionRecord>,
    records: Vec<ConnectionRecord>,
}

impl Oracle {
    fn counter(&self, name: &str) -> u64 {
        self.counters[name]
    }

    fn label(&self, pid: u32) -> &str {
        let found = self.pids.iter().find(|(_, known)| **known == pid);
        found.map_or(if pid == 0 { "nobody" } else { "a stranger" }, |(label, _)| label)
    }

    /// What an attempt has to be called, by what its process got.
    fn expected(&self, attempt: &Attempt) -> Outcome {
        match attempt.result.as_str() {
            "0" => Outcome::Established,
            "ECONNREFUSED" => Outcome::Refused,
            "ETIMEDOUT" => Outcome::TimedOut,
            "ECONNRESET" => Outcome::Reset,
            "EHOSTUNREACH" | "ENETUNREACH" | "EACCES" | "EPERM" | "EINVAL" => Outcome::Unreachable,
            "EADDRNOTAVAIL" => Outcome::Failed,
            "closed" if self.counter("TCPSynRetrans") > 0 => Outcome::TimedOut,
            "closed" => Outcome::Aborted,
            other => panic!("an error that no situation was made for: {other}"),
        }
    }

    /// Holds what Holdfast saw against all that is known otherwise.
    fn judge(&self, seen: &Seen) -> Result<(), String> {
        let of = |role| seen.records.iter().filter(move |record| record.role == role);
        let mut active: Vec<_> = of(role::ACTIVE).collect();
        let mut passive: Vec<_> = of(role::PASSIVE).collect();
        same("attempts", active.len(), self.attempts.len())?;
        same("passive ends", passive.len(), self.ends.len())?;

        let is_sent = |record: &&&ConnectionRecord| record.flags & flag::UNSENT == 0;
        same(
            "ActiveOpens",
            active.iter().filter(is_sent).count() as u64,
            self.counter("ActiveOpens"),
        )?;
        same("PassiveOpens", passive.len() as u64, self.counter("PassiveOpens"))?;
        let cut_off = seen.records.iter().filter(|record| is_cut_off(record)).count();
        same("EstabResets", cut_off as u64, self.counter("EstabResets"))?;
        let sent = seen.records.iter().filter(|record| resets(record).sent).count();
        // Those of no socket: where nobody listens. There may be more: a segment that crosses a reset is answered so.
        let is_refused = |record: &&ConnectionRecord| local_cause(record) == LocalCause::RefusedByPeer;
        let refused = seen.records.iter().filter(is_refused).count();
        if (sent + refused) as u64 > self.counter("OutRsts") {
            return Err(format!(
                "{sent} ends that sent resets and {refused} refusals: {:?}",
                self.counters
            ));
        }
        for record in &seen.records {
            self.judge_resets(record)?;
        }
        let fails = seen.records.iter().filter(|record| is_failed(record)).count();
        same("AttemptFails", fails as u64, self.counter("AttemptFails"))?;
        let again: u64 = active
            .iter()
            .map(|record| u64::from(record.syn_retransmits))
            .sum();
        same("TCPSynRetrans", again, self.counter("TCPSynRetrans"))?;

        let accepted = self.calls.iter().filter(|call| call.ends_with(": accept = 0"));
        let is_old = seen.records.iter().any(|record| record.flags & flag::SEEDED != 0);
        let is_fast = self.calls.iter().any(|call| call.contains("MSG_FASTOPEN"));
        let waited = passive.iter().filter(|record| record.accept_wait > 0).count();
        let known = if is_old { 0 } else { accepted.count() };
        let is_reset = |record: &&&ConnectionRecord| close_reason(record) == CloseReason::ResetByPeer;
        let reset = passive.iter().filter(is_reset).count();
        if !is_fast && !(known.saturating_sub(reset)..=known).contains(&waited) {
            return Err(format!(
                "{waited} passive ends waited for accept(), {known} were accepted"
            ));
        }
        if let Some(record) = active.iter().find(|record| record.accept_wait > 0) {
            return Err(format!("an active end that waited for accept(): {record:?}"));
        }

        for attempt in &self.attempts {
            let record = take(&mut active, |record| record.local_port == attempt.port);
            same("outcome", outcome(record), self.expected(attempt))?;
            if !["0", "closed"].contains(&attempt.result.as_str()) {
                same("errno", errno(record).as_str(), attempt.result.as_str())?;
            }
            self.judge_process(record, Some(&attempt.who))?;
        }
        for end in &self.ends {
            let record = take(&mut passive, |record| record.remote_port == end.port);
            same("outcome", outcome(record), Outcome::Established)?;
            self.judge_process(record, end.by.as_deref())?;
        }
        let firsts = seen.records.iter().chain(&seen.meanwhile);
        let firsts = firsts.filter(|record| record.flags & flag::FIRST != 0).count();
        let old = seen
            .records
            .iter()
            .filter(|record| record.flags & flag::SEEDED != 0);
        same("first records", firsts, seen.records.len() - old.count())
    }

    /// A reset is told by whom it came from, and by whom it reached.
    fn judge_resets(&self, record: &ConnectionRecord) -> Result<(), String> {
        let (local, remote) = (record.local_port, record.remote_port);
        let told = resets(record);
        let is_late = self.late.contains(&local);
        let sent = self.resets.contains(&(local, remote)) && !is_late;
        same("reset sent", told.sent, sent)?;
        let received = self.resets.contains(&(remote, local));
        same("reset received", told.received, received)?;
        match close_reason(record) {
            CloseReason::ResetByPeer if told.sent || !told.received => {
                Err(format!("reset by the peer, which it was not: {record:?}"))
            }
            CloseReason::ResetByProcess if !told.sent || told.received => {
                Err(format!("reset by the process, which it was not: {record:?}"))
            }
            CloseReason::Finished if told.sent || told.received => {
                Err(format!("finished, and yet reset: {record:?}"))
            }
            _ => Ok(()),
        }
    }

    /// Exact is exact: the one who called connect(), or whose call ended what was accepted.
    fn judge_process(&self, record: &ConnectionRecord, who: Option<&str>) -> Result<(), String> {
        let label = self.label(record.pid);
        match record.attribution {
            attribution::EXACT => same("exact process", Some(label), who),
            _ if record.role == role::ACTIVE => Err(format!("an attempt without its process: {record:?}")),
            _ => same("listening process", label, "server"),
        }
    }
}

fn same<T: Copy + PartialEq + std::fmt::Debug>(what: &str, said: T, true_one: T) -> Result<(), String> {
    if said == true_one {
        return Ok(());
    }
    Err(format!("{what}: Holdfast says {said:?}, it is {true_one:?}"))
}

/// The record that fits, or the oldest of those that are left.
fn take<'a>(
    records: &mut Vec<&'a ConnectionRecord>,
    fits: impl Fn(&ConnectionRecord) -> bool,
) -> &'a ConnectionRecord {
    let index = records.iter().position(|record| fits(record)).unwrap_or(0);
    records.remove(index)
}

fn path(record: &ConnectionRecord) -> Vec<u8> {
    record.steps().iter().map(|&step| step_state(step)).collect()
}

/// As EstabResets counts (RFC 4022): from ESTABLISHED or CLOSE_WAIT right to CLOSE.
fn is_cut_off(record: &ConnectionRecord) -> bool {
    matches!(
        path(record)[..],
        [.., state::ESTABLISHED | state::CLOSE_WAIT, state::CLOSE]
    )
}

/// As AttemptFails counts: given up by the kernel, not by the process (tcp_done(), net/ipv4/tcp.c).
fn is_failed(record: &ConnectionRecord) -> bool {
    record.flags & flag::UNSENT == 0
        && record.error != 0
        && matches!(
            path(record)[..],
            [.., state::SYN_SENT | state::SYN_RECV, state::CLOSE]
        )
}

fn errno(record: &ConnectionRecord) -> String {
    format!("{:?}", Errno::from_raw(record.error.into()))
}

/// An enum's value in the protocol, as people read it.
fn word(name: &str, prefix: &str) -> String {
    name.trim_start_matches(prefix).to_lowercase()
}

/// Whether a SYN was sent again, where that is the same every time: an ICMP message may come while the process is still in
/// connect(), and then counts only the next time.
fn is_shown_again(record: &ConnectionRecord) -> bool {
    record.syn_retransmits > 0 && outcome(record) == Outcome::TimedOut
}

/// One record in words.
fn say(record: &ConnectionRecord, oracle: &Oracle) -> String {
    let role = if record.role == role::ACTIVE {
        "active"
    } else {
        "passive"
    };
    let mut text = format!("{role}: {}", word(outcome(record).as_str_name(), "OUTCOME_"));
    if close_reason(record) != CloseReason::None {
        let reason = word(close_reason(record).as_str_name(), "CLOSE_REASON_");
        let _ = write!(text, ", {reason}");
    }
    if record.error != 0 {
        let _ = write!(text, ", {}", errno(record));
    }
    if local_cause(record) != LocalCause::None {
        let cause = word(local_cause(record).as_str_name(), "LOCAL_CAUSE_");
        let _ = write!(text, ", cause {cause}");
    }
    if is_shown_again(record) {
        text.push_str(", SYN sent again");
    }
    let told = resets(record);
    if told.sent {
        text.push_str(", reset sent");
    }
    if told.received {
        text.push_str(", reset received");
    }
    let quality = match record.attribution {
        attribution::EXACT => "exact",
        attribution::LISTENER => "listener",
        attribution::SNAPSHOT => "snapshot",
        _ => "unknown",
    };
    let _ = write!(text, "; {quality} {}", oracle.label(record.pid));
    text
}

/// A row of the table.
fn row(title: &str, oracle: &Oracle, seen: &Seen) -> String {
    let counters: Vec<_> = oracle
        .counters
        .iter()
        .filter(|(name, _)| !["OutRsts", "TCPSynRetrans", "ListenOverflows"].contains(&name.as_str()))
        .filter(|(_, count)| **count > 0)
        .map(|(name, count)| format!("{name} {count}"))
        .chain(
            seen.records
                .iter()
                .any(is_shown_again)
                .then(|| "TCPSynRetrans".into()),
        )
        .chain((oracle.counter("ListenOverflows") > 0).then(|| "ListenOverflows".into()))
        .collect();
    let mut others = vec![counters.join(", ")];
    if !oracle.ss.is_empty() {
        others.push(format!("meanwhile `ss`: {}", oracle.ss));
    }
    let sentences = |records: &[ConnectionRecord]| {
        let mut records: Vec<_> = records.iter().collect();
        records.sort_by_key(|record| (record.role, oracle.label(record.pid).to_owned()));
        let sentences: Vec<_> = records.iter().map(|record| say(record, oracle)).collect();
        sentences
    };
    let meanwhile = sentences(&seen.meanwhile)
        .into_iter()
        .map(|text| format!("meanwhile {text}"));
    let said: Vec<_> = meanwhile.chain(sentences(&seen.records)).collect();
    format!(
        "| {title} | {} | {} | {} |\n",
        oracle.calls.join("<br>"),
        others.join("<br>"),
        said.join("<br>")
    )
}

/// A host whose ways lead everywhere that the situations need, and the router behind it.
fn host_and_router() -> (Host, Host) {
    let (host, router) = (Host::new(), Host::new());
    host.connect(&router);
    host.sysctl("ipv4/tcp_syn_retries", "2");
    // Both sides, and without the cookies that would take a connection before.
    host.sysctl("ipv4/tcp_fastopen", "519");
    router.sysctl("ipv4/ip_forward", "1");
    for range in ["192.0.2.0/24", "198.51.100.0/24"] {
        host.ip(&format!("route add {range} via 10.0.0.2"));
    }
    router.ip("route add blackhole 192.0.2.0/24");
    router.ip("route add unreachable 198.51.100.0/24");
    host.ip("route add prohibit 203.0.113.0/26");
    host.ip("route add blackhole 203.0.113.64/26");
    (host, router)
}

/// Makes a situation, and watches it. `None` if the hook was kept from seeing all of it.
fn make(host: &Host, watch: &mut Watch, key: &str) -> Option<(Oracle, Seen)> {
    host.sysctl("ipv4/ip_local_port_range", "32768 60999");
    watch.forget();
    let mut later = None;
    let mut seen = Seen::default();
    let missed_before = watch.counts().missed;
    let mut child = host.run({
        let key = key.to_owned();
        move || {
            Command::new("python3")
                .args([SITUATIONS, &key])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("python3")
        }
    });
    let mut answer = child.stdin.take().expect("its input");
    let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let mut oracle = None;
    for line in lines {
        let line = line.expect("a line");
        if line == "pause" {
            seen.meanwhile = if key == OLDER {
                meanwhile(later.insert(Watch::on(host)), host)
            } else {
                meanwhile(watch, host)
            };
            answer.write_all(b"\n").expect("it waits");
        } else {
            oracle = Some(serde_json::from_str::<Oracle>(&line).expect("its account"));
        }
    }
    assert!(child.wait().expect("it ended").success(), "{key}");
    let oracle = oracle.expect("an account");
    let missed = watch.counts().missed + later.as_ref().map_or(0, |later| later.counts().missed);
    if missed > missed_before {
        return None;
    }
    let all = oracle.attempts.len() + oracle.ends.len();
    watch.wait_for(all);
    seen.records = later.as_mut().unwrap_or(watch).wait_for(all);
    Some((oracle, seen))
}

/// What is seen of what is open: first records, attempts that wait and, if there are neither, what a survey finds.
fn meanwhile(watch: &mut Watch, host: &Host) -> Vec<ConnectionRecord> {
    let mut found = watch.announce();
    watch.pending(|record| found.push(*record));
    if found.is_empty() {
        let (seeds, _) = watch.seed(host);
        let is_open = |report: &SocketReport| report.state != state::LISTEN;
        let reports = watch.survey(host).into_iter().filter(is_open);
        found.extend(reports.map(|report| {
            let mut record = report.record;
            record.flags &= !flag::FINAL;
            seeds.complete(&mut record);
            record
        }));
    }
    found
}

fn situations() -> Vec<(String, String)> {
    let output = Command::new("python3").arg(SITUATIONS).output().expect("python3");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).expect("text");
    let pair = |line: &str| {
        line.split_once(' ')
            .map(|(key, title)| (key.into(), title.into()))
    };
    text.lines().filter_map(pair).collect()
}

const HEADER: &str = "\
# The truth table

Every situation that a TCP connection can be in, made by real processes, and what is said of it: by the calls of these
processes, by the counters of their network namespace (/proc/net/snmp, /proc/net/netstat) and by `ss`, none of which know of
Holdfast; and by Holdfast. The test `truth` (`cargo xtask test truth`) makes all of it anew, judges each row by rules of its own, and
fails where this page says something else. `HOLDFAST_BLESS=1 cargo test -p holdfast-agent --test it truth` writes it.

The process of a record: *exact* is the one that called connect(), and of a passive end the one whose close(), shutdown() or
exit ended it, whoever else had it before or has it still. Until then a passive end has the process that called listen()
(*listener*), with SO_REUSEPORT that of any member of the group. What is older than the agent has an owner from /proc
(*snapshot*).

How long a passive end waited in its listener's queue (`accept_wait_us`) is told of each that accept() returned, but for those that
are older than the agent, that the peer had reset by then, and with Fast Open where it may be returned before its handshake has
ended; of no other.

Which resets were sent and received (`resets`) is told of each end, is held against the segments themselves (packet(7)), and agrees with the close reason. Where the kernel resets a
connection because nobody reads any more what arrives, that is the process' doing, whatever error its socket is given. Of a socket that is gone, what is left of it still answers (a time-wait entry, for a minute): such a reset is in
no row, but counted by peer. What can hide who reset a connection after its FIN: data
that had been taken in after the FIN, data that came while close() ran, and a segment that came twice.

| situation | the processes' calls | counters that grew, and `ss` | Holdfast |
|---|---|---|---|
";

#[test]
fn the_truth_table_says_what_the_kernel_the_processes_and_we_say_and_all_of_it_is_right() {
    let (host, _router) = host_and_router();
    let mut watch = Watch::on(&host);
    let mut table = HEADER.to_owned();
    let mut wrong = Vec::new();
    for (key, title) in situations() {
        let made = (0..TRIES).find_map(|_| make(&host, &mut watch, &key));
        let (oracle, seen) = made.unwrap_or_else(|| panic!("{key}: the hook missed events each time"));
        let row = row(&title, &oracle, &seen);
        if let Err(why) = oracle.judge(&seen) {
            let paths: Vec<_> = seen.records.iter().map(path).collect();
            wrong.push(format!("{key}: {why}\n{row}{paths:?}\n{oracle:?}"));
        }
        table.push_str(&row);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    if std::env::var_os("HOLDFAST_BLESS").is_some() {
        std::fs::write(TABLE, &table).expect("the table is written");
    }
    let committed = std::fs::read_to_string(Path::new(TABLE)).unwrap_or_default();
    let (said, committed): (Vec<_>, Vec<_>) = (table.lines().collect(), committed.lines().collect());
    let differs = said.iter().filter(|line| !committed.contains(line));
    let differs: Vec<_> = differs.collect();
    assert_eq!(
        (said.len(), differs),
        (committed.len(), Vec::new()),
        "docs/TRUTH.md is out of date"
    );
}
