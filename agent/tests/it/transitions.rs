//! Every transition as it happens, for those who asked for it; and each told once, by an event or by the record.

use holdfast_agent::probes::Options;
use holdfast_agent_ebpf::{
    control::{Choice, Control, Filter},
    counter::Counter,
    event::{ConnectionRecord, Transition, role, state, step_offset_ns, step_state},
};

use crate::{
    host::Host,
    watch::{Watch, states},
};

const ONE_OF: Choice = Choice {
    is_set: 1,
    is_negated: 0,
};

fn streaming(streamed: Filter) -> Control {
    Control {
        streamed,
        is_streaming: 1,
        is_selecting: u32::from(streamed != Filter::NONE),
        ..Control::NONE
    }
}

/// Opens and closes so many connections, one after another, to a port of its own. The listener stays.
pub(crate) fn connections(host: &Host, count: usize) -> (std::net::TcpListener, u16) {
    let (listener, to) = host.listen("127.0.0.1");
    for _ in 0..count {
        let client = host.dial(to).expect("a connection");
        drop(listener.accept().expect("a connection"));
        drop(client);
    }
    (listener, to.port())
}

/// Those of one end, in the order in which they came.
fn of<'a>(record: &ConnectionRecord, transitions: &'a [Transition]) -> Vec<&'a Transition> {
    let (cookie, opened_ns) = (record.cookie, record.opened_ns);
    transitions
        .iter()
        .filter(|transition| (transition.cookie, transition.opened_ns) == (cookie, opened_ns))
        .collect()
}

#[test]
fn each_step_of_a_path_is_an_event_with_both_ends_and_the_process() {
    let host = Host::new();
    let mut watch = Watch::on(&host);
    watch.control(&streaming(Filter::NONE));
    let (listener, port) = connections(&host, 3);
    drop(listener);
    let records = watch.wait_for(6);
    let steps: usize = records.iter().map(|record| record.steps().len()).sum();
    // And of the listener two.
    let transitions = watch.wait_for_transitions(steps + 2);
    assert_eq!(transitions.len(), steps + 2);
    for record in &records {
        let own = of(record, &transitions);
        let told: Vec<u8> = own.iter().map(|transition| transition.to).collect();
        assert_eq!(told, states(record));
        assert_eq!(record.streamed, ((1_u32 << record.path_len) - 1) as u8);
        for (index, transition) in own.iter().enumerate() {
            let step = record.steps()[index];
            assert_eq!(transition.at_ns, record.opened_ns + step_offset_ns(step));
            assert_eq!(transition.step as usize, index + 1);
            assert_eq!((transition.role, transition.netns), (record.role, host.netns));
            assert_eq!(transition.remote_port, record.remote_port);
            assert_eq!(transition.remote_address, record.remote_address);
            assert_eq!(transition.local_address, record.local_address);
            // The kernel chooses a client's port after SYN_SENT.
            if transition.to != state::SYN_SENT {
                assert_eq!(transition.local_port, record.local_port);
            }
            let before = match index {
                0 if record.role == role::ACTIVE => state::CLOSE,
                0 => state::LISTEN,
                _ => step_state(record.steps()[index - 1]),
            };
            assert_eq!(transition.from, before);
        }
        assert_eq!(own.last().expect("the end").pid, record.pid);
    }
    let of_listener: Vec<_> = transitions
        .iter()
        .filter(|transition| transition.step == 0)
        .collect();
    let listened: Vec<_> = of_listener
        .iter()
        .map(|transition| (transition.from, transition.to))
        .collect();
    assert_eq!(
        listened,
        [(state::CLOSE, state::LISTEN), (state::LISTEN, state::CLOSE)]
    );
    for transition in of_listener {
        assert_eq!(
            (transition.local_port, transition.pid),
            (port, std::process::id()),
            "{transition:?}"
        );
    }
    let counts = watch.counts();
    assert_eq!(
        counts.of(host.netns, Counter::Transitions),
        transitions.len() as u64
    );
    for counter in [
        Counter::TransitionsLost,
        Counter::TransitionsFiltered,
        Counter::TransitionsUntracked,
    ] {
        assert_eq!(counts.total(counter), 0, "{counter:?}");
    }
}

#[test]
fn nothing_is_streamed_unless_it_is_asked_for() {
    let host = Host::new();
    let mut watch = Watch::on(&host);
    let (_listener, _) = connections(&host, 2);
    let records = watch.wait_for(4);
    assert!(records.iter().all(|record| record.streamed == 0));
    assert_eq!(watch.wait_for_transitions(0), []);
    assert_eq!(watch.counts().total(Counter::Transitions), 0);
}

#[test]
fn what_is_switched_on_and_off_within_a_connection_is_told_once() {
    let host = Host::new();
    let mut watch = Watch::on(&host);
    let (listener, to) = host.listen("127.0.0.1");
    let client = host.dial(to).expect("a connection");
    let server = listener.accept().expect("a connection");
    watch.control(&streaming(Filter::NONE));
    drop(client);
    // The server's end has the FIN now, and the client's is done: what waits in TIME_WAIT is another socket.
    watch.wait_until(|counts| counts.total(Counter::Transitions) == 4);
    watch.control(&Control::NONE);
    drop(server);
    let records = watch.wait_for(2);
    let transitions = watch.wait_for_transitions(4);
    for record in &records {
        let mut told = of(record, &transitions)
            .iter()
            .map(|transition| (transition.step as usize - 1, transition.to))
            .collect::<Vec<_>>();
        let streamed = told.len();
        assert_eq!(record.streamed.count_ones() as usize, streamed);
        let rest = states(record).into_iter().enumerate();
        told.extend(rest.filter(|(index, _)| record.streamed & (1 << index) == 0));
        told.sort_unstable();
        let all: Vec<_> = states(record).into_iter().enumerate().collect();
        assert_eq!(told, all, "{record:?}");
    }
    let streamed: u32 = records.iter().map(|record| record.streamed.count_ones()).sum();
    // FIN_WAIT1, FIN_WAIT2 and CLOSE of the client, CLOSE_WAIT of the server.
    assert_eq!(streamed, 4);
}

#[test]
fn they_are_of_whom_they_are_wanted_of_and_the_rest_is_counted() {
    let host = Host::new();
    let mut watch = Watch::on(&host);
    let (_listener, _) = connections(&host, 1);
    let (active, _) = watch.both_ends();
    let (wanted, to) = host.listen("127.0.0.1");
    let mut records = 2;
    for what in [
        "port",
        "namespace",
        "another namespace",
        "pid",
        "another pid",
        "cgroup",
        "another cgroup",
    ] {
        let mut filter = Filter::NONE;
        match what {
            "port" => (filter.port, filter.ports[1]) = (ONE_OF, to.port()),
            "namespace" => (filter.namespace, filter.namespaces[2]) = (ONE_OF, host.netns),
            "another namespace" => (filter.namespace, filter.namespaces[2]) = (ONE_OF, host.netns + 1),
            "pid" => (filter.process, filter.pids[3]) = (ONE_OF, active.pid),
            "another pid" => (filter.process, filter.pids[3]) = (ONE_OF, active.pid + 1),
            "cgroup" => (filter.cgroup, filter.cgroups[4]) = (ONE_OF, active.cgroup_id),
            _ => (filter.cgroup, filter.cgroups[4]) = (ONE_OF, active.cgroup_id + 1_000_000),
        }
        watch.control(&streaming(filter));
        let counted = |watch: &Watch| {
            let counts = watch.counts();
            (
                counts.total(Counter::Transitions),
                counts.total(Counter::TransitionsFiltered),
            )
        };
        let before = counted(&watch);
        let client = host.dial(to).expect("a connection");
        drop(wanted.accept().expect("a connection"));
        drop(client);
        records += 2;
        let all = watch.wait_for(records);
        let steps: usize = all[records - 2..].iter().map(|record| record.steps().len()).sum();
        let after = counted(&watch);
        assert_eq!(after.0 - before.0, steps as u64, "{what}");
        let is_wanted = !what.starts_with("another");
        let hidden = if is_wanted { 0 } else { steps };
        assert_eq!(after.1 - before.1, hidden as u64, "{what}");
        let streamed = watch.wait_for_transitions(steps - hidden).len();
        assert_eq!(streamed, steps - hidden, "{what}");
        watch.forget_transitions();
    }
    // Records are not what was chosen among.
    assert_eq!(watch.counts().total(Counter::Filtered), 0);
}

#[test]
fn what_their_ring_loses_is_counted_to_the_event_and_told_by_the_record() {
    let host = Host::new();
    let mut watch = Watch::with(Options {
        only_netns: Some(host.netns),
        transition_ring_bytes: 4096,
        ..Options::default()
    });
    watch.control(&streaming(Filter::NONE));
    let (_listener, _) = connections(&host, 40);
    let records = watch.wait_for(80);
    let transitions = watch.wait_for_transitions(1);
    let counts = watch.counts();
    let (all, lost) = (
        counts.total(Counter::Transitions),
        counts.total(Counter::TransitionsLost),
    );
    assert!(lost > 0, "{counts:?}");
    assert_eq!(transitions.len() as u64 + lost, all);
    assert_eq!(counts.total(Counter::Lost), 0, "records have a ring of their own");
    let steps: usize = records.iter().map(|record| record.steps().len()).sum();
    let streamed: u32 = records.iter().map(|record| record.streamed.count_ones()).sum();
    // That of the listener is an event, too.
    assert_eq!(steps as u64 + 1, all);
    let of_connections = transitions.iter().filter(|transition| transition.step > 0);
    assert_eq!(of_connections.count(), streamed as usize);
}
