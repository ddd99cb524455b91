//! A segment of an agent's spool, as a crash or a bad disk may leave it: what is read back is what was written.

#![no_main]

// The agent's file as it is: the agent itself needs a compiler for BPF.
#[allow(dead_code, unreachable_pub)]
#[path = "../../../agent/src/spool/segment.rs"]
mod segment;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use segment::Tail;

fuzz_target!(|bytes: &[u8]| {
    let segment = Bytes::copy_from_slice(bytes);
    let scan = segment::scan(&segment);
    let mut end = 0;
    for (at, sealed) in &scan.records {
        // What lies between two records is told.
        assert!(end == *at || scan.harmed.contains(&(end..*at)));
        let mut again = Vec::new();
        segment::write(sealed, &mut again);
        assert_eq!(again.len(), segment::record_bytes(sealed));
        end = at + again.len();
        assert_eq!(again, bytes[*at..end]);
    }
    let tail = match scan.tail {
        Tail::Whole => 0,
        Tail::Torn(bytes) | Tail::Harmed(bytes) => bytes,
    };
    assert_eq!(end + tail, bytes.len());
});
