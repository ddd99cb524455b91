//! Rows of agents, as tests need them.

use holdfast_collector::store::{
    Block, Store,
    native::{BlockBuilder, Kind, Table},
    schema::{AGENT_SAMPLES, CONNECTION_RECORDS, LEDGER_SAMPLES, NODE_SESSIONS},
};

/// 2026-01-01 12:00:00 UTC, in nanoseconds: when the rows of tests are recorded.
pub(crate) const NOON_NS: i64 = 1_767_268_800_000_000_000;
pub(crate) const SECOND_NS: i64 = 1_000_000_000;

/// Values by column; a column that is not named gets its type's plainest value, and an enum its first.
pub(crate) type Row = Vec<(&'static str, Value)>;

#[derive(Clone, Debug)]
pub(crate) enum Value {
    Number(u64),
    Text(String),
    Word(&'static str),
    Ip(&'static str),
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

/// A finished end that agent `agent_id` sent in batch `sequence`.
pub(crate) fn end(agent_id: &str, sequence: u64, recorded_at_ns: i64) -> Row {
    vec![
        ("node", agent_id.into()),
        ("agent_id", agent_id.into()),
        ("agent_epoch", 7.into()),
        ("sequence", sequence.into()),
        ("is_first", 1.into()),
        ("is_final", 1.into()),
        ("recorded_at", recorded_at_ns.cast_unsigned().into()),
    ]
}

/// `row` with other values.
pub(crate) fn with(mut row: Row, values: impl IntoIterator<Item = (&'static str, Value)>) -> Row {
    for (column, value) in values {
        row.retain(|(name, _)| *name != column);
        row.push((column, value));
    }
    row
}

pub(crate) fn block(table: &'static Table, rows: &[Row]) -> Block {
    for (name, _) in rows.iter().flatten() {
        assert!(
            table.column_names.contains(name),
            "{} has no column {name}",
            table.name
        );
    }
    let mut block = BlockBuilder::new(table, rows.len()).unwrap();
    for column in table.columns {
        let values: Vec<Option<&Value>> = rows
            .iter()
            .map(|row| {
                row.iter()
                    .find(|(name, _)| *name == column.name)
                    .map(|(_, value)| value)
            })
            .collect();
        let number = |value: &Option<&Value>| match value {
            Some(Value::Number(number)) => *number,
            None => 0,
            other => panic!("{}: {other:?}", column.name),
        };
        let text = |value: &Option<&Value>| match value {
            Some(Value::Text(text)) => text.clone(),
            None => String::new(),
            other => panic!("{}: {other:?}", column.name),
        };
        let numbers: Box<dyn Iterator<Item = u64>> = Box::new(values.iter().map(number));
        let name = column.name;
        match column.kind {
            Kind::Bool => block.bools(name, &numbers.map(|n| n != 0).collect::<Vec<_>>()),
            Kind::UInt8 => block.u8s(name, &numbers.map(|n| n.try_into().unwrap()).collect::<Vec<_>>()),
            Kind::UInt16 => block.u16s(name, &numbers.map(|n| n.try_into().unwrap()).collect::<Vec<_>>()),
            Kind::UInt32 => block.u32s(name, &numbers.map(|n| n.try_into().unwrap()).collect::<Vec<_>>()),
            Kind::UInt64 => block.u64s(name, &numbers.collect::<Vec<_>>()),
            Kind::NullableUInt32 => block.nullable_u32s(
                name,
                &numbers.map(|n| Some(n.try_into().unwrap())).collect::<Vec<_>>(),
            ),
            Kind::NullableUInt64 => block.nullable_u64s(name, &numbers.map(Some).collect::<Vec<_>>()),
            Kind::Int64 => block.i64s(name, &numbers.map(u64::cast_signed).collect::<Vec<_>>()),
            Kind::Float64 => block.f64s(name, &numbers.map(|n| n as f64).collect::<Vec<_>>()),
            Kind::DateTime64 => block.datetimes(name, &numbers.map(u64::cast_signed).collect::<Vec<_>>()),
            Kind::Enum8(words) => {
                let of = |value: &Option<&Value>| match value {
                    Some(Value::Word(word)) => words.iter().find(|(name, _)| name == word).unwrap().1,
                    None => words[0].1,
                    other => panic!("{name}: {other:?}"),
                };
                block.enums(name, &values.iter().map(of).collect::<Vec<_>>())
            }
            Kind::IPv6 => {
                let of = |value: &Option<&Value>| match value {
                    Some(Value::Ip(ip)) => match ip.parse().unwrap() {
                        std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                        std::net::IpAddr::V6(ip) => ip.octets(),
                    },
                    None => [0; 16],
                    other => panic!("{name}: {other:?}"),
                };
                block.ipv6s(name, &values.iter().map(of).collect::<Vec<_>>())
            }
            Kind::String => block.strings(name, &values.iter().map(text).collect::<Vec<_>>()),
            Kind::LowCardinality => {
                let dictionary: Vec<_> = values.iter().map(text).collect();
                block.low_cardinality(name, &dictionary, &(0..).take(rows.len()).collect::<Vec<_>>())
            }
            Kind::ArrayIPv6 => block.ipv6_arrays(name, &vec![0; rows.len()], &[]),
            Kind::ArrayUInt16 => block.u16_arrays(name, &vec![0; rows.len()], &[]),
            Kind::ArrayUInt32 => block.u32_arrays(name, &vec![0; rows.len()], &[]),
            Kind::ArrayUInt64 => block.u64_arrays(name, &vec![0; rows.len()], &[]),
            Kind::ArrayString => block.string_arrays::<&str>(name, &vec![vec![]; rows.len()]),
            Kind::StringMap => block.string_maps::<&str>(name, &vec![vec![]; rows.len()]),
        }
        .unwrap();
    }
    block.finish().unwrap()
}

pub(crate) async fn insert_ends(store: &dyn Store, token: &str, rows: &[Row]) {
    store
        .insert(CONNECTION_RECORDS.name, token, block(&CONNECTION_RECORDS, rows))
        .await
        .unwrap();
}

pub(crate) async fn insert_sessions(store: &dyn Store, token: &str, rows: &[Row]) {
    store
        .insert(NODE_SESSIONS.name, token, block(&NODE_SESSIONS, rows))
        .await
        .unwrap();
}

pub(crate) async fn insert_agent_samples(store: &dyn Store, token: &str, rows: &[Row]) {
    store
        .insert(AGENT_SAMPLES.name, token, block(&AGENT_SAMPLES, rows))
        .await
        .unwrap();
}

pub(crate) async fn insert_samples(store: &dyn Store, token: &str, rows: &[Row]) {
    store
        .insert(LEDGER_SAMPLES.name, token, block(&LEDGER_SAMPLES, rows))
        .await
        .unwrap();
}
