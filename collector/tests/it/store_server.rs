//! The server store, where it is alone: credentials, servers that are not there or are none.

use holdfast_collector::store::{
    Block, Store, StoreError,
    claims::{self, Standing},
    migrations,
    native::{BlockBuilder, Column, Kind, Table, names},
    questions, schema,
    server::Server,
};
use holdfast_proto::v1::Stream;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::clickhouse_http::{PASSWORD, USER};
use crate::store_engine::{self, ask};
use crate::store_rows;

#[tokio::test(flavor = "multi_thread")]
async fn a_password_can_be_kept_out_of_the_url() {
    let address = store_engine::server().await;
    let server = Server::new(&format!("http://{USER}@{address}/credentials"), Some(PASSWORD)).unwrap();
    server.prepare().await.unwrap();
    match Server::new(&format!("http://{USER}:wrong@{address}/"), None)
        .unwrap()
        .prepare()
        .await
    {
        Err(StoreError::Unavailable { message }) => {
            assert!(message.contains("Authentication failed"), "{message}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_tls_is_one_that_a_trusted_authority_vouches_for() {
    let (port, authority) = store_engine::secure_server().await;
    let url = |host: &str| format!("https://{USER}@{host}:{port}/with_tls");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.pem");
    std::fs::write(&path, authority).unwrap();

    let stranger = Server::new(&url("localhost"), Some(PASSWORD)).unwrap();
    let error = stranger.prepare().await.unwrap_err().to_string();
    assert!(
        error.contains("--store-ca") && !error.contains(PASSWORD),
        "{error}"
    );
    let misnamed = Server::trusting(&url("127.0.0.1"), Some(PASSWORD), Some(&path)).unwrap();
    let error = misnamed.prepare().await.unwrap_err().to_string();
    assert!(error.contains("certificate not valid for name"), "{error}");

    let server = Server::trusting(&url("localhost"), Some(PASSWORD), Some(&path)).unwrap();
    server.prepare().await.unwrap();
    migrations::apply(&server, 1).await.unwrap();
    assert_eq!(ask(&server, "SELECT currentDatabase()").await, "with_tls\n");
}

const NUMBERS: [Column; 1] = [Column {
    name: "n",
    kind: Kind::UInt32,
}];
static SLOW: Table = Table {
    name: "slow",
    columns: &NUMBERS,
    column_names: &names(&NUMBERS),
};

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_waits_for_what_another_one_is_inserting_still() {
    let address = store_engine::server().await;
    let url = format!("http://{USER}@{address}/fenced");
    let connect = || Server::new(&url, Some(PASSWORD)).unwrap();
    let (former, next) = (connect(), connect());
    former.prepare().await.unwrap();
    // A second for five rows.
    former
        .execute(
            "CREATE TABLE slow (n UInt32, slept UInt8 MATERIALIZED sleepEachRow(0.2)) ENGINE = MergeTree ORDER BY n",
        )
        .await
        .unwrap();
    let mut block = BlockBuilder::new(&SLOW, 5).unwrap();
    block.u32s("n", &[1, 2, 3, 4, 5]).unwrap();
    let block = block.finish().unwrap();
    let count = "SELECT count() FROM slow";
    next.fence().await.unwrap();
    assert_eq!(ask(&next, count).await, "0\n");
    let inserting = tokio::spawn(async move {
        former.insert("slow", "t1", block).await.unwrap();
    });
    while ask(
        &next,
        "SELECT count() FROM system.processes WHERE query_kind = 'Insert'",
    )
    .await
        == "0\n"
    {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    next.fence().await.unwrap();
    assert_eq!(ask(&next, count).await, "5\n");
    inserting.await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_not_there_is_worth_another_try() {
    // Bound and let go of: nobody listens there.
    let address = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let server = Server::new(&format!("http://me:secret@{address}/"), None).unwrap();
    match server.execute("SELECT 1").await {
        Err(StoreError::Unavailable { message }) => {
            assert!(
                message.contains(&address.to_string()) && message.contains("refused"),
                "{message}"
            );
            assert!(!message.contains("secret"), "{message}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_hangs_does_not_hold_up_those_who_ask_who_has_an_agent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::new(&format!("http://{address}/"), None).unwrap();
    let agents = ["a".to_owned()];
    for outcome in [
        claims::now_ms(&server).await.map(drop),
        claims::standings(&server, &agents, 1).await.map(drop),
        claims::claim(&server, &agents, 1).await,
        claims::release(&server, &agents, 1).await,
        server.fence().await,
    ] {
        assert!(
            matches!(outcome, Err(StoreError::Unavailable { .. })),
            "{outcome:?}"
        );
    }
}

#[tokio::test]
async fn something_that_is_no_clickhouse_is_said_to_be_none() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 4096];
        assert!(stream.read(&mut request).await.unwrap() > 0);
        stream
            .write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
            .await
            .unwrap();
    });
    match Server::new(&format!("http://{address}/"), None)
        .unwrap()
        .execute("SELECT 1")
        .await
    {
        Err(StoreError::Rejected { message, .. }) => {
            assert!(
                message.contains("is no ClickHouse server") && message.contains("404"),
                "{message}"
            );
        }
        other => panic!("{other:?}"),
    }
}

/// Takes one request, answers that all is well, and gives the request.
async fn overheard(listener: TcpListener) -> String {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"0\r\n\r\n") {
        let mut part = [0; 4096];
        let bytes = stream.read(&mut part).await.unwrap();
        assert!(bytes > 0, "{}", String::from_utf8_lossy(&request));
        request.extend_from_slice(&part[..bytes]);
    }
    stream
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        .await
        .unwrap();
    String::from_utf8_lossy(&request).into_owned()
}

#[tokio::test]
async fn in_a_cluster_an_insert_is_answered_by_most_replicas_of_each_shard() {
    for (cluster, has_quorum) in [(None, false), (Some("prod"), true)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let request = tokio::spawn(overheard(listener));
        let server = Server::new(&format!("http://{address}/h"), None).unwrap();
        let server = match cluster {
            Some(name) => server.in_cluster(name).unwrap(),
            None => server,
        };
        server
            .insert(
                "connection_records",
                "t",
                store_rows::block(
                    &schema::CONNECTION_RECORDS,
                    &[store_rows::end("a", 1, store_rows::NOON_NS)],
                ),
            )
            .await
            .unwrap();
        let request = request.await.unwrap();
        for setting in [
            "insert_quorum=auto",
            "insert_quorum_parallel=0",
            "distributed_foreground_insert=1",
        ] {
            assert_eq!(request.contains(setting), has_quorum, "{setting} {request}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insert_that_begins_after_its_deadline_is_refused_by_the_server() {
    let address = store_engine::server().await;
    let server = Server::new(&format!("http://{USER}@{address}/leased"), Some(PASSWORD)).unwrap();
    server.prepare().await.unwrap();
    migrations::apply(&server, 1).await.unwrap();
    let now_ms = claims::now_ms(&server).await.unwrap();
    // Every kind of batches: whoever adds one adds the column.
    let streams = (1..64).filter_map(|number| Stream::try_from(number).ok());
    for table in streams.map(|stream| questions::table_of(stream).unwrap()) {
        let columns = format!(
            "SELECT count() FROM system.columns WHERE database = 'leased' AND table = '{table}' AND name = 'lease'"
        );
        assert_eq!(ask(&server, &columns).await, "1\n", "{table}");
    }
    let row = store_rows::end("a", 1, now_ms.cast_signed() * 1_000_000);
    let block = store_rows::block(&schema::CONNECTION_RECORDS, &[row]);
    for (token, deadline_ms, is_in_time) in [
        ("late", Some(now_ms), false),
        ("soon", Some(now_ms + 3_600_000), true),
        ("any", None, true),
    ] {
        let block = Block {
            deadline_ms,
            ..block.clone()
        };
        match server.insert("connection_records", token, block).await {
            Ok(()) => assert!(is_in_time, "{deadline_ms:?}"),
            Err(StoreError::LeaseEnded) => assert!(!is_in_time, "{deadline_ms:?}"),
            other => panic!("{deadline_ms:?}: {other:?}"),
        }
    }
    assert_eq!(
        ask(&server, "SELECT count(), max(lease) FROM connection_records").await,
        "2\t0\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_collector_that_claimed_an_agent_last_has_it() {
    let address = store_engine::server().await;
    let server = Server::new(&format!("http://{USER}@{address}/claimed"), Some(PASSWORD)).unwrap();
    server.prepare().await.unwrap();
    migrations::apply(&server, 1).await.unwrap();
    let agents = |ids: &[&str]| -> Vec<String> { ids.iter().map(ToString::to_string).collect() };
    let all = agents(&["a", "b'\\", "c"]);
    let standings = async |collector| {
        let mut standings = claims::standings(&server, &all, collector).await.unwrap();
        standings.sort_by(|one, other| one.agent_id.cmp(&other.agent_id));
        let shown = standings.into_iter().map(|standing| {
            let Standing {
                agent_id,
                claim,
                collector,
                is_contested,
            } = standing;
            (agent_id, claim, collector, is_contested)
        });
        shown.collect::<Vec<_>>()
    };
    assert_eq!(standings(1).await, []);
    claims::claim(&server, &all[..2], 1).await.unwrap();
    let first = |is_contested| {
        vec![
            (all[0].clone(), 1, 1, is_contested),
            (all[1].clone(), 1, 1, is_contested),
        ]
    };
    assert_eq!(standings(1).await, first(false));
    assert_eq!(standings(2).await, first(true));
    claims::claim(&server, &all[1..], u64::MAX).await.unwrap();
    let rest = |contested: [bool; 3]| {
        vec![
            (all[0].clone(), 1, 1, contested[0]),
            (all[1].clone(), 2, u64::MAX, contested[1]),
            (all[2].clone(), 1, u64::MAX, contested[2]),
        ]
    };
    assert_eq!(standings(1).await, rest([false, true, true]));
    assert_eq!(standings(u64::MAX).await, rest([true, true, false]));
    // What was taken over cannot be handed on, the rest can.
    claims::release(&server, &all, 1).await.unwrap();
    assert_eq!(standings(u64::MAX).await, rest([false, false, false]));
    assert_eq!(standings(1).await, rest([false, true, true]));
    claims::claim(&server, &all[..1], 1).await.unwrap();
    assert_eq!(standings(2).await[0], (all[0].clone(), 2, 1, true));
}
