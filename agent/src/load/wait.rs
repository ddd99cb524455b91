//! Sleeping until sockets have something to say or a moment is near, to the nanosecond.
//!
//! epoll_wait() sleeps for whole milliseconds, and rounds them up; epoll_pwait2(), which does not, came with Linux 5.11, and what a
//! container's filter of system calls does not know it may end the process for. So whole milliseconds are left to
//! epoll_wait(), rounded down, and what is less to ppoll(), which every kernel takes nanoseconds from.

use std::{io, os::fd::OwnedFd};

use rustix::{
    buffer::spare_capacity,
    event::{PollFd, PollFlags, Timespec, epoll, poll},
    io::Errno,
};

use super::worker::monotonic_ns;

const MILLISECOND_NS: u64 = 1_000_000;

/// Waits for events, `timeout_ns` at most, and appends those that came to `events`, as many as it has room for. May return
/// without one before the time is over: when a signal came, and when less than a millisecond is left. Gives how long it slept, in
/// nanoseconds: not at all if something was there already.
///
/// # Errors
/// If `epoll` is none.
pub(super) fn wait(epoll: &OwnedFd, events: &mut Vec<epoll::Event>, timeout_ns: u64) -> io::Result<u64> {
    let before = events.len();
    take(epoll, events, 0)?;
    if timeout_ns == 0 || events.len() > before {
        return Ok(0);
    }
    let begin_ns = monotonic_ns();
    if timeout_ns >= MILLISECOND_NS {
        take(epoll, events, timeout_ns / MILLISECOND_NS * MILLISECOND_NS)?;
        return Ok(monotonic_ns() - begin_ns);
    }
    let mut ready = [PollFd::new(epoll, PollFlags::IN)];
    let polled = poll(&mut ready, Some(&timespec(timeout_ns)));
    let slept_ns = monotonic_ns() - begin_ns;
    match polled {
        Ok(0) | Err(Errno::INTR) => {}
        Ok(_) => take(epoll, events, 0)?,
        Err(error) => return Err(error.into()),
    }
    Ok(slept_ns)
}

/// Appends the events that come within whole milliseconds.
fn take(epoll: &OwnedFd, events: &mut Vec<epoll::Event>, timeout_ns: u64) -> io::Result<()> {
    match epoll::wait(epoll, spare_capacity(events), Some(&timespec(timeout_ns))) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn timespec(ns: u64) -> Timespec {
    Timespec {
        tv_sec: (ns / 1_000_000_000) as i64,
        tv_nsec: (ns % 1_000_000_000) as i64,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use rustix::event::EventfdFlags;

    use super::*;

    #[test]
    fn less_than_a_millisecond_is_slept_exactly_and_an_event_ends_it() {
        rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1)).unwrap();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let socket = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        epoll::add(
            &epoll,
            &socket,
            epoll::EventData::new_u64(7),
            epoll::EventFlags::IN,
        )
        .unwrap();
        let mut events = Vec::with_capacity(4);
        let mut sleep = |timeout_ns| {
            let begin = Instant::now();
            let slept = Duration::from_nanos(wait(&epoll, &mut events, timeout_ns).unwrap());
            let passed = begin.elapsed();
            assert!(slept <= passed, "{slept:?} of {passed:?}");
            (
                slept,
                events.drain(..).map(|event| event.data.u64()).collect::<Vec<_>>(),
            )
        };
        // Of many the shortest: the machine may be busy. Rounded up, none would be below a millisecond.
        let slept = (0..200).map(|_| sleep(100_000).0).min().unwrap();
        assert!(
            slept >= Duration::from_micros(100) && slept < Duration::from_micros(900),
            "{slept:?}"
        );
        // Of more than that the rest is left to the next turn.
        let slept = (0..50).map(|_| sleep(2_900_000).0).min().unwrap();
        assert!(
            slept >= Duration::from_micros(1_900) && slept < Duration::from_micros(2_900),
            "{slept:?}"
        );
        rustix::io::write(&socket, &1_u64.to_ne_bytes()).unwrap();
        for timeout_ns in [0, 500_000_000, 999_999] {
            assert_eq!(sleep(timeout_ns), (Duration::ZERO, vec![7]), "{timeout_ns}");
        }
    }
}
