//! Child processes, and what may be asked about this one.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Pid, Signal, geteuid, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// How long a child may take to end after SIGTERM, before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(15);
/// After this long without a line it is looked whether the child still runs.
const QUIET: Duration = Duration::from_millis(200);
/// What a service is started by: each replaces itself by the next, the last by the program.
const LAUNCHERS: [&str; 2] = ["ip", "setpriv"];
/// How long a child may take to become its program; a busy machine takes long.
const EXEC_PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether it has.
const EXEC_TICK: Duration = Duration::from_millis(2);
/// Lines of a child's log that explain why it ended.
const LOG_LINES: usize = 8;

pub(crate) fn is_root() -> bool {
    geteuid().is_root()
}

/// A flag that Ctrl-C, SIGTERM and the terminal's end set.
pub(crate) fn stop_on_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, stop.clone())?;
    }
    Ok(stop)
}

/// A program on the PATH, or where Debian puts those for administrators.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let administrators = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(administrators)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// Hands over what a child prints to its pipes, line by line as it comes, and nothing (`None`) now and then while
/// nothing does. Returns once the child has ended, even if what it left running keeps its output open.
pub(crate) fn each_line(child: &mut Child, mut take: impl FnMut(Option<&str>)) -> anyhow::Result<ExitStatus> {
    let (lines, received) = mpsc::channel();
    forward_lines(child.stdout.take(), lines.clone());
    forward_lines(child.stderr.take(), lines);
    loop {
        match received.recv_timeout(QUIET) {
            Ok(line) => take(Some(&line)),
            Err(RecvTimeoutError::Timeout) => {
                take(None);
                if let Some(status) = child.try_wait()? {
                    return Ok(status);
                }
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(child.wait()?),
        }
    }
}

/// Ends a child at once.
pub(crate) fn kill(id: u32) {
    if let Some(pid) = i32::try_from(id).ok().and_then(Pid::from_raw) {
        // It may have ended by itself; until it is waited for, the number is its own.
        let _ = kill_process(pid, Signal::KILL);
    }
}

fn forward_lines(source: Option<impl Read + Send + 'static>, lines: mpsc::Sender<String>) {
    let Some(source) = source else { return };
    thread::spawn(move || {
        for line in BufReader::new(source).split(b'\n').map_while(Result::ok) {
            if lines.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                // Nobody wants to know any more.
                break;
            }
        }
    });
}

/// A program that runs beside us, in its own process group (Ctrl-C reaches only us, who then stop the children in
/// their order), and that the kernel ends when we die without having stopped it.
pub(crate) struct Service {
    name: String,
    child: Child,
    log: Option<PathBuf>,
}

/// Where a service runs, and where what it prints goes.
#[derive(Default)]
pub(crate) struct Place<'a> {
    /// The name of a network namespace; ours if none.
    pub(crate) netns: Option<&'a str>,
    /// A file for its output; inherited if none.
    pub(crate) log: Option<PathBuf>,
    /// Whether the log goes on behind what an earlier start wrote.
    pub(crate) continues_log: bool,
}

impl Service {
    /// Must be called on the main thread: the kernel takes the end of the starting thread for our death.
    pub(crate) fn start(
        name: &str,
        program: &Path,
        arguments: &[String],
        place: Place<'_>,
    ) -> anyhow::Result<Self> {
        let mut command = match place.netns {
            None => Command::new("setpriv"),
            Some(netns) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", netns, "setpriv"]);
                command
            }
        };
        command
            .args(["--pdeathsig", "TERM", "--"])
            .arg(program)
            .args(arguments);
        command.stdin(Stdio::null()).process_group(0);
        if let Some(log) = &place.log {
            let file = OpenOptions::new()
                .create(true)
                .write(true)
                .append(place.continues_log)
                .truncate(!place.continues_log)
                .open(log)
                .with_context(|| format!("cannot write {}", log.display()))?;
            command.stdout(file.try_clone()?).stderr(file);
        }
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {name} ({})", program.display()))?;
        let mut service = Self {
            name: name.to_owned(),
            child,
            log: place.log,
        };
        service.wait_until_it_runs()?;
        Ok(service)
    }

    /// Waits until the child has become its program, or has ended: before, `setpriv` may not have asked the kernel yet to end
    /// it with us, and it would outlive us if we died now.
    fn wait_until_it_runs(&mut self) -> anyhow::Result<()> {
        let running = PathBuf::from(format!("/proc/{}/exe", self.pid()));
        let is_on_its_way = |program: PathBuf| {
            LAUNCHERS
                .iter()
                .any(|&launcher| program.file_name() == Some(OsStr::new(launcher)))
        };
        let started = Instant::now();
        while fs::read_link(&running).is_ok_and(is_on_its_way) && self.child.try_wait()?.is_none() {
            anyhow::ensure!(
                started.elapsed() < EXEC_PATIENCE,
                "{} does not start: it is not its program yet after {} s",
                self.name,
                EXEC_PATIENCE.as_secs()
            );
            thread::sleep(EXEC_TICK);
        }
        Ok(())
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// `ip netns exec` and `setpriv` replace themselves, so this is the program's own.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// CPU time that it has used so far, in user and kernel mode.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        let path = format!("/proc/{}/stat", self.pid());
        let stat = fs::read_to_string(&path).with_context(|| format!("{} is gone", self.name))?;
        // The name, in parentheses, may contain anything. Behind it, utime and stime are the 12th and 13th field.
        let (_, fields) = stat
            .rsplit_once(") ")
            .with_context(|| format!("cannot read {path}"))?;
        let ticks: u64 = fields
            .split(' ')
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse::<u64>().ok())
            .sum();
        Ok(Duration::from_secs_f64(
            ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
        ))
    }

    /// Memory that it occupies now.
    pub(crate) fn resident_bytes(&self) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/status", self.pid());
        let status = fs::read_to_string(&path).with_context(|| format!("{} is gone", self.name))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        Ok(kibibytes.with_context(|| format!("{path} has no VmRSS"))? << 10)
    }

    /// Why it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok()??;
        Some(format!("{} ended ({status}){}", self.name, self.last_words()))
    }

    /// Ends it without a word (SIGKILL), whatever it is doing, and gives how it ended.
    pub(crate) fn kill(mut self) -> anyhow::Result<ExitStatus> {
        self.child.kill()?;
        Ok(self.child.wait()?)
    }

    /// Stops it where it is (SIGSTOP), until [`Self::resume`].
    pub(crate) fn pause(&self) -> anyhow::Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), Signal::STOP)?)
    }

    /// Lets it go on (SIGCONT); nothing happens if it was not paused.
    pub(crate) fn resume(&self) -> anyhow::Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), Signal::CONT)?)
    }

    /// Asks it to end and waits; a child that does not listen is killed, and that is an error.
    pub(crate) fn stop(mut self) -> anyhow::Result<ExitStatus> {
        self.end().with_context(|| format!("cannot stop {}", self.name))
    }

    fn end(&mut self) -> anyhow::Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        // A paused one hears nothing.
        self.resume()?;
        let asked = Instant::now();
        while asked.elapsed() < STOP_PATIENCE {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(20));
        }
        self.child.kill()?;
        self.child.wait()?;
        anyhow::bail!(
            "it did not end within {} s of SIGTERM and was killed",
            STOP_PATIENCE.as_secs()
        )
    }

    fn last_words(&self) -> String {
        let Some(log) = &self.log else {
            return String::new();
        };
        let text = fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
        format!("; the end of {}:\n{}", log.display(), last.join("\n"))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // After `stop` there is nothing left to do; otherwise something failed, and that is what gets reported.
        let _ = self.end();
    }
}
