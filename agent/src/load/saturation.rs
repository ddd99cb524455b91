//! Whether a thread of the generator had time left. In a closed loop no attempt is late, since the next one is due when one is
//! done: where the thread is what everything waits for, that shows nowhere but in its latencies, which are its own then.

use std::{fs::File, os::unix::fs::FileExt, time::Duration};

use rustix::time::ClockId;

use super::worker::{monotonic_ns, nanoseconds};

/// A thread that ran, or waited for a CPU, for this share of an interval had no time left. What happens to a socket waits
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
    last: Option<Reading>,
    /// Absent where the kernel has none: then only what the thread ran counts.
    schedstat: Option<File>,
}

/// Nanoseconds: by the monotonic clock, on a CPU, and in a CPU's queue.
#[derive(Clone, Copy, Debug)]
struct Reading {
    at_ns: u64,
    ran_ns: u64,
    waited_ns: u64,
}

impl Saturation {
    /// Watches the calling thread from now on.
    pub fn begin(&mut self) {
        self.schedstat = File::open("/proc/thread-self/schedstat").ok();
        self.last = Some(self.read());
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
        let passed_ns = now.at_ns.saturating_sub(before.at_ns);
        let busy_ns =
            now.ran_ns.saturating_sub(before.ran_ns) + now.waited_ns.saturating_sub(before.waited_ns);
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
    fn who_ran_or_waited_for_a_cpu_nearly_all_the_time_had_none_left() {
        let mut saturation = Saturation::default();
        let mut ms = [0_u64; 3];
        let mut pass = |passed: u64, ran: u64, waited: u64| {
            for (sum, more) in ms.iter_mut().zip([passed, ran, waited]) {
                *sum += more * 1_000_000;
            }
            let [at_ns, ran_ns, waited_ns] = ms;
            saturation.add(Reading {
                at_ns,
                ran_ns,
                waited_ns,
            });
            (saturation.watched.as_millis(), saturation.saturated.as_millis())
        };
        assert_eq!(pass(0, 0, 0), (0, 0));
        assert_eq!(pass(200, 180, 0), (200, 0));
        assert_eq!(pass(200, 198, 0), (400, 200));
        assert_eq!(pass(100, 20, 78), (500, 300));
        assert_eq!(pass(100, 20, 30), (600, 300));
        assert_eq!(pass(0, 0, 0), (600, 300));
    }

    #[test]
    fn the_time_in_a_queue_is_the_second_number() {
        assert_eq!(waited_ns(b"120 4711 3\n"), Some(4711));
        assert_eq!(waited_ns(b""), None);
        // Where nothing was to be had all is zero, and only the thread's own time counts.
        assert_eq!(waited_ns(b"0 0 0\n"), Some(0));
    }
}
