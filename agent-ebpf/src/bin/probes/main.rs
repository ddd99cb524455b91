//! Holdfast's BPF programs.
//!
//! The hook `inet_sock_set_state`, a BTF-enabled raw tracepoint (tp_btf, Linux 5.5; with the ring buffer 5.8, with the
//! socket cookie in tracing programs 5.12), sees every change of state of every TCP socket of the machine, in every
//! network namespace. The survey, an iterator, is asked for the sockets of one. The programs copy and count; they
//! decide nothing.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// Atomics: the BPF target has none in `core::sync::atomic`.
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics), allow(internal_features))]
// A BPF program is made of raw kernel pointers; the verifier, not the compiler, proves their use.
#![cfg_attr(target_arch = "bpf", allow(unsafe_code))]

#[cfg(target_arch = "bpf")]
mod connects;
#[cfg(target_arch = "bpf")]
mod control;
#[cfg(target_arch = "bpf")]
mod counters;
#[cfg(target_arch = "bpf")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod listeners;
#[cfg(target_arch = "bpf")]
mod packet;
#[cfg(target_arch = "bpf")]
mod peers;
#[cfg(target_arch = "bpf")]
mod processes;
#[cfg(target_arch = "bpf")]
mod ring;
#[cfg(target_arch = "bpf")]
mod survey;
#[cfg(target_arch = "bpf")]
mod syscalls;
#[cfg(target_arch = "bpf")]
mod table;
#[cfg(target_arch = "bpf")]
mod tallies;
#[cfg(target_arch = "bpf")]
mod tcp_signals;
#[cfg(target_arch = "bpf")]
mod tcp_state;
#[cfg(target_arch = "bpf")]
mod transitions;

#[cfg(target_arch = "bpf")]
mod hooks {
    use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
    use holdfast_agent_ebpf::syscall::watcher;

    use crate::{
        connects,
        kernel::{Packet, Regs, Sock},
        survey, syscalls, tcp_signals, tcp_state,
    };

    /// `trace_inet_sock_set_state(sk, oldstate, newstate)`, net/ipv4/af_inet.c.
    #[btf_tracepoint(function = "inet_sock_set_state")]
    pub(crate) fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
        let sock = Sock::new(ctx.arg(0));
        let (old, new): (u32, u32) = (ctx.arg(1), ctx.arg(2));
        tcp_state::changed(&ctx, sock, old as u8, new as u8);
        0
    }

    /// `trace_tcp_receive_reset(sk)`, net/ipv4/tcp_input.c (4.16).
    #[btf_tracepoint(function = "tcp_receive_reset")]
    pub(crate) fn tcp_receive_reset(ctx: BtfTracePointContext) -> i32 {
        tcp_signals::reset_received(Sock::new(ctx.arg(0)));
        0
    }

    /// `trace_tcp_send_reset(sk, skb, reason)`, net/ipv4/tcp_ipv4.c, tcp_output.c (4.16).
    #[btf_tracepoint(function = "tcp_send_reset")]
    pub(crate) fn tcp_send_reset(ctx: BtfTracePointContext) -> i32 {
        tcp_signals::reset_sent(Sock::new(ctx.arg(0)), Packet::new(ctx.arg(1)));
        0
    }

    /// `trace_tcp_retransmit_skb(sk, skb, err)`, net/ipv4/tcp_output.c (4.16).
    #[btf_tracepoint(function = "tcp_retransmit_skb")]
    pub(crate) fn tcp_retransmit_skb(ctx: BtfTracePointContext) -> i32 {
        tcp_signals::retransmitted(Sock::new(ctx.arg(0)));
        0
    }

    /// `trace_tcp_retransmit_synack(sk, req)`, net/ipv4/tcp_output.c (4.16).
    #[btf_tracepoint(function = "tcp_retransmit_synack")]
    pub(crate) fn tcp_retransmit_synack(ctx: BtfTracePointContext) -> i32 {
        tcp_signals::syn_ack_retransmitted(Sock::new(ctx.arg(1)));
        0
    }

    /// `trace_kfree_skb(skb, location, reason, rx_sk)`, net/core/skbuff.c (the reason since 5.17).
    #[btf_tracepoint(function = "kfree_skb")]
    pub(crate) fn kfree_skb(ctx: BtfTracePointContext) -> i32 {
        tcp_signals::dropped(Packet::new(ctx.arg(0)), ctx.arg(2));
        0
    }

    /// `trace_sys_enter(regs, id)`, in the architectures' system call entry.
    #[btf_tracepoint(function = "sys_enter")]
    pub(crate) fn sys_enter(_: BtfTracePointContext) -> i32 {
        syscalls::begin();
        0
    }

    /// `trace_sys_exit(regs, ret)`, likewise.
    #[btf_tracepoint(function = "sys_exit")]
    pub(crate) fn sys_exit(ctx: BtfTracePointContext) -> i32 {
        syscalls::end(Regs::new(ctx.arg(0)), ctx.arg(1));
        0
    }

    /// The same, where syscalls are not counted: sees connect() fail.
    #[btf_tracepoint(function = "sys_exit")]
    pub(crate) fn connect_exit(ctx: BtfTracePointContext) -> i32 {
        let regs = Regs::new(ctx.arg(0));
        connects::returns(watcher::OWN, regs, ctx.arg(1));
        0
    }

    /// `trace_sched_process_exec(task, old_pid, bprm)`, fs/exec.c.
    #[btf_tracepoint(function = "sched_process_exec")]
    pub(crate) fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
        syscalls::program_changes(ctx.arg(1));
        0
    }

    /// `trace_sched_process_exit(task)`, kernel/exit.c: a thread's.
    #[btf_tracepoint(function = "sched_process_exit")]
    pub(crate) fn sched_process_exit(_: BtfTracePointContext) -> i32 {
        syscalls::task_ends();
        0
    }

    /// The iterator over TCP sockets (`bpf_iter_tcp`, 5.9; with the socket's lock 5.15).
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "iter/tcp")]
    pub(crate) extern "C" fn survey(shown: &survey::Shown) -> i32 {
        survey::show(shown);
        0
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }

    #[unsafe(no_mangle)]
    #[unsafe(link_section = "license")]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("these are BPF programs: cargo xtask ebpf builds them for the kernel");
    std::process::exit(2);
}
