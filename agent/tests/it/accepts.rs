//! How long connections wait in the queue of their listener.

use std::{thread, time::Duration};

use holdfast_agent::probes::Options;
use holdfast_agent::syscalls::{Mode, kernel::Sizes};
use holdfast_agent_ebpf::event::role;

use crate::{host::Host, watch::Watch};

/// How long a connection is left in the queue, at least.
const LEFT: Duration = Duration::from_millis(30);

fn check(mut watch: Watch, host: &Host) {
    let (listener, to) = host.listen("127.0.0.1");
    let late = host.dial(to).expect("a connection");
    thread::sleep(LEFT);
    let (late_end, _) = listener.accept().expect("a connection");
    let at_once = thread::spawn(move || {
        let accepted = listener.accept().expect("a connection");
        (listener, accepted)
    });
    let early = host.dial(to).expect("a connection");
    let (listener, (early_end, _)) = at_once.join().expect("a connection");
    let never = host.dial(to).expect("a connection");
    let ports = [&late, &early, &never].map(|end| end.local_addr().expect("its address").port());
    drop((late, late_end, early, early_end, never, listener));
    let records = watch.wait_for(6);
    assert!(
        records
            .iter()
            .filter(|record| record.role == role::ACTIVE)
            .all(|record| record.accept_wait == 0)
    );
    let [late, early, never] = ports.map(|port| {
        let is_it = |record: &&_| {
            let record: &holdfast_agent_ebpf::event::ConnectionRecord = record;
            (record.role, record.remote_port) == (role::PASSIVE, port)
        };
        records.iter().find(is_it).expect("a passive end").accept_wait
    });
    assert!(late > LEFT.as_micros() as u32, "{late} us");
    // It has waited for its other end, not the other way round; by how long is the machine's matter.
    assert!(early > 0);
    assert_eq!(never, 0, "nobody accepted it");
}

#[test]
fn a_connection_says_how_long_it_waited_for_accept() {
    let host = Host::new();
    check(Watch::on(&host), &host);
}

#[test]
fn it_says_so_where_system_calls_are_counted_too() {
    let host = Host::new();
    let mut watch = Watch::with(Options {
        only_netns: Some(host.netns),
        syscalls: Some(Sizes::of_this_machine().expect("the number of CPUs")),
        ..Options::default()
    });
    watch.count_syscalls(Mode::Counts);
    check(watch, &host);
}
