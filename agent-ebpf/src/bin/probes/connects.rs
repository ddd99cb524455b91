//! What is known only where a call returns: why connect() came to nothing, and when accept() took a connection.
//!
//! connect() calls that come to nothing before a SYN leaves: there is no route, no free port, or a policy forbids it.
//!
//! The states of such a socket tell little: it stays closed (tcp_v4_connect() looks for a route before SYN_SENT), or is
//! closed again, and its error is known to the caller alone. So it is read where the call returns. A call that
//! succeeds passes by after one comparison; everything here is paid for by those that fail.
//!
//! An error of connect() may also be of an attempt that the state hook has followed, in this call or, for a socket that
//! does not wait, in an earlier one. The hook tells by the socket's cookie: it leaves what it knows of an attempt that
//! failed until the caller has fetched the error.

use core::ptr;

use aya_ebpf::{
    bindings::BPF_ANY,
    helpers::{bpf_get_current_pid_tgid, bpf_probe_read_kernel, bpf_probe_read_user},
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray},
};
use holdfast_agent_ebpf::{
    counter::Counter,
    event::{ConnectionRecord, attribution, flag, role, state, step, step_offset_ns, step_state},
    limits::{FAILED_ATTEMPTS, UNSENT_ATTEMPTS},
    offset::{ABSENT, Member},
    syscall::{Abi, NO_NUMBER, watcher},
};

use crate::{
    control,
    counters::{count, count_beside, look_up},
    kernel::{Foreign, Regs, Task, current_process, is_observed, now_ns, offset},
    ring,
    syscalls::abi,
    table,
};

/// Attempts that failed and whose error no connect() has fetched yet, by cookie. Many never are (getsockopt() fetches
/// them too): the oldest go. What is forgotten too early can be taken for another attempt only if its socket connects
/// again, and again without a route.
#[map]
static FAILED: LruHashMap<u64, u8> = LruHashMap::with_max_entries(FAILED_ATTEMPTS, 0);

/// Attempts that ended before a SYN left, by the thread (and process) whose connect() is about to return why: what comes
/// of its descriptor meanwhile does not matter.
#[map]
static UNSENT: HashMap<u64, ConnectionRecord> = HashMap::with_max_entries(UNSENT_ATTEMPTS, 0);

/// Where a record is put together: too large for the stack.
#[map]
static RECORD: PerCpuArray<ConnectionRecord> = PerCpuArray::with_max_entries(1, 0);

/// Which program reads the errors of connect(): see [`watcher`].
#[map]
static CONNECT_WATCHER: Array<u32> = Array::with_max_entries(1, 0);

/// From `include/uapi/asm-generic/errno.h` and `errno-base.h`: the same on both architectures.
mod errno {
    pub(super) const EINTR: u16 = 4;
    pub(super) const EBADF: u16 = 9;
    pub(super) const EFAULT: u16 = 14;
    pub(super) const EPIPE: u16 = 32;
    pub(super) const ENOTSOCK: u16 = 88;
    pub(super) const EAFNOSUPPORT: u16 = 97;
    pub(super) const ECONNABORTED: u16 = 103;
    pub(super) const ECONNRESET: u16 = 104;
    pub(super) const EISCONN: u16 = 106;
    pub(super) const ETIMEDOUT: u16 = 110;
    pub(super) const ECONNREFUSED: u16 = 111;
    pub(super) const EALREADY: u16 = 114;
    pub(super) const EINPROGRESS: u16 = 115;
    /// From here on the kernel's own: the call is made again, or gives EINTR.
    pub(super) const KERNELS_OWN: u16 = 512;
}

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

const IPPROTO_TCP: u16 = 6;
/// Its own socket's attempt is that of another beneath it.
const IPPROTO_MPTCP: u16 = 262;

/// Whether this kernel lets us read what this takes. Frozen: where it does not, the verifier drops all of it.
#[inline(always)]
fn can_watch() -> bool {
    abi(Abi::Connect) != NO_NUMBER && offset(Member::RegsArgument0) != ABSENT
}

/// An attempt failed that the hook followed.
#[inline(always)]
pub(crate) fn failed(cookie: u64) {
    if can_watch() {
        let _ = FAILED.insert(&cookie, &0, u64::from(BPF_ANY));
    }
}

/// Keeps the record of an attempt that ended before a SYN left, if the running call is the connect() that made it: that
/// completes it when it returns. False if nobody would.
#[inline(always)]
pub(crate) fn defer(record: &ConnectionRecord) -> bool {
    if !can_watch() || watcher() == watcher::NOBODY {
        return false;
    }
    let task = Task::current();
    if task.regs().number() != abi(Abi::Connect) || task.is_compat(abi(Abi::CompatBit)) {
        return false;
    }
    let thread = bpf_get_current_pid_tgid();
    // Whose return nobody saw, as while the programs that watch for it change places.
    if let Some(stranded) = UNSENT.get_ptr(&thread) {
        // SAFETY: the entry is live, and its thread is in this call.
        count(unsafe { (*stranded).counter_slot }, Counter::Lost);
    }
    UNSENT.insert(&thread, record, u64::from(BPF_ANY)).is_ok()
}

#[inline(always)]
fn watcher() -> u32 {
    CONNECT_WATCHER.get(0).map_or(watcher::NOBODY, |&watcher| watcher)
}

/// A system call returns, and this program, of the two that might be, sees it.
#[inline(always)]
pub(crate) fn returns(program: u32, regs: Regs, result: i64) {
    if !can_watch() {
        return;
    }
    let number = regs.number();
    if result < 0 {
        if number == abi(Abi::Connect) && watcher() == program {
            let task = Task::current();
            if !task.is_compat(abi(Abi::CompatBit)) {
                fail(task, regs, result.unsigned_abs() as u16);
            }
        }
    } else if number == abi(Abi::Accept4) || number == abi(Abi::Accept) {
        // Seen by two programs for a moment, it is the same moment.
        let task = Task::current();
        if !task.is_compat(abi(Abi::CompatBit)) {
            accepted(task, result as u32);
        }
    }
}

/// accept() returns a connection: it has waited since its handshake ended. As few reads as lead there, for they are paid for
/// by every connection that is accepted; a descriptor that another thread has made something else leads to no record.
#[inline(always)]
fn accepted(task: Task, fd: u32) {
    let Some(sock) = task
        .file(fd)
        .and_then(|file| file.follow(Member::FilePrivate))
        .and_then(|socket| socket.follow(Member::SocketSock))
    else {
        return;
    };
    let Some((_, record)) = table::find(sock.key(task)) else {
        return;
    };
    // SAFETY: the entry is live. The hook is its only other writer, and writes this member where a connection begins.
    unsafe {
        let established = if (*record).path_len > 1 {
            (*record).path[1]
        } else {
            0
        };
        // Of one that is older than the programs nobody knows when that was.
        if (*record).role == role::PASSIVE && step_state(established) == state::ESTABLISHED {
            let established_ns = (*record).opened_ns.wrapping_add(step_offset_ns(established));
            let wait_us = now_ns().wrapping_sub(established_ns) / 1_000;
            let wait = if wait_us < ACCEPT_WAIT_MAX_US {
                wait_us
            } else {
                ACCEPT_WAIT_MAX_US
            };
            ptr::write_volatile(&raw mut (*record).accept_wait, wait as u32 + 1);
        }
    }
}

/// An hour and 11 minutes: what a record can tell.
const ACCEPT_WAIT_MAX_US: u64 = u32::MAX as u64 - 1;

/// connect() returns an error.
#[inline(always)]
fn fail(task: Task, regs: Regs, errno: u16) {
    if !ends_an_attempt(errno) {
        return;
    }
    let sock = socket(task, regs.argument(Member::RegsArgument0) as u32);
    let cookie: u64 = sock.map_or(0, |sock| sock.read(Member::SkCookie));
    let thread = bpf_get_current_pid_tgid();
    if let Some(record) = UNSENT.get_ptr_mut(&thread) {
        // SAFETY: the entry is live; its thread is in this call.
        let record = unsafe { &mut *record };
        // Another thread may have closed the descriptor. One of another socket tells that the return of an earlier call
        // was not seen: its record has no errno any more.
        let is_of_this_call =
            sock.is_none_or(|sock| cookie == record.cookie || protocol(sock) == IPPROTO_MPTCP);
        if is_of_this_call {
            record.error = errno;
            output(record);
        } else {
            count_beside(record.counter_slot, Counter::Lost);
        }
        let _ = UNSENT.remove(&thread);
        if is_of_this_call {
            return;
        }
    }
    let Some(sock) = sock.filter(|&sock| is_tcp(sock)) else {
        return;
    };
    if cookie != 0 && FAILED.remove(&cookie).is_ok() {
        return;
    }
    if !answers_an_attempt(errno) {
        deny(sock, cookie, regs, errno);
    }
}

/// Whether an attempt is over with this error: others go on, are of a connection that there is, or of no socket.
#[inline(always)]
fn ends_an_attempt(errno: u16) -> bool {
    use errno::*;
    !matches!(
        errno,
        EINTR | EBADF | EFAULT | ENOTSOCK | EAFNOSUPPORT | EISCONN | EALREADY | EINPROGRESS
    ) && errno < KERNELS_OWN
}

/// Whether the error is an answer from outside, or the lack of one, and never given before a SYN left.
#[inline(always)]
fn answers_an_attempt(errno: u16) -> bool {
    use errno::*;
    matches!(
        errno,
        EPIPE | ECONNABORTED | ECONNRESET | ETIMEDOUT | ECONNREFUSED
    )
}

/// The socket behind a file descriptor of the running task.
#[inline(always)]
fn socket(task: Task, fd: u32) -> Option<Foreign> {
    let file = task.file(fd)?;
    let socket: Foreign = file.follow(Member::FilePrivate)?;
    // Another thread may have closed the descriptor meanwhile: a socket knows its file.
    if socket.follow(Member::SocketFile)? != file {
        return None;
    }
    socket.follow(Member::SocketSock)
}

#[inline(always)]
fn protocol(sock: Foreign) -> u16 {
    sock.read(Member::SkProtocol)
}

/// Whether it is of TCP, and observed.
#[inline(always)]
fn is_tcp(sock: Foreign) -> bool {
    let netns = sock.follow(Member::SkNet).map(|net| net.read(Member::NetInode));
    protocol(sock) == IPPROTO_TCP && netns.is_some_and(is_observed)
}

/// Whom connect() was asked to call.
struct Destination {
    family: u16,
    port: u16,
    address: [u32; 4],
}

/// Reads a `struct sockaddr_in` or `sockaddr_in6` (include/uapi/linux/in.h, in6.h); `None` if it is neither.
#[inline(always)]
fn destination(regs: Regs) -> Option<Destination> {
    const IN_BYTES: u64 = 16;
    /// `SIN6_LEN_RFC2133` (include/net/ipv6.h).
    const IN6_BYTES: u64 = 24;
    let at = regs.argument(Member::RegsArgument1);
    let bytes = regs.argument(Member::RegsArgument2) & 0xffff_ffff;
    // SAFETY: the helper takes any address.
    let [head, v4] = unsafe { bpf_probe_read_user(at as *const [u32; 2]) }.ok()?;
    let (family, port) = (head as u16, u16::from_be((head >> 16) as u16));
    let address = match family {
        AF_INET if bytes >= IN_BYTES => [v4, 0, 0, 0],
        // SAFETY: as above.
        AF_INET6 if bytes >= IN6_BYTES => unsafe { bpf_probe_read_user((at + 8) as *const [u32; 4]) }.ok()?,
        _ => return None,
    };
    Some(Destination {
        family,
        port,
        address,
    })
}

/// An attempt that never left CLOSE: it begins and ends here.
#[inline(always)]
fn deny(sock: Foreign, cookie: u64, regs: Regs, errno: u16) {
    let Some(to) = destination(regs) else { return };
    let Some(record) = RECORD.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: this CPU's entry, and only this program uses it, which the kernel does not start inside itself.
    let record = unsafe { &mut *record };
    record.cookie = cookie;
    record.opened_ns = now_ns();
    record.path[0] = step(state::CLOSE, 0);
    record.path_len = 1;
    record.cgroup_id = sock
        .follow(Member::SkCgroup)
        .and_then(|cgroup| cgroup.follow(Member::CgroupNode))
        .map_or(0, |node| node.read(Member::NodeId));
    record.netns = sock
        .follow(Member::SkNet)
        .map_or(0, |net| net.read(Member::NetInode));
    record.family = to.family as u8;
    record.remote_port = to.port;
    record.remote_address = to.address;
    record.local_port = u16::from_be(sock.read(Member::InetLocalPort));
    record.local_address = if to.family == AF_INET {
        [sock.read(Member::SkLocalV4), 0, 0, 0]
    } else {
        sock.read(Member::SkLocalV6)
    };
    record.pid = current_process(&mut record.comm);
    record.attribution = attribution::EXACT;
    record.role = role::ACTIVE;
    record.flags = flag::FIRST | flag::FINAL | flag::UNSENT;
    record.error = errno;
    record.counter_slot = look_up(record.netns);
    // In the ledger an attempt without a SYN, which the namespace's own counters do not know, opened and closed at once.
    count_beside(record.counter_slot, Counter::Opened);
    count_beside(record.counter_slot, Counter::Unsent);
    if !control::follows() {
        return count_beside(record.counter_slot, Counter::SampledOut);
    }
    count_beside(record.counter_slot, Counter::Closed);
    output(record);
}

#[inline(always)]
fn output(record: &ConnectionRecord) {
    if !control::hands_over(record) {
        count_beside(record.counter_slot, Counter::Filtered);
    } else if !ring::output(record) {
        count_beside(record.counter_slot, Counter::Lost);
    }
}
