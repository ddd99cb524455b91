//! `cargo xtask churn` (hidden): the work of the benchmark `probe-cost`. Opens and closes TCP connections on
//! loopback and says how much CPU that took.
//!
//! One thread plays both ends: a handshake on loopback happens inside `connect`, so nothing ever waits, no context
//! switch is counted, and what a probe adds is as large a part of the whole as it can be.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};

use anyhow::Context;
use serde_json::json;

/// The connecting side closes first and keeps its port in TIME_WAIT. Past 45% of the ports to one address (28,232 by
/// default) looking for a free one costs more than the connection, so each address is used for fewer.
const PAIRS_PER_ADDRESS: u32 = 10_000;

/// Open and close connections in this network namespace.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How many
    #[arg(long)]
    pairs: u32,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let port = listener.local_addr()?.port();
    let before = cpu_ns()?;
    for pair in 0..arguments.pairs {
        let [.., high, low] = (pair / PAIRS_PER_ADDRESS + 1).to_be_bytes();
        let address = SocketAddrV4::new(Ipv4Addr::new(127, 1, high, low), port);
        open_and_close(&listener, address).with_context(|| format!("connection {pair} to {address}"))?;
    }
    println!("{}", json!({"cpu_ns": cpu_ns()? - before}));
    Ok(())
}

fn open_and_close(listener: &TcpListener, address: SocketAddrV4) -> io::Result<()> {
    let mut client = TcpStream::connect(address)?;
    let (mut server, _) = listener.accept()?;
    let mut message = *b"ping";
    client.write_all(&message)?;
    server.read_exact(&mut message)?;
    server.write_all(&message)?;
    client.read_exact(&mut message)?;
    drop(client);
    drop(server);
    Ok(())
}

/// Time that this thread, the only one, has spent on a CPU, in nanoseconds. It includes the softirqs that ran on its
/// back, which is most of what TCP on loopback does (on kernels with CONFIG_IRQ_TIME_ACCOUNTING it does not).
fn cpu_ns() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/self/schedstat").context("this kernel lacks CONFIG_SCHED_INFO")?;
    let first = text
        .split_whitespace()
        .next()
        .context("/proc/self/schedstat is empty")?;
    first
        .parse()
        .with_context(|| format!("/proc/self/schedstat says {first:?}"))
}
