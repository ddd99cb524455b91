//! Silences: of some verdicts nobody is told for a while, because somebody said so and why. Such a verdict is judged and
//! shown as any other; what is told of it waits ([`crate::notify`]), and what then still is so is told when the silence is
//! over. There is none without an end, and none holds back a dead man's switch.
//!
//! The store keeps them, so every collector on it comes to know them, and none forgets one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_proto::v1::SetSilenceRequest;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;
use tracing::info;

use crate::assertion::Set;
use crate::assertion::condition::duration_text;
use crate::assertion::problem::instead;
use crate::clock::WallClock;
use crate::store::silences::{self, Said};
use crate::store::{Store, StoreError};

/// How long a silence may be. What is to be quiet for longer is an assertion that is not wanted.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3_600);

/// What is known of silences is asked for again after this: of one that another collector was told, so late.
const LOOK: Duration = Duration::from_secs(2);

/// When one was over is remembered as long as changes of verdicts are, which it may have held back.
const REMEMBERED_NS: i64 = 31 * 24 * 3_600_000_000_000;

/// Silences at once. Each verdict is held against all of them.
const MOST: usize = 1_000;

/// Bytes of a text, and parts of a key or labels.
const MAX_TEXT_BYTES: usize = 1_024;
const MAX_ENTRIES: usize = 16;

/// One silence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silence {
    pub id: String,
    /// Empty: any with the labels.
    pub assertion: String,
    /// It is for every rule of the objective of that name.
    pub is_objective: bool,
    /// Parts of a key, as [`key_text`](crate::assertion::evaluate::key_text) writes them; all of them.
    pub keys: Vec<String>,
    /// All of them; `severity` among them.
    pub labels: BTreeMap<String, String>,
    pub begun_ns: i64,
    /// When it is over: earlier than was declared where somebody ended it.
    pub until_ns: i64,
}

/// What a verdict is of.
#[derive(Clone, Copy, Debug)]
pub struct Of<'a> {
    pub assertion: &'a str,
    pub key: &'a str,
    pub severity: &'a str,
    pub labels: &'a BTreeMap<String, String>,
}

/// How a verdict stands to the silences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quiet {
    /// There was none.
    Never,
    Now,
    /// The last one has been over since then.
    Until(i64),
}

impl Silence {
    /// Whether it is for a verdict, whenever that is.
    fn is_for(&self, of: Of<'_>) -> bool {
        let is_rule = || {
            let rule = of.assertion.strip_prefix(self.assertion.as_str());
            self.is_objective && rule.is_some_and(|rule| rule.starts_with(": "))
        };
        let is_named = self.assertion.is_empty() || of.assertion == self.assertion || is_rule();
        is_named && self.keys.iter().all(|part| has_part(of.key, part)) && has_labels(&self.labels, of)
    }

    fn is_active(&self, at_ns: i64) -> bool {
        (self.begun_ns..self.until_ns).contains(&at_ns)
    }
}

fn has_labels(labels: &BTreeMap<String, String>, of: Of<'_>) -> bool {
    labels.iter().all(|(name, value)| match name.as_str() {
        "severity" => of.severity == value,
        _ => of.labels.get(name) == Some(value),
    })
}

/// Whether a key has this part, whole: what is in it may have commas itself.
fn has_part(key: &str, part: &str) -> bool {
    key.match_indices(part).any(|(at, _)| {
        let (before, after) = (&key[..at], &key[at + part.len()..]);
        (before.is_empty() || before.ends_with(", ")) && (after.is_empty() || after.starts_with(", "))
    })
}

/// Those that are not over; and of those that are, the last one for the same verdicts, since all are held against each verdict
/// again and again. How it was at any time say those of [`Silencer::past`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Silences(Vec<Silence>);

impl Silences {
    pub fn new(silences: Vec<Silence>) -> Self {
        Self(silences)
    }

    /// There is none, nor has been for long.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether nobody is told of a verdict at this time.
    pub fn cover(&self, of: Of<'_>, at_ns: i64) -> bool {
        self.touch(of, at_ns, at_ns)
    }

    /// Whether nobody is told of a verdict at some time from the one until the other.
    pub fn touch(&self, of: Of<'_>, from_ns: i64, until_ns: i64) -> bool {
        let is_then = |silence: &&Silence| silence.begun_ns <= until_ns && from_ns < silence.until_ns;
        let mut then = self.0.iter().filter(is_then);
        then.any(|silence| silence.is_for(of))
    }

    pub fn quiet(&self, of: Of<'_>, now_ns: i64) -> Quiet {
        if self.cover(of, now_ns) {
            return Quiet::Now;
        }
        let over = self.0.iter().filter(|silence| silence.until_ns <= now_ns);
        let last = over
            .filter(|silence| silence.is_for(of))
            .map(|silence| silence.until_ns);
        last.max().map_or(Quiet::Never, Quiet::Until)
    }
}

/// Why something cannot be silenced.
#[derive(Debug, thiserror::Error)]
pub enum SilenceError {
    /// The request is at fault.
    #[error("{0}")]
    Request(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What all parts of a collector share of this.
pub struct Silencer {
    store: Arc<dyn Store>,
    clock: WallClock,
    known: watch::Sender<Arc<Silences>>,
    /// When it was read last; held while it is read.
    read_at: Mutex<Option<Instant>>,
}

impl Silencer {
    pub fn new(store: Arc<dyn Store>, clock: WallClock) -> Self {
        Self {
            store,
            clock,
            known: watch::Sender::default(),
            read_at: Mutex::default(),
        }
    }

    /// What was known last.
    pub fn known(&self) -> Arc<Silences> {
        self.known.borrow().clone()
    }

    /// What is known, not older than [`LOOK`].
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn now(&self) -> Result<Arc<Silences>, StoreError> {
        let mut read_at = self.read_at.lock().await;
        if read_at.is_none_or(|at| at.elapsed() >= LOOK) {
            self.read(&mut read_at).await?;
        }
        Ok(self.known())
    }

    /// All that there have been for as long as they are remembered.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn past(&self) -> Result<Silences, StoreError> {
        let since_ns = self.clock.now_ns().saturating_sub(REMEMBERED_NS);
        silences::since(&*self.store, since_ns).await.map(Silences)
    }

    async fn read(&self, read_at: &mut Option<Instant>) -> Result<(), StoreError> {
        let asked_at = Instant::now();
        let now_ns = self.clock.now_ns();
        let since_ns = now_ns.saturating_sub(REMEMBERED_NS);
        let found = silences::standing(&*self.store, since_ns, now_ns).await?;
        self.known.send_replace(Arc::new(Silences(found)));
        *read_at = Some(asked_at);
        Ok(())
    }

    /// Declares a silence, or ends what there is. The silences that it was about.
    ///
    /// # Errors
    /// If there can be no such silence, or the store does not keep it.
    pub async fn set(&self, request: SetSilenceRequest, set: &Set) -> Result<Vec<String>, SilenceError> {
        check(&request)?;
        let mut read_at = self.read_at.lock().await;
        self.read(&mut read_at).await?;
        let now_ns = self.clock.now_ns();
        let known = self.known();
        let mut active: Vec<Silence> = known
            .0
            .iter()
            .filter(|silence| silence.is_active(now_ns))
            .cloned()
            .collect();
        let said = Said {
            by: request.said_by.clone(),
            because: request.because.trim().to_owned(),
        };
        let (by, because) = (&said.by, &said.because);
        let about = if request.for_ns == 0 {
            active = ended(&request, active)?;
            silences::end(&*self.store, &active, &said, now_ns).await?;
            for silence in &active {
                info!(assertion = silence.assertion, by, because, "a silence was ended");
            }
            active
        } else {
            let silence = declared(&request, set, now_ns)?;
            if active.len() >= MOST {
                return Err(SilenceError::Request(format!(
                    "there are {MOST} silences already; end some: holdfast silences lists them"
                )));
            }
            silences::declare(&*self.store, &silence, &said).await?;
            let lasts = duration_text(Duration::from_nanos(request.for_ns));
            info!(
                assertion = silence.assertion,
                lasts, by, because, "a silence was declared"
            );
            vec![silence]
        };
        self.read(&mut read_at).await?;
        Ok(about.into_iter().map(|silence| silence.id).collect())
    }
}

fn fault<T>(text: impl Into<String>) -> Result<T, SilenceError> {
    Err(SilenceError::Request(text.into()))
}

/// What is wrong with a request by itself.
fn check(request: &SetSilenceRequest) -> Result<(), SilenceError> {
    if request.name.is_empty() && request.labels.is_empty() {
        return fault("what is to be silent? name an assertion, or labels");
    }
    if request.because.trim().is_empty() {
        return fault("why? --because says it to those who wonder");
    }
    if request.said_by.is_empty() {
        return fault("who says so? `said_by` is empty");
    }
    if request.keys.len() > MAX_ENTRIES || request.labels.len() > MAX_ENTRIES {
        return fault(format!("more than {MAX_ENTRIES} parts of a key or labels"));
    }
    if request.keys.iter().any(String::is_empty) {
        return fault("an empty text is no part of a key; write it like from.node=web-1");
    }
    let pairs = request.labels.iter().flat_map(|(key, value)| [key, value]);
    let named = [&request.name, &request.because, &request.said_by];
    for text in pairs.chain(&request.keys).chain(named) {
        if text.len() > MAX_TEXT_BYTES || text.contains(char::is_control) {
            return fault(format!(
                "a text has more than {MAX_TEXT_BYTES} bytes, or a control character such as the end of a line"
            ));
        }
    }
    let lasts = Duration::from_nanos(request.for_ns);
    if request.for_ns != 0 && !(SHORTEST..=LONGEST).contains(&lasts) {
        return fault(format!(
            "a silence lasts from {} to {}, not {}; none lasts for ever",
            duration_text(SHORTEST),
            duration_text(LONGEST),
            duration_text(lasts)
        ));
    }
    Ok(())
}

/// Which of those that there are is meant.
fn ended(request: &SetSilenceRequest, active: Vec<Silence>) -> Result<Vec<Silence>, SilenceError> {
    let labels: BTreeMap<_, _> = request.labels.clone().into_iter().collect();
    let is_whole = request.keys.is_empty() && labels.is_empty();
    let is_meant = |silence: &Silence| {
        let is_same = silence.keys == sorted(&request.keys) && silence.labels == labels;
        silence.assertion == request.name && (is_whole || is_same)
    };
    if active.is_empty() {
        return fault("there is no silence to end");
    }
    let (meant, others): (Vec<_>, Vec<_>) = active.into_iter().partition(is_meant);
    if !meant.is_empty() {
        return Ok(meant);
    }
    let mut names: Vec<_> = others.iter().map(|silence| silence.assertion.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    if names.contains(&request.name.as_str()) {
        return fault(
            "no silence is for these keys and labels; holdfast silences lists those that there are",
        );
    }
    fault(format!(
        "there is no silence of `{}`, {}",
        request.name,
        instead(&request.name, names.into_iter())
    ))
}

/// The silence that is asked for, if there is something that it can be for.
fn declared(request: &SetSilenceRequest, set: &Set, now_ns: i64) -> Result<Silence, SilenceError> {
    let name = request.name.as_str();
    let objective =
        |assertion: &crate::assertion::Assertion| assertion.burn.as_ref().map(|burn| burn.slo.clone());
    let is_objective = set.assertions.iter().all(|assertion| assertion.name != name)
        && set
            .assertions
            .iter()
            .any(|assertion| objective(assertion).as_deref() == Some(name));
    let silence = Silence {
        id: format!("{now_ns:x}"),
        assertion: name.to_owned(),
        is_objective,
        keys: sorted(&request.keys),
        labels: request.labels.clone().into_iter().collect(),
        begun_ns: now_ns,
        until_ns: now_ns.saturating_add(i64::try_from(request.for_ns).unwrap_or(i64::MAX)),
    };
    let named: Vec<_> = set
        .assertions
        .iter()
        .filter(|assertion| {
            name.is_empty()
                || assertion.name == name
                || is_objective && objective(assertion).as_deref() == Some(name)
        })
        .collect();
    if named.is_empty() {
        let mut names: Vec<String> = set
            .assertions
            .iter()
            .flat_map(|assertion| std::iter::once(assertion.name.clone()).chain(objective(assertion)))
            .collect();
        names.sort();
        names.dedup();
        return fault(format!(
            "there is no assertion `{name}`, {}",
            instead(name, names.iter().map(String::as_str))
        ));
    }
    let is_labelled = |assertion: &&crate::assertion::Assertion| {
        let of = Of {
            assertion: &assertion.name,
            key: "",
            severity: &assertion.severity,
            labels: &assertion.labels,
        };
        has_labels(&silence.labels, of)
    };
    let labelled: Vec<_> = named.into_iter().filter(is_labelled).collect();
    if labelled.is_empty() {
        let labels: Vec<_> = silence
            .labels
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let whose = if name.is_empty() {
            "no assertion has"
        } else {
            "it does not have"
        };
        return fault(format!(
            "{whose} the labels {}: nothing would be silent",
            labels.join(", ")
        ));
    }
    // The rows of a question of one's own are called as it likes.
    let is_free = labelled.iter().any(|assertion| assertion.sql.is_some());
    for part in silence.keys.iter().filter(|_| !is_free) {
        let dimension = match part.split_once('=') {
            Some((dimension, value)) if !value.is_empty() => dimension,
            _ => {
                return fault(format!(
                    "`{part}` is no part of a key; write it like from.node=web-1, as holdfast verdicts shows it"
                ));
            }
        };
        let mut dimensions: Vec<&str> = labelled
            .iter()
            .filter(|assertion| assertion.quorum.is_none())
            .flat_map(|assertion| &assertion.by)
            .map(|dimension| dimension.name())
            .collect();
        dimensions.sort_unstable();
        dimensions.dedup();
        if dimensions.is_empty() {
            return fault(format!(
                "there is one verdict for all of it, without a key: leave `{part}` out"
            ));
        }
        if !dimensions.contains(&dimension) {
            return fault(format!(
                "no key has `{dimension}`, {}",
                instead(dimension, dimensions.into_iter())
            ));
        }
    }
    Ok(silence)
}

fn sorted(texts: &[String]) -> Vec<String> {
    let mut texts = texts.to_vec();
    texts.sort();
    texts.dedup();
    texts
}

#[cfg(test)]
#[path = "silence/tests.rs"]
mod tests;
