//! A run as one page of HTML that needs nothing else: no network, no script, pictures inside. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::plot::{
    Escaped, LEAST_NS, Plot, Scale, human_or_dash, legend, numbers_axis, quantiles_axis, quantiles_line,
    seconds_axis, strip, times_axis,
};
use super::{Row, bytes, on_ambiguous};
use crate::runs::plan::{Arrivals, Plan};
use crate::runs::result::{Cause, Ends, Kernel, PartOf, Summary, Times, human};
use crate::runs::seconds::{PairSeconds, PairSlot, Seconds, Slot, quantile_ns, worst};
use crate::store::buckets::middle;

/// Losses of a run that are drawn.
const LOSSES: usize = 200;

/// How attempts, and requests, can end: the counts that are one kind, its name and its class. The first is the good one.
type Kinds = [(&'static [&'static str], &'static str, &'static str)];
const ATTEMPTS: &Kinds = &[
    (&["established"], "established", "good"),
    (&["refused"], "refused", "c2"),
    (&["timed_out"], "timed out", "c3"),
    (&["reset"], "reset", "c4"),
    (&["unreachable"], "unreachable", "c5"),
    (
        &["local_files", "local_ports", "local_filter"],
        "not made: no files, ports or permission here",
        "c6",
    ),
    (&["failed"], "failed otherwise", "c7"),
    (&["abandoned"], "cut off by the end", "c8"),
];
const REQUESTS: &Kinds = &[
    (&["answered"], "answered as expected", "good"),
    (&["unexpected_status"], "another status", "c2"),
    (&["request_timed_out"], "no answer in time", "c3"),
    (&["request_lost"], "connection lost before the answer", "c4"),
    (&["unexpected_body"], "another body", "c5"),
    (&["unsent"], "found no connection", "c6"),
    (&["malformed"], "no answer of the protocol", "c7"),
    (&["request_abandoned"], "cut off by the end", "c8"),
];
const DATAGRAMS: &Kinds = &[
    (&["answered"], "arrived", "good"),
    (&["refused"], "refused: nothing listens on that UDP port", "c2"),
    (&["request_timed_out", "request_lost"], "lost", "c3"),
    (&["unreachable"], "unreachable", "c5"),
    (&["unsent"], "not sent", "c6"),
    (&["request_abandoned"], "cut off by the end, or not known", "c8"),
];

/// Times of a run by name, what they are of, and how they are drawn.
const TIMES: [(&str, &str, &str); 8] = [
    (
        "request",
        "from when a request was due until its answer was complete",
        "c1",
    ),
    (
        "connect",
        "from when an attempt was due until it was established",
        "c1",
    ),
    ("dial", "from connect() until then", "c2"),
    (
        "network",
        "round trip of the handshake, by the kernel (TCP_INFO)",
        "c3",
    ),
    ("exchange", "from the send until the answer was complete", "c4"),
    ("error", "from when an attempt was due until it failed", "c5"),
    (
        "jitter",
        "how much longer or shorter a datagram took than the one before",
        "c6",
    ),
    (
        "lateness",
        "from when an attempt was due until it was made: the generator's own delay",
        "c8",
    ),
];

/// The page of a run.
pub(super) fn page(row: &Row, summary: &Summary, seconds: &Seconds) -> String {
    let run = Run {
        row,
        summary,
        seconds,
        pair_seconds: &row.pair_seconds,
    };
    let body = [
        run.head(),
        run.reservations(),
        run.tiles(),
        run.expectations(),
        run.plan(),
        run.mesh(),
        run.times(),
        run.over_time(),
        run.outcomes(),
        run.kernel(),
        run.agents(),
        run.remarks(),
    ];
    document(&format!("Holdfast run {}", row.run_id), &body.concat())
}

/// A whole document around sections.
pub(super) fn document(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\"/>\n<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
         style-src 'unsafe-inline'\"/>\n<title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n",
        Escaped(title)
    )
}

/// A value as people read it, with the exact one for programs.
pub(super) fn data(exact: impl std::fmt::Display, shown: &str) -> String {
    format!("<data value=\"{exact}\">{}</data>", Escaped(shown))
}

fn time(ns: u64) -> String {
    data(ns, &human(ns))
}

fn number(number: u64) -> String {
    data(number, &number.to_string())
}

/// A table; the first column is text, the others numbers. What the cells have is HTML.
pub(super) fn table(class: &str, head: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = format!("<div class=\"scroll\"><table class=\"{class}\">\n");
    if !head.is_empty() {
        text += "<thead><tr>";
        for name in head {
            let _ = write!(text, "<th>{}</th>", Escaped(name));
        }
        text += "</tr></thead>\n";
    }
    text += "<tbody>\n";
    for row in rows {
        text += "<tr>";
        for cell in row {
            let _ = write!(text, "<td>{cell}</td>");
        }
        text += "</tr>\n";
    }
    text + "</tbody></table></div>\n"
}

pub(super) fn section(title: &str, content: &str) -> String {
    if content.is_empty() {
        return String::new();
    }
    format!("<section>\n<h2>{}</h2>\n{content}</section>\n", Escaped(title))
}

pub(super) fn note(text: &str) -> String {
    format!("<p class=\"note\">{}</p>\n", Escaped(text))
}

struct Run<'a> {
    row: &'a Row,
    summary: &'a Summary,
    seconds: &'a Seconds,
    pair_seconds: &'a PairSeconds,
}

impl Run<'_> {
    fn count(&self, name: &str) -> u64 {
        self.summary.counts.get(name).copied().unwrap_or(0)
    }

    fn is_of_requests(&self) -> bool {
        self.count("requests") > 0
    }

    /// The count of what was made and of what came out well, with their names.
    fn main_counts(&self) -> [&'static str; 2] {
        if self.is_of_requests() {
            ["requests", "answered"]
        } else {
            ["started", "established"]
        }
    }

    fn times_of(&self, name: &str) -> &Times {
        let summary = self.summary;
        match name {
            "request" => &summary.request,
            "connect" => &summary.connect,
            "dial" => &summary.dial,
            "network" => &summary.network,
            "exchange" => &summary.exchange,
            "error" => &summary.error,
            "jitter" => &summary.jitter,
            _ => &summary.lateness,
        }
    }

    fn head(&self) -> String {
        let row = self.row;
        let (class, word, meaning) = match (row.state.as_str(), row.verdict.as_str()) {
            ("running", _) => (
                "unknown",
                "running",
                "It is under way: this is what came until the page was made.",
            ),
            ("lost", _) => (
                "unknown",
                "lost",
                "There is no result: its collector ended before it did, and its agents stopped within a second of that. This is what \
                 came until then; the command that made it had the exit code 4.",
            ),
            (_, "holds") if self.summary.expectations.is_empty() => (
                "good",
                "holds",
                "There were no errors and no losses. Exit code 0.",
            ),
            (_, "holds") => (
                "good",
                "holds",
                "Everything that was expected was seen. Exit code 0.",
            ),
            (_, "violated") if self.summary.expectations.is_empty() => {
                ("bad", "violated", "There were errors or losses. Exit code 1.")
            }
            (_, "violated") => ("bad", "violated", "What was expected was not seen. Exit code 1."),
            _ => (
                "unknown",
                "unknown",
                "It proves nothing against the target, nor for it: the agents were the limit, the target's kernel says otherwise, or something is not known. Exit code 3.",
            ),
        };
        let moment = |text: &str| text.get(..19).unwrap_or(text).to_owned();
        let ended = match row.state.as_str() {
            "running" | "lost" => String::new(),
            _ => format!(" to {} UTC", moment(&row.ended_at)),
        };
        format!(
            "<header>\n<p class=\"kicker\">Holdfast · run {}</p>\n<h1><span class=\"badge {class}\">{word}</span> {}</h1>\n<p>{meaning}</p>\n\
             <p class=\"note\">{} · from {} · {} UTC{ended} · {}</p>\n</header>\n",
            Escaped(&row.run_id),
            Escaped(&row.targets.join(", ")),
            Escaped(&row.state),
            Escaped(&row.nodes.join(", ")),
            Escaped(&moment(&row.began_at)),
            time(self.summary.elapsed_ns)
        )
    }

    /// Why the verdict is what it is, and what is missing.
    fn reservations(&self) -> String {
        let mut items: Vec<String> = self.row.reasons.clone();
        if self.row.state == "stopped" {
            items.push("it was stopped before its plan was done".into());
        }
        if self.summary.plan.is_none() {
            items.push("its plan was not stored: it is of an older version".into());
        }
        let reported: u64 = self
            .seconds
            .slots
            .iter()
            .map(|slot| slot.count("started") + slot.count("requests"))
            .sum();
        let counted = self.count("started") + self.count("requests");
        if self.seconds.slots.is_empty() {
            items.push(
                "there is nothing of it second by second: it was not stored, or its time to be kept is over"
                    .into(),
            );
        } else if reported < counted {
            items.push(format!(
                "second by second there are {reported} of {counted} attempts and requests: the rest was not stored, or its time to be kept is over"
            ));
        }
        if items.is_empty() {
            return String::new();
        }
        let items: String = items
            .iter()
            .map(|item| format!("<li>{}</li>\n", Escaped(item)))
            .collect();
        section("Why, and what is missing", &format!("<ul>\n{items}</ul>\n"))
    }

    fn tiles(&self) -> String {
        let [made, good] = self.main_counts();
        let (made_count, good_count) = (self.count(made), self.count(good));
        let times = if self.is_of_requests() {
            &self.summary.request
        } else {
            &self.summary.connect
        };
        let per_second = |count: u64| {
            let seconds = self.summary.elapsed_ns as f64 / 1e9;
            if seconds > 0.0 {
                count as f64 / seconds
            } else {
                0.0
            }
        };
        let failed: u64 = self.kinds()[1..]
            .iter()
            .filter(|(names, ..)| !names.contains(&"abandoned") && !names.contains(&"request_abandoned"))
            .flat_map(|(names, ..)| names.iter())
            .map(|name| self.count(name))
            .sum();
        let ratio = if good_count + failed > 0 {
            failed as f64 / (good_count + failed) as f64
        } else {
            0.0
        };
        let mut tiles = String::new();
        let mut tile = |name: &str, value: &str| {
            let _ = writeln!(tiles, "<li><b>{value}</b><span>{}</span></li>", Escaped(name));
        };
        tile(
            if self.is_of_requests() {
                "requests"
            } else {
                "attempts"
            },
            &number(made_count),
        );
        tile(good, &number(good_count));
        let rate = per_second(good_count);
        tile(&format!("{good} a second"), &data(rate, &format!("{rate:.1}")));
        tile("failed", &data(ratio, &format!("{:.3}%", ratio * 100.0)));
        if times.count > 0 {
            tile("p50 from when due", &time(times.p50_ns));
            tile("p99 from when due", &time(times.p99_ns));
            tile("longest", &time(times.max_ns));
        }
        if !self.is_udp() {
            tile("open at most", &number(self.summary.most_open));
        }
        format!("<ul class=\"tiles\">\n{tiles}</ul>\n")
    }

    fn is_udp(&self) -> bool {
        self.summary.is_of_datagrams()
    }

    fn expectations(&self) -> String {
        let rows: Vec<_> = self
            .summary
            .expectations
            .iter()
            .map(|judged| {
                let verdict = judged.verdict.to_string();
                vec![
                    Escaped(&judged.expected).to_string(),
                    Escaped(&judged.seen).to_string(),
                    format!("<span class=\"badge {}\">{verdict}</span>", badge(&verdict)),
                ]
            })
            .collect();
        let content = if rows.is_empty() {
            String::new()
        } else {
            table("text", &["expected", "seen", ""], &rows)
        };
        section("What was expected", &content)
    }

    fn plan(&self) -> String {
        let content = self.summary.plan.as_ref().map_or_else(String::new, |plan| {
            let facts = plan.facts();
            let rows: Vec<_> = facts
                .iter()
                .map(|(name, value)| vec![Escaped(name).to_string(), Escaped(value).to_string()])
                .collect();
            table("text", &[], &rows)
        });
        section("The plan", &content)
    }

    /// Who reached whom: a heat map of p99, with the failures, and how each pair did over time.
    fn mesh(&self) -> String {
        let pairs = &self.summary.pairs;
        let names: BTreeSet<&str> = pairs.iter().map(|pair| pair.from.as_str()).collect();
        if names.is_empty() {
            return String::new();
        }
        let logs = || {
            let times = pairs.iter().filter(|pair| pair.connect.count > 0);
            times.map(|pair| (pair.connect.p99_ns.max(1) as f64).ln())
        };
        let (low, high) = (logs().fold(f64::MAX, f64::min), logs().fold(f64::MIN, f64::max));
        let scales = self.scales_of_pairs();
        let cell = |from: &str, to: &str| {
            let Some(pair) = pairs.iter().find(|pair| pair.from == from && pair.to == to) else {
                return "<td class=\"none\"></td>".to_owned();
            };
            let (failed, all) = pair.failed();
            // Less than a factor of two between the best and the worst is no heat.
            let heat = if pair.connect.count > 0 {
                ((pair.connect.p99_ns.max(1) as f64).ln() - low) / (high - low).max(2f64.ln())
            } else {
                0.0
            };
            let class = if failed > 0 || !pair.is_over { "failed" } else { "" };
            let times = match pair.connect.count {
                0 => "no connection".to_owned(),
                _ => format!(
                    "{}<br/><small>p50 {}</small>",
                    time(pair.connect.p99_ns),
                    time(pair.connect.p50_ns)
                ),
            };
            let mut words = String::new();
            if failed > 0 {
                words = format!("<br/><b>{} of {} failed</b>", number(failed), number(all));
            }
            if !pair.is_over {
                words += "<br/><b>lost in the middle</b>";
            }
            words += &self.pair_over_time(from, to, &scales);
            let at = match pair.address.as_str() {
                "" => String::new(),
                address => format!(" at {address}"),
            };
            format!(
                "<td class=\"{class}\" style=\"--heat:{:.0}%\" title=\"{} to {}{}\">{times}{words}</td>",
                heat.clamp(0.0, 1.0) * 60.0,
                Escaped(&pair.from),
                Escaped(&pair.to),
                Escaped(&at)
            )
        };
        let mut text =
            "<div class=\"scroll\"><table class=\"heat\">\n<thead><tr><th>from, to</th>".to_owned();
        for name in &names {
            let _ = write!(text, "<th>{}</th>", Escaped(name));
        }
        text += "</tr></thead>\n<tbody>\n";
        for from in &names {
            let _ = write!(text, "<tr><th>{}</th>", Escaped(from));
            for to in &names {
                text += &cell(from, to);
            }
            text += "</tr>\n";
        }
        text += "</tbody></table></div>\n";
        text += &note(
            "p99 of the time to connect, from when attempts were due, of log buckets; the darker, the longer. A frame is around pairs of which attempts failed.",
        );
        text += &self.note_on_pairs();
        section("Who reached whom", &text)
    }

    /// Of all pairs, so that their strips can be compared: seconds, and times in nanoseconds.
    fn scales_of_pairs(&self) -> (Scale, Scale) {
        let slots = || self.pair_seconds.pairs.iter().flat_map(|pair| &pair.slots);
        let end_s = slots().map(|slot| slot.until_us).max().unwrap_or(0) as f64 / 1e6;
        let times = slots().filter_map(|slot| slot.connect_p99_ns);
        (Scale::linear(end_s), Scale::of_times(times.map(|ns| ns as f64)))
    }

    /// A pair's p99 over time with the slots in which something failed, and its worst slot in words; nothing where there is only one slot.
    fn pair_over_time(&self, from: &str, to: &str, (seconds, times): &(Scale, Scale)) -> String {
        let slots = self.pair_seconds.of(from, to);
        let Some(worst) = worst(slots).filter(|_| slots.len() > 1) else {
            return String::new();
        };
        let middle_s = |slot: &PairSlot| f64::midpoint(slot.since_us as f64, slot.until_us as f64) / 1e6;
        let mut points = Vec::new();
        let mut until_us = 0;
        for slot in slots {
            if slot.since_us > until_us + self.pair_seconds.step_us / 2 {
                points.push(None);
            }
            until_us = slot.until_us;
            points.push(slot.connect_p99_ns.map(|ns| (middle_s(slot), ns as f64)));
        }
        let failed = slots.iter().filter(|slot| slot.failed > 0);
        let failed: Vec<f64> = failed.map(middle_s).collect();
        let time = worst.connect_p99_ns.map(|ns| format!("p99 {}", human(ns)));
        let all = worst.failed + worst.established;
        let failed_then = (worst.failed > 0).then(|| format!("{} of {all} failed", worst.failed));
        let what: Vec<_> = time.into_iter().chain(failed_then).collect();
        let words = format!(
            "worst at {:.1} s: {}",
            worst.since_us as f64 / 1e6,
            what.join(", ")
        );
        let label = format!("{from} to {to} over time, {words}");
        format!(
            "<br/><small>{}</small>{}",
            Escaped(&words),
            strip(&label, (seconds, times), &points, &failed)
        )
    }

    /// What the strips of pairs show.
    fn note_on_pairs(&self) -> String {
        if self.pair_seconds.pairs.iter().all(|pair| pair.slots.len() < 2) {
            return String::new();
        }
        let each = match self.pair_seconds.step_us / 1_000_000 {
            1 => "each second".to_owned(),
            step_s => format!("each {step_s} seconds, for the run was long or there are many pairs"),
        };
        note(&format!(
            "The lines are the p99 of {each}, all on one scale; strokes below are where attempts failed. Worst is where the most of its \
             attempts failed, else the slowest."
        ))
    }

    /// A distribution by the time in nanoseconds that stands for each bucket.
    fn distribution(&self, name: &str) -> Vec<(f64, u64)> {
        let buckets = self.summary.buckets.get(name);
        buckets
            .into_iter()
            .flatten()
            .map(|&(bucket, count)| (middle(bucket) * 1e3, count))
            .collect()
    }

    fn times(&self) -> String {
        let there = TIMES.iter().filter(|(name, ..)| {
            self.times_of(name).count > 0 && !(*name == "jitter" && self.summary.is_jitter_mean())
        });
        let rows: Vec<_> = there
            .map(|(name, meaning, _)| {
                let times = self.times_of(name);
                let mut cells = vec![
                    format!("<b>{name}</b><br/><small>{meaning}</small>"),
                    number(times.count),
                ];
                cells.extend(
                    [
                        times.min_ns,
                        times.mean_ns,
                        times.dev_ns,
                        times.p50_ns,
                        times.p90_ns,
                        times.p99_ns,
                        times.p999_ns,
                        times.max_ns,
                    ]
                    .map(time),
                );
                cells
            })
            .collect();
        if rows.is_empty() {
            return section("How long it took", &note("Nothing was measured."));
        }
        let mean = match &self.summary.jitter {
            jitter if jitter.count > 0 && self.summary.is_jitter_mean() => note(&format!(
                "Jitter, in the mean, by the receiver (RFC 3550): {}. One way there are no percentiles.",
                human(jitter.mean_ns)
            )),
            _ => String::new(),
        };
        let head = [
            "", "count", "min", "mean", "dev", "p50", "p90", "p99", "p99.9", "max",
        ];
        section(
            "How long it took",
            &(self.percentiles() + &table("numbers", &head, &rows) + &mean),
        )
    }

    /// Times by the share of all that took no longer, the user's and the network's.
    fn percentiles(&self) -> String {
        let lines: Vec<_> = TIMES
            .iter()
            .filter(|(name, ..)| match *name {
                "connect" | "dial" => !self.is_of_requests(),
                "request" | "exchange" | "network" => true,
                _ => false,
            })
            .map(|(name, meaning, class)| (*name, *meaning, *class, self.distribution(name)))
            .filter(|(.., buckets)| !buckets.is_empty())
            .collect();
        if lines.is_empty() {
            return String::new();
        }
        let count = |buckets: &[(f64, u64)]| buckets.iter().map(|(_, count)| count).sum::<u64>();
        let most = lines
            .iter()
            .map(|(.., buckets)| count(buckets))
            .max()
            .unwrap_or(1);
        let kernel = self
            .summary
            .kernel
            .as_ref()
            .filter(|kernel| kernel.established > 0 && !self.is_of_requests());
        let dots: Vec<(f64, f64)> = kernel
            .into_iter()
            .flat_map(|kernel| [(2.0, kernel.connect_p50_us), (100.0, kernel.connect_p99_us)])
            .map(|(place, us)| (place, us as f64 * 1e3))
            .collect();
        let all = lines
            .iter()
            .flat_map(|(.., buckets)| buckets.iter().map(|(ns, _)| *ns));
        let axis = times_axis(all.chain(dots.iter().map(|(_, ns)| *ns)));
        let mut plot = Plot::new(
            "times by the share of all that took no longer",
            330.0,
            quantiles_axis(most),
            axis,
        );
        let mut entries = Vec::new();
        for (name, meaning, class, buckets) in &lines {
            plot.line(class, &quantiles_line(buckets));
            entries.push((*class, format!("{name}: {meaning}")));
        }
        for (place, ns) in dots {
            let word = if place == 2.0 { "kernel p50" } else { "kernel p99" };
            plot.dot("c7", (place, ns.max(LEAST_NS)), word);
        }
        if kernel.is_some() {
            entries.push(("c7", "the kernel's record of the same connections".to_owned()));
        }
        legend(&entries) + &plot.svg()
    }

    fn kinds(&self) -> &'static Kinds {
        match (self.is_udp(), self.is_of_requests()) {
            (true, _) => DATAGRAMS,
            (_, true) => REQUESTS,
            _ => ATTEMPTS,
        }
    }

    /// What a slot's reports are of, in seconds since the start.
    fn span(slot: &Slot) -> (f64, f64) {
        (slot.since_us as f64 / 1e6, slot.until_us as f64 / 1e6)
    }

    fn end_s(&self) -> f64 {
        let last = self.seconds.slots.last().map_or(0.0, |slot| Self::span(slot).1);
        last.max(self.summary.elapsed_ns as f64 / 1e9)
    }

    /// Points of a line over time; broken where no node reported.
    fn points(&self, value: impl Fn(&Slot) -> Option<f64>) -> Vec<Option<(f64, f64)>> {
        let mut points = Vec::new();
        let mut until_us = 0;
        for slot in &self.seconds.slots {
            if slot.since_us > until_us + self.seconds.step_us / 2 {
                points.push(None);
            }
            until_us = slot.until_us;
            let (from, to) = Self::span(slot);
            points.push(value(slot).map(|value| (f64::midpoint(from, to), value)));
        }
        points
    }

    /// A rate is told of a slot that is known for at least a fifth of its length: the last report is of whatever time was left.
    fn rate(&self, slot: &Slot, count: u64) -> Option<f64> {
        let is_known =
            slot.covered_us * 5 >= self.seconds.step_us * slot.nodes || self.seconds.slots.len() == 1;
        is_known.then(|| slot.per_second(count))
    }

    fn slot_times<'a>(&self, slot: &'a Slot) -> &'a (Vec<u16>, Vec<u64>) {
        if self.is_of_requests() {
            &slot.request
        } else {
            &slot.connect
        }
    }

    fn over_time(&self) -> String {
        let slots = &self.seconds.slots;
        if slots.is_empty() {
            return String::new();
        }
        let mut text = self.latency_over_time() + &self.rate_over_time();
        if !self.is_udp() && slots.iter().any(|slot| slot.open > 0) {
            text += &self.open_over_time();
        }
        let step_s = self.seconds.step_us / 1_000_000;
        if step_s > 1 {
            text += &note(&format!("The run was long: each point is of {step_s} seconds."));
        }
        section("Second by second", &text)
    }

    fn latency_over_time(&self) -> String {
        let quantile = |slot: &Slot, share: f64| quantile_ns(self.slot_times(slot), share);
        let network = |slot: &Slot| quantile_ns(&slot.network, 0.5);
        let lines = [
            ("c8", "longest", self.points(|slot| quantile(slot, 1.0))),
            ("c2", "p99", self.points(|slot| quantile(slot, 0.99))),
            ("c1", "p50", self.points(|slot| quantile(slot, 0.5))),
            ("c3", "network's round trip, p50", self.points(network)),
        ];
        let all = lines
            .iter()
            .flat_map(|(.., points)| points.iter().flatten().map(|(_, ns)| *ns));
        if all.clone().next().is_none() {
            return String::new();
        }
        let mut plot = Plot::new(
            "latency over time",
            260.0,
            seconds_axis(self.end_s()),
            times_axis(all),
        );
        let mut entries = Vec::new();
        for (class, name, points) in &lines {
            if points.iter().any(Option::is_some) {
                let points: Vec<_> = points
                    .iter()
                    .map(|point| point.map(|(s, ns)| (s, ns.max(LEAST_NS))))
                    .collect();
                plot.line(class, &points);
                entries.push((*class, (*name).to_owned()));
            }
        }
        for slot in &self.seconds.slots {
            let (from, to) = Self::span(slot);
            let words = format!(
                "{from:.1} s: p50 {}, p99 {}, longest {}; network p50 {}",
                human_or_dash(quantile(slot, 0.5)),
                human_or_dash(quantile(slot, 0.99)),
                human_or_dash(quantile(slot, 1.0)),
                human_or_dash(network(slot))
            );
            plot.spot((from, to), &words);
        }
        let title = if self.is_of_requests() {
            "Latency of requests, from when they were due"
        } else {
            "Latency of connections, from when they were due"
        };
        format!("<h3>{title}</h3>\n") + &legend(&entries) + &plot.svg()
    }

    fn rate_over_time(&self) -> String {
        let [made, good] = self.main_counts();
        let planned = self.summary.plan.as_ref().map(planned_rate).unwrap_or_default();
        // In a mesh it is that of each pair.
        let times = self.summary.pairs.len().max(1) as f64;
        let planned = planned.into_iter().map(|(at_s, rate)| Some((at_s, rate * times)));
        let lines = [
            ("plan", "planned", planned.collect()),
            (
                "c1",
                if made == "started" { "begun" } else { "requests" },
                self.points(|slot| self.rate(slot, slot.count(made))),
            ),
            (
                "good",
                good,
                self.points(|slot| self.rate(slot, slot.count(good))),
            ),
        ];
        let all = lines
            .iter()
            .flat_map(|(.., points): &(_, _, Vec<_>)| points.iter().flatten());
        let high = all.map(|(_, rate)| *rate).fold(0.0, f64::max);
        let mut plot = Plot::new(
            "rate over time",
            220.0,
            seconds_axis(self.end_s()),
            numbers_axis(high),
        );
        let mut entries = Vec::new();
        for (class, name, points) in &lines {
            if !points.is_empty() {
                plot.line(class, points);
                entries.push((*class, (*name).to_owned()));
            }
        }
        for slot in &self.seconds.slots {
            let (from, to) = Self::span(slot);
            let words = format!(
                "{from:.1} s: {} {made}, {} {good}, {:.1} a second",
                slot.count(made),
                slot.count(good),
                slot.per_second(slot.count(good))
            );
            plot.spot((from, to), &words);
        }
        "<h3>Rate, a second</h3>\n".to_owned() + &legend(&entries) + &plot.svg()
    }

    fn open_over_time(&self) -> String {
        let points = self.points(|slot| Some(slot.open as f64));
        let high = points.iter().flatten().map(|(_, open)| *open).fold(0.0, f64::max);
        let mut plot = Plot::new(
            "open connections over time",
            170.0,
            seconds_axis(self.end_s()),
            numbers_axis(high),
        );
        plot.line("c1", &points);
        let mut entries = vec![("c1", "established at the end of each second".to_owned())];
        if !self.summary.lost.is_empty() {
            for lost in self.summary.lost.iter().take(LOSSES) {
                plot.tick_mark("bad", lost.at_ns as f64 / 1e9);
            }
            entries.push(("bad", "lost".to_owned()));
        }
        "<h3>Open connections</h3>\n".to_owned() + &legend(&entries) + &plot.svg()
    }

    fn outcomes(&self) -> String {
        let seen: Vec<_> = self
            .kinds()
            .iter()
            .map(|&(names, name, class)| {
                (
                    names,
                    name,
                    class,
                    names.iter().map(|name| self.count(name)).sum::<u64>(),
                )
            })
            .filter(|(.., count)| *count > 0)
            .collect();
        let mut text = String::new();
        if !self.seconds.slots.is_empty() && !seen.is_empty() {
            let failures: Vec<_> = seen
                .iter()
                .filter(|(_, _, class, _)| *class != "good")
                .copied()
                .collect();
            text += &self.stacked("How attempts ended, a second", &seen);
            if !failures.is_empty() && failures.len() < seen.len() {
                text += &self.stacked("Of these, what failed", &failures);
            }
        }
        let total: u64 = seen.iter().map(|(.., count)| count).sum();
        let mut rows: Vec<Vec<String>> = seen
            .iter()
            .map(|(_, name, class, count)| {
                let share = *count as f64 * 100.0 / total.max(1) as f64;
                vec![
                    format!("<i class=\"swatch {class}\"></i>{}", Escaped(name)),
                    number(*count),
                    format!("{share:.3}%"),
                ]
            })
            .collect();
        rows.extend(
            self.summary
                .statuses
                .iter()
                .map(|(status, count)| vec![format!("status {status}"), number(*count), String::new()]),
        );
        let more: Vec<Vec<String>> = self
            .summary
            .counts
            .iter()
            .filter(|(name, count)| {
                **count > 0 && !self.kinds().iter().any(|(names, ..)| names == &[name.as_str()])
            })
            .map(|(name, count)| {
                let shown = match name.as_str() {
                    "bytes_sent" | "bytes_received" => data(count, &bytes(*count)),
                    _ => number(*count),
                };
                vec![Escaped(&name.replace('_', " ")).to_string(), shown, String::new()]
            })
            .collect();
        rows.extend(more);
        text += &table("numbers narrow", &["", "count", "share"], &rows);
        text += &self.losses();
        section("What came of it", &text)
    }

    /// Connections that were lost, by how and where.
    fn losses(&self) -> String {
        let mut kinds: BTreeMap<(&str, &str), (u64, u64, u64)> = BTreeMap::new();
        for lost in &self.summary.lost {
            let kind = kinds.entry((&lost.cause, &lost.node));
            let (number, first, last) = kind.or_insert((0, u64::MAX, 0));
            *number += lost.count;
            *first = (*first).min(lost.at_ns);
            *last = (*last).max(lost.at_ns).max(lost.last_ns);
        }
        if kinds.is_empty() {
            return String::new();
        }
        let row = |(&(cause, node), &(kept, first, last)): (&(&str, &str), &(u64, u64, u64))| {
            vec![
                Escaped(&cause.replace('_', " ")).to_string(),
                Escaped(node).to_string(),
                number(kept),
                time(first),
                time(last),
            ]
        };
        let rows: Vec<_> = kinds.iter().map(row).collect();
        let mut text = "<h3>Connections that were lost</h3>\n".to_owned()
            + &table(
                "numbers narrow",
                &["how", "seen by", "with a time", "first after", "last after"],
                &rows,
            );
        let (all, timed) = self.summary.losses();
        if timed < all {
            text += &note("Of more losses the times were not kept; the counts above have all of them.");
        }
        text
    }

    fn stacked(&self, title: &str, kinds: &[(&[&str], &str, &str, u64)]) -> String {
        let counts = |slot: &Slot| -> Vec<f64> {
            let of = |names: &[&str]| names.iter().map(|name| slot.count(name)).sum::<u64>();
            kinds
                .iter()
                .map(|(names, ..)| slot.per_second(of(names)))
                .collect()
        };
        let slots = &self.seconds.slots;
        let high = slots
            .iter()
            .map(|slot| counts(slot).iter().sum())
            .fold(0.0, f64::max);
        let mut plot = Plot::new(title, 210.0, seconds_axis(self.end_s()), numbers_axis(high));
        let mut drawn_s = 0.0_f64;
        for slot in slots {
            // What another node's report has already drawn is not drawn again.
            let (since_s, until_s) = Self::span(slot);
            let span = (since_s.max(drawn_s), until_s);
            drawn_s = until_s;
            let (mut below, mut words) = (0.0, format!("{:.1} s, a second:", span.0));
            for ((_, name, class, _), count) in kinds.iter().zip(counts(slot)) {
                if count > 0.0 {
                    plot.bar(class, span, (below, below + count));
                    let _ = write!(words, " {count:.1} {name};");
                }
                below += count;
            }
            plot.spot(span, words.trim_end_matches(';'));
        }
        let entries: Vec<_> = kinds
            .iter()
            .map(|(_, name, class, count)| (*class, format!("{name} ({count})")))
            .collect();
        format!("<h3>{}</h3>\n", Escaped(title)) + &legend(&entries) + &plot.svg()
    }

    fn kernel(&self) -> String {
        let title = "What the kernels say of the same connections";
        let Some(kernel) = &self.summary.kernel else {
            if self.is_udp() {
                return String::new();
            }
            return section(
                title,
                &note(
                    "Nothing: no records of these connections came, because no agent watched them, or it is too early or too late.",
                ),
            );
        };
        let dash = || "-".to_owned();
        let or_dash = |count: u64| {
            if kernel.seen_by_target > 0 {
                number(count)
            } else {
                dash()
            }
        };
        let rows = vec![
            vec![
                "attempts".into(),
                number(self.count("started")),
                number(kernel.attempts),
                dash(),
            ],
            vec![
                "established".into(),
                number(self.count("established")),
                number(kernel.established),
                or_dash(kernel.seen_by_target),
            ],
            vec![
                "taken by a process, at least".into(),
                dash(),
                dash(),
                or_dash(kernel.taken_by_target),
            ],
            vec![
                "answered with payload".into(),
                dash(),
                dash(),
                or_dash(kernel.served_by_target),
            ],
            vec![
                "refused".into(),
                number(self.count("refused")),
                number(kernel.refused),
                dash(),
            ],
            vec![
                "timed out".into(),
                number(self.count("timed_out")),
                number(kernel.timed_out),
                dash(),
            ],
            vec![
                "aborted by the generator".into(),
                dash(),
                number(kernel.aborted),
                dash(),
            ],
            vec![
                "time to establish, p50".into(),
                time(self.summary.dial.p50_ns),
                data(
                    kernel.connect_p50_us * 1_000,
                    &human(kernel.connect_p50_us * 1_000),
                ),
                dash(),
            ],
            vec![
                "time to establish, p99".into(),
                time(self.summary.dial.p99_ns),
                data(
                    kernel.connect_p99_us * 1_000,
                    &human(kernel.connect_p99_us * 1_000),
                ),
                dash(),
            ],
        ];
        let head = ["", "the generator", "the kernel here", "the kernel at the target"];
        let mut text = table("numbers narrow", &head, &rows);
        if kernel.seen_by_target == 0 && kernel.established > 0 && kernel.ambiguous == 0 {
            text += &note("No agent saw the other ends.");
        }
        if kernel.ambiguous > 0 {
            text += &note(&on_ambiguous(kernel.ambiguous));
        }
        text += &ways("How connections ended here", &kernel.ends);
        text += &ways("How they ended at the target", &kernel.ends_at_target);
        section(title, &text) + &causes(kernel)
    }

    fn agents(&self) -> String {
        let summary = self.summary;
        if summary.parts.is_empty() {
            return String::new();
        }
        let made = self.main_counts()[0];
        let good = self.main_counts()[1];
        let row = |part: &PartOf| {
            let count = |name: &str| part.counts.get(name).copied().unwrap_or(0);
            let known = |ns: u64| {
                if part.lateness.count > 0 {
                    time(ns)
                } else {
                    "-".to_owned()
                }
            };
            vec![
                Escaped(&part.node).to_string(),
                number(count(made)),
                number(count(good)),
                number(part.most_open),
                time(part.cpu_ns),
                number(count("late")),
                known(part.lateness.p50_ns),
                known(part.lateness.p99_ns),
                known(part.lateness.max_ns),
                part.lag_ns.map_or_else(|| "-".to_owned(), time),
                if summary.is_over {
                    format!("±\u{a0}{}", time(part.clock_error_ns))
                } else {
                    "-".to_owned()
                },
                if part.trouble.is_empty() && summary.is_over {
                    "done".to_owned()
                } else {
                    Escaped(&part.trouble).to_string()
                },
            ]
        };
        let rows: Vec<_> = summary.parts.iter().map(row).collect();
        let head = [
            "agent",
            made,
            good,
            "open at most",
            "CPU",
            "late by 1 ms",
            "late p50",
            "late p99",
            "late max",
            "first after its start",
            "clock",
            "end",
        ];
        let mut text = table("numbers", &head, &rows);
        if summary.skew_error_ns > 0 {
            text += &note(&format!(
                "The nodes began within {} of each other, give or take {}.",
                human(summary.skew_ns),
                human(summary.skew_error_ns)
            ));
        }
        if !summary.doubt.is_empty() {
            text += &note(&format!(
                "Every attempt waits for the generator: {}. All times but the network's may be the generator's own.",
                summary.doubt
            ));
        }
        if !summary.exchange_doubt.is_empty() {
            text += &note(&format!(
                "Payload goes back and forth: {}. The times of exchanges may be the generator's own.",
                summary.exchange_doubt
            ));
        }
        section("The agents", &text)
    }

    fn remarks(&self) -> String {
        let mut text: String = self
            .summary
            .remarks
            .iter()
            .map(|remark| note(&format!("An agent says: {remark}")))
            .collect();
        text += &note(
            "Distributions over time and by share are of log buckets of whole microseconds: what is drawn is within 1.6 % of what was measured, \
             and less than a microsecond is drawn as half of one. The values in the tables have three digits. In a run without a result they are of the \
             buckets too. Latency counts from when an attempt was due, whatever delayed it.",
        );
        let version = env!("CARGO_PKG_VERSION");
        text += &note(&format!(
            "Made by holdfast {version} from the run {}: holdfast run show {} --json has the same numbers.",
            self.row.run_id, self.row.run_id
        ));
        section("How to read this", &text)
    }
}

pub(super) fn badge(verdict: &str) -> &'static str {
    match verdict {
        "holds" => "good",
        "violated" => "bad",
        _ => "unknown",
    }
}

/// The rate that was asked for: seconds and attempts a second, where there was one.
fn planned_rate(plan: &Plan) -> Vec<(f64, f64)> {
    let mut at_s = 0.0;
    match &plan.arrivals {
        Arrivals::Stages(stages) => stages
            .iter()
            .flat_map(|stage| {
                let from = (at_s, stage.from_per_second);
                at_s += stage.duration_ns as f64 / 1e9;
                [from, (at_s, stage.to_per_second)]
            })
            .collect(),
        Arrivals::Count { attempts, pause_ns } if *pause_ns > 0 => {
            let rate = 1e9 / *pause_ns as f64;
            vec![(0.0, rate), (*attempts as f64 / rate, rate)]
        }
        _ => Vec::new(),
    }
}

fn ways(title: &str, ends: &[Ends]) -> String {
    if ends.is_empty() {
        return String::new();
    }
    let row = |ends: &Ends| {
        let span_ns = ends.last_at_ns.abs_diff(ends.first_at_ns);
        let who = match (ends.comm.as_str(), ends.pid) {
            ("", 0) => "-".to_owned(),
            (comm, pid) => format!("{comm} ({pid})"),
        };
        vec![
            Escaped(&ends.close_reason.replace('_', " ")).to_string(),
            Escaped(&ends.node).to_string(),
            Escaped(&who).to_string(),
            number(ends.connections),
            time(span_ns),
        ]
    };
    let rows: Vec<_> = ends.iter().map(row).collect();
    let head = ["how", "node", "whose", "connections", "first to last"];
    format!("<h3>{}</h3>\n", Escaped(title)) + &table("numbers", &head, &rows)
}

fn causes(kernel: &Kernel) -> String {
    let row = |cause: &Cause| {
        let outcome = if cause.outcome == "established" {
            "slow".to_owned()
        } else {
            cause.outcome.replace('_', " ")
        };
        vec![
            format!(
                "<b>{}</b><br/><small>{}</small>",
                Escaped(&cause.cause.replace('_', " ")),
                Escaped(&cause.evidence)
            ),
            Escaped(&outcome).to_string(),
            number(cause.attempts),
            Escaped(&cause.node).to_string(),
            if cause.is_confirmed {
                "both ends"
            } else {
                "this end"
            }
            .to_owned(),
        ]
    };
    let rows: Vec<_> = kernel.causes.iter().map(row).collect();
    let content = if rows.is_empty() {
        String::new()
    } else {
        table(
            "numbers",
            &[
                "cause",
                "attempts that were",
                "number",
                "the other end's node",
                "known by",
            ],
            &rows,
        )
    };
    section("Why attempts failed or were slow", &content)
}

/// Colours are told apart by people who see fewer of them, on white, on black, and in print.
const STYLE: &str = include_str!("page.css");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runs::expect::Verdict;
    use crate::runs::result::{Judged, Pair};
    use crate::runs::seconds::PairOverTime;

    /// Every tag has its end, every attribute its quotes, and every entity is one.
    fn check_well_formed(page: &str) {
        let mut open: Vec<&str> = Vec::new();
        let mut rest = page.strip_prefix("<!DOCTYPE html>").expect("a document of HTML");
        while let Some(at) = rest.find('<') {
            for entity in rest[..at].split('&').skip(1) {
                let name = entity.split_once(';').map(|(name, _)| name);
                assert!(
                    matches!(name, Some("amp" | "lt" | "gt" | "quot" | "#39")),
                    "{entity}"
                );
            }
            let end = rest[at..].find('>').expect("a tag that ends") + at;
            let tag = &rest[at + 1..end];
            assert!(
                !tag.contains('<') && tag.matches('"').count().is_multiple_of(2),
                "{tag}"
            );
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name), "in {}", &rest[..end]);
            } else if !tag.ends_with('/') {
                open.push(tag.split(' ').next().unwrap());
            }
            rest = &rest[end + 1..];
        }
        assert!(open.is_empty(), "{open:?} is open");
    }

    const HOSTILE: &str = "<script>alert(\"x\")</script>&\u{1b}";

    fn row(state: &str, verdict: &str) -> Row {
        Row {
            run_id: "19ac".into(),
            state: state.into(),
            verdict: verdict.into(),
            began_at: "2026-11-28 09:00:00.000000000".into(),
            ended_at: "2026-11-28 09:00:02.000000000".into(),
            nodes: vec!["web-1".into()],
            targets: vec![HOSTILE.into()],
            reasons: vec![HOSTILE.into()],
            result: String::new(),
            seconds: Seconds::default(),
            pair_seconds: PairSeconds::default(),
            is_stored: true,
        }
    }

    fn summary() -> Summary {
        let times = |from: u64| Times {
            count: from,
            min_ns: from + 1,
            mean_ns: from + 2,
            dev_ns: from + 3,
            p50_ns: from + 4,
            p90_ns: from + 5,
            p99_ns: from + 6,
            p999_ns: from + 7,
            max_ns: from + 8,
        };
        let counts: BTreeMap<String, u64> = crate::runs::counts::NAMES
            .iter()
            .zip(7_000_u64..)
            .filter(|(name, _)| !name.contains("request"))
            .map(|(name, count)| ((*name).to_owned(), count))
            .collect();
        let kernel = Kernel {
            attempts: 9_601,
            established: 9_602,
            refused: 9_603,
            timed_out: 9_604,
            connect_p50_us: 9_605,
            connect_p99_us: 9_606,
            seen_by_target: 9_607,
            taken_by_target: 9_608,
            served_by_target: 9_609,
            causes: vec![Cause {
                cause: "listener_full".into(),
                evidence: HOSTILE.into(),
                attempts: 9_610,
                ..Cause::default()
            }],
            ..Kernel::default()
        };
        Summary {
            is_over: true,
            plan: Some(Plan::default()),
            elapsed_ns: 2_000_000_123,
            counts,
            most_open: 8_101,
            connect: times(9_100),
            dial: times(9_200),
            network: times(9_300),
            lateness: times(9_400),
            buckets: [("connect".to_owned(), vec![(0, 1), (100, 7), (400, 2)])].into(),
            parts: vec![PartOf {
                node: HOSTILE.into(),
                cpu_ns: 9_501,
                lag_ns: Some(9_502),
                trouble: HOSTILE.into(),
                ..PartOf::default()
            }],
            pairs: [("a", "b"), ("b", "a")]
                .map(|(from, to)| Pair {
                    from: from.into(),
                    to: to.into(),
                    address: HOSTILE.into(),
                    counts: [("refused".to_owned(), 9_701), ("established".to_owned(), 1)].into(),
                    connect: times(9_800),
                    ..Pair::default()
                })
                .to_vec(),
            expectations: vec![Judged {
                expected: "connect.p99 < 1ms".into(),
                seen: HOSTILE.into(),
                verdict: Verdict::Violated,
                is_broken_by_answers: false,
                is_of_the_target: false,
            }],
            kernel: Some(kernel),
            ..Summary::default()
        }
    }

    fn seconds() -> Seconds {
        let counts = [("started", 20), ("established", 10), ("refused", 10)];
        let slot = |slot| Slot {
            slot,
            since_us: slot * 1_000_000,
            until_us: (slot + 1) * 1_000_000,
            covered_us: 1_000_000,
            nodes: 1,
            open: 5,
            connect: (vec![0, 100, 400], vec![1, 7, 2]),
            counts: counts.map(|(name, count)| (name.to_owned(), count)).into(),
            ..Slot::default()
        };
        Seconds {
            step_us: 1_000_000,
            slots: vec![slot(0), slot(1), slot(5)],
        }
    }

    #[test]
    fn a_page_is_well_formed_has_every_number_and_nothing_from_elsewhere() {
        let summary = summary();
        let page = page(&row("finished", "violated"), &summary, &seconds());
        check_well_formed(&page);
        let mut numbers: Vec<u64> = summary.counts.values().copied().collect();
        for times in [
            &summary.connect,
            &summary.dial,
            &summary.network,
            &summary.lateness,
        ] {
            numbers.extend([
                times.count,
                times.min_ns,
                times.mean_ns,
                times.dev_ns,
                times.p50_ns,
                times.p90_ns,
                times.p99_ns,
                times.p999_ns,
                times.max_ns,
            ]);
        }
        numbers.extend([
            summary.elapsed_ns,
            summary.most_open,
            9_501,
            9_502,
            9_701,
            9_702,
            9_804,
            9_806,
        ]);
        numbers.extend((9_601..=9_610).map(|number| match number {
            // These are shown as times.
            9_605 | 9_606 => number * 1_000,
            _ => number,
        }));
        for number in numbers {
            assert!(page.contains(&format!("<data value=\"{number}\">")), "{number}");
        }
        assert!(!page.contains("<script") && !page.contains("http://") && !page.contains("https://"));
        // Target, reason, agent, its end, evidence, what was seen, and two addresses.
        assert_eq!(page.matches("&lt;script&gt;").count(), 8, "{page}");
        assert!(page.contains("1.6 %") && page.contains("Exit code 1"));
    }

    #[test]
    fn each_pair_of_a_mesh_is_drawn_over_time_and_its_worst_second_told() {
        let slot = |slot, established, failed, p99_ms: u64| PairSlot {
            slot,
            since_us: slot * 1_000_000,
            until_us: (slot + 1) * 1_000_000,
            established,
            failed,
            connect_p99_ns: (established > 0).then_some(p99_ms * 1_000_000),
            ..PairSlot::default()
        };
        let pair = |from: &str, to: &str, slots| PairOverTime {
            from: from.into(),
            to: to.into(),
            slots,
        };
        let mut row = row("finished", "violated");
        row.pair_seconds = PairSeconds {
            step_us: 1_000_000,
            pairs: vec![
                pair(
                    "a",
                    "b",
                    vec![slot(0, 10, 0, 1), slot(1, 8, 2, 3), slot(2, 10, 0, 90)],
                ),
                pair("b", "a", vec![slot(0, 10, 0, 1)]),
            ],
        };
        let page = page(&row, &summary(), &seconds());
        check_well_formed(&page);
        // Of one second alone there is nothing over time.
        assert_eq!(page.matches("class=\"strip\"").count(), 1, "{page}");
        assert!(
            page.contains("worst at 1.0 s: p99 3.00 ms, 2 of 10 failed"),
            "{page}"
        );
        assert!(
            page.contains("the p99 of each second, all on one scale"),
            "{page}"
        );
    }

    #[test]
    fn a_run_without_a_result_says_so() {
        let mut lost = summary();
        lost.is_over = false;
        lost.kernel = None;
        let with_nothing = page(&row("lost", ""), &lost, &Seconds::default());
        check_well_formed(&with_nothing);
        for words in [
            "There is no result",
            "nothing of it second by second",
            "no records of these connections",
        ] {
            assert!(with_nothing.contains(words), "{words}");
        }
        check_well_formed(&page(&row("lost", ""), &Summary::default(), &Seconds::default()));
        check_well_formed(&page(&row("running", ""), &Summary::default(), &seconds()));
    }

    #[test]
    fn what_the_store_no_longer_has_is_named() {
        let page = page(&row("finished", "holds"), &summary(), &seconds());
        assert!(
            page.contains("second by second there are 60 of 7000 attempts"),
            "{page}"
        );
    }

    #[test]
    fn the_rate_of_a_plan_is_drawn_as_it_was_written() {
        let stage = |from_per_second, to_per_second, s: u64| crate::runs::plan::Stage {
            from_per_second,
            to_per_second,
            duration_ns: s * 1_000_000_000,
        };
        let plan = Plan {
            arrivals: Arrivals::Stages(vec![stage(0.0, 10.0, 5), stage(10.0, 10.0, 2)]),
            ..Plan::default()
        };
        assert_eq!(
            planned_rate(&plan),
            [(0.0, 0.0), (5.0, 10.0), (5.0, 10.0), (7.0, 10.0)]
        );
    }
}
