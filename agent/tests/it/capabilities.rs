//! What an agent sees with fewer capabilities than root has.

use std::net::{TcpListener, TcpStream};

use serde_json::json;

use crate::end_to_end::{Collector, Program, wait_for};

#[test]
fn an_agent_that_may_enter_no_namespace_sees_its_own_all_the_same_and_says_what_it_lacks() {
    let collector = Collector::start();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let port = listener.local_addr().expect("its address").port();
    let client = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    let server = listener.accept().expect("a connection").0;
    let state = tempfile::tempdir().expect("a folder");
    let start = |netns: &str| {
        let folder = state.path().join(netns).display().to_string();
        let arguments = [
            "run",
            "--collector",
            &collector.url,
            "--name",
            netns,
            "--netns",
            netns,
            "--state",
            &folder,
            "--max-cpu",
            "off",
            "--syscalls",
            "off",
        ];
        // Those of deploy/systemd/holdfast-agent.service.
        Program::start_with_capabilities("holdfast-agent", &arguments, "+bpf,+perfmon")
    };
    let agents = ["self", "all"].map(start);
    for node in ["self", "all"] {
        wait_for("listener that is older than the agent", || {
            let sql =
                format!("SELECT count() AS n FROM listeners WHERE node = '{node}' AND local_port = {port}");
            (collector.number(&sql) > 0).then_some(())
        });
        wait_for("both ends of the open connection", || {
            let sql = format!(
                "SELECT count() AS n FROM open_connections WHERE node = '{node}' AND {port} IN (local_port, remote_port)"
            );
            (collector.number(&sql) == 2).then_some(())
        });
    }
    for (feature, nodes) in [("namespaces", json!(["all"])), ("owners", json!(["all", "self"]))] {
        let lacks = format!(
            "SELECT arraySort(groupArray(node)) AS nodes FROM nodes WHERE has(missing_features, '{feature}')"
        );
        assert_eq!(collector.sql(&lacks)[0]["nodes"], nodes, "{feature}");
    }
    drop((client, server));
    agents.into_iter().for_each(Program::stop);
}
