//! Every time that an agent measured is in the views, to the nanosecond, though most of them are stored as differences.

use bytes::Bytes;
use holdfast_proto::v1::{Batch, Path, batch::Columns};
use holdfast_proto::{FLAG_FINAL, FLAG_FIRST, FLAG_RESET_RECEIVED, FLAG_RESET_SENT};

use crate::harness::{Collector, database};
use crate::store_engine::ask;
use crate::synthetic::{Agent, batch_at, now_ns};

const BOTH: u8 = FLAG_FIRST | FLAG_FINAL;

/// What an end went through.
struct End {
    /// By the kernel's numbers: 1 ESTABLISHED, 2 SYN_SENT, 3 SYN_RECV, 4 FIN_WAIT1, 5 FIN_WAIT2, 7 CLOSE, 8 CLOSE_WAIT,
    /// 9 LAST_ACK.
    states: &'static [u8],
    truncated: bool,
    step_us: &'static [u64],
    flags: u8,
    outcome: u8,
    /// `path_us`, `decided_at` and `closed_at` as they shall be read, the times in microseconds since the opening.
    expected: (&'static [u64], Option<u64>, Option<u64>),
}

const ENDS: [End; 8] = [
    End {
        states: &[2, 1, 4, 5, 7],
        truncated: false,
        step_us: &[250, 1_000_000, 40, 2],
        flags: BOTH,
        outcome: 1,
        expected: (
            &[0, 250, 1_000_250, 1_000_290, 1_000_292],
            Some(250),
            Some(1_000_292),
        ),
    },
    // Refused: the handshake's end is the end.
    End {
        states: &[2, 7],
        truncated: false,
        step_us: &[90],
        flags: BOTH,
        outcome: 2,
        expected: (&[0, 90], Some(90), Some(90)),
    },
    // Open, and its peer has closed already.
    End {
        states: &[2, 1, 8],
        truncated: false,
        step_us: &[7, 5_000],
        flags: FLAG_FIRST,
        outcome: 1,
        expected: (&[0, 7, 5_007], Some(7), None),
    },
    // Not decided.
    End {
        states: &[2, 3],
        truncated: false,
        step_us: &[30],
        flags: FLAG_FIRST,
        outcome: 7,
        expected: (&[0, 30], None, None),
    },
    End {
        states: &[2],
        truncated: false,
        step_us: &[],
        flags: FLAG_FIRST,
        outcome: 7,
        expected: (&[0], None, None),
    },
    // Both sides opened at once: the handshake takes a step more.
    End {
        states: &[2, 3, 1, 8, 9, 7],
        truncated: false,
        step_us: &[3, 4, 500, 60, 7],
        flags: FLAG_FINAL,
        outcome: 1,
        expected: (&[0, 3, 7, 507, 567, 574], Some(7), Some(574)),
    },
    // Steps are missing before the last.
    End {
        states: &[3, 1, 4, 7],
        truncated: true,
        step_us: &[1, 2, 3],
        flags: BOTH,
        outcome: 1,
        expected: (&[0, 1, 3, 6], Some(1), Some(6)),
    },
    // Older than the agent: its path begins with ESTABLISHED.
    End {
        states: &[1, 8, 7],
        truncated: false,
        step_us: &[8, 9],
        flags: BOTH,
        outcome: 1,
        expected: (&[0, 8, 17], Some(0), Some(17)),
    },
];

/// A batch of these ends; the cookie says which is which.
fn batch(opened_ns: i64) -> Batch {
    let mut batch = batch_at(1, ENDS.len() as u32, opened_ns);
    let Some(Columns::Connections(columns)) = &mut batch.columns else {
        unreachable!("it is a batch of connections")
    };
    // The first one is 0, each next one more.
    columns.cookie_delta = (0..ENDS.len() as i64).map(|row| row.min(1)).collect();
    columns.path = (0..ENDS.len() as u32).collect();
    columns.paths = ENDS
        .iter()
        .map(|end| Path {
            states: Bytes::from_static(end.states),
            truncated: end.truncated,
        })
        .collect();
    columns.step_us = ENDS.iter().flat_map(|end| end.step_us).copied().collect();
    let resets = [
        0,
        FLAG_RESET_SENT,
        FLAG_RESET_RECEIVED,
        FLAG_RESET_SENT | FLAG_RESET_RECEIVED,
    ];
    columns.flags = ENDS
        .iter()
        .zip(resets.into_iter().cycle())
        .map(|(end, resets)| end.flags | resets)
        .collect();
    columns.outcome = ENDS.iter().map(|end| end.outcome).collect();
    columns.close_reason = vec![0; ENDS.len()].into();
    batch
}

#[tokio::test(flavor = "multi_thread")]
async fn every_time_of_a_path_is_read_as_it_was_measured() {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let mut agent = Agent::connect(collector.address, "a1").await;
    // All within one day, and not whole microseconds.
    let opened_ns = (now_ns() - 10_000_000_000) / 86_400_000_000_000 * 86_400_000_000_000 + 123_456_789;
    let batch = batch(opened_ns);
    let Some(Columns::Connections(columns)) = &batch.columns else {
        unreachable!("it is a batch of connections")
    };
    let mut opened_at_ns = 0;
    let opened: Vec<i64> = columns
        .opened_ns_delta
        .iter()
        .map(|delta| {
            opened_at_ns += delta;
            opened_at_ns
        })
        .collect();
    agent.deliver(batch).await;
    assert_eq!(agent.settled(1).await, (vec![1], vec![]));

    let since = |opened: i64, us: Option<u64>| us.map_or(0, |us| opened + us as i64 * 1000);
    for (view, flag) in [("attempts", FLAG_FIRST), ("connections", FLAG_FINAL)] {
        let expected: String = ENDS
            .iter()
            .zip(&opened)
            .enumerate()
            .filter(|(_, (end, _))| end.flags & flag != 0)
            .map(|(cookie, (end, &opened))| {
                let (path_us, decided, closed) = end.expected;
                let path_us: Vec<String> = path_us.iter().map(u64::to_string).collect();
                let (decided, closed) = (since(opened, decided), since(opened, closed));
                format!(
                    "{cookie}\t{opened}\t{decided}\t{closed}\t[{}]\n",
                    path_us.join(",")
                )
            })
            .collect();
        let sql = format!(
            "SELECT cookie, toUnixTimestamp64Nano(opened_at), toUnixTimestamp64Nano(decided_at), \
             toUnixTimestamp64Nano(closed_at), path_us FROM {view} ORDER BY cookie"
        );
        assert_eq!(ask(&*store, &sql).await, expected, "{view}");
    }

    let transitions = "SELECT cookie, step, from_state, to_state, \
                       toUnixTimestamp64Nano(at) - toUnixTimestamp64Nano(opened_at) FROM transitions \
                       WHERE cookie IN (0, 6) ORDER BY cookie, step";
    assert_eq!(
        ask(&*store, transitions).await,
        "0\t1\t\tSYN_SENT\t0\n\
         0\t2\tSYN_SENT\tESTABLISHED\t250000\n\
         0\t3\tESTABLISHED\tFIN_WAIT1\t1000250000\n\
         0\t4\tFIN_WAIT1\tFIN_WAIT2\t1000290000\n\
         0\t5\tFIN_WAIT2\tCLOSE\t1000292000\n\
         6\t1\t\tSYN_RECV\t0\n\
         6\t2\tSYN_RECV\tESTABLISHED\t1000\n\
         6\t3\tESTABLISHED\tFIN_WAIT1\t3000\n\
         6\t4\t\tCLOSE\t6000\n"
    );
    assert_eq!(
        ask(
            &*store,
            "SELECT groupArray(resets) FROM (SELECT resets FROM connection_records ORDER BY cookie)"
        )
        .await,
        "['none','sent','received','both','none','sent','received','both']\n"
    );
    let finished = ENDS.iter().filter(|end| end.flags & FLAG_FINAL != 0);
    let states: usize = finished.map(|end| end.states.len()).sum();
    assert_eq!(
        ask(&*store, "SELECT count() FROM transitions").await,
        format!("{states}\n")
    );
    collector.stop().await.unwrap();
}
