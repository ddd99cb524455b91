//! `cargo xtask kernel-test`: the agent and its programs against real kernels.
//!
//! The checks are the agent's own tests of its kernel side (`agent/tests/it`), the very binary that `cargo test` runs:
//! they load the programs as the agent does, make real connections and calls in namespaces of their own, and compare to the
//! event. Without `--vm` they run on the running kernel. With it a Debian kernel is booted for each series that is named:
//! [`kernels`] gets it, [`image`] packs what the tests need into its first file system, [`guest`] is its first process, and
//! [`machine`] boots it and reads its console.

pub(crate) mod guest;
mod image;
mod kernels;
mod machine;
mod sources;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::failure::Failure;
use crate::setup::{self, Need};
use crate::{process, span, workspace};

use kernels::Kernel;
use machine::Report;

/// The series that the test command runs on beside the running kernel: one that is too old, which has to be said, the oldest
/// that is supported, and the newest that Debian has of another year.
const SERIES: [Series; 3] = [Series(5, 10), Series(6, 1), Series(7, 2)];

/// The oldest kernels that the programs can run on, by what they need: see `agent/src/check.rs`. On older ones it is tried
/// that the agent says so.
const NEEDED: Series = Series(5, 12);

/// The checks: modules of `agent/tests/it`. The others of its tests are about delivery, which no kernel changes.
const CHECKS: [&str; 11] = [
    "accepts::",
    "announce::",
    "control::",
    "denied::",
    "outcomes::",
    "portability::",
    "probe::",
    "survey::",
    "syscalls::",
    "transitions::",
    "witness::",
];

/// The part of them that the test command runs: all that the verifier has to accept, and what each hook sees.
const BRIEF: [&str; 7] = [
    "announce::a_connection",
    "denied::",
    "outcomes::",
    "portability::",
    "survey::",
    "syscalls::calls_",
    "transitions::each_step",
];

/// How often a machine is booted again for tests that failed there, which emulation makes some do now and then.
const REPETITIONS: usize = 2;

/// What is tried on a kernel that is too old.
const REFUSAL: [&str; 1] = ["portability::"];

/// Tests that are left out under emulation, which is slow and keeps no time.
const NOT_EMULATED: [&str; 2] = [
    // Two thousand processes take a minute.
    "two_thousand_processes_are_all_counted_and_their_slots_come_back",
    // Compares latencies with a clock outside.
    "every_call_is_measured_when_all_are_asked_for_and_its_latency_is_true",
];

/// Run the checks of the kernel side on the running kernel, or on others in virtual machines.
///
/// They are the agent's tests that load its BPF programs: outcomes, announcements, surveys, syscalls, counters and the
/// witness, and what `holdfast-agent check` says. Each kernel is one row of the table at the end. A machine that ends before
/// its tests do is booted again, and where a few fail, for these alone: which pass then count as passed, and are named.
///
/// Debian's kernels and qemu come through apt, from the mirrors that this machine knows, into the cache directory; nothing is
/// installed. Ends with 1 if a check failed, and with 4 if a kernel could not be had or booted.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Kernel series to boot, such as 5.10,6.1,6.12,7.2; Debian's newest of each
    #[arg(long, value_name = "SERIES", value_delimiter = ',')]
    vm: Vec<Series>,

    /// Only the part of the checks that `cargo xtask test` runs on other kernels
    #[arg(long, conflicts_with = "name")]
    brief: bool,

    /// Only the checks whose names contain this
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

/// The first two numbers of a kernel's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Series(u32, u32);

impl fmt::Display for Series {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", self.0, self.1)
    }
}

impl FromStr for Series {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split_once('.')
            .and_then(|(major, minor)| Some(Self(major.parse().ok()?, minor.parse().ok()?)))
            .ok_or_else(|| format!("`{text}` is not a kernel series such as 6.1"))
    }
}

/// What became of one kernel.
struct Row {
    kernel: String,
    report: Report,
    took: Duration,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    setup::provide(&[Need::Build, Need::Test])?;
    let checks: &[&str] = if arguments.brief { &BRIEF } else { &CHECKS };
    let checks = filters(checks, arguments.name.as_deref())?;
    if arguments.vm.is_empty() {
        return run_here(&checks);
    }
    let mut series = arguments.vm.clone();
    series.sort_unstable();
    series.dedup();
    let (kernels, qemu) = provide(&series)?;
    let kernels = kernels.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let rows = boot_all(&kernels, &qemu, &checks)?;
    show(&rows);
    let failed: Vec<&str> = rows
        .iter()
        .filter(|row| !row.report.is_good())
        .map(|row| row.kernel.as_str())
        .collect();
    if !failed.is_empty() {
        return Err(Failure::Check(format!("failed on {}", failed.join(", "))).into());
    }
    Ok(())
}

/// What the test command runs: gives how many kernels passed, and how many failed. Of what cannot be had it says why, and
/// counts nothing.
pub(crate) fn run_among_tests() -> anyhow::Result<(u64, u64)> {
    let (kernels, qemu) = match provide(&SERIES) {
        Ok(provided) => provided,
        Err(error) => {
            eprintln!("skipped: other kernels: {error:#}");
            return Ok((0, 0));
        }
    };
    let mut found = Vec::new();
    for kernel in kernels {
        match kernel {
            Ok(kernel) => found.push(kernel),
            Err(error) => eprintln!("skipped: {error:#}"),
        }
    }
    if found.is_empty() {
        return Ok((0, 0));
    }
    let rows = boot_all(&found, &qemu, &filters(&BRIEF, None)?)?;
    show(&rows);
    let passed = rows.iter().filter(|row| row.report.is_good()).count() as u64;
    Ok((passed, rows.len() as u64 - passed))
}

/// The emulator, and the kernels of these series or why they cannot be had.
fn provide(series: &[Series]) -> anyhow::Result<(Vec<anyhow::Result<Kernel>>, machine::Qemu)> {
    if !cfg!(target_arch = "x86_64") {
        bail!("Debian's kernels are booted on x86-64 only");
    }
    let cache = setup::cache_dir()?.join("kernels");
    let qemu = machine::Qemu::provide(&cache)?;
    Ok((kernels::provide(series, &cache), qemu))
}

fn run_here(checks: &[String]) -> anyhow::Result<()> {
    if !process::is_root() {
        bail!("needs root, to load BPF programs and make network namespaces");
    }
    let tests = build()?.tests;
    let mut command = Command::new(&tests);
    command.args(checks);
    let status = command
        .current_dir(workspace::root().join("agent"))
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {}", tests.display()))?;
    if !status.success() {
        return Err(Failure::Reported.into());
    }
    Ok(())
}

/// Runs these checks on each kernel, or what can be tried on one that is too old.
fn boot_all(kernels: &[Kernel], qemu: &machine::Qemu, checks: &[String]) -> anyhow::Result<Vec<Row>> {
    let programs = build()?;
    let folder = workspace::target_dir()?.join("kernel-test");
    let base = image::base(&programs.all(), &folder)?;
    let mut rows = Vec::new();
    for kernel in kernels {
        let mut tests = if kernel.series < NEEDED {
            filters(&REFUSAL, None)?
        } else {
            checks.to_vec()
        };
        for test in NOT_EMULATED {
            tests.extend(["--skip".to_owned(), test.to_owned()]);
        }
        let started = Instant::now();
        let boot = |arguments: &[String]| {
            let initrd = image::complete(&base, kernel, &programs.tests, arguments, &folder)?;
            machine::boot(qemu, kernel, &initrd)
        };
        let mut report = boot(&tests)?;
        for _ in 0..REPETITIONS {
            if report.is_good() {
                break;
            }
            report = if let Some(failed) = report.few_failed() {
                eprintln!("{kernel}: {report}; once more, alone");
                let alone: Vec<String> = ["--exact".to_owned()]
                    .into_iter()
                    .chain(failed.iter().cloned())
                    .collect();
                let alone = boot(&alone)?;
                report.repeated(alone)
            } else {
                eprintln!("{kernel}: {report}; once more");
                boot(&tests)?
            };
        }
        eprintln!("{kernel}: {report}  {}", span::show(started.elapsed()));
        rows.push(Row {
            kernel: kernel.to_string(),
            report,
            took: started.elapsed(),
        });
    }
    Ok(rows)
}

/// What libtest is told to run.
fn filters(checks: &[&str], name: Option<&str>) -> anyhow::Result<Vec<String>> {
    let Some(name) = name else {
        return Ok(checks.iter().map(|&check| check.to_owned()).collect());
    };
    if name.starts_with('-') {
        bail!("{name:?} is no part of a name");
    }
    Ok(vec![name.to_owned()])
}

/// What runs on the other kernels.
struct Programs {
    tests: PathBuf,
    agent: PathBuf,
}

impl Programs {
    fn all(&self) -> [&Path; 2] {
        [&self.tests, &self.agent]
    }
}

/// Builds the agent and its tests; nothing is done if they were built before.
fn build() -> anyhow::Result<Programs> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        // Of the whole workspace, as the test command builds it: alone, the agent has other features and is built anew.
        .args(["test", "--workspace", "--test", "it", "--no-run"])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(workspace::root())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("the agent's tests cannot be built");
    }
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let program =
        |target: &str| executable(&messages, target).with_context(|| format!("cargo built no {target}"));
    Ok(Programs {
        tests: program("it")?,
        agent: program("holdfast-agent")?,
    })
}

/// Where cargo says that it put a target's program.
fn executable(messages: &str, target: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact" && message["target"]["name"] == target)
        .filter(|message| {
            let manifest = message["manifest_path"].as_str().unwrap_or_default();
            Path::new(manifest).ends_with("agent/Cargo.toml")
        })
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

/// The table, as it stands in docs/KERNELS.md.
fn show(rows: &[Row]) {
    println!("\n| kernel | result | seconds |\n|---|---|---|");
    for row in rows {
        println!("| {} | {} | {} |", row.kernel, row.report, row.took.as_secs());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_two_numbers() {
        assert_eq!("6.12".parse(), Ok(Series(6, 12)));
        assert!(Series(6, 1) < Series(6, 12) && Series(5, 10) < NEEDED);
        for text in ["", "6", "six.one", "6.1.2", "6.x"] {
            assert!(text.parse::<Series>().is_err(), "{text}");
        }
    }

    #[test]
    fn every_check_is_a_module_of_the_agents_tests_and_every_exception_one_of_its_tests() {
        let folder = workspace::root().join("agent/tests/it");
        let source = |module: &str| std::fs::read_to_string(folder.join(module).with_extension("rs"));
        let sources: Vec<String> = CHECKS
            .iter()
            .map(|check| source(check.trim_end_matches("::")).unwrap())
            .collect();
        for check in BRIEF {
            let (module, _) = check.split_once("::").unwrap();
            assert!(CHECKS.contains(&format!("{module}::").as_str()), "{check}");
        }
        for test in NOT_EMULATED {
            assert!(
                sources
                    .iter()
                    .any(|source| source.contains(&format!("fn {test}()"))),
                "{test}"
            );
        }
    }

    #[test]
    fn cargo_says_where_a_program_is() {
        let messages = r#"{"reason":"compiler-artifact","manifest_path":"/w/collector/Cargo.toml","target":{"name":"it"},"executable":"/t/it-2"}
            {"reason":"compiler-artifact","manifest_path":"/w/agent/Cargo.toml","target":{"name":"it"},"executable":null}
            {"reason":"compiler-artifact","manifest_path":"/w/agent/Cargo.toml","target":{"name":"it"},"executable":"/t/it-1"}
            {"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages, "it"), Some("/t/it-1".into()));
        assert_eq!(executable(messages, "agent"), None);
    }
}
