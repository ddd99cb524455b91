//! How an attempt ended, and how a connection was lost, by the errno that the kernel gave. Pure.

use rustix::io::Errno;

/// How an attempt to connect ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    Established,
    Refused,
    /// By the plan's own limit or by the kernel's.
    TimedOut,
    Reset,
    Unreachable,
    /// This machine has no file descriptor or memory left for it: the generator's limit.
    LocalFiles,
    /// No local port is free: the generator's limit.
    LocalPorts,
    /// A policy of this machine forbids it.
    LocalFilter,
    /// The run ended before it was decided.
    Abandoned,
    /// Another error.
    Failed,
}

impl Outcome {
    pub const ALL: [Self; 10] = [
        Self::Established,
        Self::Refused,
        Self::TimedOut,
        Self::Reset,
        Self::Unreachable,
        Self::LocalFiles,
        Self::LocalPorts,
        Self::LocalFilter,
        Self::Abandoned,
        Self::Failed,
    ];

    /// What connect(), or the socket's error, says.
    pub fn of(errno: Errno) -> Self {
        match errno {
            Errno::CONNREFUSED => Self::Refused,
            Errno::TIMEDOUT => Self::TimedOut,
            Errno::CONNRESET | Errno::PIPE => Self::Reset,
            Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::HOSTDOWN | Errno::NETDOWN => Self::Unreachable,
            Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS => Self::LocalFiles,
            Errno::ADDRNOTAVAIL | Errno::ADDRINUSE => Self::LocalPorts,
            Errno::PERM | Errno::ACCESS => Self::LocalFilter,
            _ => Self::Failed,
        }
    }

    /// Whether the machine that makes the load was the reason, so that it says nothing of the target.
    pub fn is_local_limit(self) -> bool {
        matches!(self, Self::LocalFiles | Self::LocalPorts | Self::LocalFilter)
    }
}

/// How an established connection ended without our doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Loss {
    ClosedByPeer,
    ResetByPeer,
    /// What was sent was never acknowledged, or the answer did not come in time.
    TimedOut,
    Unreachable,
    Failed,
}

impl Loss {
    pub const ALL: [Self; 5] = [
        Self::ClosedByPeer,
        Self::ResetByPeer,
        Self::TimedOut,
        Self::Unreachable,
        Self::Failed,
    ];

    /// What read() or write() says.
    pub fn of(errno: Errno) -> Self {
        match errno {
            Errno::CONNRESET | Errno::PIPE => Self::ResetByPeer,
            Errno::TIMEDOUT => Self::TimedOut,
            Errno::HOSTUNREACH | Errno::NETUNREACH => Self::Unreachable,
            _ => Self::Failed,
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Answer {
    /// With the status and the body that were expected.
    Expected,
    UnexpectedStatus,
    UnexpectedBody,
    /// The answer did not come in time.
    TimedOut,
    /// The connection ended before the answer was complete.
    Lost,
    /// What came was no answer.
    Malformed,
    /// It found no connection: none came about, or none had room in time.
    Unsent,
    /// The run ended before.
    Abandoned,
    /// Of a datagram: its target said that nothing listens on the port.
    Refused,
    /// Of a datagram: somebody on the way said that its target cannot be reached.
    Unreachable,
}

impl Answer {
    pub const ALL: [Self; 10] = [
        Self::Expected,
        Self::UnexpectedStatus,
        Self::UnexpectedBody,
        Self::TimedOut,
        Self::Lost,
        Self::Malformed,
        Self::Unsent,
        Self::Abandoned,
        Self::Refused,
        Self::Unreachable,
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_this_machine_is_no_fault_of_the_target() {
        for errno in [Errno::MFILE, Errno::ADDRNOTAVAIL, Errno::PERM] {
            assert!(Outcome::of(errno).is_local_limit(), "{errno:?}");
        }
        for errno in [Errno::CONNREFUSED, Errno::TIMEDOUT, Errno::HOSTUNREACH] {
            assert!(!Outcome::of(errno).is_local_limit(), "{errno:?}");
        }
    }
}
