//! Holdfast's BPF programs.
//!
//! One hook so far: `inet_sock_set_state`, a BTF-enabled raw tracepoint (tp_btf, Linux 5.5; with the ring buffer
//! 5.8, with the socket cookie in tracing programs 5.12). It sees every change of state of every TCP socket of
//! the machine, in every network namespace. The programs copy and count; they decide nothing.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// Atomics: the BPF target has none in `core::sync::atomic`.
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics), allow(internal_features))]
// A BPF program is made of raw kernel pointers; the verifier, not the compiler, proves their use.
#![cfg_attr(target_arch = "bpf", allow(unsafe_code))]

#[cfg(target_arch = "bpf")]
mod counters;
#[cfg(target_arch = "bpf")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod ring;
#[cfg(target_arch = "bpf")]
mod table;
#[cfg(target_arch = "bpf")]
mod tcp_state;

#[cfg(target_arch = "bpf")]
mod hooks {
    use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

    use crate::{kernel::Sock, tcp_state};

    /// `trace_inet_sock_set_state(sk, oldstate, newstate)`, net/ipv4/af_inet.c.
    #[btf_tracepoint(function = "inet_sock_set_state")]
    pub(crate) fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
        let sock = Sock::new(ctx.arg(0));
        let (old, new): (u32, u32) = (ctx.arg(1), ctx.arg(2));
        tcp_state::changed(&ctx, sock, old as u8, new as u8);
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
