//! A virtual machine without any device but its console: boots a kernel, and reads there how the tests ended.

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use super::guest::{COMPLAINT, END, RESULT};
use super::kernels::{Kernel, unpack_all};
use crate::test::{MOST_REPEATED, Tally};
use crate::{process, progress, setup, workspace};

/// Longer than any kernel needs on a busy machine; one that takes so long hangs.
const PATIENCE: Duration = Duration::from_secs(1_500);

/// How often a machine that ends before its tests is started. Emulated kernels crash now and then, which says nothing of the
/// tests.
const BOOTS: u32 = 2;

/// Of the console's last lines, so many are shown when a machine ended too early.
const LAST_LINES: usize = 15;

/// The emulator, and where it finds its parts.
pub(super) struct Qemu {
    program: PathBuf,
    /// What was unpacked instead of installed: the libraries and the firmware.
    root: Option<PathBuf>,
}

impl Qemu {
    const PROGRAM: &str = "qemu-system-x86_64";

    /// The one that is installed, or else Debian's, unpacked into the cache.
    pub(super) fn provide(cache: &Path) -> anyhow::Result<Self> {
        if let Some(program) = process::find_program(Self::PROGRAM) {
            return Ok(Self { program, root: None });
        }
        let root = cache.join("qemu");
        if !root.is_dir() {
            let scratch = setup::scratch_beside(&root);
            let packages = scratch.join("packages");
            fs::create_dir_all(packages.join("partial"))
                .with_context(|| format!("cannot make {}", packages.display()))?;
            let unpacked = setup::debian::fetch(&["qemu-system-x86"], &packages)
                .and_then(|()| unpack_all(&packages, &scratch.join("root")))
                .and_then(|()| Ok(fs::rename(scratch.join("root"), &root)?));
            let _ = fs::remove_dir_all(&scratch);
            unpacked
                .with_context(|| format!("there is no {} (Debian package qemu-system-x86)", Self::PROGRAM))?;
        }
        Ok(Self {
            program: root.join("usr/bin").join(Self::PROGRAM),
            root: Some(root),
        })
    }

    fn command(&self) -> Command {
        // It ends when we are killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(&self.program);
        if let Some(root) = &self.root {
            let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|path| root.join(path));
            command.env(
                "LD_LIBRARY_PATH",
                std::env::join_paths(libraries).unwrap_or_default(),
            );
            for folder in ["usr/share/qemu", "usr/share/seabios"] {
                command.arg("-L").arg(root.join(folder));
            }
        }
        command
    }
}

/// How the tests ended on one kernel.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    passed: u64,
    failed: Vec<String>,
    /// Failed beside the others, and passed alone.
    unsteady: Vec<String>,
    /// What the kernel had to say about them.
    complaints: Vec<String>,
    /// The exit code of the tests; `None`: the machine ended before them.
    code: Option<i32>,
}

impl Report {
    /// Reads a console. `None` if the machine ended before its tests did.
    fn read(console: &[String]) -> Option<Self> {
        let mut report = Self::default();
        let mut tally = Tally::default();
        let mut is_complete = false;
        for line in console {
            tally.add(line);
            if let Some(code) = line.strip_prefix(RESULT) {
                report.code = code.trim().parse().ok();
            } else if let Some(complaint) = line.strip_prefix(COMPLAINT) {
                report.complaints.push(complaint.trim().to_owned());
            } else if let Some(name) = line
                .strip_prefix("test ")
                .and_then(|rest| rest.strip_suffix(" ... FAILED"))
            {
                report.failed.push(name.to_owned());
            }
            is_complete |= line == END;
        }
        report.passed = tally.passed;
        (is_complete && report.code.is_some()).then_some(report)
    }

    /// The tests to try once more, alone: if more failed, or the kernel complained, that says nothing.
    pub(super) fn few_failed(&self) -> Option<&[String]> {
        let is_few = (1..=MOST_REPEATED).contains(&self.failed.len());
        (is_few && self.complaints.is_empty()).then_some(&self.failed)
    }

    /// What is known once those that failed have been tried alone.
    pub(super) fn repeated(mut self, alone: Self) -> Self {
        if alone.code.is_none() {
            return self;
        }
        let passed_now = |name: &String| !alone.failed.contains(name);
        self.unsteady
            .extend(self.failed.iter().filter(|name| passed_now(name)).cloned());
        Self {
            passed: self.passed + alone.passed,
            unsteady: self.unsteady,
            ..alone
        }
    }

    /// Everything that ran passed, and something ran.
    pub(super) fn is_good(&self) -> bool {
        self.code == Some(0) && self.passed > 0 && self.failed.is_empty() && self.complaints.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} passed, {} failed", self.passed, self.failed.len())?;
        if !self.failed.is_empty() {
            write!(out, ": {}", self.failed.join(", "))?;
        }
        if !self.unsteady.is_empty() {
            write!(out, " (unsteady, passed alone: {})", self.unsteady.join(", "))?;
        }
        match self.code {
            Some(0 | 101) => {}
            Some(code) => write!(out, "; the tests ended with {code}")?,
            None => write!(out, "; the machine ended before the tests")?,
        }
        if let Some(complaint) = self.complaints.first() {
            write!(out, "; the kernel complained: {complaint}")?;
        }
        Ok(())
    }
}

/// Boots the kernel until its tests end. What they say about failures goes to stderr; the whole console is kept beside the
/// initrd.
pub(super) fn boot(qemu: &Qemu, kernel: &Kernel, initrd: &Path) -> anyhow::Result<Report> {
    let log = initrd.with_extension("log");
    for boot in 1..=BOOTS {
        let console = console(qemu, kernel, initrd, &log)?;
        if let Some(report) = Report::read(&console) {
            if !report.is_good() {
                eprintln!("{}", console.join("\n"));
            }
            return Ok(report);
        }
        let last = &console[console.len().saturating_sub(LAST_LINES)..];
        eprintln!(
            "{kernel}: the machine ended before its tests, at start {boot} of {BOOTS}; its console ({}) ends in\n{}",
            log.display(),
            last.join("\n")
        );
    }
    Ok(Report::default())
}

/// Everything that a machine prints until it is off.
fn console(qemu: &Qemu, kernel: &Kernel, initrd: &Path, log: &Path) -> anyhow::Result<Vec<String>> {
    let mut command = qemu.command();
    command
        // Without cx16 (cmpxchg16b), which qemu 7.2 emulates wrongly with several threads: kernels crash at random.
        .args([
            "-machine",
            "q35",
            "-cpu",
            "max,-cx16",
            "-accel",
            "tcg,thread=multi",
        ])
        .args([
            "-smp",
            "2",
            "-m",
            "1024",
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
        ])
        .args(["-display", "none", "-serial", "stdio", "-kernel"])
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initrd)
        // Whether the timer works is not measured: on a busy machine, it does not in time.
        .arg("-append")
        .arg(format!(
            "console=ttyS0 quiet panic=-1 no_timer_check rdinit={} -- guest",
            workspace::own_program()?.display()
        ));
    let mut file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut lines = Vec::new();
    progress::each_line(&format!("testing on {kernel}"), &mut command, PATIENCE, |line| {
        let _ = writeln!(file, "{line}");
        lines.push(line.to_owned());
    })?;
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(passed: u64, failed: &[&str], code: Option<i32>) -> Report {
        Report {
            passed,
            failed: failed.iter().map(|&name| name.to_owned()).collect(),
            code,
            ..Report::default()
        }
    }

    #[test]
    fn what_passes_alone_has_passed_and_is_named() {
        let first = report(24, &["a::b", "c::d"], Some(101));
        assert_eq!(first.few_failed().unwrap(), ["a::b", "c::d"]);

        // A machine that ended before the tests did says nothing of them.
        let still = first.repeated(Report::default());
        assert!(!still.is_good());
        let second = still.repeated(report(1, &["c::d"], Some(101)));
        assert!(!second.is_good());
        let third = second.repeated(report(1, &[], Some(0)));
        assert!(third.is_good());
        assert_eq!(
            third.to_string(),
            "26 passed, 0 failed (unsteady, passed alone: a::b, c::d)"
        );
    }

    #[test]
    fn many_failures_and_what_the_kernel_complains_of_are_no_noise() {
        let names: Vec<String> = (0..=MOST_REPEATED).map(|number| format!("a::{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert!(report(1, &names, Some(101)).few_failed().is_none());
        assert!(report(1, &[], Some(0)).few_failed().is_none());
        let complained = Report {
            complaints: vec!["BUG".into()],
            ..report(1, &["a::b"], Some(101))
        };
        assert!(complained.few_failed().is_none());
    }
}
