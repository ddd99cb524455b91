//! What one receiver is told: from changes of verdicts, and what it was told before, to messages. Pure: the time is an
//! argument.
//!
//! Whatever is decided here is decided alike when the same changes come again, so a collector that was killed before a
//! message was stored comes to the same one. Each change has an id that does not depend on when it was judged, and what
//! has been told under an id is not told again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write;

use ring::digest;
use serde::{Deserialize, Serialize};

use crate::assertion::cause::Over;
use crate::assertion::receiver::{Kind, Receiver};
use crate::assertion::state::Verdict;
use crate::clock::ns;
use crate::silence::{Of, Quiet};
use crate::store::verdicts::{IS_OVER, Record};

/// Verdicts in one message at most; more make another one.
const MOST_IN_A_MESSAGE: usize = 100;

/// Of one key, what was told last is remembered so often.
const REMEMBERED: usize = 32;

/// A key that holds again is forgotten so long after that was told.
const FORGOTTEN_AFTER_NS: i64 = 48 * 3_600_000_000_000;

/// Instead of an assertion, which always has a name: of several.
const SEVERAL: &str = "";

/// A verdict that became another one, or that was said otherwise once late rows had come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    pub assertion: String,
    pub key: String,
    pub verdict: Verdict,
    pub since_ns: i64,
    pub window_from_ns: i64,
    pub window_to_ns: i64,
    pub judged_ns: i64,
    /// The condition that decided, what was read for it, and of how many rows.
    pub condition: String,
    pub value: Option<f64>,
    pub samples: u64,
    /// As in the store; of what was queued before this was told, not known.
    #[serde(default)]
    pub loss: Option<u64>,
    /// Why it is unknown.
    pub cause: String,
    /// JSON, as in the store.
    pub evidence: String,
    pub severity: String,
    pub labels: BTreeMap<String, String>,
    pub revision: u32,
    pub fingerprint: u32,
}

impl Change {
    /// `None` for a record that changes nothing: a heartbeat.
    pub fn of(record: &Record) -> Option<Self> {
        (record.is_transition || record.revision > 0).then(|| Self {
            assertion: record.assertion.clone(),
            key: record.key.clone(),
            verdict: record.machine.verdict,
            since_ns: record.machine.since_ns,
            window_from_ns: record.window_from_ns,
            window_to_ns: record.window_to_ns,
            judged_ns: record.judged_ns,
            condition: record.condition.clone(),
            value: record.value,
            samples: record.samples,
            loss: record.loss,
            cause: record.cause.clone(),
            evidence: record.evidence.clone(),
            severity: record.severity.clone(),
            labels: record.labels.iter().cloned().collect(),
            revision: record.revision,
            fingerprint: record.fingerprint,
        })
    }

    /// Whether the key is judged no more. What it was told to be is over.
    pub fn is_over(&self) -> bool {
        self.evidence == IS_OVER
    }

    /// What is said of it.
    pub fn said(&self) -> &'static str {
        if self.is_over() {
            "ended"
        } else {
            self.verdict.name()
        }
    }

    /// What it counts as: of what is judged no more, nothing is open.
    fn counts_as(&self) -> Verdict {
        if self.is_over() {
            Verdict::Holds
        } else {
            self.verdict
        }
    }

    /// What silences are held against.
    pub fn subject(&self) -> Of<'_> {
        Of {
            assertion: &self.assertion,
            key: &self.key,
            severity: &self.severity,
            labels: &self.labels,
        }
    }

    /// Of two changes of one key the later one is about the later window, or knows more of the same.
    pub fn order(&self) -> Order {
        (self.window_to_ns, self.revision)
    }
}

/// The end of a window, and the revision of what was said of it.
pub type Order = (i64, u32);

/// What an assertion says beside its verdict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    pub description: String,
    pub runbook: String,
}

/// One verdict of a message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Notification {
    /// The same, however often it is decided and sent.
    pub id: String,
    /// What this receiver was told of the key before.
    pub told_before: Option<Verdict>,
    /// How often it was told before that it is still so.
    pub repeat: u32,
    pub description: String,
    pub runbook: String,
    pub change: Change,
}

/// What is sent at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Made of its notifications' ids.
    pub id: String,
    pub receiver: String,
    /// What its verdicts are of; empty: of several.
    pub assertion: String,
    pub queued_ns: i64,
    /// Never empty; in the order in which they were decided.
    pub notifications: Vec<Notification>,
}

/// What a receiver was told, and what waits to be told with other things.
#[derive(Debug)]
pub struct Book {
    receiver: Receiver,
    /// Of what changed before, only where it stands is told.
    begun_ns: i64,
    /// By assertion and key: those of which something was told, or is held back.
    lines: BTreeMap<(String, String), Line>,
    /// What is decided, and since when the first of it waits.
    groups: BTreeMap<Group, (i64, Vec<Notification>)>,
    forgot_ns: i64,
}

/// What is told together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    /// Of one assertion.
    Assertion(String),
    /// What can be told no more, and what can be told again: a node that is silent is one reason for many assertions, and one
    /// message.
    Evidence,
    /// What an Alertmanager is told again.
    Again,
}

#[derive(Debug, Default)]
struct Line {
    /// In the order in which it was told.
    told: VecDeque<Told>,
    /// The latest change that was heard, and what is known of its assertion.
    current: Option<(Change, About)>,
    /// The latest that was told, as it was told.
    as_told: Option<(Change, About)>,
    /// The latest change is not told because of a silence.
    is_held: bool,
    /// With what the latest that was decided waits. What is decided next waits there too, so it comes after it.
    waits_in: Option<Group>,
}

#[derive(Debug)]
struct Told {
    id: String,
    verdict: Verdict,
    order: Order,
    at_ns: i64,
    repeat: u32,
}

/// What is told again: of which assertion and key, what was told before, and how often it was told again with this.
type Again = ((String, String), Change, About, Verdict, u32);

impl Line {
    /// What was told of the latest window.
    fn last(&self) -> Option<&Told> {
        self.told.iter().max_by_key(|told| (told.order, told.repeat))
    }

    fn last_mut(&mut self) -> Option<&mut Told> {
        self.told.iter_mut().max_by_key(|told| (told.order, told.repeat))
    }

    /// Takes a change that is not older than the latest one; whether it is that.
    fn hear(&mut self, change: &Change, about: About) -> bool {
        let known = self.current.as_ref();
        let is_latest = known.is_none_or(|(known, _)| known.order() <= change.order());
        if is_latest {
            self.current = Some((change.clone(), about));
        }
        is_latest
    }

    /// What was decided leaves, and counts as told.
    fn sent(&mut self, notification: &Notification) {
        self.waits_in = None;
        if self.last().is_some_and(|last| last.id == notification.id) {
            let about = About {
                description: notification.description.clone(),
                runbook: notification.runbook.clone(),
            };
            self.as_told = Some((notification.change.clone(), about));
        }
    }

    fn tell(&mut self, told: Told) {
        if self.told.len() == REMEMBERED {
            self.told.pop_front();
        }
        self.told.push_back(told);
    }
}

impl Book {
    /// `told`: what the store says was told before, and when, oldest first.
    pub fn new(receiver: Receiver, begun_ns: i64, told: Vec<(i64, Notification)>) -> Self {
        let mut book = Self {
            receiver,
            begun_ns,
            lines: BTreeMap::new(),
            groups: BTreeMap::new(),
            forgot_ns: 0,
        };
        for (at_ns, notification) in told {
            let change = notification.change;
            let about = About {
                description: notification.description,
                runbook: notification.runbook,
            };
            let line = book.lines.entry(place(&change)).or_default();
            line.tell(Told {
                id: notification.id,
                verdict: change.counts_as(),
                order: change.order(),
                at_ns,
                repeat: notification.repeat,
            });
            let is_later = |(known, _): &(Change, About)| known.order() <= change.order();
            if line.current.as_ref().is_none_or(is_later) {
                line.current = Some((change.clone(), about.clone()));
                line.as_told = Some((change, about));
            }
        }
        book
    }

    pub fn receiver(&self) -> &Receiver {
        &self.receiver
    }

    /// Hears changes that the store remembers, in any order. `is_silenced`: then, or now.
    pub fn replay(
        &mut self,
        mut changes: Vec<Change>,
        now_ns: i64,
        about: impl Fn(&str) -> About,
        is_silenced: impl Fn(&Change) -> bool,
    ) {
        changes.sort_by(|one, other| {
            let of = |change: &Change| (change.order(), change.judged_ns);
            (&one.assertion, &one.key, of(one)).cmp(&(&other.assertion, &other.key, of(other)))
        });
        for (at, change) in changes.iter().enumerate() {
            let is_followed = changes
                .get(at + 1)
                .is_some_and(|next| next.assertion == change.assertion && next.key == change.key);
            if change.judged_ns >= self.begun_ns || !is_followed {
                let about = about(&change.assertion);
                self.hear(change, about, now_ns, is_silenced(change));
            }
        }
    }

    /// Whether anything is open: told, and not told to be over.
    pub fn is_any_open(&self) -> bool {
        let mut lines = self.lines.values();
        lines.any(|line| line.last().is_some_and(|last| last.verdict != Verdict::Holds))
    }

    /// Tells that what is open is over where it is judged no more, and no record says so: `is_judged` of an assertion and a
    /// key. `why`: of an assertion.
    pub fn settle(
        &mut self,
        now_ns: i64,
        is_judged: impl Fn(&str, &str) -> bool,
        why: impl Fn(&str) -> Over,
        is_silenced: impl Fn(&Change) -> bool,
    ) {
        let mut ended = Vec::new();
        for ((assertion, key), line) in &self.lines {
            let (Some(last), Some((current, about))) = (line.last(), &line.current) else {
                continue;
            };
            let is_open = last.verdict != Verdict::Holds && current.counts_as() != Verdict::Holds;
            if !is_open || is_judged(assertion, key) {
                continue;
            }
            let at_ns = current.window_to_ns.max(last.order.0).saturating_add(1);
            let change = Change {
                verdict: Verdict::Unknown,
                since_ns: now_ns,
                window_from_ns: at_ns - 1,
                window_to_ns: at_ns,
                judged_ns: now_ns,
                value: None,
                samples: 0,
                loss: None,
                cause: why(assertion).to_string(),
                evidence: IS_OVER.to_owned(),
                revision: 0,
                ..current.clone()
            };
            ended.push((change, about.clone()));
        }
        for (change, about) in ended {
            let is_silenced = is_silenced(&change);
            self.hear(&change, about, now_ns, is_silenced);
        }
    }

    /// Takes a change. What is told of it is in a message that is due later.
    pub fn hear(&mut self, change: &Change, about: About, now_ns: i64, is_silenced: bool) {
        if !self
            .receiver
            .is_told_of(&change.assertion, &change.severity, &change.labels)
        {
            return;
        }
        let place = place(change);
        let line = self.lines.get(&place);
        if let Some(line) = line
            && line
                .current
                .as_ref()
                .is_some_and(|(known, _)| known.order() > change.order())
            && !is_reversal(line, change)
        {
            return;
        }
        if is_silenced {
            // Nothing is to be told later of what holds, and was not told otherwise.
            if line.is_some() || change.counts_as() != Verdict::Holds {
                let line = self.lines.entry(place).or_default();
                line.hear(change, about);
                line.is_held = true;
            }
            return;
        }
        let told_before = self.told_before(line, change);
        if let Some(line) = self.lines.get_mut(&place)
            && line.hear(change, about.clone())
        {
            line.is_held = false;
        }
        if let Some(told_before) = told_before {
            self.tell(place, change.clone(), about, told_before, 0, now_ns);
        } else if change.counts_as() == Verdict::Holds
            && !self.receiver.on.contains(&Verdict::Holds)
            && let Some(line) = self.lines.get_mut(&place)
            && line.last().is_some_and(|last| last.order < change.order())
        {
            // It does not want to hear of that, and what is to be told of the key later begins anew.
            line.tell(Told {
                id: id(&self.receiver.name, change, 0),
                verdict: Verdict::Holds,
                order: change.order(),
                at_ns: now_ns,
                repeat: 0,
            });
        }
    }

    /// Whether a change is told; and if so, what was told before.
    fn told_before(&self, line: Option<&Line>, change: &Change) -> Option<Option<Verdict>> {
        let verdict = change.counts_as();
        if !self.receiver.on.contains(&verdict) {
            return None;
        }
        let last = line.and_then(Line::last);
        let Some(last) = last else {
            return (verdict != Verdict::Holds).then_some(None);
        };
        if let Some(line) = line
            && is_reversal(line, change)
        {
            if self.receiver.kind == Kind::Alertmanager && change.order() < last.order {
                // It knows what is, not what was.
                return None;
            }
            let of_window = |told: &&Told| told.order.0 == change.window_to_ns;
            return Some(line.told.iter().rfind(of_window).map(|told| told.verdict));
        }
        let is_news = change.order() > last.order && verdict != last.verdict;
        is_news.then_some(Some(last.verdict))
    }

    fn tell(
        &mut self,
        place: (String, String),
        change: Change,
        about: About,
        told_before: Option<Verdict>,
        repeat: u32,
        now_ns: i64,
    ) {
        let id = id(&self.receiver.name, &change, repeat);
        let line = self.lines.entry(place).or_default();
        if line.told.iter().any(|told| told.id == id) {
            return;
        }
        line.tell(Told {
            id: id.clone(),
            verdict: change.counts_as(),
            order: change.order(),
            at_ns: now_ns,
            repeat,
        });
        if line.current.is_none() {
            line.current = Some((change.clone(), about.clone()));
        }
        let receiver = &self.receiver;
        let waits_in = line.waits_in.clone();
        let group = waits_in.unwrap_or_else(|| group_of(receiver, &change, told_before, repeat));
        line.waits_in = Some(group.clone());
        let group = self.groups.entry(group).or_insert((now_ns, Vec::new()));
        group.1.push(Notification {
            id,
            told_before,
            repeat,
            description: about.description,
            runbook: about.runbook,
            change,
        });
    }

    /// What is to be sent now. From here on it counts as told: whoever asks keeps it until it is stored.
    pub fn due(&mut self, now_ns: i64, quiet: impl Fn(&Change) -> Quiet) -> Vec<Message> {
        self.hold_back(&quiet);
        self.release(now_ns, &quiet);
        self.repeat(now_ns, &quiet);
        self.forget(now_ns);
        let wait_ns = ns(self.receiver.group_wait);
        let due: Vec<Group> = self
            .groups
            .iter()
            .filter(|(group, (first_ns, _))| {
                **group == Group::Again || now_ns.saturating_sub(*first_ns) >= wait_ns
            })
            .map(|(group, _)| group.clone())
            .collect();
        let mut messages = Vec::new();
        for group in due {
            let Some((_, waiting)) = self.groups.remove(&group) else {
                continue;
            };
            for notification in &waiting {
                if let Some(line) = self.lines.get_mut(&place(&notification.change)) {
                    line.sent(notification);
                }
            }
            for part in waiting.chunks(MOST_IN_A_MESSAGE) {
                messages.push(Message {
                    id: message_id(part),
                    receiver: self.receiver.name.clone(),
                    assertion: of_all(part).to_owned(),
                    queued_ns: now_ns,
                    notifications: part.to_vec(),
                });
            }
        }
        messages
    }

    /// Takes back what was decided and has not been sent, if it is silenced meanwhile. It will have the same id again.
    fn hold_back(&mut self, quiet: &impl Fn(&Change) -> Quiet) {
        let lines = &mut self.lines;
        let is_alertmanager = self.receiver.kind == Kind::Alertmanager;
        self.groups.retain(|_, (_, waiting)| {
            waiting.retain(|notification| {
                let change = &notification.change;
                let is_kept_alive = is_alertmanager && notification.repeat > 0;
                if is_kept_alive || quiet(change) != Quiet::Now {
                    return true;
                }
                if let Some(line) = lines.get_mut(&place(change)) {
                    line.told.retain(|told| told.id != notification.id);
                    line.is_held = true;
                    line.waits_in = None;
                }
                false
            });
            !waiting.is_empty()
        });
    }

    /// Tells what was held back by a silence that is over.
    fn release(&mut self, now_ns: i64, quiet: &impl Fn(&Change) -> Quiet) {
        let free: Vec<(Change, About)> = self
            .lines
            .values()
            .filter(|line| line.is_held)
            .filter_map(|line| line.current.clone())
            .filter(|(change, _)| quiet(change) != Quiet::Now)
            .collect();
        for (change, about) in free {
            self.hear(&change, about, now_ns, false);
        }
    }

    /// Whether anything is to be told again now.
    pub fn is_any_to_repeat(&self, now_ns: i64, quiet: impl Fn(&Change) -> Quiet) -> bool {
        !self.again(now_ns, &quiet).is_empty()
    }

    /// Tells nothing again that has not been sent yet, by its notification's id; how long it stays so counts from now on.
    pub fn put_off(&mut self, now_ns: i64, is_unsent: impl Fn(&str) -> bool) {
        let waiting = self.groups.values().flat_map(|(_, waiting)| waiting);
        let waiting: BTreeSet<&str> = waiting.map(|notification| notification.id.as_str()).collect();
        for line in self.lines.values_mut() {
            if let Some(last) = line.last_mut()
                && (is_unsent(&last.id) || waiting.contains(last.id.as_str()))
            {
                last.at_ns = now_ns;
            }
        }
    }

    fn repeat(&mut self, now_ns: i64, quiet: &impl Fn(&Change) -> Quiet) {
        for (place, change, about, verdict, count) in self.again(now_ns, quiet) {
            self.tell(place, change, about, Some(verdict), count, now_ns);
        }
    }

    /// What stays as it was told, and is told again: as often as the receiver wants it, and once a silence is over.
    fn again(&self, now_ns: i64, quiet: &impl Fn(&Change) -> Quiet) -> Vec<Again> {
        let patience_ns = self.patience_ns(now_ns);
        let mut again = Vec::new();
        for (place, line) in &self.lines {
            let (Some(last), Some((current, about))) = (line.last(), self.still_told(line)) else {
                continue;
            };
            let age_ns = now_ns.saturating_sub(last.at_ns);
            let is_old = patience_ns.is_some_and(|patience_ns| age_ns >= patience_ns);
            let is_due = match quiet(current) {
                // What it is not told again of it takes for resolved, and that would be said in spite of the silence.
                Quiet::Now => is_old && self.receiver.kind == Kind::Alertmanager,
                Quiet::Never => is_old,
                Quiet::Until(over_ns) => is_old || last.at_ns < over_ns,
            };
            if is_due {
                let mut change = current.clone();
                // It is the same change that is told again.
                (change.window_to_ns, change.revision) = last.order;
                again.push((
                    place.clone(),
                    change,
                    about.clone(),
                    last.verdict,
                    last.repeat + 1,
                ));
            }
        }
        again
    }

    /// How long something has stayed as it was told when it is told again. `None`: it is not, by its age. Whenever an
    /// Alertmanager is told again of something, that is of everything else too: messages of their own would be as many as
    /// there are assertions, and soon more than it may be sent.
    fn patience_ns(&self, now_ns: i64) -> Option<i64> {
        let every_ns = ns(self.receiver.repeat?);
        let is_old = |line: &Line| {
            let last = line.last();
            self.still_told(line).is_some()
                && last.is_some_and(|last| now_ns.saturating_sub(last.at_ns) >= every_ns)
        };
        let is_at_once = self.receiver.kind == Kind::Alertmanager && self.lines.values().any(is_old);
        Some(if is_at_once { every_ns / 2 } else { every_ns })
    }

    /// What stays as it was told, and does not hold. An Alertmanager that does not want to hear what became of it, or does not for
    /// a silence, would take it for resolved if it were not told again, and only what holds is.
    fn still_told<'a>(&self, line: &'a Line) -> Option<&'a (Change, About)> {
        let (last, current) = (line.last()?, line.current.as_ref()?);
        let verdict = current.0.counts_as();
        if last.verdict == Verdict::Holds || verdict == Verdict::Holds {
            return None;
        }
        if verdict == last.verdict {
            return Some(current);
        }
        let is_told_of = self.receiver.on.contains(&verdict) && !line.is_held;
        let is_kept_alive = self.receiver.kind == Kind::Alertmanager && !is_told_of;
        line.as_told.as_ref().filter(|_| is_kept_alive)
    }

    fn forget(&mut self, now_ns: i64) {
        if now_ns.saturating_sub(self.forgot_ns) < FORGOTTEN_AFTER_NS / 48 {
            return;
        }
        self.forgot_ns = now_ns;
        self.lines.retain(|_, line| {
            let is_open = line.is_held || line.last().is_none_or(|last| last.verdict != Verdict::Holds);
            is_open
                || line
                    .last()
                    .is_some_and(|last| now_ns.saturating_sub(last.at_ns) < FORGOTTEN_AFTER_NS)
        });
    }
}

fn place(change: &Change) -> (String, String) {
    (change.assertion.clone(), change.key.clone())
}

/// With what a change is told, if nothing of its key waits. A text of one's own is filled with what one assertion says.
fn group_of(receiver: &Receiver, change: &Change, told_before: Option<Verdict>, repeat: u32) -> Group {
    let is_about_evidence = match change.counts_as() {
        Verdict::Unknown => true,
        Verdict::Holds => told_before == Some(Verdict::Unknown) && !change.is_over(),
        Verdict::Pending | Verdict::Violated => false,
    };
    let takes_several = !matches!(receiver.kind, Kind::Webhook { body: Some(_), .. });
    if repeat > 0 && receiver.kind == Kind::Alertmanager {
        Group::Again
    } else if is_about_evidence && takes_several {
        Group::Evidence
    } else {
        Group::Assertion(change.assertion.clone())
    }
}

/// Whether late rows say otherwise of a window than what was told of it.
fn is_reversal(line: &Line, change: &Change) -> bool {
    let of_window = |told: &&Told| told.order.0 == change.window_to_ns;
    line.told
        .iter()
        .rfind(of_window)
        .is_some_and(|told| told.order.1 < change.revision && told.verdict != change.counts_as())
}

/// Names what is told: not when it was judged, which another judge would do at another time.
fn id(receiver: &str, change: &Change, repeat: u32) -> String {
    let text = serde_json::json!([
        receiver,
        change.assertion,
        change.key,
        change.fingerprint,
        change.window_to_ns,
        change.verdict.name(),
        change.revision,
        repeat
    ]);
    short_hash(&text.to_string())
}

/// The assertion that notifications are of; empty: of several.
fn of_all(notifications: &[Notification]) -> &str {
    let mut names = notifications.iter().map(|one| one.change.assertion.as_str());
    let first = names.next().unwrap_or_default();
    if names.all(|name| name == first) {
        first
    } else {
        SEVERAL
    }
}

fn message_id(notifications: &[Notification]) -> String {
    let ids: Vec<_> = notifications
        .iter()
        .map(|notification| notification.id.as_str())
        .collect();
    short_hash(&ids.join(" "))
}

/// 128 bits of it: two different texts will not meet.
fn short_hash(text: &str) -> String {
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    digest.as_ref()[..16]
        .iter()
        .fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
#[path = "book/tests.rs"]
pub(super) mod tests;
