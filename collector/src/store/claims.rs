//! Which collector has which agent, as the store remembers it: the table `agent_claims`. What that is good for, and in
//! which order it is asked, is in [`crate::claims`].

use std::time::Duration;

use super::{
    Access, Query, Store, StoreError, answer_to,
    layout::Layout,
    statement::{self, text_bytes, text_value, texts_value},
};

/// The table. In a cluster every server has all of it.
const TABLE: &str = "agent_claims";

/// In a cluster, what one collector claims is known to the next one, whichever server either asks. A single server
/// has no replicas, and does not mind.
const QUORUM: &str = "insert_quorum = 'auto', insert_quorum_parallel = 0";
const ALL_OF_IT: &str = "select_sequential_consistency = 1";

/// A store that does not answer within this is away. All inserts of a collector wait for these answers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// An agent that was claimed before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub agent_id: String,
    /// The highest claim, and whose it is.
    pub claim: u64,
    pub collector: u64,
    /// Another collector had it last, and did not say that it has ended.
    pub is_contested: bool,
}

/// Claims agents for a collector.
pub async fn claim(store: &dyn Store, agents: &[String], collector: u64) -> Result<(), StoreError> {
    let sql = format!(
        "INSERT INTO {TABLE} (agent_id, claim, collector, is_released) SETTINGS {QUORUM} \
         SELECT agent_id, max(claim) + 1, {{collector:UInt64}}, false FROM \
         (SELECT agent_id, claim FROM {TABLE} WHERE agent_id IN {{agents:Array(String)}} \
         UNION ALL SELECT arrayJoin({{agents:Array(String)}}) AS agent_id, toUInt64(0) AS claim) \
         GROUP BY agent_id SETTINGS {ALL_OF_IT}"
    );
    for agents in in_parts(agents) {
        in_time(store.derive(&sql, params(agents, collector))).await?;
    }
    Ok(())
}

/// Says that nothing of these agents is on its way from a collector any more.
pub async fn release(store: &dyn Store, agents: &[String], collector: u64) -> Result<(), StoreError> {
    let sql = format!(
        "INSERT INTO {TABLE} (agent_id, claim, collector, is_released) SETTINGS {QUORUM} \
         SELECT agent_id, max(claim), {{collector:UInt64}}, true FROM {TABLE} \
         WHERE agent_id IN {{agents:Array(String)}} AND collector = {{collector:UInt64}} \
         GROUP BY agent_id SETTINGS {ALL_OF_IT}"
    );
    for agents in in_parts(agents) {
        in_time(store.derive(&sql, params(agents, collector))).await?;
    }
    Ok(())
}

/// How these agents stand to a collector. Those that nobody ever claimed are not in the answer.
pub async fn standings(
    store: &dyn Store,
    agents: &[String],
    collector: u64,
) -> Result<Vec<Standing>, StoreError> {
    let sql = format!(
        "SELECT max(claim), argMax(collector, (claim, collector)), toUInt8(countIf(collector != {{collector:UInt64}}) > 0 \
         AND NOT argMaxIf(is_released, (claim, collector, is_released), collector != {{collector:UInt64}})), agent_id \
         FROM {TABLE} WHERE agent_id IN {{agents:Array(String)}} GROUP BY agent_id SETTINGS {ALL_OF_IT}"
    );
    let mut standings = Vec::new();
    for agents in in_parts(agents) {
        let question = question(sql.clone(), params(agents, collector));
        for line in in_time(answer_to(store, question)).await?.lines() {
            standings.push(standing(line)?);
        }
    }
    Ok(standings)
}

/// What the clock of the store says, in milliseconds since the Unix epoch.
pub async fn now_ms(store: &dyn Store) -> Result<u64, StoreError> {
    let sql = "SELECT toUnixTimestamp64Milli(now64(3))".to_owned();
    number(in_time(answer_to(store, question(sql, vec![]))).await?.trim())
}

/// How far apart the clocks of the store's servers may be, in milliseconds.
pub fn clocks_differ_ms(store: &dyn Store) -> u64 {
    match store.layout() {
        Layout::OneServer => 0,
        Layout::Cluster { .. } => CLOCKS_DIFFER_MS,
    }
}

/// A cluster's servers agree on the time far better than that, or ClickHouse Keeper has other worries.
pub const CLOCKS_DIFFER_MS: u64 = 1_000;

/// What is asked of a store that hangs fails.
pub(super) async fn in_time<T>(asked: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(StoreError::unavailable(format!(
            "the store does not answer within {} s",
            ANSWER_TIMEOUT.as_secs()
        ))),
    }
}

/// The ids in parts that fit into one statement each.
fn in_parts(agents: &[String]) -> impl Iterator<Item = &[String]> {
    statement::in_parts(agents, |agent| text_bytes(agent))
}

fn question(sql: String, params: Vec<(String, String)>) -> Query {
    Query {
        sql,
        params,
        // Ids have no control characters, so nothing needs an escape.
        format: "TSVRaw".into(),
        access: Access::Internal,
    }
}

fn params(agents: &[String], collector: u64) -> Vec<(String, String)> {
    vec![
        ("agents".into(), texts_value(agents)),
        ("collector".into(), text_value(&collector.to_string())),
    ]
}

fn standing(line: &str) -> Result<Standing, StoreError> {
    let mut fields = line.splitn(4, '\t');
    let mut next = || {
        fields
            .next()
            .ok_or_else(|| StoreError::rejected(format!("the store's answer {line:?} has too few fields")))
    };
    Ok(Standing {
        claim: number(next()?)?,
        collector: number(next()?)?,
        is_contested: next()? == "1",
        agent_id: next()?.to_owned(),
    })
}

fn number(text: &str) -> Result<u64, StoreError> {
    text.parse()
        .map_err(|_| StoreError::rejected(format!("{text:?} is no number")))
}
