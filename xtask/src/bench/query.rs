//! The benchmark `query`: what the questions that people ask cost on a store of 100 million rows, a day of them.
//!
//! The collector's example `query_cost` holds the store: it fills it as the collector would, the rollup included, and
//! asks as `holdfast sql` does. A question is asked cold (the engine has no marks, the kernel none of the store's
//! files) and warm. What it must keep to is CPU time, that of all threads together: on an idle machine the answer comes
//! sooner than that, and on one that others use it says nothing of them.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, ensure};
use rustix::fs::{Advice, fadvise};
use serde_json::Value;

use super::rounds::Comparison;
use super::{Measurement, Subject, take_turns};
use crate::failure::Failure;
use crate::up::system::build_examples;
use crate::workspace;

/// The questions, in the example's order.
const QUESTIONS: [&str; 6] = [
    "p99 per minute of a service",
    "top talkers",
    "whom a talker talks to",
    "failures of a node",
    "who talks to a port",
    "the same, addresses, 1 h",
];
/// What a question may take.
const MOST_MS: f64 = 300.0;
const UNIT: &str = "ms of CPU, warm";
const COLD_CPU: &str = "ms of CPU, cold";

/// What is measured, and what stays behind.
pub(super) struct Scale {
    pub(super) rows: u64,
    /// Keep the store for the next time.
    pub(super) keep: bool,
}

pub(super) fn compare(rounds: u32, scale: &Scale) -> anyhow::Result<Comparison> {
    let program = build_examples(&["holdfast-collector"], &["query_cost"])?.join("query_cost");
    let folder = workspace::target_dir()?.join("bench-query");
    let comparison = {
        let asking = RefCell::new(Asking::start(&program, &folder, scale.rows)?);
        let subject = |(number, name)| -> Box<dyn Subject + '_> {
            Box::new(Question {
                name,
                number,
                asking: &asking,
            })
        };
        let mut subjects: Vec<_> = QUESTIONS.into_iter().enumerate().map(subject).collect();
        let comparison = take_turns(UNIT, &mut subjects, rounds)?;
        drop(subjects);
        asking.into_inner().end()?;
        comparison
    };
    if !scale.keep {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(comparison)
}

/// An error if a question took longer than it may, by the median of the rounds.
pub(super) fn judge(comparison: &Comparison) -> anyhow::Result<()> {
    let json = comparison.to_json();
    let subjects = json["subjects"].as_array().context("a comparison has subjects")?;
    let slow: Vec<String> = subjects
        .iter()
        .flat_map(|subject| {
            let medians = [
                ("warm", &subject["cost"]["median"]),
                ("cold", &subject["figures"][COLD_CPU]["spread"]["median"]),
            ];
            medians.map(|(temperature, median)| (&subject["name"], temperature, median.as_f64()))
        })
        .filter(|(_, _, median)| median.is_none_or(|median| median >= MOST_MS))
        .map(|(name, temperature, median)| {
            format!("{name}, {temperature}: {:.0} ms", median.unwrap_or(f64::NAN))
        })
        .collect();
    if slow.is_empty() {
        eprintln!("every question took less than {MOST_MS} ms of CPU, cold and warm");
        return Ok(());
    }
    Err(Failure::Check(format!("over {MOST_MS} ms of CPU: {}", slow.join("; "))).into())
}

struct Question<'a> {
    name: &'static str,
    number: usize,
    asking: &'a RefCell<Asking>,
}

impl Subject for Question<'_> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn measure(&mut self) -> anyhow::Result<Measurement> {
        let mut asking = self.asking.borrow_mut();
        forget_files(&asking.folder)?;
        let (cold_cpu, cold_wall, _) = asking.ask("cold", self.number)?;
        let (cpu, wall, lines) = asking.ask("warm", self.number)?;
        ensure!(lines > 0.0, "{} has no answer", self.name);
        Ok(Measurement {
            cost: cpu,
            figures: vec![
                ("ms on the wall, warm", wall),
                (COLD_CPU, cold_cpu),
                ("ms on the wall, cold", cold_wall),
                ("lines of the answer", lines),
            ],
            note: String::new(),
        })
    }
}

/// Takes what lies under a folder out of the kernel's page cache.
fn forget_files(folder: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        // Parts come and go while the engine merges; symbolic links lead to what is visited by itself.
        let Ok(kind) = fs::symlink_metadata(&path).map(|found| found.file_type()) else {
            continue;
        };
        if kind.is_dir() {
            // One that is gone meanwhile has no files.
            let _ = forget_files(&path);
        } else if kind.is_file()
            && let Ok(file) = File::open(&path)
        {
            fadvise(&file, 0, None, Advice::DontNeed)?;
        }
    }
    Ok(())
}

/// The process that holds the store.
struct Asking {
    process: Child,
    questions: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    folder: PathBuf,
}

impl Asking {
    /// Starts it, and has it fill the store if that is not done.
    fn start(program: &Path, folder: &Path, rows: u64) -> anyhow::Result<Self> {
        eprintln!("filling {} with {rows} rows, unless it is", folder.display());
        let mut process = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "--"])
            .arg(program)
            .arg(folder)
            .arg(rows.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let (Some(questions), Some(answers)) = (process.stdin.take(), process.stdout.take()) else {
            unreachable!("both were asked for");
        };
        let mut asking = Self {
            process,
            questions,
            answers: BufReader::new(answers).lines(),
            folder: folder.to_owned(),
        };
        let filled = asking.answer()?;
        eprintln!("the store: {filled}");
        Ok(asking)
    }

    /// Milliseconds of CPU and on the wall, and the lines of the answer.
    fn ask(&mut self, temperature: &str, number: usize) -> anyhow::Result<(f64, f64, f64)> {
        writeln!(self.questions, "{temperature} {number}")?;
        let answer = self.answer()?;
        let figure = |name: &str| {
            answer[name]
                .as_f64()
                .with_context(|| format!("no {name} in {answer}"))
        };
        Ok((figure("cpu_ms")?, figure("wall_ms")?, figure("lines")?))
    }

    fn answer(&mut self) -> anyhow::Result<Value> {
        let line = self
            .answers
            .next()
            .context("query_cost ended early; its own words are above")??;
        Ok(serde_json::from_str(&line)?)
    }

    fn end(self) -> anyhow::Result<()> {
        let Self {
            mut process,
            questions,
            answers,
            ..
        } = self;
        drop((questions, answers));
        let status = process.wait()?;
        ensure!(status.success(), "query_cost ended with {status}");
        Ok(())
    }
}
