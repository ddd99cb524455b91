//! System calls: from batches of agents to what people ask.

use holdfast_proto::v1::query_client::QueryClient;
use holdfast_proto::v1::{
    Batch, BatchRange, Hello, LedgerRequest, Status, Stream, StreamCounters, SyscallCaller, SyscallColumns,
    SyscallGrouping, SyscallsRequest, agent_message, batch::Columns, collector_message,
};
use serde_json::{Value as Json, json};
use tonic::transport::Channel;

use crate::harness::{Collector, database, number};
use crate::synthetic::{Agent, batch, hello, now_ns};

/// 1,024 to 1,151 ns, and 1,048,576 to 1,179,647: buckets as they travel.
const A_MICROSECOND: u32 = 64;
const A_MILLISECOND: u32 = 144;

/// nginx (two processes in one cgroup), and those without a place of their own.
pub(crate) fn interval(sequence: u64) -> Batch {
    let caller = |pid, cgroup_id| SyscallCaller {
        pid,
        comm: "nginx".into(),
        cgroup_id,
        service: String::new(),
        processes: 1,
    };
    let columns = SyscallColumns {
        began_ns: (now_ns() - 10_000_000_000) as u64,
        ended_ns: now_ns() as u64,
        measured_one_in: 16,
        caller: vec![0, 0, 1, 2],
        name: vec![0, 1, 0, 0],
        calls: vec![1_000, 10, 500, 7],
        errnos: vec![2, 0, 1, 0],
        errno: vec![11, 104, 11],
        failed: vec![30, 1, 50],
        buckets: vec![2, 0, 1, 0],
        bucket: vec![A_MICROSECOND, A_MILLISECOND, A_MICROSECOND],
        measured: vec![60, 2, 30],
        callers: vec![caller(100, 9), caller(101, 9), SyscallCaller::default()],
        names: vec!["read".into(), "close".into()],
    };
    Batch {
        stream: Stream::Syscalls.into(),
        sequence,
        rows: 4,
        boot_id: "boot".into(),
        clock_ns: 0,
        columns: Some(Columns::Syscalls(columns)),
    }
}

async fn ask(client: &mut QueryClient<Channel>, filter: &str, by: SyscallGrouping) -> Vec<Json> {
    let request = SyscallsRequest {
        filter: filter.into(),
        last_ns: 3_600_000_000_000,
        limit: 0,
        by: by.into(),
    };
    let mut chunks = client.syscalls(request).await.unwrap().into_inner();
    let mut text = Vec::new();
    while let Some(chunk) = chunks.message().await.unwrap() {
        text.extend_from_slice(&chunk.data);
    }
    let text = String::from_utf8(text).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Some members of each row.
fn members<const N: usize>(rows: &[Json], names: [&str; N]) -> Vec<[Json; N]> {
    rows.iter()
        .map(|row| names.map(|name| row[name].clone()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_added_up_by_what_people_ask() {
    let collector = Collector::start(database().await).await;
    let mut agent = Agent::connect(collector.address, "a1").await;
    agent.deliver(interval(1)).await;
    agent.deliver(interval(2)).await;
    // A stream of its own: the same sequence is another batch.
    agent.deliver(batch(1, 10)).await;
    let (_, refused) = agent.settled(3).await;
    assert_eq!(refused, []);

    let mut client = QueryClient::connect(collector.url()).await.unwrap();
    let rows = ask(&mut client, "", SyscallGrouping::Unspecified).await;
    assert_eq!(
        members(&rows, ["comm", "pid", "syscall", "calls", "errors"]),
        [
            [json!("nginx"), json!(100), json!("read"), json!(2_000), json!(62)],
            [
                json!("nginx"),
                json!(101),
                json!("read"),
                json!(1_000),
                json!(100)
            ],
            [json!("nginx"), json!(100), json!("close"), json!(20), json!(0)],
            [json!(""), json!(0), json!("read"), json!(14), json!(0)],
        ]
    );
    assert_eq!(
        members(&rows, ["errnos", "errno_calls"])[0],
        [json!([11, 104]), json!([60, 2])]
    );
    let rate = rows[0]["calls_per_s"].as_f64().unwrap();
    assert!((150.0..=201.0).contains(&rate), "{rate}");

    let rows = ask(&mut client, "comm = 'nginx'", SyscallGrouping::Syscall).await;
    assert_eq!(
        members(&rows, ["syscall", "calls", "errors", "measured"]),
        [
            [json!("read"), json!(3_000), json!(162), json!(184)],
            [json!("close"), json!(20), json!(0), json!(0)],
        ]
    );
    let near = |value: &Json, expected: f64| {
        let value = value.as_f64().unwrap();
        assert!((value - expected).abs() <= 0.08 * expected, "{value} {expected}");
    };
    near(&rows[0]["p50_ns"], 1_088.0);
    // Of 184 the longest four: the hundredth part and more.
    near(&rows[0]["p99_ns"], 1_114_112.0);

    let rows = ask(&mut client, "", SyscallGrouping::Cgroup).await;
    assert_eq!(
        members(&rows, ["cgroup_id", "calls"]),
        [[json!(9), json!(3_020)], [json!(0), json!(14)]]
    );
    let rows = ask(
        &mut client,
        "errors > 0 and syscall = 'read'",
        SyscallGrouping::Process,
    )
    .await;
    assert_eq!(
        members(&rows, ["pid", "calls"]),
        [[json!(100), json!(2_000)], [json!(101), json!(1_000)]]
    );

    let wrong = SyscallsRequest {
        filter: "remote_port = 1".into(),
        last_ns: 1,
        limit: 0,
        by: 0,
    };
    let status = client.syscalls(wrong).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert!(status.message().contains("remote_port"), "{status:?}");
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_calls_that_comes_again_is_stored_once_and_the_ledger_counts_calls() {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let mut agent = Agent::connect(collector.address, "a1").await;
    agent.deliver(interval(1)).await;
    agent.settled(1).await;
    drop(agent);

    let unanswered = vec![BatchRange {
        epoch: 7,
        stream: Stream::Syscalls.into(),
        first_sequence: 1,
        last_sequence: 2,
    }];
    let returning = Hello {
        unanswered,
        ..hello("a1")
    };
    let (mut agent, known) = Agent::return_with(collector.address, returning).await;
    assert_eq!(known, [(7, 1)]);
    agent.deliver(interval(1)).await;
    agent.deliver(interval(2)).await;
    agent.settled(2).await;
    assert_eq!(number(&store, "SELECT sum(calls) FROM syscalls").await, 2 * 1_517);

    agent
        .report(Status {
            observed_at_ns: now_ns() as u64,
            epoch: 7,
            streams: vec![StreamCounters {
                stream: Stream::Syscalls.into(),
                opened: 3_034,
                closed: 3_034,
                received: 3_034,
                acknowledged: 3_034,
                unseen: 14,
                ..StreamCounters::default()
            }],
            ..Status::default()
        })
        .await;
    agent.deliver(interval(3)).await;
    agent.settled(1).await;
    let mut client = QueryClient::connect(collector.url()).await.unwrap();
    let mut chunks = client
        .ledger(LedgerRequest { all_starts: false })
        .await
        .unwrap()
        .into_inner();
    let chunk = chunks.message().await.unwrap().expect("a row");
    let row: Json = serde_json::from_slice(&chunk.data).unwrap();
    assert_eq!(
        members(
            &[row],
            [
                "stream",
                "acknowledged",
                "rows_stored",
                "store_difference",
                "agent_difference"
            ]
        ),
        [[
            json!("syscalls"),
            json!(3_034),
            json!(4_551),
            json!(1_517),
            json!(0)
        ]]
    );
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_batch_of_calls_is_refused_and_the_next_one_is_not() {
    let collector = Collector::start(database().await).await;
    let mut agent = Agent::connect(collector.address, "a1").await;
    let mut wrong = interval(1);
    if let Some(Columns::Syscalls(columns)) = &mut wrong.columns {
        columns.failed[0] = 2_000;
    }
    agent.deliver(wrong).await;
    agent.deliver(interval(2)).await;
    let (acknowledged, refused) = agent.settled(2).await;
    assert_eq!(acknowledged, [2]);
    assert!(refused[0].1.contains("failed of row 0"), "{refused:?}");
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_start_after_one_that_was_killed_hears_what_is_stored_of_each_stream() {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let mut agent = Agent::connect(collector.address, "a1").await;
    agent.deliver(interval(1)).await;
    agent.deliver(interval(2)).await;
    agent.deliver(batch(1, 3)).await;
    agent.settled(3).await;
    drop(agent);

    let unsettled = |stream: Stream, first_sequence| BatchRange {
        epoch: 7,
        stream: stream.into(),
        first_sequence,
        last_sequence: u64::MAX,
    };
    let mut next = Agent::dial(collector.address).await;
    next.send(agent_message::Body::Hello(Hello {
        epoch: 8,
        unsettled: vec![
            unsettled(Stream::Syscalls, 2),
            unsettled(Stream::Connections, 1),
            unsettled(Stream::Peers, 1),
            unsettled(Stream::Gaps, 1),
        ],
        ..hello("a1")
    }))
    .await;
    let Ok(Some(collector_message::Body::Welcome(welcome))) = next.hear().await else {
        panic!("no welcome");
    };
    let mut stored: Vec<_> = welcome
        .stored
        .iter()
        .map(|stored| (stored.stream(), stored.epoch, stored.rows))
        .collect();
    stored.sort_unstable();
    // Calls, not rows; and of the first interval the agent knew.
    assert_eq!(
        stored,
        [(Stream::Connections, 7, 3), (Stream::Syscalls, 7, 1_517)]
    );
    collector.stop().await.unwrap();
}
