//! A segment of an agent's spool, as a crash or a bad disk may leave it: what is read back is what was written.

#![no_main]

// The agent's file as it is: the agent itself needs a compiler for BPF.
#[allow(dead_code, unreachable_pub)]
#[path = "../../../agent/src/spool/segment.rs"]
mod segment;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let segment = Bytes::copy_from_slice(bytes);
    let (records, end) = segment::scan(&segment);
    assert!(end <= segment.len());
    let mut again = Vec::new();
    for (at, sealed) in &records {
        assert_eq!(*at, again.len());
        segment::write(sealed, &mut again);
        assert_eq!(again.len() - at, segment::record_bytes(sealed));
    }
    assert_eq!(again, bytes[..end]);
});
