//! Reading what the agent costs: its process from /proc and the process' own clock, its programs from the kernel's BPF
//! statistics, which cost something themselves and are switched on for moments only.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::Duration,
};

use aya::{
    programs::ProgramFd,
    sys::{Stats, enable_stats},
};
use holdfast_proto::v1::ProgramRuns;
use rustix::time::{ClockId, clock_gettime};

/// CPU time of this process so far.
pub fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    // A clock of CPU time is never negative.
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Memory of this process that is resident, maps of the kernel's tables included.
///
/// # Errors
/// If /proc cannot be read.
pub fn resident_bytes() -> io::Result<u64> {
    // `VmRSS:     1234 kB` (proc_pid_status(5)).
    let status = fs::read_to_string("/proc/self/status")?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.parse::<u64>().ok())
        .map(|kib| kib * 1024)
        .ok_or_else(|| io::Error::other("/proc/self/status has no VmRSS"))
}

/// The programs, by name.
pub struct Programs(Vec<(String, ProgramFd)>);

/// What the kernel counted of a program so far: only while the statistics are on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    runs: u64,
    run_ns: u64,
}

/// The kernel measures for as long as this lives.
pub struct Measuring {
    /// `None` where the system has it on for good.
    _switch: Option<OwnedFd>,
    before: Vec<Counted>,
}

impl Programs {
    pub fn new(programs: Vec<(String, ProgramFd)>) -> Self {
        Self(programs)
    }

    /// Has the kernel measure from here on (`BPF_ENABLE_STATS`, Linux 5.8; it needs CAP_SYS_ADMIN).
    ///
    /// # Errors
    /// If the kernel does not allow it, and does not measure anyway.
    pub fn measure(&self) -> io::Result<Measuring> {
        let switch = match enable_stats(Stats::RunTime) {
            Ok(switch) => Some(switch),
            Err(_) if is_always_on() => None,
            Err(error) => return Err(error.io_error),
        };
        Ok(Measuring {
            _switch: switch,
            before: self.counted(),
        })
    }

    /// What was measured since then, of the programs that ran.
    pub fn measured(&self, measuring: &Measuring) -> Vec<ProgramRuns> {
        let since = self.counted().into_iter().zip(&measuring.before);
        let runs = self
            .0
            .iter()
            .zip(since)
            .map(|((name, _), (now, before))| ProgramRuns {
                name: name.clone(),
                runs: now.runs.saturating_sub(before.runs),
                run_ns: now.run_ns.saturating_sub(before.run_ns),
            });
        runs.filter(|program| program.runs > 0).collect()
    }

    fn counted(&self) -> Vec<Counted> {
        self.0.iter().map(|(_, program)| counted(program)).collect()
    }
}

/// `run_time_ns` and `run_cnt` (bpf_prog_show_fdinfo, kernel/bpf/syscall.c). They only grow, so that what cannot be read is
/// no run.
fn counted(program: &ProgramFd) -> Counted {
    let path = format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd());
    let info = fs::read_to_string(path).unwrap_or_default();
    parsed(&info)
}

fn parsed(info: &str) -> Counted {
    let number = |name: &str| {
        info.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok())
            .unwrap_or_default()
    };
    Counted {
        runs: number("run_cnt"),
        run_ns: number("run_time_ns"),
    }
}

/// The administrator can have the kernel measure all the time.
fn is_always_on() -> bool {
    fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled").is_ok_and(|text| text.trim() == "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_has_memory_and_takes_time() {
        assert!(resident_bytes().expect("/proc") > 1 << 20);
        assert!(cpu_time() > Duration::ZERO);
    }

    #[test]
    fn what_the_kernel_counted_is_read_from_its_lines() {
        let info = "pos:\t0\nprog_type:\t26\nrun_time_ns:\t91500\nrun_cnt:\t1000\nrecursion_misses:\t0\n";
        assert_eq!(
            parsed(info),
            Counted {
                runs: 1_000,
                run_ns: 91_500
            }
        );
        assert_eq!(parsed("prog_type:\t26\n"), Counted::default());
    }
}
