//! The benchmark `verdict-latency`: from the first failed connection in the kernel until `violated` is stored, with windows
//! of 5 s and no `for`.
//!
//! An assertion takes its turn in each round, so that nobody waits for the window of the last failure to be over: a hundred
//! rounds take some minutes, and their 99th is no maximum.
//!
//! One attempt is refused, at a moment that no clock of ours chose. When it failed is what the kernel said (`decided_at`);
//! when the verdict is stored is when somebody who asks every few milliseconds finds it, so the time that asking takes is
//! in the figure. Agent and collector are the real ones, on one machine: no network between them.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::bail;

use crate::failure::Failure;
use crate::up::system::{Binaries, System};
use crate::workspace;

/// Assertions that take turns, each about a port of its own: of windows of 5 s, with a second a round.
const TURNS: usize = 10;

/// What is asked for of the median and of the 99th of a hundred.
const MOST_P50_MS: f64 = 1_200.0;
const MOST_P99_MS: f64 = 2_000.0;
/// Far longer than a verdict takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two questions.
const ASK_EVERY: Duration = Duration::from_millis(5);

/// Fails so many connections, one after another, and prints how long their verdicts took.
pub(super) fn run(rounds: u32, as_json: bool) -> anyhow::Result<()> {
    let binaries = Binaries::build(false)?;
    let state_dir = workspace::fresh_dir("bench-verdict-latency")?;
    let ports = closed_ports(TURNS)?;
    let declared = state_dir.join("assertions");
    fs::create_dir_all(&declared)?;
    let mut text = "assertions:\n".to_owned();
    for port in &ports {
        text.push_str(&format!(
            "  - {{ name: latency-{port}, from: all, where: remote_port = {port}, expect: connect.refused = 0, over: 5s }}\n"
        ));
    }
    fs::write(declared.join("a.yaml"), text)?;
    let system = System::start_here_judging(&binaries, &state_dir, &declared, &AtomicBool::new(false))?;

    let mut latencies_ms = Vec::new();
    let mut moments = 0x2545_f491_u64;
    for (round, port) in (1..=rounds).zip(ports.iter().copied().cycle()) {
        let closed = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        wait(&system, port, "holds", 0)?;
        // Anywhere within a second: windows end twice a second.
        moments = moments
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        thread::sleep(Duration::from_millis((moments >> 33) % 1_000));
        let before_ns = wall_ns()?;
        if TcpStream::connect(closed).is_ok() {
            bail!("somebody listens on port {port}");
        }
        wait(&system, port, "violated", before_ns)?;
        let stored_ns = wall_ns()?;
        let failed_ns = system.number(&format!(
            "SELECT toUnixTimestamp64Nano(min(decided_at)) FROM attempts WHERE remote_port = {port} AND outcome = 'refused' \
             AND decided_at >= fromUnixTimestamp64Nano(toInt64({before_ns}), 'UTC')"
        ))?;
        let latency_ms = stored_ns.saturating_sub(failed_ns) as f64 / 1e6;
        eprintln!("  {round}/{rounds}  {latency_ms:.0} ms");
        latencies_ms.push(latency_ms);
    }
    system.stop()?;
    latencies_ms.sort_by(f64::total_cmp);
    let quantile = |share: f64| {
        let rank = (share * latencies_ms.len() as f64).ceil().max(1.0) as usize;
        latencies_ms[rank - 1]
    };
    let (p50, p99) = (quantile(0.5), quantile(0.99));
    if as_json {
        println!(
            "{}",
            serde_json::json!({ "rounds": rounds, "p50_ms": p50, "p99_ms": p99, "all_ms": latencies_ms })
        );
    } else {
        println!("{rounds} failures: violated is stored after {p50:.0} ms (p50), {p99:.0} ms (p99)");
    }
    if p50 > MOST_P50_MS || p99 > MOST_P99_MS {
        let message = format!("more than {MOST_P50_MS} ms (p50) or {MOST_P99_MS} ms (p99)");
        return Err(Failure::Check(message).into());
    }
    Ok(())
}

/// Ports that nobody listens on, and that nobody else fails to reach.
fn closed_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    // All at once, or one may be given twice.
    let listeners: Vec<_> = (0..count)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect::<Result<_, _>>()?;
    let ports = listeners.iter().map(|listener| Ok(listener.local_addr()?.port()));
    ports.collect()
}

/// Waits for a verdict about a window that ended later.
fn wait(system: &System, port: u16, verdict: &str, since_ns: u64) -> anyhow::Result<()> {
    // Of what was said last, so that one that holds again is not taken for one that held before.
    let sql = format!(
        "SELECT count() FROM (SELECT verdict, window_to FROM verdict_records WHERE assertion = 'latency-{port}' \
         ORDER BY window_to DESC, revision DESC LIMIT 1) WHERE verdict = '{verdict}' \
         AND window_to >= fromUnixTimestamp64Nano(toInt64({since_ns}), 'UTC')"
    );
    let begun = Instant::now();
    while system.number(&sql)? == 0 {
        if begun.elapsed() > PATIENCE {
            bail!("not {verdict} within {} s", PATIENCE.as_secs());
        }
        thread::sleep(ASK_EVERY);
    }
    Ok(())
}

fn wall_ns() -> anyhow::Result<u64> {
    Ok(u64::try_from(
        SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos(),
    )?)
}
