//! Why attempts fail, told apart for real: two hosts with an agent each and a cable between them, a collector, and each
//! way in which a connection does not come about.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    process::Command,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    end_to_end::{Collector, Program, binary, number, start_agent, wait_for, wait_for_node},
    host::Host,
    signals::filter,
};

/// A client and a server, 10.0.0.1 and 10.0.0.2, each with an agent.
struct Pair {
    collector: Collector,
    client: Host,
    server: Host,
    _agents: [Program; 2],
    _state: TempDir,
}

impl Pair {
    fn new() -> Self {
        let collector = Collector::start();
        let (client, server) = (Host::new(), Host::new());
        client.connect(&server);
        let state = tempfile::tempdir().expect("a folder");
        let agent = |host: &Host, name: &str| {
            let agent = start_agent(&collector.url, host, name, &state.path().join(name));
            wait_for_node(&collector, name);
            agent
        };
        let agents = [agent(&client, "client"), agent(&server, "server")];
        // Each has said what its addresses are.
        wait_for("looks at both namespaces", || {
            let sql = "SELECT uniqExact(netns) AS n FROM namespaces WHERE notEmpty(addresses)";
            (collector.number(sql) == 2).then_some(())
        });
        Self {
            collector,
            client,
            server,
            _agents: agents,
            _state: state,
        }
    }

    /// Tries to connect to a port of the server, with so little patience.
    fn dial(&self, port: u16, patience: Duration) -> std::io::Result<TcpStream> {
        let to = SocketAddr::from(([10, 0, 0, 2], port));
        self.client.run(move || TcpStream::connect_timeout(&to, patience))
    }

    /// The cause of the last attempt to a port, once it is `expected` and its evidence is complete.
    fn cause(&self, port: u16, expected: &str, is_complete: impl Fn(&Value) -> bool) -> Value {
        let sql = format!("SELECT * FROM attempt_causes WHERE remote_port = {port} ORDER BY recorded_at");
        let mut last = Value::Null;
        let found = wait_for_or(|| {
            let rows = self.collector.sql(&sql);
            last = rows.last().cloned().unwrap_or_default();
            let is_it = last["cause"] == expected && last["is_confirmed"] == true && is_complete(&last);
            is_it.then(|| last.clone())
        });
        found.unwrap_or_else(|| {
            panic!(
                "{expected} was expected: {last:#}\n{:#?}",
                self.collector.sql("SELECT * FROM peer_samples")
            )
        })
    }
}

/// Like `wait_for`, for who has more to say about a failure.
pub(crate) fn wait_for_or<T>(mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        let result = attempt();
        if result.is_some() || std::time::Instant::now() >= deadline {
            return result;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Longer than the kernel waits before it sends a SYN again.
const ONE_SYN_AGAIN: Duration = Duration::from_millis(1_400);

/// A listener of the server with room for one connection that nobody accepts, and the connections that fill it.
fn full_listener(pair: &Pair) -> (TcpListener, Vec<TcpStream>) {
    let (listener, to) = pair.server.listen("10.0.0.2");
    // SAFETY: a plain system call on a descriptor that lives.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    let fill = pair
        .dial(to.port(), ONE_SYN_AGAIN)
        .expect("there is room for one");
    (listener, vec![fill])
}

#[test]
fn a_full_queue_a_closed_port_a_filter_and_a_lost_packet_are_told_apart() {
    let pair = Pair::new();
    let (listener, _filling) = full_listener(&pair);
    let full = listener.local_addr().expect("an address").port();
    pair.dial(full, ONE_SYN_AGAIN).expect_err("the queue is full");

    pair.dial(9, ONE_SYN_AGAIN).expect_err("nobody listens");

    let (_open, filtered) = pair.server.listen("10.0.0.2");
    filter(&pair.server, &format!("input tcp dport {}", filtered.port()));
    pair.dial(filtered.port(), ONE_SYN_AGAIN)
        .expect_err("it is filtered");

    let (_rejecting, rejected) = pair.server.listen("10.0.0.2");
    reject(&pair.server, rejected.port());
    pair.dial(rejected.port(), ONE_SYN_AGAIN)
        .expect_err("it is rejected");

    // Lost before the server sees it, by what no agent sees: it goes to nobody's device.
    let (_healthy, healthy) = pair.server.listen("10.0.0.2");
    let lost = healthy.port();
    pair.client
        .ip("neigh replace 10.0.0.2 lladdr 02:00:00:00:00:99 dev cable nud permanent");
    pair.dial(lost, ONE_SYN_AGAIN).expect_err("nobody is there");
    pair.client.ip("neigh del 10.0.0.2 dev cable");

    let cause = pair.cause(full, "listener_full", |cause| {
        number(&cause["listener_drops"]) >= 1 && number(&cause["listen_overflows"]) >= 1
    });
    assert_eq!(
        (cause["node"].as_str(), cause["peer_node"].as_str()),
        (Some("client"), Some("server"))
    );
    assert_eq!(number(&cause["peer_netns"]), u64::from(pair.server.netns));
    pair.cause(9, "no_listener", |cause| number(&cause["resets_sent"]) == 1);
    pair.cause(filtered.port(), "filtered", |cause| {
        number(&cause["filtered"]) >= 1
    });
    pair.cause(rejected.port(), "rejected", |_| true);
    pair.cause(lost, "dropped_on_path", |_| true);

    let shown = |arguments: &[&str]| {
        let output = Command::new(binary("holdfast"))
            .arg("causes")
            .args(["--collector", &pair.collector.url])
            .args(arguments)
            .output()
            .expect("holdfast causes");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("text")
    };
    let table = shown(&["--where", "cause = \"listener_full\""]);
    assert!(
        table.contains(&format!("10.0.0.2:{full}")) && table.contains("listens on port"),
        "{table}"
    );
    let lines = shown(&["--json"]);
    assert_eq!(lines.lines().count(), 5, "{lines}");
}

#[test]
fn a_host_whose_link_is_down_is_known_by_the_address_that_it_lost() {
    let pair = Pair::new();
    let (_listener, to) = pair.server.listen("10.0.0.2");
    // The neighbour stays known, as it does for a while: nothing answers, and nobody says so.
    drop(pair.dial(to.port(), ONE_SYN_AGAIN).expect("a connection"));
    pair.server.ip("link set cable down");
    pair.dial(to.port(), ONE_SYN_AGAIN).expect_err("the link is down");
    pair.cause(to.port(), "host_down", |_| true);
}

#[test]
fn an_answer_that_is_lost_on_its_way_back_is_known_by_its_repetition_and_a_slow_one_has_a_cause() {
    let pair = Pair::new();
    let (listener, to) = pair.server.listen("10.0.0.2");
    // The answers of the server go to nobody.
    pair.server
        .ip("neigh replace 10.0.0.1 lladdr 02:00:00:00:00:99 dev cable nud permanent");
    pair.dial(to.port(), Duration::from_millis(2_500))
        .expect_err("no answer");
    pair.cause(to.port(), "reply_dropped", |_| true);

    // For half a second only: the connection comes about, late.
    let (slow, to) = pair.server.listen("10.0.0.2");
    let port = to.port();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(500));
            pair.server.ip("neigh del 10.0.0.1 dev cable");
        });
        drop(
            pair.dial(port, Duration::from_secs(20))
                .expect("a connection, late"),
        );
    });
    let cause = pair.cause(port, "reply_dropped", |_| true);
    assert_eq!(cause["outcome"], "established");
    assert_eq!(cause["local_cause"], "syn_retransmitted");
    drop((listener, slow));
}

/// Answers what comes to a port of a host with an ICMP message.
fn reject(host: &Host, port: u16) {
    host.run(move || {
        let rules = format!(
            "add table inet rejecting; add chain inet rejecting c {{ type filter hook input priority 0; }}; \
             add rule inet rejecting c tcp dport {port} counter reject with tcp reset"
        );
        let output = Command::new("nft")
            .arg(&rules)
            .output()
            .expect("the command nft (package nftables)");
        assert!(
            output.status.success(),
            "{rules}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    });
}
