//! What was tortured so far: a file with one JSON object a line, one for each run that came to its verdict. Runs add
//! up, whenever they were made: a kill that was survived stays survived.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::verdict::Verdict;

/// What happened in one run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Kinds of strikes that struck, by the names that the record has for them.
    pub(super) strikes: BTreeMap<&'static str, u64>,
}

/// The kinds of strikes that are kills.
pub(super) const KILLS: [&str; 3] = ["agent_kills", "collector_kills", "engine_kills"];

impl Tally {
    pub(super) fn add(&mut self, kind: &'static str) {
        *self.strikes.entry(kind).or_default() += 1;
    }

    pub(super) fn kills(&self) -> u64 {
        KILLS.iter().filter_map(|kind| self.strikes.get(kind)).sum()
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let words: Vec<String> = self
            .strikes
            .iter()
            .map(|(kind, count)| format!("{} {count}", kind.replace('_', " ")))
            .collect();
        out.write_str(&words.join(", "))
    }
}

/// One run.
pub(super) struct Run<'a> {
    pub(super) seed: u64,
    pub(super) seconds: f64,
    /// Seconds for which an agent was left to work between two strikes.
    pub(super) life: u32,
    pub(super) revision: &'a str,
    pub(super) engine: &'static str,
    pub(super) tally: &'a Tally,
    pub(super) verdict: &'a Verdict,
}

impl Run<'_> {
    fn line(&self) -> Value {
        let mut line = json!({
            "seed": self.seed,
            "seconds": self.seconds.round(),
            "life": self.life,
            "revision": self.revision,
            "engine": self.engine,
            "agent_starts": self.verdict.total(|account| account.starts),
            "opened": self.verdict.total(|account| account.opens),
            "seeded": self.verdict.total(|account| account.seeded),
            "announced": self.verdict.total(|account| account.announced),
            "stored": self.verdict.total(|account| account.stored),
            "stored_share": (self.verdict.stored_share() * 1_000.0).round() / 1_000.0,
            "ended": self.verdict.total(|account| account.ended),
            "lost": self.verdict.total(|account| account.lost),
            "other": self.verdict.total(|account| account.other),
            "missed": self.verdict.total(|account| account.missed),
            "holds": self.verdict.holds(),
        });
        for (kind, count) in &self.tally.strikes {
            line[kind] = json!(count);
        }
        line
    }

    /// Appends it to the record.
    pub(super) fn append(&self, path: &Path) -> anyhow::Result<()> {
        let cannot = || format!("cannot write {}", path.display());
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .with_context(cannot)?;
        file.write_all(format!("{}\n", self.line()).as_bytes())
            .with_context(cannot)
    }
}

/// What a record adds up to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) runs: u64,
    pub(super) kills: u64,
    /// Seeds whose runs did not hold.
    pub(super) broken: Vec<u64>,
    /// The largest seed; the next run takes the one behind it.
    pub(super) last_seed: Option<u64>,
}

/// Adds up a record; one that is not there is empty.
pub(super) fn sum(path: &Path) -> anyhow::Result<Sum> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        read => read.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let mut sum = Sum::default();
    for (number, line) in text.lines().enumerate() {
        let run: Value = serde_json::from_str(line)
            .with_context(|| format!("{}:{}: no JSON", path.display(), number + 1))?;
        let (Some(seed), Some(holds)) = (run["seed"].as_u64(), run["holds"].as_bool()) else {
            bail!("{}:{}: no seed, or no verdict", path.display(), number + 1);
        };
        sum.runs += 1;
        sum.last_seed = sum.last_seed.max(Some(seed));
        if holds {
            sum.kills += KILLS.iter().filter_map(|kind| run[kind].as_u64()).sum::<u64>();
        } else {
            sum.broken.push(seed);
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_add_up_and_only_kills_that_were_survived_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record.jsonl");
        assert_eq!(sum(&path).unwrap(), Sum::default());
        let tally = Tally {
            strikes: [("agent_kills", 5), ("engine_kills", 2), ("cuts", 9)].into(),
        };
        let broken = Verdict {
            faults: vec!["a row is missing".into()],
            ..Verdict::default()
        };
        for (seed, verdict) in [(8, &Verdict::default()), (9, &broken), (3, &Verdict::default())] {
            let run = Run {
                seed,
                seconds: 60.0,
                life: 60,
                revision: "abc",
                engine: "inside",
                tally: &tally,
                verdict,
            };
            run.append(&path).unwrap();
        }
        let expected = Sum {
            runs: 3,
            kills: 14,
            broken: vec![9],
            last_seed: Some(9),
        };
        assert_eq!(sum(&path).unwrap(), expected);
    }

    #[test]
    fn a_record_that_cannot_be_read_is_named_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record.jsonl");
        fs::write(&path, "{\"seed\": 1, \"holds\": true}\nnonsense\n").unwrap();
        let text = format!("{:#}", sum(&path).unwrap_err());
        assert!(text.contains("record.jsonl:2"), "{text}");
    }
}
