//! Whom a record names, over a crowd in which sockets are shared, inherited and passed on: a process that is called exact is
//! the right one, every time.

use std::{
    collections::HashMap,
    fs,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use holdfast_agent_ebpf::{
    counter::Counter,
    event::{ConnectionRecord, attribution, flag, role},
};

use crate::{host::Host, watch::Watch};

const CROWD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/foreign/crowd.py");
const CONNECTIONS: usize = 20_000;

/// An end: whether it called, its port and the other's.
type End = (bool, u16, u16);

/// Who had each end, by the processes' own accounts; `None`: the peer ended it. Ports can be used again.
fn accounts(folder: &std::path::Path) -> HashMap<End, Vec<Option<u32>>> {
    let mut ends = HashMap::<End, Vec<_>>::new();
    for file in fs::read_dir(folder).expect("the accounts") {
        let text = fs::read_to_string(file.expect("an account").path()).expect("an account");
        for line in text.lines() {
            let words: Vec<_> = line.split(' ').collect();
            let port = |word: usize| words[word].parse().expect("a port");
            let end = (words[0] == "a", port(1), port(2));
            ends.entry(end).or_default().push(words[3].parse().ok());
        }
    }
    ends
}

#[test]
fn of_twenty_thousand_connections_each_exact_process_is_the_right_one() {
    let host = Host::new();
    let mut watch = Watch::on(&host);
    let folder = tempfile::tempdir().expect("a folder");
    let mut crowd = host.run({
        let folder = folder.path().display().to_string();
        move || {
            Command::new("python3")
                .args([CROWD, &folder, &CONNECTIONS.to_string()])
                .stdin(Stdio::null())
                .spawn()
                .expect("python3")
        }
    });
    let status = loop {
        watch.drain();
        if let Some(status) = crowd.try_wait().expect("our own child") {
            break status;
        }
        thread::sleep(Duration::from_millis(10));
    };
    assert!(status.success());
    let mut ends = accounts(folder.path());
    let all: usize = ends.values().map(Vec::len).sum();
    let records = watch.wait_for_all_that_closed();
    let counts = watch.counts();
    let missed = counts.missed as usize;
    assert_eq!(counts.total(Counter::Lost), 0);
    // What has no record is counted as opened and never closed: the hook did not see its end.
    let endless = (counts.total(Counter::Opened) - counts.total(Counter::Closed)) as usize;
    assert!(
        all > CONNECTIONS && records.len() <= all && records.len() + endless.max(missed) >= all,
        "{} of {all} ends have a record: {counts:?}",
        records.len()
    );

    let (mut exact, mut others, mut wrong) = (0, 0, Vec::new());
    for record in &records {
        let is_active = record.role == role::ACTIVE;
        // One that never had a port is known by whom it called.
        let local = if record.flags & flag::UNSENT == 0 {
            record.local_port
        } else {
            0
        };
        let known = ends.get_mut(&(is_active, local, record.remote_port));
        let Some(known) = known.filter(|known| !known.is_empty()) else {
            panic!("nobody had this end: {record:?}");
        };
        let right = known.iter().position(|&pid| pid == Some(record.pid));
        match (record.attribution, right) {
            (attribution::EXACT, Some(index)) => {
                known.swap_remove(index);
                exact += 1;
            }
            (attribution::EXACT, None) => wrong.push(*record),
            _ => {
                check_inexact(record, missed);
                others += 1;
            }
        }
    }
    assert_eq!(wrong, [], "of {exact} that are exact");
    // What the peer's reset ended has the owner of its listener.
    let by_peer = ends.values().flatten().filter(|pid| pid.is_none()).count();
    assert!(
        others <= by_peer + endless.max(missed),
        "{others} are not exact, {by_peer} need not be"
    );
}

/// An end that is not exact says so, and is passive: a socket that a process opened is known from then on.
fn check_inexact(record: &ConnectionRecord, missed: usize) {
    let is_known = record.attribution == attribution::LISTENER && record.role == role::PASSIVE;
    assert!(is_known || missed > 0, "{record:?}");
}
