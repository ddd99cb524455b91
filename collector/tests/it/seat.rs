//! Two collectors on one store: one of them judges, and when it is gone the other one does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_collector::seat::{Occupant, Seat};
use holdfast_collector::store::server::Server;
use holdfast_collector::store::{Store, StoreError, migrations};

use crate::clickhouse_http::{PASSWORD, USER};
use crate::store_engine;
use crate::synthetic::now_ns;

/// Far longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A database on a server, as each of several collectors sees it.
async fn stores<const N: usize>(name: &str) -> [Arc<dyn Store>; N] {
    let address = store_engine::server().await;
    let url = format!("http://{USER}@{address}/{name}_{}", address.port());
    let first = Server::new(&url, Some(PASSWORD)).unwrap();
    first.prepare().await.unwrap();
    migrations::apply(&first, now_ns()).await.unwrap();
    std::array::from_fn(|_| Arc::new(Server::new(&url, Some(PASSWORD)).unwrap()) as Arc<dyn Store>)
}

async fn takes(seat: &Seat) {
    let started = Instant::now();
    while !seat.look(7).await.unwrap() {
        assert!(started.elapsed() < PATIENCE, "it never took the seat");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Nobody judges any more, and who did is known by its host.
async fn is_left(seat: &Seat) {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let occupant = seat.occupant().await.unwrap();
    let Occupant::Nobody(Some((former, silent))) = occupant else {
        panic!("{occupant:?}");
    };
    assert_eq!(former, host.trim());
    assert!(silent < PATIENCE, "{silent:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_collector_judges_and_the_next_one_when_it_is_silent() {
    let [first, second] = stores("seat").await;
    // For a day it is waited for who is silent: nobody takes over.
    let day = Duration::from_secs(86_400);
    let judging = Seat::new(first, day);
    assert_eq!(judging.occupant().await.unwrap(), Occupant::Nobody(None));
    takes(&judging).await;
    assert!(judging.deadline_ms().await.unwrap().is_some());
    let waiting = Seat::new(second.clone(), day);
    assert!(!waiting.look(7).await.unwrap());
    for seat in [&judging, &waiting] {
        assert_eq!(seat.occupant().await.unwrap(), Occupant::Somebody);
    }
    assert!(matches!(waiting.deadline_ms().await, Err(StoreError::LeaseEnded)));
    drop(waiting);

    // It is silent for too long by the reckoning of another one, which takes over; what it would write now is refused.
    let next = Seat::new(second, Duration::ZERO);
    is_left(&next).await;
    takes(&next).await;
    assert_eq!(next.occupant().await.unwrap(), Occupant::Somebody);
    assert!(next.deadline_ms().await.unwrap().is_some());
    judging.read_the_clock_again();
    assert!(matches!(judging.deadline_ms().await, Err(StoreError::LeaseEnded)));
    assert!(!judging.look(7).await.unwrap());

    // Whoever leaves in peace is followed, however long one would wait otherwise.
    assert_eq!(judging.occupant().await.unwrap(), Occupant::Somebody);
    next.leave().await;
    is_left(&judging).await;
    takes(&judging).await;
}
