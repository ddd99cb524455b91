//! `cargo xtask test`: everything that can be checked, in one go.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::Context;

use crate::failure::Failure;
use crate::setup::{self, Need};
use crate::{fuzz, kernel_test, process, span, torture, workspace};

/// Set up, then check format and lints and run every test: unit, property, integration, kernel (also on other kernels,
/// where they can be had), the fuzzers.
///
/// The last line is `N passed, N failed`; format, lints, a short torture and each other kernel count as one. The kernel tests make network
/// namespaces of their own and need root. Ends with 1 if anything failed, or if there was nothing to run.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run only the tests whose names contain this, and no checks of format and lints
    name: Option<String>,

    /// Leave out the checks of format and lints
    #[arg(long)]
    no_lint: bool,
}

/// What ran.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let started = Instant::now();
    setup::provide(&[Need::Build, Need::Up, Need::Test])?;
    if !process::is_root() {
        eprintln!("note: not root; the kernel tests will fail");
    }

    let mut tally = Tally::default();
    if arguments.name.is_none() && !arguments.no_lint {
        tally.check(&["fmt", "--all", "--check"])?;
        tally.check(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ])?;
    }
    tally.test(arguments.name.as_deref())?;
    if arguments.name.is_none() {
        tally.kernels();
        tally.torture();
        tally.fuzz();
    }

    if tally == Tally::default() {
        eprintln!(
            "no test is called {:?}",
            arguments.name.as_deref().unwrap_or_default()
        );
    }
    eprintln!("took {}", span::show(started.elapsed()));
    writeln!(
        std::io::stdout(),
        "{} passed, {} failed",
        tally.passed,
        tally.failed
    )?;
    if tally.failed > 0 || tally.passed == 0 {
        Err(Failure::Reported.into())
    } else {
        Ok(())
    }
}

impl Tally {
    /// Runs every fuzzer for some seconds.
    fn fuzz(&mut self) {
        match fuzz::run_short() {
            Ok((passed, failed)) => {
                self.passed += passed;
                self.failed += failed;
            }
            Err(error) => {
                eprintln!("FAILED: fuzz: {error:#}");
                self.failed += 1;
            }
        }
    }

    /// The kernel tests on other kernels, each of which counts as one.
    fn kernels(&mut self) {
        match kernel_test::run_among_tests() {
            Ok((passed, failed)) => {
                self.passed += passed;
                self.failed += failed;
            }
            Err(error) => {
                eprintln!("FAILED: cargo xtask kernel-test: {error:#}");
                self.failed += 1;
            }
        }
    }

    fn check(&mut self, arguments: &[&str]) -> anyhow::Result<()> {
        let status = cargo(arguments).status().context("cannot run cargo")?;
        if status.success() {
            self.passed += 1;
        } else {
            eprintln!("FAILED: cargo {}", arguments.join(" "));
            self.failed += 1;
        }
        Ok(())
    }

    /// Everything at once, for half a minute.
    fn torture(&mut self) {
        match torture::briefly() {
            Ok(()) => self.passed += 1,
            Err(error) => {
                eprintln!("FAILED: cargo xtask torture: {error:#}");
                self.failed += 1;
            }
        }
    }

    /// Runs the tests, shows what they print, and adds up the results of their binaries.
    fn test(&mut self, name: Option<&str>) -> anyhow::Result<()> {
        let mut command = cargo(&["test", "--workspace", "--no-fail-fast"]);
        let mut child = command
            .args(name)
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run cargo")?;
        let failed_before = self.failed;
        let status = process::each_line(&mut child, |line| {
            if let Some(line) = line {
                self.add(line);
                // Whoever reads may have seen enough; the count goes on.
                let _ = writeln!(std::io::stdout(), "{line}");
            }
        })?;
        if !status.success() && self.failed == failed_before {
            eprintln!(
                "FAILED: cargo test ended without a result: something does not compile, or a test binary died"
            );
            self.failed += 1;
        }
        Ok(())
    }

    /// Counts a line such as `test result: ok. 5 passed; 0 failed; 1 ignored; ...`; other lines say nothing.
    pub(crate) fn add(&mut self, line: &str) {
        let Some(counts) = line
            .strip_prefix("test result: ")
            .and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for count in counts.1.split("; ") {
            match count
                .split_once(' ')
                .map(|(number, what)| (number.parse::<u64>(), what))
            {
                Some((Ok(number), "passed")) => self.passed += number,
                Some((Ok(number), "failed")) => self.failed += number,
                _ => {}
            }
        }
    }
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(arguments)
        .current_dir(workspace::root())
        .stdin(Stdio::null());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_binaries_add_up_and_other_lines_count_for_nothing() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "test a_test_that_prints ... test result: 9 passed",
            "test result: FAILED. 5 passed; 2 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.20s",
            "",
        ] {
            tally.add(line);
        }
        assert_eq!(tally, Tally { passed: 8, failed: 2 });
    }
}
