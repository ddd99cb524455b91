//! The witness outside Holdfast: how many connections a network namespace opened by the kernel's own SNMP counters
//! (RFC 4022: ActiveOpens, PassiveOpens), beside what the hook counted. It lies on no row's path; the ledger asks it.
//!
//! The two count the same thing. The kernel adds to ActiveOpens once the SYN was handed down (tcp_connect(),
//! net/ipv4/tcp_output.c), after the hook saw SYN_SENT; to PassiveOpens when a child came out of a listener
//! (tcp_create_openreq_child(), tcp_minisocks.c), after the hook saw its SYN_RECV. So a namespace's
//! `ActiveOpens + PassiveOpens` grows by `opened - unsent`, where `unsent` are the attempts that ended before a SYN left
//! (no route, no free port), and lags behind by what is between the two points at the moment. What the hook counts and
//! the kernel does not: a SYN that a security module refused, a connection that was restored (TCP_REPAIR), a TCP Fast Open
//! connect() whose data did not come yet. More opens than the hook counted are opens that it missed.

pub mod places;
pub mod visitor;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use self::places::Places;
use crate::probes::{KernelCounts, ProbeError};

/// How long the first readings are taken for the baseline. A reading can only be too low, by the connections that are
/// just being opened, so the highest of many is right; a misread baseline would be a difference for ever.
const SETTLING: Duration = Duration::from_secs(5);

/// The longest pause between two readings that counts as a part of [`SETTLING`]: the agent may have been stopped meanwhile.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The last readings, of which the highest counts, for the same reason.
const READINGS: usize = 8;

/// Readings for the baseline that are taken at one go, and the pause between two.
const READINGS_AT_ONCE: usize = 10;
const PAUSE: Duration = Duration::from_millis(1);

/// All readings of all namespaces.
pub struct Witness {
    places: Places,
    only_netns: Option<u32>,
    /// The namespaces that are read: the only one that is observed, or those that the kernel side knows.
    wanted: BTreeSet<u32>,
    testimonies: BTreeMap<u32, Testimony>,
    /// Those that could be read the last time.
    present: BTreeSet<u32>,
    started: Instant,
    settling: Settling,
}

impl Witness {
    /// Finds the namespaces that there are: the one that is observed, or all of the machine.
    pub fn new(only_netns: Option<u32>) -> Self {
        let mut places = Places::new(Path::new("/proc"));
        let wanted = BTreeSet::from_iter(only_netns);
        places.search(&wanted, Duration::ZERO);
        let wanted = only_netns.map_or_else(|| places.found(), |_| wanted);
        Self {
            places,
            only_netns,
            wanted,
            testimonies: BTreeMap::new(),
            present: BTreeSet::new(),
            started: Instant::now(),
            settling: Settling::new(Duration::ZERO),
        }
    }

    /// The hook was attached: from here on it counts, and what was opened before it is in the baselines, which settle now,
    /// however long it took.
    ///
    /// # Errors
    /// The kernel side's.
    pub fn begin(&mut self, kernel: impl Fn() -> Result<KernelCounts, ProbeError>) -> Result<(), ProbeError> {
        self.settling = Settling::new(self.started.elapsed());
        for testimony in self.testimonies.values_mut() {
            testimony.settling = self.settling;
        }
        self.observe_well(kernel)
    }

    /// Several readings in a row, where the highest is needed at once: when the programs were attached, and before they are
    /// detached.
    ///
    /// # Errors
    /// The kernel side's.
    pub fn observe_well(
        &mut self,
        kernel: impl Fn() -> Result<KernelCounts, ProbeError>,
    ) -> Result<(), ProbeError> {
        let wanted = self.wanted.clone();
        for _ in 0..READINGS_AT_ONCE {
            self.wanted.extend(&wanted);
            self.observe(&kernel)?;
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Reads every namespace that the kernel side knew the last time, and then the kernel side, which it gives.
    ///
    /// # Errors
    /// The kernel side's.
    pub fn observe(
        &mut self,
        kernel: impl Fn() -> Result<KernelCounts, ProbeError>,
    ) -> Result<KernelCounts, ProbeError> {
        let now = self.started.elapsed();
        self.settling.observe(now);
        let opens = self.places.opens(&self.wanted, now);
        let counts = kernel()?;
        for (&netns, &opens) in &opens {
            let seen = counts.sent(netns);
            self.testimonies
                .entry(netns)
                .and_modify(|testimony| testimony.observe(opens, seen, now))
                .or_insert_with(|| Testimony::new(opens, seen, now));
        }
        self.present = opens.into_keys().collect();
        // The namespace 0 is none.
        let known = counts.namespaces.keys().copied().filter(|&netns| netns > 0);
        self.wanted = known.chain(self.only_netns).collect();
        Ok(counts)
    }

    /// What the witness says of a namespace where the hook counted `seen`. `None` if its counters cannot be read.
    pub fn witnessed(&self, netns: u32, seen: u64) -> Option<u64> {
        let testimony = self
            .present
            .contains(&netns)
            .then(|| self.testimonies.get(&netns))?;
        testimony.map(|testimony| testimony.since_the_hook_began(seen))
    }

    /// The same, since the namespace began.
    pub fn standing(&self, netns: u32, seen: u64) -> Option<u64> {
        let testimony = self
            .present
            .contains(&netns)
            .then(|| self.testimonies.get(&netns))?;
        testimony.map(|testimony| testimony.since_the_namespace_began(seen))
    }

    /// What it had said of each namespace when the hook began, of those that it ever could read.
    pub fn when_the_hook_began(&self) -> BTreeMap<u32, u64> {
        let base = |testimony: &Testimony| testimony.base.cast_unsigned();
        self.testimonies
            .iter()
            .map(|(&netns, testimony)| (netns, base(testimony)))
            .collect()
    }

    /// Whether the baselines of the first reading will not change any more.
    pub fn is_settled(&self) -> bool {
        self.settling.is_over()
    }

    /// Whether it could ever read a namespace.
    pub fn knows(&self, netns: u32) -> bool {
        self.testimonies.contains_key(&netns)
    }
}

/// Why the counters of a namespace cannot be told from the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnmpError {
    #[error("no pair of lines that begin with Tcp:")]
    NoTcp,
    #[error("no {0}")]
    NoCounter(&'static str),
    #[error("{name} is {value:?}")]
    NoNumber { name: &'static str, value: String },
}

/// Connections that a namespace ever opened, both ways, from the text of its `/proc/net/snmp`.
///
/// # Errors
/// If the text is not what the kernel writes (snmp_seq_show(), net/ipv4/proc.c).
pub fn opens(snmp: &str) -> Result<u64, SnmpError> {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Tcp:"));
    let (names, values) = lines.next().zip(lines.next()).ok_or(SnmpError::NoTcp)?;
    let counter = |wanted: &'static str| {
        let value = names
            .split_whitespace()
            .zip(values.split_whitespace())
            .find_map(|(name, value)| (name == wanted).then_some(value))
            .ok_or(SnmpError::NoCounter(wanted))?;
        value.parse::<u64>().map_err(|_| SnmpError::NoNumber {
            name: wanted,
            value: value.to_owned(),
        })
    };
    Ok(counter("ActiveOpens")?.wrapping_add(counter("PassiveOpens")?))
}

/// The time in which a baseline may still rise: so much time with readings.
#[derive(Clone, Copy, Debug)]
struct Settling {
    last: Duration,
    until: Duration,
}

impl Settling {
    fn new(now: Duration) -> Self {
        Self {
            last: now,
            until: now + SETTLING,
        }
    }

    /// A reading is taken: a long time without one does not count.
    fn observe(&mut self, now: Duration) {
        if !self.is_over() {
            self.until += (now - self.last).saturating_sub(LONGEST_PAUSE);
        }
        self.last = now;
    }

    fn is_over(&self) -> bool {
        self.last >= self.until
    }
}

/// What the witness says of one namespace. Pure: readings and times are arguments.
#[derive(Clone, Debug)]
pub struct Testimony {
    /// What the witness had counted when the hook began.
    base: i64,
    settling: Settling,
    /// The difference when the namespace got its number from another one.
    inherited: i64,
    last_opens: u64,
    /// The witness's count less the hook's, in the last readings.
    offsets: VecDeque<i64>,
}

impl Testimony {
    /// With the first reading, at the monotonic time `now`. `seen` is what the hook counted, read after `opens`.
    pub fn new(opens: u64, seen: u64, now: Duration) -> Self {
        let offset = offset(opens, seen);
        Self {
            base: offset,
            settling: Settling::new(now),
            inherited: 0,
            last_opens: opens,
            offsets: VecDeque::from([offset]),
        }
    }

    /// Takes in another reading.
    pub fn observe(&mut self, opens: u64, seen: u64, now: Duration) {
        let offset = offset(opens, seen);
        if opens < self.last_opens {
            // The namespace is gone, and another one got its number. What is known of the old one stays.
            self.inherited = self.difference();
            self.base = offset - self.inherited;
            self.settling = Settling::new(now);
            self.offsets.clear();
        }
        self.settling.observe(now);
        self.last_opens = opens;
        if self.offsets.len() == READINGS {
            self.offsets.pop_front();
        }
        self.offsets.push_back(offset);
        if !self.settling.is_over() {
            self.base = self.base.max(offset - self.inherited);
        }
    }

    /// How many more the witness counted than the hook since the hook began; below zero, how many fewer.
    pub fn difference(&self) -> i64 {
        self.offset() - self.base
    }

    /// What the witness says when the hook has counted `seen`: since the hook began.
    pub fn since_the_hook_began(&self, seen: u64) -> u64 {
        seen.saturating_add_signed(self.difference())
    }

    /// What the witness says when the hook has counted `seen`: since the namespace began. It is not below the hook here:
    /// when connections are being opened at every reading, it only seems so.
    pub fn since_the_namespace_began(&self, seen: u64) -> u64 {
        seen.saturating_add_signed(self.offset().max(self.base))
    }

    fn offset(&self) -> i64 {
        self.offsets.iter().copied().max().unwrap_or(self.base)
    }
}

fn offset(opens: u64, seen: u64) -> i64 {
    opens.wrapping_sub(seen).cast_signed()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SNMP: &str = "\
Ip: Forwarding DefaultTTL InReceives
Ip: 1 64 812
Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens AttemptFails EstabResets CurrEstab
Tcp: 1 200 120000 -1 70 30 5 2 9
Udp: InDatagrams
Udp: 4
";

    #[test]
    fn opens_are_those_of_both_ways() {
        assert_eq!(opens(SNMP), Ok(100));
    }

    #[test]
    fn a_text_without_the_counters_is_an_error_and_never_zero() {
        let check = |text: &str, expected| assert_eq!(opens(text), Err(expected), "{text:?}");
        check("", SnmpError::NoTcp);
        check("Tcp: ActiveOpens PassiveOpens\n", SnmpError::NoTcp);
        check("Tcp: ActiveOpens\nTcp: 1\n", SnmpError::NoCounter("PassiveOpens"));
        check(
            "Tcp: ActiveOpens PassiveOpens\nTcp: 1\n",
            SnmpError::NoCounter("PassiveOpens"),
        );
        check(
            "Tcp: ActiveOpens PassiveOpens\nTcp: 1 -2\n",
            SnmpError::NoNumber {
                name: "PassiveOpens",
                value: "-2".into(),
            },
        );
    }

    #[test]
    fn a_namespace_whose_number_is_used_again_leaves_the_difference_as_it_was() {
        let mut testimony = Testimony::new(1_000, 0, Duration::ZERO);
        for second in 1..10 {
            testimony.observe(1_000, 0, Duration::from_secs(second));
        }
        let later = SETTLING * 2;
        testimony.observe(1_100, 97, later);
        assert_eq!(testimony.difference(), 3);
        testimony.observe(5, 102, later * 2);
        assert_eq!(testimony.difference(), 3);
        testimony.observe(25, 122, later * 2);
        assert_eq!(testimony.since_the_hook_began(122), 125);
    }

    #[test]
    fn a_pause_right_after_the_first_readings_does_not_settle_them() {
        // Every one of the first readings falls into the same connect(), which has to wait for its CPU.
        let mut testimony = Testimony::new(99, 0, Duration::ZERO);
        testimony.observe(99, 0, PAUSE);
        let later = SETTLING * 3;
        testimony.observe(900, 800, later);
        assert_eq!(testimony.difference(), 0);
        // Once it is settled, what is missed is a difference.
        for second in 1..6 {
            testimony.observe(900, 800, later + Duration::from_secs(second));
        }
        testimony.observe(910, 809, later + SETTLING * 2);
        assert_eq!(testimony.difference(), 1);
    }

    #[test]
    fn opens_that_the_hook_missed_stay_in_the_difference() {
        let mut testimony = Testimony::new(500, 10, Duration::ZERO);
        for second in 1..100 {
            let missed = if second > 50 { 4 } else { 0 };
            testimony.observe(500 + second, 10 + second - missed, Duration::from_secs(second));
        }
        assert_eq!(testimony.difference(), 4);
        assert_eq!(testimony.since_the_namespace_began(105), 599);
    }

    proptest! {
        /// However many connections are being opened at the moment of a reading: one quiet reading among the first and
        /// one among the last, and the witness is exact.
        #[test]
        fn what_is_being_opened_is_no_difference(
            before in 0..1_000_000_u64, missed in 0..3_u64,
            lags in prop::collection::vec((0..50_u64, 0..5_u64), 40)
        ) {
            let mut seen = 0;
            let mut testimony = None;
            for (second, (opened, lag)) in lags.into_iter().enumerate() {
                let lag = if second % 5 == 0 { 0 } else { lag };
                seen += opened + lag;
                let unseen = if second > 20 { missed } else { 0 };
                let (opens, now) = (before + seen + unseen - lag, Duration::from_secs(second as u64));
                match &mut testimony {
                    None => testimony = Some(Testimony::new(opens, seen, now)),
                    Some(testimony) => testimony.observe(opens, seen, now),
                }
            }
            let testimony = testimony.expect("readings");
            prop_assert_eq!(testimony.difference(), missed.cast_signed());
            prop_assert_eq!(testimony.since_the_hook_began(seen), seen + missed);
            prop_assert_eq!(testimony.since_the_namespace_began(seen), before + seen + missed);
        }
    }
}
