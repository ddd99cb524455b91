//! Runs long commands so that a person sees that something happens, and what went wrong if it does.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::{process, span};

/// How often a line on a terminal is drawn anew.
const REDRAW: Duration = Duration::from_millis(200);
/// How often a log (a CI, a file) gets a sign of life.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Lines of a failed command that are shown; enough for a compiler's or a package manager's last words.
const TAIL_LINES: usize = 15;

/// How a command ended, and its last lines.
pub(crate) struct Finished {
    pub(crate) succeeded: bool,
    pub(crate) tail: String,
}

/// Runs a command that takes long, under a title. Fails with the command's last lines.
pub(crate) fn run(title: &str, command: &mut Command) -> anyhow::Result<()> {
    let finished = watch(title, command)?;
    if !finished.succeeded {
        bail!(
            "{title} failed: `{}` printed\n{}",
            line_of(command),
            finished.tail
        );
    }
    Ok(())
}

/// Runs a command under a title, whatever comes of it.
pub(crate) fn watch(title: &str, command: &mut Command) -> anyhow::Result<Finished> {
    let mut tail = VecDeque::new();
    let succeeded = each_line(title, command, Duration::MAX, |line| {
        tail.push_back(line.to_owned());
        if tail.len() > TAIL_LINES {
            tail.pop_front();
        }
    })?;
    Ok(Finished {
        succeeded,
        tail: Vec::from(tail).join("\n"),
    })
}

/// Runs a command under a title and hands over the lines that it prints; gives whether it succeeded. One that takes longer
/// than `limit` is killed.
pub(crate) fn each_line(
    title: &str,
    command: &mut Command,
    limit: Duration,
    mut take: impl FnMut(&str),
) -> anyhow::Result<bool> {
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", line_of(command)))?;

    let mut display = Display::new(title, started);
    let id = child.id();
    let mut is_killed = false;
    let status = process::each_line(&mut child, |line| {
        if let Some(line) = line {
            display.latest = line.trim_end().to_owned();
            take(&display.latest);
        }
        display.draw_if_due();
        if !is_killed && started.elapsed() > limit {
            is_killed = true;
            process::kill(id);
        }
    })?;
    display.finish(status.success());
    Ok(status.success())
}

/// The command as a person would type it.
pub(crate) fn line_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// One line on a terminal that changes in place; in a log, a line at the start, now and then, and at the end.
struct Display<'a> {
    title: &'a str,
    started: Instant,
    latest: String,
    on_terminal: bool,
    interval: Duration,
    drawn: Instant,
}

impl<'a> Display<'a> {
    fn new(title: &'a str, started: Instant) -> Self {
        let on_terminal = io::stderr().is_terminal();
        let interval = if on_terminal { REDRAW } else { HEARTBEAT };
        if !on_terminal {
            eprintln!("  {title} ...");
        }
        Self {
            title,
            started,
            latest: String::new(),
            on_terminal,
            interval,
            drawn: started,
        }
    }

    fn draw_if_due(&mut self) {
        if self.drawn.elapsed() < self.interval {
            return;
        }
        self.drawn = Instant::now();
        let elapsed = span::show(self.started.elapsed());
        let latest: String = self.latest.trim().chars().take(60).collect();
        if self.on_terminal {
            eprint!("\r\x1b[2K  {} ... {elapsed}  \x1b[2m{latest}\x1b[0m", self.title);
            let _ = io::stderr().flush();
        } else {
            eprintln!("  {} ... {elapsed}  {latest}", self.title);
        }
    }

    fn finish(&self, succeeded: bool) {
        let start = if self.on_terminal { "\r\x1b[2K" } else { "" };
        let end = if succeeded { "done" } else { "failed" };
        eprintln!(
            "{start}  {} {end}  {}",
            self.title,
            span::show(self.started.elapsed())
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_failed_command_shows_its_last_words_from_both_outputs() {
        let error = run("brewing", &mut shell("echo no water; echo no beans >&2; exit 3")).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.starts_with("brewing failed: `sh -c"), "{text}");
        assert!(text.contains("no water") && text.contains("no beans"), "{text}");
    }

    #[test]
    fn a_command_ends_when_it_ends_whatever_it_leaves_running_with_its_output() {
        let started = Instant::now();
        let finished = watch("leaving", &mut shell("echo first; sleep 20 & echo $!")).unwrap();
        assert!(finished.succeeded && started.elapsed() < Duration::from_secs(10));
        let (first, left) = finished.tail.split_once('\n').unwrap();
        assert_eq!(first, "first");
        assert!(shell(&format!("kill {left}")).status().unwrap().success());
    }

    #[test]
    fn only_the_end_of_a_long_output_is_kept() {
        let finished = watch("counting", &mut shell("seq 1000")).unwrap();
        assert!(finished.succeeded);
        assert_eq!(finished.tail.lines().count(), TAIL_LINES);
        assert!(finished.tail.ends_with("1000"));
    }

    #[test]
    fn a_command_that_takes_too_long_is_killed() {
        let mut lines = 0;
        let limit = Duration::from_millis(100);
        let succeeded = each_line("dawdling", &mut shell("echo one; exec sleep 60"), limit, |_| {
            lines += 1;
        });
        assert!(!succeeded.unwrap());
        assert_eq!(lines, 1);
    }

    #[test]
    fn a_program_that_does_not_exist_is_named() {
        let error = run("nothing", &mut Command::new("/nonexistent/program")).unwrap_err();
        assert!(format!("{error:#}").contains("cannot run /nonexistent/program"));
    }
}
