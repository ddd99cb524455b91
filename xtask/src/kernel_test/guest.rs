//! The first process of a machine: makes it a system that the tests can run in, runs them, says how they ended on the console,
//! and turns the machine off. It is this program, with other arguments.

use std::convert::Infallible;
use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use rustix::fs::OFlags;
use rustix::mount::{MountFlags, mount};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::system::{RebootCommand, finit_module, reboot};

use crate::process;

/// Where the modules lie that are loaded first.
pub(super) const MODULES: &str = "/modules";

/// Where it is written what to run.
pub(super) const PLAN: &str = "/plan";

/// Files that the tests may have open; some hold ten thousand sockets.
const OPEN_FILES: u64 = 20_000;

/// The line that says how the tests ended, before its number.
pub(super) const RESULT: &str = "RESULT";

/// A line of the kernel's log that should not be there.
pub(super) const COMPLAINT: &str = "KERNEL";

/// The last line: what comes before it is complete.
pub(super) const END: &str = "END OF TESTS";

/// Run as the first process of a machine of `kernel-test`.
#[derive(clap::Args)]
pub(crate) struct Arguments {}

/// What is run.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
    /// In which folder.
    pub(super) folder: PathBuf,
}

impl Plan {
    /// A word on each line: the program, the folder, the arguments.
    pub(super) fn encode(&self) -> String {
        let first = [&self.program, &self.folder].map(|path| path.display().to_string());
        let words = first.iter().chain(&self.arguments);
        words.map(|word| format!("{word}\n")).collect()
    }

    fn decode(text: &str) -> Option<Self> {
        let mut words = text.lines();
        Some(Self {
            program: words.next()?.into(),
            folder: words.next()?.into(),
            arguments: words.map(str::to_owned).collect(),
        })
    }
}

pub(crate) fn run(_: &Arguments) -> anyhow::Result<()> {
    if std::process::id() != 1 {
        bail!("this is the first process of a machine that kernel-test boots");
    }
    if let Err(error) = prepare().and_then(|()| test()) {
        println!("error: {error:#}");
    }
    let never: Result<Infallible, _> = turn_off();
    never.map(|_| ())
}

fn prepare() -> anyhow::Result<()> {
    // Nothing over /tmp: the project may lie there, and the first file system is in memory as it is.
    for (kind, place) in [
        (c"proc", "/proc"),
        (c"sysfs", "/sys"),
        (c"devtmpfs", "/dev"),
        (c"tmpfs", "/run"),
        (c"cgroup2", "/sys/fs/cgroup"),
    ] {
        mount(kind, place, kind, MountFlags::empty(), None::<&CStr>)
            .with_context(|| format!("cannot mount {place}"))?;
    }
    let files = Some(OPEN_FILES);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: files,
            maximum: files,
        },
    )
    .context("cannot raise the limit of open files")?;
    for entry in fs::read_dir(MODULES).into_iter().flatten().flatten() {
        load(&entry.path())?;
    }
    Ok(())
}

/// Loads a module; the kernel unpacks it where it is packed (CONFIG_MODULE_DECOMPRESS, 5.17).
fn load(module: &Path) -> anyhow::Result<()> {
    // MODULE_INIT_COMPRESSED_FILE, include/uapi/linux/module.h
    const PACKED: i32 = 4;
    let flags = if module.extension().is_some_and(|extension| extension == "xz") {
        PACKED
    } else {
        0
    };
    let file = File::open(module)?;
    finit_module(&file, c"", flags).with_context(|| format!("cannot load {}", module.display()))
}

fn test() -> anyhow::Result<()> {
    let plan = Plan::decode(&fs::read_to_string(PLAN)?).context("no plan")?;
    let mut log = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open("/dev/kmsg")
        .context("cannot read the kernel's log")?;
    // What was logged before the tests is not theirs.
    complaints(&mut log);
    let mut child = Command::new(&plan.program)
        .args(&plan.arguments)
        .current_dir(&plan.folder)
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", plan.program.display()))?;
    let status = process::each_line(&mut child, |line| {
        if let Some(line) = line {
            println!("{line}");
        }
    })?;
    for complaint in complaints(&mut log) {
        println!("{COMPLAINT} {complaint}");
    }
    // None: a signal ended them.
    println!("{RESULT} {}", status.code().unwrap_or(-1));
    println!("{END}");
    Ok(())
}

/// What the kernel complained about since the last time. That it had to wait is no complaint: emulated, it does.
fn complaints(log: &mut File) -> Vec<String> {
    let mut found = Vec::new();
    let mut record = [0; 8192];
    // One record a read; at its end there is nothing to wait for (EAGAIN), and one that was overwritten is skipped (EPIPE).
    loop {
        match log.read(&mut record) {
            Ok(0) => return found,
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&record[..bytes]).into_owned();
                found.extend(complaint(&text).map(str::to_owned));
            }
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            Err(_) => return found,
        }
    }
}

/// The message of a record (`priority,sequence,time,flags;message`), if it is a complaint.
fn complaint(record: &str) -> Option<&str> {
    let message = record.split_once(';')?.1.lines().next()?;
    let is_complaint = ["BUG: ", "WARNING: ", "Oops: ", "general protection"]
        .iter()
        .any(|begin| message.starts_with(begin));
    let is_about_waiting = ["soft lockup", "workqueue lockup", "stall"]
        .iter()
        .any(|word| message.contains(word));
    (is_complaint && !is_about_waiting).then_some(message)
}

fn turn_off() -> anyhow::Result<Infallible> {
    reboot(RebootCommand::PowerOff).context("cannot turn the machine off")?;
    bail!("the machine is off")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_read_as_it_was_written() {
        let plan = Plan {
            program: "/t/it-1".into(),
            arguments: vec!["probe::".into(), "--skip".into(), "slow".into()],
            folder: "/w/agent".into(),
        };
        assert_eq!(Plan::decode(&plan.encode()), Some(plan));
        assert_eq!(Plan::decode("/t/it-1"), None);
    }

    #[test]
    fn the_kernel_complains_about_what_is_wrong_and_not_about_waiting() {
        for (record, expected) in [
            (
                "4,1,2,-;WARNING: CPU: 0 PID: 1 at x.c\n",
                Some("WARNING: CPU: 0 PID: 1 at x.c"),
            ),
            (
                "1,1,2,-;BUG: kernel NULL pointer dereference\n SUBSYSTEM=x",
                Some("BUG: kernel NULL pointer dereference"),
            ),
            ("0,1,2,-;watchdog: BUG: soft lockup - CPU#0 stuck\n", None),
            ("0,1,2,-;BUG: workqueue lockup - pool\n", None),
            ("6,1,2,-;eth0: link up\n", None),
            ("nonsense", None),
        ] {
            assert_eq!(complaint(record), expected, "{record}");
        }
    }
}
