//! The task of one receiver: it sends what the store says is not sent, and writes down how that went. A receiver that is
//! down keeps nobody else waiting, and what is to be sent to it waits in the store.
//!
//! A message is sent again until it is answered with a status of 200 to 299 or given up; the ones of one assertion in their
//! order. After a crash between the answer and the row that says so it is sent once more, under the same id.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{info, warn};

use super::body;
use super::book::Message;
use crate::assertion::parse::receivers::checked_url;
use crate::assertion::receiver::{ALERTMANAGER_REPEAT, Given, Kind, Receiver};
use crate::clock::{WallClock, ns};
use crate::http;
use crate::seat::Seat;
use crate::store::notifications::{self, Outcome, Unsent};
use crate::store::{Store, StoreError};

/// The pause after the first failure of a message, and the longest one; each is twice the one before.
const FIRST_PAUSE_NS: i64 = 1_000_000_000;
const LONGEST_PAUSE_NS: i64 = 300_000_000_000;

/// The pause after a failure of the store.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// What somebody else has queued, or was queued when the store was busy, is found within this.
const LOOK: Duration = Duration::from_secs(60);

/// Bytes of an answer that become part of a reason.
const REASON_CHARS: usize = 200;

const MINUTE: Duration = Duration::from_secs(60);

/// The task.
pub(super) struct Delivery {
    pub(super) store: Arc<dyn Store>,
    pub(super) seat: Arc<Seat>,
    pub(super) receiver: Receiver,
    pub(super) clock: WallClock,
    /// Something was queued, or it is to end.
    pub(super) queued: Arc<Notify>,
    /// It is to begin nothing more, and to end once it has written down what came of the last attempt.
    pub(super) is_ending: Arc<AtomicBool>,
}

/// When a message is tried next.
pub(super) fn due_ns(unsent: &Unsent) -> i64 {
    match unsent.attempts {
        0 => unsent.queued_ns,
        attempts => {
            let pause_ns = FIRST_PAUSE_NS << (attempts - 1).min(20);
            unsent
                .tried_ns
                .saturating_add(pause_ns.clamp(FIRST_PAUSE_NS, LONGEST_PAUSE_NS))
        }
    }
}

/// When messages were sent, within the last minute.
#[derive(Default)]
struct Pace {
    sent_at: VecDeque<Instant>,
}

impl Pace {
    /// How long the next one waits. Zero: it can be sent.
    fn pause(&mut self, per_minute: u32) -> Duration {
        while self.sent_at.front().is_some_and(|at| at.elapsed() >= MINUTE) {
            self.sent_at.pop_front();
        }
        match self.sent_at.front() {
            Some(first) if self.sent_at.len() >= per_minute as usize => {
                MINUTE.saturating_sub(first.elapsed())
            }
            _ => Duration::ZERO,
        }
    }
}

/// What a message is about, and what therefore keeps its order.
fn assertions(message: &Unsent) -> BTreeSet<String> {
    let told = message.notifications.iter();
    let mut assertions: BTreeSet<String> = told.map(|one| one.change.assertion.clone()).collect();
    if assertions.is_empty() {
        // It is of another version, and cannot be read.
        assertions.insert(message.assertion.clone());
    }
    assertions
}

/// Whether an Alertmanager is told nothing by it but that what it knows is still so.
fn is_kept_alive(receiver: &Receiver, message: &Unsent) -> bool {
    receiver.kind == Kind::Alertmanager
        && !message.notifications.is_empty()
        && message.notifications.iter().all(|one| one.repeat > 0)
}

/// How long a message is tried. That something is still so is soon told anew, and what became of it waits behind this.
fn give_up_after(receiver: &Receiver, message: &Unsent) -> Duration {
    if is_kept_alive(receiver, message) {
        let repeat = receiver.repeat.unwrap_or(ALERTMANAGER_REPEAT);
        repeat.min(receiver.give_up_after)
    } else {
        receiver.give_up_after
    }
}

impl Delivery {
    pub(super) async fn run(self) {
        // Told by the receiver, but not by the store yet. Bounded: nothing is sent while there are many.
        let mut unwritten: Vec<Outcome> = Vec::new();
        let mut pace = Pace::default();
        let mut is_failing = false;
        loop {
            let wait = match self.round(&mut unwritten, &mut pace, &mut is_failing).await {
                Ok(wait) => wait,
                Err(error) => {
                    tracing::debug!(receiver = self.receiver.name, "the store is away: {error}");
                    STORE_PAUSE
                }
            };
            if self.is_ending.load(Ordering::Relaxed) {
                // What the store does not take now is sent again, by whoever is next.
                return;
            }
            tokio::select! {
                () = self.queued.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Sends what is due. How long there is nothing to do after that.
    async fn round(
        &self,
        unwritten: &mut Vec<Outcome>,
        pace: &mut Pace,
        is_failing: &mut bool,
    ) -> Result<Duration, StoreError> {
        self.write(unwritten).await?;
        if self.is_ending.load(Ordering::Relaxed) {
            return Ok(LOOK);
        }
        let unsent = notifications::unsent(&*self.store, &self.receiver.name, self.clock.now_ns()).await?;
        let mut wait = LOOK;
        let mut before: BTreeSet<String> = BTreeSet::new();
        for message in unsent {
            // The next one of the same assertion waits for this one.
            let assertions = assertions(&message);
            let is_next = assertions.is_disjoint(&before);
            before.extend(assertions);
            if !is_next {
                continue;
            }
            let now_ns = self.clock.now_ns();
            let left_ns = due_ns(&message).saturating_sub(now_ns);
            if left_ns > 0 {
                wait = wait.min(Duration::from_nanos(left_ns.unsigned_abs()));
                continue;
            }
            let pause = pace.pause(self.receiver.per_minute);
            if !pause.is_zero() {
                return Ok(wait.min(pause));
            }
            // Whoever has lost the seat sends nothing any more, also if it has not noticed yet.
            self.seat.deadline_ms().await?;
            if self.is_ending.load(Ordering::Relaxed) {
                return Ok(wait);
            }
            pace.sent_at.push_back(Instant::now());
            let outcome = self.attempt(&message).await;
            self.log(&outcome, is_kept_alive(&self.receiver, &message), is_failing);
            unwritten.push(outcome);
            self.write(unwritten).await?;
            // It may have to be tried again, or another one of its assertion is due.
            wait = Duration::ZERO;
        }
        Ok(wait)
    }

    async fn write(&self, unwritten: &mut Vec<Outcome>) -> Result<(), StoreError> {
        while let Some(outcome) = unwritten.first() {
            notifications::settle(&*self.store, outcome).await?;
            unwritten.remove(0);
        }
        Ok(())
    }

    fn log(&self, outcome: &Outcome, is_kept_alive: bool, is_failing: &mut bool) {
        let receiver = &self.receiver.name;
        let (message, reason) = (&outcome.message, &outcome.reason);
        match outcome.state {
            notifications::State::Sent => {
                if std::mem::take(is_failing) {
                    info!(receiver, "notifications are delivered again");
                }
            }
            notifications::State::GivenUp if !is_kept_alive => {
                warn!(receiver, message, reason, "a notification was given up");
            }
            _ => {
                if !std::mem::replace(is_failing, true) {
                    warn!(
                        receiver,
                        reason, "a notification was not delivered; it is tried again"
                    );
                }
            }
        }
    }

    async fn attempt(&self, unsent: &Unsent) -> Outcome {
        let outcome = self.send(unsent).await;
        let at_ns = self.clock.now_ns();
        let is_old = at_ns.saturating_sub(unsent.queued_ns) >= ns(give_up_after(&self.receiver, unsent));
        let (state, reason) = match outcome {
            Ok(status) => (notifications::State::Sent, format!("answered {status}")),
            Err(reason) if is_old => (notifications::State::GivenUp, reason),
            Err(reason) => (notifications::State::Failed, reason),
        };
        Outcome {
            receiver: self.receiver.name.clone(),
            message: unsent.message.clone(),
            assertion: unsent.assertion.clone(),
            state,
            at_ns,
            attempt: unsent.attempts + 1,
            reason,
        }
    }

    /// The status of the answer; or, in words, why it was not taken.
    async fn send(&self, unsent: &Unsent) -> Result<u16, String> {
        let url = read(&self.receiver.url, "the URL")?;
        let mut url = checked_url(&url)
            .map_err(|expected| format!("what the URL is read from has to be {expected}"))?;
        let message = Message {
            id: unsent.message.clone(),
            receiver: self.receiver.name.clone(),
            assertion: unsent.assertion.clone(),
            queued_ns: unsent.queued_ns,
            notifications: unsent.notifications.clone(),
        };
        if message.notifications.is_empty() {
            return Err("what was to be told is of another version".into());
        }
        let now_ns = self.clock.now_ns();
        let body::Request {
            path,
            body,
            mut headers,
        } = body::request(&self.receiver, &message, now_ns);
        if !path.is_empty() {
            let whole = format!("{}{path}", url.path().trim_end_matches('/'));
            url.set_path(&whole);
        }
        match &self.receiver.kind {
            Kind::Webhook {
                secret: Some(secret), ..
            } => {
                let secret = read(secret, "the secret")?;
                headers.push(("holdfast-signature", body::signature(&secret, now_ns, &body)));
            }
            Kind::Webhook { secret: None, .. }
            | Kind::Alertmanager
            | Kind::Slack
            | Kind::DeadMansSwitch { .. } => {}
        }
        let answer = http::send(http::Request {
            url: &url,
            authorities: self.receiver.ca_file.as_deref(),
            headers: &headers,
            body: Some(body),
            timeout: self.receiver.timeout,
        })
        .await
        .map_err(|error| error.to_string())?;
        match answer.status {
            status @ 200..=299 => Ok(status),
            status => {
                let said: String = answer.body.trim().chars().take(REASON_CHARS).collect();
                let colon = if said.is_empty() { "" } else { ": " };
                Err(format!("answered {status}{colon}{said}"))
            }
        }
    }
}

/// The task of a dead man's switch: it asks for a URL as long as assertions are judged.
struct Switch {
    receiver: Receiver,
    every: Duration,
    clock: WallClock,
    /// When assertions were judged last, in nanoseconds since the Unix epoch.
    judged_ns: Arc<AtomicI64>,
}

impl Switch {
    async fn run(self) {
        let mut ticks = tokio::time::interval(self.every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let receiver = &self.receiver.name;
        // At a start nothing was judged yet, and that is nothing to speak of.
        let (mut is_quiet, mut is_failing) = (true, false);
        loop {
            ticks.tick().await;
            let Some(outcome) = self.beat().await else {
                if !std::mem::replace(&mut is_quiet, true) {
                    warn!(
                        receiver,
                        "the dead man's switch is let go: assertions are not judged"
                    );
                }
                tokio::time::sleep(STORE_PAUSE).await;
                ticks.reset_immediately();
                continue;
            };
            is_quiet = false;
            match outcome {
                Ok(()) => is_failing = false,
                Err(reason) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        warn!(receiver, reason, "the dead man's switch cannot be held");
                    }
                }
            }
        }
    }

    /// Asks for the URL; `None`: it does not, since assertions have not been judged for as long as it waits in between.
    async fn beat(&self) -> Option<Result<(), String>> {
        let silent_ns = self
            .clock
            .now_ns()
            .saturating_sub(self.judged_ns.load(Ordering::Relaxed));
        if u128::from(silent_ns.max(0).unsigned_abs()) >= self.every.as_nanos() {
            return None;
        }
        Some(self.ask().await)
    }

    async fn ask(&self) -> Result<(), String> {
        let url = read(&self.receiver.url, "the URL")?;
        let url = checked_url(&url)
            .map_err(|expected| format!("what the URL is read from has to be {expected}"))?;
        let request = http::Request {
            url: &url,
            authorities: self.receiver.ca_file.as_deref(),
            headers: &[],
            body: None,
            timeout: self.receiver.timeout,
        };
        match http::send(request).await {
            Ok(answer) if (200..=299).contains(&answer.status) => Ok(()),
            Ok(answer) => Err(format!("answered {}", answer.status)),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// A text that may be elsewhere. What is in it is not said.
fn read(given: &Given, what: &str) -> Result<String, String> {
    let text = match given {
        Given::Text(text) => text.clone(),
        Given::File(path) => std::fs::read_to_string(path)
            .map_err(|error| format!("cannot read {what} from {}: {error}", path.display()))?,
        Given::Variable(name) => std::env::var(name).map_err(|_| {
            format!("{what} is to be in the variable {name}, which the collector does not have")
        })?,
    };
    match text.trim() {
        "" => Err(format!("{what} is empty where it is read from")),
        text => Ok(text.to_owned()),
    }
}

/// The tasks, by receiver.
#[derive(Default)]
pub(super) struct Deliveries(BTreeMap<String, Running>);

struct Running {
    fingerprint: u32,
    queued: Arc<Notify>,
    is_ending: Arc<AtomicBool>,
    /// It holds a dead man's switch: nothing of it is written down.
    is_switch: bool,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Deliveries {
    /// One task for each receiver; those that are declared no more end, and those that changed begin anew.
    pub(super) fn follow(
        &mut self,
        receivers: &[Receiver],
        store: &Arc<dyn Store>,
        seat: &Arc<Seat>,
        clock: &WallClock,
        judged_ns: &Arc<AtomicI64>,
    ) {
        self.0.retain(|name, running| {
            let declared = receivers.iter().find(|receiver| receiver.name == *name);
            declared.is_some_and(|receiver| receiver.fingerprint() == running.fingerprint)
        });
        for receiver in receivers {
            if self.0.contains_key(&receiver.name) {
                continue;
            }
            let queued = Arc::new(Notify::new());
            let (receiver, clock) = (receiver.clone(), clock.clone());
            let name = receiver.name.clone();
            let fingerprint = receiver.fingerprint();
            let is_ending = Arc::new(AtomicBool::new(false));
            let is_switch = matches!(receiver.kind, Kind::DeadMansSwitch { .. });
            let task = match receiver.kind {
                Kind::DeadMansSwitch { every } => tokio::spawn(
                    Switch {
                        receiver,
                        every,
                        clock,
                        judged_ns: judged_ns.clone(),
                    }
                    .run(),
                ),
                _ => tokio::spawn(
                    Delivery {
                        store: store.clone(),
                        seat: seat.clone(),
                        receiver,
                        clock,
                        queued: queued.clone(),
                        is_ending: is_ending.clone(),
                    }
                    .run(),
                ),
            };
            let running = Running {
                fingerprint,
                queued,
                is_ending,
                is_switch,
                task,
            };
            self.0.insert(name, running);
        }
    }

    /// Ends all tasks; what is being sent is sent to the end, for as long as its receiver is given, and written down, so
    /// that nobody sends it again.
    pub(super) async fn end(&mut self) {
        let ending = std::mem::take(&mut self.0);
        for running in ending.values() {
            running.is_ending.store(true, Ordering::Relaxed);
            running.queued.notify_one();
        }
        for mut running in ending.into_values().filter(|running| !running.is_switch) {
            // One that panicked has ended too.
            let _ = (&mut running.task).await;
        }
    }

    /// Something was queued for a receiver.
    pub(super) fn wake(&self, receiver: &str) {
        if let Some(running) = self.0.get(receiver) {
            running.queued.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assertion::state::Verdict;
    use crate::notify::book::tests::{change, receiver};
    use crate::notify::book::{About, Book, Change};
    use crate::silence::Quiet;

    #[test]
    fn pauses_grow_up_to_five_minutes() {
        let due = |attempts| {
            let unsent = Unsent {
                message: String::new(),
                assertion: String::new(),
                queued_ns: 5,
                attempts,
                tried_ns: 100_000_000_000,
                notifications: Vec::new(),
            };
            due_ns(&unsent)
        };
        assert_eq!(due(0), 5);
        let seconds = |attempts| (due(attempts) - 100_000_000_000) / 1_000_000_000;
        assert_eq!(
            [1, 2, 3, 9, 10, 100, u32::MAX].map(seconds),
            [1, 2, 4, 256, 300, 300, 300]
        );
    }

    #[test]
    fn what_an_alertmanager_is_told_again_is_tried_until_it_would_be_told_anew() {
        let alertmanager = Receiver {
            kind: Kind::Alertmanager,
            repeat: Some(Duration::from_secs(60)),
            ..receiver()
        };
        let mut book = Book::new(alertmanager.clone(), 0, Vec::new());
        for assertion in ["a", "b"] {
            let change = Change {
                assertion: assertion.into(),
                ..change(0, Verdict::Violated)
            };
            book.hear(&change, About::default(), 0, false);
        }
        let mut unsent = |now_ns| {
            let messages = book.due(now_ns, |_| Quiet::Never).into_iter();
            messages
                .map(|message| Unsent {
                    message: message.id,
                    assertion: message.assertion,
                    queued_ns: message.queued_ns,
                    attempts: 0,
                    tried_ns: 0,
                    notifications: message.notifications,
                })
                .collect::<Vec<_>>()
        };
        let (first, again) = (unsent(0), unsent(60_000_000_000));
        assert_eq!((first.len(), again.len()), (2, 1));
        let tried = |message: &Unsent| give_up_after(&alertmanager, message).as_secs();
        assert_eq!((tried(&first[0]), tried(&again[0])), (3_600, 60));
        // Whatever becomes of one of them waits for it.
        assert_eq!(assertions(&again[0]), ["a".to_owned(), "b".to_owned()].into());
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_is_sent_in_a_minute_than_may_be() {
        let seconds = Duration::from_secs;
        let mut pace = Pace::default();
        for _ in 0..2 {
            assert_eq!(pace.pause(2), Duration::ZERO);
            pace.sent_at.push_back(Instant::now());
            tokio::time::advance(seconds(10)).await;
        }
        assert_eq!(pace.pause(2), seconds(40));
        assert_eq!(pace.pause(3), Duration::ZERO);
        tokio::time::advance(seconds(40)).await;
        assert_eq!(pace.pause(2), Duration::ZERO);
        pace.sent_at.push_back(Instant::now());
        assert_eq!(pace.pause(2), seconds(10));
    }

    #[tokio::test]
    async fn a_switch_is_held_only_while_assertions_are_judged() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/alive", listener.local_addr().unwrap());
        let asked = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                head.push(char::from(stream.read_u8().await.unwrap()));
            }
            stream.write_all(b"HTTP/1.1 204 Good\r\n\r\n").await.unwrap();
            head
        });
        let every = Duration::from_secs(60);
        let text = format!("receivers: [{{ name: a, kind: dead_mans_switch, url: '{url}' }}]");
        let source = crate::assertion::document::Source {
            file: "a.yaml",
            text: &text,
        };
        let set = crate::assertion::parse::set(&[source], crate::store::evidence::columns).unwrap();
        let receiver = set.receivers[0].clone();
        assert_eq!(receiver.kind, Kind::DeadMansSwitch { every });
        let switch = Switch {
            receiver,
            every,
            clock: WallClock::new(|| 60_000_000_000),
            judged_ns: Arc::new(AtomicI64::new(0)),
        };
        assert_eq!(switch.beat().await, None);
        switch.judged_ns.store(1, Ordering::Relaxed);
        assert_eq!(switch.beat().await, Some(Ok(())));
        let head = asked.await.unwrap();
        assert!(head.starts_with("GET /alive HTTP/1.1\r\n"), "{head}");
        // Nobody listens there any more.
        assert!(matches!(switch.beat().await, Some(Err(_))));
    }

    #[test]
    fn a_secret_is_never_part_of_a_reason() {
        let missing = Given::Variable("HOLDFAST_TEST_NO_SUCH_VARIABLE".into());
        assert_eq!(
            read(&missing, "the secret"),
            Err(
                "the secret is to be in the variable HOLDFAST_TEST_NO_SUCH_VARIABLE, which the collector does not have"
                    .into()
            )
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(read(&Given::File(file.path().into()), "the secret").is_err());
        std::fs::write(file.path(), "s3cret\n").unwrap();
        assert_eq!(
            read(&Given::File(file.path().into()), "the secret"),
            Ok("s3cret".into())
        );
    }
}
