//! What the store has of a window. It is asked once for each part that windows share, and for a long part while it goes on: all of
//! it at once would keep the windows of others waiting.

use std::collections::BTreeSet;

use super::{Active, Engine, ns};
use crate::assertion::cause::Cause;
use crate::assertion::coverage::{Coverage, Need, Window};
use crate::assertion::evaluate::{LabelledRows, Observers};
use crate::assertion::parts::Parts;
use crate::assertion::plan::Class;
use crate::store::layout::Layout;
use crate::store::{Store, StoreError, evidence};

/// What was made so long ago is stored, or will not be soon.
const SETTLED_NS: i64 = 60_000_000_000;

/// Parts that are asked for ahead where all of them are over.
const PARTS_AHEAD: i64 = 240;

/// A longer part is asked for by so much of it, each as soon as it is over.
const COMING_NS: i64 = 10_000_000_000;

/// How often it is looked for that.
const AHEAD_EVERY_NS: i64 = 500_000_000;

/// How long parts may be for that: what is asked for is kept until they are over.
const LONGEST_COMING_NS: i64 = 300_000_000_000;

/// Entries of histograms, of 16 bytes each, that are kept of what windows share, of all classes together.
const MOST_ENTRIES: usize = 12_000_000;

/// What the windows of a class share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    parts: Parts,
    /// Of what the part will be put together that is not over yet, where parts are long.
    coming: Parts,
    /// Nothing is asked for ahead before: it failed.
    not_before_ns: i64,
}

/// Whether parts of this length are put together too.
fn is_long(part_ns: i64) -> bool {
    (COMING_NS + 1..=LONGEST_COMING_NS).contains(&part_ns) && part_ns % COMING_NS == 0
}

/// What is over of a part, and asked for next.
struct Stretch {
    at: usize,
    index: usize,
    window: Window,
    need: Need,
    of: BTreeSet<String>,
}

/// Who is asked for parts, and what is known of their rows.
struct Source<'a> {
    store: &'a dyn Store,
    class: &'a Class,
    need: Need,
    /// Whose rows are needed.
    of: &'a BTreeSet<String>,
    coverage: &'a Coverage,
    /// All that ever comes of the time before is there.
    whole_ns: i64,
    asked: &'a mut u64,
}

impl Source<'_> {
    /// Asks for what a window is put together of and is not there yet. False: the store refuses to say it.
    async fn fill(&mut self, parts: &mut Parts, window: Window, part_ns: i64) -> Result<bool, StoreError> {
        let mut missing = parts.missing(window, part_ns, (self.need, self.of), self.coverage);
        if let Some(stretch) = &mut missing {
            let ahead = (self.whole_ns.saturating_sub(stretch.to_ns) / part_ns).clamp(0, PARTS_AHEAD);
            stretch.to_ns += ahead * part_ns;
        }
        // What is too much for one answer is asked for by halves.
        let mut stretches = Vec::from_iter(missing);
        while let Some(stretch) = stretches.pop() {
            *self.asked += 1;
            match evidence::ask_in_parts(self.store, self.class, stretch, part_ns).await? {
                Ok(rows) => parts.put(stretch, part_ns, self.need, self.coverage, self.whole_ns, rows),
                Err(Cause::TooMany { .. }) if stretch.to_ns - stretch.from_ns > part_ns => {
                    let half = (stretch.to_ns - stretch.from_ns) / part_ns / 2 * part_ns;
                    let between_ns = stretch.from_ns + half;
                    stretches.push(Window {
                        from_ns: between_ns,
                        ..stretch
                    });
                    stretches.push(Window {
                        to_ns: between_ns,
                        ..stretch
                    });
                }
                // Whatever is wrong shows in the answer about the whole window.
                Err(cause) => {
                    if matches!(cause, Cause::TooMany { .. }) {
                        parts.give_up();
                    }
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Puts the last part of a window together of what was asked for while it went on, and of what is missing of it.
    async fn complete(
        &mut self,
        shared: &mut Shared,
        window: Window,
        part_ns: i64,
    ) -> Result<(), StoreError> {
        let last = Window {
            from_ns: window.to_ns - part_ns,
            ..window
        };
        let missing = shared
            .parts
            .missing(window, part_ns, (self.need, self.of), self.coverage);
        // Of a window that is the first, all of it is asked for at once.
        let is_last = missing.is_some_and(|missing| missing.to_ns == last.to_ns) && !shared.parts.is_empty();
        let can_make = shared.coming.can_make(self.class, last, COMING_NS);
        if is_last && can_make && self.fill(&mut shared.coming, last, COMING_NS).await? {
            shared.parts.take(last, &mut shared.coming, COMING_NS);
        } else {
            shared.coming.forget(last, COMING_NS);
        }
        Ok(())
    }
}

impl Engine {
    /// What the store has of the window of a class that ends there: of what was not asked for before, and put together.
    pub(super) async fn answer(
        &mut self,
        at: usize,
        index: usize,
        to_ns: i64,
        of: &BTreeSet<String>,
    ) -> Result<Result<Vec<LabelledRows>, Cause>, StoreError> {
        let shares = self.shares(at, index);
        let Active { schedule, shared, .. } = &mut self.schedules[at];
        let (shared, class, part_ns) = (&mut shared[index], &schedule.classes[index], ns(schedule.every));
        let window = Window {
            from_ns: to_ns.saturating_sub(ns(class.over)),
            to_ns,
        };
        if let Some(need) = shares
            && shared.parts.can_make(class, window, part_ns)
        {
            let past = self.past.as_ref();
            let mut source = Source {
                store: &*self.store,
                class,
                need,
                of,
                coverage: &self.coverage,
                whole_ns: past.map_or(i64::MIN, |past| past.until_ns - SETTLED_NS),
                asked: &mut self.asked,
            };
            if self.asks_ahead && is_long(part_ns) {
                source.complete(shared, window, part_ns).await?;
            }
            if source.fill(&mut shared.parts, window, part_ns).await? {
                let rows = shared.parts.whole(window, part_ns);
                self.bound_parts();
                let most = evidence::MOST_ROWS;
                return Ok(Some(rows)
                    .filter(|rows| rows.len() <= most)
                    .ok_or(Cause::TooMany { most }));
            }
        }
        self.asked += 1;
        evidence::ask(&*self.store, class, window, self.has_rollup).await
    }

    /// What rows the windows of a class need that are put together of parts. `None`: they are asked for as a whole.
    fn shares(&self, at: usize, index: usize) -> Option<Need> {
        let class = &self.schedules[at].schedule.classes[index];
        let is_of_minutes = self.has_rollup && evidence::is_of_minutes(class);
        // A replica that lacks rows yet would be believed for as long as the part is kept.
        let is_certain = self.store.layout() == Layout::OneServer;
        let need = class.kind.rows.need();
        need.filter(|_| is_certain && !is_of_minutes)
    }

    /// Whose rows a schedule needs of a window.
    pub(super) fn needed(&self, at: usize, window: Window, now_ns: i64) -> BTreeSet<String> {
        let moment = self.moment(window, now_ns);
        let watchers = self.watchers(at);
        let observers = watchers.map(|assertion| Observers::of(assertion, &moment));
        let names = observers.flat_map(|observers| observers.names().map(str::to_owned).collect::<Vec<_>>());
        names.collect()
    }

    /// Asks for what is over of a long part that goes on: one question, for what has been missing for the longest time.
    pub(super) async fn ask_ahead(&mut self, now_ns: i64) {
        if (self.ahead_ns..self.ahead_ns.saturating_add(AHEAD_EVERY_NS)).contains(&now_ns) {
            return;
        }
        self.ahead_ns = now_ns;
        let all = (0..self.schedules.len()).flat_map(|at| self.over(at, now_ns));
        let Some(stretch) = all.min_by_key(|stretch| stretch.window.to_ns) else {
            return;
        };
        let Active {
            schedule,
            shared,
            next_ns,
            ..
        } = &mut self.schedules[stretch.at];
        let (shared, next_ns) = (&mut shared[stretch.index], *next_ns);
        let mut source = Source {
            store: &*self.store,
            class: &schedule.classes[stretch.index],
            need: stretch.need,
            of: &stretch.of,
            coverage: &self.coverage,
            whole_ns: i64::MIN,
            asked: &mut self.asked,
        };
        match source.fill(&mut shared.coming, stretch.window, COMING_NS).await {
            Ok(true) => {}
            // What is missing of the part is asked for when its window is judged.
            Ok(false) => shared.not_before_ns = next_ns,
            Err(error) => {
                tracing::debug!("a part is not asked for ahead: {error}");
                shared.not_before_ns = next_ns;
            }
        }
        self.bound_parts();
    }

    /// The first stretch that is missing of the part that goes on, of each class of a schedule, if nobody is waited for.
    fn over(&self, at: usize, now_ns: i64) -> Vec<Stretch> {
        let Active {
            schedule,
            shared,
            next_ns,
            ..
        } = &self.schedules[at];
        let part_ns = ns(schedule.every);
        let part = Window {
            from_ns: next_ns - part_ns,
            to_ns: *next_ns,
        };
        let over = Window {
            to_ns: now_ns.div_euclid(COMING_NS) * COMING_NS,
            ..part
        };
        if !is_long(part_ns) || over.to_ns <= over.from_ns || *next_ns > self.end_ns {
            return Vec::new();
        }
        let mut of = None;
        let stretch = |(
            index,
            Shared {
                parts,
                coming,
                not_before_ns,
            },
        ): (usize, &Shared)| {
            let class = &schedule.classes[index];
            let need = self.shares(at, index)?;
            let window = Window {
                from_ns: next_ns - ns(class.over),
                ..part
            };
            let is_shared = parts.can_make(class, window, part_ns) && coming.can_make(class, part, COMING_NS);
            if !is_shared || now_ns < *not_before_ns {
                return None;
            }
            let of = of.get_or_insert_with(|| self.needed(at, over, now_ns));
            let missing = coming.missing(over, COMING_NS, (need, of), &self.coverage)?;
            let window = Window {
                to_ns: missing.from_ns + COMING_NS,
                ..missing
            };
            let is_waited_for = self.waiting_for(at, window, now_ns).0;
            (!is_waited_for).then(|| Stretch {
                at,
                index,
                window,
                need,
                of: of.clone(),
            })
        };
        shared.iter().enumerate().filter_map(stretch).collect()
    }

    /// Parts take no more than they may: the class that takes the most goes without from now on, first without what is asked for
    /// ahead.
    fn bound_parts(&mut self) {
        type Which = fn(&mut Shared) -> &mut Parts;
        let which: [Which; 2] = [|shared| &mut shared.coming, |shared| &mut shared.parts];
        for which in which {
            let all = self.schedules.iter().flat_map(|active| &active.shared);
            let entries = all.map(|shared| shared.parts.entries() + shared.coming.entries());
            if entries.sum::<usize>() <= MOST_ENTRIES {
                return;
            }
            let all = self.schedules.iter_mut().flat_map(|active| &mut active.shared);
            if let Some(largest) = all.map(which).max_by_key(|parts| parts.entries()) {
                largest.give_up();
            }
        }
    }
}
