//! Blocks that we encode, read back through the engine.

use std::net::Ipv6Addr;

use holdfast_collector::store::{
    Block, Store,
    native::{BlockBuilder, Column, Kind, Table, names},
};
use proptest::{collection::vec, prelude::*};

use crate::store_engine::{ask, database};

const fn column(name: &'static str, kind: Kind) -> Column {
    Column { name, kind }
}

const COLUMNS: [Column; 14] = [
    column("flag", Kind::Bool),
    column("a", Kind::UInt8),
    column("b", Kind::UInt16),
    column("c", Kind::UInt32),
    column("d", Kind::UInt64),
    column("e", Kind::Int64),
    column("f", Kind::Enum8(&[("low", -1), ("high", 2)])),
    column("at", Kind::DateTime64),
    column("ip", Kind::IPv6),
    column("text", Kind::String),
    column("word", Kind::LowCardinality),
    column("numbers", Kind::ArrayUInt64),
    column("words", Kind::ArrayString),
    column("labels", Kind::StringMap),
];
static TABLE: Table = Table {
    name: "everything",
    columns: &COLUMNS,
    column_names: &names(&COLUMNS),
};

#[derive(Clone, Debug)]
struct Row {
    flag: bool,
    numbers: (u8, u16, u32, u64, i64),
    level: i8,
    at: i64,
    ip: [u8; 16],
    text: String,
    word: String,
    array: Vec<u64>,
    words: Vec<String>,
    labels: Vec<(String, String)>,
}

prop_compose! {
    fn row()(
        flag: bool,
        numbers: (u8, u16, u32, u64, i64),
        level in prop_oneof![Just(-1_i8), Just(2_i8)],
        // What DateTime64(9) can hold and print.
        at in 0..4_000_000_000_000_000_000_i64,
        ip: [u8; 16],
        text in any::<String>(),
        word in "[a-c]{0,2}",
        array in vec(any::<u64>(), 0..4),
        words in vec(".{0,3}", 0..3),
        labels in proptest::collection::btree_map("[a-z]{1,3}", ".{0,3}", 0..3),
    ) -> Row {
        Row { flag, numbers, level, at, ip, text, word, array, words, labels: labels.into_iter().collect() }
    }
}

fn encode(rows: &[Row]) -> Block {
    fn of<T>(rows: &[Row], field: impl Fn(&Row) -> T) -> Vec<T> {
        rows.iter().map(field).collect()
    }
    let dictionary: Vec<String> = of(rows, |row| row.word.clone());
    let indices: Vec<u32> = (0..).take(rows.len()).collect();
    let mut end = 0;
    let ends = of(rows, |row| row.array.len() as u64).into_iter().map(|length| {
        end += length;
        end
    });
    let ends: Vec<u64> = ends.collect();
    let elements: Vec<u64> = rows.iter().flat_map(|row| row.array.clone()).collect();

    let mut block = BlockBuilder::new(&TABLE, rows.len()).unwrap();
    block.bools("flag", &of(rows, |row| row.flag)).unwrap();
    block.u8s("a", &of(rows, |row| row.numbers.0)).unwrap();
    block.u16s("b", &of(rows, |row| row.numbers.1)).unwrap();
    block.u32s("c", &of(rows, |row| row.numbers.2)).unwrap();
    block.u64s("d", &of(rows, |row| row.numbers.3)).unwrap();
    block.i64s("e", &of(rows, |row| row.numbers.4)).unwrap();
    block.enums("f", &of(rows, |row| row.level)).unwrap();
    block.datetimes("at", &of(rows, |row| row.at)).unwrap();
    block.ipv6s("ip", &of(rows, |row| row.ip)).unwrap();
    block.strings("text", &of(rows, |row| row.text.clone())).unwrap();
    block.low_cardinality("word", &dictionary, &indices).unwrap();
    block.u64_arrays("numbers", &ends, &elements).unwrap();
    block
        .string_arrays("words", &of(rows, |row| row.words.clone()))
        .unwrap();
    block
        .string_maps("labels", &of(rows, |row| row.labels.clone()))
        .unwrap();
    block.finish().unwrap()
}

/// As ClickHouse prints the row with `format_json...` at their defaults, column by column.
fn expected(row: &Row) -> serde_json::Value {
    let (a, b, c, d, e) = row.numbers;
    serde_json::json!([
        row.flag,
        a,
        b,
        c,
        d.to_string(),
        e.to_string(),
        if row.level == 2 { "high" } else { "low" },
        row.at.to_string(),
        Ipv6Addr::from(row.ip)
            .octets()
            .map(|byte| format!("{byte:02X}"))
            .concat(),
        row.text,
        row.word,
        row.array.iter().map(u64::to_string).collect::<Vec<_>>(),
        row.words,
        row.labels
            .iter()
            .cloned()
            .collect::<std::collections::BTreeMap<_, _>>(),
    ])
}

#[test]
fn what_is_encoded_is_what_the_engine_reads() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = database();
    let columns: Vec<_> = COLUMNS
        .iter()
        .map(|column| format!("{} {}", column.name, column.kind.sql()))
        .collect();
    let create = format!("CREATE TABLE everything ({}) ENGINE = Memory", columns.join(", "));
    runtime.block_on(store.execute(&create)).unwrap();

    let config = ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(rows in vec(row(), 1..40))| {
        let read = runtime.block_on(async {
            store.execute("TRUNCATE TABLE everything").await.unwrap();
            store.insert("everything", "token", encode(&rows)).await.unwrap();
            ask(
                &store,
                "SELECT flag, a, b, c, toString(d), toString(e), f, toString(toUnixTimestamp64Nano(at)), hex(ip), text, word, \
                 arrayMap(n -> toString(n), numbers), words, labels FROM everything FORMAT JSONCompactEachRow",
            )
            .await
        });
        let read: Vec<serde_json::Value> = read.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        prop_assert_eq!(read, rows.iter().map(expected).collect::<Vec<_>>());
    });
}

#[test]
fn dictionaries_of_every_index_width_are_read_back() {
    const COLUMNS: [Column; 1] = [column("word", Kind::LowCardinality)];
    static TABLE: Table = Table {
        name: "words",
        columns: &COLUMNS,
        column_names: &names(&COLUMNS),
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = database();
    for entries in [1, 255, 256, 257, 65_535, 65_536, 65_537] {
        let dictionary: Vec<String> = (0..entries).map(|entry| format!("w{entry}")).collect();
        let indices: Vec<u32> = (0..entries).collect();
        let mut block = BlockBuilder::new(&TABLE, dictionary.len()).unwrap();
        block.low_cardinality("word", &dictionary, &indices).unwrap();
        let block = block.finish().unwrap();
        let (count, sum) = (
            u64::from(entries),
            u64::from(entries) * (u64::from(entries) - 1) / 2,
        );
        let read = runtime.block_on(async {
            store
                .execute("CREATE OR REPLACE TABLE words (word LowCardinality(String)) ENGINE = Memory")
                .await
                .unwrap();
            store.insert("words", "token", block).await.unwrap();
            ask(
                &store,
                "SELECT uniqExact(word), sum(toUInt64(substring(word, 2))) FROM words",
            )
            .await
        });
        assert_eq!(read, format!("{count}\t{sum}\n"));
    }
}
