//! `cargo xtask fuzz`: throws bytes at what reads bytes from outside, guided by what the code does with them.
//!
//! The fuzzers are a workspace of their own (`collector/fuzz`, laid out as cargo-fuzz expects it) and are built by the
//! compiler that builds everything else: the coverage that they need is a pass of LLVM. What they find new is kept
//! beside the build, so that the next run goes on from there; the corpus in the tree is only read.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::ValueEnum;

use crate::failure::Failure;
use crate::setup::{self, Need};
use crate::workspace;

/// How long each fuzzer runs among the tests.
const SHORT: Duration = Duration::from_secs(8);

/// Longest input, in bytes: what is wrong with a long one is wrong with a short one.
const MAX_INPUT: usize = 16 << 10;

/// An input that takes longer is taken for one that never ends.
const INPUT_TIMEOUT_S: u32 = 10;

/// Memory that one input may take the fuzzer to.
const MAX_MEMORY_MIB: u32 = 1024;

/// Lines of a fuzzer's log that tell what it found.
const LOG_LINES: usize = 40;

/// The coverage that libFuzzer works with, as cargo-fuzz asks for it; no sanitizer, as there is no unsafe code.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// Fuzz what reads bytes from outside: batches, agents' messages, segments of a spool.
///
/// Ends with 1 if an input was found that makes the code panic, hang or take too much memory, and says where it is.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Which fuzzer; all, one after another, if none
    #[arg(value_enum)]
    target: Option<Target>,

    /// How long each one runs
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    minutes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Target {
    /// What is in a batch whose envelope is sound, through to the block for its table
    Batch,
    /// The bytes of an agent's message
    Message,
    /// A segment of an agent's spool
    Segment,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::Message => "message",
            Self::Segment => "segment",
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    setup::provide(&[Need::Test])?;
    let targets = arguments
        .target
        .map_or_else(|| Target::value_variants().to_vec(), |target| vec![target]);
    let failed = fuzz(&targets, Duration::from_secs(60 * arguments.minutes))?;
    if failed > 0 {
        return Err(Failure::Reported.into());
    }
    Ok(())
}

/// Runs every fuzzer for a short time; gives how many found nothing, and how many found something.
pub(crate) fn run_short() -> anyhow::Result<(u64, u64)> {
    let targets = Target::value_variants();
    let failed = fuzz(targets, SHORT)?;
    Ok((targets.len() as u64 - failed, failed))
}

/// Gives the number of those that found something.
fn fuzz(targets: &[Target], time: Duration) -> anyhow::Result<u64> {
    let programs = build()?;
    let mut failed = 0;
    for target in targets {
        failed += u64::from(!run_one(&programs, *target, time)?);
    }
    Ok(failed)
}

fn crate_dir() -> PathBuf {
    workspace::root().join("collector/fuzz")
}

/// Gives the directory of the fuzzers.
fn build() -> anyhow::Result<PathBuf> {
    let target_dir = workspace::target_dir()?.join("fuzz");
    // Named, so that the flags are for the fuzzers and not for the build scripts.
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    eprintln!("building the fuzzers");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--target", &triple, "--target-dir"])
        .arg(&target_dir)
        .env("RUSTFLAGS", FLAGS)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .current_dir(crate_dir())
        .stdin(Stdio::null())
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("the fuzzers in {} cannot be built", crate_dir().display());
    }
    Ok(target_dir.join(triple).join("debug"))
}

/// Whether it found nothing.
fn run_one(programs: &Path, target: Target, time: Duration) -> anyhow::Result<bool> {
    let name = target.name();
    let found = workspace::target_dir()?.join("fuzz/corpus").join(name);
    let artifacts = crate_dir().join("artifacts").join(name);
    for folder in [&found, &artifacts] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let log_path = programs.join(format!("{name}.log"));
    let log = File::create(&log_path).with_context(|| format!("cannot write {}", log_path.display()))?;
    let status = Command::new(programs.join(name))
        .arg(format!("-max_total_time={}", time.as_secs()))
        .arg(format!("-max_len={MAX_INPUT}"))
        .arg(format!("-timeout={INPUT_TIMEOUT_S}"))
        .arg(format!("-rss_limit_mb={MAX_MEMORY_MIB}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg("-print_final_stats=1")
        // What is new goes into the first of the folders.
        .args([&found, &crate_dir().join("corpus").join(name)])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()
        .with_context(|| format!("cannot run the fuzzer {name}"))?;
    let log = String::from_utf8_lossy(&fs::read(&log_path)?).into_owned();
    if status.success() {
        eprintln!("fuzz {name}: {}", inputs(&log));
        return Ok(true);
    }
    let lines: Vec<&str> = log.lines().collect();
    eprintln!("{}", lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"));
    eprintln!(
        "FAILED: fuzz {name}: the input is in {}; run {} with it to see it again",
        artifacts.display(),
        programs.join(name).display()
    );
    Ok(false)
}

/// How many inputs a log speaks of.
fn inputs(log: &str) -> String {
    let count = log
        .lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    format!("{} inputs, nothing found", count.map_or("no", str::trim))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_inputs_is_found_in_the_log() {
        let log = "INFO: seed corpus\nstat::number_of_executed_units: 375026\nstat::peak_rss_mb: 29\n";
        assert_eq!(inputs(log), "375026 inputs, nothing found");
        assert_eq!(inputs(""), "no inputs, nothing found");
    }

    #[test]
    fn every_fuzzer_has_its_file_and_its_corpus() {
        for target in Target::value_variants() {
            let name = target.name();
            assert!(crate_dir().join(format!("fuzz_targets/{name}.rs")).is_file());
            assert!(crate_dir().join("corpus").join(name).is_dir());
        }
    }
}
