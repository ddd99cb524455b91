//! What windows share. One that moves on by a part of its length has most of its rows in common with the one before: the
//! store adds up each part once, and windows are put together of parts. Pure.
//!
//! A part is right for the nodes whose rows were all there when the store was asked, which their watermarks say, and no
//! verdict is made of the rows of others. Once another node's watermark has passed it, the part is asked for again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv6Addr;

use super::coverage::{Coverage, Need, Window};
use super::evaluate::LabelledRows;
use super::plan::Class;
use super::signal::Rows;

/// Parts of one window. Of more, putting them together would cost what it saves.
const MOST_PARTS: i64 = 720;

/// How much is kept beyond the newest window: older ones may be open yet, as long as a node is waited for.
const OLDER_NS: i64 = 30_000_000_000;

/// What a row takes beside its histogram, in entries of one.
const ROW_ENTRIES: usize = 20;

/// What the name of a node takes, likewise.
const NODE_ENTRIES: usize = 5;

/// The parts of one class.
#[derive(Debug, Default)]
pub struct Parts {
    /// By the part's end.
    kept: BTreeMap<i64, Part>,
    /// The end of the newest window.
    newest_ns: i64,
    /// They took too much once.
    is_given_up: bool,
}

#[derive(Debug)]
struct Part {
    rows: Vec<LabelledRows>,
    entries: usize,
    /// The nodes whose rows were all there.
    settled: BTreeSet<String>,
    /// Those of all nodes were.
    is_whole: bool,
}

/// What tells rows apart.
type Labels<'a> = (&'a str, Option<Ipv6Addr>, u16, &'a str, &'a str, u64);

impl Parts {
    /// Whether a window of a class can be put together of parts of this length.
    pub fn can_make(&self, class: &Class, window: Window, part_ns: i64) -> bool {
        let over_ns = window.to_ns - window.from_ns;
        let adds_up = class.sql.is_none() && matches!(class.kind.rows, Rows::Attempts | Rows::Connections);
        let is_divided = over_ns % part_ns == 0 && (2..=MOST_PARTS).contains(&(over_ns / part_ns));
        // One of the past that is judged again shares nothing with those of now.
        let is_of_now = window.to_ns > self.newest_ns - OLDER_NS.max(part_ns);
        adds_up && is_divided && is_of_now && !self.is_given_up
    }

    /// What has to be asked for before a window can be put together: from the first part that is not there, or not right
    /// any more, to the last one. `of`: whose rows are needed.
    pub fn missing(
        &self,
        window: Window,
        part_ns: i64,
        (need, of): (Need, &BTreeSet<String>),
        coverage: &Coverage,
    ) -> Option<Window> {
        let is_missing = |to_ns: &i64| match self.kept.get(to_ns) {
            None => true,
            Some(part) if part.is_whole => false,
            Some(part) => {
                let settled = &part.settled;
                let mut now_settled = coverage.settled(need, *to_ns);
                settled.len() < coverage.len()
                    && now_settled.any(|node| of.contains(node) && !settled.contains(node))
            }
        };
        let ends = || (1..=(window.to_ns - window.from_ns) / part_ns).map(|at| window.from_ns + at * part_ns);
        let first_ns = ends().find(is_missing)?;
        let last_ns = ends().rev().find(is_missing)?;
        Some(Window {
            from_ns: first_ns - part_ns,
            to_ns: last_ns,
        })
    }

    /// Takes what was asked for: the rows of each part, counted from zero. `coverage`: as it was before the store was asked.
    /// `whole_ns`: all that ever comes of the time before was there.
    pub fn put(
        &mut self,
        asked: Window,
        part_ns: i64,
        need: Need,
        coverage: &Coverage,
        whole_ns: i64,
        rows: Vec<(u32, LabelledRows)>,
    ) {
        let count = (asked.to_ns - asked.from_ns) / part_ns;
        for at in 1..=count {
            let to_ns = asked.from_ns + at * part_ns;
            let settled: BTreeSet<_> = coverage.settled(need, to_ns).map(str::to_owned).collect();
            let part = Part {
                rows: Vec::new(),
                entries: NODE_ENTRIES * settled.len(),
                settled,
                is_whole: to_ns <= whole_ns,
            };
            self.kept.insert(to_ns, part);
        }
        for (at, rows) in rows {
            let to_ns = asked.from_ns + (i64::from(at) + 1) * part_ns;
            if let Some(part) = self.kept.get_mut(&to_ns) {
                part.entries += ROW_ENTRIES + rows.histogram.len();
                part.rows.push(rows);
            }
        }
    }

    /// Takes a part that is put together of shorter ones, which are not needed any more. It is right for those for whom each of
    /// them is.
    pub fn take(&mut self, part: Window, shorter: &mut Self, shorter_ns: i64) {
        let rows = shorter.whole(part, shorter_ns);
        let later = shorter.kept.split_off(&(part.to_ns + 1));
        let kept = std::mem::replace(&mut shorter.kept, later);
        let all = kept
            .range(part.from_ns + 1..)
            .map(|(_, part)| part.settled.clone());
        let settled = all.reduce(|some, others| &some & &others).unwrap_or_default();
        let of_rows = rows.iter().map(|rows| ROW_ENTRIES + rows.histogram.len());
        let part_of = Part {
            entries: NODE_ENTRIES * settled.len() + of_rows.sum::<usize>(),
            rows,
            settled,
            is_whole: false,
        };
        self.kept.insert(part.to_ns, part_of);
    }

    /// Puts a window together of its parts, and forgets those that no window will need.
    pub fn whole(&mut self, window: Window, part_ns: i64) -> Vec<LabelledRows> {
        let mut places: HashMap<Labels<'_>, usize> = HashMap::new();
        let mut whole: Vec<LabelledRows> = Vec::new();
        let first_ns = window.from_ns + part_ns;
        for rows in self
            .kept
            .range(first_ns..=window.to_ns)
            .flat_map(|(_, part)| &part.rows)
        {
            let labels = (
                rows.node.as_str(),
                rows.remote,
                rows.port,
                rows.service.as_str(),
                rows.comm.as_str(),
                rows.passes,
            );
            match places.get(&labels) {
                Some(&place) => add(&mut whole[place], rows),
                None => {
                    places.insert(labels, whole.len());
                    whole.push(rows.clone());
                }
            }
        }
        whole.iter_mut().for_each(|rows| settle(&mut rows.histogram));
        drop(places);
        self.forget(window, part_ns);
        whole
    }

    /// Forgets what neither this window nor a later one will need.
    pub fn forget(&mut self, window: Window, part_ns: i64) {
        self.newest_ns = self.newest_ns.max(window.to_ns);
        let over_ns = window.to_ns - window.from_ns;
        let first_ns = self.newest_ns - over_ns - OLDER_NS.max(part_ns);
        self.kept = self.kept.split_off(&first_ns);
    }

    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// What is kept, in entries of histograms, each of 16 bytes.
    pub fn entries(&self) -> usize {
        self.kept.values().map(|part| part.entries).sum()
    }

    /// Keeps nothing any more.
    pub fn give_up(&mut self) {
        self.kept.clear();
        self.is_given_up = true;
    }
}

fn add(sum: &mut LabelledRows, more: &LabelledRows) {
    for (sum, more) in sum.sums.iter_mut().zip(more.sums) {
        *sum = sum.saturating_add(more);
    }
    sum.largest = sum.largest.max(more.largest);
    sum.fullest = sum.fullest.max(more.fullest);
    sum.histogram.extend_from_slice(&more.histogram);
}

/// One entry for each bucket, in their order.
fn settle(histogram: &mut Vec<(u16, u8, u64)>) {
    histogram.sort_unstable_by_key(|(bucket, reached, _)| (*bucket, *reached));
    histogram.dedup_by(|next, kept| {
        let is_same = (next.0, next.1) == (kept.0, kept.1);
        if is_same {
            kept.2 += next.2;
        }
        is_same
    });
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::coverage::Report;
    use super::super::evaluate::SUMS;
    use super::super::plan::{Kind, Labels as Told};
    use super::super::signal::{Sum, Times};
    use super::*;

    const NODES: [&str; 3] = ["a", "b", "c"];
    const NEED: Need = Need::Attempts;
    const PART_NS: i64 = 10;
    const OVER_NS: i64 = 40;

    fn class() -> Class {
        Class {
            kind: Kind {
                rows: Rows::Attempts,
                is_server: false,
                times: Some(Times::Connect),
                errno: None,
            },
            over: Duration::from_nanos(OVER_NS as u64),
            sql: None,
            labels: Told::default(),
            filters: Vec::new(),
            bounds: Vec::new(),
        }
    }

    fn everybody() -> BTreeSet<String> {
        NODES.map(str::to_owned).into()
    }

    /// A row of a node, made at a time and stored at another one.
    #[derive(Clone, Debug)]
    struct Made {
        node: usize,
        at_ns: i64,
        stored_ns: i64,
        bucket: u16,
    }

    fn one(node: usize, bucket: u16) -> LabelledRows {
        let mut sums = [0; SUMS];
        sums[Sum::Rows as usize] = 1;
        LabelledRows {
            node: NODES[node].to_owned(),
            remote: None,
            port: 0,
            service: String::new(),
            comm: String::new(),
            passes: 0,
            sums,
            largest: u64::from(bucket),
            fullest: 0.0,
            histogram: vec![(bucket, 0, 1)],
        }
    }

    /// What the store answers then about each part of a stretch; rows are not added up, as any answer may be cut.
    fn answer(made: &[Made], now_ns: i64, stretch: Window) -> Vec<(u32, LabelledRows)> {
        let is_in = |row: &&Made| {
            row.stored_ns <= now_ns && row.at_ns > stretch.from_ns && row.at_ns <= stretch.to_ns
        };
        let rows = made.iter().filter(is_in);
        rows.map(|row| {
            let part = (row.at_ns - stretch.from_ns - 1) / PART_NS;
            (part as u32, one(row.node, row.bucket))
        })
        .collect()
    }

    /// What everybody has said by then: what is not stored holds the watermark of its node back.
    fn coverage(made: &[Made], now_ns: i64) -> Coverage {
        let mut coverage = Coverage::default();
        for (node, name) in NODES.iter().enumerate() {
            let waiting = made
                .iter()
                .filter(|row| row.node == node && row.stored_ns > now_ns);
            let until_ns = waiting
                .map(|row| row.at_ns - 1)
                .min()
                .unwrap_or(now_ns)
                .min(now_ns);
            coverage.hear(&Report {
                node: (*name).to_owned(),
                agent_epoch: 1,
                observed_ns: now_ns,
                received_ns: now_ns,
                records_ns: until_ns,
                attempts_ns: until_ns,
                ..Report::default()
            });
        }
        coverage
    }

    fn by_node(rows: Vec<LabelledRows>) -> BTreeMap<String, LabelledRows> {
        rows.into_iter().map(|rows| (rows.node.clone(), rows)).collect()
    }

    proptest! {
        /// Of every node whose rows are all there, a window that is put together is what the store would have answered.
        #[test]
        fn what_is_put_together_is_what_a_question_would_find(
            rows in prop::collection::vec((0..3_usize, 100..400_i64, 0..150_i64, 60..66_u16), 0..200),
            asked in prop::collection::vec((0..3_i64, 0..9_i64), 1..60),
            needed in 1..8_usize,
        ) {
            let of: BTreeSet<String> = (0..3).filter(|node| needed >> node & 1 == 1).map(|node| NODES[node].to_owned()).collect();
            let mut made: Vec<Made> = rows
                .into_iter()
                .map(|(node, at_ns, late_ns, bucket)| Made { node, at_ns, stored_ns: at_ns + late_ns, bucket })
                .collect();
            made.sort_by_key(|row| row.stored_ns);
            let class = class();
            let mut parts = Parts::default();
            let mut now_ns = 140;
            let mut read = 0;
            for (later, back) in asked {
                now_ns += later * PART_NS;
                let to_ns = now_ns - back * PART_NS;
                let window = Window { from_ns: to_ns - OVER_NS, to_ns };
                let coverage = coverage(&made, now_ns);
                prop_assert!(parts.can_make(&class, window, PART_NS));
                if let Some(missing) = parts.missing(window, PART_NS, (NEED, &of), &coverage) {
                    read += 1;
                    parts.put(missing, PART_NS, NEED, &coverage, i64::MIN, answer(&made, now_ns, missing));
                }
                // The same again asks for nothing.
                prop_assert_eq!(parts.missing(window, PART_NS, (NEED, &of), &coverage), None);
                let found = by_node(parts.whole(window, PART_NS));
                let mut whole = Parts::default();
                whole.put(window, PART_NS, NEED, &coverage, i64::MIN, answer(&made, now_ns, window));
                let expected = by_node(whole.whole(window, PART_NS));
                for node in coverage.settled(NEED, to_ns).filter(|node| of.contains(*node)) {
                    prop_assert_eq!(found.get(node), expected.get(node));
                    let stored = made.iter().filter(|row| {
                        NODES[row.node] == node && row.at_ns > window.from_ns && row.at_ns <= to_ns
                    });
                    let count = found.get(node).map_or(0, |rows| rows.sums[Sum::Rows as usize]);
                    prop_assert_eq!(count, stored.count() as u64);
                }
            }
            prop_assert!(read > 0);
        }
    }

    proptest! {
        /// A part that is put together of shorter ones, each asked for when some nodes' rows were there, is right for whom it says.
        #[test]
        fn a_part_of_shorter_ones_is_what_a_question_would_find(
            rows in prop::collection::vec((0..3_usize, 101..=140_i64, 0..60_i64, 60..66_u16), 0..60),
            asked in prop::collection::vec((0..15_i64, 1..8_usize), 4),
            later in 0..60_i64,
        ) {
            let mut made: Vec<Made> = rows
                .into_iter()
                .map(|(node, at_ns, late_ns, bucket)| Made { node, at_ns, stored_ns: at_ns + late_ns, bucket })
                .collect();
            made.sort_by_key(|row| row.stored_ns);
            let part = Window { from_ns: 100, to_ns: 140 };
            let part_ns = part.to_ns - part.from_ns;
            let (mut parts, mut shorter) = (Parts::default(), Parts::default());
            let fill = |shorter: &mut Parts, now_ns: i64, to_ns: i64, needed: usize| {
                let of = (0..3).filter(|node| needed >> node & 1 == 1).map(|node| NODES[node].to_owned()).collect();
                let (coverage, over) = (coverage(&made, now_ns), Window { to_ns, ..part });
                if let Some(missing) = shorter.missing(over, PART_NS, (NEED, &of), &coverage) {
                    shorter.put(missing, PART_NS, NEED, &coverage, i64::MIN, answer(&made, now_ns, missing));
                }
            };
            let mut now_ns = 110;
            for (to_ns, (wait_ns, needed)) in (110..).step_by(10).zip(&asked) {
                now_ns = now_ns.max(to_ns) + wait_ns;
                fill(&mut shorter, now_ns, to_ns, *needed);
            }
            fill(&mut shorter, now_ns, part.to_ns, asked[3].1);
            parts.take(part, &mut shorter, PART_NS);
            prop_assert_eq!(shorter.entries(), 0, "what was put together is not kept twice");
            now_ns += later;
            let coverage = coverage(&made, now_ns);
            if parts.missing(part, part_ns, (NEED, &everybody()), &coverage).is_some() {
                let rows = answer(&made, now_ns, part).into_iter().map(|(_, rows)| (0, rows)).collect();
                parts.put(part, part_ns, NEED, &coverage, i64::MIN, rows);
            }
            let found = by_node(parts.whole(part, part_ns));
            for node in coverage.settled(NEED, part.to_ns) {
                let stored = made.iter().filter(|row| NODES[row.node] == node).count();
                let count = found.get(node).map_or(0, |rows| rows.sums[Sum::Rows as usize]);
                prop_assert_eq!(count, stored as u64, "{}", node);
            }
        }
    }

    #[test]
    fn a_window_that_goes_on_asks_for_what_is_new() {
        let mut parts = Parts::default();
        let window = |to_ns| Window {
            from_ns: to_ns - OVER_NS,
            to_ns,
        };
        let coverage = coverage(&[], 200);
        let mut check = |to_ns, expected: Option<(i64, i64)>| {
            let missing = parts.missing(window(to_ns), PART_NS, (NEED, &everybody()), &coverage);
            let expected = expected.map(|(from_ns, to_ns)| Window { from_ns, to_ns });
            assert_eq!(missing, expected, "{to_ns}");
            if let Some(missing) = missing {
                parts.put(missing, PART_NS, NEED, &coverage, i64::MIN, Vec::new());
            }
            parts.whole(window(to_ns), PART_NS);
        };
        check(100, Some((60, 100)));
        check(100, None);
        check(110, Some((100, 110)));
        check(130, Some((110, 130)));
        check(120, None);
    }

    /// Whose rows nobody needs may come as late as they like.
    #[test]
    fn a_part_is_right_whoever_else_is_behind() {
        let made = [Made {
            node: 2,
            at_ns: 95,
            stored_ns: 150,
            bucket: 60,
        }];
        let window = Window {
            from_ns: 100 - OVER_NS,
            to_ns: 100,
        };
        let mut parts = Parts::default();
        parts.put(window, PART_NS, NEED, &coverage(&made, 110), i64::MIN, Vec::new());
        let missing =
            |of: &BTreeSet<String>| parts.missing(window, PART_NS, (NEED, of), &coverage(&made, 160));
        assert_eq!(missing(&["a".to_owned(), "b".to_owned()].into()), None);
        let last = Window {
            from_ns: 90,
            ..window
        };
        assert_eq!(missing(&everybody()), Some(last));
    }

    #[test]
    fn what_is_over_is_not_asked_for_again_whoever_is_heard_of_later() {
        let mut parts = Parts::default();
        let window = Window {
            from_ns: 60,
            to_ns: 60 + OVER_NS,
        };
        let nobody = Coverage::default();
        parts.put(window, PART_NS, NEED, &nobody, 80, Vec::new());
        let missing = parts.missing(window, PART_NS, (NEED, &everybody()), &coverage(&[], 200));
        let not_over = Window {
            from_ns: 80,
            to_ns: 100,
        };
        assert_eq!(missing, Some(not_over));
    }

    #[test]
    fn what_is_kept_is_counted_and_forgotten() {
        let mut parts = Parts::default();
        let window = |to_ns| Window {
            from_ns: to_ns - OVER_NS,
            to_ns,
        };
        let made = (0..2).map(|part| (part, one(0, 60))).collect();
        let coverage = Coverage::default();
        parts.put(window(OVER_NS), PART_NS, NEED, &coverage, i64::MIN, made);
        assert_eq!(parts.whole(window(OVER_NS), PART_NS)[0].histogram, [(60, 0, 2)]);
        assert_eq!(parts.entries(), 2 * (ROW_ENTRIES + 1));
        let later = window(OLDER_NS + OVER_NS + PART_NS + 1);
        assert!(parts.can_make(&class(), window(OVER_NS), PART_NS));
        assert_eq!(parts.whole(later, PART_NS), []);
        assert_eq!(parts.entries(), ROW_ENTRIES + 1, "the first one is too old");
        assert!(!parts.can_make(&class(), window(OVER_NS), PART_NS));
        assert!(parts.can_make(&class(), later, PART_NS));
        parts.give_up();
        assert_eq!(parts.entries(), 0);
        assert!(!parts.can_make(&class(), later, PART_NS));
    }

    #[test]
    fn windows_of_few_or_very_many_parts_are_not_put_together() {
        let parts = Parts::default();
        let check = |over_ns: i64, expected| {
            let window = Window {
                from_ns: 1_000 - over_ns,
                to_ns: 1_000,
            };
            assert_eq!(parts.can_make(&class(), window, PART_NS), expected, "{over_ns}");
        };
        check(10, false);
        check(20, true);
        check(25, false);
        check(7_200, true);
        check(7_210, false);
    }
}
