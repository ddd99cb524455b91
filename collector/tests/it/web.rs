//! `/metrics` and `/healthz`.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use holdfast_collector::store::{Block, Chunks, Query, Store, StoreError};

use crate::faults::Troubled;
use crate::harness::{Collector, database};
use crate::synthetic::{Agent, batch};

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_what_happened_and_are_well_formed() {
    let collector = Collector::start(database().await).await;
    let mut agent = Agent::connect(collector.address, "a1").await;
    agent.deliver(batch(1, 25)).await;
    agent.settled(1).await;
    let (status, text) = collector.page("/metrics").await;
    assert_eq!(status, 200);
    for line in [
        "holdfast_agents_connected 1",
        "holdfast_batches_received_total 1",
        "holdfast_batches_stored_total 1",
        "holdfast_rows_stored_total{table=\"connection_records\"} 25",
        "holdfast_insert_duration_seconds_count{table=\"connection_records\"} 1",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is not in\n{text}"
        );
    }
    let declared = |keyword: &str| -> HashSet<&str> {
        text.lines()
            .filter_map(|line| line.strip_prefix(keyword)?.split(' ').next())
            .collect()
    };
    let (helped, typed) = (declared("# HELP "), declared("# TYPE "));
    assert!(helped.contains("process_cpu_seconds_total") && helped.contains("holdfast_build_info"));
    assert_eq!(helped, typed);
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let name = series.split('{').next().unwrap();
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix));
        assert!(
            typed.contains(name) || family.is_some_and(|family| typed.contains(family)),
            "{line}"
        );
    }
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_good_while_the_store_answers() {
    let collector = Collector::start(database().await).await;
    while collector.page("/healthz").await.0 != 200 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (_, body) = collector.page("/healthz").await;
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (&body["status"], &body["reasons"]),
        (&"ok".into(), &serde_json::json!([]))
    );
    collector.stop().await.unwrap();
}

/// A store that nobody reaches.
struct Away;

#[async_trait]
impl Store for Away {
    async fn prepare(&self) -> Result<(), StoreError> {
        Err(StoreError::Unavailable {
            message: "no route to host".to_owned(),
        })
    }

    async fn insert(&self, _: &str, _: &str, _: Block) -> Result<(), StoreError> {
        Err(StoreError::Unavailable {
            message: "no route to host".to_owned(),
        })
    }

    async fn query(&self, _: Query) -> Result<Chunks, StoreError> {
        Err(StoreError::Unavailable {
            message: "no route to host".to_owned(),
        })
    }

    async fn execute(&self, _: &str) -> Result<(), StoreError> {
        Err(StoreError::Unavailable {
            message: "no route to host".to_owned(),
        })
    }

    async fn derive(&self, _: &str, _: Vec<(String, String)>) -> Result<(), StoreError> {
        Err(StoreError::Unavailable {
            message: "no route to host".to_owned(),
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_bad_and_says_why_while_the_store_is_away() {
    let collector = Collector::start(Arc::new(Away)).await;
    let mut body = String::new();
    while !body.contains("no route to host") {
        let (status, found) = collector.page("/healthz").await;
        assert_eq!(status, 503);
        body = found;
    }
    assert!(body.contains("the store has not answered yet"), "{body}");
    collector.stop().await.unwrap();
}

/// Longer than it takes until something is said of rows that wait, and than the retry after that.
const PATIENCE: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread")]
async fn health_is_bad_while_a_store_that_answers_takes_no_rows_and_good_once_it_does() {
    // It answers every question and takes no rows.
    let store = Arc::new(Troubled {
        away: AtomicUsize::new(usize::MAX),
        ..Troubled::around((*database().await).clone())
    });
    let collector = Collector::start(store.clone()).await;
    let mut agent = Agent::connect(collector.address, "a1").await;
    agent.deliver(batch(1, 25)).await;
    let until = async |wanted: u16| {
        let body = async {
            loop {
                let (status, body) = collector.page("/healthz").await;
                if status == wanted {
                    return body;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, body).await.expect("it changes")
    };
    until(200).await;
    let body = until(503).await;
    assert!(
        body.contains("rows have waited to be stored for 10 s: ") && body.contains("gone fishing"),
        "{body}"
    );
    // A question is answered in between, which changes nothing.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        assert_eq!(collector.page("/healthz").await.0, 503);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    store.away.store(0, Ordering::SeqCst);
    agent.settled(1).await;
    until(200).await;
    collector.stop().await.unwrap();
}
