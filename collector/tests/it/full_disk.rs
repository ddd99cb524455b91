//! A collector whose store has hardly any disk left: the engine wants room for a whole block before it writes any of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_collector::store::{embedded::Embedded, library, migrations, writes};

use crate::harness::{Collector, limits, number};
use crate::store_embedded::{fill, pass_on_a_disk_of};
use crate::synthetic::{Agent, batch, now_ns};

#[test]
fn a_disk_that_is_nearly_full_takes_smaller_blocks_and_a_full_one_makes_rows_wait() {
    pass_on_a_disk_of("128m", "full_disk::rows_for_a_disk_that_is_nearly_full");
}

/// Rows wait for 10 s before the page says so: far longer than that.
const PATIENCE: Duration = Duration::from_secs(60);

/// Room for an eighth of the rows at once, as they lie in memory.
const FREE_BYTES: u64 = 5 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by the test above, in a process of its own"]
async fn rows_for_a_disk_that_is_nearly_full() {
    let folder = PathBuf::from(std::env::var("HOLDFAST_TEST_FOLDER").unwrap());
    writes::wait_for_space();
    let store = Embedded::open(&folder.join("data"), &library::locate().unwrap(), "test").unwrap();
    migrations::apply(&store, now_ns()).await.unwrap();
    let store = Arc::new(store);
    let mut limits = limits();
    // All of it is one block.
    limits.gather_interval = Duration::from_secs(2);
    let collector = Collector::start_with(store.clone(), limits, true).await;
    let mut agent = Agent::connect(collector.address, "a1").await;

    let filler = folder.join("filler");
    leave_free(&filler, FREE_BYTES);
    for sequence in 1..=64 {
        agent.deliver(batch(sequence, 2_000)).await;
    }
    // The disk has room for each of them, and for all as they are stored.
    let (mut acknowledged, refused) = agent.settled(64).await;
    acknowledged.sort_unstable();
    assert_eq!(acknowledged, (1..=64).collect::<Vec<_>>());
    assert!(refused.is_empty(), "{refused:?}");
    let metrics = collector.page("/metrics").await.1;
    let counted = |name: &str| -> u64 {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.expect(name).trim().parse().unwrap()
    };
    assert!(
        counted("holdfast_blocks_halved_total ") > 0,
        "every block found room: {metrics}"
    );
    // Its parts were stored, and nothing had to wait.
    assert_eq!(counted("holdfast_store_unavailable_total "), 0);

    // No room for anything.
    leave_free(&filler, 256 << 10);
    for sequence in 65..=72 {
        agent.deliver(batch(sequence, 2_000)).await;
    }
    let why = async {
        loop {
            let (status, page) = collector.page("/healthz").await;
            if status == 503 && page.contains("full") {
                break page;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let why = tokio::time::timeout(PATIENCE, why)
        .await
        .expect("/healthz does not say that the disk is full");
    assert!(why.contains("the disk of the store is full"), "{why}");
    std::fs::remove_file(&filler).unwrap();
    let (mut acknowledged, refused) = agent.settled(8).await;
    acknowledged.sort_unstable();
    assert_eq!((acknowledged, refused), ((65..=72).collect::<Vec<_>>(), vec![]));
    collector.stop().await.unwrap();
    assert_eq!(
        number(&store, "SELECT count() FROM connections").await,
        72 * 2_000
    );
    assert_eq!(
        number(&store, "SELECT uniqExact(sequence, cookie) FROM connections").await,
        72 * 2_000
    );
    std::mem::forget(store);
}

/// Fills the disk but for so much.
fn leave_free(filler: &Path, bytes: u64) {
    fill(filler);
    let file = std::fs::File::options().write(true).open(filler).unwrap();
    file.set_len(file.metadata().unwrap().len() - bytes).unwrap();
}
