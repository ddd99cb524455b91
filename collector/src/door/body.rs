//! The body of a request, as it comes in: how long its messages may take.
//!
//! A message is in memory from its first byte on, and a request whose message never comes keeps its connection's place. So
//! one that has begun has to go on and to come to its end, and the first one has to come. Only the time counts in which
//! somebody waits for the body: an agent that is not read, for lack of room, is not late. What is asked counts with all
//! other questions (`memory`), and is refused where these leave no room for it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{self, Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tonic::body::Body;

use super::memory::Held;
use crate::metrics::{Metrics, refusal};

/// How long is waited for the messages of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// For a next byte: of a message that has begun, and of the first one.
    pub byte: Duration,
    /// For all of a message once it has begun, however slow the way is.
    pub message: Duration,
    /// For the first byte of each message after the first one; `None`: for ever.
    pub next: Option<Duration>,
}

/// What one is told whose question finds no room.
const NO_ROOM: &str = "what others ask at this moment leaves no room for this question: ask again";

/// What gRPC puts before a message: whether it is compressed, and its length.
const HEAD_BYTES: u8 = 5;

/// Where messages begin and end.
#[derive(Debug, Default)]
struct Framing {
    /// Bytes of the head that have come.
    head: u8,
    /// Of the message, bytes that are still to come; of a head that is not whole, what is known of the length.
    left: u32,
}

impl Framing {
    /// Takes what has come. True if a message came to its end.
    fn take(&mut self, mut bytes: &[u8]) -> bool {
        let mut has_ended = false;
        while let Some((first, rest)) = bytes.split_first() {
            if self.head < HEAD_BYTES {
                if self.head > 0 {
                    self.left = self.left << 8 | u32::from(*first);
                }
                self.head += 1;
                bytes = rest;
            } else {
                let of_this = bytes.len().min(self.left as usize);
                self.left -= of_this as u32;
                bytes = &bytes[of_this..];
            }
            if self.head == HEAD_BYTES && self.left == 0 {
                self.head = 0;
                has_ended = true;
            }
        }
        has_ended
    }

    /// Whether a message has begun that is not whole.
    fn is_within(&self) -> bool {
        self.head > 0
    }
}

/// A body that ends with a status when it takes too long, or too much.
pub(super) struct Paced {
    body: Body,
    pace: Pace,
    framing: Framing,
    has_message: bool,
    held: Option<Arc<Held>>,
    /// Of that, what the first message takes: it is needed for as long as it is worked on.
    first_bytes: usize,
    /// How long was waited for the message that has begun.
    waited: Duration,
    /// While somebody waits: since when, and until when.
    wait: Option<(Instant, Pin<Box<Sleep>>)>,
    is_over: bool,
    metrics: Arc<Metrics>,
}

impl Paced {
    pub(super) fn new(body: Body, pace: Pace, held: Option<Arc<Held>>, metrics: Arc<Metrics>) -> Self {
        Self {
            body,
            pace,
            framing: Framing::default(),
            has_message: false,
            held,
            first_bytes: 0,
            waited: Duration::ZERO,
            wait: None,
            is_over: false,
            metrics,
        }
    }

    /// How long a wait that begins now may last.
    fn patience(&self) -> Option<Duration> {
        let Pace { byte, message, next } = self.pace;
        if self.framing.is_within() {
            Some(byte.min(message.saturating_sub(self.waited)))
        } else if self.has_message {
            next
        } else {
            Some(byte)
        }
    }

    /// False if there is no room for these bytes.
    fn came(&mut self, bytes: &[u8]) -> bool {
        // A frame without a byte is no progress.
        if bytes.is_empty() {
            return true;
        }
        if self.held.as_ref().is_some_and(|held| !held.take(bytes.len())) {
            return false;
        }
        if let Some((since, _)) = self.wait.take()
            && self.framing.is_within()
        {
            self.waited += since.elapsed();
        }
        if self.framing.take(bytes) {
            self.waited = Duration::ZERO;
            if let Some(held) = &self.held {
                match self.has_message {
                    true => held.shrink_to(self.first_bytes),
                    false => self.first_bytes = held.held_bytes(),
                }
            }
            self.has_message = true;
        }
        true
    }
}

impl body::Body for Paced {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.is_over {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            if let Some(Ok(frame)) = &frame
                && let Some(bytes) = frame.data_ref()
                && !this.came(bytes)
            {
                this.is_over = true;
                this.metrics.refused(refusal::CROWD);
                return Poll::Ready(Some(Err(Status::resource_exhausted(NO_ROOM))));
            }
            return Poll::Ready(frame);
        }
        let Some(patience) = this.patience() else {
            return Poll::Pending;
        };
        let (_, sleep) = this
            .wait
            .get_or_insert_with(|| (Instant::now(), Box::pin(tokio::time::sleep(patience))));
        if sleep.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        this.is_over = true;
        this.metrics.refused(refusal::SILENT);
        let late = match this.framing.is_within() {
            true => "a message has begun and does not come to its end",
            false => "no message came in time",
        };
        Poll::Ready(Some(Err(Status::deadline_exceeded(late))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, StreamBody};
    use proptest::prelude::*;
    use tokio::sync::mpsc;
    use tokio_stream::StreamExt;
    use tokio_stream::wrappers::UnboundedReceiverStream;

    use super::*;
    use crate::door::memory::Memory;

    const PACE: Pace = Pace {
        byte: Duration::from_secs(30),
        message: Duration::from_secs(300),
        next: Some(Duration::from_secs(30)),
    };

    fn message(length: u32) -> Vec<u8> {
        let mut message = vec![0];
        message.extend(length.to_be_bytes());
        message.resize(message.len() + length as usize, 7);
        message
    }

    /// Sends bytes in these pieces, each so long after the one before, and nothing more. Gives how many came, and after how
    /// long what status.
    async fn ends(pace: Pace, pieces: Vec<(Duration, Vec<u8>)>) -> (usize, Duration, Status) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let frames = UnboundedReceiverStream::new(receiver)
            .map(|bytes: Vec<u8>| Ok::<_, Status>(Frame::data(Bytes::from(bytes))));
        let metrics = Arc::new(Metrics::new(&[]).unwrap());
        let mut body = Paced::new(Body::new(StreamBody::new(frames)), pace, None, metrics.clone());
        let began = Instant::now();
        let _sending = tokio::spawn(async move {
            for (pause, piece) in pieces {
                tokio::time::sleep(pause).await;
                sender.send(piece).unwrap();
            }
            std::future::pending::<()>().await;
        });
        let mut came = 0;
        loop {
            match body.frame().await.expect("it does not end by itself") {
                Ok(frame) => came += frame.into_data().unwrap().len(),
                Err(status) => {
                    assert!(body.frame().await.is_none());
                    let line = "holdfast_refusals_total{reason=\"silent\"} 1\n";
                    assert!(metrics.exposition().unwrap().contains(line));
                    return (came, began.elapsed(), status);
                }
            }
        }
    }

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_without_a_message_ends() {
        let (came, after, status) = ends(PACE, vec![]).await;
        assert_eq!((came, after.as_secs()), (0, 30));
        assert_eq!(status.message(), "no message came in time");
        let frames_without_bytes = (0..9).map(|_| (s(10), vec![])).collect();
        assert_eq!(ends(PACE, frames_without_bytes).await.1.as_secs(), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_more_is_sent_away_where_something_is_due() {
        let pieces = || vec![(s(20), message(9)), (s(20), message(0)), (s(25), message(3))];
        let (came, after, status) = ends(PACE, pieces()).await;
        assert_eq!((came, after.as_secs()), (14 + 5 + 8, 65 + 30));
        assert_eq!(status.message(), "no message came in time");
        // Where nothing is due, one may come at any time, and has to come to its end then.
        let asking = Pace { next: None, ..PACE };
        let mut pieces = pieces();
        pieces.push((s(3_600), message(9)[..6].to_vec()));
        let (came, after, status) = ends(asking, pieces).await;
        assert_eq!((came, after.as_secs()), (27 + 6, 65 + 3_600 + 30));
        assert_eq!(
            status.message(),
            "a message has begun and does not come to its end"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_may_come_slowly_but_not_for_ever() {
        let slowly = |bytes: Vec<u8>| bytes.into_iter().map(|byte| (s(20), vec![byte]));
        // Two of 200 s each.
        let pieces = slowly(message(5)).chain(slowly(message(5))).collect();
        assert_eq!(ends(PACE, pieces).await.1.as_secs(), 400 + 30);
        let (came, after, status) = ends(PACE, slowly(message(500)).collect()).await;
        // Its time begins with its first byte.
        assert_eq!((came, after.as_secs()), (15, 20 + 300));
        assert_eq!(
            status.message(),
            "a message has begun and does not come to its end"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_nobody_reads_does_not_count() {
        let (sender, receiver) = mpsc::unbounded_channel();
        let frames = UnboundedReceiverStream::new(receiver)
            .map(|bytes: Vec<u8>| Ok::<_, Status>(Frame::data(Bytes::from(bytes))));
        let metrics = Arc::new(Metrics::new(&[]).unwrap());
        let mut body = Paced::new(Body::new(StreamBody::new(frames)), PACE, None, metrics);
        let whole = message(100);
        for piece in whole.chunks(10) {
            sender.send(piece.to_vec()).unwrap();
            body.frame().await.unwrap().unwrap();
            tokio::time::sleep(s(100)).await;
        }
        sender.send(message(1)).unwrap();
        body.frame().await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_question_holds_its_bytes_and_one_without_room_ends() {
        // Three bytes for each of a question of plain text.
        let memory = Memory::new(3 * 40);
        let metrics = Arc::new(Metrics::new(&[]).unwrap());
        let body = |messages: &[u32], held: &Arc<Held>| {
            let frames: Vec<_> = messages
                .iter()
                .map(|length| Ok::<_, Status>(Frame::data(Bytes::from(message(*length)))))
                .collect();
            let body = Body::new(StreamBody::new(tokio_stream::iter(frames)));
            Paced::new(body, PACE, Some(held.clone()), metrics.clone())
        };
        const SQL: &str = "/holdfast.v1.Query/Sql";
        let first = Arc::new(memory.hold(SQL));
        let mut asking = body(&[15, 10, 10], &first);
        for _ in 0..3 {
            asking.frame().await.unwrap().unwrap();
        }
        // Also after the body is read: what was asked is worked on. What was said later is not kept.
        drop(asking);
        assert_eq!(first.held_bytes(), 3 * 20);
        let second = Arc::new(memory.hold(SQL));
        let mut crowded = body(&[16, 1], &second);
        let status = crowded.frame().await.unwrap().unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (tonic::Code::ResourceExhausted, NO_ROOM)
        );
        assert!(crowded.frame().await.is_none());
        let line = "holdfast_refusals_total{reason=\"crowd\"} 1\n";
        assert!(metrics.exposition().unwrap().contains(line));
        drop(first);
        let mut again = body(&[16], &second);
        again.frame().await.unwrap().unwrap();
    }

    proptest! {
        #[test]
        fn however_messages_are_cut_their_ends_are_found(
            lengths in prop::collection::vec(0_u32..300, 1..8),
            cuts in prop::collection::vec(1_usize..40, 1..400),
        ) {
            let mut bytes = Vec::new();
            let mut ends = Vec::new();
            for length in lengths {
                bytes.extend(message(length));
                ends.push(bytes.len());
            }
            let mut framing = Framing::default();
            let mut at = 0_usize;
            for cut in cuts.into_iter().chain([usize::MAX]) {
                let to = at.saturating_add(cut).min(bytes.len());
                let ended = framing.take(&bytes[at..to]);
                prop_assert_eq!(ended, ends.iter().any(|end| (at + 1..=to).contains(end)));
                prop_assert_eq!(framing.is_within(), to > 0 && !ends.contains(&to));
                at = to;
            }
        }
    }
}
