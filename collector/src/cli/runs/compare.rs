//! `holdfast run compare`: the second run against the first, for people, as JSON, or as a page.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;

use super::super::Failure;
use super::super::client::Reach;
use super::super::table::{Align, BAD, Cell, FAINT, GOOD, Table};
use super::page::{badge, document, note, section, table};
use super::plot::{Escaped, Plot, legend, quantiles_axis, quantiles_line, times_axis};
use super::{Row, found};
use crate::runs::compare::{Comparison, Difference, Shown, Statistic, compare};
use crate::runs::result::{Summary, human};
use crate::store::buckets::middle;

/// Say whether a run differs from another, and whether that can be told.
///
/// Percentiles, rate and errors (of connections with losses) of B are held against those of A. The intervals are of 99 % each and
/// come from drawing stretches of seconds of both runs again and again, because what happens at the same time is not independent. They know what varied within
/// the runs, not what differs from run to run: repeat runs before believing a small difference. The same two runs always give
/// the same answer. Times of a closed loop that its generator was the limit of are not judged, for they may be its own.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast run compare 19ac 19ad
  holdfast run compare 19ac 19ad --html difference.html
  holdfast run compare 19ac 19ad --json | jq .shown

Exit codes: 0 nothing is worse that can be told, 1 something is worse, 2 a wrong call, 3 it cannot be told: a run is not over, is unknown, or is
too short, or the plans differ in more than addresses (--different-plans judges them all the same), 4 it could not be done.")]
pub(super) struct Args {
    /// The run to compare with, or how its id begins
    #[arg(value_name = "A", value_parser = NonEmptyStringValueParser::new())]
    a: String,

    /// The run that is compared, or how its id begins
    #[arg(value_name = "B", value_parser = NonEmptyStringValueParser::new())]
    b: String,

    /// Judge runs whose plans differ too
    #[arg(long)]
    different_plans: bool,

    /// Write a page with pictures there instead; - for stdout
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    html: Option<PathBuf>,

    #[command(flatten)]
    reach: Reach,
}

/// Two runs, and what their comparison comes to.
struct Pair {
    rows: [Row; 2],
    summaries: [Summary; 2],
    comparison: Comparison,
    /// What the plans differ in: a name, and both values.
    plans: Vec<(&'static str, String, String)>,
}

pub(super) async fn run(args: &Args) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for run_id in [&args.a, &args.b] {
        rows.push(Row::parse(&found(&args.reach, run_id, true).await?)?);
    }
    let rows: [Row; 2] = rows.try_into().map_err(|_| Failure::Unknown)?;
    let summaries = [rows[0].summary()?, rows[1].summary()?];
    let pair = pair(rows, summaries, args.different_plans)?;
    if let Some(path) = &args.html {
        super::super::whole_file::write(path, &page(&pair))?;
    } else {
        let text = if args.reach.json { json(&pair) } else { text(&pair) };
        io::stdout().lock().write_all(text.as_bytes())?;
    }
    match pair.comparison.shown() {
        Shown::Better | Shown::Same => Ok(()),
        Shown::Worse => Err(Failure::DoesNotHold),
        Shown::Unknown => Err(Failure::Unknown),
    }
}

fn pair(rows: [Row; 2], summaries: [Summary; 2], different_plans: bool) -> Result<Pair, Failure> {
    let (mut doubts, mut doubts_of_times) = (Vec::new(), Vec::new());
    if rows[0].run_id == rows[1].run_id {
        return Err(Failure::Usage(anyhow::anyhow!(
            "both are the run {}: give two runs, holdfast runs lists them",
            rows[0].run_id
        )));
    }
    for (row, summary) in rows.iter().zip(&summaries) {
        if row.state == "running" {
            doubts.push(format!(
                "the run {} still runs: wait for it, or end it with holdfast run stop {}",
                row.run_id, row.run_id
            ));
        } else if !summary.is_over {
            doubts.push(format!(
                "the run {} has no result: it is {}",
                row.run_id, row.state
            ));
        } else if row.verdict == "unknown" {
            doubts.push(format!(
                "the run {} is unknown: {}",
                row.run_id,
                row.reasons.join("; ")
            ));
        } else if !summary.doubt.is_empty() {
            doubts_of_times.push(format!(
                "the times of the run {} may be its generator's own: {}",
                row.run_id, summary.doubt
            ));
        }
    }
    let plans = match [&summaries[0].plan, &summaries[1].plan] {
        [Some(a), Some(b)] => {
            if a.protocol != b.protocol {
                return Err(Failure::Usage(anyhow::anyhow!(
                    "the run {} is of {} and {} is of {}: their times are of different things",
                    rows[0].run_id,
                    a.protocol,
                    rows[1].run_id,
                    b.protocol
                )));
            }
            a.differences(b)
        }
        _ => {
            doubts.push("a run's plan was not stored, so nobody knows whether they were the same".to_owned());
            Vec::new()
        }
    };
    // Other targets are what is compared, by address or by name.
    let others: Vec<_> = plans
        .iter()
        .map(|(name, ..)| *name)
        .filter(|name| !["addresses", "server"].contains(name))
        .collect();
    if !others.is_empty() && !different_plans {
        doubts.push(format!(
            "the plans differ in {}; --different-plans judges the runs all the same",
            others.join(", ")
        ));
    }
    let [a, b] = [0, 1].map(|which| (&summaries[which], &rows[which].seconds));
    let mut comparison = compare(a, b, others.is_empty());
    comparison.doubt_times(doubts_of_times);
    comparison.doubt(doubts);
    Ok(Pair {
        rows,
        summaries,
        comparison,
        plans,
    })
}

fn name(statistic: Statistic) -> &'static str {
    match statistic {
        Statistic::P50 => "p50",
        Statistic::P90 => "p90",
        Statistic::P99 => "p99",
        Statistic::Max => "max",
        Statistic::Rate => "rate",
        Statistic::ErrorRatio => "error ratio",
    }
}

/// A value, with its unit.
fn value(statistic: Statistic, value: Option<f64>) -> String {
    let Some(value) = value else {
        return "-".to_owned();
    };
    match statistic {
        Statistic::Rate => format!("{value:.1}/s"),
        Statistic::ErrorRatio => format!("{:.3}%", value * 100.0),
        _ => human(value as u64),
    }
}

/// A difference, with its sign.
fn signed(statistic: Statistic, difference: Option<f64>) -> String {
    difference.map_or_else(
        || "-".to_owned(),
        |apart| {
            let sign = if apart < 0.0 { "-" } else { "+" };
            format!("{sign}{}", value(statistic, Some(apart.abs())))
        },
    )
}

/// The columns of a difference: name, both values, how far apart, in percent, the interval, and what that shows.
fn columns(difference: &Difference, comparison: &Comparison) -> [String; 7] {
    let Difference {
        statistic,
        a,
        b,
        low,
        high,
        shown,
    } = *difference;
    let apart = a.zip(b).map(|(a, b)| b - a);
    let share = a.zip(b).filter(|(a, _)| *a > 0.0).map_or_else(
        || "-".to_owned(),
        |(a, b)| format!("{:+.1}%", (b / a - 1.0) * 100.0),
    );
    let interval = match (low, high) {
        (None, _) | (_, None) => "-".to_owned(),
        both => format!("{} to {}", signed(statistic, both.0), signed(statistic, both.1)),
    };
    [
        name(statistic).to_owned(),
        value(statistic, a),
        value(statistic, b),
        signed(statistic, apart),
        share,
        interval,
        words(shown, statistic, comparison).to_owned(),
    ]
}

fn words(shown: Shown, statistic: Statistic, comparison: &Comparison) -> &'static str {
    match (shown, statistic) {
        (Shown::Better, _) => "better",
        (Shown::Worse, _) => "worse",
        (Shown::Same, _) => "no difference that can be told",
        (Shown::Unknown, Statistic::Max) => "one value tells nothing",
        (Shown::Unknown, _) if statistic.is_time() && !comparison.doubts_of_times.is_empty() => {
            "may be a generator's own"
        }
        (Shown::Unknown, _) => "cannot be told",
    }
}

const HEAD: [(&str, Align); 7] = [
    ("", Align::Left),
    ("A", Align::Right),
    ("B", Align::Right),
    ("B - A", Align::Right),
    ("", Align::Right),
    ("99% INTERVAL", Align::Left),
    ("", Align::Left),
];

/// In a sentence, what it comes to.
fn verdict(pair: &Pair) -> String {
    match pair.comparison.shown() {
        Shown::Better => "B is better than A".to_owned(),
        Shown::Worse => "B is worse than A".to_owned(),
        Shown::Same => "no difference that can be told".to_owned(),
        Shown::Unknown => {
            let Comparison {
                doubts,
                doubts_of_times,
                ..
            } = &pair.comparison;
            let why = if doubts.is_empty() {
                doubts_of_times
            } else {
                doubts
            };
            format!("it cannot be told: {}", why.join("; "))
        }
    }
}

fn method(comparison: &Comparison) -> String {
    format!(
        "times: {} from when they were due; {} and {} seconds in which attempts were made, drawn in stretches of {}",
        if comparison.is_of_requests {
            "requests"
        } else {
            "connections"
        },
        comparison.seconds[0],
        comparison.seconds[1],
        comparison.block
    )
}

fn text(pair: &Pair) -> String {
    let mut text = String::new();
    for (letter, row) in ["A", "B"].into_iter().zip(&pair.rows) {
        text += &format!(
            "{letter}: run {} of {} UTC from {} to {}: {}\n",
            row.run_id,
            row.began_at.get(..19).unwrap_or(&row.began_at),
            row.nodes.join(", "),
            row.targets.join(", "),
            if row.verdict.is_empty() {
                &row.state
            } else {
                &row.verdict
            }
        );
    }
    for (name, a, b) in &pair.plans {
        text += &format!("plans differ: {name}: {a} | {b}\n");
    }
    let colours = super::super::colours(&io::stdout());
    let rows: Vec<_> = pair
        .comparison
        .differences
        .iter()
        .map(|difference| {
            let style = match difference.shown {
                Shown::Better => GOOD,
                Shown::Worse => BAD,
                _ => FAINT,
            };
            let mut cells = columns(difference, &pair.comparison).map(Cell::from);
            cells[6].style = style;
            cells
        })
        .collect();
    let mut table = Table::new(HEAD, colours);
    table.fit(&rows);
    text += &table.head();
    for row in &rows {
        text += &table.line(row);
    }
    text += &format!("{}\n", method(&pair.comparison));
    for doubt in &pair.comparison.doubts_of_times {
        text += &format!("{doubt}\n");
    }
    text += &format!("{}\n", verdict(pair));
    text
}

fn json(pair: &Pair) -> String {
    let plans: Vec<_> = pair
        .plans
        .iter()
        .map(|(name, a, b)| serde_json::json!({ "name": name, "a": a, "b": b }))
        .collect();
    let answer = serde_json::json!({
        "a": pair.rows[0].run_id,
        "b": pair.rows[1].run_id,
        "shown": pair.comparison.shown(),
        "plans_differ": plans,
        "comparison": pair.comparison,
    });
    format!("{answer}\n")
}

fn page(pair: &Pair) -> String {
    let (class, word) = match pair.comparison.shown() {
        Shown::Better => ("good", "better"),
        Shown::Worse => ("bad", "worse"),
        Shown::Same => ("unknown", "no difference"),
        Shown::Unknown => ("unknown", "unknown"),
    };
    let [a, b] = &pair.rows;
    let head = format!(
        "<header>\n<p class=\"kicker\">Holdfast · comparison of runs</p>\n<h1><span class=\"badge {class}\">{word}</span> {} against {}</h1>\n\
         <p>{}</p>\n</header>\n",
        Escaped(&b.run_id),
        Escaped(&a.run_id),
        Escaped(&verdict(pair))
    );
    let runs: Vec<_> = ["A", "B"]
        .into_iter()
        .zip(&pair.rows)
        .map(|(letter, row)| {
            let verdict = if row.verdict.is_empty() {
                &row.state
            } else {
                &row.verdict
            };
            vec![
                letter.to_owned(),
                Escaped(&row.run_id).to_string(),
                Escaped(row.began_at.get(..19).unwrap_or(&row.began_at)).to_string(),
                Escaped(&row.nodes.join(", ")).to_string(),
                Escaped(&row.targets.join(", ")).to_string(),
                format!(
                    "<span class=\"badge {}\">{}</span>",
                    badge(verdict),
                    Escaped(verdict)
                ),
            ]
        })
        .collect();
    let mut content = table("text", &["", "run", "began (UTC)", "from", "targets", ""], &runs);
    if !pair.plans.is_empty() {
        let rows: Vec<_> = pair
            .plans
            .iter()
            .map(|(name, a, b)| [*name, a, b].map(|text| Escaped(text).to_string()).to_vec())
            .collect();
        content += "<h3>The plans differ</h3>\n";
        content += &table("text", &["", "A", "B"], &rows);
    }
    let rows: Vec<_> = pair
        .comparison
        .differences
        .iter()
        .map(|difference| {
            let mut cells = columns(difference, &pair.comparison).map(|text| Escaped(&text).to_string());
            let class = match difference.shown {
                Shown::Better => "good",
                Shown::Worse => "bad",
                _ => "",
            };
            if !class.is_empty() {
                cells[6] = format!("<span class=\"badge {class}\">{}</span>", cells[6]);
            }
            cells.to_vec()
        })
        .collect();
    let head_row = ["", "A", "B", "B - A", "", "99% interval", ""];
    let doubts: String = pair
        .comparison
        .doubts_of_times
        .iter()
        .map(|doubt| note(doubt))
        .collect();
    let differences = table("numbers", &head_row, &rows)
        + &doubts
        + &note(&method(&pair.comparison))
        + &note(
            "Stretches of seconds are drawn, not single attempts, for what happens at the same time is not independent. The intervals know what \
             varied within the runs, not what differs from run to run: repeat runs before believing a small difference. Times that differ by \
             less than two buckets (6 %) or 2 us are not told apart.",
        );
    let body = [
        head,
        section("The runs", &content),
        section("Differences", &differences),
        section(
            "Times by the share of all that took no longer",
            &percentiles(pair),
        ),
    ];
    document(
        &format!("Holdfast runs {} and {}", a.run_id, b.run_id),
        &body.concat(),
    )
}

fn percentiles(pair: &Pair) -> String {
    let name = if pair.comparison.is_of_requests {
        "request"
    } else {
        "connect"
    };
    let lines = pair.summaries.each_ref().map(|summary| {
        let buckets = summary.buckets.get(name).into_iter().flatten();
        buckets
            .map(|&(bucket, count)| (middle(bucket) * 1e3, count))
            .collect::<Vec<_>>()
    });
    let most = lines
        .iter()
        .map(|buckets| buckets.iter().map(|(_, count)| count).sum::<u64>())
        .max();
    if lines.iter().all(Vec::is_empty) {
        return String::new();
    }
    let all = lines.iter().flatten().map(|(ns, _)| *ns);
    let mut plot = Plot::new(
        "times of both runs by the share of all that took no longer",
        330.0,
        quantiles_axis(most.unwrap_or(1)),
        times_axis(all),
    );
    let mut entries = Vec::new();
    for ((class, letter), (row, buckets)) in [("c1", "A"), ("c2", "B")]
        .into_iter()
        .zip(pair.rows.iter().zip(&lines))
    {
        plot.line(class, &quantiles_line(buckets));
        entries.push((class, format!("{letter}: run {}", row.run_id)));
    }
    legend(&entries) + &plot.svg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runs::plan::Plan;
    use crate::runs::seconds::{PairSeconds, Seconds, Slot};

    fn one(run_id: &str, verdict: &str, protocol: &str, address: &str) -> (Row, Summary) {
        let slot = |slot| Slot {
            slot,
            covered_us: 1_000_000,
            nodes: 1,
            connect: (vec![100 + slot as u16 % 2], vec![10]),
            counts: [("started".to_owned(), 10), ("established".to_owned(), 10)].into(),
            ..Slot::default()
        };
        let row = Row {
            run_id: run_id.into(),
            state: "finished".into(),
            verdict: verdict.into(),
            began_at: "2026-11-28 09:00:00.000000000".into(),
            ended_at: String::new(),
            nodes: vec!["web-1".into()],
            targets: vec!["<web>:80".into()],
            reasons: vec!["late".into()],
            result: String::new(),
            is_stored: true,
            seconds: Seconds {
                step_us: 1_000_000,
                slots: (0..20).map(slot).collect(),
            },
            pair_seconds: PairSeconds::default(),
        };
        let summary = Summary {
            is_over: true,
            plan: Some(Plan {
                protocol: protocol.into(),
                addresses: vec![address.into()],
                ..Plan::default()
            }),
            buckets: [("connect".to_owned(), vec![(100, 100), (101, 100)])].into(),
            ..Summary::default()
        };
        (row, summary)
    }

    fn check(a: (Row, Summary), b: (Row, Summary), different_plans: bool) -> Result<Pair, Failure> {
        pair([a.0, b.0], [a.1, b.1], different_plans)
    }

    #[test]
    fn other_addresses_are_compared_and_other_plans_only_if_that_is_meant() {
        let a = || one("19ac", "holds", "TCP", "10.0.0.1:80");
        let b = || one("19ad", "holds", "TCP", "10.0.0.2:80");
        let same = check(a(), b(), false).unwrap();
        assert_eq!(same.comparison.shown(), Shown::Same, "{:?}", same.comparison);
        let words = text(&same);
        assert!(
            words.contains("plans differ: addresses: 10.0.0.1:80 | 10.0.0.2:80"),
            "{words}"
        );
        assert!(words.ends_with("no difference that can be told\n"), "{words}");

        // Another server is asked for the same.
        let of_server = |run: (Row, Summary), url: &str| {
            let mut summary = run.1;
            let http = crate::runs::plan::Http {
                method: "GET".into(),
                url: url.into(),
                ..Default::default()
            };
            summary.plan.as_mut().unwrap().http = Some(http);
            (run.0, summary)
        };
        let served = |a_url, b_url| check(of_server(a(), a_url), of_server(b(), b_url), false).unwrap();
        let same = served("http://old/x", "http://new:81/x").comparison;
        assert_eq!(same.shown(), Shown::Same, "{same:?}");
        let other = served("http://old/x", "http://new:81/y");
        assert_eq!(other.comparison.shown(), Shown::Unknown);
        assert!(
            text(&other).contains("the plans differ in request;"),
            "{}",
            text(&other)
        );

        let mut other = b();
        other.1.plan.as_mut().unwrap().hold_ns = 5;
        let doubted = check(a(), (other.0, other.1.clone()), false).unwrap();
        assert_eq!(doubted.comparison.shown(), Shown::Unknown);
        assert!(
            text(&doubted).contains("the plans differ in hold; --different-plans"),
            "{}",
            text(&doubted)
        );
        let mut meant = b();
        meant.1 = other.1;
        assert_eq!(check(a(), meant, true).unwrap().comparison.shown(), Shown::Same);

        // A run does not differ from itself.
        assert!(matches!(check(a(), a(), true), Err(Failure::Usage(_))));
        let udp = one("19ae", "holds", "UDP", "10.0.0.1:80");
        assert!(matches!(check(a(), udp, true), Err(Failure::Usage(_))));
    }

    #[test]
    fn of_a_loop_that_its_generator_limits_all_but_the_times_is_compared() {
        let limited = |run_id: &str, per_second: u64, bucket: u16, verdict: &str| {
            let (mut row, mut summary) = one(run_id, verdict, "TCP", "10.0.0.1:80");
            for slot in &mut row.seconds.slots {
                slot.connect = (vec![bucket], vec![per_second]);
                slot.counts = ["started", "established"]
                    .map(|name| (name.to_owned(), per_second))
                    .into();
            }
            summary.connect.count = 20 * per_second;
            summary.connect.p50_ns = (middle(bucket) * 1e3) as u64;
            summary.doubt = "limited by the generator".into();
            (row, summary)
        };
        let a = || limited("19ac", 20, 100, "holds");
        let shown = |pair: &Pair, statistic| {
            let mut differences = pair.comparison.differences.iter();
            let found = differences.find(|difference| difference.statistic == statistic);
            found.unwrap().shown
        };
        let worse = check(a(), limited("19ad", 10, 200, "holds"), false).unwrap();
        assert_eq!(worse.comparison.shown(), Shown::Worse);
        assert_eq!(shown(&worse, Statistic::Rate), Shown::Worse);
        assert_eq!(shown(&worse, Statistic::P50), Shown::Unknown);
        let words = text(&worse);
        assert!(
            words
                .contains("the times of the run 19ad may be its generator's own: limited by the generator\n")
                && words.contains("may be a generator's own")
                && words.ends_with("B is worse than A\n"),
            "{words}"
        );
        assert!(
            page(&worse).contains("19ad may be its generator"),
            "{}",
            page(&worse)
        );
        let same = check(a(), limited("19ad", 20, 200, "holds"), false).unwrap();
        assert_eq!(same.comparison.shown(), Shown::Same);
        // Where nothing at all can be told, no row tells it.
        let unknown = check(a(), limited("19ad", 10, 200, "unknown"), false).unwrap();
        assert_eq!(unknown.comparison.shown(), Shown::Unknown);
        assert_eq!(shown(&unknown, Statistic::Rate), Shown::Unknown);
        assert!(!page(&unknown).contains("badge bad"), "{}", page(&unknown));
    }

    #[test]
    fn a_run_that_proves_nothing_is_not_compared_with_confidence() {
        let a = || one("19ac", "holds", "TCP", "10.0.0.1:80");
        let unknown = check(a(), one("19ad", "unknown", "TCP", "10.0.0.1:80"), true).unwrap();
        assert!(
            text(&unknown).contains("it cannot be told: the run 19ad is unknown: late"),
            "{}",
            text(&unknown)
        );
        let mut running = one("19ad", "", "TCP", "10.0.0.1:80");
        running.1.is_over = false;
        running.0.state = "running".into();
        let running = check(a(), running, true).unwrap();
        assert!(
            text(&running).contains("the run 19ad still runs"),
            "{}",
            text(&running)
        );
        let mut lost = one("19ad", "", "TCP", "10.0.0.1:80");
        lost.1.is_over = false;
        lost.0.state = "lost".into();
        let lost = check(a(), lost, true).unwrap();
        assert_eq!(lost.comparison.shown(), Shown::Unknown);
        let answer: serde_json::Value = serde_json::from_str(&json(&lost)).unwrap();
        assert_eq!(answer["shown"], "unknown");
        assert_eq!(
            answer["comparison"]["doubts"][0],
            "the run 19ad has no result: it is lost"
        );
        let page = page(&lost);
        assert!(
            page.contains("&lt;web&gt;:80") && page.contains("it is lost") && page.contains("<svg"),
            "{page}"
        );
    }
}
