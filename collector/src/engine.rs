//! What keeps assertions judged: it hears the agents' reports, opens a window for every tick of every schedule, asks the
//! store once everybody's rows are there, and writes what came of it. What it decides with is in [`crate::assertion`].
//!
//! Windows are judged in their order, each once, however late: after a restart, or when the store was away, the engine
//! goes on where the stored verdicts end, and comes to what it would have come to. Time is an argument of
//! [`Engine::step`], so that the past can be judged as well (`backtest`), and made-up data (`test`). What was judged without
//! rows that come after all is judged again ([`late`]).

mod answer;
pub mod check;
pub mod explain;
pub mod files;
pub mod heard;
mod late;
pub mod run;
pub mod standing;
pub mod suggest;
pub mod trial;

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::assertion::cause::{Cause, Over};
use crate::assertion::condition::{Condition, value_text};
use crate::assertion::coverage::{Coverage, HEARD_WITHIN, Listening, Report, Window};
use crate::assertion::evaluate::{self, Addresses, Judgement, Key, Moment, Observers, Roster, key_text};
use crate::assertion::group::Membership;
use crate::assertion::plan::{self, Schedule};
use crate::assertion::state::{Machine, Outcome, Rules, Verdict};
use crate::assertion::{Assertion, Set, worst};
use crate::clock::ns;
use crate::seat::Seat;
use crate::silence::{Of, Silences};
use crate::store::layout::Layout;
use crate::store::verdicts::{Record, Standings, Stood};
use crate::store::{self, Store, StoreError, evidence, verdicts};

use answer::Shared;
use heard::{Awaited, Heard};
use late::{History, Late};

/// How often a verdict that stays is written, so that one can see that it is still judged.
const HEARTBEAT_NS: i64 = 60_000_000_000;

/// How far back stored verdicts are looked for at the start, from the last one of their assertion on: however long nobody
/// judged, it goes on where it was. Keys that had not been judged for so long then begin anew.
pub(crate) const REMEMBERED_NS: i64 = 24 * 3600 * 1_000_000_000;

/// One that is unknown for another reason than was written is written again, so long after it was last: causes may flap too.
const CAUSE_NS: i64 = 10_000_000_000;

/// Windows of a schedule that are judged before what they came to is written: after a time without the store a violation does
/// not wait for all that is to be judged yet.
const MOST_AT_ONCE: usize = 32;

/// Windows of a schedule that wait for their rows, or for the store. Older ones are given up: nothing is said of them.
const MOST_OPEN: usize = 240;

/// Reports that came so long before the last one are looked for again: they are inserted later than they came.
const REPORTS_AGAIN_NS: i64 = 5_000_000_000;

/// Reports of so long are read at once: of a hundred nodes, 60,000.
const REPORTS_AT_ONCE_NS: i64 = 600_000_000_000;

/// How often stored reports are looked for where everybody is heard directly: nobody else is known to be there.
const STORED_REPORTS_EVERY_NS: i64 = 2_000_000_000;

/// Who was heard by way of the store only is expected to go on there for so long.
const ELSEWHERE_NS: i64 = 60_000_000_000;

/// How often it is looked for keys that nothing was seen of. They are remembered for minutes and longer.
const FORGET_EVERY_NS: i64 = 1_000_000_000;

/// How often it is looked who is there.
const ROSTER_EVERY_NS: i64 = 5_000_000_000;

/// While others are waited for, those who need not be waited for are judged once, so long after the window's end.
const PATIENCE_NS: i64 = 2_000_000_000;

/// Verdicts for which it is looked at once what speaks against them; after so many, one more each [`ACCUSED_EVERY_NS`], so that
/// neither a fault of everything nor values that flap around their limits keep the store busy: a look is up to three questions.
const MOST_ACCUSED: usize = 16;

const ACCUSED_EVERY_NS: i64 = 2_000_000_000;

/// Verdicts that wait for the store. Past this the oldest heartbeats go, and what is left is written again soon.
const MOST_WAITING: usize = 200_000;

/// The engine. It owns what it knows; all of it can be found again in the store.
pub struct Engine {
    store: Arc<dyn Store>,
    set: Set,
    /// What each of its assertions means, as a number.
    fingerprints: Vec<u32>,
    declares: u32,
    schedules: Vec<Active>,
    /// By assertion.
    keys: BTreeMap<String, BTreeMap<Key, Kept>>,
    /// Where keys stood whose assertion meant something else, by assertion and key as text, and until when its new meaning
    /// may come to the same key.
    outdated: BTreeMap<(String, String), (i64, Stood)>,
    /// Last records of keys that are judged no more, for the next step.
    over: Vec<Record>,
    coverage: Coverage,
    /// As the store has it.
    heard: Roster,
    /// The same, and the nodes that the set declares.
    roster: Roster,
    /// Of the roster and the groups of the set.
    membership: Membership,
    addresses: Addresses,
    /// What agents say here; `None`: it is read from the store alone.
    direct: Option<Heard>,
    /// What is judged is over; `None`: it is of now.
    past: Option<Past>,
    /// When the last report came that was found in the store.
    heard_ns: i64,
    /// When the store was asked for reports, and when it last had some that had not come here.
    asked_ns: i64,
    elsewhere_ns: i64,
    roster_ns: i64,
    /// Up to when everything was judged that could be. `None`: pauses do not count, as in a past.
    stepped_ns: Option<i64>,
    /// When keys were looked through that nothing was seen of.
    forgot_ns: i64,
    /// Verdicts that are not stored yet.
    waiting: Vec<Record>,
    /// A block of them that the store may have or not: the same again adds nothing.
    in_doubt: Vec<Record>,
    /// Verdicts are written to the store.
    is_writing: bool,
    /// When the last block of verdicts was written, and how many changes it had.
    wrote: Option<(i64, usize)>,
    /// Changes that are stored, for who tells them; `None`: nobody does.
    written: Option<Vec<Record>>,
    /// Without it nothing is written; `None`: nobody else can judge.
    seat: Option<Arc<Seat>>,
    /// Of what nobody is told.
    silences: Arc<Silences>,
    /// Parts of long windows are asked for while they go on: it is now.
    asks_ahead: bool,
    /// When it was looked what can be asked for.
    ahead_ns: i64,
    /// Somebody computes the store's minutes.
    has_rollup: bool,
    /// No window is opened that ends later.
    end_ns: i64,
    /// How long a verdict that stays as it is is told no more.
    heartbeat_ns: i64,
    looks: Looks,
    /// It is looked what speaks against verdicts.
    is_accusing: bool,
    /// Windows that were given up since somebody took this number.
    pub given_up: u64,
    /// Questions that were asked since the start.
    pub asked: u64,
}

/// A schedule and its windows that are not judged yet.
struct Active {
    schedule: Schedule,
    open: VecDeque<Tick>,
    /// The end of the next window.
    next_ns: i64,
    /// Windows that were judged without rows that may come yet, by their end.
    late: VecDeque<Late>,
    /// Some of its keys may have a history.
    keeps_past: bool,
    /// Of each class, what its windows share.
    shared: Vec<Shared>,
}

/// The store's minutes are computed within this after their rows have come: rows that an agent delivers in bulk after a
/// time without a collector are older than the last minutes, which are read as rows.
const MINUTES_SETTLE_NS: i64 = 30_000_000_000;

#[derive(Clone, Copy)]
struct Tick {
    window: Window,
    /// Who need not be waited for was judged.
    is_begun: bool,
    /// When everybody's rows were there first.
    whole_ns: Option<i64>,
}

/// What is known of a key.
struct Kept {
    machine: Machine,
    written_ns: i64,
    /// Where in the time between two heartbeats its own is: everybody's at once would be a burst.
    phase_ns: i64,
    /// When it last had rows, or was taken over; later by the time in which nobody judged.
    seen_ns: i64,
    /// As it was written last.
    is_silenced: bool,
    /// Why it was unknown when it was written last. `None`: it was not, or that is not known.
    cause: Option<Cause>,
    /// What may change when rows come late.
    history: Option<History>,
}

impl Kept {
    /// What was written last is told again, though it stays as it is.
    fn is_due(&self, now_ns: i64, heartbeat_ns: i64) -> bool {
        let since_ns = now_ns.saturating_sub(self.written_ns);
        if since_ns >= heartbeat_ns {
            return true;
        }
        let left_ns = self
            .phase_ns
            .saturating_sub(self.written_ns)
            .rem_euclid(heartbeat_ns.max(1));
        left_ns > 0 && since_ns >= left_ns
    }

    /// Whether nothing was seen of it for so long. One that fails is judged until it does not: that nothing is there may be
    /// what fails.
    fn is_unseen(&self, now_ns: i64, remembered_for: Duration) -> bool {
        !matches!(self.machine.verdict, Verdict::Violated | Verdict::Pending)
            && now_ns.saturating_sub(self.seen_ns) > ns(remembered_for)
    }

    /// From one time at which it was judged to the next: where nobody judged for a while in between, nothing could be seen.
    fn pass_over(&mut self, from_ns: i64, to_ns: i64) {
        if is_pause(from_ns, to_ns) {
            self.seen_ns = self.seen_ns.saturating_add(to_ns - from_ns).min(to_ns);
        }
    }
}

/// How often it may be looked yet what speaks against a verdict.
struct Looks {
    left: usize,
    /// Up to when those that come with time are in `left`.
    counted_ns: i64,
}

impl Looks {
    fn left(&mut self, now_ns: i64) -> usize {
        let more = now_ns
            .saturating_sub(self.counted_ns)
            .div_euclid(ACCUSED_EVERY_NS);
        self.counted_ns += more * ACCUSED_EVERY_NS;
        // Of a clock that was set back, nothing is owed.
        let more = usize::try_from(more).unwrap_or(0);
        self.left = self.left.saturating_add(more).min(MOST_ACCUSED);
        self.left
    }
}

/// A past that is judged as it went on. All of it is stored, so what is needed soon is asked for ahead.
struct Past {
    until_ns: i64,
    /// What agents reported after the moment that is judged, in the order in which it came, and up to when it was read.
    /// `None`: nothing was.
    reports: VecDeque<Report>,
    read_ns: Option<i64>,
}

/// What a step was about.
#[derive(Debug, Default)]
pub struct Step {
    /// Every verdict that changed, and heartbeats.
    pub records: Vec<Record>,
    /// Windows that were judged whole.
    pub judged: u64,
}

impl Engine {
    /// Judges a set from `now_ns` on. `is_writing`: verdicts go to the store, and go on from there.
    pub fn new(store: Arc<dyn Store>, set: Set, now_ns: i64, is_writing: bool) -> Self {
        let mut engine = Self {
            store,
            set: Set::default(),
            fingerprints: Vec::new(),
            declares: 0,
            schedules: Vec::new(),
            keys: BTreeMap::new(),
            outdated: BTreeMap::new(),
            over: Vec::new(),
            coverage: Coverage::default(),
            heard: Roster::default(),
            roster: Roster::default(),
            membership: Membership::default(),
            addresses: Addresses::default(),
            direct: None,
            past: None,
            heard_ns: 0,
            asked_ns: i64::MIN,
            elsewhere_ns: i64::MIN,
            roster_ns: i64::MIN,
            stepped_ns: None,
            forgot_ns: i64::MIN,
            waiting: Vec::new(),
            in_doubt: Vec::new(),
            is_writing,
            wrote: None,
            written: None,
            seat: None,
            silences: Arc::default(),
            asks_ahead: false,
            ahead_ns: i64::MIN,
            has_rollup: true,
            end_ns: i64::MAX,
            heartbeat_ns: HEARTBEAT_NS,
            looks: Looks {
                left: MOST_ACCUSED,
                counted_ns: now_ns,
            },
            is_accusing: true,
            given_up: 0,
            asked: 0,
        };
        engine.replace(set, now_ns);
        engine
    }

    pub fn set(&self) -> &Set {
        &self.set
    }

    /// A number made of what the set judges: another one where anything is judged otherwise.
    pub fn declares(&self) -> u32 {
        self.declares
    }

    /// Of a store in which nobody computes minutes, every window is read from the rows.
    pub fn without_rollup(&mut self) {
        self.has_rollup = false;
    }

    /// Hears agents as soon as they say something here. What a cluster has acknowledged may not be on every replica yet, so
    /// there one hears of it later, by way of the store.
    pub fn listen_to(&mut self, heard: Heard) {
        if self.store.layout() != Layout::OneServer {
            return;
        }
        heard.begin();
        self.direct = Some(heard);
    }

    /// Everything that is judged until then is stored already.
    pub fn is_past_until(&mut self, until_ns: i64) {
        self.past = Some(Past {
            until_ns,
            reports: VecDeque::new(),
            read_ns: None,
        });
    }

    /// Nobody reads what speaks against verdicts, so it is not looked for.
    pub fn without_worst(&mut self) {
        self.is_accusing = false;
    }

    /// Keeps changes that are stored until they are taken.
    pub fn keep_written(&mut self) {
        self.written = Some(Vec::new());
    }

    /// Changes that were stored since the last call.
    pub fn take_written(&mut self) -> Vec<Record> {
        self.written.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Writes only as long as this collector is the one that judges.
    pub fn sit(&mut self, seat: Arc<Seat>) {
        self.seat = Some(seat);
    }

    /// From now on verdicts say by these whether they are silenced.
    pub fn silence(&mut self, silences: Arc<Silences>) {
        self.silences = silences;
    }

    /// Opens no window that ends after this.
    pub fn stop_at(&mut self, end_ns: i64) {
        self.end_ns = end_ns;
    }

    /// Judges of each schedule one window: the last that ends by then.
    pub fn only_last_until(&mut self, end_ns: i64) {
        self.end_ns = end_ns;
        for active in &mut self.schedules {
            let every_ns = ns(active.schedule.every);
            active.next_ns = end_ns.div_euclid(every_ns) * every_ns;
        }
    }

    /// How long a window may wait though all of its rows are there.
    pub fn settles_ns(&self) -> i64 {
        let reads_minutes = (0..self.schedules.len()).any(|at| self.reads_minutes(at));
        if reads_minutes { MINUTES_SETTLE_NS } else { 0 }
    }

    /// Tells what every window came to, also where nothing changes.
    pub fn tell_every_window(&mut self) {
        self.heartbeat_ns = 0;
    }

    /// Whether every window until the end was judged.
    pub fn is_done(&self, now_ns: i64) -> bool {
        now_ns >= self.end_ns && self.schedules.iter().all(|active| active.open.is_empty())
    }

    /// The shortest time between two windows.
    pub fn shortest(&self) -> Duration {
        let every = self.schedules.iter().map(|active| active.schedule.every).min();
        every.unwrap_or(Duration::from_secs(1))
    }

    /// Every key with its record in `latest`; and every assertion without any.
    pub fn standings<'a>(
        &self,
        latest: &'a BTreeMap<(String, String), Record>,
    ) -> Vec<(String, String, Option<&'a Record>)> {
        let mut standings = Vec::new();
        for assertion in &self.set.assertions {
            let name = &assertion.name;
            let range = (name.clone(), String::new())..;
            let keys = latest.range(range).take_while(|((other, _), _)| other == name);
            // What stood there while there were no keys says nothing of those that came. One that is gone says that it is.
            let keys = keys.filter(|((_, key), record)| !(key.is_empty() && record.is_over()));
            let before = standings.len();
            standings.extend(keys.map(|((_, key), record)| (name.clone(), key.clone(), Some(record))));
            if standings.len() == before {
                standings.push((name.clone(), String::new(), None));
            }
        }
        standings
    }

    /// Assertions with a window that was not judged for everybody, and who is waited for.
    pub fn unjudged(&self, now_ns: i64) -> Vec<(String, BTreeSet<String>)> {
        let of_schedule = |active: &Active| {
            let window = active.open.front()?.window;
            let moment = self.moment(window, now_ns);
            let assertions = active.schedule.assertions.iter();
            let assertions = assertions.map(|planned| &self.set.assertions[planned.assertion]);
            let waited_for = assertions.map(move |assertion| {
                let awaited = Observers::of(assertion, &moment)
                    .awaited()
                    .map(str::to_owned)
                    .collect();
                (assertion.name.clone(), awaited)
            });
            Some(waited_for.collect::<Vec<_>>())
        };
        self.schedules.iter().filter_map(of_schedule).flatten().collect()
    }

    /// From one window of an assertion to the next.
    pub fn every_ns(&self, name: &str) -> i64 {
        let assertion = self.set.assertions.iter().find(|known| known.name == name);
        assertion.map_or(0, |assertion| ns(assertion.every))
    }

    /// How many keys have each verdict.
    pub fn verdicts(&self) -> [(Verdict, usize); 4] {
        let mut counts = [0; Verdict::ALL.len()];
        for kept in self.keys.values().flat_map(BTreeMap::values) {
            counts[kept.machine.verdict as usize] += 1;
        }
        Verdict::ALL.map(|verdict| (verdict, counts[verdict as usize]))
    }

    /// How many verdicts wait for the store.
    pub fn waiting(&self) -> usize {
        self.waiting.len() + self.in_doubt.len()
    }

    /// When agents could be heard: who was not heard otherwise was not silent.
    pub fn listen(&mut self, listening: Listening) {
        self.coverage.listen(listening);
    }

    pub fn listening(&self) -> Listening {
        self.coverage.listening()
    }

    /// Long windows are asked for while they go on.
    pub fn ask_as_they_go(&mut self) {
        self.asks_ahead = true;
    }

    /// Goes on where stored verdicts end.
    pub async fn resume(&mut self, now_ns: i64) -> Result<(), StoreError> {
        let heard_ns = evidence::last_heard(&*self.store, now_ns).await?;
        self.listen(Listening::since(now_ns, heard_ns.unwrap_or(now_ns)));
        self.stepped_ns = Some(now_ns);
        let names: Vec<&str> = self
            .set
            .assertions
            .iter()
            .map(|known| known.name.as_str())
            .collect();
        let Standings { known, others } = verdicts::stood(&*self.store, &names, REMEMBERED_NS).await?;
        for stood in others {
            let record = Record::over(stood, Over::NotDeclared.to_string(), now_ns);
            self.over.push(record);
        }
        let fingerprints: BTreeMap<_, _> = self
            .set
            .assertions
            .iter()
            .map(|assertion| (assertion.name.as_str(), assertion.fingerprint()))
            .collect();
        let mut latest: BTreeMap<String, i64> = BTreeMap::new();
        let mut outdated = Vec::new();
        for stood in known {
            if fingerprints.get(stood.assertion.as_str()) != Some(&stood.fingerprint) {
                outdated.push(stood);
                continue;
            }
            let Stood {
                assertion,
                key,
                machine,
                ..
            } = stood;
            // The oldest, so that nobody's windows are passed over.
            let begin = latest.entry(assertion.clone()).or_insert(machine.judged_ns);
            *begin = (*begin).min(machine.judged_ns);
            let kept = Kept {
                written_ns: machine.judged_ns,
                phase_ns: phase_ns(&assertion, &key),
                // Nobody could see anything of it since it was judged.
                seen_ns: now_ns,
                is_silenced: false,
                cause: None,
                machine,
                history: None,
            };
            self.keys.entry(assertion).or_default().insert(key, kept);
        }
        for active in &mut self.schedules {
            let names = active
                .schedule
                .assertions
                .iter()
                .map(|planned| self.set.assertions[planned.assertion].name.as_str());
            let every_ns = ns(active.schedule.every);
            let Some(judged_ns) = names.filter_map(|name| latest.get(name)).min() else {
                continue;
            };
            let oldest_ns = now_ns - every_ns * MOST_OPEN as i64;
            active.next_ns = aligned((judged_ns + every_ns).max(oldest_ns), every_ns);
        }
        for stood in outdated {
            self.outdate(stood, now_ns);
        }
        Ok(())
    }

    /// Waits for what an assertion that means something else now says of a key.
    fn outdate(&mut self, stood: Stood, now_ns: i64) {
        let assertion = self
            .set
            .assertions
            .iter()
            .find(|known| known.name == stood.assertion);
        let patience_ns = assertion.map_or(0, |known| 2 * ns(known.every) + ns(known.deadline));
        let until_ns = now_ns.saturating_add(patience_ns).saturating_add(OUTDATED_NS);
        let place = (stood.assertion.clone(), stood.key_text.clone());
        self.outdated.insert(place, (until_ns, stood));
    }

    /// Ends keys that nothing came in the place of.
    fn end_outdated(&mut self, now_ns: i64) {
        let (keys, set, over) = (&self.keys, &self.set, &mut self.over);
        self.outdated.retain(|(name, key), (until_ns, stood)| {
            let assertion = set.assertions.iter().find(|known| known.name == *name);
            let is_judged = assertion.is_some_and(|assertion| {
                let mut all = keys.get(name).into_iter().flat_map(BTreeMap::keys);
                all.any(|known| key_text(&assertion.by, known) == *key)
            });
            if is_judged {
                return false;
            }
            let is_over = assertion.is_none() || now_ns >= *until_ns;
            if is_over {
                let why = if assertion.is_none() {
                    Over::NotDeclared
                } else {
                    Over::NoSuchKey
                };
                over.push(Record::over(stood.clone(), why.to_string(), now_ns));
            }
            !is_over
        });
    }

    /// Judges another set from now on. What an assertion has come to stays with it if it means the same as before.
    pub fn replace(&mut self, set: Set, now_ns: i64) {
        let fingerprints: Vec<u32> = set.assertions.iter().map(Assertion::fingerprint).collect();
        let former_fingerprints = std::mem::replace(&mut self.fingerprints, fingerprints);
        let mut keys = std::mem::take(&mut self.keys);
        let former = std::mem::take(&mut self.set);
        let names = former.assertions.iter().map(|assertion| assertion.name.as_str());
        let before: BTreeMap<_, _> = names.zip(former_fingerprints).collect();
        for (assertion, fingerprint) in set.assertions.iter().zip(&self.fingerprints) {
            if before.get(assertion.name.as_str()) == Some(fingerprint)
                && let Some(kept) = keys.remove(&assertion.name)
            {
                self.keys.insert(assertion.name.clone(), kept);
            }
        }
        let mut active: BTreeMap<_, _> = std::mem::take(&mut self.schedules)
            .into_iter()
            .map(|active| ((active.schedule.over, active.schedule.every), active))
            .collect();
        self.schedules = plan::schedules(&set)
            .into_iter()
            .map(|schedule| match active.remove(&(schedule.over, schedule.every)) {
                // Its open windows are those of the new one.
                Some(known) => Active {
                    shared: Vec::new(),
                    schedule,
                    keeps_past: true,
                    ..known
                },
                None => Active {
                    shared: Vec::new(),
                    next_ns: aligned(now_ns, ns(schedule.every)),
                    schedule,
                    open: VecDeque::new(),
                    late: VecDeque::new(),
                    keeps_past: true,
                },
            })
            .collect();
        for active in &mut self.schedules {
            let classes = active.schedule.classes.iter();
            active.shared = classes.map(|_| Shared::default()).collect();
        }
        self.declares = declares(&set, &self.fingerprints);
        self.set = set;
        if self.set.expected_for() != former.expected_for() {
            // Others are expected than before.
            self.roster_ns = i64::MIN;
        }
        self.expect_nodes();
        for assertion in &former.assertions {
            for (key, kept) in keys.remove(&assertion.name).unwrap_or_default() {
                self.outdate(standing(assertion, key, kept.machine), now_ns);
            }
        }
    }

    /// Judges what can be judged at `now_ns`. An error means that the store is away; the same again will do.
    pub async fn step(&mut self, now_ns: i64) -> Result<Step, StoreError> {
        self.hear(now_ns).await?;
        self.open(now_ns);
        let mut step = Step::default();
        let mut outcome = self.judge_all(now_ns, &mut step).await;
        self.end_outdated(now_ns);
        if outcome.is_ok() {
            self.forget(now_ns);
        }
        step.records.append(&mut self.over);
        if outcome.is_ok() && self.is_accusing {
            outcome = self.accuse(&mut step.records, now_ns).await;
        }
        for record in &mut step.records {
            let labels = record.labels.iter().cloned().collect();
            let of = Of {
                assertion: &record.assertion,
                key: &record.key,
                severity: &record.severity,
                labels: &labels,
            };
            record.silenced = self.silences.cover(of, now_ns);
        }
        if self.is_writing {
            // What was judged is judged, whatever the store refuses to answer next.
            self.keep(&step.records);
        }
        outcome?;
        if self.is_writing && !self.is_put_off(now_ns) {
            self.write(now_ns).await?;
        }
        if self.asks_ahead {
            self.ask_ahead(now_ns).await;
        }
        self.tell_awaited(now_ns);
        Ok(step)
    }

    async fn judge_all(&mut self, now_ns: i64, step: &mut Step) -> Result<(), StoreError> {
        for at in 0..self.schedules.len() {
            self.judge_schedule(at, now_ns, step).await?;
            self.revise(at, now_ns, step).await?;
        }
        Ok(())
    }

    /// Puts to verdicts that something fails what speaks against it: to those that came to it now before those that stay.
    async fn accuse(&mut self, records: &mut [Record], now_ns: i64) -> Result<(), StoreError> {
        let fails =
            |record: &&mut Record| matches!(record.machine.verdict, Verdict::Violated | Verdict::Pending);
        let mut failing: Vec<_> = records.iter_mut().filter(fails).collect();
        failing.sort_by_key(|record| (!record.is_transition, record.machine.verdict != Verdict::Violated));
        let most = self.looks.left(now_ns);
        for record in failing.into_iter().take(most) {
            self.looks.left -= 1;
            let assertion = self
                .set
                .assertions
                .iter()
                .find(|known| known.name == record.assertion);
            let found = assertion.and_then(|assertion| {
                let is_named = |condition: &&Condition| condition.to_string() == record.condition;
                let condition = assertion.expect.iter().find(is_named)?;
                let window = Window {
                    from_ns: match condition.over {
                        Some(over) => record.window_to_ns.saturating_sub(ns(over)),
                        None => record.window_from_ns,
                    },
                    to_ns: record.window_to_ns,
                };
                let moment = self.moment(window, record.judged_ns);
                Some((
                    worst::suspects(assertion, condition, &record.key_values, &moment)?,
                    window,
                ))
            });
            let Some((suspects, window)) = found else { continue };
            let (rows, causes) = store::worst::worst(&*self.store, &suspects, window).await?;
            record.accuse(rows, causes);
        }
        Ok(())
    }

    /// Hears what the agents reported since.
    async fn hear(&mut self, now_ns: i64) -> Result<(), StoreError> {
        self.coverage.listen_again(now_ns);
        let since_ns = self.expected_since(now_ns);
        if self.heard_ns == 0 {
            for (node, epoch, began_ns) in evidence::starts(&*self.store, now_ns, since_ns).await? {
                self.coverage.began(&node, epoch, began_ns);
            }
            // As far back as a window may reach that is judged late.
            let reach_ns = self.longest_ns() + 600 * 1_000_000_000;
            self.heard_ns = now_ns.saturating_sub(reach_ns);
        }
        // The past comes first: of what is older than the last report of a node nothing is heard.
        if self.asked_ns > i64::MIN {
            self.hear_directly();
        }
        let is_due = now_ns.saturating_sub(self.asked_ns) >= STORED_REPORTS_EVERY_NS;
        let is_any_elsewhere = now_ns.saturating_sub(self.elsewhere_ns) < ELSEWHERE_NS;
        if self.direct.is_none() || is_any_elsewhere || is_due {
            self.hear_stored(now_ns).await?;
        }
        self.hear_directly();
        self.coverage.listened_until(now_ns);
        if now_ns.saturating_sub(self.roster_ns) >= ROSTER_EVERY_NS {
            let heard = evidence::roster(&*self.store, now_ns, since_ns).await?;
            if heard != self.heard {
                self.heard = heard;
                self.expect_nodes();
            }
            self.roster_ns = now_ns;
            let reach_ns = now_ns.saturating_sub(self.longest_ns() + 3600 * 1_000_000_000);
            let oldest_ns = self.oldest_ns().unwrap_or(reach_ns);
            self.coverage.forget_before(reach_ns.min(oldest_ns));
        }
        Ok(())
    }

    /// Since when a node has to have been heard that has to be there.
    fn expected_since(&self, now_ns: i64) -> i64 {
        let deadlines = self.set.assertions.iter().map(|assertion| assertion.deadline);
        let patience = deadlines.max().unwrap_or_default();
        self.coverage
            .expected_since(now_ns, self.set.expected_for(), patience)
    }

    /// Who has to be there: whoever was heard, and whom the set declares.
    fn expect_nodes(&mut self) {
        self.roster = self.heard.with(&self.set.nodes);
        self.addresses = Addresses::of(&self.roster);
        self.membership = membership(&self.set, &self.roster);
    }

    fn hear_directly(&mut self) {
        for report in self.direct.iter().flat_map(Heard::take) {
            self.coverage.hear(&report);
        }
    }

    /// Hears what was reported until a moment of the past, which was read before.
    async fn hear_the_past(&mut self, now_ns: i64) -> Result<(), StoreError> {
        let Some(past) = &mut self.past else { return Ok(()) };
        let mut read_ns = past.read_ns.unwrap_or(self.heard_ns);
        while read_ns < now_ns {
            let until_ns = read_ns.saturating_add(REPORTS_AT_ONCE_NS).min(past.until_ns);
            past.reports
                .extend(evidence::reports(&*self.store, read_ns, until_ns).await?);
            read_ns = until_ns;
            past.read_ns = Some(until_ns);
        }
        while let Some(report) = past.reports.pop_front_if(|report| report.received_ns <= now_ns) {
            self.heard_ns = self.heard_ns.max(report.received_ns);
            self.coverage.hear(&report);
        }
        self.asked_ns = now_ns;
        Ok(())
    }

    async fn hear_stored(&mut self, now_ns: i64) -> Result<(), StoreError> {
        if self.past.as_ref().is_some_and(|past| now_ns <= past.until_ns) {
            return self.hear_the_past(now_ns).await;
        }
        let is_start = self.asked_ns == i64::MIN;
        // At a start that is the past of the longest window: a bit of it at a time.
        let mut since_ns = self.heard_ns.saturating_sub(REPORTS_AGAIN_NS);
        while since_ns < now_ns {
            let until_ns = now_ns.min(since_ns.saturating_add(REPORTS_AT_ONCE_NS));
            for report in evidence::reports(&*self.store, since_ns, until_ns).await? {
                self.heard_ns = self.heard_ns.max(report.received_ns);
                // What was said here was heard before it is stored.
                let is_news = self.coverage.hear(&report);
                if is_news && !is_start {
                    self.elsewhere_ns = now_ns;
                }
            }
            since_ns = until_ns;
        }
        self.asked_ns = now_ns;
        Ok(())
    }

    /// Tells whom the oldest window of each schedule waits for, so that it is judged once the last of them is heard.
    fn tell_awaited(&self, now_ns: i64) {
        let Some(heard) = &self.direct else { return };
        let of_schedule = |at: usize| {
            let window = self.schedules[at].open.front()?.window;
            let moment = self.moment(window, now_ns);
            let mut nodes = HashSet::new();
            for assertion in self.watchers(at) {
                let waiting = Observers::of(assertion, &moment);
                nodes.extend(waiting.awaited().map(str::to_owned));
            }
            let until_ns = window.to_ns;
            (!nodes.is_empty()).then_some(Awaited { until_ns, nodes })
        };
        heard.await_nodes((0..self.schedules.len()).filter_map(of_schedule).collect());
    }

    /// How much of any window has to have been watched.
    fn longest_ns(&self) -> i64 {
        let longest = self.set.assertions.iter().map(Assertion::watched_over).max();
        ns(longest.unwrap_or_default())
    }

    /// Opens the windows that have ended.
    fn open(&mut self, now_ns: i64) {
        for active in &mut self.schedules {
            let (over_ns, every_ns) = (ns(active.schedule.over), ns(active.schedule.every));
            while active.next_ns <= now_ns.min(self.end_ns) {
                let to_ns = active.next_ns;
                active.next_ns += every_ns;
                if active.open.len() == MOST_OPEN {
                    active.open.pop_front();
                    self.given_up += 1;
                }
                let window = Window {
                    from_ns: to_ns - over_ns,
                    to_ns,
                };
                active.open.push_back(Tick {
                    window,
                    is_begun: false,
                    whole_ns: None,
                });
            }
        }
    }

    async fn judge_schedule(&mut self, at: usize, now_ns: i64, step: &mut Step) -> Result<(), StoreError> {
        let mut place = 0;
        let mut count = 0;
        // Where nothing is written, nothing waits for it.
        let most = if self.is_writing { MOST_AT_ONCE } else { usize::MAX };
        while let Some(&tick) = self.schedules[at].open.get(place)
            && count < most
        {
            let (anybody_waited_for, anybody_ready) = self.waiting_for(at, tick.window, now_ns);
            let is_whole = !anybody_waited_for;
            let is_time = now_ns >= tick.window.to_ns + PATIENCE_NS;
            if !is_whole && (tick.is_begun || !anybody_ready || !is_time) {
                // Later windows can only be waited for too, by the same.
                place += 1;
                continue;
            }
            if is_whole && self.reads_minutes(at) {
                let whole_ns = *self.schedules[at].open[place].whole_ns.get_or_insert(now_ns);
                if now_ns < whole_ns + MINUTES_SETTLE_NS {
                    place += 1;
                    continue;
                }
            }
            count += 1;
            let older = place
                .checked_sub(1)
                .map(|before| self.schedules[at].open[before].window.to_ns);
            let is_all = is_whole && older.is_none();
            let records = self.judge_window(at, tick.window, older, is_all, now_ns).await?;
            step.records.extend(records);
            if is_whole {
                self.schedules[at].open.remove(place);
                self.remember(at, tick.window, now_ns);
                step.judged += 1;
            } else {
                self.schedules[at].open[place].is_begun = true;
                place += 1;
            }
        }
        Ok(())
    }

    /// Whether a schedule's long windows are read from the store's minutes.
    fn reads_minutes(&self, at: usize) -> bool {
        let mut classes = self.schedules[at].schedule.classes.iter();
        self.has_rollup && classes.any(evidence::is_of_minutes)
    }

    /// The longest deadline of a schedule's assertions.
    fn patience(&self, at: usize) -> Duration {
        let planned = self.schedules[at].schedule.assertions.iter();
        let deadlines = planned.map(|planned| self.set.assertions[planned.assertion].deadline);
        deadlines.max().unwrap_or_default()
    }

    /// Whether anybody's rows are waited for, and whether anybody's are not.
    fn waiting_for(&self, at: usize, window: Window, now_ns: i64) -> (bool, bool) {
        let moment = self.moment(window, now_ns);
        let mut state = (false, false);
        for assertion in self.watchers(at) {
            let (waited_for, ready) = Observers::of(assertion, &moment).waiting();
            state = (state.0 || waited_for, state.1 || ready);
        }
        state
    }

    /// Assertions of a schedule that stand for all that wait for the same nodes.
    fn watchers(&self, at: usize) -> impl Iterator<Item = &Assertion> {
        let schedule = &self.schedules[at].schedule;
        let first = schedule.watchers.iter().map(|&first| &schedule.assertions[first]);
        first.map(|planned| &self.set.assertions[planned.assertion])
    }

    fn moment(&self, window: Window, now_ns: i64) -> Moment<'_> {
        Moment {
            window,
            now_ns,
            expected_for: self.set.expected_for(),
            roster: &self.roster,
            membership: &self.membership,
            addresses: &self.addresses,
            coverage: &self.coverage,
        }
    }

    /// Judges a window for everybody who need not be waited for. `older`: a window before that is still open; those who
    /// wait for it come later. `is_all`: nobody is waited for, so keys that are not judged here are judged no more.
    async fn judge_window(
        &mut self,
        at: usize,
        window: Window,
        older: Option<i64>,
        is_all: bool,
        now_ns: i64,
    ) -> Result<Vec<Record>, StoreError> {
        // Once the time for an answer is over, that the store did not give one is what there is to say.
        let is_over = now_ns >= window.to_ns + ns(self.patience(at)) + STORE_PATIENCE_NS;
        let every_ns = ns(self.schedules[at].schedule.every);
        let has_late = !self.schedules[at].late.is_empty();
        let silences = self.silences.clone();
        let mut records = Vec::new();
        let found = self.find(at, window, now_ns, is_over).await?;
        let mut judged = found.iter().flat_map(|(_, judgements)| judgements);
        self.schedules[at].keeps_past |= has_late || judged.any(|judgement| judgement.may_come);
        for (index, judgements) in found {
            let assertion = &self.set.assertions[index];
            let keys = self.keys.entry(assertion.name.clone()).or_default();
            let judged: BTreeSet<Key> = judgements.iter().map(|judgement| judgement.key.clone()).collect();
            for judgement in judgements {
                let place = Taken {
                    window,
                    older,
                    every_ns,
                    has_late,
                    heartbeat_ns: self.heartbeat_ns,
                    now_ns,
                    silences: &silences,
                    fingerprint: self.fingerprints[index],
                };
                records.extend(take(assertion, keys, judgement, place));
            }
            if is_all {
                let gone = keys.extract_if(.., |key, kept| {
                    kept.machine.judged_ns < window.to_ns && !judged.contains(key)
                });
                records.extend(gone.map(|(key, kept)| {
                    let stood = standing(assertion, key, kept.machine);
                    Record::over(stood, Over::NoSuchKey.to_string(), now_ns)
                }));
            }
        }
        Ok(records)
    }

    /// What a window came to, by assertion. `is_over`: what the store does not answer is not asked again.
    async fn find(
        &mut self,
        at: usize,
        window: Window,
        now_ns: i64,
        is_over: bool,
    ) -> Result<Vec<(usize, Vec<Judgement>)>, StoreError> {
        let mut answers = Vec::new();
        let needed = self.needed(at, window, now_ns);
        for class in 0..self.schedules[at].schedule.classes.len() {
            let answer = self.answer(at, class, window.to_ns, &needed).await;
            answers.push(match answer {
                Err(error) if is_over => Err(Cause::Store(error.to_string())),
                answer => answer?,
            });
        }
        let mut found = Vec::new();
        let moment = self.moment(window, now_ns);
        let observers = self
            .watchers(at)
            .map(|assertion| Observers::of(assertion, &moment));
        let observers: Vec<_> = observers.collect();
        for planned in &self.schedules[at].schedule.assertions {
            let assertion = &self.set.assertions[planned.assertion];
            let observers = &observers[planned.watcher];
            let known: BTreeSet<Key> = match self.keys.get(&assertion.name) {
                Some(kept) => kept.keys().cloned().collect(),
                None => BTreeSet::new(),
            };
            let judgements = evaluate::judge(assertion, planned, &moment, observers, &answers, &known);
            found.push((planned.assertion, judgements));
        }
        Ok(found)
    }

    /// Keys that nothing was seen of for long are not judged any more.
    fn forget(&mut self, now_ns: i64) {
        if let Some(stepped_ns) = &mut self.stepped_ns {
            let before_ns = std::mem::replace(stepped_ns, now_ns);
            if is_pause(before_ns, now_ns) {
                let all = self.keys.values_mut().flat_map(BTreeMap::values_mut);
                all.for_each(|kept| kept.pass_over(before_ns, now_ns));
            }
        }
        if now_ns.saturating_sub(self.forgot_ns) < FORGET_EVERY_NS {
            return;
        }
        self.forgot_ns = now_ns;
        for assertion in &self.set.assertions {
            let Some(keys) = self.keys.get_mut(&assertion.name) else {
                continue;
            };
            let remembered_for = self.set.remembered_for(assertion);
            let unseen = keys.extract_if(.., |key, kept| {
                kept.is_unseen(now_ns, remembered_for) && !evaluate::is_standing(assertion, key, &self.roster)
            });
            self.over.extend(unseen.map(|(key, kept)| {
                let stood = standing(assertion, key, kept.machine);
                Record::over(stood, Over::Unseen(remembered_for).to_string(), now_ns)
            }));
        }
    }

    /// Takes verdicts that are to be written.
    fn keep(&mut self, records: &[Record]) {
        self.waiting.extend_from_slice(records);
        if self.waiting.len() > MOST_WAITING {
            self.waiting.retain(is_change);
            let excess = self.waiting.len().saturating_sub(MOST_WAITING);
            self.waiting.drain(..excess);
        }
    }

    /// Whether the verdicts that wait for the store go with those of the next steps.
    fn is_put_off(&self, now_ns: i64) -> bool {
        let Some((wrote_ns, changes)) = self.wrote else {
            return false;
        };
        if self.waiting.len() > MOST_WAITING / 4 {
            return false;
        }
        let patience_ns = if !self.waiting.iter().any(is_change) {
            HEARTBEATS_NS
        } else if changes > MANY {
            STORM_NS
        } else {
            0
        };
        // Of a clock that was set back, nothing is put off.
        self.in_doubt.is_empty() && (wrote_ns..wrote_ns.saturating_add(patience_ns)).contains(&now_ns)
    }

    /// Writes the verdicts that wait for the store, also those that were put off.
    pub async fn write(&mut self, now_ns: i64) -> Result<(), StoreError> {
        let all = self.in_doubt.iter().chain(&self.waiting);
        let changes = all.filter(|record| is_change(record)).count();
        if !self.waiting.is_empty() || changes > 0 {
            self.wrote = Some((now_ns, changes));
        }
        if self.in_doubt.is_empty() {
            self.in_doubt = std::mem::take(&mut self.waiting);
        }
        while let (Some(first), Some(last)) = (self.in_doubt.first(), self.in_doubt.last()) {
            let (begin, end, count) = (first.judged_ns, last.judged_ns, self.in_doubt.len());
            let deadline_ms = match &self.seat {
                Some(seat) => seat.deadline_ms().await?,
                None => None,
            };
            let token = format!("verdicts-{begin}-{end}-{count}");
            let written = verdicts::write(&*self.store, &token, &self.in_doubt, deadline_ms).await;
            if let (Err(_), Some(seat)) = (&written, &self.seat) {
                seat.read_the_clock_again();
            }
            written?;
            let stored = std::mem::replace(&mut self.in_doubt, std::mem::take(&mut self.waiting));
            if let Some(written) = &mut self.written {
                written.extend(stored.into_iter().filter(is_change));
            }
        }
        Ok(())
    }
}

/// A block costs the store as much as hundreds of verdicts, when it comes and when it is merged. After one of more changes than
/// this, the next one is written so much later. Other changes are written at once.
const MANY: usize = 100;
const STORM_NS: i64 = 1_000_000_000;

/// Between two blocks without any change.
const HEARTBEATS_NS: i64 = 5_000_000_000;

/// Whether it says something new of a key.
fn is_change(record: &Record) -> bool {
    record.is_transition || record.revision > 0
}

/// A key of an assertion that means something else now is waited for so much longer than its windows take: rows are read in
/// minutes where windows are long.
const OUTDATED_NS: i64 = 60_000_000_000;

/// A question that the store did not answer is asked again for so long after the window's deadline.
const STORE_PATIENCE_NS: i64 = 100_000_000_000;

/// Which nodes of a roster belong to the groups of a set.
fn membership(set: &Set, roster: &Roster) -> Membership {
    Membership::of(&set.groups, &roster.nodes.iter().map(|node| &node.labelled))
}

/// The window of which a judgement is taken.
#[derive(Clone, Copy)]
struct Taken<'a> {
    window: Window,
    /// The end of a window before that is still open.
    older: Option<i64>,
    every_ns: i64,
    /// Windows before were judged without all of their rows.
    has_late: bool,
    heartbeat_ns: i64,
    now_ns: i64,
    silences: &'a Silences,
    /// The assertion's.
    fingerprint: u32,
}

/// Whether nobody judged for a while.
fn is_pause(from_ns: i64, to_ns: i64) -> bool {
    to_ns.saturating_sub(from_ns) > ns(HEARD_WITHIN)
}

/// When the heartbeats of a key are: the same after a restart, and another time for each.
fn phase_ns(assertion: &str, key: &Key) -> i64 {
    let mut hash = crc32fast::Hasher::new();
    hash.update(assertion.as_bytes());
    key.iter().for_each(|value| hash.update(value.as_bytes()));
    i64::from(hash.finalize()) * 1_000 % HEARTBEAT_NS
}

/// A number made of what a set judges. `fingerprints`: of its assertions.
fn declares(set: &Set, fingerprints: &[u32]) -> u32 {
    let names = set.assertions.iter().map(|assertion| &assertion.name);
    let mut each: Vec<_> = names
        .zip(fingerprints)
        .map(|(name, fingerprint)| format!("{name} {fingerprint}\n"))
        .collect();
    each.sort_unstable();
    // Where it is not declared the number is the one of earlier collectors.
    each.extend(set.expect_nodes_for.map(|time| format!("{time:?}\n")));
    crc32fast::hash(each.concat().as_bytes())
}

fn rules(assertion: &Assertion) -> Rules {
    Rules {
        pace: assertion.pace,
        clear_after: assertion.clear_after,
        hold: assertion.hold,
    }
}

/// Where a key stands after another window.
struct Advanced {
    machine: Machine,
    previous: Verdict,
    is_transition: bool,
}

/// Takes the window that ended at `at_ns`. `before`: where the key stood; none: it is new.
fn advance(rules: &Rules, before: Option<&Machine>, at_ns: i64, every_ns: i64, outcome: Outcome) -> Advanced {
    let mut machine = before.cloned().unwrap_or_else(|| Machine::new(at_ns));
    let (previous, since_ns) = (machine.verdict, machine.since_ns);
    if before.is_some() && machine.judged_ns < at_ns - every_ns {
        // What came to be in between is not known.
        machine.step(rules, at_ns - every_ns, Outcome::Unknown);
    }
    machine.step(rules, at_ns, outcome);
    let is_transition = before.is_none() || machine.verdict != previous;
    machine.since_ns = match before {
        None => at_ns,
        Some(_) if machine.verdict == previous => since_ns,
        Some(_) => machine.since_ns,
    };
    Advanced {
        machine,
        previous,
        is_transition,
    }
}

/// Takes a window of a key, and gives what is to be written of it.
fn take(
    assertion: &Assertion,
    keys: &mut BTreeMap<Key, Kept>,
    judgement: Judgement,
    place: Taken<'_>,
) -> Option<Record> {
    let (window, now_ns) = (place.window, place.now_ns);
    let at_ns = window.to_ns;
    let before = keys.get(&judgement.key).map(|kept| kept.machine.clone());
    if let Some(before) = &before {
        let judged_ns = before.judged_ns;
        if judged_ns >= at_ns || place.older.is_some_and(|older| judged_ns < older) {
            return None;
        }
    }
    let Advanced {
        machine,
        previous,
        is_transition,
    } = advance(
        &rules(assertion),
        before.as_ref(),
        at_ns,
        place.every_ns,
        judgement.outcome,
    );
    let kept = keys.entry(judgement.key.clone()).or_insert_with(|| Kept {
        machine: machine.clone(),
        written_ns: i64::MIN,
        phase_ns: phase_ns(&assertion.name, &judgement.key),
        seen_ns: now_ns,
        is_silenced: false,
        cause: None,
        history: None,
    });
    kept.machine = machine.clone();
    // That nothing was there is a reading too.
    if judgement.readings.iter().any(|reading| reading.samples > 0) {
        kept.seen_ns = now_ns;
    }
    let is_silenced = !place.silences.is_empty() && {
        let of = Of {
            assertion: &assertion.name,
            key: &key_text(&assertion.by, &judgement.key),
            severity: &assertion.severity,
            labels: &assertion.labels,
        };
        place.silences.cover(of, now_ns)
    };
    let is_due = kept.is_due(now_ns, place.heartbeat_ns);
    let is_other_cause = match (&kept.cause, &judgement.cause) {
        (Some(written), Some(cause)) => !written.is_like(cause),
        _ => false,
    };
    let is_news = is_other_cause && now_ns.saturating_sub(kept.written_ns) >= CAUSE_NS;
    let is_written = is_transition || is_due || is_news || is_silenced != kept.is_silenced;
    kept.is_silenced = is_silenced;
    if is_written {
        kept.written_ns = now_ns;
        kept.cause.clone_from(&judgement.cause);
    }
    let may_change = judgement.may_come || (before.is_none() && place.has_late);
    if may_change && kept.history.is_none() {
        kept.history = Some(History::beginning(before.clone()));
    }
    if let Some(history) = &mut kept.history {
        history.push(window, judgement.clone(), &machine, is_written);
    }
    if let Some(cause @ Cause::Gone { .. }) = &judgement.cause {
        // That is the last word on it, whether its verdict is another one or not.
        let cause = cause.to_string();
        let before = before.unwrap_or(machine);
        keys.remove(&judgement.key);
        return Some(Record::over(
            standing(assertion, judgement.key, before),
            cause,
            now_ns,
        ));
    }
    is_written.then(|| {
        record(
            assertion,
            judgement,
            window,
            now_ns,
            Said {
                previous,
                is_transition,
                machine,
                revision: 0,
                fingerprint: place.fingerprint,
            },
        )
    })
}

/// What is said of a window.
struct Said {
    previous: Verdict,
    is_transition: bool,
    machine: Machine,
    /// How often it was said otherwise before.
    revision: u32,
    /// The assertion's.
    fingerprint: u32,
}

/// Where a key stands, as the store would give it.
fn standing(assertion: &Assertion, key: Key, machine: Machine) -> Stood {
    Stood {
        node: node(assertion, &key),
        assertion: assertion.name.clone(),
        key_text: key_text(&assertion.by, &key),
        key,
        fingerprint: assertion.fingerprint(),
        machine,
        condition: assertion
            .expect
            .first()
            .map(ToString::to_string)
            .unwrap_or_default(),
        severity: assertion.severity.clone(),
        labels: assertion.labels.clone().into_iter().collect(),
    }
}

/// The node that a key names as its own; empty if it names none.
fn node(assertion: &Assertion, key: &Key) -> String {
    let mut by = assertion.by.iter();
    let own = by.position(|dimension| *dimension == assertion.own_node());
    own.and_then(|at| key.get(at)).cloned().unwrap_or_default()
}

fn record(assertion: &Assertion, judgement: Judgement, window: Window, now_ns: i64, said: Said) -> Record {
    let Said {
        previous,
        is_transition,
        machine,
        revision,
        fingerprint,
    } = said;
    let condition = &assertion.expect[judgement.decisive];
    let reading = judgement
        .readings
        .get(judgement.decisive)
        .copied()
        .unwrap_or_default();
    Record {
        node: node(assertion, &judgement.key),
        assertion: assertion.name.clone(),
        key: key_text(&assertion.by, &judgement.key),
        previous,
        is_transition,
        window_from_ns: window.from_ns,
        window_to_ns: window.to_ns,
        judged_ns: now_ns,
        cause: judgement
            .cause
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        is_of_beginning: judgement.cause.as_ref().is_some_and(Cause::is_of_beginning),
        condition: condition.to_string(),
        value: reading.value,
        threshold: condition.limit.value(),
        samples: reading.samples,
        loss: judgement.loss,
        silenced: false,
        severity: assertion.severity.clone(),
        labels: assertion.labels.clone().into_iter().collect(),
        evidence: readings_json(&assertion.expect, &judgement),
        revision,
        fingerprint,
        machine,
        key_values: judgement.key,
    }
}

/// What each condition was held against, for people and programs.
fn readings_json(expect: &[Condition], judgement: &Judgement) -> String {
    let readings = expect
        .iter()
        .zip(&judgement.readings)
        .map(|(condition, reading)| {
            serde_json::json!({
                "condition": condition.to_string(),
                "value": reading.value.map(|value| value_text(condition.signal.signal.unit, value)),
                "samples": reading.samples,
                "passed": reading.passed,
            })
        });
    serde_json::json!({ "readings": readings.collect::<Vec<_>>() }).to_string()
}

/// The first moment from there on that is a multiple of it.
fn aligned(from_ns: i64, every_ns: i64) -> i64 {
    from_ns.saturating_add(every_ns - 1).div_euclid(every_ns) * every_ns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assertion::evaluate::Reading;

    const SECOND: i64 = 1_000_000_000;

    fn set(assertion: &str) -> Set {
        let text = format!("assertions: [{{ name: a, over: 5s, by: comm, {assertion} }}]");
        let set = files::declared(&[("a.yaml".to_owned(), text)]);
        set.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Takes the window of `curl` that ends so many seconds after the begin.
    fn taken(set: &Set, keys: &mut BTreeMap<Key, Kept>, at: i64, samples: u64, outcome: Outcome) {
        let judgement = Judgement {
            key: vec!["curl".to_owned()],
            outcome,
            cause: None,
            readings: vec![Reading {
                value: Some(0.0),
                samples,
                passed: Some(outcome == Outcome::Passed),
            }],
            decisive: 0,
            loss: None,
            may_come: false,
        };
        let place = Taken {
            window: Window {
                from_ns: (at - 5) * SECOND,
                to_ns: at * SECOND,
            },
            older: None,
            every_ns: SECOND,
            has_late: false,
            heartbeat_ns: HEARTBEAT_NS,
            now_ns: at * SECOND,
            silences: &Silences::default(),
            fingerprint: 0,
        };
        take(&set.assertions[0], keys, judgement, place);
    }

    #[test]
    fn a_key_is_seen_in_windows_in_which_it_has_rows() {
        let set = set("expect: connect.refused = 0");
        let mut keys = BTreeMap::new();
        for (at, samples, seen) in [(1, 3, 1), (2, 0, 1), (3, 1, 3), (4, 0, 3)] {
            taken(&set, &mut keys, at, samples, Outcome::Passed);
            assert_eq!(keys[&vec!["curl".to_owned()]].seen_ns, seen * SECOND, "{at} s");
        }
    }

    #[test]
    fn what_fails_for_want_of_rows_is_not_forgotten_for_it() {
        let minute = Duration::from_secs(60);
        for (pace, outcome, is_forgotten) in [
            ("", Outcome::Passed, true),
            ("", Outcome::Unknown, true),
            ("", Outcome::Failed, false),
            // For so long it is pending.
            (", for: 5m", Outcome::Failed, false),
        ] {
            let set = set(&format!("expect: connect.count > 0{pace}"));
            let mut keys = BTreeMap::new();
            taken(&set, &mut keys, 1, 3, Outcome::Passed);
            for at in 2..=100 {
                taken(&set, &mut keys, at, 0, outcome);
            }
            let is_unseen = keys[&vec!["curl".to_owned()]].is_unseen(100 * SECOND, minute);
            assert_eq!(is_unseen, is_forgotten, "{pace} {outcome:?}");
        }
    }

    #[test]
    fn time_in_which_nobody_judged_makes_no_key_unseen() {
        let set = set("expect: connect.refused = 0");
        let mut keys = BTreeMap::new();
        taken(&set, &mut keys, 100, 3, Outcome::Passed);
        let mut curl = keys.remove(&vec!["curl".to_owned()]).expect("it is judged");
        for (from, to, seen) in [
            (120, 121, 100),
            (130, 3_730, 3_700),
            (3_731, 9_000, 8_969),
            (8_970, 8_980, 8_969),
        ] {
            curl.pass_over(from * SECOND, to * SECOND);
            assert_eq!(curl.seen_ns, seen * SECOND, "{from} to {to}");
        }
        // In a window that was judged since.
        curl.pass_over(0, 9_000 * SECOND);
        assert_eq!(curl.seen_ns, 9_000 * SECOND);
    }

    #[test]
    fn what_is_not_looked_at_now_may_be_two_seconds_later() {
        let mut looks = Looks {
            left: MOST_ACCUSED,
            counted_ns: 0,
        };
        let mut check = |now_ms: i64, takes: usize, expected: usize| {
            assert_eq!(looks.left(now_ms * 1_000_000), expected, "{now_ms} ms");
            looks.left -= takes;
        };
        check(0, MOST_ACCUSED, MOST_ACCUSED);
        check(1_999, 0, 0);
        check(2_000, 1, 1);
        // What is over of the time for one counts for the next.
        check(5_900, 0, 1);
        check(6_000, 2, 2);
        // A clock that was set back.
        check(-60_000, 0, 0);
        check(-58_000, 1, 1);
        check(3_600_000, 0, MOST_ACCUSED);
    }
}
