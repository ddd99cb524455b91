//! Load from a real agent on a target of another host, which has an agent as well: what a run says of each way in which a
//! target fails, and what the kernels of both ends say of the same connections.

use std::{
    io::Read,
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd,
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    end_to_end::{Collector, Program, binary, free_port, number, start_agent, wait_for, wait_for_node},
    host::Host,
    signals::filter,
};

/// The client's host, from the inside: the collector runs there, and the agent that makes the load.
struct Inside {
    collector: Collector,
    server: Host,
    _agents: [Program; 2],
}

/// A run that is over, as the command line ended.
struct Run {
    code: Option<i32>,
    run_id: String,
    reasons: String,
    /// The collector was not heard of in time: a machine that stood still for a moment, and no matter of the target.
    is_disturbed: bool,
}

impl Inside {
    /// `netns` is the client's, in which this runs; the server is 10.0.0.2 for it.
    fn new(netns: &str, server: Host, state: &Path) -> Self {
        let collector = Collector::start();
        let folder = state.join("client").display().to_string();
        let client = Program::start(
            "holdfast-agent",
            &[
                "run",
                "--collector",
                &collector.url,
                "--name",
                "client",
                "--netns",
                netns,
                "--state",
                &folder,
                "--max-cpu",
                "off",
                "--load-targets",
                "10.0.0.2",
            ],
        );
        let agents = [
            client,
            start_agent(&collector.url, &server, "server", &state.join("server")),
        ];
        for node in ["client", "server"] {
            wait_for_node(&collector, node);
        }
        // Each has said what its addresses are.
        wait_for("looks at both namespaces", || {
            let sql = "SELECT uniqExact(netns) AS n FROM namespaces WHERE notEmpty(addresses)";
            (collector.number(sql) == 2).then_some(())
        });
        Self {
            collector,
            server,
            _agents: agents,
        }
    }

    /// A server of ours that sends back what comes, on a port of the server's host.
    fn serve(&self, port: u16) -> Program {
        let listen = format!("10.0.0.2:{port}");
        let program = self
            .server
            .run(move || Program::start("holdfast", &["load", "serve", "--listen", &listen]));
        let address = SocketAddr::from(([10, 0, 0, 2], port));
        wait_for("a server", || TcpStream::connect(address).ok());
        program
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("holdfast"));
        command
            .args(arguments)
            .args(["--json", "--collector", &self.collector.url])
            .stdin(Stdio::null());
        command
    }

    fn begin(&self, port: u16, arguments: &[&str]) -> Child {
        let target = format!("10.0.0.2:{port}");
        let mut command = self.command(&["load", "tcp", &target, "-y", "-s", "5ms", "--node", "client"]);
        command
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().expect("holdfast load")
    }

    fn end(&self, child: Child) -> Run {
        let Output {
            status,
            stdout,
            stderr,
        } = child.wait_with_output().expect("our own child");
        let row: Value = serde_json::from_slice(&stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&stderr)));
        let reasons = row["reasons"].to_string();
        Run {
            code: status.code(),
            run_id: row["run_id"].as_str().expect("an id").to_owned(),
            is_disturbed: reasons.contains("did not hear of the collector"),
            reasons,
        }
    }

    fn run(&self, port: u16, arguments: &[&str]) -> Run {
        undisturbed(|| self.end(self.begin(port, arguments)))
    }

    /// What is known of a run, once the kernels' records are as the test wants them.
    fn known(&self, run: &Run, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let found = crate::causes::wait_for_or(|| {
            let output = self
                .command(&["run", "show", &run.run_id])
                .output()
                .expect("holdfast run");
            let row: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            let result = row["result"].as_str().expect("a result");
            last = serde_json::from_str(result).expect("JSON");
            // A machine that is busy is late, and a run that was late proves nothing.
            let is_late = row["verdict"] == "unknown"
                && row["reasons"][0]
                    .as_str()
                    .is_some_and(|why| why.contains("late") || why.contains("lack CPU"));
            let is_contradicted = row["reasons"].to_string().contains("the target's kernel");
            let expected = match row["verdict"].as_str() {
                Some("holds") => 0,
                Some("violated") => 1,
                _ if is_late || is_contradicted => 3,
                _ => panic!("{row:#}"),
            };
            assert_eq!(run.code, Some(expected), "{row:#}");
            wanted(&last["kernel"]).then(|| last.clone())
        });
        found.unwrap_or_else(|| panic!("other records were expected: {last:#}"))
    }
}

/// Does it again as long as the machine disturbs it.
fn undisturbed(mut attempt: impl FnMut() -> Run) -> Run {
    for _ in 0..10 {
        let run = attempt();
        if !run.is_disturbed {
            return run;
        }
    }
    panic!("the machine stands still too often");
}

/// Whether attempts have one cause, which the other end confirms.
fn is_caused(kernel: &Value, cause: &str, attempts: u64) -> bool {
    kernel["causes"].as_array().is_some_and(|causes| {
        causes.iter().any(|found| {
            found["cause"] == cause
                && found["is_confirmed"] == true
                && found["attempts"] == attempts
                && found["node"] == "server"
        })
    })
}

#[test]
fn each_way_in_which_a_target_fails_is_named_and_both_kernels_say_so() {
    let (client, server) = (Host::new(), Host::new());
    client.connect(&server);
    let netns = client.netns_path();
    let state = tempfile::tempdir().expect("a folder");
    let folder = state.path().to_owned();
    client.run(move || {
        let inside = Inside::new(&netns, server, &folder);
        healthy(&inside);
        one_after_another(&inside);
        refused(&inside);
        never_accepted(&inside);
        never_accepted_and_never_full(&inside);
        dropped(&inside);
        paused(&inside);
        killed(&inside);
    });
}

fn healthy(inside: &Inside) {
    let _server = inside.serve(8001);
    let run = inside.run(8001, &["-c", "20", "--payload", "64"]);
    let result = inside.known(&run, |kernel| {
        kernel["attempts"] == 20
            && kernel["seen_by_target"] == 20
            && kernel["served_by_target"] == 20
            && kernel["ends"][0]["connections"] == 20
            && kernel["ends_at_target"][0]["connections"] == 20
    });
    let kernel = &result["kernel"];
    assert_eq!(
        (
            result["counts"]["established"].as_u64(),
            kernel["established"].as_u64()
        ),
        (Some(20), Some(20))
    );
    // We close by a reset, and each end has its own word for it.
    assert_eq!(
        kernel["ends"][0]["close_reason"], "reset_by_process",
        "{kernel:#}"
    );
    assert_eq!(
        kernel["ends_at_target"][0]["close_reason"], "reset_by_peer",
        "{kernel:#}"
    );
    assert_eq!(kernel["causes"], Value::Array(vec![]), "{kernel:#}");
    // The kernel's time and ours are of the same handshakes.
    let (theirs, ours) = (
        number(&kernel["connect_p50_us"]) * 1_000,
        number(&result["dial"]["p50_ns"]),
    );
    assert!(
        theirs <= ours + 1_000,
        "{theirs} ns by the kernel, {ours} ns by us"
    );
}

/// Runs of one agent on one target, whose connections only the time tells apart.
fn one_after_another(inside: &Inside) {
    let _server = inside.serve(8003);
    let runs = [12, 7].map(|connections| (connections, inside.run(8003, &["-c", &connections.to_string()])));
    for (connections, run) in &runs {
        let result = inside.known(run, |kernel| {
            kernel["attempts"] == *connections && kernel["ends"][0]["connections"] == *connections
        });
        assert_eq!(result["counts"]["established"], *connections);
    }
}

fn refused(inside: &Inside) {
    // The first 20 of a minute are looked into: the second run may have none of its own among them.
    for connections in [25, 10] {
        let run = inside.run(9, &["-c", &connections.to_string()]);
        let result = inside.known(&run, |kernel| {
            kernel["refused"] == connections && is_caused(kernel, "no_listener", connections)
        });
        assert_eq!(result["counts"]["refused"], connections);
    }
}

fn never_accepted(inside: &Inside) {
    let (listener, to) = inside.server.listen("10.0.0.2");
    // SAFETY: a plain system call on a descriptor that lives.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    // Long enough for a SYN to be sent again.
    let run = inside.run(to.port(), &["-c", "6", "-t", "2500ms"]);
    let established = |result: &Value| number(&result["counts"]["established"]);
    let result = inside.known(&run, |kernel| {
        kernel["attempts"] == 6
            && kernel["timed_out"]
                .as_u64()
                .is_some_and(|timed_out| is_caused(kernel, "listener_full", timed_out))
    });
    // What the backlog holds, and what dialled at the same moment, was established and never taken.
    assert!((1..6).contains(&established(&result)), "{result:#}");
    assert_eq!(number(&result["counts"]["timed_out"]), 6 - established(&result));
    assert_eq!(result["kernel"]["taken_by_target"], 0, "{result:#}");
}

/// The backlog holds all of them, so nothing fails; but nobody is served either.
fn never_accepted_and_never_full(inside: &Inside) {
    let (_listener, to) = inside.server.listen("10.0.0.2");
    let held = ["-c", "10", "--hold", "500ms"];
    let run = inside.run(to.port(), &held);
    let result = inside.known(&run, |kernel| {
        kernel["seen_by_target"] == 10 && kernel["untaken_by_target"] == 10
    });
    assert_eq!(number(&result["counts"]["established"]), 10);
    for (expected, code, part) in [
        (&[][..], 3, "accept() may never have been called"),
        (
            &["--expect", "error_ratio < 1%"],
            3,
            "accept() may never have been called",
        ),
        (&["--expect", "established_there = 10"], 0, ""),
        (&["--expect", "accepted = 10"], 3, "0 or more"),
    ] {
        let run = inside.run(to.port(), &[&held[..], expected].concat());
        // A machine that is busy is late, and a run that was late proves nothing.
        let is_late = run.reasons.contains("lack CPU");
        let is_as_expected = run.code == Some(code) && run.reasons.contains(part);
        assert!(is_late || is_as_expected, "{expected:?}: {}", run.reasons);
    }
}

fn dropped(inside: &Inside) {
    let (_listener, to) = inside.server.listen("10.0.0.2");
    filter(&inside.server, &format!("input tcp dport {}", to.port()));
    let run = inside.run(to.port(), &["-c", "5", "-t", "1500ms"]);
    let result = inside.known(&run, |kernel| {
        kernel["timed_out"] == 5 && is_caused(kernel, "filtered", 5)
    });
    assert_eq!(result["counts"]["timed_out"], 5);
}

fn paused(inside: &Inside) {
    let server = inside.serve(8002);
    let pid = Pid::from_raw(server.id() as i32);
    kill(pid, Signal::SIGSTOP).expect("our own child");
    let run = inside.run(8002, &["-c", "5", "--payload", "10", "-t", "1s"]);
    let result = inside.known(&run, |kernel| {
        kernel["seen_by_target"] == 5 && kernel["ends_at_target"][0]["connections"] == 5
    });
    kill(pid, Signal::SIGCONT).expect("our own child");
    // Its kernel took them, and what was sent; the process did nothing.
    let (counts, kernel) = (&result["counts"], &result["kernel"]);
    assert_eq!(
        (counts["established"].as_u64(), counts["lost_timed_out"].as_u64()),
        (Some(5), Some(5)),
        "{result:#}"
    );
    assert_eq!(
        (
            number(&kernel["taken_by_target"]),
            number(&kernel["served_by_target"])
        ),
        (0, 0),
        "{result:#}"
    );
}

fn killed(inside: &Inside) {
    let (mut port, mut pid) = (8003, 0);
    let run = undisturbed(|| {
        port += 1;
        let server = inside.serve(port);
        pid = server.id();
        let mut child = inside.begin(port, &["-c", "10", "--hold", "5m"]);
        let sql = "SELECT max(open) AS n FROM load_samples WHERE run_id = (SELECT run_id FROM runs WHERE state = 'running')";
        while inside.collector.number(sql) < 10 && child.try_wait().expect("our own child").is_none() {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        server.kill();
        inside.end(child)
    });
    // Where our reset comes after the answer to their FIN, they have finished by then: ends of two kinds.
    let ends = |kernel: &Value| kernel["ends_at_target"].as_array().cloned().unwrap_or_default();
    let result = inside.known(&run, |kernel| {
        ends(kernel)
            .iter()
            .map(|end| number(&end["connections"]))
            .sum::<u64>()
            == 10
    });
    let counts = &result["counts"];
    let lost = number(&counts["closed_by_peer"]) + number(&counts["reset_by_peer"]);
    let times = result["lost"].as_array().expect("losses").iter();
    let timed: u64 = times.map(|lost| number(&lost["count"])).sum();
    assert_eq!((lost, timed), (10, 10), "{result:#}");
    // All by the process that died.
    for end in ends(&result["kernel"]) {
        assert_eq!(
            (&end["pid"], &end["node"]),
            (&pid.into(), &"server".into()),
            "{result:#}"
        );
    }
}

#[test]
fn the_load_ends_with_its_collector_and_what_it_did_is_known_to_the_next_one() {
    let host = Host::new();
    let netns = host.netns_path();
    let folder = tempfile::tempdir().expect("a folder");
    let (data, state) = (folder.path().join("data"), folder.path().join("state"));
    host.run(move || {
        let (port, web) = (free_port(), free_port());
        let collector = Collector::start_on(&data, port, web);
        let state = state.display().to_string();
        let _agent = Program::start(
            "holdfast-agent",
            &[
                "run",
                "--collector",
                &collector.url,
                "--name",
                "lone",
                "--netns",
                &netns,
                "--state",
                &state,
                "--max-cpu",
                "off",
            ],
        );
        wait_for_node(&collector, "lone");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        let target = listener.local_addr().expect("its address").to_string();
        let url = collector.url.clone();
        let holdfast = |arguments: &[&str]| {
            let mut command = Command::new(binary("holdfast"));
            command
                .args(arguments)
                .args(["--collector", &url])
                .stdin(Stdio::null());
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            command
        };
        let caller = holdfast(&[
            "load", "tcp", &target, "-y", "-c", "7", "-s", "1ms", "--hold", "50m",
        ]);
        let caller = { caller }.spawn().expect("holdfast load");
        let mut held: Vec<_> = (0..7)
            .map(|_| listener.accept().expect("a connection").0)
            .collect();
        wait_for("word of all seven", || {
            (collector.number("SELECT sum(established) AS n FROM load_samples") == 7).then_some(())
        });
        collector.kill();
        // The agent lets go long before the hold is over: by a reset, which no read survives.
        let killed = Instant::now();
        let letting_go = thread::spawn(move || {
            for connection in &mut held {
                connection
                    .set_read_timeout(Some(Duration::from_secs(60)))
                    .expect("set");
                let error = connection.read(&mut [0]).expect_err("a reset");
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
            }
            killed.elapsed()
        });

        // Whoever asked for the run is told where to look.
        let output = { caller }.wait_with_output().expect("our own child");
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("holdfast run show"), "{said}");
        let let_go_after = letting_go.join().expect("each was reset");
        assert!(let_go_after < Duration::from_secs(1), "{let_go_after:?}");

        let collector = Collector::start_on(&data, port, web);
        let run_id = collector.sql("SELECT run_id FROM runs")[0]["run_id"]
            .as_str()
            .expect("an id")
            .to_owned();
        let shown = wait_for("a run that is known to be lost, with what its kernel saw", || {
            let output = holdfast(&["run", "show", &run_id])
                .output()
                .expect("holdfast run");
            let text = String::from_utf8(output.stdout).expect("text");
            (text.contains(": lost from lone") && text.contains("7 reset by process here")).then_some(text)
        });
        assert!(shown.contains("its collector ended before it did"), "{shown}");
        assert!(
            shown.contains("7 in") && shown.contains(": 7 established"),
            "{shown}"
        );
        let listed = holdfast(&["runs"]).output().expect("holdfast runs");
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(listed.contains("lost"), "{listed}");
    });
}
