//! `cargo xtask test`: everything that can be checked, in one go.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::Context;

use crate::failure::Failure;
use crate::setup::{self, Need};
use crate::{fuzz, kernel_test, process, space, span, torture, workspace};

/// Set up, then check format and lints and run every test: unit, property, integration, kernel (also on other kernels,
/// where they can be had), the fuzzers.
///
/// The last line is `N passed, N failed`; format, lints, a short torture and each other kernel count as one. The kernel tests make network
/// namespaces of their own and need root. A few tests that fail beside all the others are run once more, alone: which pass then is
/// said, and they count as passed; so it is with another kernel. Ends with 1 if anything failed, or if there was nothing to run.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run only the tests whose names contain this, and no checks of format and lints
    name: Option<String>,

    /// Leave out the checks of format and lints
    #[arg(long)]
    no_lint: bool,
}

/// If more tests fail, it is not for the noise of a busy machine.
pub(crate) const MOST_REPEATED: usize = 5;

/// What ran.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// Binaries of tests that failed, as cargo says, and have not told which tests.
    died: i64,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let started = Instant::now();
    space::check(space::TESTED)?;
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
    let unsteady = tally.test(arguments.name.as_deref())?;
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
    for name in unsteady {
        eprintln!("unsteady: {name} failed beside the other tests, and passed alone");
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

    /// Runs the tests, and those that fail once more, if they are few. Gives the names of those that passed then.
    fn test(&mut self, name: Option<&str>) -> anyhow::Result<Vec<String>> {
        let mut first = Self::default();
        let failed = first.run(&Vec::from_iter(name))?;
        let is_each_named = failed.len() as u64 == first.failed;
        if failed.is_empty() || failed.len() > MOST_REPEATED || !is_each_named {
            self.add_all(&first);
            return Ok(vec![]);
        }
        eprintln!("once more, alone: {}", failed.join(", "));
        let alone = ["--", "--exact", "--test-threads", "1"];
        let names = failed.iter().map(String::as_str);
        let mut second = Self::default();
        let failed_again = second.run(&alone.into_iter().chain(names).collect::<Vec<_>>())?;
        if second.passed + second.failed != first.failed {
            self.add_all(&first);
            return Ok(vec![]);
        }
        self.add_all(&Self {
            passed: first.passed + second.passed,
            failed: second.failed,
            died: 0,
        });
        let passed_alone = |name: &String| !failed_again.contains(name);
        Ok(failed.into_iter().filter(passed_alone).collect())
    }

    /// Runs `cargo test`, shows what it prints, and adds up the results of its binaries. Gives the names of the tests
    /// that failed.
    fn run(&mut self, arguments: &[&str]) -> anyhow::Result<Vec<String>> {
        let mut command = cargo(&["test", "--workspace", "--no-fail-fast"]);
        let mut child = command
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run cargo")?;
        let mut failures = Failures::default();
        let status = process::each_line(&mut child, |line| {
            if let Some(line) = line {
                self.add(line);
                failures.add(line);
                // Whoever reads may have seen enough; the count goes on.
                let _ = writeln!(std::io::stdout(), "{line}");
            }
        })?;
        if self.died > 0 {
            eprintln!(
                "FAILED: {} test binaries died, and not for a test that failed",
                self.died
            );
            self.failed += self.died.unsigned_abs();
        } else if !status.success() && self.failed == 0 {
            eprintln!("FAILED: cargo test ended without a result: something does not compile");
            self.failed += 1;
        }
        Ok(failures.names)
    }

    fn add_all(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }

    /// Counts a line such as `test result: ok. 5 passed; 0 failed; 1 ignored; ...`; other lines say nothing.
    pub(crate) fn add(&mut self, line: &str) {
        // Of every binary that ends with another code than 0, also of those that a signal ended.
        self.died += i64::from(line.starts_with("error: test failed, to rerun pass"));
        self.died -= i64::from(line.starts_with("test result: FAILED. "));
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

/// The tests that failed, as libtest lists them at the end of each binary.
#[derive(Default)]
struct Failures {
    names: Vec<String>,
    /// What stands in the list so far that is being read.
    listed: Option<Vec<String>>,
}

impl Failures {
    fn add(&mut self, line: &str) {
        if line == "failures:" {
            // The first such list is of their output, the second of their names.
            self.listed = Some(vec![]);
        } else if line.starts_with("test result: ") {
            self.names.extend(self.listed.take().unwrap_or_default());
        } else if let (Some(listed), Some(name)) = (&mut self.listed, line.strip_prefix("    "))
            && !name.contains(' ')
        {
            listed.push(name.to_owned());
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
        let expected = Tally {
            passed: 8,
            failed: 2,
            // Cargo's line about it is not among these.
            died: -1,
        };
        assert_eq!(tally, expected);
    }

    #[test]
    fn a_binary_that_ends_badly_without_a_failed_test_is_counted() {
        let mut tally = Tally::default();
        for line in [
            "test result: FAILED. 5 passed; 2 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.20s",
            "error: test failed, to rerun pass `-p a --test it`",
            "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "error: test failed, to rerun pass `-p b --test it`",
        ] {
            tally.add(line);
        }
        assert_eq!((tally.failed, tally.died), (2, 1));
    }

    #[test]
    fn the_tests_that_failed_are_known_by_name() {
        let mut failures = Failures::default();
        for line in [
            "test a::b ... FAILED",
            "failures:",
            "",
            "---- a::b stdout ----",
            "    a_word_that_the_test_printed",
            "",
            "failures:",
            "    a::b",
            "    c::d",
            "",
            "test result: FAILED. 5 passed; 2 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.20s",
            "    no_name",
        ] {
            failures.add(line);
        }
        assert_eq!(failures.names, ["a::b", "c::d"]);
    }
}
