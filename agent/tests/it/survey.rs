//! What a survey shows: connections and listeners, those that are older than the programs included.

use std::{
    collections::HashSet,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
};

use holdfast_agent::owners::owners;
use holdfast_agent_ebpf::{
    control::{Choice, Control, Filter},
    counter::Counter,
    event::{SocketReport, attribution, flag, role, state},
};
use holdfast_proto::v1::{CloseReason, Outcome};

use crate::{
    host::Host,
    outcomes::reset_on_close,
    watch::{Watch, check, states},
};

fn end(reports: &[SocketReport], role: u8) -> SocketReport {
    let found: Vec<_> = reports
        .iter()
        .filter(|report| report.state != state::LISTEN && report.record.role == role)
        .collect();
    assert_eq!(found.len(), 1, "{reports:#?}");
    *found[0]
}

fn listener(reports: &[SocketReport]) -> SocketReport {
    let found: Vec<_> = reports
        .iter()
        .filter(|report| report.state == state::LISTEN)
        .collect();
    assert_eq!(found.len(), 1, "{reports:#?}");
    *found[0]
}

fn exchange(client: &mut TcpStream, server: &mut TcpStream) {
    client.write_all(b"ping").expect("sent");
    server.read_exact(&mut [0; 4]).expect("received");
    server.write_all(b"pong!").expect("sent");
    client.read_exact(&mut [0; 5]).expect("received");
}

#[test]
fn what_the_programs_do_can_be_changed_while_sockets_are_read() {
    let host = Host::new();
    let mut watch = Watch::on(&host);
    let (listening, to) = host.listen("127.0.0.1");
    let client = host.dial(to).expect("a connection");
    let server = listening.accept().expect("a connection");
    let nobody = Control {
        // One of no ports.
        filter: Filter {
            port: Choice {
                is_set: 1,
                is_negated: 0,
            },
            ..Filter::NONE
        },
        is_filtering: 1,
        ..Control::NONE
    };
    assert_eq!(watch.control_in_a_survey(&host, &nobody), 3);
    drop((client, server));
    watch.wait_until(|counts| counts.total(Counter::Filtered) == 2);
}

#[test]
fn what_is_older_than_the_programs_gets_a_place_and_its_end_is_seen() {
    let host = Host::new();
    let (listening, to) = host.listen("127.0.0.1");
    let mut client = host.dial(to).expect("a connection");
    let mut server = listening.accept().expect("a connection").0;
    exchange(&mut client, &mut server);

    let mut watch = Watch::on(&host);
    let reports = watch.survey(&host);
    assert_eq!(reports.len(), 3, "{reports:#?}");
    let (active, passive) = (end(&reports, role::ACTIVE), end(&reports, role::PASSIVE));
    for report in [active, passive] {
        assert_eq!(report.state, state::ESTABLISHED);
        assert_eq!(report.record.flags, flag::SEEDED | flag::ESTABLISHED);
        assert_eq!(states(&report.record), [state::ESTABLISHED]);
        assert_eq!(report.record.attribution, attribution::UNKNOWN);
        let found = owners(Path::new("/proc"), &HashSet::from([report.inode]));
        assert_eq!(found[&report.inode].pid, std::process::id());
    }
    assert_eq!(
        (active.record.bytes_received, passive.record.bytes_received),
        (5, 4)
    );
    assert_eq!(active.record.remote_port, to.port());
    assert_eq!(active.record.local_port, passive.record.remote_port);
    assert_eq!(watch.announce(), [], "nobody attempted anything now");

    let again = watch.survey(&host);
    assert_eq!(again.len(), 3, "seeded once");
    assert_eq!(
        end(&again, role::ACTIVE).record.opened_ns,
        active.record.opened_ns
    );

    drop(client);
    server.read_to_end(&mut Vec::new()).expect("the end");
    drop(server);
    let (active_end, passive_end) = watch.both_ends();
    for (report, last) in [(active, active_end), (passive, passive_end)] {
        assert_eq!(last.cookie, report.record.cookie);
        assert_eq!(last.flags & (flag::FIRST | flag::FINAL), flag::FINAL);
        check(&last, (Outcome::Established, CloseReason::Finished));
        assert_eq!(
            (last.attribution, last.pid),
            (attribution::EXACT, std::process::id())
        );
    }
    assert_eq!(watch.counts().total(Counter::Unseen), 0);
}

#[test]
fn owners_of_what_is_older_than_the_programs_are_read_from_proc_and_say_so() {
    let host = Host::new();
    let (listening, to) = host.listen("127.0.0.1");
    let old = host.dial(to).expect("a connection");
    let old_server = listening.accept().expect("a connection").0;
    let mut watch = Watch::on(&host);
    let (seeds, found) = watch.seed(&host);
    assert_eq!((found.connections, found.listeners, found.unowned), (2, 1, 0));
    assert!(found.unseen.is_empty(), "{found:?}");

    // A reset closes the other end in a softirq: nobody can see who owned it.
    let young = host.dial(to).expect("a connection");
    let young_server = listening.accept().expect("a connection").0;
    for client in [old, young] {
        reset_on_close(&client);
        drop(client);
    }
    let mut passive: Vec<_> = watch
        .wait_for(4)
        .into_iter()
        .filter(|record| record.role == role::PASSIVE)
        .collect();
    for record in &mut passive {
        check(record, (Outcome::Established, CloseReason::ResetByPeer));
        seeds.complete(record);
        assert_eq!(
            (record.attribution, record.pid),
            (attribution::SNAPSHOT, std::process::id())
        );
    }
    assert_eq!(passive.len(), 2);
    drop((old_server, young_server));
}

#[test]
fn an_open_connection_is_shown_with_what_it_carried_so_far() {
    let host = Host::new();
    let mut watch = Watch::on(&host);
    let (listening, to) = host.listen("::1");
    let mut client = host.dial(to).expect("a connection");
    let mut server = listening.accept().expect("a connection").0;
    exchange(&mut client, &mut server);
    let active = end(&watch.survey(&host), role::ACTIVE);
    assert_eq!(states(&active.record), [state::SYN_SENT, state::ESTABLISHED]);
    assert_eq!(active.record.flags & flag::SEEDED, 0);
    assert_eq!(
        (active.record.bytes_received, active.record.pid),
        (5, std::process::id())
    );
    assert!(active.record.srtt_us > 0, "{active:#?}");
}

#[test]
fn a_listener_is_shown_with_its_queue_its_limit_and_what_it_turned_away() {
    let host = Host::new();
    let mut watch = Watch::on(&host);
    let (listening, to) = host.run(|| {
        let listening = short_listener(1);
        let to = listening.local_addr().expect("its address");
        (listening, to)
    });
    let _waiting: Vec<_> = (0..2).map(|_| host.dial(to).expect("a connection")).collect();
    let late = host.run(move || TcpStream::connect_timeout(&to, std::time::Duration::from_millis(1_300)));
    assert!(late.is_err(), "the queue is full");
    let report = listener(&watch.survey(&host));
    assert_eq!((report.backlog, report.backlog_limit), (2, 1));
    assert!(report.drops > 0, "{report:#?}");
    assert_eq!(
        (report.record.local_port, report.record.netns, report.record.pid),
        (to.port(), host.netns, std::process::id())
    );
    assert_eq!(report.record.attribution, attribution::LISTENER);
    drop(listening);
    let left = watch.survey(&host);
    assert!(
        left.iter().all(|report| report.state != state::LISTEN),
        "{left:#?}"
    );
}

/// A listener with a queue of this length; the standard library asks for 128.
fn short_listener(backlog: i32) -> std::net::TcpListener {
    let listening = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a listener");
    // SAFETY: the descriptor is open. listen() on a listener sets its limit anew.
    let result = unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&listening), backlog) };
    assert_eq!(result, 0);
    listening
}

#[test]
fn ten_thousand_sockets_are_shown_once_each() {
    const PAIRS: usize = 5_000;
    let host = Host::new();
    let (listening, to) = host.listen("127.0.0.1");
    let held: Vec<_> = host.run(move || {
        (0..PAIRS)
            .map(|_| {
                let client = TcpStream::connect(to).expect("a connection");
                (client, listening.accept().expect("a connection"))
            })
            .collect()
    });
    let mut watch = Watch::on(&host);
    let shown = watch.survey(&host);
    let cookies: HashSet<_> = shown.iter().map(|report| report.record.cookie).collect();
    assert_eq!((shown.len(), cookies.len()), (2 * PAIRS, 2 * PAIRS));
    drop(held);
    assert_eq!(watch.wait_for(2 * PAIRS).len(), 2 * PAIRS);
    assert_eq!(watch.counts().total(Counter::Unseen), 0);
}
