//! A batch of the stream of transitions, checked, as columns that are stored.

use bytes::Bytes;
use holdfast_proto::v1::{Attribution, Process, Role, TransitionColumns};

use super::{
    AHEAD_NS, EARLIEST_NS, MAX_STATE, MAX_STEPS, Malformed, addresses, check_bytes, check_index, check_known,
    check_ports, check_processes, day, length, running_sums,
};

/// The transitions of one batch, checked. All vectors but the dictionaries have one entry a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transitions {
    pub rows: usize,
    /// The day of every row, counted from the epoch.
    pub day: u32,
    pub recorded_at_ns: Vec<i64>,
    /// When its connection was opened.
    pub opened_at_ns: Vec<i64>,
    pub cookie: Vec<u64>,
    pub process: Vec<u32>,
    pub local_address: Vec<u32>,
    pub remote_address: Vec<u32>,
    pub local_port: Vec<u32>,
    pub remote_port: Vec<u32>,
    pub role: Bytes,
    pub attribution: Bytes,
    pub from_state: Bytes,
    pub to_state: Bytes,
    pub step: Bytes,
    pub processes: Vec<Process>,
    pub addresses: Vec<[u8; 16]>,
}

impl Transitions {
    /// Memory that the columns occupy, give or take the allocator's part.
    pub fn heap_bytes(&self) -> usize {
        // Three columns of 8 bytes, five of 4, five of one.
        const ROW_BYTES: usize = 3 * 8 + 5 * 4 + 5;
        let text: usize = self
            .processes
            .iter()
            .map(|process| process.comm.len() + process.service.len())
            .sum();
        self.rows * ROW_BYTES + self.processes.len() * size_of::<Process>() + self.addresses.len() * 16 + text
    }
}

/// Checks the columns of a batch of `rows` transitions.
pub(super) fn transitions(
    columns: TransitionColumns,
    rows: usize,
    now_ns: i64,
) -> Result<Transitions, Malformed> {
    for (column, found) in [
        ("at_ns_delta", columns.at_ns_delta.len()),
        ("open_ns", columns.open_ns.len()),
        ("cookie_delta", columns.cookie_delta.len()),
        ("process", columns.process.len()),
        ("local_address", columns.local_address.len()),
        ("remote_address", columns.remote_address.len()),
        ("local_port", columns.local_port.len()),
        ("remote_port", columns.remote_port.len()),
        ("role", columns.role.len()),
        ("attribution", columns.attribution.len()),
        ("from_state", columns.from_state.len()),
        ("to_state", columns.to_state.len()),
        ("step", columns.step.len()),
    ] {
        if found != rows {
            return Err(length(column, found, rows));
        }
    }
    check_processes(&columns.processes, rows)?;
    let addresses = addresses(&columns.addresses, rows)?;
    check_index("process", &columns.process, columns.processes.len())?;
    check_index("local_address", &columns.local_address, addresses.len())?;
    check_index("remote_address", &columns.remote_address, addresses.len())?;
    check_ports("local_port", &columns.local_port)?;
    check_ports("remote_port", &columns.remote_port)?;
    check_bytes("role", &columns.role, "each end has a role", |value| value != 0)?;
    check_known::<Role>("role", &columns.role)?;
    check_known::<Attribution>("attribution", &columns.attribution)?;
    let is_state = |value: u8| (1..=MAX_STATE).contains(&value);
    check_bytes("from_state", &columns.from_state, "a state of TCP", is_state)?;
    check_bytes("to_state", &columns.to_state, "a state of TCP", is_state)?;
    check_bytes("step", &columns.step, "at most 16", |value| {
        usize::from(value) <= MAX_STEPS
    })?;
    let times = times(&columns, now_ns)?;
    Ok(Transitions {
        rows,
        day: times.day,
        recorded_at_ns: times.recorded_at_ns,
        opened_at_ns: times.opened_at_ns,
        cookie: running_sums(&columns.cookie_delta),
        process: columns.process,
        local_address: columns.local_address,
        remote_address: columns.remote_address,
        local_port: columns.local_port,
        remote_port: columns.remote_port,
        role: columns.role,
        attribution: columns.attribution,
        from_state: columns.from_state,
        to_state: columns.to_state,
        step: columns.step,
        processes: columns.processes,
        addresses,
    })
}

struct Times {
    day: u32,
    recorded_at_ns: Vec<i64>,
    opened_at_ns: Vec<i64>,
}

fn times(columns: &TransitionColumns, now_ns: i64) -> Result<Times, Malformed> {
    let latest_ns = now_ns.saturating_add(AHEAD_NS);
    let rows = columns.open_ns.len();
    let mut times = Times {
        day: 0,
        recorded_at_ns: Vec::with_capacity(rows),
        opened_at_ns: Vec::with_capacity(rows),
    };
    let mut at_ns = 0_i64;
    for (row, (delta, open_ns)) in columns.at_ns_delta.iter().zip(&columns.open_ns).enumerate() {
        let fault = |fault| Malformed::Time { row, fault };
        at_ns = at_ns
            .checked_add(*delta)
            .filter(|at_ns| *at_ns >= EARLIEST_NS)
            .ok_or_else(|| fault("before the year 2000; is the node's clock set?"))?;
        if at_ns > latest_ns {
            return Err(fault(
                "more than a day ahead of the collector; is the node's clock right?",
            ));
        }
        // A clock that was set while the connection was open may put its opening anywhere, but not before 1970.
        let opened_ns = i64::try_from(*open_ns)
            .ok()
            .and_then(|open_ns| at_ns.checked_sub(open_ns))
            .filter(|opened_ns| *opened_ns >= 0)
            .ok_or_else(|| fault("of a connection that was opened before 1970"))?;
        let day = day(at_ns);
        if row == 0 {
            times.day = day;
        } else if times.day != day {
            return Err(Malformed::Days);
        }
        times.recorded_at_ns.push(at_ns);
        times.opened_at_ns.push(opened_ns);
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_NS: i64 = 1_772_366_400_000_000_000;

    fn columns() -> TransitionColumns {
        TransitionColumns {
            at_ns_delta: vec![NOW_NS, -5],
            open_ns: vec![1_000, 0],
            cookie_delta: vec![9, -1],
            process: vec![0, 0],
            local_address: vec![0, 0],
            remote_address: vec![0, 0],
            local_port: vec![80, 80],
            remote_port: vec![40_000, 0],
            role: vec![2, 2].into(),
            attribution: vec![1, 1].into(),
            from_state: vec![1, 7].into(),
            to_state: vec![8, 10].into(),
            step: vec![3, 0].into(),
            processes: vec![Process::default()],
            addresses: vec![vec![0; 16].into()],
        }
    }

    fn changed(change: impl Fn(&mut TransitionColumns)) -> Result<Transitions, Malformed> {
        let mut columns = columns();
        change(&mut columns);
        transitions(columns, 2, NOW_NS)
    }

    #[test]
    fn times_and_cookies_are_sums_of_differences() {
        let decoded = changed(|_| {}).unwrap();
        assert_eq!(decoded.recorded_at_ns, [NOW_NS, NOW_NS - 5]);
        assert_eq!(decoded.opened_at_ns, [NOW_NS - 1_000, NOW_NS - 5]);
        assert_eq!(decoded.cookie, [9, 8]);
        assert_eq!(decoded.day, day(NOW_NS));
    }

    #[test]
    fn what_cannot_be_stored_is_refused() {
        for change in [
            (|columns| columns.to_state = vec![1, 0].into()) as fn(&mut TransitionColumns),
            |columns| columns.from_state = vec![13, 1].into(),
            |columns| columns.role = vec![0, 1].into(),
            |columns| columns.step = vec![17, 0].into(),
            |columns| columns.local_port[1] = 65_536,
            |columns| columns.process[0] = 1,
            |columns| columns.at_ns_delta[0] = 5,
            |columns| columns.at_ns_delta[1] = 2 * AHEAD_NS,
            |columns| columns.at_ns_delta[1] = -AHEAD_NS,
            |columns| columns.open_ns[0] = u64::MAX,
            |columns| columns.open_ns.truncate(1),
            |columns| columns.addresses[0] = vec![0; 4].into(),
        ] {
            assert!(changed(change).is_err());
        }
    }
}
