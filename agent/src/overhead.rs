//! What the agent itself costs, an interval a row: CPU time of its process and of its programs, memory, and how full the
//! ring was. From a thread of its own; what goes beyond the [`budget`] has a step taken, which is in the row that saw it.

pub mod budget;
pub mod meter;

use std::{
    io,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use holdfast_proto::v1::{self, OverheadRows, ProgramRuns, Stream, batch};

use self::{
    budget::{Budget, Step, Watched},
    meter::Programs,
};
use crate::{clock::Moment, counters::Counters, seal::Sealer, spool::Spool};

/// Of an interval, the part in which the kernel measures the programs: one in so many. It costs two looks at the clock for
/// each run, 20 to 40 ns.
const MEASURED_ONE_IN: u32 = 20;

/// The part is another one of each interval, so that what comes at regular times is not always in it, or never.
const PARTS_ORDER: u32 = 7;

/// What a thread needs that tells what the agent costs.
pub struct Meter {
    pub programs: Programs,
    /// How long an interval is.
    pub interval: Duration,
    pub ring_bytes: u64,
    pub cpus: u32,
    /// `None`: nothing is ever given up.
    pub budget: Option<Budget>,
    /// Gives up what a step says, or takes it back.
    pub switch: Box<dyn FnMut(Step) + Send>,
    /// What there is to give up.
    pub watched: Box<dyn Fn() -> Watched + Send>,
    pub sealer: Sealer,
}

/// The thread, for as long as it is not stopped.
pub struct Overhead {
    thread: JoinHandle<()>,
    stop: mpsc::Sender<()>,
}

impl Overhead {
    /// Starts it. Its rows go into the spool as batches of this start of the agent.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(mut meter: Meter, spool: Arc<Spool>, counters: Arc<Counters>) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let thread = thread::Builder::new().name("overhead".into()).spawn(move || {
            let started = Instant::now();
            let mut index = 0;
            let mut said = Said::default();
            // It ends when it is told to, and when the agent is gone.
            while let Some((mut row, ended)) = meter.observe(&stopped, index, &counters, &mut said) {
                meter.judge(&mut row, started.elapsed());
                index = index.wrapping_add(1);
                let columns = batch::Columns::Overhead(OverheadRows { intervals: vec![row] });
                spool.append_new(meter.sealer.seal(Stream::Overhead, 1, ended, columns));
            }
        })?;
        Ok(Self { thread, stop })
    }

    /// Ends the thread.
    pub fn finish(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!("the thread that tells what the agent costs panicked");
        }
    }
}

/// What the log was told already.
#[derive(Default)]
struct Said {
    unmeasured: bool,
}

impl Meter {
    /// One interval, and when it ended; `None` once the thread is stopped.
    fn observe(
        &self,
        stopped: &mpsc::Receiver<()>,
        index: u32,
        counters: &Counters,
        said: &mut Said,
    ) -> Option<(v1::Overhead, Moment)> {
        let wait = |time| stopped.recv_timeout(time) == Err(mpsc::RecvTimeoutError::Timeout);
        let (began, began_cpu) = (Moment::now(), meter::cpu_time());
        let part = self.interval / MEASURED_ONE_IN;
        let before = part * (index.wrapping_mul(PARTS_ORDER) % MEASURED_ONE_IN);
        if !wait(before) {
            return None;
        }
        let (programs, measured) = self.measure(|| wait(part), said)?;
        if !wait(self.interval.saturating_sub(before + part)) {
            return None;
        }
        let ended = Moment::now();
        let row = v1::Overhead {
            began_ns: ended.wall_ns_of(began),
            ended_ns: ended.wall_ns(),
            cpus: self.cpus,
            agent_cpu_ns: (meter::cpu_time() - began_cpu).as_nanos() as u64,
            measured_ns: measured.as_nanos() as u64,
            programs,
            resident_bytes: meter::resident_bytes().unwrap_or_default(),
            ring_bytes: self.ring_bytes,
            ring_peak_bytes: counters.take_ring_peak(),
            ..v1::Overhead::default()
        };
        Some((row, ended))
    }

    /// Has the kernel measure while `wait` lasts, and gives for how long that was. `None` if it was cut short.
    fn measure(&self, wait: impl FnOnce() -> bool, said: &mut Said) -> Option<(Vec<ProgramRuns>, Duration)> {
        let measuring = match self.programs.measure() {
            Ok(measuring) => measuring,
            Err(error) => {
                if !std::mem::replace(&mut said.unmeasured, true) {
                    tracing::warn!(
                        "what the programs cost is not known: {error}; it needs CAP_SYS_ADMIN, or the setting \
                         kernel.bpf_stats_enabled = 1"
                    );
                }
                return wait().then(|| (Vec::new(), Duration::ZERO));
            }
        };
        let began = Instant::now();
        let is_whole = wait();
        let programs = self.programs.measured(&measuring);
        is_whole.then(|| (programs, began.elapsed()))
    }

    /// Judges the interval by the budget, if there is one, and says in its row what came of it.
    fn judge(&mut self, row: &mut v1::Overhead, now: Duration) {
        let watched = (self.watched)();
        let Some(budget) = &mut self.budget else {
            let step = Step::Full.to_string();
            (row.step, row.next_step) = (step.clone(), step);
            return;
        };
        let before = budget.step();
        let share = share(row);
        let most = budget.most();
        row.budget_ppm = (most * 1e6).round() as u32;
        let next = budget.judge(now, share, watched);
        let step = next.unwrap_or(before);
        (row.step, row.next_step) = (before.to_string(), step.to_string());
        if next.is_some() {
            let (share, most) = (share * 100.0, most * 100.0);
            if step > before {
                tracing::warn!(
                    "the agent and its programs take {share:.2}% of the CPU time, more than --max-cpu {most}%: \
                     {before} -> {step}"
                );
            } else {
                tracing::info!(
                    "the agent and its programs take {share:.2}% of the CPU time: {before} -> {step}"
                );
            }
            (self.switch)(step);
        }
    }
}

/// The share of the machine's CPU time that an interval took: what was measured of the programs, taken for all of it.
fn share(row: &v1::Overhead) -> f64 {
    let interval_ns = (row.ended_ns - row.began_ns) as f64;
    let programs_ns: u64 = row.programs.iter().map(|program| program.run_ns).sum();
    let programs = if row.measured_ns == 0 {
        0.0
    } else {
        programs_ns as f64 / row.measured_ns as f64
    };
    let agent = if interval_ns == 0.0 {
        0.0
    } else {
        row.agent_cpu_ns as f64 / interval_ns
    };
    (agent + programs) / f64::from(row.cpus.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_in_a_part_counts_for_the_whole() {
        let row = v1::Overhead {
            began_ns: 5,
            ended_ns: 10_000_000_005,
            cpus: 2,
            agent_cpu_ns: 100_000_000,
            measured_ns: 500_000_000,
            programs: vec![
                ProgramRuns {
                    name: "a".into(),
                    runs: 1,
                    run_ns: 10_000_000,
                };
                2
            ],
            ..v1::Overhead::default()
        };
        assert!((share(&row) - (0.01 + 0.04) / 2.0).abs() < 1e-9);
        let unmeasured = v1::Overhead {
            measured_ns: 0,
            programs: Vec::new(),
            ..row
        };
        assert!((share(&unmeasured) - 0.005).abs() < 1e-9);
    }
}
