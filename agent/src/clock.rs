//! From the kernel's time to the world's: records carry CLOCK_BOOTTIME, rows carry nanoseconds since the Unix epoch.
//!
//! The offset between the two is read anew whenever the ring is drained, so a step of the wall clock takes effect
//! with the next records and never rewrites those before it.

use std::{env, fs, path::PathBuf, sync::LazyLock, time::Duration};

use rustix::time::{ClockId, Timespec, clock_gettime};

/// For tests: the name of a file that holds how many nanoseconds the agent's wall clock is to be ahead of the host's,
/// read whenever the clock is, so that a test can set one agent's clock and no other's. Without the file, or without
/// a number in it: none.
const TEST_OFFSET_VARIABLE: &str = "HOLDFAST_CLOCK_FILE";

/// A reading of the offset between the boot clock and the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Wall time minus boot time, in nanoseconds.
    offset_ns: i64,
}

impl Clock {
    /// Reads both clocks. The wall clock is read between two readings of the boot clock, whose middle it is held
    /// against: the error is below half the time that the three calls take.
    pub fn read() -> Self {
        let before = nanoseconds(clock_gettime(ClockId::Boottime));
        let wall = wall_ns();
        let after = nanoseconds(clock_gettime(ClockId::Boottime));
        Self {
            offset_ns: wall - (before + (after - before) / 2),
        }
    }

    /// A clock with a known offset.
    pub const fn with_offset_ns(offset_ns: i64) -> Self {
        Self { offset_ns }
    }

    /// Wall time minus boot time, in nanoseconds.
    pub const fn offset_ns(self) -> i64 {
        self.offset_ns
    }

    /// The wall time, in nanoseconds since the Unix epoch, of a moment of the boot clock. Zero stands for anything
    /// before 1970.
    pub fn wall_ns(self, boot_ns: u64) -> u64 {
        boot_ns.saturating_add_signed(self.offset_ns)
    }
}

/// One moment by both clocks. All times of a batch are told by the clock of one moment: a clock that is set meanwhile would
/// date some of them otherwise than the batch says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    pub clock: Clock,
    /// By the boot clock, in nanoseconds.
    pub boot_ns: u64,
}

impl Moment {
    pub fn now() -> Self {
        let clock = Clock::read();
        let boot_ns = boot_now_ns();
        Self { clock, boot_ns }
    }

    /// The wall time, in nanoseconds since the Unix epoch.
    pub fn wall_ns(self) -> u64 {
        self.clock.wall_ns(self.boot_ns)
    }

    /// The wall time of an earlier moment by the clock as it is at this one, whatever it said then.
    pub fn wall_ns_of(self, earlier: Self) -> u64 {
        self.clock.wall_ns(earlier.boot_ns)
    }
}

/// The boot clock now, in nanoseconds: the clock of the records.
pub fn boot_now_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Boottime))
        .try_into()
        .unwrap_or(0)
}

/// The wall clock now, since the Unix epoch.
pub fn wall_now() -> Duration {
    Duration::from_nanos(wall_ns().try_into().unwrap_or(0))
}

fn wall_ns() -> i64 {
    nanoseconds(clock_gettime(ClockId::Realtime)) + test_offset_ns()
}

fn test_offset_ns() -> i64 {
    static FILE: LazyLock<Option<PathBuf>> =
        LazyLock::new(|| env::var_os(TEST_OFFSET_VARIABLE).map(PathBuf::from));
    let offset = FILE.as_ref().and_then(|file| fs::read_to_string(file).ok());
    offset.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn nanoseconds(time: Timespec) -> i64 {
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_time_becomes_wall_time() {
        let clock = Clock::with_offset_ns(1_700_000_000_000_000_000);
        assert_eq!(clock.wall_ns(5), 1_700_000_000_000_000_005);
    }

    #[test]
    fn an_interval_in_which_the_clock_is_set_is_dated_by_the_clock_at_its_end() {
        let began = Moment {
            clock: Clock::with_offset_ns(1_000_000),
            boot_ns: 10,
        };
        let ended = Moment {
            clock: Clock::with_offset_ns(5_000_000),
            boot_ns: 30,
        };
        assert_eq!((ended.wall_ns_of(began), ended.wall_ns()), (5_000_010, 5_000_030));
    }

    #[test]
    fn a_wall_clock_before_1970_gives_zero() {
        assert_eq!(Clock::with_offset_ns(-10).wall_ns(5), 0);
    }

    #[test]
    fn the_reading_agrees_with_the_wall_clock() {
        let clock = Clock::read();
        let boot = nanoseconds(clock_gettime(ClockId::Boottime)) as u64;
        let now = wall_now().as_nanos() as u64;
        // Two reads apart; a second allows for any scheduling.
        assert!(clock.wall_ns(boot).abs_diff(now) < 1_000_000_000);
    }
}
