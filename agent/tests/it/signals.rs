//! What the programs count of trouble with peers: resets, what is sent again, and what a filter drops.

use std::{
    net::{SocketAddr, TcpStream},
    process::Command,
    time::Duration,
};

use holdfast_agent::{cause::local_cause, outcome::outcome};
use holdfast_agent_ebpf::{
    event::role,
    peer::{PeerKey, Trouble},
};
use holdfast_proto::v1::{LocalCause, Outcome};

use crate::{
    host::Host,
    outcomes::{IN_THE_HOLE, host_before_a_black_hole, reset_on_close},
    watch::Watch,
};

/// How much of one trouble there was with peers that `is_wanted`.
fn count(watch: &Watch, trouble: Trouble, is_wanted: impl Fn(PeerKey) -> bool) -> u64 {
    let mut sum = 0;
    let each = |key, counts: [u64; _]| {
        if is_wanted(key) {
            sum += counts[trouble as usize];
        }
    };
    watch.peers.each(each).expect("the map of peers");
    sum
}

fn ipv4(key: PeerKey) -> [u8; 4] {
    key.address[0].to_ne_bytes()
}

#[test]
fn a_healthy_connection_is_no_trouble() {
    let host = Host::new();
    let watch = Watch::on(&host);
    let (listener, to) = host.listen("127.0.0.1");
    for _ in 0..50 {
        let client = host.dial(to).expect("a connection");
        drop(listener.accept().expect("a connection"));
        drop(client);
    }
    let mut peers = Vec::new();
    watch
        .peers
        .each(|key, counts| peers.push((key, counts)))
        .expect("the map of peers");
    assert_eq!(peers, []);
}

#[test]
fn a_closed_port_sends_a_reset_and_says_which_port() {
    for (address, family) in [("127.0.0.1", 2), ("::1", 10)] {
        let host = Host::new();
        let watch = Watch::on(&host);
        let to = SocketAddr::new(address.parse().expect("an address"), 9);
        host.dial(to).expect_err("nobody listens");
        let of_port = |key: PeerKey| (key.port, key.family, key.netns) == (9, family, host.netns);
        assert_eq!(count(&watch, Trouble::ResetsSent, of_port), 1, "{address}");
        assert_eq!(count(&watch, Trouble::ResetsReceived, |key| key.port == 0), 1);
    }
}

#[test]
fn a_reset_is_counted_at_both_ends() {
    let host = Host::new();
    let watch = Watch::on(&host);
    let (listener, to) = host.listen("127.0.0.1");
    let client = host.dial(to).expect("a connection");
    let (server, _) = listener.accept().expect("a connection");
    reset_on_close(&server);
    drop(server);
    drop(client);
    assert_eq!(count(&watch, Trouble::ResetsSent, |key| key.port == 0), 1);
    assert_eq!(count(&watch, Trouble::ResetsReceived, |_| true), 1);
}

#[test]
fn syns_and_syn_acks_that_nobody_answers_are_counted() {
    let (host, router) = host_before_a_black_hole();
    let watch = Watch::with(holdfast_agent::probes::Options::default());
    let limit = Duration::from_millis(1_300);
    host.run(move || TcpStream::connect_timeout(&IN_THE_HOLE, limit))
        .expect_err("no answer");
    let to_the_hole = |key: PeerKey| ipv4(key) == [192, 0, 2, 1] && key.netns == host.netns;
    assert_eq!(count(&watch, Trouble::SynRetransmits, to_the_hole), 1);

    // The way back is closed: the SYN arrives and its answer does not.
    let (listener, _) = router.listen("10.0.0.2");
    let to = listener.local_addr().expect("an address");
    filter(&host, "input ip saddr 10.0.0.2 tcp flags & (syn|ack) == syn|ack");
    host.run(move || TcpStream::connect_timeout(&to, Duration::from_millis(2_500)))
        .expect_err("no answer");
    let of_the_client = |key: PeerKey| ipv4(key) == [10, 0, 0, 1] && key.netns == router.netns;
    assert!(count(&watch, Trouble::SynAckRetransmits, of_the_client) >= 1);
    let of_the_server = |key: PeerKey| ipv4(key) == [10, 0, 0, 2] && key.netns == host.netns;
    assert!(count(&watch, Trouble::Filtered, of_the_server) >= 1);
}

#[test]
fn a_syn_ack_that_is_sent_again_is_told_of_its_passive_end() {
    let (client, server) = (Host::new(), Host::new());
    client.connect(&server);
    let mut watch = Watch::on(&server);
    let (listener, _) = server.listen("10.0.0.2");
    let to = listener.local_addr().expect("an address");
    filter(&server, "output tcp flags & (syn|ack) == syn|ack");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(300));
            nft(&server, "delete table inet output_of_test");
        });
        drop(client.dial(to).expect("a connection, late"));
    });
    drop(listener.accept().expect("a connection"));
    let [record] = watch.wait_for(1)[..] else {
        panic!("one end is here");
    };
    assert_eq!(
        (record.role, outcome(&record)),
        (role::PASSIVE, Outcome::Established)
    );
    assert!(record.syn_retransmits >= 1, "{record:?}");
    assert_eq!(record.retransmits, u32::from(record.syn_retransmits));
    assert_eq!(local_cause(&record), LocalCause::SynRetransmitted);
}

#[test]
fn what_netfilter_drops_is_counted_on_the_way_in_and_out_with_the_port_that_was_asked_for() {
    let (client, server) = (Host::new(), Host::new());
    client.connect(&server);
    let watch = Watch::with(holdfast_agent::probes::Options::default());
    filter(&server, "input tcp dport 81");
    filter(&client, "output tcp dport 82");
    for (port, host, peer) in [(81, &server, [10, 0, 0, 1]), (82, &client, [10, 0, 0, 2])] {
        let to = SocketAddr::from(([10, 0, 0, 2], port));
        client
            .run(move || TcpStream::connect_timeout(&to, Duration::from_millis(200)))
            .expect_err("it is filtered");
        let there = |key: PeerKey| (key.netns, key.port, ipv4(key)) == (host.netns, port, peer);
        assert_eq!(count(&watch, Trouble::Filtered, there), 1, "port {port}");
        let anywhere = |key: PeerKey| key.port == port && [client.netns, server.netns].contains(&key.netns);
        assert_eq!(count(&watch, Trouble::Filtered, anywhere), 1, "port {port}");
    }
}

/// Drops packets of a host: a hook of netfilter, and which packets.
pub(crate) fn filter(host: &Host, rule: &str) {
    let (hook, packets) = rule.split_once(' ').expect("a hook and a rule");
    let table = format!("{hook}_of_test");
    let rules = format!(
        "add table inet {table}; add chain inet {table} c {{ type filter hook {hook} priority 0; }}; \
         add rule inet {table} c {packets} counter drop"
    );
    nft(host, &rules);
}

fn nft(host: &Host, command: &str) {
    let command = command.to_owned();
    host.run(move || {
        let output = Command::new("nft")
            .arg(&command)
            .output()
            .expect("the command nft (package nftables)");
        assert!(
            output.status.success(),
            "{command}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    });
}
