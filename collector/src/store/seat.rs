//! Who judges, as the store remembers it: a claim in `agent_claims`, and the table `judge_beats`. What that is good for is in
//! [`crate::seat`].

use std::time::Duration;

use super::{Store, StoreError, claims::in_time, rollups::lines, statement::text_value};

/// Who has the seat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub collector: u64,
    pub is_released: bool,
    /// Empty: it has not said yet.
    pub host: String,
    /// A number made of what it judges.
    pub declares: u32,
    /// Since it was heard of, by the store's clock.
    pub silent: Duration,
}

/// Who claimed it last; `None`: nobody ever did.
pub async fn holder(store: &dyn Store, seat: &str) -> Result<Option<Holder>, StoreError> {
    #[derive(serde::Deserialize)]
    struct Found {
        collector: String,
        is_released: bool,
        host: String,
        declares: u32,
        silent_ms: String,
    }
    // In a cluster every server has all of it, and one that lacks a claim refuses to answer.
    let sql = "SELECT toString(held.collector) AS collector, held.is_released AS is_released, beats.host AS host, \
               beats.declares AS declares, toString(toUnixTimestamp64Milli(now64(3)) - \
               greatest(toUnixTimestamp64Milli(held.claimed_at), toUnixTimestamp64Milli(beats.beat_at))) AS silent_ms FROM \
               (SELECT collector, is_released, claimed_at FROM agent_claims WHERE agent_id = {seat:String} \
               ORDER BY claim DESC, collector DESC, is_released DESC LIMIT 1) AS held LEFT JOIN \
               (SELECT collector, argMax(host, at) AS host, argMax(declares, at) AS declares, max(at) AS beat_at \
               FROM judge_beats GROUP BY collector) AS beats ON beats.collector = held.collector \
               SETTINGS select_sequential_consistency = 1";
    let params = vec![("seat".to_owned(), text_value(seat))];
    let found: Vec<Found> = in_time(lines(store, sql.to_owned(), params)).await?;
    let holder = found.into_iter().next().map(|found| Holder {
        collector: found.collector.parse().unwrap_or_default(),
        is_released: found.is_released,
        host: found.host,
        declares: found.declares,
        // A clock that was set back says less than nothing.
        silent: Duration::from_millis(found.silent_ms.parse().unwrap_or_default()),
    });
    Ok(holder)
}

/// Says that a collector is alive and judges.
pub async fn beat(store: &dyn Store, collector: u64, host: &str, declares: u32) -> Result<(), StoreError> {
    let sql = "INSERT INTO judge_beats (collector, host, declares) \
               SELECT {collector:UInt64}, {host:String}, {declares:UInt32}";
    let params = vec![
        ("collector".to_owned(), collector.to_string()),
        ("host".to_owned(), text_value(host)),
        ("declares".to_owned(), declares.to_string()),
    ];
    in_time(store.derive(sql, params)).await
}
