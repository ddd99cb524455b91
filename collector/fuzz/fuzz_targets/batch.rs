//! An encoded `Batch` with a sound envelope: whatever is in it, it is refused, or becomes a block for its table.

#![no_main]

use bytes::Bytes;
use holdfast_collector::gather::{BatchName, Content, encode};
use holdfast_collector::ingest::agent::Agent;
use holdfast_collector::ingest::decode::restamp::NodeClock;
use holdfast_collector::ingest::decode::{self, Decoded};
use holdfast_proto::v1::{Batch, Hello, SealedBatch};
use libfuzzer_sys::fuzz_target;
use prost::Message;

/// When the inputs of the corpus were made, in nanoseconds since the Unix epoch: the collector's time.
const NOW_NS: i64 = 1_795_000_000_000_000_000;

/// The start of the agent that sends it.
const EPOCH: u64 = 7;

fuzz_target!(|encoded: &[u8]| {
    // The envelope is made to fit, so that the checks of it do not hide those behind.
    let (stream, sequence) = Batch::decode(encoded).map_or((1, 1), |batch| (batch.stream, batch.sequence));
    let sealed = SealedBatch {
        epoch: EPOCH,
        stream,
        sequence,
        checksum: crc32fast::hash(encoded),
        encoded: Bytes::copy_from_slice(encoded),
    };
    // Clocks that are right, and such that are wrong by up to 50 days.
    let clock = NodeClock {
        ahead_ns: (sequence % 101).cast_signed().saturating_sub(50) * 86_400_000_000_000,
        clock_ns: 1,
        boot_id: String::new(),
    };
    let Ok((Decoded { boot_id, rows }, _)) = decode::sealed(&sealed, NOW_NS, &clock) else {
        return;
    };
    let batch = BatchName {
        epoch: EPOCH,
        sequence,
        boot_id,
    };
    let content = Content::of(batch, rows, NOW_NS);
    let hello = Hello {
        protocol: holdfast_proto::PROTOCOL,
        agent_id: "a1".into(),
        epoch: EPOCH,
        node: "node-a1".into(),
        ..Hello::default()
    };
    let agent = Agent::try_from(hello).expect("it is welcome");
    let rows = content.rows();
    // Two of them, as they are gathered: what is an index in one is another in both.
    let (_, block) =
        encode::block([(&agent, &content), (&agent, &content)]).expect("what was checked is encoded");
    assert_eq!(block.rows, 2 * rows);
});
