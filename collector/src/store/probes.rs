//! What is wanted of probes, and what they do, as the store remembers it: the tables `probe_settings` and
//! `probe_reports`. What that is good for is in [`crate::control`].

use std::collections::BTreeMap;

use super::{
    Access, Query, Store, StoreError, answer_to,
    native::{BlockBuilder, BlockError, Column, Kind, Table, names},
    schema::PROBE_REPORTS,
};

const COLUMNS: [Column; 6] = [
    Column {
        name: "revision",
        kind: Kind::UInt64,
    },
    Column {
        name: "set_at",
        kind: Kind::DateTime64,
    },
    Column {
        name: "nodes",
        kind: Kind::ArrayString,
    },
    Column {
        name: "labels",
        kind: Kind::StringMap,
    },
    Column {
        name: "key",
        kind: Kind::LowCardinality,
    },
    Column {
        name: "value",
        kind: Kind::String,
    },
];

/// On every server as a whole, and never removed.
static PROBE_SETTINGS: Table = Table {
    name: "probe_settings",
    columns: &COLUMNS,
    column_names: &names(&COLUMNS),
};

/// Something that was wanted: one setting, for some nodes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
pub struct Wanted {
    pub revision: u64,
    /// Names; none: any.
    pub nodes: Vec<String>,
    /// All of them.
    pub labels: BTreeMap<String, String>,
    pub key: String,
    pub value: String,
}

/// What an agent said of its probes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub node: String,
    pub agent_id: String,
    pub agent_epoch: u64,
    pub reported_at_ns: i64,
    pub revision: u64,
    pub applied: Vec<(String, String)>,
    pub refused: Vec<(String, String)>,
}

/// A node as the store knows it, with the latest report of its agent.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
pub struct Node {
    pub node: String,
    pub up: bool,
    pub labels: BTreeMap<String, String>,
    /// Zero if there is no report.
    pub revision: u64,
    pub applied: BTreeMap<String, String>,
    pub refused: BTreeMap<String, String>,
}

/// Everything that holds, in order of revision: what was replaced is left out.
pub async fn wanted(store: &dyn Store) -> Result<Vec<Wanted>, StoreError> {
    let sql = "SELECT revision, nodes, labels, key, value FROM \
               (SELECT * FROM probe_settings ORDER BY revision DESC LIMIT 1 BY nodes, toString(labels), key) \
               ORDER BY revision, key";
    rows(store, sql).await
}

/// The nodes, by name.
pub async fn nodes(store: &dyn Store) -> Result<Vec<Node>, StoreError> {
    let sql = "SELECT node, up, labels, report.revision AS revision, report.applied AS applied, \
               report.refused AS refused FROM nodes LEFT JOIN \
               (SELECT agent_id, agent_epoch, revision, applied, refused FROM probe_reports \
               ORDER BY reported_at DESC, revision DESC LIMIT 1 BY agent_id, agent_epoch) AS report \
               USING (agent_id, agent_epoch) ORDER BY node";
    rows(store, sql).await
}

async fn rows<T: serde::de::DeserializeOwned>(store: &dyn Store, sql: &str) -> Result<Vec<T>, StoreError> {
    let query = Query {
        sql: sql.into(),
        params: vec![],
        format: "JSONEachRow".into(),
        access: Access::Internal,
    };
    let answer = answer_to(store, query).await?;
    let row = |line| {
        serde_json::from_str(line)
            .map_err(|error| StoreError::rejected(format!("the store's answer {line:?}: {error}")))
    };
    answer.lines().map(row).collect()
}

/// Keeps what is wanted from now on; all of it has one revision and is for the same nodes.
pub async fn want(store: &dyn Store, wanted: &[Wanted], now_ns: i64) -> Result<(), StoreError> {
    let block = settings_block(wanted, now_ns).map_err(|error| unbuilt(&error))?;
    let token = format!(
        "probe-settings-{}",
        wanted.first().map_or(0, |wanted| wanted.revision)
    );
    store.insert(PROBE_SETTINGS.name, &token, block).await
}

/// Keeps what agents said.
pub async fn reported(store: &dyn Store, reports: &[Report]) -> Result<(), StoreError> {
    let block = reports_block(reports).map_err(|error| unbuilt(&error))?;
    let first = reports
        .first()
        .map(|report| (report.agent_epoch, report.reported_at_ns));
    let (epoch, reported_at_ns) = first.unwrap_or_default();
    let token = format!("probe-reports-{epoch}-{reported_at_ns}-{}", reports.len());
    store.insert(PROBE_REPORTS.name, &token, block).await
}

fn settings_block(wanted: &[Wanted], now_ns: i64) -> Result<super::Block, BlockError> {
    let texts = |text: fn(&Wanted) -> &str| wanted.iter().map(text).collect::<Vec<_>>();
    let mut block = BlockBuilder::new(&PROBE_SETTINGS, wanted.len())?;
    let revisions: Vec<_> = wanted.iter().map(|wanted| wanted.revision).collect();
    block.u64s("revision", &revisions)?;
    block.datetimes("set_at", &vec![now_ns; wanted.len()])?;
    let nodes: Vec<_> = wanted.iter().map(|wanted| wanted.nodes.clone()).collect();
    block.string_arrays("nodes", &nodes)?;
    let labels: Vec<Vec<_>> = wanted
        .iter()
        .map(|wanted| wanted.labels.clone().into_iter().collect())
        .collect();
    block.string_maps("labels", &labels)?;
    let keys = texts(|wanted| &wanted.key);
    let places: Vec<u32> = (0..keys.len() as u32).collect();
    block.low_cardinality("key", &keys, &places)?;
    block.strings("value", &texts(|wanted| &wanted.value))?;
    block.finish()
}

fn reports_block(reports: &[Report]) -> Result<super::Block, BlockError> {
    fn column<'a, T>(reports: &'a [Report], value: impl Fn(&'a Report) -> T) -> Vec<T> {
        reports.iter().map(value).collect()
    }
    let mut block = BlockBuilder::new(&PROBE_REPORTS, reports.len())?;
    let places: Vec<u32> = (0..reports.len() as u32).collect();
    block.low_cardinality("node", &column(reports, |report| report.node.as_str()), &places)?;
    block.low_cardinality(
        "agent_id",
        &column(reports, |report| report.agent_id.as_str()),
        &places,
    )?;
    block.u64s("agent_epoch", &column(reports, |report| report.agent_epoch))?;
    block.datetimes("reported_at", &column(reports, |report| report.reported_at_ns))?;
    block.u64s("revision", &column(reports, |report| report.revision))?;
    block.string_maps("applied", &column(reports, |report| report.applied.clone()))?;
    block.string_maps("refused", &column(reports, |report| report.refused.clone()))?;
    block.finish()
}

/// The code that builds a block and the table's declaration disagree: a fault of ours, which a test finds.
fn unbuilt(error: &BlockError) -> StoreError {
    StoreError::rejected(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blocks_are_those_that_their_tables_declare() {
        let wanted = Wanted {
            revision: 7,
            nodes: vec!["web-1".into()],
            labels: [("role".to_owned(), "web".to_owned())].into(),
            key: "syscalls".into(),
            value: "off".into(),
        };
        assert_eq!(settings_block(&[wanted.clone(), wanted], 1).unwrap().rows, 2);
        let report = Report {
            node: "web-1".into(),
            agent_id: "a".into(),
            agent_epoch: 7,
            reported_at_ns: 1,
            revision: 7,
            applied: vec![("syscalls".into(), "off".into())],
            refused: vec![],
        };
        assert_eq!(reports_block(&[report.clone(), report]).unwrap().rows, 2);
    }
}
