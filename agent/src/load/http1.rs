//! An HTTP/1.1 response as it comes in, piece by piece. Pure: bytes in, an end or an error out.

use std::mem::MaybeUninit;

use super::http::{Body, Malformed};

/// The longest head that is taken, in bytes.
const LONGEST_HEAD: usize = 64 << 10;

/// Most fields of a head.
const MOST_FIELDS: usize = 128;

/// Where a response stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Head,
    /// So many bytes of the body are to come.
    Sized(u64),
    ChunkSize,
    Chunk(u64),
    /// The line end after a chunk.
    ChunkEnd,
    /// Fields after the last chunk, up to an empty line.
    Trailers,
    /// All that comes until the peer closes.
    UntilClose,
}

/// A response under way; [`Response::begin`] for the next one.
#[derive(Debug, Default)]
pub struct Response {
    state: State,
    pub status: u16,
    /// The connection cannot serve another request after it.
    pub is_last: bool,
    is_head_request: bool,
    /// What has come of a head, or of a line between chunks, that is not complete.
    partial: Vec<u8>,
    pub body: Body,
}

impl Response {
    /// Of the next request on the connection. A response to HEAD has no body, whatever it says.
    pub fn begin(&mut self, is_head_request: bool) {
        self.state = State::Head;
        self.status = 0;
        self.is_last = false;
        self.is_head_request = is_head_request;
        self.partial.clear();
        self.body = Body::default();
    }

    /// Takes what came; true once the response is complete. `wanted` is what its body shall have.
    ///
    /// # Errors
    /// If it is no response, or something follows it: nobody has asked for that yet.
    pub fn take(&mut self, mut bytes: &[u8], wanted: Option<&[u8]>) -> Result<bool, Malformed> {
        loop {
            match self.state {
                State::Head => {
                    let Some(length) = self.head(bytes)? else {
                        return Ok(false);
                    };
                    bytes = &bytes[length..];
                    if self.is_complete_after_head() {
                        return complete(bytes);
                    }
                }
                State::Sized(left) => {
                    let (part, rest) = split(bytes, left);
                    self.body.take(part, wanted);
                    let left = left - part.len() as u64;
                    self.state = State::Sized(left);
                    if left == 0 {
                        return complete(rest);
                    }
                    return Ok(false);
                }
                State::Chunk(left) => {
                    let (part, rest) = split(bytes, left);
                    self.body.take(part, wanted);
                    let left = left - part.len() as u64;
                    if left > 0 {
                        self.state = State::Chunk(left);
                        return Ok(false);
                    }
                    (self.state, bytes) = (State::ChunkEnd, rest);
                }
                State::ChunkSize | State::ChunkEnd | State::Trailers => {
                    let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
                        return self.keep(bytes).map(|()| false);
                    };
                    let (line, rest) = bytes.split_at(end + 1);
                    bytes = rest;
                    self.keep(line)?;
                    if self.line()? {
                        return complete(bytes);
                    }
                }
                State::UntilClose => {
                    self.body.take(bytes, wanted);
                    return Ok(false);
                }
            }
        }
    }

    /// The peer has closed; true if that completes the response.
    pub fn closed(&self) -> bool {
        self.state == State::UntilClose
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        if self.partial.len() + bytes.len() > LONGEST_HEAD {
            return Err(Malformed("a head or a line that does not end"));
        }
        self.partial.extend_from_slice(bytes);
        Ok(())
    }

    /// Parses a head; how many of `bytes` belong to it, once it is complete.
    fn head(&mut self, bytes: &[u8]) -> Result<Option<usize>, Malformed> {
        if self.partial.is_empty() {
            // The usual case: all of it at once, and nothing is copied.
            let length = self.parse(bytes)?;
            if length.is_none() {
                self.keep(bytes)?;
            }
            return Ok(length);
        }
        let before = self.partial.len();
        self.keep(bytes)?;
        let partial = std::mem::take(&mut self.partial);
        let length = self.parse(&partial)?;
        if length.is_none() {
            self.partial = partial;
        }
        Ok(length.map(|length| length - before))
    }

    fn parse(&mut self, bytes: &[u8]) -> Result<Option<usize>, Malformed> {
        // Four kilobytes that nobody has to clear for each answer.
        let mut fields = [const { MaybeUninit::uninit() }; MOST_FIELDS];
        let mut response = httparse::Response::new(&mut []);
        let parser = httparse::ParserConfig::default();
        let length = match parser.parse_response_with_uninit_headers(&mut response, bytes, &mut fields) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(Malformed("what comes is no HTTP/1.1 response")),
        };
        self.status = response.code.unwrap_or(0);
        // An HTTP/1.0 server closes unless it says otherwise.
        self.is_last = response.version == Some(0);
        let mut sized = None;
        let mut is_chunked = false;
        for field in response.headers.iter() {
            let is = |name: &str| field.name.eq_ignore_ascii_case(name);
            if is("content-length") {
                let text = std::str::from_utf8(field.value).ok();
                let length: u64 = text
                    .and_then(|text| text.trim().parse().ok())
                    .ok_or(Malformed("a Content-Length that is no number"))?;
                if sized.is_some_and(|other| other != length) {
                    return Err(Malformed("two lengths of one body"));
                }
                sized = Some(length);
            } else if is("transfer-encoding") {
                is_chunked = has_token(field.value, b"chunked");
            } else if is("connection") {
                if has_token(field.value, b"close") {
                    self.is_last = true;
                } else if has_token(field.value, b"keep-alive") {
                    self.is_last = false;
                }
            }
        }
        let has_no_body = self.is_head_request || matches!(self.status, 100..=199 | 204 | 304);
        self.state = match sized {
            _ if has_no_body => State::Sized(0),
            // Chunks count, whatever else is said (RFC 9112, 6.3).
            _ if is_chunked => State::ChunkSize,
            Some(length) => State::Sized(length),
            None => {
                self.is_last = true;
                State::UntilClose
            }
        };
        Ok(Some(length))
    }

    /// After a head: true if there is no more. One of the hundreds comes before the real one.
    fn is_complete_after_head(&mut self) -> bool {
        if (100..200).contains(&self.status) && self.status != 101 {
            self.state = State::Head;
            return false;
        }
        self.state == State::Sized(0)
    }

    /// Takes the complete line that was kept; true if it is the last one.
    fn line(&mut self) -> Result<bool, Malformed> {
        let line = std::mem::take(&mut self.partial);
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        match self.state {
            State::ChunkSize => {
                let digits = text.split(|&byte| byte == b';').next().unwrap_or_default();
                let size = std::str::from_utf8(digits)
                    .ok()
                    .and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok())
                    .ok_or(Malformed("a chunk without a size"))?;
                self.state = if size == 0 {
                    State::Trailers
                } else {
                    State::Chunk(size)
                };
            }
            State::ChunkEnd if text.is_empty() => self.state = State::ChunkSize,
            State::ChunkEnd => return Err(Malformed("a chunk that does not end where it should")),
            _ => return Ok(text.is_empty()),
        }
        Ok(false)
    }
}

fn complete(rest: &[u8]) -> Result<bool, Malformed> {
    if rest.is_empty() {
        Ok(true)
    } else {
        Err(Malformed("more came than was asked for"))
    }
}

fn split(bytes: &[u8], at: u64) -> (&[u8], &[u8]) {
    bytes.split_at(usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len()))
}

/// Whether a list of words, separated by commas, has one.
fn has_token(list: &[u8], token: &[u8]) -> bool {
    list.split(|&byte| byte == b',')
        .any(|word| word.trim_ascii().eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds a response in pieces of a size; the status, whether it is complete, and whether the body had what was wanted.
    fn read(text: &[u8], piece: usize, wanted: Option<&[u8]>) -> Result<(u16, bool, bool), Malformed> {
        let mut response = Response::default();
        response.begin(false);
        let mut is_complete = false;
        for piece in text.chunks(piece) {
            assert!(!is_complete, "it was complete before its end");
            is_complete = response.take(piece, wanted)?;
        }
        Ok((
            response.status,
            is_complete || response.closed(),
            response.body.has_wanted,
        ))
    }

    const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4;a=b\r\nwell\r\nA\r\n, it works\r\n0\r\nX: y\r\n\r\n";

    #[test]
    fn a_response_is_the_same_in_whatever_pieces_it_comes() {
        let responses: [(&[u8], u16, bool); 7] = [
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\nwell, it works",
                200,
                true,
            ),
            (CHUNKED, 200, true),
            (b"HTTP/1.1 200 OK\r\n\r\nwell, it works", 200, true),
            (b"HTTP/1.1 204 No Content\r\n\r\n", 204, false),
            (
                b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno",
                404,
                false,
            ),
            (
                b"HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n",
                304,
                false,
            ),
            (
                b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\nConnection: close\r\n\r\n",
                500,
                false,
            ),
        ];
        for (text, status, has_wanted) in responses {
            for piece in 1..=text.len() {
                assert_eq!(
                    read(text, piece, Some(b", it")),
                    Ok((status, true, has_wanted)),
                    "{} in pieces of {piece}",
                    String::from_utf8_lossy(text)
                );
            }
        }
    }

    #[test]
    fn what_is_no_response_is_refused() {
        for text in [
            &b"SSH-2.0-OpenSSH_9.2\r\n"[..],
            b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
        ] {
            assert!(
                read(text, text.len(), None).is_err(),
                "{}",
                String::from_utf8_lossy(text)
            );
        }
        let endless = [b"HTTP/1.1 200 OK\r\nX: ".to_vec(), vec![b'x'; LONGEST_HEAD]].concat();
        assert!(read(&endless, 4_096, None).is_err());
    }

    #[test]
    fn a_server_says_whether_the_connection_goes_on() {
        for (text, is_last) in [
            (&b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"[..], false),
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: Close\r\n\r\n",
                true,
            ),
            (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", true),
            (
                b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n",
                false,
            ),
        ] {
            let mut response = Response::default();
            response.begin(false);
            assert_eq!(response.take(text, None), Ok(true));
            assert_eq!(response.is_last, is_last, "{}", String::from_utf8_lossy(text));
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_an_answer_or_an_error(
            bytes in prop::collection::vec(any::<u8>(), 0..400),
            piece in 1..50usize,
        ) {
            let with_head = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".as_slice(), &bytes].concat();
            for text in [&bytes, &with_head] {
                let mut response = Response::default();
                response.begin(false);
                for piece in text.chunks(piece) {
                    if response.take(piece, Some(b"ab")) != Ok(false) {
                        break;
                    }
                }
            }
        }
    }
}
