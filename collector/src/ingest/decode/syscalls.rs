//! A batch of the stream of syscalls, checked, as columns that are stored.

use holdfast_proto::v1::{SyscallCaller, SyscallColumns};

use super::{
    AHEAD_NS, EARLIEST_NS, MAX_COMM_BYTES, MAX_SERVICE_BYTES, Malformed, check_entries, check_index, day,
    length,
};
use crate::store::buckets;

/// `MAX_ERRNO` (include/linux/err.h).
const MAX_ERRNO: u32 = 4_095;

/// Buckets of a latency on the wire: the last one is that of 2^64 - 1 ns.
const BUCKETS: u32 = 496;

/// The longest name of a syscall has 23.
const MAX_NAME_BYTES: usize = 64;

/// The calls of one batch, checked. All vectors but the dictionaries and the elements have one entry a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Syscalls {
    pub rows: usize,
    /// The day of the interval's end, counted from the epoch.
    pub day: u32,
    /// The interval that all rows are of.
    pub began_at_ns: i64,
    pub ended_at_ns: i64,
    pub measured_one_in: u32,
    pub caller: Vec<u32>,
    pub name: Vec<u32>,
    pub calls: Vec<u64>,
    /// Of these, those that failed.
    pub errors: Vec<u64>,
    /// Where each row's errnos end in the two that follow.
    pub errno_ends: Vec<u64>,
    pub errno: Vec<u16>,
    pub errno_calls: Vec<u64>,
    /// Calls whose latency was measured.
    pub measured: Vec<u64>,
    /// Where each row's buckets end in the two that follow.
    pub bucket_ends: Vec<u64>,
    /// Of [`buckets`], in nanoseconds.
    pub bucket: Vec<u16>,
    pub bucket_calls: Vec<u64>,
    pub callers: Vec<SyscallCaller>,
    pub names: Vec<String>,
}

impl Syscalls {
    /// Memory that the columns occupy, give or take the allocator's part.
    pub fn heap_bytes(&self) -> usize {
        // Five columns of 8 bytes, two of 4.
        const ROW_BYTES: usize = 5 * 8 + 2 * 4;
        const ELEMENT_BYTES: usize = 2 + 8;
        let callers: usize = self
            .callers
            .iter()
            .map(|caller| size_of::<SyscallCaller>() + caller.comm.len() + caller.service.len())
            .sum();
        let names: usize = self
            .names
            .iter()
            .map(|name| size_of::<String>() + name.len())
            .sum();
        self.rows * ROW_BYTES + (self.errno.len() + self.bucket.len()) * ELEMENT_BYTES + callers + names
    }
}

/// Checks the columns of a batch of `rows` rows.
pub(super) fn syscalls(columns: SyscallColumns, rows: usize, now_ns: i64) -> Result<Syscalls, Malformed> {
    for (column, found) in [
        ("caller", columns.caller.len()),
        ("name", columns.name.len()),
        ("calls", columns.calls.len()),
        ("errnos", columns.errnos.len()),
        ("buckets", columns.buckets.len()),
    ] {
        if found != rows {
            return Err(length(column, found, rows));
        }
    }
    check_callers(&columns.callers, rows)?;
    check_names(&columns.names, rows)?;
    check_index("caller", &columns.caller, columns.callers.len())?;
    check_index("name", &columns.name, columns.names.len())?;
    let (began_at_ns, ended_at_ns) = interval(&columns, now_ns)?;

    let errno_ends = ends(
        "errno",
        &columns.errnos,
        columns.errno.len(),
        columns.failed.len(),
    )?;
    let errors = check_parts(
        &errno_ends,
        &columns.errno,
        &columns.failed,
        "errno",
        "1 to 4095, ascending",
        |errno| (1..=MAX_ERRNO).contains(&errno),
    )?;
    let is_more = |(errors, calls): (&u64, &u64)| errors > calls;
    if let Some(row) = errors.iter().zip(&columns.calls).position(is_more) {
        return Err(Malformed::Value {
            column: "failed",
            row,
            value: errors[row],
            allowed: "no more than there are calls",
        });
    }
    let bucket_ends = ends(
        "bucket",
        &columns.buckets,
        columns.bucket.len(),
        columns.measured.len(),
    )?;
    let measured = check_parts(
        &bucket_ends,
        &columns.bucket,
        &columns.measured,
        "bucket",
        "below 496, ascending",
        |bucket| bucket < BUCKETS,
    )?;
    // A call that was measured may have been counted an interval before: its latency is noted after it.
    let is_nothing = |(calls, measured): (&u64, &u64)| *calls == 0 && *measured == 0;
    if let Some(row) = columns.calls.iter().zip(&measured).position(is_nothing) {
        return Err(Malformed::Value {
            column: "calls",
            row,
            value: 0,
            allowed: "a row has calls or latencies",
        });
    }
    Ok(Syscalls {
        rows,
        day: day(ended_at_ns),
        began_at_ns,
        ended_at_ns,
        measured_one_in: columns.measured_one_in,
        caller: columns.caller,
        name: columns.name,
        calls: columns.calls,
        errors,
        errno_ends,
        errno: columns.errno.iter().map(|errno| *errno as u16).collect(),
        errno_calls: columns.failed,
        measured,
        bucket_ends,
        bucket: columns
            .bucket
            .iter()
            .map(|bucket| stored_bucket(*bucket))
            .collect(),
        bucket_calls: columns.measured,
        callers: columns.callers,
        names: columns.names,
    })
}

fn interval(columns: &SyscallColumns, now_ns: i64) -> Result<(i64, i64), Malformed> {
    let time = |ns: u64| {
        let allowed = EARLIEST_NS..=now_ns.saturating_add(AHEAD_NS);
        i64::try_from(ns)
            .ok()
            .filter(|ns| allowed.contains(ns))
            .ok_or(Malformed::Time {
                row: 0,
                fault: "before 2000 or more than a day ahead of the collector; is the node's clock right?",
            })
    };
    let (began_at_ns, ended_at_ns) = (time(columns.began_ns)?, time(columns.ended_ns)?);
    if began_at_ns > ended_at_ns {
        return Err(Malformed::Time {
            row: 0,
            fault: "the end of an interval that begins later",
        });
    }
    Ok((began_at_ns, ended_at_ns))
}

fn check_callers(callers: &[SyscallCaller], rows: usize) -> Result<(), Malformed> {
    check_entries("callers", callers.len(), rows)?;
    for (index, caller) in callers.iter().enumerate() {
        let fault = if caller.comm.len() > MAX_COMM_BYTES {
            "has a comm of more than 64 bytes"
        } else if caller.service.len() > MAX_SERVICE_BYTES {
            "has a service of more than 256 bytes"
        } else {
            continue;
        };
        return Err(Malformed::Entry {
            dictionary: "callers",
            index,
            fault,
        });
    }
    Ok(())
}

fn check_names(names: &[String], rows: usize) -> Result<(), Malformed> {
    check_entries("names", names.len(), rows)?;
    let is_name = |name: &String| {
        (1..=MAX_NAME_BYTES).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    };
    match names.iter().position(|name| !is_name(name)) {
        Some(index) => Err(Malformed::Entry {
            dictionary: "names",
            index,
            fault: "is no name of a syscall",
        }),
        None => Ok(()),
    }
}

/// Where each row's elements end, of which there are so many in two columns.
fn ends(
    column: &'static str,
    lengths: &[u32],
    elements: usize,
    counts: usize,
) -> Result<Vec<u64>, Malformed> {
    let mut end = 0;
    let ends: Vec<u64> = lengths
        .iter()
        .map(|length| {
            end += u64::from(*length);
            end
        })
        .collect();
    for found in [elements, counts] {
        if found as u64 != end {
            return Err(Malformed::Length {
                column,
                found: found as u64,
                expected: end,
            });
        }
    }
    Ok(ends)
}

/// Checks the elements of each row, and adds up their counts.
fn check_parts(
    ends: &[u64],
    elements: &[u32],
    counts: &[u64],
    column: &'static str,
    allowed: &'static str,
    is_allowed: impl Fn(u32) -> bool,
) -> Result<Vec<u64>, Malformed> {
    let mut begin = 0;
    let mut sums = Vec::with_capacity(ends.len());
    for (row, end) in ends.iter().enumerate() {
        let range = begin..*end as usize;
        begin = range.end;
        let mut before = None;
        for element in &elements[range.clone()] {
            if !is_allowed(*element) || before.is_some_and(|before| before >= *element) {
                return Err(Malformed::Value {
                    column,
                    row,
                    value: (*element).into(),
                    allowed,
                });
            }
            before = Some(*element);
        }
        let mut sum = 0_u64;
        for count in &counts[range] {
            sum = sum
                .checked_add(*count)
                .filter(|_| *count > 0)
                .ok_or(Malformed::Value {
                    column,
                    row,
                    value: *count,
                    allowed: "counts from 1 on, whose sum has 64 bits",
                })?;
        }
        sums.push(sum);
    }
    Ok(sums)
}

/// The bucket of the store for the middle of one that travelled: whatever fell into that is within 8 % of this one's
/// middle.
fn stored_bucket(bucket: u32) -> u16 {
    let bucket = u64::from(bucket);
    if bucket < 8 {
        return buckets::bucket(bucket);
    }
    let octave = bucket / 8 + 2;
    let width = 1_u64 << (octave - 3);
    buckets::bucket((8 | (bucket & 7)) * width + width / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_NS: i64 = 1_790_000_000_000_000_000;

    fn columns() -> SyscallColumns {
        SyscallColumns {
            began_ns: (NOW_NS - 10_000_000_000) as u64,
            ended_ns: NOW_NS as u64,
            measured_one_in: 16,
            caller: vec![0, 0, 1],
            name: vec![0, 1, 1],
            calls: vec![10, 5, 7],
            errnos: vec![2, 0, 1],
            errno: vec![4, 11, 512],
            failed: vec![3, 4, 7],
            buckets: vec![0, 2, 0],
            bucket: vec![80, 81],
            measured: vec![1, 2],
            callers: vec![
                SyscallCaller {
                    pid: 1,
                    comm: "a".into(),
                    processes: 1,
                    ..SyscallCaller::default()
                },
                SyscallCaller::default(),
            ],
            names: vec!["read".into(), "epoll_pwait2".into()],
        }
    }

    fn check(change: impl Fn(&mut SyscallColumns)) -> Result<Syscalls, Malformed> {
        let mut columns = columns();
        change(&mut columns);
        syscalls(columns, 3, NOW_NS)
    }

    #[test]
    fn sums_and_ends_are_derived() {
        let found = check(|_| {}).expect("it is well-formed");
        assert_eq!(found.errors, [7, 0, 7]);
        assert_eq!(
            (&found.errno_ends[..], &found.errno[..]),
            (&[2, 2, 3][..], &[4, 11, 512][..])
        );
        assert_eq!(
            (&found.measured[..], &found.bucket_ends[..]),
            (&[0, 3, 0][..], &[0, 2, 2][..])
        );
        assert_eq!(found.day, day(NOW_NS));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        type Change = fn(&mut SyscallColumns);
        let faults: [(&str, Change); 15] = [
            ("columns", |columns| columns.calls.truncate(2)),
            ("columns", |columns| columns.errnos[1] = 1),
            ("columns", |columns| columns.errnos[1] = u32::MAX),
            ("columns", |columns| columns.failed.push(1)),
            ("columns", |columns| columns.measured.truncate(1)),
            ("dictionary", |columns| columns.caller[0] = 2),
            ("dictionary", |columns| columns.names[0] = "rm -rf".into()),
            ("dictionary", |columns| columns.callers[0].comm = "x".repeat(65)),
            ("value", |columns| columns.errno[1] = 4),
            ("value", |columns| columns.errno[0] = 0),
            ("value", |columns| columns.bucket[1] = 496),
            ("value", |columns| columns.failed[0] = 7),
            ("value", |columns| columns.failed = vec![u64::MAX; 3]),
            ("value", |columns| {
                columns.calls[1] = 0;
                columns.buckets[1] = 0;
                columns.bucket.clear();
                columns.measured.clear();
            }),
            ("time", |columns| columns.began_ns = columns.ended_ns + 1),
        ];
        for (index, (kind, change)) in faults.into_iter().enumerate() {
            assert_eq!(
                check(change).expect_err("it is malformed").kind(),
                kind,
                "{index}"
            );
        }
    }

    #[test]
    fn a_row_may_have_latencies_of_calls_that_came_before() {
        assert!(check(|columns| columns.calls[1] = 0).is_ok());
    }

    #[test]
    fn a_latency_keeps_its_value_within_eight_percent() {
        for latency_ns in (0..100_000_u64).chain((17..63).map(|bit| (1 << bit) + (1 << (bit - 2)))) {
            // As the agent's kernel side does it.
            let wire = if latency_ns < 8 {
                latency_ns
            } else {
                let highest = u64::from(latency_ns.ilog2());
                (highest - 2) * 8 + ((latency_ns >> (highest - 3)) & 7)
            };
            let middle = buckets::middle(stored_bucket(wire as u32));
            let error = (middle - latency_ns as f64).abs();
            assert!(error <= latency_ns as f64 * 0.08, "{latency_ns}: {middle}");
        }
        assert_eq!(
            stored_bucket(BUCKETS - 1),
            buckets::bucket(u64::MAX / 16 * 15 + u64::MAX / 32)
        );
    }
}
