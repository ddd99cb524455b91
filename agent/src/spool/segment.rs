//! The bytes of a segment file: records one after another, each with a checksum of its own. Pure.
//!
//! A record is a header of fixed size and an encoded batch. A segment is only ever appended to, so after a crash it
//! is whole but for its end. A bad disk harms it anywhere: scanning goes on behind what does not match its checksum.

use std::ops::Range;

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

/// While records are searched for, as many bytes as the segment has this many times over are held against checksums at most:
/// what only looks like headers, each with a length up to the segment's end, must not keep the start of the agent waiting.
const SEARCHES: usize = 64;

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
    let header = Header::at(segment, at)?;
    let stream = Stream::try_from(header.word(48) as i32).ok()?;
    let end = header.end.filter(|&end| end <= segment.len())?;
    if crc32fast::hash(&segment[at + CHECKED_FROM..end]) != header.word(8) {
        return None;
    }
    let sealed = Sealed {
        id: BatchId {
            epoch: header.long(12),
            stream,
            sequence: header.long(20),
        },
        rows: header.word(44),
        first_ns: header.long(28),
        last_ns: header.long(36),
        encoded: segment.slice(at + HEADER_BYTES..end),
    };
    Some((sealed, end))
}

/// What there is in a segment.
#[derive(Debug, PartialEq, Eq)]
pub struct Scan {
    /// Every unharmed record, with its place.
    pub records: Vec<(usize, Sealed)>,
    /// What lies between them and is none: a bad disk has harmed it.
    pub harmed: Vec<Range<usize>>,
    /// What lies behind the last one and is none.
    pub tail: Tail,
}

/// How a segment ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// With a record.
    Whole,
    /// With so many bytes of a record that was not written to its end, as a crash leaves it, or of zeros, as a loss of power does.
    Torn(usize),
    /// With so many bytes that were something else once.
    Harmed(usize),
}

/// Reads all records of a segment, whatever lies between them.
///
/// A record's length may be what is harmed, so that nothing tells where the next one begins: the next one is whatever
/// begins like a record and matches its checksum.
pub fn scan(segment: &Bytes) -> Scan {
    let (mut records, mut harmed) = (Vec::new(), Vec::new());
    let mut left_bytes = segment.len().saturating_mul(SEARCHES);
    let mut at = 0;
    while at < segment.len() {
        if let Some((sealed, end)) = read(segment, at) {
            records.push((at, sealed));
            at = end;
        } else if let Some(next) = next_record(segment, at + 1, &mut left_bytes) {
            harmed.push(at..next);
            at = next;
        } else {
            break;
        }
    }
    Scan {
        records,
        harmed,
        tail: tail(segment, at),
    }
}

/// Where the first record at or behind a place begins.
fn next_record(segment: &Bytes, from: usize, left_bytes: &mut usize) -> Option<usize> {
    let mut begin = from;
    loop {
        let rest = segment.get(begin..)?;
        let at = begin + rest.windows(MAGIC.len()).position(|word| *word == MAGIC)?;
        let end = Header::at(segment, at)?.end;
        if let Some(end) = end.filter(|&end| end <= segment.len()) {
            *left_bytes = left_bytes.checked_sub(end - at)?;
            if read(segment, at).is_some() {
                return Some(at);
            }
        }
        begin = at + 1;
    }
}

/// What is behind the last record.
fn tail(segment: &Bytes, at: usize) -> Tail {
    let bytes = segment.len() - at;
    let rest = &segment[at..];
    if rest.is_empty() {
        return Tail::Whole;
    }
    let is_cut_off = match Header::at(segment, at) {
        Some(header) => header.end.is_none_or(|end| end > segment.len()),
        None => bytes < HEADER_BYTES && (rest.starts_with(&MAGIC) || MAGIC.starts_with(rest)),
    };
    if is_cut_off || rest.iter().all(|&byte| byte == 0) {
        Tail::Torn(bytes)
    } else {
        Tail::Harmed(bytes)
    }
}

/// What a record begins with.
struct Header<'a> {
    bytes: &'a [u8],
    /// The place behind the record, by its length. `None`: no segment has room for it.
    end: Option<usize>,
}

impl<'a> Header<'a> {
    /// `None` where nothing begins like a record.
    fn at(segment: &'a Bytes, at: usize) -> Option<Self> {
        let bytes = segment.get(at..at.checked_add(HEADER_BYTES)?)?;
        let mut header = Self { bytes, end: None };
        header.end = (at + HEADER_BYTES).checked_add(header.word(4) as usize);
        bytes.starts_with(&MAGIC).then_some(header)
    }

    fn word(&self, place: usize) -> u32 {
        u32::from_le_bytes(self.bytes[place..place + 4].try_into().expect("four bytes"))
    }

    fn long(&self, place: usize) -> u64 {
        u64::from_le_bytes(self.bytes[place..place + 8].try_into().expect("eight bytes"))
    }
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
            let scan = scan(&written(&records).into());
            prop_assert_eq!((scan.harmed, scan.tail), (vec![], Tail::Whole));
            prop_assert_eq!(scan.records.into_iter().map(|(_, record)| record).collect::<Vec<_>>(), records);
        }

        #[test]
        fn a_torn_tail_costs_only_the_last_record(records in prop::collection::vec(sealed(), 1..8), cut in 1..40_usize) {
            let mut segment = written(&records);
            segment.truncate(segment.len() - cut);
            let scan = scan(&segment.into());
            prop_assert_eq!((scan.records.len(), scan.harmed), (records.len() - 1, vec![]));
            prop_assert!(matches!(scan.tail, Tail::Torn(_)), "{:?}", scan.tail);
        }

        #[test]
        fn a_flipped_bit_is_never_taken_for_a_record(record in sealed(), place in any::<prop::sample::Index>(), bit in 0..8) {
            let mut segment = written(std::slice::from_ref(&record));
            let place = place.index(segment.len());
            segment[place] ^= 1_u8 << bit;
            prop_assert_eq!(scan(&segment.into()).records, []);
        }

        /// Whatever becomes of some bytes, and wherever the segment is cut off.
        #[test]
        fn the_unharmed_records_are_found_and_no_others(
            records in prop::collection::vec(sealed(), 1..8),
            harms in prop::collection::vec((any::<prop::sample::Index>(), 1..40_usize, any::<u8>()), 0..4),
            lengths in prop::collection::vec((any::<prop::sample::Index>(), 0..5_usize), 0..2),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let mut begins = vec![0];
            begins.extend(records.iter().scan(0, |end, record| { *end += record_bytes(record); Some(*end) }));
            let whole = written(&records);
            let mut segment = whole.clone();
            for (place, bytes, filled) in harms {
                let place = place.index(segment.len());
                let end = (place + bytes).min(segment.len());
                segment[place..end].fill(filled);
            }
            // A length that leads to another record, or just to the end.
            for (harmed, further) in lengths {
                let harmed = harmed.index(records.len());
                let end = begins[(harmed + 1 + further).min(records.len())];
                let length = (end - begins[harmed] - HEADER_BYTES) as u32;
                segment[begins[harmed] + 4..begins[harmed] + 8].copy_from_slice(&length.to_le_bytes());
            }
            if let Some(cut) = cut {
                segment.truncate(cut.index(segment.len()));
            }
            let is_unharmed = |&at: &usize| {
                let end = begins[begins.partition_point(|&begin| begin <= at)];
                segment.get(at..end) == Some(&whole[at..end])
            };
            let expected: Vec<usize> = begins[..records.len()].iter().copied().filter(is_unharmed).collect();
            let segment = Bytes::from(segment);
            let scan = scan(&segment);
            prop_assert_eq!(scan.records.iter().map(|(at, _)| *at).collect::<Vec<_>>(), expected);
            for (at, record) in &scan.records {
                prop_assert_eq!(record, &records[begins.partition_point(|begin| begin < at)]);
            }
            let tail = match scan.tail { Tail::Whole => 0, Tail::Torn(bytes) | Tail::Harmed(bytes) => bytes };
            let read: usize = scan.records.iter().map(|(_, record)| record_bytes(record)).sum();
            let harmed: usize = scan.harmed.iter().map(ExactSizeIterator::len).sum();
            prop_assert_eq!(read + harmed + tail, segment.len());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            scan(&bytes.into());
        }
    }

    fn record(sequence: u64, encoded: &'static [u8]) -> Sealed {
        Sealed {
            id: BatchId {
                epoch: 7,
                stream: Stream::Connections,
                sequence,
            },
            rows: 3,
            first_ns: 100,
            last_ns: 200,
            encoded: Bytes::from_static(encoded),
        }
    }

    /// Harms a segment of three records, and gives the sequences that are found, the bytes between them that are none, and
    /// the end.
    fn check(harm: impl Fn(&mut Vec<u8>), found: &[u64], harmed: usize, tail: Tail) {
        let mut segment = written(&[1, 2, 3].map(|sequence| record(sequence, b"three rows")));
        harm(&mut segment);
        let scan = scan(&segment.into());
        let sequences: Vec<u64> = scan
            .records
            .iter()
            .map(|(_, sealed)| sealed.id.sequence)
            .collect();
        let harmed_bytes: usize = scan.harmed.iter().map(ExactSizeIterator::len).sum();
        assert_eq!((&sequences[..], harmed_bytes, scan.tail), (found, harmed, tail));
    }

    #[test]
    fn a_byte_that_rots_costs_its_own_record() {
        const RECORD: usize = HEADER_BYTES + 10;
        // In the magic, the length (too long, too short), the checksum, the name, the stream, the body.
        for (place, flip) in [
            (0, 1),
            (5, 1),
            (7, 0x80),
            (4, 2),
            (9, 1),
            (14, 1),
            (49, 1),
            (RECORD - 1, 1),
        ] {
            check(|segment| segment[place] ^= flip, &[2, 3], RECORD, Tail::Whole);
            let second = RECORD + place;
            check(|segment| segment[second] ^= flip, &[1, 3], RECORD, Tail::Whole);
        }
        let both = |segment: &mut Vec<u8>| {
            segment[3] ^= 1;
            segment[RECORD + HEADER_BYTES] ^= 1;
        };
        check(both, &[3], 2 * RECORD, Tail::Whole);
        let last = |segment: &mut Vec<u8>| segment[2 * RECORD + HEADER_BYTES] ^= 1;
        check(last, &[1, 2], 0, Tail::Harmed(RECORD));
        let first_and_last = |segment: &mut Vec<u8>| {
            segment[20] ^= 1;
            segment[2 * RECORD] ^= 1;
        };
        check(first_and_last, &[2], RECORD, Tail::Harmed(RECORD));
    }

    #[test]
    fn what_was_not_written_to_its_end_is_a_torn_tail() {
        const RECORD: usize = HEADER_BYTES + 10;
        for kept in [1, 3, 4, 20, HEADER_BYTES, RECORD - 1] {
            check(
                |segment| segment.truncate(2 * RECORD + kept),
                &[1, 2],
                0,
                Tail::Torn(kept),
            );
        }
        let never_arrived = |segment: &mut Vec<u8>| segment[2 * RECORD..].fill(0);
        check(never_arrived, &[1, 2], 0, Tail::Torn(RECORD));
    }

    #[test]
    fn what_looks_like_a_thousand_headers_is_not_held_against_checksums_for_ever() {
        let mut segment = Vec::new();
        while segment.len() < 1 << 20 {
            segment.extend(MAGIC);
            segment.extend((1_u32 << 19).to_le_bytes());
            segment.extend([0; HEADER_BYTES - 8]);
        }
        let bytes = segment.len();
        let begun = std::time::Instant::now();
        let scan = scan(&segment.into());
        assert_eq!((scan.records, scan.tail), (vec![], Tail::Harmed(bytes)));
        assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
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
            ("harmed", harmed, 2),
            ("endless", endless, 2),
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
            assert_eq!(scan(&bytes.into()).records.len(), records, "{name}");
        }
    }
}
