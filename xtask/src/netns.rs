//! Network namespaces of this run, and the end of those that dead runs left behind.
//!
//! Every name is `hf-<pid>-<what>`, so a namespace whose process no longer lives can be told from one in use.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

const PREFIX: &str = "hf-";
/// How long what a dead run left in a namespace may take to end after SIGTERM.
const LEFTOVER_PATIENCE: Duration = Duration::from_secs(3);

/// A namespace with its loopback up, which is removed when this goes out of scope.
#[derive(Debug)]
pub(crate) struct Netns {
    name: String,
}

impl Netns {
    pub(crate) fn create(what: &str) -> anyhow::Result<Self> {
        let name = format!("{PREFIX}{}-{what}", std::process::id());
        ip(&["netns", "add", &name])?;
        let netns = Self { name };
        netns.ip(&["link", "set", "lo", "up"])?;
        Ok(netns)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Where it is bound to.
    pub(crate) fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// Runs `ip` inside.
    pub(crate) fn ip(&self, arguments: &[&str]) -> anyhow::Result<()> {
        ip(&[&["-netns", &self.name], arguments].concat())
    }

    /// Sets a `net.*` parameter inside, by its path below `/proc/sys`.
    pub(crate) fn set(&self, parameter: &str, value: &str) -> anyhow::Result<()> {
        let script = r#"printf %s "$2" > "/proc/sys/$1""#;
        ip(&[
            "netns", "exec", &self.name, "sh", "-c", script, "sh", parameter, value,
        ])
    }

    /// A command that will run inside.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "delete", &self.name]) {
            eprintln!(
                "warning: the network namespace {} stays behind: {error:#}",
                self.name
            );
        }
    }
}

/// Runs `ip`; what it complains about is the error.
pub(crate) fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .context("cannot run ip (Debian package iproute2)")?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("`ip {}` failed: {}", arguments.join(" "), complaint.trim());
    }
    Ok(())
}

/// Ends what earlier runs left in their namespaces when they were killed, and removes those.
pub(crate) fn remove_leftovers() -> anyhow::Result<()> {
    // No directory: no namespace was ever made.
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(owner) = owner_of(&name) else { continue };
        if is_xtask(owner) {
            continue;
        }
        eprintln!("removing the network namespace {name}, whose run (process {owner}) is gone");
        end_processes_in(&name)?;
        ip(&["netns", "delete", &name])?;
    }
    Ok(())
}

/// The process that made a namespace of ours.
fn owner_of(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split_once('-')?.0.parse().ok()
}

/// Process ids are used again: another program under the number means that ours is gone.
pub(crate) fn is_xtask(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == "xtask")
}

fn end_processes_in(netns: &str) -> anyhow::Result<()> {
    let asked = Instant::now();
    loop {
        let output = Command::new("ip").args(["netns", "pids", netns]).output()?;
        let pids = String::from_utf8_lossy(&output.stdout).into_owned();
        let pids: Vec<Pid> = pids
            .lines()
            .filter_map(|pid| Pid::from_raw(pid.trim().parse().ok()?))
            .collect();
        if pids.is_empty() {
            return Ok(());
        }
        let signal = if asked.elapsed() < LEFTOVER_PATIENCE {
            Signal::TERM
        } else {
            Signal::KILL
        };
        for pid in pids {
            // It may have ended since it was listed.
            let _ = kill_process(pid, signal);
        }
        thread::sleep(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_ours_have_an_owner() {
        assert_eq!(owner_of("hf-812-bridge"), Some(812));
        assert_eq!(owner_of("hf-812-node-1"), Some(812));
        for name in ["hf-", "hf-812", "hf-x-1", "web-812-1", "hf--1-2"] {
            assert_eq!(owner_of(name), None, "{name}");
        }
    }
}
