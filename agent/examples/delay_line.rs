//! A path with a delay between two interfaces, for kernels without netem: each frame that comes in at one leaves at the other,
//! so much later. A packet socket each, and a queue each way.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// A frame, with what the kernel says of it before (struct virtio_net_hdr): whose checksums are still to be computed goes through
/// as it is, and so does what is larger than the interface's MTU.
const MOST_BYTES: usize = 70_000;
/// Frames that are taken from one side before the other is looked at.
const AT_ONCE: usize = 256;
const QUEUE_BYTES: libc::c_int = 64 << 20;
/// linux/if_packet.h; not all of it is in the crate.
const PACKET_VNET_HDR: libc::c_int = 15;
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

/// Be a path with a delay between two interfaces, until killed; says `ready` once it is. Part of `cargo xtask bench path`.
#[derive(clap::Parser)]
struct Arguments {
    /// The two interfaces, both of this network namespace
    #[arg(num_args = 2, required = true)]
    interfaces: Vec<String>,

    /// Microseconds, each way
    #[arg(long)]
    micros: u64,
}

/// One end.
struct Side {
    socket: File,
    /// What is to leave here, and when.
    waiting: VecDeque<(Instant, Vec<u8>)>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let delay = Duration::from_micros(arguments.micros);
    let open = |interface: &String| {
        let socket = packet_socket(interface).with_context(|| format!("cannot listen on {interface}"))?;
        Ok::<_, anyhow::Error>(Side {
            socket: File::from(socket),
            waiting: VecDeque::new(),
        })
    };
    let mut sides = [open(&arguments.interfaces[0])?, open(&arguments.interfaces[1])?];
    // SAFETY: it sets a number of this thread. A microsecond late is not late here; the usual 50 are.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_000) };
    println!("ready");
    io::stdout().flush()?;
    let mut frame = vec![0; MOST_BYTES];
    loop {
        for side in &mut sides {
            side.send_what_is_due();
        }
        let next = sides
            .iter()
            .filter_map(|side| Some(side.waiting.front()?.0))
            .min();
        let timeout = next
            .map(|at| Timespec::try_from(at.saturating_duration_since(Instant::now())))
            .transpose()?;
        let mut ends =
            [&sides[0], &sides[1]].map(|side| PollFd::from_borrowed_fd(side.socket.as_fd(), PollFlags::IN));
        poll(&mut ends, timeout.as_ref())?;
        let came = ends.map(|end| !end.revents().is_empty());
        for from in [0, 1] {
            if !came[from] {
                continue;
            }
            for _ in 0..AT_ONCE {
                // Nothing more is there, or the interface is down for a moment.
                let Ok(bytes) = sides[from].socket.read(&mut frame) else {
                    break;
                };
                sides[1 - from]
                    .waiting
                    .push_back((Instant::now() + delay, frame[..bytes].to_vec()));
            }
        }
    }
}

impl Side {
    fn send_what_is_due(&mut self) {
        let now = Instant::now();
        while self.waiting.front().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, frame)) = self.waiting.pop_front() {
                // A path may lose what its end does not take.
                let _ = self.socket.write(&frame);
            }
        }
    }
}

/// A socket that takes all frames of an interface but those that it sends itself.
fn packet_socket(interface: &str) -> anyhow::Result<OwnedFd> {
    let index = std::fs::read_to_string(format!("/sys/class/net/{interface}/ifindex"))?;
    let index: libc::c_int = index.trim().parse()?;
    let every = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: it makes a descriptor, or fails.
    let socket = unsafe {
        libc::socket(
            libc::AF_PACKET,
            libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
            every.into(),
        )
    };
    if socket < 0 {
        return Err(io::Error::last_os_error().into());
    }
    // SAFETY: it is open, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    for (level, option, value) in [
        (libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1),
        (libc::SOL_PACKET, PACKET_VNET_HDR, 1),
        (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, QUEUE_BYTES),
        (libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, QUEUE_BYTES),
    ] {
        let value: libc::c_int = value;
        // SAFETY: the kernel reads as many bytes as are told, of a number that lives until then.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                size_of_val(&value) as libc::socklen_t,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error().into());
        }
    }
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: every,
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: as above.
    let result = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error().into());
    }
    Ok(socket)
}
