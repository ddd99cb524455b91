use super::*;

const SECOND_NS: i64 = 1_000_000_000;
/// When the attempt of the tests began.
const OPENED_NS: i64 = 1_000 * SECOND_NS;

fn ip(text: &str) -> Ipv6Addr {
    text.parse().expect("an address")
}

/// An attempt from `web`, namespace 1, to port 80 of `db`, namespace 2, that lasted three seconds.
fn attempt(local_cause: &str) -> Attempt {
    Attempt {
        boot_id: "boot-web".into(),
        netns: 1,
        opened_ns: OPENED_NS,
        decided_ns: OPENED_NS + 3 * SECOND_NS,
        local_ip: ip("::ffff:10.0.0.1"),
        local_port: 40_000,
        remote_ip: ip("::ffff:10.0.0.2"),
        remote_port: 80,
        outcome: "timed_out".into(),
        syn_retransmits: 1,
        local_cause: local_cause.into(),
        node: "web".into(),
        service: String::new(),
        agent_id: "agent".into(),
        agent_epoch: 1,
        cookie: 5,
        recorded_ns: OPENED_NS + 3 * SECOND_NS,
        pid: 7,
        comm: "curl".into(),
        outcome_number: 3,
        errno: 110,
        alike: 1,
    }
}

/// Looks at the namespace of `db`, some seconds after the attempt began.
fn look(after_s: i64, change: impl Fn(&mut NamespaceSample)) -> NamespaceSample {
    let mut sample = NamespaceSample {
        boot_id: "boot-db".into(),
        netns: 2,
        node: "db".into(),
        observed_ns: OPENED_NS + after_s * SECOND_NS,
        addresses: vec![ip("::ffff:10.0.0.2")],
        listen_overflows: 0,
        listen_drops: 0,
        sees_signals: true,
    };
    change(&mut sample);
    sample
}

fn listener(after_s: i64, backlog: u32, drops: u32) -> ListenerSample {
    ListenerSample {
        boot_id: "boot-db".into(),
        netns: 2,
        node: "db".into(),
        cookie: 9,
        local_ip: ip("::ffff:0.0.0.0"),
        local_port: 80,
        pid: 77,
        comm: "nginx".into(),
        observed_ns: OPENED_NS + after_s * SECOND_NS,
        backlog,
        backlog_limit: 2,
        drops,
    }
}

fn trouble(home: (&str, u32), peer: &str, change: impl Fn(&mut PeerSample)) -> PeerSample {
    let mut sample = PeerSample {
        boot_id: home.0.into(),
        netns: home.1,
        peer_ip: ip(peer),
        port: 80,
        began_ns: OPENED_NS,
        ended_ns: OPENED_NS + SECOND_NS,
        resets_sent: 0,
        syn_ack_retransmits: 0,
        filtered: 0,
    };
    change(&mut sample);
    sample
}

const DB: (&str, u32) = ("boot-db", 2);
const WEB: (&str, u32) = ("boot-web", 1);

/// Everything is well at `db`, and it was looked at before and after.
fn healthy() -> Evidence {
    Evidence {
        namespaces: vec![look(-5, |_| {}), look(5, |_| {})],
        listeners: vec![listener(-5, 0, 0), listener(5, 0, 0)],
        ..Evidence::default()
    }
}

fn check(attempt: &Attempt, evidence: &Evidence, expected: (Cause, bool)) -> Decision {
    let decision = Index::of(evidence).decide(attempt);
    assert_eq!((decision.cause, decision.is_confirmed), expected, "{decision:#?}");
    decision
}

#[test]
fn a_full_queue_is_known_by_what_its_listener_turned_away_and_the_namespace_counted() {
    let mut evidence = healthy();
    evidence.namespaces[1].listen_drops = 2;
    evidence.namespaces[1].listen_overflows = 2;
    evidence.listeners[1].drops = 2;
    let decision = check(&attempt("no_answer"), &evidence, (Cause::ListenerFull, true));
    assert_eq!(
        (
            decision.listener_drops,
            decision.listen_overflows,
            decision.peer_node.as_str()
        ),
        (2, 2, "db")
    );
    assert!(
        decision.evidence.contains("nginx[77] listens on port 80"),
        "{decision:?}"
    );
    // Seen full is enough, also for one that got through in the end.
    let mut evidence = healthy();
    evidence.listeners[1].backlog = 3;
    let slow = Attempt {
        outcome: "established".into(),
        ..attempt("syn_retransmitted")
    };
    check(&slow, &evidence, (Cause::ListenerFull, true));
}

#[test]
fn another_listener_that_is_full_is_not_the_cause() {
    let mut evidence = healthy();
    evidence.namespaces[1].listen_drops = 2;
    evidence.namespaces[1].listen_overflows = 2;
    let other = ListenerSample {
        cookie: 10,
        local_port: 81,
        ..listener(5, 3, 2)
    };
    evidence.listeners.push(other);
    check(&attempt("no_answer"), &evidence, (Cause::DroppedOnPath, true));
}

#[test]
fn silence_at_a_healthy_host_was_lost_on_the_path() {
    check(&attempt("no_answer"), &healthy(), (Cause::DroppedOnPath, true));
}

#[test]
fn what_a_kernel_does_not_show_is_no_evidence_that_it_did_not_happen() {
    let blind = Evidence {
        namespaces: vec![
            look(-5, |look| look.sees_signals = false),
            look(5, |look| look.sees_signals = false),
        ],
        ..healthy()
    };
    let silence = check(&attempt("no_answer"), &blind, (Cause::DroppedOnPath, false));
    assert!(silence.evidence.contains("tcp_signals"), "{silence:?}");
    check(&attempt("refused_by_peer"), &blind, (Cause::Rejected, false));
    // Nor is it one where the client's own kernel does not show it.
    let mut evidence = healthy();
    evidence.namespaces.push(look(5, |look| {
        look.boot_id = "boot-web".into();
        look.netns = 1;
        look.addresses.clear();
        look.sees_signals = false;
    }));
    check(&attempt("no_answer"), &evidence, (Cause::DroppedOnPath, false));
}

#[test]
fn a_filter_is_known_by_what_it_dropped_on_either_side() {
    let mut evidence = healthy();
    evidence
        .peers
        .push(trouble(DB, "::ffff:10.0.0.1", |peer| peer.filtered = 2));
    let decision = check(&attempt("no_answer"), &evidence, (Cause::Filtered, true));
    assert_eq!(decision.filtered, 2);
    let mut evidence = healthy();
    evidence
        .peers
        .push(trouble(WEB, "::ffff:10.0.0.2", |peer| peer.filtered = 1));
    check(&attempt("no_answer"), &evidence, (Cause::Filtered, true));
    // Of another port, or long ago, it says nothing.
    for change in [
        (|peer: &mut PeerSample| peer.port = 81) as fn(&mut PeerSample),
        |peer| {
            peer.began_ns -= 60 * SECOND_NS;
            peer.ended_ns -= 60 * SECOND_NS;
        },
    ] {
        let mut evidence = healthy();
        evidence.peers.push(trouble(DB, "::ffff:10.0.0.1", |peer| {
            peer.filtered = 2;
            change(peer);
        }));
        check(&attempt("no_answer"), &evidence, (Cause::DroppedOnPath, true));
    }
}

#[test]
fn an_answer_that_is_lost_is_known_by_its_repetition() {
    let mut evidence = healthy();
    evidence.peers.push(trouble(DB, "::ffff:10.0.0.1", |peer| {
        peer.port = 0;
        peer.syn_ack_retransmits = 1;
    }));
    check(&attempt("no_answer"), &evidence, (Cause::ReplyDropped, true));
}

#[test]
fn what_the_listener_dropped_was_another_attempt_if_it_answered_this_one_more_than_once() {
    let slow = Attempt {
        outcome: "established".into(),
        ..attempt("syn_retransmitted")
    };
    let end = |syn_retransmits| PassiveEnd {
        boot_id: "boot-db".into(),
        netns: 2,
        node: "db".into(),
        local_ip: slow.remote_ip,
        local_port: slow.remote_port,
        remote_ip: slow.local_ip,
        remote_port: slow.local_port,
        opened_ns: OPENED_NS + SECOND_NS,
        outcome: "established".into(),
        syn_retransmits,
        pid: 77,
        comm: "nginx".into(),
    };
    let mut evidence = healthy();
    evidence.listeners[1].drops = 1;
    evidence.passives = vec![end(2)];
    check(&slow, &evidence, (Cause::ReplyDropped, true));
    evidence.passives = vec![end(0)];
    check(&slow, &evidence, (Cause::DroppedByListener, true));
}

#[test]
fn a_host_without_its_address_is_down_and_one_without_a_word_is_silent() {
    let down = Evidence {
        namespaces: vec![look(-5, |_| {}), look(5, |sample| sample.addresses.clear())],
        ..Evidence::default()
    };
    check(&attempt("no_answer"), &down, (Cause::HostDown, true));
    check(&attempt("host_unreachable"), &down, (Cause::HostDown, true));
    check(&attempt("process_gave_up"), &down, (Cause::HostDown, true));
    let silent = Evidence {
        namespaces: vec![look(-60, |_| {})],
        ..Evidence::default()
    };
    check(&attempt("no_answer"), &silent, (Cause::HostSilent, false));
    check(
        &attempt("host_unreachable"),
        &silent,
        (Cause::HostUnreachable, false),
    );
}

#[test]
fn a_refusal_is_confirmed_by_the_reset_that_was_sent_and_is_a_firewalls_if_none_was() {
    let mut evidence = Evidence {
        namespaces: healthy().namespaces,
        ..Evidence::default()
    };
    check(&attempt("refused_by_peer"), &evidence, (Cause::NoListener, true));
    evidence
        .peers
        .push(trouble(DB, "::ffff:10.0.0.1", |peer| peer.resets_sent = 1));
    let decision = check(&attempt("refused_by_peer"), &evidence, (Cause::NoListener, true));
    assert_eq!(decision.resets_sent, 1);
    check(&attempt("refused_by_peer"), &healthy(), (Cause::Rejected, true));
    check(
        &attempt("refused_by_peer"),
        &Evidence::default(),
        (Cause::NoListener, false),
    );
    check(
        &attempt("icmp_port_unreachable"),
        &healthy(),
        (Cause::Rejected, false),
    );
}

#[test]
fn without_an_agent_at_the_other_end_nothing_is_confirmed() {
    check(
        &attempt("no_answer"),
        &Evidence::default(),
        (Cause::NoAnswer, false),
    );
}

#[test]
fn an_address_that_two_machines_have_is_nobodys_unless_one_is_the_own() {
    let mut evidence = healthy();
    evidence
        .namespaces
        .push(look(0, |sample| sample.boot_id = "boot-other".into()));
    check(&attempt("no_answer"), &evidence, (Cause::NoAnswer, false));
    let neighbour = Attempt {
        boot_id: "boot-db".into(),
        ..attempt("no_answer")
    };
    check(&neighbour, &evidence, (Cause::DroppedOnPath, true));
}

#[test]
fn more_rows_are_a_later_revision() {
    let few = Index::of(&Evidence::default())
        .decide(&attempt("no_answer"))
        .revision;
    let more = Index::of(&healthy()).decide(&attempt("no_answer")).revision;
    assert!(more > few);
}

#[test]
fn what_never_left_its_node_needs_no_other_end() {
    for (local_cause, cause) in [
        ("no_route", Cause::NoRoute),
        ("no_port", Cause::NoPort),
        ("process_gave_up", Cause::ProcessGaveUp),
    ] {
        check(&attempt(local_cause), &Evidence::default(), (cause, true));
    }
}

#[test]
fn a_process_that_gave_up_was_kept_waiting_by_what_dropped_its_syns() {
    let gave_up = Attempt {
        outcome: "aborted".into(),
        decided_ns: OPENED_NS + SECOND_NS,
        syn_retransmits: 0,
        ..attempt("process_gave_up")
    };
    let mut evidence = healthy();
    evidence
        .peers
        .push(trouble(DB, "::ffff:10.0.0.1", |peer| peer.filtered = 1));
    let decision = check(&gave_up, &evidence, (Cause::Filtered, true));
    assert!(
        decision.evidence.contains("until the process gave up"),
        "{decision:?}"
    );
    let mut evidence = healthy();
    evidence.listeners[1].backlog = 3;
    check(&gave_up, &evidence, (Cause::ListenerFull, true));
    let mut evidence = healthy();
    evidence.listeners[1].drops = 1;
    check(&gave_up, &evidence, (Cause::DroppedByListener, true));
    let mut evidence = healthy();
    evidence.peers.push(trouble(DB, "::ffff:10.0.0.1", |peer| {
        peer.port = 0;
        peer.syn_ack_retransmits = 1;
    }));
    check(&gave_up, &evidence, (Cause::ReplyDropped, true));
    // Where nothing was dropped, the answer may have been on its way.
    check(&gave_up, &healthy(), (Cause::ProcessGaveUp, true));
}
