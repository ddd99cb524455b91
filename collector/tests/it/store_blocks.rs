//! A block of 100,000 rows is there whole or not at all, whenever the process dies.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use holdfast_collector::store::{
    Block, Store,
    embedded::Embedded,
    library, migrations,
    native::{BlockBuilder, Kind},
    schema::CONNECTION_RECORDS,
};

use crate::store_engine::ask;
use crate::store_rows::NOON_NS;

const ROWS: usize = 100_000;
const ROUNDS: u32 = 20;

/// A child that is killed inserts at least so many blocks first, and then dies within so long: an insert takes about
/// as long.
const BLOCKS_BEFORE: usize = 1;
const DIES_WITHIN_MS: u64 = 150;

/// Numbers that look like chance and take place on disk (the finalizer of MurmurHash3).
fn mixed(number: u64) -> u64 {
    let number = (number ^ number >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let number = (number ^ number >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    number ^ number >> 33
}

/// A block of rows of one batch.
fn block(sequence: u64) -> Block {
    let mut block = BlockBuilder::new(&CONNECTION_RECORDS, ROWS).unwrap();
    let numbers: Vec<u64> = (0..ROWS as u64).map(|row| mixed(sequence << 32 | row)).collect();
    for column in CONNECTION_RECORDS.columns {
        let name = column.name;
        let done = match column.kind {
            Kind::LowCardinality => block.low_cardinality_constant(name, "a"),
            Kind::Enum8(_) => block.enums(name, &vec![1; ROWS]),
            Kind::DateTime64 => block.datetimes(name, &vec![NOON_NS + sequence as i64; ROWS]),
            Kind::UInt8 => block.u8s(name, &vec![1; ROWS]),
            Kind::UInt16 => block.u16s(name, &vec![1; ROWS]),
            Kind::UInt32 => block.u32s(name, &vec![1; ROWS]),
            Kind::NullableUInt32 => block.nullable_u32s(name, &vec![Some(1); ROWS]),
            Kind::UInt64 if name == "sequence" => block.u64s(name, &vec![sequence; ROWS]),
            Kind::UInt64 => block.u64s(name, &numbers),
            Kind::IPv6 => block.ipv6s(name, &vec![[1; 16]; ROWS]),
            Kind::Bool => block.bools(name, &vec![true; ROWS]),
            Kind::ArrayUInt64 => block.u64_arrays(name, &vec![0; ROWS], &[]),
            kind => panic!("{name} is {kind:?}"),
        };
        done.unwrap();
    }
    block.finish().unwrap()
}

/// A process that inserts blocks, and says the sequence of each that is durable.
fn inserting(folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "store_blocks::inserts_blocks_until_it_is_killed",
            "--nocapture",
            "--ignored",
        ])
        .env("HOLDFAST_TEST_FOLDER", folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What a process finds that opens the folder after a kill: the sequences that are there.
const FOUND: &str = "found ";
const INSERTED: &str = "inserted ";

#[test]
fn a_block_is_there_whole_or_not_at_all_however_often_its_process_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let mut durable = Vec::new();
    let mut in_the_middle = 0;
    for round in 0..ROUNDS {
        let mut child = inserting(folder.path());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut inserted = 0;
        while inserted < BLOCKS_BEFORE {
            let line = lines
                .next()
                .unwrap_or_else(|| panic!("round {round}: it ended"))
                .unwrap();
            if let Some(found) = line.strip_prefix(FOUND) {
                let found: Vec<u64> = found
                    .split_whitespace()
                    .map(|text| text.parse().unwrap())
                    .collect();
                let lost: Vec<_> = durable
                    .iter()
                    .filter(|sequence| !found.contains(sequence))
                    .collect();
                assert!(
                    lost.is_empty(),
                    "round {round}: {lost:?} were answered and are not there"
                );
                // What died on its way may be there as well, whole: the process checked that.
                in_the_middle += found.len() - durable.len();
                durable = found;
            }
            if let Some(sequence) = line.strip_prefix(INSERTED) {
                durable.push(sequence.parse().unwrap());
                inserted += 1;
            }
        }
        std::thread::sleep(Duration::from_millis(mixed(round.into()) % DIES_WITHIN_MS));
        child.kill().unwrap();
        child.wait().unwrap();
        let said = lines.map_while(Result::ok);
        durable.extend(said.filter_map(|line| line.strip_prefix(INSERTED)?.parse::<u64>().ok()));
    }
    println!(
        "{} blocks, {in_the_middle} of them durable without an answer",
        durable.len()
    );
}

#[tokio::test]
#[ignore = "run by the test above, in a process of its own"]
async fn inserts_blocks_until_it_is_killed() {
    let folder = std::env::var("HOLDFAST_TEST_FOLDER").unwrap();
    let store = Embedded::open(Path::new(&folder), &library::locate().unwrap(), "test").unwrap();
    migrations::apply(&store, NOON_NS).await.unwrap();
    store
        .execute("ALTER TABLE connection_records REMOVE TTL")
        .await
        .unwrap_or_else(|error| assert!(error.to_string().contains("TTL"), "{error}"));
    let counts = ask(
        &store,
        "SELECT sequence, count(), uniqExact(recorded_at) FROM connection_records GROUP BY sequence ORDER BY sequence",
    )
    .await;
    let mut found = Vec::new();
    for line in counts.lines() {
        let (sequence, rest) = line.split_once('\t').unwrap();
        assert_eq!(rest, format!("{ROWS}\t1"), "of batch {sequence}");
        found.push(sequence.to_owned());
    }
    // Rows that no row says anything of would be in the parts.
    let rows = "SELECT sum(rows), countIf(rows % 100000 != 0) FROM system.parts \
                WHERE active AND database = currentDatabase() AND table = 'connection_records'";
    assert_eq!(ask(&store, rows).await, format!("{}\t0\n", found.len() * ROWS));
    println!("{FOUND}{}", found.join(" "));
    let next = found.last().map_or(1, |last| last.parse::<u64>().unwrap() + 1);
    for sequence in next.. {
        store
            .insert(CONNECTION_RECORDS.name, &format!("b-{sequence}"), block(sequence))
            .await
            .unwrap();
        println!("{INSERTED}{sequence}");
    }
}
