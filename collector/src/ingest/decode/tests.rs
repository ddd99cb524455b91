use holdfast_proto::v1::{self, GapRows, batch::Columns};
use proptest::prelude::*;

use super::restamp::NodeClock;
use super::*;

const SECOND_NS: i64 = 1_000_000_000;

/// 2026-03-01 12:00 UTC.
const NOON_NS: i64 = 1_772_366_400 * SECOND_NS;

const NOW_NS: i64 = NOON_NS + 3600 * SECOND_NS;

/// Three ends: one that was opened, used and closed; one that was refused; one that is still trying.
fn columns() -> ConnectionColumns {
    ConnectionColumns {
        opened_ns_delta: vec![NOON_NS, 1000, -500],
        cookie_delta: vec![-1, 2, 40],
        process: vec![0, 0, 1],
        path: vec![0, 1, 2],
        step_us: vec![250, 1_000_000, 50, 300],
        local_address: vec![0, 0, 1],
        remote_address: vec![1, 1, 0],
        local_port: vec![40_000, 40_001, 40_002],
        remote_port: vec![5432, 5433, 65_535],
        bytes_sent: vec![10, 0, u64::MAX],
        bytes_received: vec![20, 0, 0],
        segments_sent: vec![3, 1, 2],
        segments_received: vec![4, 1, 0],
        retransmits: vec![0, 0, 1],
        syn_retransmits: Bytes::from_static(&[0, 0, 1]),
        srtt_us: vec![220, 0, 0],
        error: Bytes::from_static(&[0, 111, 0]),
        role: Bytes::from_static(&[1, 1, 1]),
        outcome: Bytes::from_static(&[1, 2, 7]),
        close_reason: Bytes::from_static(&[1, 0, 0]),
        attribution: Bytes::from_static(&[1, 1, 0]),
        flags: Bytes::from_static(&[FLAG_FIRST | FLAG_FINAL, FLAG_FIRST | FLAG_FINAL, FLAG_FIRST]),
        local_cause: Bytes::from_static(&[0, 1, 0]),
        streamed: Bytes::new(),
        accept_wait: Vec::new(),
        processes: vec![
            Process {
                pid: 10,
                comm: "client".to_owned(),
                cgroup_id: 5,
                netns: 7,
                service: String::new(),
            },
            Process {
                pid: 11,
                comm: "other".to_owned(),
                cgroup_id: 6,
                netns: 7,
                service: "db".to_owned(),
            },
        ],
        paths: vec![
            // SYN_SENT, ESTABLISHED, FIN_WAIT1, CLOSE; SYN_SENT, CLOSE; SYN_SENT.
            Path {
                states: Bytes::from_static(&[2, 1, 4, 7]),
                truncated: false,
            },
            Path {
                states: Bytes::from_static(&[2, 7]),
                truncated: false,
            },
            Path {
                states: Bytes::from_static(&[2]),
                truncated: false,
            },
        ],
        addresses: vec![Bytes::from_static(&[1; 16]), Bytes::from_static(&[2; 16])],
    }
}

/// Seals a batch, opens it again and takes its connections out.
fn unsealed(batch: &Batch, now_ns: i64) -> Result<Connections, Malformed> {
    match derive(open(&seal(batch))?, now_ns)?.rows {
        Rows::Connections(connections) => Ok(*connections),
        other => panic!("not connections: {other:?}"),
    }
}

fn seal(batch: &Batch) -> SealedBatch {
    let encoded = Bytes::from(batch.encode_to_vec());
    SealedBatch {
        epoch: 7,
        stream: batch.stream,
        sequence: batch.sequence,
        checksum: crc32fast::hash(&encoded),
        encoded,
    }
}

/// The columns above, decoded.
pub(crate) fn decoded() -> Connections {
    unsealed(&batch(columns()), NOW_NS).unwrap()
}

fn batch(columns: ConnectionColumns) -> Batch {
    Batch {
        stream: Stream::Connections.into(),
        sequence: 1,
        rows: 3,
        boot_id: "boot".to_owned(),
        clock_ns: 0,
        columns: Some(Columns::Connections(columns)),
    }
}

/// The fault of the batch above once `change` was made to it.
fn fault(change: impl FnOnce(&mut ConnectionColumns)) -> String {
    let mut columns = columns();
    change(&mut columns);
    unsealed(&batch(columns), NOW_NS).unwrap_err().to_string()
}

#[test]
fn times_are_derived_from_the_path() {
    let decoded = unsealed(&batch(columns()), NOW_NS).unwrap();
    let (first, second, third) = (NOON_NS, NOON_NS + 1000, NOON_NS + 500);
    // Opened after 250 us, closed 1 s and 50 us later; refused after 300 us; not decided.
    assert_eq!(decoded.connect_us, [250, 300, 0]);
    assert_eq!(decoded.duration_us, [1_000_300, 300, 0]);
    assert_eq!(
        decoded.recorded_at_ns,
        [first + 1_000_300_000, second + 300_000, third]
    );
    // FIN_WAIT1 was entered 50 us before the end.
    assert_eq!(decoded.step_us, [50]);
    assert_eq!(decoded.step_ends, [1, 1, 1]);
    assert_eq!(decoded.day, 20_513);
}

#[test]
fn a_first_record_is_recorded_when_its_handshake_ended() {
    let mut columns = columns();
    columns.flags = Bytes::from_static(&[FLAG_FIRST, FLAG_FIRST, FLAG_FIRST]);
    columns.outcome = Bytes::from_static(&[1, 1, 1]);
    columns.path = vec![0, 0, 0];
    columns.paths = vec![Path {
        states: Bytes::from_static(&[3, 1, 8]),
        truncated: false,
    }];
    columns.step_us = vec![10, 90, 20, 80, 30, 70];
    let decoded = unsealed(&batch(columns), NOW_NS).unwrap();
    assert_eq!(decoded.connect_us, [10, 20, 30]);
    let decided_at = [NOON_NS + 10_000, NOON_NS + 21_000, NOON_NS + 30_500];
    assert_eq!(decoded.recorded_at_ns, decided_at);
    // The step after the handshake, since the opening.
    assert_eq!(decoded.step_us, [100, 100, 100]);
    assert_eq!(decoded.duration_us, [0, 0, 0]);
}

#[test]
fn a_cookie_is_any_64_bits() {
    let decoded = unsealed(&batch(columns()), NOW_NS).unwrap();
    assert_eq!(decoded.cookie, [u64::MAX, 1, 41]);
}

#[test]
fn columns_that_need_no_work_are_kept_as_they_came() {
    let decoded = unsealed(&batch(columns()), NOW_NS).unwrap();
    assert_eq!(decoded.bytes_sent, [10, 0, u64::MAX]);
    assert_eq!(decoded.remote_port, [5432, 5433, 65_535]);
    assert_eq!(&decoded.error[..], [0, 111, 0]);
    assert_eq!(decoded.addresses, [[1; 16], [2; 16]]);
    assert_eq!(decoded.processes[1].service, "db");
}

#[test]
fn a_batch_of_another_stream_or_without_a_place_is_refused() {
    let refused = |change: fn(&mut Batch)| {
        let mut batch = batch(columns());
        change(&mut batch);
        unsealed(&batch, NOW_NS).unwrap_err().to_string()
    };
    assert_eq!(
        refused(|batch| batch.stream = 99),
        "stream 99 is unknown to this collector: upgrade the collector"
    );
    assert_eq!(refused(|batch| batch.sequence = 0), "sequence 0 (the first is 1)");
    assert_eq!(
        refused(|batch| batch.columns = None),
        "no columns of its stream that this collector knows: if the agent is newer, upgrade the collector"
    );
    assert_eq!(
        refused(|batch| batch.rows = 0),
        "0 rows (a batch has 1 to 131072)"
    );
    assert_eq!(
        refused(|batch| batch.rows = u32::MAX),
        "4294967295 rows (a batch has 1 to 131072)"
    );
    assert_eq!(
        refused(|batch| batch.rows = 4),
        "opened_ns_delta has 3 entries, not 4"
    );
}

#[test]
fn every_column_must_have_an_entry_a_row() {
    assert_eq!(
        fault(|columns| columns.cookie_delta.truncate(2)),
        "cookie_delta has 2 entries, not 3"
    );
    assert_eq!(
        fault(|columns| columns.srtt_us.push(1)),
        "srtt_us has 4 entries, not 3"
    );
    assert_eq!(
        fault(|columns| columns.error = Bytes::new()),
        "error has 0 entries, not 3"
    );
    assert_eq!(
        fault(|columns| columns.flags.truncate(1)),
        "flags has 1 entries, not 3"
    );
}

#[test]
fn steps_must_be_as_many_as_the_paths_say() {
    assert_eq!(
        fault(|columns| columns.step_us.truncate(3)),
        "step_us has 3 entries, not 4"
    );
    assert_eq!(
        fault(|columns| columns.step_us.push(1)),
        "step_us has 5 entries, not 4"
    );
    assert_eq!(
        fault(|columns| columns.step_us[3] = u64::MAX),
        "step_us of row 1 is 18446744073709551615 (at most 8.9 years)"
    );
}

#[test]
fn an_index_must_be_in_its_dictionary() {
    assert_eq!(
        fault(|columns| columns.process[2] = 2),
        "process of row 2 is 2, and the dictionary has 2 entries"
    );
    assert_eq!(
        fault(|columns| columns.path[0] = 3),
        "path of row 0 is 3, and the dictionary has 3 entries"
    );
    assert_eq!(
        fault(|columns| columns.remote_address[1] = u32::MAX),
        "remote_address of row 1 is 4294967295, and the dictionary has 2 entries"
    );
}

#[test]
fn a_number_must_be_one_that_its_column_knows() {
    let bytes = Bytes::from_static;
    assert_eq!(
        fault(|columns| columns.role = bytes(&[1, 0, 1])),
        "role of row 1 is 0 (each end has a role)"
    );
    assert_eq!(
        fault(|columns| columns.flags = bytes(&[0, 1, 1])),
        "flags of row 0 is 0 (first, final or both)"
    );
    assert_eq!(
        fault(|columns| columns.flags = bytes(&[1, 1, 12])),
        "flags of row 2 is 12 (first, final or both)"
    );
    assert_eq!(
        fault(|columns| columns.local_port[1] = 65_536),
        "local_port of row 1 is 65536 (a port is at most 65535)"
    );
}

#[test]
fn of_what_only_a_newer_agent_says_it_is_said_what_to_upgrade() {
    let bytes = Bytes::from_static;
    let advice = "which this collector does not know: if the agent is newer, upgrade the collector";
    for (fault, place) in [
        (
            fault(|columns| columns.role = bytes(&[1, 3, 1])),
            "role of row 1 is 3",
        ),
        (
            fault(|columns| columns.outcome = bytes(&[1, 1, 99])),
            "outcome of row 2 is 99",
        ),
        (
            fault(|columns| columns.close_reason = bytes(&[7, 0, 0])),
            "close_reason of row 0 is 7",
        ),
        (
            fault(|columns| columns.attribution = bytes(&[0, 255, 0])),
            "attribution of row 1 is 255",
        ),
        (
            fault(|columns| columns.local_cause = bytes(&[0, 1, 42])),
            "local_cause of row 2 is 42",
        ),
        (
            fault(|columns| columns.flags = bytes(&[1, 17, 1])),
            "flags of row 1 is 17",
        ),
    ] {
        assert_eq!(fault, format!("{place}, {advice}"));
    }
}

#[test]
fn a_dictionary_has_only_fitting_entries_and_no_more_than_rows_can_use() {
    assert_eq!(
        fault(|columns| columns.addresses[1] = Bytes::from_static(&[1, 2, 3, 4])),
        "entry 1 of addresses is not 16 bytes long"
    );
    assert_eq!(
        fault(|columns| columns.paths[1].states = Bytes::new()),
        "entry 1 of paths has no steps"
    );
    assert_eq!(
        fault(|columns| columns.paths[0].states = Bytes::from_static(&[2; 17])),
        "entry 0 of paths has more than 16 steps"
    );
    assert_eq!(
        fault(|columns| columns.paths[2].states = Bytes::from_static(&[13])),
        "entry 2 of paths has a state that TCP does not have"
    );
    assert_eq!(
        fault(|columns| columns.processes[0].comm = "c".repeat(65)),
        "entry 0 of processes has a comm of more than 64 bytes"
    );
    assert_eq!(
        fault(|columns| columns.processes.extend(vec![Process::default(); 2])),
        "entry 3 of processes is used by no row"
    );
}

#[test]
fn times_must_be_sane() {
    let day_s = 24 * 3600;
    assert_eq!(
        fault(|columns| columns.opened_ns_delta[0] = 1),
        "the time of row 0 is before the year 2000; is the node's clock set?"
    );
    assert_eq!(
        fault(|columns| columns.opened_ns_delta[1] = i64::MAX),
        "the time of row 1 is before the year 2000; is the node's clock set?"
    );
    assert_eq!(
        fault(|columns| columns.opened_ns_delta[1] = 2 * day_s * SECOND_NS),
        "the time of row 1 is more than a day ahead of the collector; is the node's clock right?"
    );
    assert_eq!(
        fault(|columns| columns.step_us[1] = 3 * day_s as u64 * 1_000_000),
        "the time of row 0 is more than a day ahead of the collector; is the node's clock right?"
    );
}

#[test]
fn a_batch_is_of_one_day() {
    assert_eq!(
        fault(|columns| columns.opened_ns_delta[0] -= 12 * 3600 * SECOND_NS + 1000),
        "rows of more than one day (UTC)"
    );
}

#[test]
fn a_final_record_ends_with_close() {
    assert_eq!(
        fault(|columns| columns.flags = Bytes::from_static(&[3, 3, 3])),
        "path of row 2 is 2 (a final record's path ends with CLOSE)"
    );
}

#[test]
fn a_status_is_bounded_and_of_known_streams() {
    let counters = StreamCounters {
        stream: Stream::Connections.into(),
        opened: 5,
        ..StreamCounters::default()
    };
    let good = Status {
        observed_at_ns: NOON_NS as u64,
        streams: vec![counters],
        ..Status::default()
    };
    assert_eq!(status(good.clone(), NOW_NS), Ok((NOON_NS, vec![counters])));
    let many = Status {
        streams: vec![counters; MAX_COUNTERS + 1],
        ..good.clone()
    };
    assert_eq!(
        status(many, NOW_NS),
        Err(Malformed::Status("more than 4096 counters"))
    );
    let of = |stream| StreamCounters { stream, ..counters };
    let none = Status {
        streams: vec![counters, of(0)],
        ..good.clone()
    };
    let fault = status(none, NOW_NS).unwrap_err().to_string();
    assert_eq!(fault, "stream 0, which no agent has");
    // A newer agent's, whose other counters are taken all the same.
    let mut newer = Status {
        streams: vec![of(99), counters],
        ..good
    };
    assert_eq!(leave_out_unknown(&mut newer), Some(99));
    assert_eq!(leave_out_unknown(&mut newer), None);
    assert_eq!(status(newer, NOW_NS), Ok((NOON_NS, vec![counters])));
    let early = Status {
        observed_at_ns: 0,
        streams: Vec::new(),
        ..Status::default()
    };
    assert_eq!(status(early, NOW_NS).unwrap_err().kind(), "status");
}

proptest! {
    /// Any shape, with numbers that often fit and often do not.
    #[test]
    fn no_batch_makes_it_panic(
        rows in 0_u32..5,
        numbers in prop::collection::vec(prop_oneof![0_u64..4, any::<u64>()], 60),
        lengths in prop::collection::vec(0_usize..5, 24),
        bytes in prop::collection::vec(prop_oneof![0_u8..9, any::<u8>()], 60),
        anchor in prop_oneof![Just(NOON_NS), any::<i64>()],
    ) {
        let mut numbers = numbers.into_iter().cycle();
        let mut lengths = lengths.into_iter().cycle();
        // Mostly the right length, so that the checks behind that of the length are reached.
        let mut length = || match lengths.next().unwrap() { 0 => 2, _ => rows as usize };
        let mut longs = |length: usize| numbers.by_ref().take(length).collect::<Vec<u64>>();
        let texts = |length: usize, from: usize| Bytes::copy_from_slice(&bytes[from..from + length]);
        let shorts = |longs: Vec<u64>| longs.into_iter().map(|long| long as u32).collect::<Vec<u32>>();
        let mut opened: Vec<i64> = longs(length()).into_iter().map(u64::cast_signed).collect();
        if let Some(first) = opened.first_mut() {
            *first = anchor;
        }
        let columns = ConnectionColumns {
            opened_ns_delta: opened,
            cookie_delta: longs(length()).into_iter().map(u64::cast_signed).collect(),
            process: shorts(longs(length())),
            path: shorts(longs(length())),
            step_us: longs(length()),
            local_address: shorts(longs(length())),
            remote_address: shorts(longs(length())),
            local_port: shorts(longs(length())),
            remote_port: shorts(longs(length())),
            bytes_sent: longs(length()),
            bytes_received: longs(length()),
            segments_sent: shorts(longs(length())),
            segments_received: shorts(longs(length())),
            retransmits: shorts(longs(length())),
            syn_retransmits: texts(length(), 0),
            srtt_us: shorts(longs(length())),
            error: texts(length(), 5),
            role: texts(length(), 10),
            outcome: texts(length(), 15),
            close_reason: texts(length(), 20),
            attribution: texts(length(), 25),
            flags: texts(length(), 30),
            local_cause: texts(length(), 32),
            streamed: texts(length(), 45),
            accept_wait: shorts(longs(length())),
            processes: vec![Process::default(); length()],
            paths: (0..length()).map(|at| Path { states: texts(at + 1, 35 + at), truncated: false }).collect(),
            addresses: vec![Bytes::from_static(&[0; 16]); length()],
        };
        let batch = Batch {
            stream: Stream::Connections.into(),
            sequence: 1,
            rows,
            boot_id: String::new(),
            clock_ns: 0,
            columns: Some(Columns::Connections(columns)),
        };
        match unsealed(&batch, NOW_NS) {
            Ok(decoded) => prop_assert_eq!(decoded.recorded_at_ns.len(), rows as usize),
            Err(malformed) => prop_assert!(Malformed::KINDS.contains(&malformed.kind())),
        }
    }

    /// What a batch says about its path comes back, for paths of every length.
    #[test]
    fn offsets_are_sums_of_steps(
        middles in prop::collection::vec(prop::collection::vec((4_u8..=6, 0..1_000_000_u64), 0..10), 1..20),
    ) {
        let rows = middles.len();
        let mut columns = ConnectionColumns {
            opened_ns_delta: vec![0; rows],
            cookie_delta: vec![0; rows],
            process: vec![0; rows],
            local_address: vec![0; rows],
            remote_address: vec![0; rows],
            local_port: vec![1; rows],
            remote_port: vec![1; rows],
            bytes_sent: vec![0; rows],
            bytes_received: vec![0; rows],
            segments_sent: vec![0; rows],
            segments_received: vec![0; rows],
            retransmits: vec![0; rows],
            syn_retransmits: vec![0; rows].into(),
            srtt_us: vec![0; rows],
            error: vec![0; rows].into(),
            role: vec![2; rows].into(),
            outcome: vec![1; rows].into(),
            close_reason: vec![1; rows].into(),
            attribution: vec![2; rows].into(),
            flags: vec![FLAG_FIRST | FLAG_FINAL; rows].into(),
            local_cause: vec![0; rows].into(),
            streamed: Bytes::new(),
            accept_wait: Vec::new(),
            processes: vec![Process::default()],
            addresses: vec![Bytes::from_static(&[0; 16])],
            ..ConnectionColumns::default()
        };
        columns.opened_ns_delta[0] = NOON_NS;
        for (row, middle) in middles.iter().enumerate() {
            // SYN_RECV, ESTABLISHED after 7 us, whatever comes, CLOSE after 9 us.
            let states = [3, 1].into_iter().chain(middle.iter().map(|(state, _)| *state)).chain([7]);
            columns.paths.push(Path { states: states.collect(), truncated: false });
            columns.path.push(row as u32);
            columns.step_us.push(7);
            columns.step_us.extend(middle.iter().map(|(_, us)| us));
            columns.step_us.push(9);
        }
        let batch = Batch {
            stream: Stream::Connections.into(),
            sequence: 1,
            rows: rows as u32,
            boot_id: String::new(),
            clock_ns: 0,
            columns: Some(Columns::Connections(columns)),
        };
        let decoded = unsealed(&batch, NOW_NS).unwrap();
        let durations: Vec<u64> =
            middles.iter().map(|middle| 16 + middle.iter().map(|(_, us)| us).sum::<u64>()).collect();
        prop_assert_eq!(&decoded.duration_us, &durations);
        prop_assert!(decoded.connect_us.iter().all(|connect_us| *connect_us == 7));
        let closed: Vec<i64> = durations.iter().map(|us| NOON_NS + *us as i64 * 1000).collect();
        prop_assert_eq!(&decoded.recorded_at_ns, &closed);
        // The steps in between, before the end.
        let mut before_end = Vec::new();
        for middle in &middles {
            for step in 0..middle.len() {
                before_end.push(9 + middle[step + 1..].iter().map(|(_, us)| us).sum::<u64>());
            }
        }
        prop_assert_eq!(&decoded.step_us, &before_end);
    }
}

#[test]
fn an_end_is_pending_until_its_path_says_otherwise() {
    assert_eq!(
        fault(|columns| columns.outcome = Bytes::from_static(&[1, 7, 7])),
        "outcome of row 1 is 7 (pending without ESTABLISHED or CLOSE in its path, and only then)"
    );
    assert_eq!(
        fault(|columns| columns.outcome = Bytes::from_static(&[1, 2, 1])),
        "outcome of row 2 is 1 (pending without ESTABLISHED or CLOSE in its path, and only then)"
    );
}

#[test]
fn a_batch_of_a_clock_that_is_wrong_by_days_is_moved_and_otherwise_the_same() {
    let ahead = |days| NodeClock {
        ahead_ns: days * DAY_NS,
        ..NodeClock::default()
    };
    let right = derive(open(&seal(&batch(columns()))).unwrap(), NOW_NS).unwrap();
    for ahead_days in [3, 400, -1, -50] {
        let mut wrong = batch(columns());
        restamp::shift(wrong.columns.as_mut().unwrap(), ahead_days);
        let wrong = seal(&wrong);
        let moved = sealed(&wrong, NOW_NS, &ahead(ahead_days)).unwrap();
        assert_eq!(moved, (right.clone(), -ahead_days));
        // Once the clock is right nobody knows what it was: in the future nothing lies all the same.
        let (later, days) = sealed(&wrong, NOW_NS, &NodeClock::default()).unwrap();
        assert!(later.rows.latest_ns() <= NOW_NS + DAY_NS, "{ahead_days}");
        assert_eq!(days, (-ahead_days).min(0), "{ahead_days}");
    }
}

#[test]
fn a_batch_that_changed_on_its_way_is_refused() {
    let fault = |change: fn(&mut SealedBatch)| {
        let mut batch = seal(&batch(columns()));
        change(&mut batch);
        sealed(&batch, NOW_NS, &NodeClock::default()).unwrap_err()
    };
    assert_eq!(fault(|batch| batch.checksum ^= 1), Malformed::Checksum);
    assert_eq!(fault(|batch| batch.sequence += 1), Malformed::Name);
    assert_eq!(fault(|batch| batch.stream = Stream::Gaps.into()), Malformed::Name);
    assert_eq!(fault(|batch| batch.epoch = 0), Malformed::Sequence);
    let cut = fault(|batch| {
        batch.encoded.truncate(batch.encoded.len() / 2);
        batch.checksum = crc32fast::hash(&batch.encoded);
    });
    assert_eq!(cut, Malformed::Unreadable);
    assert!(cut.to_string().contains("upgrade the collector"), "{cut}");
}

#[test]
fn gaps_are_checked_like_rows() {
    let gap = Gap {
        epoch: 7,
        stream: Stream::Connections.into(),
        first_sequence: 1,
        last_sequence: 2,
        first_ns: 5,
        last_ns: 6,
        rows: 20,
        reason: GapReason::SpoolFull.into(),
        netns: 5,
        at_least: false,
    };
    let check = |gap: Gap| {
        let batch = Batch {
            stream: Stream::Gaps.into(),
            sequence: 1,
            rows: 1,
            boot_id: String::new(),
            clock_ns: 0,
            columns: Some(Columns::Gaps(GapRows { gaps: vec![gap] })),
        };
        open(&seal(&batch))
            .and_then(|batch| derive(batch, NOW_NS))
            .map(|decoded| decoded.rows)
    };
    assert_eq!(check(gap), Ok(Rows::Gaps(vec![gap])));
    assert_eq!(check(Gap { stream: 99, ..gap }), Err(Malformed::Stream(99)));
    assert!(matches!(
        check(Gap { reason: 0, ..gap }),
        Err(Malformed::Value { column: "reason", .. })
    ));
    assert_eq!(
        check(Gap { reason: 99, ..gap }),
        Err(Malformed::Unknown {
            column: "reason",
            row: 0,
            value: 99
        })
    );
    assert!(matches!(
        check(Gap { last_ns: 4, ..gap }),
        Err(Malformed::Time { .. })
    ));
}

/// The columns above, as they would stand before they ended, in a look.
fn look(change: impl FnOnce(&mut v1::OpenConnections)) -> Result<Rows, Malformed> {
    let mut look = v1::OpenConnections {
        observed_at_ns: NOW_NS as u64,
        one_in: 3,
        connections: Some(ConnectionColumns {
            // SYN_SENT, ESTABLISHED twice, the first of them the day before; SYN_SENT.
            opened_ns_delta: vec![NOON_NS - DAY_NS, DAY_NS, -500],
            path: vec![0, 0, 1],
            step_us: vec![250, 300],
            outcome: Bytes::from_static(&[1, 1, 7]),
            close_reason: Bytes::from_static(&[0; 3]),
            flags: Bytes::from_static(&[0; 3]),
            paths: [&[2, 1][..], &[2]]
                .map(|states| Path {
                    states: Bytes::from_static(states),
                    truncated: false,
                })
                .into(),
            ..columns()
        }),
    };
    change(&mut look);
    let batch = Batch {
        stream: Stream::OpenConnections.into(),
        columns: Some(Columns::OpenConnections(look)),
        ..batch(columns())
    };
    open(&seal(&batch))
        .and_then(|batch| derive(batch, NOW_NS))
        .map(|decoded| decoded.rows)
}

#[test]
fn a_look_at_what_is_open_has_rows_of_any_day_and_none_that_ended() {
    let Ok(Rows::OpenConnections(open)) = look(|_| ()) else {
        panic!("a look");
    };
    assert_eq!((open.observed_at_ns, open.one_in), (NOW_NS, 3));
    let connections = &open.connections;
    assert_eq!(connections.connect_us, [250, 300, 0]);
    assert_eq!(
        connections.recorded_at_ns,
        [NOON_NS - DAY_NS, NOON_NS, NOON_NS - 500],
        "when they were opened"
    );
    let fault = |change: fn(&mut v1::OpenConnections)| look(change).unwrap_err().to_string();
    let ended =
        fault(|look| look.connections.as_mut().unwrap().flags = Bytes::from_static(&[0, 0, FLAG_FINAL]));
    assert_eq!(ended, "flags of row 2 is 2 (neither first nor final)");
    assert_eq!(fault(|look| look.one_in = 0), "one_in of row 0 is 0 (at least 1)");
    assert!(fault(|look| look.observed_at_ns = u64::MAX).contains("before 2000"));
    assert_eq!(
        fault(|look| look.connections = None),
        Malformed::Columns.to_string()
    );
}

#[test]
fn listeners_are_checked_like_rows() {
    let check = |change: fn(&mut Listener)| {
        let mut listener = Listener {
            address: Bytes::from_static(&[0; 16]),
            port: 80,
            process: Some(Process::default()),
            attribution: Attribution::Listener.into(),
            backlog: 2,
            backlog_limit: 1,
            ..Listener::default()
        };
        change(&mut listener);
        let batch = Batch {
            stream: Stream::Listeners.into(),
            rows: 1,
            columns: Some(Columns::Listeners(ListenerRows {
                observed_at_ns: NOW_NS as u64,
                listeners: vec![listener],
            })),
            ..batch(columns())
        };
        match open(&seal(&batch)).and_then(|batch| derive(batch, NOW_NS))?.rows {
            Rows::Listeners(look) => Ok(look.listeners.len()),
            other => panic!("not listeners: {other:?}"),
        }
    };
    assert_eq!(check(|_| ()), Ok(1));
    for broken in [
        |listener: &mut Listener| listener.port = 70_000,
        |listener: &mut Listener| listener.address = Bytes::from_static(&[0; 4]),
        |listener: &mut Listener| listener.process = None,
        |listener: &mut Listener| listener.process.as_mut().unwrap().comm = "x".repeat(65),
    ] {
        assert!(matches!(check(broken), Err(Malformed::Entry { .. })));
    }
    let newer = check(|listener| listener.attribution = 99);
    assert!(
        matches!(newer, Err(Malformed::Unknown { value: 99, .. })),
        "{newer:?}"
    );
}
