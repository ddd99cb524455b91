//! What HTTP/2 itself refuses on a connection. The library under gRPC tells nobody of it but the peer, so it is read from
//! the bytes that go out: what resets a stream, and what ends a connection, for a fault.

/// What a frame that goes out says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// A stream was one too many.
    Crowd,
    /// A stream broke the rules of HTTP/2 (RFC 9113).
    BrokenStream,
    /// The connection did, and ends.
    BrokenConnection,
}

const HEAD_BYTES: usize = 9;

/// Frame types and error codes of RFC 9113, sections 6 and 7.
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const NO_ERROR: u32 = 0;
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const FRAME_SIZE_ERROR: u32 = 6;
const REFUSED_STREAM: u32 = 7;
const COMPRESSION_ERROR: u32 = 9;
const ENHANCE_YOUR_CALM: u32 = 11;

/// The frames that go out on one connection.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    head: [u8; HEAD_BYTES],
    /// Bytes of the head that have gone out.
    head_bytes: usize,
    /// The same of what follows it.
    passed: usize,
    /// The error code, as far as it has gone out.
    code: u32,
}

impl Outgoing {
    /// Takes what has gone out, and tells what it says.
    pub(super) fn take(&mut self, mut bytes: &[u8], mut tell: impl FnMut(Told)) {
        while !bytes.is_empty() {
            if self.head_bytes < HEAD_BYTES {
                let taken = bytes.len().min(HEAD_BYTES - self.head_bytes);
                self.head[self.head_bytes..][..taken].copy_from_slice(&bytes[..taken]);
                self.head_bytes += taken;
                bytes = &bytes[taken..];
            } else {
                let taken = bytes.len().min(self.length() - self.passed);
                self.read_code(&bytes[..taken]);
                self.passed += taken;
                bytes = &bytes[taken..];
            }
            if self.head_bytes == HEAD_BYTES && self.passed == self.length() {
                if let Some(told) = self.told() {
                    tell(told);
                }
                *self = Self::default();
            }
        }
    }

    fn length(&self) -> usize {
        let [first, second, third, ..] = self.head;
        u32::from_be_bytes([0, first, second, third]) as usize
    }

    fn kind(&self) -> u8 {
        self.head[3]
    }

    fn read_code(&mut self, bytes: &[u8]) {
        let begins_at = match self.kind() {
            RST_STREAM => 0,
            // The last stream's number is before it.
            GOAWAY => 4,
            _ => return,
        };
        for (at, byte) in (self.passed..begins_at + 4).zip(bytes) {
            if at >= begins_at {
                self.code = self.code << 8 | u32::from(*byte);
            }
        }
    }

    fn told(&self) -> Option<Told> {
        match (self.kind(), self.code) {
            (GOAWAY, NO_ERROR) => None,
            (GOAWAY, _) => Some(Told::BrokenConnection),
            (RST_STREAM, REFUSED_STREAM) => Some(Told::Crowd),
            (
                RST_STREAM,
                PROTOCOL_ERROR | FLOW_CONTROL_ERROR | FRAME_SIZE_ERROR | COMPRESSION_ERROR
                | ENHANCE_YOUR_CALM,
            ) => Some(Told::BrokenStream),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, 0, 0, 0, 0, 1]);
        frame.extend(payload);
        frame
    }

    fn check(frames: &[Vec<u8>], expected: &[Told]) {
        let bytes = frames.concat();
        for piece in [1, 2, 7, bytes.len()] {
            let mut outgoing = Outgoing::default();
            let mut told = Vec::new();
            for bytes in bytes.chunks(piece) {
                outgoing.take(bytes, |each| told.push(each));
            }
            assert_eq!(told, expected, "in pieces of {piece}");
        }
    }

    #[test]
    fn what_ends_for_a_fault_is_told_and_what_ends_well_is_not() {
        let settings = frame(4, &[]);
        let data = frame(0, &[GOAWAY; 300]);
        let reset = |code: u32| frame(RST_STREAM, &code.to_be_bytes());
        let goodbye = |code: u32| {
            let mut payload = vec![0, 0, 0, 9];
            payload.extend(code.to_be_bytes());
            payload.extend(b"what happened");
            frame(GOAWAY, &payload)
        };
        check(&[settings.clone(), data.clone(), reset(8), goodbye(0)], &[]);
        check(
            &[settings, reset(7), data, reset(0), reset(1), goodbye(9), reset(7)],
            &[
                Told::Crowd,
                Told::BrokenStream,
                Told::BrokenConnection,
                Told::Crowd,
            ],
        );
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_odd_for_it(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..40),
        ) {
            let mut outgoing = Outgoing::default();
            for piece in &pieces {
                outgoing.take(piece, |_| {});
            }
        }
    }
}
