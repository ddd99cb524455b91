//! What batches that wait take in memory, by the kernel's count of this process' pages, and what the spool says that they take.

use std::{env, fs, process::Command, sync::Arc};

use holdfast_agent::{
    counters::{Counters, Rows, RowsByNetns},
    spool::{BatchId, ENTRY_BYTES, Limits, Sealed, Spool, disk::Folder},
};
use holdfast_proto::v1::Stream;

const BATCHES: u64 = 50_000;
const ENCODED_BYTES: u64 = 100;
const ROWS: u32 = 10;

const MEASURING: &str = "HOLDFAST_TEST_SPOOL_MEASURES";

/// Measured in a process of its own: others allocate too.
#[test]
fn what_is_charged_for_a_batch_is_what_it_takes() {
    if env::var_os(MEASURING).is_some() {
        measure();
        return;
    }
    let name = "spool_memory::what_is_charged_for_a_batch_is_what_it_takes";
    let child = Command::new(env::current_exe().expect("this test"))
        .args(["--exact", name, "--nocapture"])
        .env(MEASURING, "1")
        .output()
        .expect("a process");
    let said = String::from_utf8_lossy(&child.stdout);
    let wrong = String::from_utf8_lossy(&child.stderr);
    assert!(
        child.status.success() && said.contains("bytes each"),
        "{said}{wrong}"
    );
}

fn measure() {
    let counters = Arc::new(Counters::default());
    let unbounded = Limits {
        memory_bytes: 1 << 30,
        ..Limits::default()
    };
    let spool = Spool::open(unbounded, "boot", None, Arc::clone(&counters)).expect("a spool");
    let before = resident_bytes();
    (1..=BATCHES).for_each(|sequence| append(&spool, &counters, sequence));
    let taken = resident_bytes() - before;
    let each = (taken - ENCODED_BYTES * BATCHES) / BATCHES;
    println!("in memory: {each} bytes each, charged {ENTRY_BYTES}");
    assert!(
        (ENTRY_BYTES / 2..=ENTRY_BYTES).contains(&each),
        "{each} bytes each"
    );
    assert_eq!(
        spool.levels().memory_bytes,
        BATCHES * (ENCODED_BYTES + ENTRY_BYTES)
    );

    // And what is not answered for long, of which the disk has the bytes, stays within the bound. The first spool is there
    // still: what it gave back would be used again, unseen.
    let folder = tempfile::tempdir().expect("a folder");
    let bounded = Limits {
        memory_bytes: 16 << 20,
        ..Limits::default()
    };
    let disk = Folder::open(folder.path()).expect("a folder");
    let counters = Arc::new(Counters::default());
    let second = Spool::open(bounded, "boot", Some(Box::new(disk)), Arc::clone(&counters)).expect("a spool");
    let before = resident_bytes();
    for sequence in 1..=BATCHES {
        append(&second, &counters, sequence);
        if sequence % 1_000 == 0 {
            second.persist().expect("a disk");
        }
    }
    let taken = resident_bytes().saturating_sub(before);
    println!("bounded to {}: {taken} bytes", bounded.memory_bytes);
    assert!(taken <= bounded.memory_bytes + (8 << 20), "{taken} bytes");
    let kept = second.levels().batches;
    assert!(
        (bounded.memory_bytes / 2 / ENTRY_BYTES..BATCHES).contains(&kept),
        "{kept} batches"
    );
    let stages = counters.total();
    assert_eq!(
        [stages.unacknowledged, stages.dropped],
        [kept, BATCHES - kept].map(|batches| batches * u64::from(ROWS))
    );
    let gap = &second.take_gaps()[0];
    assert_eq!((gap.first_sequence, gap.last_sequence), (1, BATCHES - kept));
    drop(spool);
}

fn append(spool: &Spool, counters: &Counters, sequence: u64) {
    let rows = Rows {
        ends: ROWS.into(),
        announced: 0,
    };
    let rows = RowsByNetns::from([(1, rows)]);
    counters.received(&rows);
    let sealed = Sealed {
        id: BatchId {
            epoch: 1,
            stream: Stream::Connections,
            sequence,
        },
        rows: ROWS,
        first_ns: sequence * 100,
        last_ns: sequence * 100 + 99,
        encoded: vec![0; ENCODED_BYTES as usize].into(),
    };
    spool.append(sealed, rows);
}

fn resident_bytes() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").expect("statm");
    let pages = statm.split_whitespace().nth(1).expect("a second field");
    pages.parse::<u64>().expect("a number") * rustix::param::page_size() as u64
}
