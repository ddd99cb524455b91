//! What can be changed while the programs run: which connections are followed, and which are handed over.

use std::{thread, time::Duration};

use holdfast_agent_ebpf::{
    control::{ALL, Choice, Control, Filter, Network},
    counter::Counter,
    event::{flag, role},
};

use crate::{host::Host, watch::Watch};

const ONE_OF: Choice = Choice {
    is_set: 1,
    is_negated: 0,
};

/// Opens and closes so many connections, one after another, to a port of its own.
fn connections(host: &Host, count: usize) -> u16 {
    let (listener, to) = host.listen("127.0.0.1");
    for _ in 0..count {
        let client = host.dial(to).expect("a connection");
        drop(listener.accept().expect("a connection"));
        drop(client);
    }
    to.port()
}

fn filtering(filter: Filter) -> Control {
    Control {
        filter,
        is_filtering: 1,
        ..Control::NONE
    }
}

#[test]
fn what_a_filter_hides_is_counted_and_the_rest_is_handed_over() {
    let host = Host::new();
    let mut watch = Watch::on(&host);
    let (wanted, to) = host.listen("127.0.0.1");
    let mut filter = Filter {
        port: ONE_OF,
        ..Filter::NONE
    };
    filter.ports[0] = to.port();
    watch.control(&filtering(filter));
    connections(&host, 5);
    for _ in 0..3 {
        let client = host.dial(to).expect("a connection");
        drop(wanted.accept().expect("a connection"));
        drop(client);
    }
    let records = watch.wait_for(6);
    assert!(
        records
            .iter()
            .all(|record| [record.local_port, record.remote_port].contains(&to.port()))
    );
    watch.wait_until(|counts| counts.total(Counter::Closed) == 16);
    let counts = watch.counts();
    assert_eq!(counts.of(host.netns, Counter::Filtered), 10);

    // Without a filter everything comes again.
    watch.control(&Control::NONE);
    connections(&host, 2);
    assert_eq!(watch.wait_for(10).len(), 10);
    assert_eq!(watch.counts().of(host.netns, Counter::Filtered), 10);
}

#[test]
fn addresses_processes_and_cgroups_are_filtered_by_the_values_of_the_record() {
    let host = Host::new();
    let mut watch = Watch::on(&host);
    connections(&host, 1);
    let (active, _) = watch.both_ends();
    assert_eq!(active.role, role::ACTIVE);
    let another = Network {
        address: [u32::from_ne_bytes([10, 0, 0, 0]), 0, 0, 0],
        mask: [u32::from_ne_bytes([255, 0, 0, 0]), 0, 0, 0],
        family: 2,
    };
    let loopback = Network {
        address: [u32::from_ne_bytes([127, 0, 0, 0]), 0, 0, 0],
        ..another
    };
    let none_of = Choice {
        is_set: 1,
        is_negated: 1,
    };
    let mut seen = 2;
    for (choice, set, passes) in [
        (ONE_OF, "network", true),
        (none_of, "network", false),
        (ONE_OF, "another network", false),
        (ONE_OF, "pid", true),
        (none_of, "pid", false),
        (ONE_OF, "another pid", false),
        (ONE_OF, "cgroup", true),
        (ONE_OF, "another cgroup", false),
    ] {
        let mut filter = Filter::NONE;
        match set {
            "network" => (filter.network, filter.networks[1]) = (choice, loopback),
            "another network" => (filter.network, filter.networks[1]) = (choice, another),
            "pid" => (filter.process, filter.pids[2]) = (choice, active.pid),
            "another pid" => (filter.process, filter.pids[2]) = (choice, active.pid + 1),
            "cgroup" => (filter.cgroup, filter.cgroups[3]) = (choice, active.cgroup_id),
            _ => (filter.cgroup, filter.cgroups[3]) = (choice, active.cgroup_id + 1_000_000),
        }
        watch.control(&filtering(filter));
        let before = watch.counts().of(host.netns, Counter::Filtered);
        connections(&host, 1);
        if passes {
            seen += 2;
            assert_eq!(watch.wait_for(seen).len(), seen, "{set} {choice:?}");
        } else {
            watch.wait_until(|counts| counts.of(host.netns, Counter::Filtered) == before + 2);
        }
    }
}

#[test]
fn the_end_of_an_announced_connection_is_handed_over_whatever_the_filter_is_by_then() {
    let host = Host::new();
    let mut watch = Watch::on(&host);
    let (listener, to) = host.listen("127.0.0.1");
    let client = host.dial(to).expect("a connection");
    let server = listener.accept().expect("a connection");
    thread::sleep(Duration::from_millis(1));
    assert_eq!(watch.announce().len(), 2);
    watch.control(&filtering(Filter {
        port: ONE_OF,
        ..Filter::NONE
    }));
    drop((client, server));
    let records = watch.wait_for(2);
    assert!(records.iter().all(|record| record.flags & flag::FIRST == 0));
    assert_eq!(watch.counts().of(host.netns, Counter::Filtered), 0);
}

#[test]
fn of_sampled_connections_each_is_followed_or_counted() {
    let host = Host::new();
    let mut watch = Watch::on(&host);
    watch.control(&Control {
        largest_followed: ALL / 4,
        ..Control::NONE
    });
    connections(&host, 200);
    watch.wait_until(|counts| counts.total(Counter::Opened) == 400);
    let followed = |counts: &holdfast_agent::probes::KernelCounts| {
        counts.total(Counter::Closed) + counts.total(Counter::SampledOut)
    };
    watch.wait_until(|counts| followed(counts) == 400);
    let counts = watch.counts();
    let closed = counts.total(Counter::Closed);
    // A quarter, and a standard deviation of 9.
    assert!((40..170).contains(&closed), "{counts:?}");
    assert_eq!(watch.wait_for(closed as usize).len(), closed as usize);
    // A survey does not take them in as something that is older than the programs.
    watch.survey(&host);
    assert_eq!(watch.counts().total(Counter::Seeded), 0);
}
