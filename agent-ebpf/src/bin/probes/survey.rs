//! The survey: every TCP socket of one network namespace, as it stands. The agent starts it, in the namespace that it
//! asks about, and reads what it writes.
//!
//! It finds what is older than the programs and gives it a place in the table, so that its end is seen like any other.
//! The iterator holds the lock of the socket that it shows (bpf_iter_tcp_seq_show, net/ipv4/tcp_ipv4.c), as the hook
//! does.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::seq_file,
    helpers::generated::bpf_seq_write,
    macros::map,
    maps::{Array, PerCpuArray},
};
use holdfast_agent_ebpf::{
    counter::Counter,
    event::{ConnectionRecord, SocketReport, attribution, flag, is_in_sample, notice, role, state, step},
    limits::COMM_BYTES,
};

use crate::{
    control,
    counters::{count_beside, look_up},
    kernel::{Sock, TcpSock, now_ns},
    listeners, table,
    tcp_state::{measure, name, name_local, note_received},
};

/// Where a report is put together: too large for the stack. One survey runs at a time.
#[map]
static REPORT: PerCpuArray<SocketReport> = PerCpuArray::with_max_entries(1, 0);

/// How often the connections that are reported are halved (see [`is_in_sample`]). All are looked at, and get a place.
#[map]
static SURVEY_HALVINGS: Array<u32> = Array::with_max_entries(1, 0);

/// `struct bpf_iter__tcp` (net/ipv4/tcp_ipv4.c): pointers to the iteration and to the socket.
#[repr(C)]
pub(crate) struct Shown {
    meta: *const Meta,
    socket: *const u8,
}

/// `struct bpf_iter_meta` (include/linux/bpf.h).
#[repr(C)]
struct Meta {
    file: *mut seq_file,
}

/// Reports one socket. Written again for the same socket when the reader's buffer was full.
#[inline(always)]
pub(crate) fn show(shown: &Shown) {
    // The last call is without a socket. Time-wait sockets and requests are no tcp_sock.
    if shown.socket.is_null() {
        return;
    }
    let Some(tcp) = Sock::new(shown.socket).tcp() else {
        return;
    };
    let sock = tcp.sock();
    if !sock.is_tcp() || !sock.is_observed() {
        return;
    }
    let Some(report) = REPORT.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: this CPU's entry, and one survey runs at a time.
    let report = unsafe { &mut *report };
    report.state = sock.state();
    report.is_untracked = 0;
    report.inode = sock.inode();
    match report.state {
        state::LISTEN => {
            if !listeners::found(sock) {
                return;
            }
            report.backlog = sock.backlog();
            report.backlog_limit = sock.backlog_limit();
            report.drops = sock.drops();
            let record = &mut report.record;
            record.role = role::PASSIVE;
            name(sock, record);
            name_local(sock, record);
            listeners::inherit(sock, record);
        }
        state::CLOSE => return,
        _ => match stand(tcp, report.state) {
            Stand::Followed(record) => {
                // SAFETY: the entry is live, and this holds the lock of its socket.
                report.record = unsafe { *record };
                // Not in the table: where the volumes go at the end, the hook keeps what it needs until then.
                measure(tcp, &mut report.record);
            }
            Stand::NoRoom => {
                report.is_untracked = 1;
                report.record = ConnectionRecord::ZERO;
                name(sock, &mut report.record);
                name_local(sock, &mut report.record);
            }
            Stand::NotShown => return,
        },
    }
    // SAFETY: the kernel made both pointers.
    unsafe {
        let file = (*shown.meta).file;
        bpf_seq_write(
            file,
            (&raw const *report).cast::<c_void>(),
            size_of::<SocketReport>() as u32,
        );
    }
}

/// How a connection stands.
enum Stand {
    /// It has a record.
    Followed(*const ConnectionRecord),
    /// It has none, and the table has no room for one.
    NoRoom,
    /// It is left out: one in so many is followed, or shown.
    NotShown,
}

/// How a connection stands now; one that nobody knew gets a place.
#[inline(always)]
fn stand(tcp: TcpSock, state: u8) -> Stand {
    let sock = tcp.sock();
    let record = match table::find(sock.key()) {
        Some((_, record)) => record,
        // It may be one that is not followed because only one in so many is.
        None if !control::follows_all() => return Stand::NotShown,
        None => {
            let Some(claim) = table::claim(sock.key()) else {
                return Stand::NoRoom;
            };
            // SAFETY: the place was claimed for this socket, whose lock makes this program the record's only writer.
            let record = unsafe { &mut *claim.record };
            seed(sock, record, state);
            note_received(tcp, record);
            if state == state::SYN_SENT {
                claim.place.notify(notice::pending(record.opened_ns));
            }
            claim.record
        }
    };
    // SAFETY: the entry is live, and this holds the lock of its socket.
    let cookie = unsafe { (*record).cookie };
    if SURVEY_HALVINGS
        .get(0)
        .is_some_and(|&halvings| is_in_sample(cookie, halvings))
    {
        Stand::Followed(record)
    } else {
        Stand::NotShown
    }
}

/// What can be known of a connection whose beginning nobody saw.
#[inline(always)]
fn seed(sock: Sock, record: &mut ConnectionRecord, state: u8) {
    record.opened_ns = now_ns();
    record.counter_slot = look_up(sock.netns());
    count_beside(record.counter_slot, Counter::Seeded);
    record.flags = flag::SEEDED;
    record.syn_retransmits = 0;
    record.accept_wait = 0;
    record.streamed = 0;
    record.reset_sent = 0;
    record.error = 0;
    record.pid = 0;
    record.comm = [0; COMM_BYTES];
    record.attribution = attribution::UNKNOWN;
    record.path_len = 1;
    if matches!(state, state::SYN_SENT | state::SYN_RECV) {
        record.path[0] = step(state, 0);
        record.flags |= flag::FIRST;
    } else {
        // It was established before, whatever came since.
        record.flags |= flag::ESTABLISHED;
        record.path[0] = step(state::ESTABLISHED, 0);
        if state != state::ESTABLISHED {
            record.path[1] = step(state, 0);
            record.path_len = 2;
        }
    }
    name(sock, record);
    name_local(sock, record);
    record.role = if state != state::SYN_SENT && listeners::inherit(sock, record) {
        role::PASSIVE
    } else {
        role::ACTIVE
    };
}
