//! Silences as the store remembers them: the table `silence_records`. What they are good for is in [`crate::silence`].

use std::collections::BTreeMap;

use super::{
    Access, Query, Store, StoreError,
    native::{BlockBuilder, BlockError, Column, Kind, Table, names},
    questions::time_value,
    rollups::lines,
    statement::texts_value,
};
use crate::silence::Silence;

const STATE: &[(&str, i8)] = &[("begun", BEGUN), ("ended", ENDED)];
const BEGUN: i8 = 1;
const ENDED: i8 = 2;

const COLUMNS: [Column; 10] = [
    Column {
        name: "silence",
        kind: Kind::String,
    },
    Column {
        name: "state",
        kind: Kind::Enum8(STATE),
    },
    Column {
        name: "at",
        kind: Kind::DateTime64,
    },
    Column {
        name: "until",
        kind: Kind::DateTime64,
    },
    Column {
        name: "assertion",
        kind: Kind::String,
    },
    Column {
        name: "is_objective",
        kind: Kind::Bool,
    },
    Column {
        name: "keys",
        kind: Kind::ArrayString,
    },
    Column {
        name: "labels",
        kind: Kind::StringMap,
    },
    Column {
        name: "said_by",
        kind: Kind::String,
    },
    Column {
        name: "because",
        kind: Kind::String,
    },
];

/// On every server as a whole, and never removed.
static SILENCE_RECORDS: Table = Table {
    name: "silence_records",
    columns: &COLUMNS,
    column_names: &names(&COLUMNS),
};

/// Who says so, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub by: String,
    pub because: String,
}

/// Those that were not over at `since_ns`.
pub async fn since(store: &dyn Store, since_ns: i64) -> Result<Vec<Silence>, StoreError> {
    let sql = format!("{SILENCES} WHERE until > {{since:DateTime64(9, 'UTC')}}");
    let params = vec![("since".to_owned(), time_value(since_ns))];
    read(store, sql, params).await
}

/// Those that are not over at `now_ns`, and of each that was for the same, and was not over at `since_ns`, the last one.
pub async fn standing(store: &dyn Store, since_ns: i64, now_ns: i64) -> Result<Vec<Silence>, StoreError> {
    let sql = format!(
        "{SILENCES} WHERE until > {{since:DateTime64(9, 'UTC')}} ORDER BY until DESC, silence \
         LIMIT 1 BY assertion, is_objective, keys, toString(labels), if(until > {{now:DateTime64(9, 'UTC')}}, silence, '')"
    );
    let params = vec![
        ("since".to_owned(), time_value(since_ns)),
        ("now".to_owned(), time_value(now_ns)),
    ];
    read(store, sql, params).await
}

const SILENCES: &str = "SELECT silence, assertion, is_objective, keys, labels, \
     toString(toUnixTimestamp64Nano(begun_at)) AS begun_ns, toString(toUnixTimestamp64Nano(until)) AS until_ns \
     FROM silences";

/// The oldest first.
async fn read(
    store: &dyn Store,
    sql: String,
    params: Vec<(String, String)>,
) -> Result<Vec<Silence>, StoreError> {
    #[derive(serde::Deserialize)]
    struct Found {
        silence: String,
        assertion: String,
        is_objective: bool,
        keys: Vec<String>,
        labels: BTreeMap<String, String>,
        begun_ns: String,
        until_ns: String,
    }
    let found: Vec<Found> = lines(store, sql, params).await?;
    let silences = found.into_iter().map(|found| Silence {
        begun_ns: found.begun_ns.parse().unwrap_or_default(),
        until_ns: found.until_ns.parse().unwrap_or_default(),
        id: found.silence,
        assertion: found.assertion,
        is_objective: found.is_objective,
        keys: found.keys,
        labels: found.labels,
    });
    let mut silences: Vec<_> = silences.collect();
    silences.sort_by(|one, other| (one.begun_ns, &one.id).cmp(&(other.begun_ns, &other.id)));
    Ok(silences)
}

/// Keeps a silence.
pub async fn declare(store: &dyn Store, silence: &Silence, said: &Said) -> Result<(), StoreError> {
    let token = format!("silence-{}-begun", silence.id);
    let row = (BEGUN, silence.begun_ns, silence.until_ns);
    write(store, &token, row, std::slice::from_ref(silence), said).await
}

/// Keeps that silences were ended.
pub async fn end(
    store: &dyn Store,
    silences: &[Silence],
    said: &Said,
    now_ns: i64,
) -> Result<(), StoreError> {
    let first = silences.first().map_or("", |silence| silence.id.as_str());
    let token = format!("silence-{first}-{}-ended-{now_ns}", silences.len());
    write(store, &token, (ENDED, now_ns, 0), silences, said).await
}

async fn write(
    store: &dyn Store,
    token: &str,
    row: (i8, i64, i64),
    silences: &[Silence],
    said: &Said,
) -> Result<(), StoreError> {
    let block = block(row, silences, said).map_err(|error| StoreError::rejected(error.to_string()))?;
    store.insert(SILENCE_RECORDS.name, token, block).await
}

fn block(
    (state, at_ns, until_ns): (i8, i64, i64),
    silences: &[Silence],
    said: &Said,
) -> Result<super::Block, BlockError> {
    let rows = silences.len();
    let texts = |text: fn(&Silence) -> &str| silences.iter().map(text).collect::<Vec<_>>();
    let mut block = BlockBuilder::new(&SILENCE_RECORDS, rows)?;
    block.strings("silence", &texts(|silence| &silence.id))?;
    block.enums("state", &vec![state; rows])?;
    block.datetimes("at", &vec![at_ns; rows])?;
    block.datetimes("until", &vec![until_ns; rows])?;
    block.strings("assertion", &texts(|silence| &silence.assertion))?;
    let objectives: Vec<_> = silences.iter().map(|silence| silence.is_objective).collect();
    block.bools("is_objective", &objectives)?;
    let keys: Vec<_> = silences.iter().map(|silence| silence.keys.clone()).collect();
    block.string_arrays("keys", &keys)?;
    let labels: Vec<Vec<_>> = silences
        .iter()
        .map(|silence| silence.labels.clone().into_iter().collect())
        .collect();
    block.string_maps("labels", &labels)?;
    block.strings("said_by", &vec![said.by.as_str(); rows])?;
    block.strings("because", &vec![said.because.as_str(); rows])?;
    block.finish()
}

/// Silences of now; or all there ever were. The oldest first.
pub fn shown(is_all: bool) -> Query {
    let which = if is_all { "true" } else { "state = 'active'" };
    question(
        format!("SELECT * FROM silences WHERE {which} ORDER BY begun_at, silence"),
        vec![],
    )
}

/// These silences.
pub fn shown_of(ids: &[String]) -> Query {
    let sql = "SELECT * FROM silences WHERE silence IN {ids:Array(String)} ORDER BY begun_at, silence";
    question(sql.to_owned(), vec![("ids".to_owned(), texts_value(ids))])
}

fn question(sql: String, params: Vec<(String, String)>) -> Query {
    Query {
        sql,
        params,
        format: "JSONEachRow".into(),
        access: Access::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_is_the_one_that_its_table_declares() {
        let silence = Silence {
            id: "1a".into(),
            assertion: "a".into(),
            is_objective: false,
            keys: vec!["from.node=web-1".into()],
            labels: [("team".to_owned(), "db".to_owned())].into(),
            begun_ns: 1,
            until_ns: 2,
        };
        let said = Said {
            by: "ann@work".into(),
            because: "it is repaired".into(),
        };
        assert_eq!(
            block((BEGUN, 1, 2), &[silence.clone(), silence], &said)
                .unwrap()
                .rows,
            2
        );
    }
}
