//! What the fuzzers start from (`fuzz/corpus`): small real batches and messages of the synthetic agent, and some with a
//! fault each. `HOLDFAST_BLESS=1 cargo test -p holdfast-collector fuzz_corpus` writes them anew.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer, V2Serializer};
use holdfast_collector::ingest::decode::restamp::NodeClock;
use holdfast_collector::ingest::decode::{self, Malformed};
use holdfast_collector::runs::result::Outcome;
use holdfast_proto::v1::batch::Columns;
use holdfast_proto::v1::{
    AgentMessage, Batch, BatchRange, ConnectionColumns, Gap, GapReason, GapRows, Hello, Listener,
    ListenerRows, LoadCounts, LoadReport, OpenConnections, Process, RunEvent, SealedBatch, Status, Stream,
    StreamCounters, agent_message::Body, run_event::Event,
};
use prost::Message;

use crate::synthetic::{batch_at, hello, seal};

/// When the corpus was made; the fuzzers have the same.
const NOW_NS: i64 = 1_795_000_000_000_000_000;

const OPENED_NS: i64 = NOW_NS - 60_000_000_000;

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target)
}

/// A batch whose columns were changed.
fn changed(change: impl FnOnce(&mut ConnectionColumns)) -> Batch {
    let mut batch = batch_at(1, 4, OPENED_NS);
    let Some(Columns::Connections(columns)) = &mut batch.columns else {
        unreachable!()
    };
    change(columns);
    batch
}

fn gaps() -> Batch {
    let gap = Gap {
        epoch: 6,
        stream: Stream::Connections.into(),
        first_sequence: 10,
        last_sequence: 12,
        first_ns: OPENED_NS as u64,
        last_ns: NOW_NS as u64,
        rows: 300,
        reason: GapReason::SpoolFull.into(),
        at_least: true,
        netns: 4_026_531_840,
    };
    Batch {
        stream: Stream::Gaps.into(),
        sequence: 1,
        rows: 1,
        boot_id: "b1".to_owned(),
        clock_ns: 0,
        columns: Some(Columns::Gaps(GapRows { gaps: vec![gap] })),
    }
}

/// What was open when an agent looked.
fn open_connections() -> Batch {
    let Some(Columns::Connections(mut columns)) = batch_at(1, 4, OPENED_NS).columns else {
        unreachable!()
    };
    columns.flags = vec![0; 4].into();
    Batch {
        stream: Stream::OpenConnections.into(),
        columns: Some(Columns::OpenConnections(OpenConnections {
            observed_at_ns: NOW_NS as u64,
            one_in: 1,
            connections: Some(columns),
        })),
        ..batch_at(1, 4, OPENED_NS)
    }
}

fn listeners() -> Batch {
    let listener = Listener {
        cookie: 9,
        address: vec![0; 16].into(),
        port: 5432,
        process: Some(Process {
            pid: 100,
            comm: "postgres".to_owned(),
            ..Process::default()
        }),
        backlog: 3,
        backlog_limit: 128,
        ..Listener::default()
    };
    Batch {
        stream: Stream::Listeners.into(),
        columns: Some(Columns::Listeners(ListenerRows {
            observed_at_ns: NOW_NS as u64,
            listeners: vec![listener],
        })),
        ..batch_at(1, 1, OPENED_NS)
    }
}

/// Batches with their names, and the kind of fault of those that have one.
fn batches() -> Vec<(&'static str, Batch, Option<&'static str>)> {
    vec![
        ("one", batch_at(1, 1, OPENED_NS), None),
        ("ten", batch_at(2, 10, OPENED_NS), None),
        ("many", batch_at(3, 60, OPENED_NS), None),
        ("gaps", gaps(), None),
        ("open-connections", open_connections(), None),
        ("listeners", listeners(), None),
        ("another-stream", Batch { stream: 99, ..gaps() }, Some("stream")),
        (
            "no-rows",
            Batch {
                rows: 0,
                ..batch_at(1, 1, OPENED_NS)
            },
            Some("columns"),
        ),
        (
            "a-missing-column",
            changed(|columns| columns.srtt_us.clear()),
            Some("columns"),
        ),
        (
            "a-missing-step",
            changed(|columns| columns.step_us.truncate(1)),
            Some("columns"),
        ),
        (
            "an-index-beyond",
            changed(|columns| columns.remote_address[3] = u32::MAX),
            Some("dictionary"),
        ),
        (
            "a-short-address",
            changed(|columns| columns.addresses[1] = Bytes::from_static(b"\x0a\0\0\x01")),
            Some("dictionary"),
        ),
        (
            "a-path-of-no-steps",
            changed(|columns| columns.paths[0].states.clear()),
            Some("dictionary"),
        ),
        (
            "a-port-beyond",
            changed(|columns| columns.local_port[0] = 65_536),
            Some("value"),
        ),
        (
            "an-unknown-outcome",
            changed(|columns| columns.outcome = vec![1, 1, 200, 1].into()),
            Some("value"),
        ),
        (
            "a-step-of-ages",
            changed(|columns| columns.step_us[0] = u64::MAX),
            Some("value"),
        ),
        (
            "a-time-before-all",
            changed(|columns| columns.opened_ns_delta[1] = i64::MIN),
            Some("time"),
        ),
        (
            "two-days",
            changed(|columns| columns.opened_ns_delta[1] = -86_400_000_000_000),
            Some("days"),
        ),
    ]
}

fn messages() -> Vec<(&'static str, Body)> {
    let range = |epoch, first_sequence, last_sequence| BatchRange {
        epoch,
        stream: Stream::Connections.into(),
        first_sequence,
        last_sequence,
    };
    let with = |unanswered| {
        Body::Hello(Hello {
            unanswered,
            ..hello("a1")
        })
    };
    let counters = StreamCounters {
        stream: Stream::Connections.into(),
        netns: 4_026_531_840,
        opened: 12,
        closed: 9,
        open: 3,
        received: 9,
        acknowledged: 9,
        ..StreamCounters::default()
    };
    let status = |observed_at_ns| {
        Body::Status(Status {
            observed_at_ns,
            streams: vec![counters],
            epoch: 7,
            clock_offset_ns: -5,
            ..Status::default()
        })
    };
    let sealed = seal(7, &batch_at(1, 3, OPENED_NS));
    vec![
        ("hello", with(vec![])),
        (
            "hello-with-unanswered",
            with(vec![range(6, 1, 9), range(7, 4, 4)]),
        ),
        ("hello-with-a-range-of-all", with(vec![range(7, 0, u64::MAX)])),
        (
            "hello-of-another-protocol",
            Body::Hello(Hello {
                protocol: 2,
                ..hello("a1")
            }),
        ),
        ("status", status(NOW_NS as u64)),
        ("status-of-the-future", status(u64::MAX)),
        ("batch", Body::Batch(sealed.clone())),
        (
            "batch-with-another-checksum",
            Body::Batch(SealedBatch {
                checksum: 1,
                ..sealed.clone()
            }),
        ),
        (
            "batch-under-another-name",
            Body::Batch(SealedBatch {
                sequence: 2,
                ..sealed
            }),
        ),
        ("run-report", run_report(|_| {})),
        (
            "run-report-of-more-than-is-there",
            run_report(|times| times[4..8].fill(0xff)),
        ),
        ("run-report-of-five-digits", run_report(|times| times[15] = 5)),
        (
            "run-report-that-skips-more-than-there-is",
            run_report(|times| {
                times.truncate(40);
                times.extend([0xff; 9]);
                times[7] = 9;
            }),
        ),
    ]
}

/// A report of a run, all of whose distributions were changed.
fn run_report(change: impl FnOnce(&mut Vec<u8>)) -> Body {
    let mut recorded = Histogram::<u64>::new(3).unwrap();
    for ns in [40_000, 41_000, 95_000, 3_000_000] {
        recorded.record(ns).unwrap();
    }
    let mut times = Vec::new();
    V2Serializer::new().serialize(&recorded, &mut times).unwrap();
    change(&mut times);
    let times = || Bytes::from(times.clone());
    Body::Run(RunEvent {
        run_id: "r1".to_owned(),
        event: Some(Event::Report(LoadReport {
            elapsed_ns: 1_000_000_000,
            counts: Some(LoadCounts {
                started: 4,
                established: 4,
                ..LoadCounts::default()
            }),
            connect: times(),
            dial: times(),
            network: times(),
            error: times(),
            exchange: times(),
            lateness: times(),
            ..LoadReport::default()
        })),
    })
}

/// The files of a folder are these, or are made so.
fn check(target: &str, expected: &[(&str, Vec<u8>)]) {
    let folder = folder(target);
    if std::env::var_os("HOLDFAST_BLESS").is_some() {
        fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in expected {
            fs::write(folder.join(name), bytes).unwrap();
        }
    }
    for (name, bytes) in expected {
        let found = fs::read(folder.join(name)).unwrap_or_default();
        assert!(
            found == *bytes,
            "{target}/{name} is of another protocol: write it anew with HOLDFAST_BLESS=1"
        );
    }
}

#[test]
fn the_batches_are_of_todays_protocol_and_each_has_the_fault_that_it_is_called_after() {
    let encoded: Vec<_> = batches()
        .iter()
        .map(|(name, batch, _)| (*name, batch.encode_to_vec()))
        .collect();
    check("batch", &encoded);
    for (name, batch, fault) in batches() {
        let found = decode::sealed(&seal(7, &batch), NOW_NS, &NodeClock::default()).err();
        assert_eq!(found.as_ref().map(Malformed::kind), fault, "{name}: {found:?}");
    }
}

#[test]
fn the_messages_are_of_todays_protocol() {
    let encoded: Vec<_> = messages()
        .into_iter()
        .map(|(name, body)| (name, AgentMessage { body: Some(body) }.encode_to_vec()))
        .collect();
    check("message", &encoded);
}

#[test]
fn a_report_that_claims_what_it_does_not_have_is_not_read() {
    let messages = messages();
    let read = |name: &str| {
        let body = messages
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, body)| body);
        let Some(Body::Run(RunEvent {
            event: Some(Event::Report(report)),
            ..
        })) = body
        else {
            panic!("{name} is no report");
        };
        let mut outcome = Outcome::default();
        let added = outcome
            .add("node", report)
            .map_err(|unreadable| unreadable.to_string());
        (added, outcome.connect.len())
    };
    assert_eq!(read("run-report"), (Ok(()), 4));
    for name in [
        "run-report-of-more-than-is-there",
        "run-report-of-five-digits",
        "run-report-that-skips-more-than-there-is",
    ] {
        let (added, recorded) = read(name);
        assert!(added.is_err() && recorded == 0, "{name}: {added:?}");
    }
}
