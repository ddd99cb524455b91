//! Whether a thread of the generator had time left. In a closed loop no attempt is late, since the next one is due when one is
//! done: where the thread is what everything waits for, that shows nowhere but in its latencies, which are its own then. Payload that
//! goes back and forth is such a loop on each connection, whenever that was due.
//!
//! Time left is what the thread slept until something came or was due, or watched the clock for. All else it was busy: it ran, or it
//! would have, and another thread, an interrupt or another machine on the same CPU did.

use std::{fs::File, os::unix::fs::FileExt, time::Duration};

use rustix::time::ClockId;

use super::worker::{monotonic_ns, nanoseconds};

/// A thread that was busy for this share of an interval had no time left. What happens to a socket waits
/// meanwhile for what happened before: of 100 events that come at random one waits for `ln(100 * share) / (1 - share)` times what
/// handling one takes (M/M/1), which is 91 times at 0.95. Of 10 us each that is the millisecond from which an attempt of an
/// open loop counts as late, and of a hundred one may be that.
const SATURATED: f64 = 0.95;

/// Of one thread, since the run's start.
#[derive(Debug, Default)]
pub struct Saturation {
    /// What is looked at, and what it was in the intervals in which the thread had no time left.
    pub watched: Duration,
    pub saturated: Duration,
    /// Absent: nothing is watched.
    last: Option<Reading>,
    /// Absent where the kernel has none: then what it waited for a CPU once something had come is not known.
    schedstat: Option<File>,
    slept_ns: u64,
    spun_ns: u64,
}

/// Nanoseconds: by the monotonic clock, on a CPU, and in a CPU's queue; asleep until something came, and watching the clock.
#[derive(Clone, Copy, Debug)]
struct Reading {
    at_ns: u64,
    ran_ns: u64,
    waited_ns: u64,
    slept_ns: u64,
    spun_ns: u64,
}

impl Saturation {
    /// Watches the calling thread from now on, which has said before that it will.
    pub fn begin(&mut self) {
        self.last = Some(self.read());
    }

    /// Gets ready to watch the calling thread.
    pub fn prepare(&mut self) {
        self.schedstat = File::open("/proc/thread-self/schedstat").ok();
    }

    /// The thread slept until something came or was due.
    pub fn slept(&mut self, ns: u64) {
        self.slept_ns += ns;
    }

    /// The thread watched the clock, and nothing came nor was due.
    pub fn spun(&mut self, ns: u64) {
        self.spun_ns += ns;
    }

    /// The interval since the last look says nothing.
    pub fn skip(&mut self) {
        if self.last.is_some() {
            self.last = Some(self.read());
        }
    }

    /// Looks at the interval since the last look; by the same thread.
    pub fn look(&mut self) {
        if self.last.is_some() {
            let now = self.read();
            self.add(now);
        }
    }

    fn add(&mut self, now: Reading) {
        let Some(before) = self.last.replace(now) else {
            return;
        };
        let since = |of: fn(&Reading) -> u64| of(&now).saturating_sub(of(&before));
        let passed_ns = since(|reading| reading.at_ns);
        // The kernel's account of the thread lacks what interrupts, softirqs and other machines took of its CPU (update_rq_clock_task,
        // kernel/sched/core.c). A sleep has what the thread waited for a CPU at its end, which the account has.
        let awake_ns = passed_ns.saturating_sub(since(|reading| reading.slept_ns));
        let by_account_ns = since(|reading| reading.ran_ns) + since(|reading| reading.waited_ns);
        let busy_ns = awake_ns
            .max(by_account_ns)
            .saturating_sub(since(|reading| reading.spun_ns));
        let passed = Duration::from_nanos(passed_ns);
        self.watched += passed;
        if passed_ns > 0 && busy_ns as f64 >= passed_ns as f64 * SATURATED {
            self.saturated += passed;
        }
    }

    fn read(&self) -> Reading {
        let mut text = [0; 128];
        let read = self.schedstat.as_ref().map(|file| file.read_at(&mut text, 0));
        let bytes = read.and_then(Result::ok).unwrap_or(0);
        Reading {
            at_ns: monotonic_ns(),
            ran_ns: nanoseconds(ClockId::ThreadCPUTime),
            waited_ns: waited_ns(&text[..bytes]).unwrap_or(0),
            slept_ns: self.slept_ns,
            spun_ns: self.spun_ns,
        }
    }
}

/// The second of the numbers of /proc/PID/schedstat: nanoseconds in a CPU's queue (proc_pid_schedstat, fs/proc/base.c).
fn waited_ns(schedstat: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(schedstat).ok()?;
    text.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_hardly_slept_or_waited_for_a_cpu_had_no_time_left() {
        let mut saturation = Saturation::default();
        let mut ms = [0_u64; 5];
        let mut pass = |passed: u64, ran: u64, waited: u64, slept: u64, spun: u64| {
            for (sum, more) in ms.iter_mut().zip([passed, ran, waited, slept, spun]) {
                *sum += more * 1_000_000;
            }
            let [at_ns, ran_ns, waited_ns, slept_ns, spun_ns] = ms;
            let before = (saturation.watched, saturation.saturated);
            saturation.add(Reading {
                at_ns,
                ran_ns,
                waited_ns,
                slept_ns,
                spun_ns,
            });
            let since = (saturation.watched - before.0, saturation.saturated - before.1);
            (since.0.as_millis(), since.1.as_millis())
        };
        assert_eq!(pass(0, 0, 0, 0, 0), (0, 0));
        assert_eq!(pass(200, 180, 0, 20, 0), (200, 0));
        assert_eq!(pass(200, 198, 0, 2, 0), (200, 200));
        // Something had come, and it had no CPU: that was no sleep any more.
        assert_eq!(pass(100, 20, 78, 80, 0), (100, 100));
        assert_eq!(pass(100, 20, 30, 80, 0), (100, 0));
        // It had no CPU in between: its sleeps were sleeps.
        assert_eq!(pass(100, 40, 40, 20, 0), (100, 0));
        // Softirqs, or other machines, took half of its CPU.
        assert_eq!(pass(200, 90, 8, 2, 0), (200, 200));
        // It watched the clock, for nothing.
        assert_eq!(pass(200, 198, 0, 2, 100), (200, 0));
        assert_eq!(pass(0, 0, 0, 0, 0), (0, 0));
    }

    #[test]
    fn an_interval_that_says_nothing_is_none() {
        let mut saturation = Saturation::default();
        saturation.prepare();
        saturation.begin();
        std::thread::sleep(Duration::from_millis(20));
        saturation.skip();
        saturation.look();
        assert!(saturation.watched < Duration::from_millis(20), "{saturation:?}");
        // Nobody has begun.
        let mut saturation = Saturation::default();
        saturation.skip();
        saturation.look();
        assert_eq!(saturation.watched, Duration::ZERO);
    }

    #[test]
    fn the_time_in_a_queue_is_the_second_number() {
        assert_eq!(waited_ns(b"120 4711 3\n"), Some(4711));
        assert_eq!(waited_ns(b""), None);
        // Where nothing was to be had all is zero, and only the thread's own time counts.
        assert_eq!(waited_ns(b"0 0 0\n"), Some(0));
    }
}
