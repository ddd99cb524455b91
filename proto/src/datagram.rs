//! The datagrams of `holdfast load udp`, which the generator writes and `holdfast load serve --udp` reads. No protobuf: a head of five
//! numbers, most significant byte first, and whatever fills it up.

/// Bytes that a datagram has at least: its head.
pub const LEAST_BYTES: usize = 40;

/// How datagrams of ours begin.
const MAGIC: u64 = 0x686f_6c64_6661_7374;

/// What a datagram is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To be sent back as it is.
    Echo,
    /// To be counted.
    OneWay,
    /// Asks the receiver what it has counted.
    Question,
}

/// The head of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    pub kind: Kind,
    /// Tells senders apart.
    pub tag: u64,
    /// 0, 1, 2, ... of the sender.
    pub number: u64,
    /// By a clock of the sender.
    pub sent_ns: u64,
}

/// What a receiver has counted of a sender.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Different ones.
    pub received: u64,
    pub duplicated: u64,
    /// Those that came after one with a greater number.
    pub reordered: u64,
    /// How much the time from one to the next differs from how they were sent, smoothed (RFC 3550, 6.4.1).
    pub jitter_ns: u64,
}

/// Writes a head over the first bytes of `bytes`, which has [`LEAST_BYTES`] or more.
pub fn write(bytes: &mut [u8], datagram: Datagram) {
    let kind = match datagram.kind {
        Kind::Echo => 1,
        Kind::OneWay => 2,
        Kind::Question => 3,
    };
    words(
        bytes,
        [MAGIC, kind, datagram.tag, datagram.number, datagram.sent_ns],
    );
}

fn words<const N: usize>(bytes: &mut [u8], values: [u64; N]) {
    for (place, value) in bytes.chunks_exact_mut(8).zip(values) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

fn read_words<const N: usize>(bytes: &[u8]) -> Option<[u64; N]> {
    let mut values = [0; N];
    for (index, value) in values.iter_mut().enumerate() {
        let place = bytes.get(index * 8..index * 8 + 8)?;
        *value = u64::from_be_bytes(place.try_into().ok()?);
    }
    Some(values)
}

/// Reads a head; `None` if it is none of ours.
pub fn read(bytes: &[u8]) -> Option<Datagram> {
    let [magic, kind, tag, number, sent_ns] = read_words(bytes)?;
    let kind = match kind {
        1 => Kind::Echo,
        2 => Kind::OneWay,
        3 => Kind::Question,
        _ => return None,
    };
    (magic == MAGIC).then_some(Datagram {
        kind,
        tag,
        number,
        sent_ns,
    })
}

/// The answer to a question.
pub fn write_heard(tag: u64, heard: Heard) -> [u8; 56] {
    let mut bytes = [0; 56];
    words(
        &mut bytes,
        [
            MAGIC,
            4,
            tag,
            heard.received,
            heard.duplicated,
            heard.reordered,
            heard.jitter_ns,
        ],
    );
    bytes
}

/// Of whom, and what was counted; `None` if it is no such answer.
pub fn read_heard(bytes: &[u8]) -> Option<(u64, Heard)> {
    let [magic, kind, tag, received, duplicated, reordered, jitter_ns] = read_words(bytes)?;
    (magic == MAGIC && kind == 4).then_some((
        tag,
        Heard {
            received,
            duplicated,
            reordered,
            jitter_ns,
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(number: u64, sent_ns: u64) -> Datagram {
        Datagram {
            kind: Kind::OneWay,
            tag: 7,
            number,
            sent_ns,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let mut bytes = vec![0; 100];
        for kind in [Kind::Echo, Kind::OneWay, Kind::Question] {
            let datagram = Datagram {
                kind,
                ..one(9, u64::MAX)
            };
            write(&mut bytes, datagram);
            assert_eq!(read(&bytes), Some(datagram));
            assert_eq!(read_heard(&bytes), None);
        }
        let heard = Heard {
            received: 1,
            duplicated: 2,
            reordered: 3,
            jitter_ns: 4,
        };
        assert_eq!(read_heard(&write_heard(8, heard)), Some((8, heard)));
        assert_eq!((read(b"hello"), read(&[0; 64])), (None, None));
    }
}
