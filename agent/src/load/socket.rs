//! The system calls of the generator that no safe crate wraps, and those around them: a socket that connects without
//! waiting, from a chosen address, and tells its own round trip.
#![allow(unsafe_code)]

use std::{
    io::IoSliceMut,
    mem,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    cmsg_space,
    sys::socket::{ControlMessageOwned, MsgFlags, recvmsg},
};
use rustix::{
    event::epoll,
    io::{self, Errno},
    net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt},
};

/// States of a connection (include/net/tcp_states.h).
const TCP_ESTABLISHED: u8 = 1;
const TCP_CLOSE_WAIT: u8 = 8;

/// What the kernel measured of a connection's handshake (struct tcp_info, linux/tcp.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// The smoothed round trip; right after the handshake, the handshake's own. Its SYN was sent once.
    pub round_trip: Option<Duration>,
    pub syn_retransmits: u32,
}

/// A socket that connects without waiting, from `source` if one is given.
///
/// # Errors
/// What the kernel says: no descriptor left, no such address.
pub fn open(target: SocketAddr, source: Option<IpAddr>, reset_at_close: bool) -> Result<OwnedFd, Errno> {
    let family = if target.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    if let Some(source) = source {
        // The port is chosen at connect(), when the target is known: so one port serves many targets.
        set_flag(&socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT)?;
        bind(&socket, &SocketAddr::new(source, 0))?;
    }
    if reset_at_close {
        sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
    }
    Ok(socket)
}

/// The same, whose changes epoll tells under `token`, once each: what is held and quiet costs nothing.
///
/// # Errors
/// As [`open`]; or there is no room to watch it.
pub fn open_watched(
    watch: &OwnedFd,
    token: u32,
    target: SocketAddr,
    source: Option<IpAddr>,
    reset_at_close: bool,
) -> Result<OwnedFd, Errno> {
    use epoll::EventFlags as Flags;
    let socket = open(target, source, reset_at_close)?;
    let flags = Flags::IN | Flags::OUT | Flags::RDHUP | Flags::ET;
    epoll::add(watch, &socket, epoll::EventData::new_u64(token.into()), flags)?;
    Ok(socket)
}

/// A socket for datagrams to one target and from it alone, from `source` if one is given, with room for so many bytes that came. What
/// the network says of them is kept for [`complaint`].
///
/// # Errors
/// What the kernel says.
pub fn open_datagrams(target: SocketAddr, source: Option<IpAddr>, room: usize) -> Result<OwnedFd, Errno> {
    let family = if target.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::DGRAM, flags, None)?;
    // As much of it as the kernel allows (net.core.rmem_max).
    sockopt::set_socket_recv_buffer_size(&socket, room)?;
    if let Some(source) = source {
        bind(&socket, &SocketAddr::new(source, 0))?;
    }
    let (level, name) = if target.is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_RECVERR)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
    };
    set_flag(&socket, level, name)?;
    connect(&socket, &target)?;
    Ok(socket)
}

/// What the network, or this machine, said of a datagram that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Complaint {
    pub errno: Errno,
    /// How much of what the datagram carried is quoted: eight bytes of an ICMP message are the head of UDP, what follows is optional
    /// (RFC 792; RFC 1812, 4.3.2.3).
    pub quoted: usize,
}

/// The next of them, if there is one; what it quotes is at the beginning of `buffer`. Taking it takes the socket's error as well, which
/// else the next call on it would return (skb_dequeue_err, net/core/skbuff.c).
pub fn complaint(socket: &OwnedFd, buffer: &mut [u8]) -> Option<Complaint> {
    let mut control = cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let taken = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags).ok()?;
    let errno = taken.cmsgs().ok()?.find_map(|message| match message {
        ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _) => {
            i32::try_from(error.ee_errno).ok()
        }
        _ => None,
    })?;
    Some(Complaint {
        errno: Errno::from_raw_os_error(errno),
        quoted: taken.bytes,
    })
}

/// How many datagrams that came for a socket the kernel has dropped, for want of room mostly (SO_MEMINFO, from Linux 4.12 on); zero where it
/// does not say.
pub fn dropped(socket: &OwnedFd) -> u64 {
    // include/uapi/linux/sock_diag.h: SK_MEMINFO_DROPS is the last.
    let mut figures = [0u32; 9];
    let mut length = mem::size_of_val(&figures) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `figures`, which has as many and lives through the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            figures.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    let [.., dropped] = figures;
    if result == 0 { dropped.into() } else { 0 }
}

fn set_flag(socket: &OwnedFd, level: i32, name: i32) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option takes an int, and is given the address and the size of one that lives through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const on).cast(),
            mem::size_of_val(&on) as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL))
    }
}

/// What the kernel measured, or `None` where it does not say.
pub fn handshake(socket: &OwnedFd) -> Option<Handshake> {
    Some(of_handshake(&tcp_info(socket)?))
}

/// Likewise of a socket that connects, if that is over and went well, whatever the peer has done since.
pub fn established(socket: &OwnedFd) -> Option<Handshake> {
    let info = tcp_info(socket)?;
    matches!(info.tcpi_state, TCP_ESTABLISHED | TCP_CLOSE_WAIT).then(|| of_handshake(&info))
}

/// A tick of the slowest kernels (CONFIG_HZ=100), in which TCP_INFO tells how long ago something was.
const TICK: Duration = Duration::from_millis(10);

/// Whether the peer's kernel has acknowledged all that was sent, the last of it at least so long ago, and nothing has come from there in that
/// time, nor waits to be read. Of a time that is hardly longer than a tick this is not known.
pub fn is_withheld(socket: &OwnedFd, time: Duration) -> bool {
    let least_ms = u32::try_from(time.saturating_sub(TICK).as_millis()).unwrap_or(u32::MAX);
    let is_quiet = |info: libc::tcp_info| {
        info.tcpi_state == TCP_ESTABLISHED
            && info.tcpi_last_data_sent >= least_ms
            && info.tcpi_last_data_recv >= least_ms
    };
    // A segment that is sent again is the last that was sent (tcp_event_data_sent, net/ipv4/tcp_output.c).
    least_ms > 0
        && queued(socket, libc::TIOCOUTQ) == Some(0)
        && queued(socket, libc::FIONREAD) == Some(0)
        && tcp_info(socket).is_some_and(is_quiet)
}

/// How many bytes lie in one of a socket's queues (tcp(7)): TIOCOUTQ, what was not acknowledged yet; FIONREAD, what was not read yet.
fn queued(socket: &OwnedFd, which: libc::Ioctl) -> Option<libc::c_int> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: both requests write an int, and are given the address of one that lives through the call.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), which, &raw mut bytes) };
    (result == 0).then_some(bytes)
}

fn of_handshake(info: &libc::tcp_info) -> Handshake {
    let syn_retransmits = info.tcpi_total_retrans;
    Handshake {
        round_trip: (syn_retransmits == 0 && info.tcpi_rtt > 0)
            .then(|| Duration::from_micros(info.tcpi_rtt.into())),
        syn_retransmits,
    }
}

fn tcp_info(socket: &OwnedFd) -> Option<libc::tcp_info> {
    // SAFETY: all fields are integers, for which zero is a value.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut length = mem::size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `info`, which has as many and lives through the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    // An older kernel writes less; tcpi_total_retrans is the last that is read here.
    let read = mem::offset_of!(libc::tcp_info, tcpi_total_retrans) + mem::size_of::<u32>();
    (result == 0 && length as usize >= read).then_some(info)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        thread::sleep,
    };

    use super::*;

    #[test]
    fn an_answer_is_withheld_where_the_peer_has_all_and_nothing_came_for_all_of_the_time() {
        let time = Duration::from_millis(60);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket = OwnedFd::from(ours.try_clone().unwrap());
        let is = |time| is_withheld(&socket, time);
        ours.write_all(b"a request").unwrap();
        sleep(time);
        // No process of the peer has to have taken it: its kernel has it.
        assert!(is(time));
        assert!(!is(Duration::from_secs(60)) && !is(TICK));
        let (mut theirs, _) = listener.accept().unwrap();
        theirs.write_all(b"an answer").unwrap();
        sleep(time);
        // It came, and was not looked at.
        assert!(!is(time));
        let mut answer = [0; 9];
        ours.read_exact(&mut answer).unwrap();
        assert!(is(time));
        // What the peer has no room for is not with it.
        ours.set_nonblocking(true).unwrap();
        while ours.write(&[0; 65_536]).is_ok() {}
        sleep(time);
        assert!(!is(time));
        // An end is an answer as well.
        drop(theirs);
        assert!(!is(time));
    }
}
