//! The bytes of a segment file: records one after another, each with a checksum of its own. Pure.
//!
//! A record is a header of fixed size and an encoded batch. A segment is only ever appended to, so after a crash it
//! is whole but for its end: scanning stops at the first record that is cut off or does not match its checksum.

use bytes::Bytes;
use holdfast_proto::v1::Stream;

/// The name of a batch: no two batches ever share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchId {
    /// The start of the agent that sealed it.
    pub epoch: u64,
    pub stream: Stream,
    pub sequence: u64,
}

/// A batch that will not change any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    pub id: BatchId,
    pub rows: u32,
    /// When the kernel made the first and the last of its rows, in nanoseconds since the Unix epoch.
    pub first_ns: u64,
    pub last_ns: u64,
    /// The encoded `Batch`, which travels and is stored as it is.
    pub encoded: Bytes,
}

/// Begins every record; the last byte is the version of the format.
const MAGIC: [u8; 4] = *b"HFS\x01";

/// Magic, payload length, checksum, epoch, sequence, first and last time, rows, stream.
const HEADER_BYTES: usize = 4 + 4 + 4 + 8 + 8 + 8 + 8 + 4 + 4;

/// The checksum covers everything behind itself.
const CHECKED_FROM: usize = 12;

/// Bytes that a batch takes in a segment.
pub fn record_bytes(sealed: &Sealed) -> usize {
    HEADER_BYTES + sealed.encoded.len()
}

/// Appends a record.
pub fn write(sealed: &Sealed, out: &mut Vec<u8>) {
    let begin = out.len();
    out.extend(MAGIC);
    out.extend((sealed.encoded.len() as u32).to_le_bytes());
    out.extend([0; 4]);
    out.extend(sealed.id.epoch.to_le_bytes());
    out.extend(sealed.id.sequence.to_le_bytes());
    out.extend(sealed.first_ns.to_le_bytes());
    out.extend(sealed.last_ns.to_le_bytes());
    out.extend(sealed.rows.to_le_bytes());
    out.extend((sealed.id.stream as i32).to_le_bytes());
    out.extend(&sealed.encoded);
    let checksum = crc32fast::hash(&out[begin + CHECKED_FROM..]);
    out[begin + 8..begin + CHECKED_FROM].copy_from_slice(&checksum.to_le_bytes());
}

/// Reads the record that begins at a place; gives it and the place behind it. `None` if there is no whole, unharmed
/// record.
pub fn read(segment: &Bytes, at: usize) -> Option<(Sealed, usize)> {
    let header = segment.get(at..at.checked_add(HEADER_BYTES)?)?;
    let word = |place: usize| u32::from_le_bytes(header[place..place + 4].try_into().expect("four bytes"));
    let long = |place: usize| u64::from_le_bytes(header[place..place + 8].try_into().expect("eight bytes"));
    if header[..4] != MAGIC {
        return None;
    }
    let end = (at + HEADER_BYTES).checked_add(word(4) as usize)?;
    if crc32fast::hash(segment.get(at + CHECKED_FROM..end)?) != word(8) {
        return None;
    }
    let stream = Stream::try_from(word(48) as i32).ok()?;
    let sealed = Sealed {
        id: BatchId {
            epoch: long(12),
            stream,
            sequence: long(20),
        },
        rows: word(44),
        first_ns: long(28),
        last_ns: long(36),
        encoded: segment.slice(at + HEADER_BYTES..end),
    };
    Some((sealed, end))
}

/// Reads all records of a segment, with their places; the second value is where the unharmed part ends.
pub fn scan(segment: &Bytes) -> (Vec<(usize, Sealed)>, usize) {
    let mut records = Vec::new();
    let mut at = 0;
    while let Some((sealed, end)) = read(segment, at) {
        records.push((at, sealed));
        at = end;
    }
    (records, at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sealed() -> impl Strategy<Value = Sealed> {
        (
            any::<[u64; 4]>(),
            any::<u32>(),
            prop::collection::vec(any::<u8>(), 0..300),
        )
            .prop_map(|([epoch, sequence, first_ns, last_ns], rows, encoded)| Sealed {
                id: BatchId {
                    epoch,
                    stream: Stream::Connections,
                    sequence,
                },
                rows,
                first_ns,
                last_ns,
                encoded: encoded.into(),
            })
    }

    fn written(records: &[Sealed]) -> Vec<u8> {
        let mut out = Vec::new();
        for record in records {
            write(record, &mut out);
        }
        out
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(records in prop::collection::vec(sealed(), 0..8)) {
            let segment = Bytes::from(written(&records));
            let (read, end) = scan(&segment);
            prop_assert_eq!(end, segment.len());
            prop_assert_eq!(read.into_iter().map(|(_, record)| record).collect::<Vec<_>>(), records);
        }

        #[test]
        fn a_torn_tail_costs_only_the_last_record(records in prop::collection::vec(sealed(), 1..8), cut in 1..40_usize) {
            let mut segment = written(&records);
            segment.truncate(segment.len() - cut);
            let (read, _) = scan(&segment.into());
            prop_assert_eq!(read.len(), records.len() - 1);
        }

        #[test]
        fn a_flipped_bit_is_never_taken_for_a_record(record in sealed(), place in any::<prop::sample::Index>(), bit in 0..8) {
            let mut segment = written(std::slice::from_ref(&record));
            let place = place.index(segment.len());
            segment[place] ^= 1_u8 << bit;
            prop_assert_eq!(scan(&segment.into()).0, []);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            scan(&bytes.into());
        }
    }

    /// What the fuzzer of this file starts from; `HOLDFAST_BLESS=1 cargo test -p holdfast-agent segment` writes it anew.
    #[test]
    fn the_fuzzers_segments_are_of_todays_format() {
        let record = |sequence, stream, encoded: &'static [u8]| Sealed {
            id: BatchId {
                epoch: 7,
                stream,
                sequence,
            },
            rows: 3,
            first_ns: 1_795_000_000_000_000_000,
            last_ns: 1_795_000_001_000_000_000,
            encoded: Bytes::from_static(encoded),
        };
        let whole = written(&[
            record(1, Stream::Connections, b"three rows"),
            record(2, Stream::Connections, b""),
            record(1, Stream::Gaps, b"a gap"),
        ]);
        let torn = whole[..whole.len() - 3].to_vec();
        let mut harmed = whole.clone();
        harmed[HEADER_BYTES + 2] ^= 0x10;
        let mut endless = whole.clone();
        endless[4..8].fill(0xff);
        let folder =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../collector/fuzz/corpus/segment");
        for (name, bytes, records) in [
            ("whole", whole, 3),
            ("torn", torn, 2),
            ("harmed", harmed, 0),
            ("endless", endless, 0),
        ] {
            let file = folder.join(name);
            if std::env::var_os("HOLDFAST_BLESS").is_some() {
                std::fs::create_dir_all(&folder).unwrap();
                std::fs::write(&file, &bytes).unwrap();
            }
            assert!(
                std::fs::read(&file).unwrap_or_default() == bytes,
                "{name} is of another format"
            );
            assert_eq!(scan(&bytes.into()).0.len(), records, "{name}");
        }
    }
}
