//! The client's side of HTTP/2 (RFC 9113) as far as a load generator needs it: the same request again and again, several at
//! once, and of each answer its status and its body. Pure: bytes in and out, and what ended.
//!
//! Headers are sent as literals and the peer is told to keep none either (a table of no size), so HPACK (RFC 7541) has no
//! state on either side; of an answer's head only `:status` is read.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::http::{Body, Http, Malformed};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Length of a frame's head.
const HEAD: usize = 9;

/// Largest frame that we take, and that we send: what every peer takes.
const LARGEST_FRAME: usize = 16_384;

/// What the peer may send before it hears of us again: of one answer all, of the connection so much.
const STREAM_WINDOW: u32 = (1 << 31) - 1;
const CONNECTION_WINDOW: u32 = 1 << 30;

/// The window that a connection and its streams begin with (RFC 9113, 6.9.2).
const FIRST_WINDOW: i64 = 65_535;

/// Streams of a connection, after which another one is opened: their numbers end.
const LAST_STREAM: u32 = (1 << 31) - 1;

mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PUSH_PROMISE: u8 = 5;
    pub(super) const PING: u8 = 6;
    pub(super) const GOAWAY: u8 = 7;
    pub(super) const WINDOW_UPDATE: u8 = 8;
    pub(super) const CONTINUATION: u8 = 9;
}

mod flag {
    pub(super) const END_STREAM: u8 = 1;
    pub(super) const ACK: u8 = 1;
    pub(super) const END_HEADERS: u8 = 4;
    pub(super) const PADDED: u8 = 8;
    pub(super) const PRIORITY: u8 = 32;
}

/// The request, ready to be sent on any connection.
#[derive(Debug)]
pub struct Request {
    head: Vec<u8>,
    body: Vec<u8>,
}

impl Request {
    pub fn of(http: &Http) -> Self {
        let mut head = Vec::new();
        for (name, value) in http.pairs() {
            // A literal that nobody keeps, with a name of its own (6.2.2).
            head.push(0);
            for text in [&name, &value] {
                integer(&mut head, 0, 7, text.len());
                head.extend_from_slice(text.as_bytes());
            }
        }
        Self {
            head,
            body: http.body.clone(),
        }
    }
}

/// How a request ended, with when it was due and sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub due_ns: u64,
    pub sent_ns: u64,
    pub how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Answered {
        status: u16,
        has_wanted: bool,
    },
    /// The peer gave it up.
    Reset,
    /// The peer says that it did not begin with it: the connection is at its end.
    Unprocessed,
}

/// A request under way.
#[derive(Debug)]
struct Stream {
    due_ns: u64,
    sent_ns: u64,
    status: u16,
    body: Body,
    /// Of our body, what has been sent, and what the peer has room for.
    sent: usize,
    window: i64,
}

/// A connection.
#[derive(Debug)]
pub struct Session {
    /// What is to be written.
    out: Vec<u8>,
    /// What came of a frame that is not complete.
    partial: Vec<u8>,
    /// The blocks of a head that go on in the next frame, of which stream, and whether the answer ends with it.
    continued: Option<(u32, bool, Vec<u8>)>,
    streams: FxHashMap<u32, Stream>,
    next: u32,
    most_streams: u32,
    first_window: i64,
    window: i64,
    /// Streams whose body waits for room.
    blocked: VecDeque<u32>,
    /// Bytes that came and that the peer was not told of.
    taken: u32,
    is_leaving: bool,
}

impl Default for Session {
    fn default() -> Self {
        Self::new()
    }
}

impl Session {
    pub fn new() -> Self {
        let mut out = PREFACE.to_vec();
        let mut settings = Vec::new();
        // No table of headers, no pushes, any answer whole.
        for (name, value) in [(1_u16, 0_u32), (2, 0), (4, STREAM_WINDOW)] {
            settings.extend_from_slice(&name.to_be_bytes());
            settings.extend_from_slice(&value.to_be_bytes());
        }
        frame(&mut out, kind::SETTINGS, 0, 0, &settings);
        frame(
            &mut out,
            kind::WINDOW_UPDATE,
            0,
            0,
            &CONNECTION_WINDOW.to_be_bytes(),
        );
        Self {
            out,
            partial: Vec::new(),
            continued: None,
            streams: FxHashMap::default(),
            next: 1,
            // Until the peer says how many.
            most_streams: 100,
            first_window: FIRST_WINDOW,
            window: FIRST_WINDOW,
            blocked: VecDeque::new(),
            taken: 0,
            is_leaving: false,
        }
    }

    /// Whether another request can be sent now.
    pub fn has_room(&self, most: u32) -> bool {
        !self.is_over() && self.streams.len() < self.most_streams.min(most) as usize
    }

    /// No more requests are taken.
    pub fn is_over(&self) -> bool {
        self.is_leaving || self.next > LAST_STREAM
    }

    /// Whether a request is under way.
    pub fn has(&self, id: u32) -> bool {
        self.streams.contains_key(&id)
    }

    /// A request was made on it.
    pub fn has_served(&self) -> bool {
        self.next > 1
    }

    pub fn under_way(&self) -> usize {
        self.streams.len()
    }

    /// Begins a request; gives its number on the connection.
    pub fn send(&mut self, request: &Request, due_ns: u64, now_ns: u64) -> u32 {
        let id = self.next;
        self.next += 2;
        let last = if request.body.is_empty() {
            flag::END_STREAM
        } else {
            0
        };
        let mut blocks = request.head.chunks(LARGEST_FRAME).peekable();
        let mut sort = (kind::HEADERS, last);
        while let Some(block) = blocks.next() {
            let end = if blocks.peek().is_none() {
                flag::END_HEADERS
            } else {
                0
            };
            frame(&mut self.out, sort.0, sort.1 | end, id, block);
            sort = (kind::CONTINUATION, 0);
        }
        self.streams.insert(
            id,
            Stream {
                due_ns,
                sent_ns: now_ns,
                status: 0,
                body: Body::default(),
                sent: 0,
                window: self.first_window,
            },
        );
        if !request.body.is_empty() {
            self.blocked.push_back(id);
            self.send_bodies(request);
        }
        id
    }

    /// Sends of the bodies that wait what there is room for.
    fn send_bodies(&mut self, request: &Request) {
        for _ in 0..self.blocked.len() {
            let Some(id) = self.blocked.pop_front() else {
                return;
            };
            let Some(stream) = self.streams.get_mut(&id) else {
                continue;
            };
            while stream.sent < request.body.len() {
                let room = self.window.min(stream.window).clamp(0, LARGEST_FRAME as i64) as usize;
                if room == 0 {
                    self.blocked.push_back(id);
                    break;
                }
                let end = (stream.sent + room).min(request.body.len());
                let flags = if end == request.body.len() {
                    flag::END_STREAM
                } else {
                    0
                };
                frame(
                    &mut self.out,
                    kind::DATA,
                    flags,
                    id,
                    &request.body[stream.sent..end],
                );
                let sent = (end - stream.sent) as i64;
                self.window -= sent;
                stream.window -= sent;
                stream.sent = end;
            }
        }
    }

    /// Gives up a request that takes too long; when it was due and sent, if it is still under way.
    pub fn give_up(&mut self, id: u32) -> Option<(u64, u64)> {
        let stream = self.streams.remove(&id)?;
        // CANCEL (7).
        frame(&mut self.out, kind::RST_STREAM, 0, id, &8_u32.to_be_bytes());
        Some((stream.due_ns, stream.sent_ns))
    }

    /// All requests under way, which end with the connection: when each was due and sent.
    pub fn drain(&mut self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.streams
            .drain()
            .map(|(_, stream)| (stream.due_ns, stream.sent_ns))
    }

    /// What is to be written next; empty: nothing.
    pub fn output(&self) -> &[u8] {
        &self.out
    }

    /// So much of it was written.
    pub fn written(&mut self, bytes: usize) {
        if bytes == self.out.len() {
            self.out.clear();
        } else {
            self.out.drain(..bytes);
        }
    }

    /// Takes what came, and tells of each request that ended.
    ///
    /// # Errors
    /// If it is no HTTP/2, or what a peer must not send.
    pub fn take(
        &mut self,
        bytes: &[u8],
        request: &Request,
        wanted: Option<&[u8]>,
        mut ended: impl FnMut(Ended),
    ) -> Result<(), Malformed> {
        let mut own = std::mem::take(&mut self.partial);
        let mut rest = if own.is_empty() {
            bytes
        } else {
            own.extend_from_slice(bytes);
            own.as_slice()
        };
        while let Some(head) = rest.get(..HEAD) {
            let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            if length > LARGEST_FRAME {
                return Err(Malformed("a frame that is too large, or no HTTP/2"));
            }
            let Some(payload) = rest.get(HEAD..HEAD + length) else {
                break;
            };
            let id = number(&head[5..9]) & 0x7fff_ffff;
            self.frame(head[3], head[4], id, payload, wanted, &mut ended)?;
            rest = &rest[HEAD + length..];
        }
        let rest = rest.to_vec();
        self.partial = rest;
        self.send_bodies(request);
        // The window of the connection is given back before it is used up.
        if self.taken > CONNECTION_WINDOW / 2 {
            frame(
                &mut self.out,
                kind::WINDOW_UPDATE,
                0,
                0,
                &self.taken.to_be_bytes(),
            );
            self.taken = 0;
        }
        Ok(())
    }

    fn frame(
        &mut self,
        sort: u8,
        flags: u8,
        id: u32,
        payload: &[u8],
        wanted: Option<&[u8]>,
        ended: &mut impl FnMut(Ended),
    ) -> Result<(), Malformed> {
        if self.continued.is_some() && sort != kind::CONTINUATION {
            return Err(Malformed("a head that does not go on"));
        }
        match sort {
            kind::DATA => {
                self.taken = self.taken.saturating_add(payload.len() as u32);
                let data = unpadded(flags, payload)?;
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.body.take(data, wanted);
                }
                if flags & flag::END_STREAM != 0 {
                    self.answered(id, ended)?;
                }
            }
            kind::HEADERS => {
                let mut block = unpadded(flags, payload)?;
                if flags & flag::PRIORITY != 0 {
                    block = block.get(5..).ok_or(Malformed("a head that is too short"))?;
                }
                let is_last = flags & flag::END_STREAM != 0;
                if flags & flag::END_HEADERS == 0 {
                    self.continued = Some((id, is_last, block.to_vec()));
                } else {
                    self.head(id, is_last, block, ended)?;
                }
            }
            kind::CONTINUATION => {
                let Some((of, is_last, mut block)) = self.continued.take().filter(|(of, ..)| *of == id)
                else {
                    return Err(Malformed("a head that goes on without a beginning"));
                };
                block.extend_from_slice(payload);
                if block.len() > 4 * LARGEST_FRAME {
                    return Err(Malformed("a head that does not end"));
                }
                if flags & flag::END_HEADERS == 0 {
                    self.continued = Some((of, is_last, block));
                } else {
                    self.head(of, is_last, &block, ended)?;
                }
            }
            kind::RST_STREAM => {
                if let Some(stream) = self.streams.remove(&id) {
                    // REFUSED_STREAM: nothing was done with it.
                    let is_refused = payload.len() == 4 && number(payload) == 7;
                    ended(Ended {
                        due_ns: stream.due_ns,
                        sent_ns: stream.sent_ns,
                        how: if is_refused { How::Unprocessed } else { How::Reset },
                    });
                }
            }
            kind::SETTINGS if flags & flag::ACK == 0 => {
                if !payload.len().is_multiple_of(6) {
                    return Err(Malformed("settings that are none"));
                }
                for setting in payload.chunks_exact(6) {
                    let value = number(&setting[2..]);
                    match u16::from_be_bytes([setting[0], setting[1]]) {
                        3 => self.most_streams = value,
                        4 => {
                            // It changes the windows of those that are under way as well (6.9.2).
                            let change = i64::from(value) - self.first_window;
                            self.first_window = i64::from(value);
                            self.streams
                                .values_mut()
                                .for_each(|stream| stream.window += change);
                        }
                        _ => {}
                    }
                }
                frame(&mut self.out, kind::SETTINGS, flag::ACK, 0, &[]);
            }
            kind::PING if flags & flag::ACK == 0 => {
                if payload.len() != 8 {
                    return Err(Malformed("a ping that is none"));
                }
                frame(&mut self.out, kind::PING, flag::ACK, 0, payload);
            }
            kind::WINDOW_UPDATE => {
                if payload.len() != 4 {
                    return Err(Malformed("a window that is none"));
                }
                let more = i64::from(number(payload) & 0x7fff_ffff);
                if id == 0 {
                    self.window += more;
                } else if let Some(stream) = self.streams.get_mut(&id) {
                    stream.window += more;
                }
            }
            kind::GOAWAY => {
                if payload.len() < 8 {
                    return Err(Malformed("a farewell that is none"));
                }
                self.is_leaving = true;
                let last = number(payload) & 0x7fff_ffff;
                self.streams.retain(|&id, stream| {
                    if id > last {
                        ended(Ended {
                            due_ns: stream.due_ns,
                            sent_ns: stream.sent_ns,
                            how: How::Unprocessed,
                        });
                    }
                    id <= last
                });
            }
            kind::PUSH_PROMISE => return Err(Malformed("a push that was forbidden")),
            // Acknowledgements, priorities, and what later versions add.
            _ => {}
        }
        Ok(())
    }

    fn head(
        &mut self,
        id: u32,
        is_last: bool,
        block: &[u8],
        ended: &mut impl FnMut(Ended),
    ) -> Result<(), Malformed> {
        let status = status(block)?;
        if let Some(stream) = self.streams.get_mut(&id) {
            match status {
                // Of the hundreds, and of the fields after a body, nothing is kept.
                Some(status) if status >= 200 => stream.status = status,
                None if stream.status == 0 => return Err(Malformed("an answer without a status")),
                _ => {}
            }
        }
        if is_last { self.answered(id, ended) } else { Ok(()) }
    }

    fn answered(&mut self, id: u32, ended: &mut impl FnMut(Ended)) -> Result<(), Malformed> {
        // One that was given up may still be answered.
        let Some(stream) = self.streams.remove(&id) else {
            return Ok(());
        };
        if stream.status == 0 {
            return Err(Malformed("an answer without a status"));
        }
        ended(Ended {
            due_ns: stream.due_ns,
            sent_ns: stream.sent_ns,
            how: How::Answered {
                status: stream.status,
                has_wanted: stream.body.has_wanted,
            },
        });
        Ok(())
    }
}

fn frame(out: &mut Vec<u8>, sort: u8, flags: u8, id: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[sort, flags]);
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(payload);
}

/// The first four bytes.
fn number(bytes: &[u8]) -> u32 {
    bytes
        .get(..4)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u32::from_be_bytes)
}

fn unpadded(flags: u8, payload: &[u8]) -> Result<&[u8], Malformed> {
    if flags & flag::PADDED == 0 {
        return Ok(payload);
    }
    let (&padding, rest) = payload.split_first().ok_or(Malformed("a padding that is none"))?;
    let length = rest.len().checked_sub(padding.into());
    Ok(&rest[..length.ok_or(Malformed("more padding than there is"))?])
}

/// Writes a number of HPACK with a prefix of so many bits (RFC 7541, 5.1).
fn integer(out: &mut Vec<u8>, first: u8, bits: u32, value: usize) {
    let most = (1 << bits) - 1;
    if value < most {
        out.push(first | value as u8);
        return;
    }
    out.push(first | most as u8);
    let mut rest = value - most;
    while rest >= 128 {
        out.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    out.push(rest as u8);
}

/// Reads one, and gives it with what follows.
fn read_integer(bytes: &[u8], bits: u32) -> Result<(usize, &[u8]), Malformed> {
    const SHORT: Malformed = Malformed("a head that ends in the middle");
    let (&first, mut rest) = bytes.split_first().ok_or(SHORT)?;
    let most = (1_usize << bits) - 1;
    let mut value = usize::from(first) & most;
    if value < most {
        return Ok((value, rest));
    }
    for shift in [0, 7, 14, 21] {
        let (&next, after) = rest.split_first().ok_or(SHORT)?;
        rest = after;
        value += usize::from(next & 127) << shift;
        if next & 128 == 0 {
            return Ok((value, rest));
        }
    }
    Err(Malformed("a number in a head that is too large"))
}

/// Reads a text: whether it is Huffman's, its bytes, and what follows.
fn read_text(bytes: &[u8]) -> Result<(bool, &[u8], &[u8]), Malformed> {
    let is_huffman = bytes.first().is_some_and(|first| first & 128 != 0);
    let (length, rest) = read_integer(bytes, 7)?;
    if length > rest.len() {
        return Err(Malformed("a head that ends in the middle"));
    }
    let (text, rest) = rest.split_at(length);
    Ok((is_huffman, text, rest))
}

/// The statuses that HPACK has a number for, from 8 on (RFC 7541, appendix A).
const STATUSES: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
const FIRST_STATUS: usize = 8;

/// Entries of the table that both sides know.
const KNOWN: usize = 61;

/// The status that a head has, if it has one.
fn status(mut block: &[u8]) -> Result<Option<u16>, Malformed> {
    let mut found = None;
    while let Some(&first) = block.first() {
        if first & 0xe0 == 0x20 {
            // The size of a table that has none.
            block = read_integer(block, 5)?.1;
            continue;
        }
        let is_indexed = first & 0x80 != 0;
        let bits = match first {
            0x80.. => 7,
            0x40..0x80 => 6,
            _ => 4,
        };
        let (index, rest) = read_integer(block, bits)?;
        block = rest;
        if index > KNOWN || (is_indexed && index == 0) {
            return Err(Malformed("a head that refers to what was not kept"));
        }
        let is_status = (FIRST_STATUS..FIRST_STATUS + STATUSES.len()).contains(&index);
        if is_indexed {
            if is_status {
                found = Some(STATUSES[index - FIRST_STATUS]);
            }
            continue;
        }
        let mut is_status = is_status;
        if index == 0 {
            let (is_huffman, name, rest) = read_text(block)?;
            is_status = !is_huffman && name == b":status";
            block = rest;
        }
        let (is_huffman, value, rest) = read_text(block)?;
        block = rest;
        if is_status {
            let digits = if is_huffman {
                digits(value)
            } else {
                Some(value.to_vec())
            };
            found = digits
                .and_then(|digits| std::str::from_utf8(&digits).ok()?.parse().ok())
                .map(Some)
                .ok_or(Malformed("a status that is no number"))?;
        }
    }
    Ok(found)
}

/// Digits in Huffman's code (RFC 7541, appendix B): 0 to 2 have five bits, 3 to 9 six.
fn digits(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut digits = Vec::new();
    let bit = |at: usize| {
        bytes
            .get(at / 8)
            .map(|byte| usize::from(byte >> (7 - at % 8) & 1))
    };
    let bits = |at: usize, count: usize| (at..at + count).try_fold(0, |sum, at| Some(sum << 1 | bit(at)?));
    let mut at = 0;
    while at < bytes.len() * 8 {
        match bits(at, 5) {
            Some(short @ 0..=2) => {
                digits.push(b'0' + short as u8);
                at += 5;
                continue;
            }
            // What is left is padding: ones, and fewer than a byte.
            None => {
                return (at..bytes.len() * 8)
                    .all(|at| bit(at) == Some(1))
                    .then_some(digits);
            }
            _ => {}
        }
        match bits(at, 6) {
            Some(long @ 0b01_1001..=0b01_1111) => {
                digits.push(b'3' + (long - 0b01_1001) as u8);
                at += 6;
            }
            _ => {
                let left = bytes.len() * 8 - at;
                let is_padding = left < 8 && (at..bytes.len() * 8).all(|at| bit(at) == Some(1));
                return is_padding.then_some(digits);
            }
        }
    }
    Some(digits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::load::http::tests::get;

    fn started(streams: u64) -> (Session, Request) {
        let request = Request::of(&get());
        let mut session = Session::new();
        for due in 0..streams {
            session.send(&request, due, due + 100);
        }
        (session, request)
    }

    fn take(
        session: &mut Session,
        request: &Request,
        bytes: &[u8],
        piece: usize,
    ) -> Result<Vec<Ended>, Malformed> {
        let mut all = Vec::new();
        for piece in bytes.chunks(piece) {
            session.take(piece, request, Some(b"yes"), |ended| all.push(ended))?;
        }
        Ok(all)
    }

    #[test]
    fn answers_in_any_order_and_any_pieces_are_told_apart() {
        let mut bytes = Vec::new();
        frame(&mut bytes, kind::SETTINGS, 0, 0, &[]);
        // 404 by its number, 200 as a text in two frames, with a padded body.
        frame(
            &mut bytes,
            kind::HEADERS,
            flag::END_HEADERS | flag::END_STREAM,
            3,
            &[0x8d],
        );
        frame(&mut bytes, kind::HEADERS, 0, 1, &[0x48]);
        frame(
            &mut bytes,
            kind::CONTINUATION,
            flag::END_HEADERS,
            1,
            &[0x03, b'2', b'0', b'0'],
        );
        frame(&mut bytes, kind::DATA, flag::PADDED, 1, b"\x02oh y..");
        frame(&mut bytes, kind::DATA, flag::END_STREAM, 1, b"es");
        for piece in 1..=bytes.len() {
            let (mut session, request) = started(2);
            let all = take(&mut session, &request, &bytes, piece).expect("HTTP/2");
            let how = |status, has_wanted| How::Answered { status, has_wanted };
            assert_eq!(
                all.iter()
                    .map(|ended| (ended.due_ns, ended.how))
                    .collect::<Vec<_>>(),
                [(1, how(404, false)), (0, how(200, true))]
            );
            assert_eq!(session.under_way(), 0);
        }
    }

    #[test]
    fn a_status_is_read_in_whatever_way_it_is_written() {
        for (block, expected) in [
            (&[0x88][..], Some(200)),
            (&[0x20, 0x8e], Some(500)),
            (
                &[
                    0x00, 0x07, b':', b's', b't', b'a', b't', b'u', b's', 0x03, b'5', b'0', b'3',
                ],
                Some(503),
            ),
            (&[0x0f, 0x10, 0x01, b'x', 0x89], Some(204)),
        ] {
            if let Some(expected) = expected {
                assert_eq!(status(block), Ok(Some(expected)), "{block:?}");
            }
        }
        assert_eq!(digits(&[0b0110_1100, 0b0000_0111, 0b1111_1111]), None);
        // 302 is 011001 00000 00010.
        assert_eq!(digits(&[0b0110_0100, 0b0000_0010]), Some(b"302".to_vec()));
        // 429 is 011010 00010 011111.
        assert_eq!(
            digits(&[0b0110_1000, 0b0100_1111, 0b1111_1111]).as_deref(),
            Some(b"429".as_slice())
        );
    }

    #[test]
    fn a_peer_that_leaves_says_what_it_did_not_begin() {
        let (mut session, request) = started(3);
        let mut bytes = Vec::new();
        frame(&mut bytes, kind::GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]);
        let all = take(&mut session, &request, &bytes, 100).expect("HTTP/2");
        assert_eq!(
            (all.len(), session.under_way(), session.has_room(10)),
            (2, 1, false)
        );
        assert!(all.iter().all(|ended| ended.how == How::Unprocessed));
    }

    #[test]
    fn a_body_waits_for_the_room_that_the_peer_gives() {
        let mut http = get();
        http.body = vec![7; 100_000];
        let request = Request::of(&http);
        let mut session = Session::new();
        let before = session.output().len();
        session.send(&request, 0, 0);
        let sent = session.output().len() - before;
        // Five frames of at most 16,384 bytes fill the window of 65,535.
        assert!((65_535..66_500).contains(&sent), "{sent}");
        let written = session.output().len();
        session.written(written);
        let mut bytes = Vec::new();
        frame(
            &mut bytes,
            kind::WINDOW_UPDATE,
            0,
            0,
            &1_000_000_u32.to_be_bytes(),
        );
        frame(
            &mut bytes,
            kind::WINDOW_UPDATE,
            0,
            1,
            &1_000_000_u32.to_be_bytes(),
        );
        take(&mut session, &request, &bytes, 100).expect("HTTP/2");
        let sent = session.output().len();
        assert!((100_000 - 65_535..36_000).contains(&sent), "{sent}");
    }

    #[test]
    fn a_ping_and_settings_are_answered() {
        let (mut session, request) = started(0);
        let written = session.output().len();
        session.written(written);
        let mut bytes = Vec::new();
        frame(&mut bytes, kind::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 1]);
        frame(&mut bytes, kind::PING, 0, 0, b"12345678");
        take(&mut session, &request, &bytes, 1).expect("HTTP/2");
        assert_eq!(session.output().len(), HEAD + HEAD + 8);
        session.send(&request, 0, 0);
        assert!(!session.has_room(10), "the peer takes one at a time");
    }

    proptest! {
        #[test]
        fn whatever_comes_is_taken_or_refused(
            frames in prop::collection::vec(
                (0..11u8, any::<u8>(), 0..8u32, prop::collection::vec(any::<u8>(), 0..40)), 0..20),
            piece in 1..50usize,
        ) {
            let (mut session, request) = started(3);
            let mut bytes = Vec::new();
            for (sort, flags, id, payload) in frames {
                frame(&mut bytes, sort, flags, id, &payload);
            }
            let _ = take(&mut session, &request, &bytes, piece);
        }

        #[test]
        fn numbers_are_read_as_they_are_written(value in 0..200_000usize, bits in 4..8u32) {
            let mut out = Vec::new();
            integer(&mut out, 0, bits, value);
            out.push(9);
            prop_assert_eq!(read_integer(&out, bits), Ok((value, &[9][..])));
        }
    }
}
