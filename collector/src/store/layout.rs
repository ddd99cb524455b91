//! Where the tables of a database lie: on one server, or on the shards and replicas of a cluster. The statements of
//! the schema are written once, as templates; this is what makes them statements for the one or the other.
//!
//! In a template, what differs stands in braces:
//!
//! | template | on one server | in a cluster |
//! |---|---|---|
//! | `{rows NAME}` | `NAME` | `NAME_local ON CLUSTER ...`: the rows of one shard |
//! | `{distributed NAME}`, a statement | nothing | the table NAME, which is all shards together |
//! | `{each NAME}` in a statement | `NAME` | the statement twice: for the rows, and for all shards together |
//! | `{everywhere}` | nothing | `ON CLUSTER ...` |
//! | `{MergeTree}` | `MergeTree` | `ReplicatedMergeTree`, replicated within each shard |
//! | `{MergeTree everywhere}` | `MergeTree` | `ReplicatedMergeTree`, replicated to every server of the cluster |
//! | `{ReplacingMergeTree COLUMN}` | `ReplacingMergeTree(COLUMN)` | the same, replicated within each shard |
//! | `{durable}` | settings | settings |
//! | `{lease}` | a column | the same |
//!
//! Rows are sharded by their node, so the rows of a batch are always in one shard: a block is cut into one part for
//! each shard that it has nodes of, a batch never is.

/// Where the tables of a database lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// In one ClickHouse: the embedded store, or a single server.
    OneServer,
    /// On every server of a cluster.
    Cluster {
        /// The name in the servers' `remote_servers`, or a macro of theirs such as `{cluster}`.
        cluster: String,
        /// The database, which is called the same on every server.
        database: String,
    },
}

/// A cluster that cannot be named in a statement.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot be the name of a cluster: use letters, digits, - and _, or a macro such as {{cluster}}"
)]
pub struct ClusterNameError(String);

/// Where in ClickHouse Keeper the replicas of a table meet, and what each is called there: those of one shard, or all.
/// By name, not by the table's UUID, so that a server that joins later finds its table.
const IN_SHARD: &str = "'/clickhouse/tables/{shard}/{database}/{table}', '{replica}'";
const EVERYWHERE: &str = "'/clickhouse/tables/all/{database}/{table}', '{shard}-{replica}'";

/// A row is on disk before its insert is answered. The tokens of the last blocks are remembered.
const DURABLE: &str = "fsync_after_insert = 1, fsync_part_directory = 1, ttl_only_drop_parts = 1";

/// Newer servers count the distinct values of every column, at each insert and each merge, for a planner that chooses the
/// order of joins. Nothing here needs it, and it is a tenth of what a row costs. Older ones do not know the setting.
pub(super) const NO_STATISTICS: &str = ", auto_statistics_types = ''";

/// Says in the `log_comment` of an insert until when it may begin: this and milliseconds since the Unix epoch, by the
/// clock of the server.
pub(super) const LEASE_COMMENT: &str = "holdfast lease until ";

/// What an insert fails with that begins later.
pub(super) const LEASE_ENDED: &str = "the lease of this insert has ended";

/// A column of every table that batches go to. It is computed where an insert begins, after the server lists the insert
/// as running, and that is all that it is for. An insert without such a comment has no lease, and never fails here.
fn lease() -> String {
    let until = format!("toUInt64OrZero(extract(getSetting('log_comment'), '{LEASE_COMMENT}([0-9]+)$'))");
    format!(
        "lease UInt8 MATERIALIZED throwIf({until} != 0 AND toUnixTimestamp64Milli(now64(3)) >= {until}, '{LEASE_ENDED}') \
         COMMENT 'Always 0: an insert that begins when the lease of its collector has ended fails here' CODEC(ZSTD(1))"
    )
}

impl Layout {
    pub fn cluster(cluster: &str, database: &str) -> Result<Self, ClusterNameError> {
        let name = cluster
            .strip_prefix('{')
            .and_then(|rest| rest.strip_suffix('}'))
            .unwrap_or(cluster);
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        if name.is_empty() || !name.bytes().all(is_plain) {
            return Err(ClusterNameError(cluster.to_owned()));
        }
        Ok(Self::Cluster {
            cluster: cluster.to_owned(),
            database: database.to_owned(),
        })
    }

    /// The same servers, another database.
    pub(super) fn in_database(&self, name: &str) -> Self {
        match self {
            Self::OneServer => Self::OneServer,
            Self::Cluster { cluster, .. } => Self::Cluster {
                cluster: cluster.clone(),
                database: name.to_owned(),
            },
        }
    }

    /// The table that holds the rows of `table`: what its retention and its parts belong to.
    pub(super) fn rows_of(&self, table: &str) -> String {
        match self {
            Self::OneServer => table.to_owned(),
            Self::Cluster { .. } => format!("{table}_local"),
        }
    }

    /// What runs now, wherever the tables lie, and the column with the id that the one who asked gave his query: in a
    /// cluster an insert runs on each shard under an id of its own.
    pub(super) fn processes(&self) -> (String, &'static str) {
        match self {
            Self::OneServer => ("system.processes".to_owned(), "query_id"),
            Self::Cluster { cluster, .. } => (
                format!("clusterAllReplicas('{cluster}', system.processes)"),
                "initial_query_id",
            ),
        }
    }

    /// The statements of a template. Each ends with a semicolon at the end of a line.
    pub fn statements(&self, template: &str) -> Vec<String> {
        let statements = template.split(";\n").map(str::trim);
        statements
            .filter(|statement| !statement.is_empty())
            .flat_map(|statement| self.statement(statement))
            .collect()
    }

    /// The statement of a template: none, one or two.
    fn statement(&self, template: &str) -> Vec<String> {
        if let Some(table) = argument(template, "distributed") {
            return self.distributed(table).into_iter().collect();
        }
        match argument(template, "each") {
            Some(table) => {
                let each = format!("{{each {table}}}");
                let mut statements =
                    vec![self.filled(&template.replace(&each, &format!("{{rows {table}}}")))];
                if matches!(self, Self::Cluster { .. }) {
                    statements.push(self.filled(&template.replace(&each, &format!("{table}{{everywhere}}"))));
                }
                statements
            }
            None => vec![self.filled(template)],
        }
    }

    fn filled(&self, template: &str) -> String {
        let mut text = template.to_owned();
        if let Some(table) = argument(template, "rows") {
            let rows = format!("{}{{everywhere}}", self.rows_of(table));
            text = text.replace(&format!("{{rows {table}}}"), &rows);
        }
        if let Some(column) = argument(template, "ReplacingMergeTree") {
            let engine = match self {
                Self::OneServer => format!("ReplacingMergeTree({column})"),
                Self::Cluster { .. } => format!("ReplicatedReplacingMergeTree({IN_SHARD}, {column})"),
            };
            text = text.replace(&format!("{{ReplacingMergeTree {column}}}"), &engine);
        }
        let (everywhere, shard, all, deduplication) = match self {
            Self::OneServer => (
                String::new(),
                "MergeTree".to_owned(),
                "MergeTree".to_owned(),
                "non_replicated_deduplication_window",
            ),
            Self::Cluster { cluster, .. } => (
                format!(" ON CLUSTER '{cluster}'"),
                format!("ReplicatedMergeTree({IN_SHARD})"),
                format!("ReplicatedMergeTree({EVERYWHERE})"),
                "replicated_deduplication_window",
            ),
        };
        text.replace("{everywhere}", &everywhere)
            .replace("{MergeTree}", &shard)
            .replace("{MergeTree everywhere}", &all)
            .replace("{lease}", &lease())
            .replace(
                "{durable}",
                &format!("{DURABLE}, {deduplication} = 1000{NO_STATISTICS}"),
            )
    }

    fn distributed(&self, table: &str) -> Option<String> {
        let Self::Cluster { cluster, database } = self else {
            return None;
        };
        let rows = self.rows_of(table);
        Some(format!(
            "CREATE TABLE IF NOT EXISTS {table} ON CLUSTER '{cluster}' AS {rows}\n\
             ENGINE = Distributed('{cluster}', '{database}', '{rows}', cityHash64(node))\n\
             COMMENT 'The rows of {rows} on all shards'"
        ))
    }
}

/// What stands behind `word` in the first braces that begin with it.
fn argument<'a>(template: &'a str, word: &str) -> Option<&'a str> {
    let (_, rest) = template.split_once(&format!("{{{word} "))?;
    rest.split_once('}').map(|(argument, _)| argument)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATE: &str = "CREATE TABLE {rows a} (x UInt8) ENGINE = {MergeTree} SETTINGS {durable};\n\
                            {distributed a};\nALTER TABLE {each a} DROP COLUMN y;\nCREATE VIEW v{everywhere} AS SELECT 1;\n";

    #[test]
    fn on_one_server_a_template_is_plain() {
        assert_eq!(
            Layout::OneServer.statements(TEMPLATE),
            [
                "CREATE TABLE a (x UInt8) ENGINE = MergeTree SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, \
                 ttl_only_drop_parts = 1, non_replicated_deduplication_window = 1000, auto_statistics_types = ''",
                "ALTER TABLE a DROP COLUMN y",
                "CREATE VIEW v AS SELECT 1",
            ]
        );
    }

    #[test]
    fn in_a_cluster_rows_are_replicated_and_a_table_is_all_shards() {
        let statements = Layout::cluster("{cluster}", "holdfast")
            .unwrap()
            .statements(TEMPLATE);
        assert_eq!(
            statements,
            [
                "CREATE TABLE a_local ON CLUSTER '{cluster}' (x UInt8) ENGINE = \
                 ReplicatedMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}') SETTINGS \
                 fsync_after_insert = 1, fsync_part_directory = 1, ttl_only_drop_parts = 1, \
                 replicated_deduplication_window = 1000, auto_statistics_types = ''",
                "CREATE TABLE IF NOT EXISTS a ON CLUSTER '{cluster}' AS a_local\nENGINE = Distributed('{cluster}', \
                 'holdfast', 'a_local', cityHash64(node))\nCOMMENT 'The rows of a_local on all shards'",
                "ALTER TABLE a_local ON CLUSTER '{cluster}' DROP COLUMN y",
                "ALTER TABLE a ON CLUSTER '{cluster}' DROP COLUMN y",
                "CREATE VIEW v ON CLUSTER '{cluster}' AS SELECT 1",
            ]
        );
    }

    #[test]
    fn a_cluster_is_never_more_than_a_name() {
        for good in ["prod", "prod-1_a", "{cluster}"] {
            assert!(Layout::cluster(good, "d").is_ok(), "{good}");
        }
        for bad in ["", "{}", "a'b", "a b", "{a", "a;b"] {
            assert!(Layout::cluster(bad, "d").is_err(), "{bad}");
        }
    }
}
