//! How a database comes to have the tables of [`super::schema`], and the views of them: numbered steps, forward only. A
//! database remembers those it has taken; each statement of a step can run again, so a crash in the middle of one is harmless.

use super::{
    Store, StoreError, answer,
    layout::{Layout, NO_STATISTICS},
    native::{BlockBuilder, BlockError, Column, Kind, Table, names},
};

/// A step. Never changed once it was released: the next change is the next step.
struct Migration {
    version: u32,
    name: &'static str,
    sql: &'static str,
}

const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        name: "connections",
        sql: include_str!("migrations/0001_connections.sql"),
    },
    Migration {
        version: 2,
        name: "syscalls",
        sql: include_str!("migrations/0002_syscalls.sql"),
    },
    Migration {
        version: 3,
        name: "agents",
        sql: include_str!("migrations/0003_agents.sql"),
    },
    Migration {
        version: 4,
        name: "minutes",
        sql: include_str!("migrations/0004_minutes.sql"),
    },
    Migration {
        version: 5,
        name: "open",
        sql: include_str!("migrations/0005_open.sql"),
    },
    Migration {
        version: 6,
        name: "refusals",
        sql: include_str!("migrations/0006_refusals.sql"),
    },
    Migration {
        version: 7,
        name: "claims",
        sql: include_str!("migrations/0007_claims.sql"),
    },
    Migration {
        version: 8,
        name: "network",
        sql: include_str!("migrations/0008_network.sql"),
    },
    Migration {
        version: 9,
        name: "probes",
        sql: include_str!("migrations/0009_probes.sql"),
    },
    Migration {
        version: 10,
        name: "cgroups",
        sql: include_str!("migrations/0010_cgroups.sql"),
    },
    Migration {
        version: 11,
        name: "verdicts",
        sql: include_str!("migrations/0011_verdicts.sql"),
    },
    Migration {
        version: 12,
        name: "runs",
        sql: include_str!("migrations/0012_runs.sql"),
    },
    Migration {
        version: 13,
        name: "causes",
        sql: include_str!("migrations/0013_causes.sql"),
    },
    Migration {
        version: 14,
        name: "transitions",
        sql: include_str!("migrations/0014_transitions.sql"),
    },
    Migration {
        version: 15,
        name: "queues",
        sql: include_str!("migrations/0015_queues.sql"),
    },
    Migration {
        version: 16,
        name: "ledger",
        sql: include_str!("migrations/0016_ledger.sql"),
    },
    Migration {
        version: 17,
        name: "notifications",
        sql: include_str!("migrations/0017_notifications.sql"),
    },
    Migration {
        version: 18,
        name: "silences",
        sql: include_str!("migrations/0018_silences.sql"),
    },
    Migration {
        version: 19,
        name: "balance",
        sql: "", // Views only.
    },
    Migration {
        version: 20,
        name: "resets",
        sql: include_str!("migrations/0020_resets.sql"),
    },
    Migration {
        version: 21,
        name: "told",
        sql: include_str!("migrations/0021_told.sql"),
    },
    Migration {
        version: 22,
        name: "judges",
        sql: include_str!("migrations/0022_judges.sql"),
    },
    Migration {
        version: 23,
        name: "latest",
        sql: include_str!("migrations/0023_latest.sql"),
    },
    Migration {
        version: 24,
        name: "received",
        sql: include_str!("migrations/0024_received.sql"),
    },
    Migration {
        version: 25,
        name: "dissolved",
        sql: include_str!("migrations/0025_dissolved.sql"),
    },
    Migration {
        version: 26,
        name: "over",
        sql: "", // Views only.
    },
    Migration {
        version: 27,
        name: "transitions_of_shards",
        sql: "", // Views only.
    },
    Migration {
        version: 28,
        name: "handshakes",
        sql: include_str!("migrations/0028_handshakes.sql"),
    },
    Migration {
        version: 29,
        name: "loss",
        sql: include_str!("migrations/0029_loss.sql"),
    },
    Migration {
        version: 30,
        name: "pairs",
        sql: include_str!("migrations/0030_pairs.sql"),
    },
];

/// What people see of the tables. All are made anew with the newest step, so each stands in one place, as it is now; a change of
/// one is a step, if an empty one.
const VIEWS: &[&str] = &[
    include_str!("views/attempts.sql"),
    include_str!("views/attempt_causes.sql"),
    include_str!("views/attempts_1m.sql"),
    include_str!("views/cgroups.sql"),
    include_str!("views/connection_workloads.sql"),
    include_str!("views/connections.sql"),
    include_str!("views/connections_1m.sql"),
    include_str!("views/gaps.sql"),
    include_str!("views/judges.sql"),
    include_str!("views/latency_1m.sql"),
    include_str!("views/ledger.sql"),
    include_str!("views/listeners.sql"),
    include_str!("views/namespaces.sql"),
    include_str!("views/nodes.sql"),
    include_str!("views/notifications.sql"),
    include_str!("views/open_connections.sql"),
    include_str!("views/overhead.sql"),
    include_str!("views/peers.sql"),
    include_str!("views/run_results.sql"),
    include_str!("views/runs.sql"),
    include_str!("views/silences.sql"),
    include_str!("views/syscalls.sql"),
    include_str!("views/transitions.sql"),
    include_str!("views/verdict_changes.sql"),
    include_str!("views/verdicts.sql"),
];

/// The newest step that this binary knows.
pub const NEWEST: u32 = MIGRATIONS[MIGRATIONS.len() - 1].version;

const COLUMNS: [Column; 3] = [
    Column {
        name: "version",
        kind: Kind::UInt32,
    },
    Column {
        name: "name",
        kind: Kind::String,
    },
    Column {
        name: "applied_at",
        kind: Kind::DateTime64,
    },
];
static SCHEMA_MIGRATIONS: Table = Table {
    name: "schema_migrations",
    columns: &COLUMNS,
    column_names: &names(&COLUMNS),
};

const CREATE_SCHEMA_MIGRATIONS: &str = "
    CREATE TABLE IF NOT EXISTS schema_migrations{everywhere}
    (
        version UInt32 COMMENT 'The number of the step',
        name String COMMENT 'What it brought',
        applied_at DateTime64(9, 'UTC') COMMENT 'When it was taken, UTC'
    )
    ENGINE = {MergeTree everywhere}
    ORDER BY version
    SETTINGS {durable}
    COMMENT 'The steps of the schema that this database has taken'";

/// Why a database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    #[error("the database has schema {found}, this collector knows {NEWEST} at most: upgrade the collector")]
    Newer { found: u32 },
    #[error("migration {version} ({name}) failed, what it did so far is harmless and it can be tried again")]
    Failed {
        version: u32,
        name: &'static str,
        source: StoreError,
    },
    #[error("the schema of the database cannot be read")]
    Unreadable { source: StoreError },
    #[error(transparent)]
    Block(#[from] BlockError),
}

impl MigrationError {
    /// Whether the store was only away, so that the same again may succeed.
    pub fn is_worth_another_try(&self) -> bool {
        matches!(
            self,
            Self::Failed {
                source: StoreError::Unavailable { .. } | StoreError::Full { .. },
                ..
            } | Self::Unreadable {
                source: StoreError::Unavailable { .. } | StoreError::Full { .. }
            }
        )
    }
}

/// Takes the steps that the database has not taken yet. `now_ns`: nanoseconds since the Unix epoch.
pub async fn apply(store: &dyn Store, now_ns: i64) -> Result<(), MigrationError> {
    let unreadable = |source| MigrationError::Unreadable { source };
    const KNOWN: &str = "SELECT count() FROM system.merge_tree_settings WHERE name = 'auto_statistics_types'";
    let has_statistics = answer(store, KNOWN).await.map_err(unreadable)?.trim() != "0";
    let layout = store.layout();
    let statements = |template| {
        let statements = layout.statements(template).into_iter();
        statements.map(move |statement| {
            if has_statistics {
                statement
            } else {
                statement.replace(NO_STATISTICS, "")
            }
        })
    };
    for statement in statements(CREATE_SCHEMA_MIGRATIONS) {
        store.execute(&statement).await.map_err(unreadable)?;
    }
    let found = answer(store, "SELECT max(version) FROM schema_migrations")
        .await
        .map_err(unreadable)?;
    let found = found.trim().parse().map_err(|_| {
        unreadable(StoreError::rejected(format!(
            "{:?} is not the number of a schema",
            found.trim()
        )))
    })?;
    if found > NEWEST {
        return Err(MigrationError::Newer { found });
    }
    for migration in MIGRATIONS.iter().filter(|migration| migration.version > found) {
        let (version, name) = (migration.version, migration.name);
        let failed = |source| MigrationError::Failed {
            version,
            name,
            source,
        };
        let views = if version == NEWEST { VIEWS } else { &[] };
        for statement in [migration.sql].iter().chain(views).copied().flat_map(statements) {
            store.execute(&statement).await.map_err(failed)?;
        }
        let mut block = BlockBuilder::new(&SCHEMA_MIGRATIONS, 1)?;
        block.u32s("version", &[version])?;
        block.strings("name", &[name])?;
        block.datetimes("applied_at", &[now_ns])?;
        let token = format!("schema-migration-{version}");
        store
            .insert(SCHEMA_MIGRATIONS.name, &token, block.finish()?)
            .await
            .map_err(failed)?;
        tracing::info!(version, name, "took a step of the schema");
    }
    Ok(())
}

/// Every statement that makes the newest schema in an empty database.
pub fn all_statements(layout: &Layout) -> Vec<String> {
    let steps = MIGRATIONS.iter().map(|migration| migration.sql);
    [CREATE_SCHEMA_MIGRATIONS]
        .into_iter()
        .chain(steps)
        .chain(VIEWS.iter().copied())
        .flat_map(|template| layout.statements(template))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_numbered_without_holes() {
        for (index, migration) in MIGRATIONS.iter().enumerate() {
            assert_eq!(migration.version as usize, index + 1, "{}", migration.name);
        }
    }

    #[test]
    fn every_statement_can_run_again() {
        for layout in [
            Layout::OneServer,
            Layout::cluster("c", "holdfast").expect("a name"),
        ] {
            for statement in all_statements(&layout) {
                let text: Vec<_> = statement.lines().filter(|line| !line.starts_with("--")).collect();
                let text = text.join("\n");
                let again = [
                    "CREATE TABLE IF NOT EXISTS ",
                    "CREATE OR REPLACE VIEW ",
                    "ALTER TABLE ",
                ];
                assert!(
                    again.iter().any(|start| text.trim_start().starts_with(start)),
                    "{text}"
                );
                assert_eq!(
                    text.matches("ADD COLUMN").count(),
                    text.matches("ADD COLUMN IF NOT EXISTS").count(),
                    "{text}"
                );
            }
        }
    }
}
