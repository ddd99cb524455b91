//! What is asked of an HTTP server, and what it shall answer: the request as the bytes that are sent. Pure.

use std::fmt::Write as _;

use super::plan::Nonsense;

/// The longest request that is sent, in bytes, its body included.
pub const LONGEST_REQUEST: usize = 16 << 20;

/// Most requests at once on one connection.
pub const MOST_STREAMS: u32 = 1_000;

/// What is not HTTP, and what is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// A request that is sent again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    pub version: Version,
    pub tls: Option<Tls>,
    pub method: String,
    /// Name and port as they stand in the URL.
    pub authority: String,
    /// With its query.
    pub path: String,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Use a connection again; else each request has its own.
    pub keep_alive: bool,
    /// Requests at once on one connection; one but for HTTP/2.
    pub streams: u32,
    /// Most connections at once.
    pub connections: u64,
    /// Ranges, both ends included; a status outside is an error.
    pub statuses: Vec<(u16, u16)>,
    /// What the body of each answer shall have somewhere; empty: anything.
    pub wanted: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http1,
    Http2,
}

/// How a server proves who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The name that its certificate has.
    pub name: String,
    /// Authorities in PEM to trust instead of those of the machine.
    pub authorities: Vec<u8>,
    /// Trust anybody.
    pub is_blind: bool,
}

impl Http {
    /// # Errors
    /// If something of it cannot be sent; names it.
    pub fn check(&self) -> Result<(), Nonsense> {
        let fault = |text: String| Err(Nonsense(text));
        let is_token = |text: &str| {
            !text.is_empty()
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
        };
        let is_plain = |text: &str| text.bytes().all(|byte| (0x21..0x7f).contains(&byte));
        if !is_token(&self.method) || self.method == "CONNECT" {
            return fault(format!("{:?} is no method that can be asked", self.method));
        }
        if self.authority.is_empty() || !is_plain(&self.authority) {
            return fault(format!("{:?} is no name of a server", self.authority));
        }
        if !self.path.starts_with('/') || !is_plain(&self.path) {
            return fault(format!(
                "the path {:?} cannot be sent: escape what is no plain letter",
                self.path
            ));
        }
        for (name, value) in &self.fields {
            if !is_token(name)
                || value
                    .bytes()
                    .any(|byte| byte < 0x20 && byte != b'\t' || byte == 0x7f)
            {
                return fault(format!("the header {name:?}: {value:?} cannot be sent"));
            }
            if ["content-length", "transfer-encoding", "connection"]
                .iter()
                .any(|own| name.eq_ignore_ascii_case(own))
            {
                return fault(format!(
                    "the header {name} is not to be set: it follows from the rest"
                ));
            }
        }
        if self.body.len() > LONGEST_REQUEST {
            return fault(format!(
                "a body of {} bytes is longer than {LONGEST_REQUEST}",
                self.body.len()
            ));
        }
        if self.connections == 0 {
            return fault("no connections are allowed".into());
        }
        if !(1..=MOST_STREAMS).contains(&self.streams) {
            return fault(format!(
                "{} requests at once on a connection are not from 1 to {MOST_STREAMS}",
                self.streams
            ));
        }
        if self.version == Version::Http1 && self.streams > 1 {
            return fault("several requests at once on a connection need HTTP/2".into());
        }
        if self.statuses.iter().any(|(first, last)| first > last) {
            return fault("a range of statuses that ends before it begins".into());
        }
        Ok(())
    }

    pub fn is_head(&self) -> bool {
        self.method == "HEAD"
    }

    /// Whether a status is as it shall be.
    pub fn expects(&self, status: u16) -> bool {
        self.statuses
            .iter()
            .any(|&(first, last)| (first..=last).contains(&status))
    }

    /// What the body shall have.
    pub fn wanted(&self) -> Option<&[u8]> {
        (!self.wanted.is_empty()).then_some(&self.wanted)
    }

    fn has(&self, name: &str) -> bool {
        self.fields
            .iter()
            .any(|(other, _)| other.eq_ignore_ascii_case(name))
    }

    /// Methods that say something have a length even if it is zero (RFC 9110, 8.6).
    fn has_length(&self) -> bool {
        !self.body.is_empty() || ["POST", "PUT", "PATCH"].contains(&self.method.as_str())
    }

    /// The request as HTTP/1.1 sends it, its body included.
    pub fn bytes(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        // A string takes everything.
        if !self.has("host") {
            let _ = write!(head, "Host: {}\r\n", self.authority);
        }
        if !self.has("user-agent") {
            let _ = write!(head, "User-Agent: {AGENT}\r\n");
        }
        for (name, value) in &self.fields {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        if self.has_length() {
            let _ = write!(head, "Content-Length: {}\r\n", self.body.len());
        }
        if !self.keep_alive {
            head.push_str("Connection: close\r\n");
        }
        head.push_str("\r\n");
        [head.as_bytes(), &self.body].concat()
    }

    /// The fields of the request for HTTP/2, in its order: those with a colon first, names in lower case.
    pub fn pairs(&self) -> Vec<(String, String)> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let host = self
            .fields
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case("host"))
            .map_or(&self.authority, |(_, value)| value);
        let mut pairs = vec![
            (":method".to_owned(), self.method.clone()),
            (":scheme".to_owned(), scheme.to_owned()),
            (":authority".to_owned(), host.clone()),
            (":path".to_owned(), self.path.clone()),
        ];
        if !self.has("user-agent") {
            pairs.push(("user-agent".to_owned(), AGENT.to_owned()));
        }
        let others = self
            .fields
            .iter()
            .filter(|(name, _)| !name.eq_ignore_ascii_case("host"));
        pairs.extend(others.map(|(name, value)| (name.to_ascii_lowercase(), value.clone())));
        if self.has_length() {
            pairs.push(("content-length".to_owned(), self.body.len().to_string()));
        }
        pairs
    }
}

/// How the load names itself to servers.
const AGENT: &str = concat!("holdfast/", env!("CARGO_PKG_VERSION"));

/// The body of an answer, as far as anybody looks at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body {
    /// What was wanted has come.
    pub has_wanted: bool,
    /// The end of what came before: the beginning of what is wanted may be in it.
    tail: Vec<u8>,
}

impl Body {
    pub fn take(&mut self, bytes: &[u8], wanted: Option<&[u8]>) {
        let Some(wanted) = wanted.filter(|_| !self.has_wanted) else {
            return;
        };
        let before = self.tail.len();
        if before > 0 {
            self.tail
                .extend_from_slice(&bytes[..bytes.len().min(wanted.len() - 1)]);
        }
        self.has_wanted = has(&self.tail, wanted) || has(bytes, wanted);
        // As many of the last bytes as may be a beginning.
        self.tail.truncate(before);
        self.tail
            .extend_from_slice(&bytes[bytes.len().saturating_sub(wanted.len() - 1)..]);
        let surplus = self.tail.len().saturating_sub(wanted.len() - 1);
        self.tail.drain(..surplus);
    }
}

fn has(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn get() -> Http {
        Http {
            version: Version::Http1,
            tls: None,
            method: "GET".into(),
            authority: "web:8080".into(),
            path: "/a?b=c".into(),
            fields: vec![],
            body: vec![],
            keep_alive: true,
            streams: 1,
            connections: 10,
            statuses: vec![(200, 399)],
            wanted: vec![],
        }
    }

    #[test]
    fn a_request_is_written_as_servers_read_it() {
        let agent = AGENT;
        assert_eq!(
            String::from_utf8(get().bytes()).expect("text"),
            format!("GET /a?b=c HTTP/1.1\r\nHost: web:8080\r\nUser-Agent: {agent}\r\n\r\n")
        );
        let mut post = get();
        post.method = "POST".into();
        post.fields = vec![("Host".into(), "other".into()), ("X-Id".into(), "7".into())];
        post.body = b"hello".to_vec();
        post.keep_alive = false;
        assert_eq!(
            String::from_utf8(post.bytes()).expect("text"),
            format!(
                "POST /a?b=c HTTP/1.1\r\nUser-Agent: {agent}\r\nHost: other\r\nX-Id: 7\r\nContent-Length: 5\r\n\
                 Connection: close\r\n\r\nhello"
            )
        );
        let pairs = post.pairs();
        assert_eq!(pairs[2], (":authority".into(), "other".into()));
        assert!(
            pairs.contains(&("x-id".into(), "7".into())) && !pairs.iter().any(|(name, _)| name == "host")
        );
    }

    #[test]
    fn what_cannot_be_sent_is_named() {
        let refused = |change: fn(&mut Http), part: &str| {
            let mut http = get();
            change(&mut http);
            let error = http.check().expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        };
        assert_eq!(get().check(), Ok(()));
        refused(|http| http.method = "GE T".into(), "method");
        refused(|http| http.path = "a".into(), "path");
        refused(|http| http.path = "/a b".into(), "path");
        refused(
            |http| http.fields = vec![("X".into(), "a\r\nY: b".into())],
            "header",
        );
        refused(
            |http| http.fields = vec![("Content-Length".into(), "3".into())],
            "Content-Length",
        );
        refused(|http| http.streams = 2, "HTTP/2");
        refused(|http| http.connections = 0, "no connections");
        refused(|http| http.statuses = vec![(400, 200)], "statuses");
    }

    proptest! {
        #[test]
        fn what_is_wanted_is_found_wherever_the_body_is_cut(
            body in prop::collection::vec(prop::sample::select(b"abc".to_vec()), 0..60),
            wanted in prop::collection::vec(prop::sample::select(b"abc".to_vec()), 1..6),
            piece in 1..10usize,
        ) {
            let mut seen = Body::default();
            for part in body.chunks(piece) {
                seen.take(part, Some(&wanted));
            }
            prop_assert_eq!(seen.has_wanted, has(&body, &wanted));
        }
    }
}
