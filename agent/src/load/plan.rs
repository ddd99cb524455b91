//! What a run is asked to do. Checked once; nothing behind it meets a number that makes no sense.

use std::{net::IpAddr, net::SocketAddr, time::Duration};

use holdfast_proto::datagram::LEAST_BYTES;

use super::http::Http;

/// Longest a run may last, whatever is asked: a forgotten run ends.
pub const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// Most that is sent at once.
pub const MAX_PAYLOAD_BYTES: usize = 64 << 10;

/// Most attempts a second that a plan may ask for: far above what one machine makes.
pub const MAX_PER_SECOND: f64 = 10_000_000.0;

/// How long a port stays taken after this end closed with a FIN (TCP_TIMEWAIT_LEN, include/net/tcp.h).
const TIME_WAIT_SECONDS: f64 = 60.0;

/// More connections than a machine makes in a second.
const FASTEST_PER_SECOND: f64 = 100_000.0;

/// The part of one agent in a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Tried in turn.
    pub targets: Vec<SocketAddr>,
    pub arrivals: Arrivals,
    /// This agent makes attempts `first`, `first + step`, `first + 2 * step`, ... of the schedule.
    pub first: u64,
    pub step: u64,
    /// How long a connection is kept. With [`Arrivals::Count`] it begins once all attempts are decided.
    pub hold: Duration,
    /// For the handshake, and again for each answer.
    pub timeout: Duration,
    pub payload: Option<Payload>,
    /// Then attempts are requests, and connections are what they need.
    pub http: Option<Http>,
    /// Then attempts are datagrams, and there are no connections.
    pub udp: Option<Udp>,
    pub close: Close,
    /// Local addresses to connect from, in turn; empty: the kernel's choice.
    pub sources: Vec<IpAddr>,
}

/// When attempts are made.
#[derive(Clone, Debug, PartialEq)]
pub enum Arrivals {
    /// So many, with a pause between them.
    Count { connections: u64, pause: Duration },
    /// At rates, whatever becomes of them: an open loop.
    Stages(Vec<Stage>),
    /// Always so many at once, the next as soon as one is done: a closed loop. Its latencies say nothing of what it did
    /// not send meanwhile.
    Closed { concurrency: u64, duration: Duration },
}

/// A rate that changes evenly, or not at all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stage {
    pub from_per_second: f64,
    pub to_per_second: f64,
    pub duration: Duration,
}

/// Bytes that are sent and expected back, so many times on each connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    pub bytes: usize,
    pub rounds: u64,
}

/// Datagrams that are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Udp {
    pub bytes: usize,
    /// The target counts them, and is asked at the end; else it sends them back.
    pub is_one_way: bool,
}

/// The longest datagram over IPv4, without its heads.
pub const MAX_DATAGRAM_BYTES: usize = 65_507;

/// How a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// At once, without a trace: no TIME_WAIT, and the socket is used again.
    Reset,
    /// As programs do; this end's port stays taken for a minute after it.
    Finish,
}

/// Why a plan makes no sense.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct Nonsense(pub String);

impl Plan {
    /// # Errors
    /// If a number makes no sense; names it.
    pub fn check(self) -> Result<Self, Nonsense> {
        let fault = |text: String| Err(Nonsense(text));
        if self.targets.is_empty() {
            return fault("there is no target".into());
        }
        if let Some(target) = self.targets.iter().find(|target| target.port() == 0) {
            return fault(format!("the target {target} has no port"));
        }
        for source in &self.sources {
            if let Some(target) = self
                .targets
                .iter()
                .find(|target| target.is_ipv4() != source.is_ipv4())
            {
                return fault(format!(
                    "{target} cannot be reached from the source {source}: one is IPv4, the other IPv6"
                ));
            }
        }
        if self.step == 0 || self.first >= self.step {
            return fault(format!("part {} of {} is no part", self.first, self.step));
        }
        if self.timeout.is_zero() || self.timeout > LONGEST {
            return fault(format!("a timeout of {:?} is none", self.timeout));
        }
        if let Some(payload) = self.payload
            && !((1..=MAX_PAYLOAD_BYTES).contains(&payload.bytes) && payload.rounds > 0)
        {
            return fault(format!(
                "{} rounds of {} bytes: a payload has 1 to {MAX_PAYLOAD_BYTES} bytes, and one round or more",
                payload.rounds, payload.bytes
            ));
        }
        if let Some(http) = &self.http {
            http.check()?;
            if self.payload.is_some() || !self.hold.is_zero() {
                return fault(
                    "requests have no payload beside them, and their connections are not held".into(),
                );
            }
        }
        if let Some(udp) = self.udp {
            if !(LEAST_BYTES..=MAX_DATAGRAM_BYTES).contains(&udp.bytes) {
                return fault(format!(
                    "datagrams of {} bytes are not from {LEAST_BYTES} to {MAX_DATAGRAM_BYTES}",
                    udp.bytes
                ));
            }
            if matches!(self.arrivals, Arrivals::Closed { .. }) {
                return fault(
                    "datagrams have a number or a rate: nothing says when there is room for the next".into(),
                );
            }
            if self.http.is_some() || self.payload.is_some() || !self.hold.is_zero() {
                return fault("datagrams have neither connections nor requests".into());
            }
        }
        match &self.arrivals {
            Arrivals::Count { connections: 0, .. } | Arrivals::Closed { concurrency: 0, .. } => {
                return fault("no connections are asked for".into());
            }
            Arrivals::Closed { duration, .. } if duration.is_zero() => {
                return fault("a closed loop needs a duration".into());
            }
            Arrivals::Stages(stages) => {
                for stage in stages {
                    let rates = [stage.from_per_second, stage.to_per_second];
                    if !rates.iter().all(|rate| (0.0..=MAX_PER_SECOND).contains(rate)) {
                        return fault(format!(
                            "a rate of {}/s is not from 0 to {MAX_PER_SECOND}/s",
                            rates[0].max(rates[1])
                        ));
                    }
                    if stage.duration.is_zero() {
                        return fault("a stage lasts no time".into());
                    }
                }
                if crate::load::schedule::total(stages) == 0 {
                    return fault("the stages come to no attempt at all".into());
                }
            }
            _ => {}
        }
        match self.longest() {
            longest if longest > LONGEST => fault(format!(
                "the run would last {} s, and none lasts longer than {} s: give less of --for, --hold, --sleep or --stages, or fewer attempts",
                longest.as_secs(),
                LONGEST.as_secs()
            )),
            _ => Ok(self),
        }
    }

    /// Whether something is sent only once what was sent before is back or over, so that it waits for the generator's threads as well: in a
    /// closed loop, and where payload goes back and forth.
    pub fn waits_for_answers(&self) -> bool {
        let has_rounds = self.payload.is_some_and(|payload| payload.rounds > 1);
        has_rounds || matches!(self.arrivals, Arrivals::Closed { .. })
    }

    /// The longest that the run lasts if every answer comes: the last attempt, its handshake, its hold. Of a request it is its wait, and then
    /// the handshake of a connection that was opened when it had waited almost as long as it may.
    pub fn longest(&self) -> Duration {
        let waits = if self.http.is_some() { 2 } else { 1 };
        self.sending()
            .saturating_add(self.timeout.saturating_mul(waits))
            .saturating_add(self.hold)
    }

    /// How long attempts are made.
    pub fn sending(&self) -> Duration {
        match &self.arrivals {
            Arrivals::Count { connections, pause } => {
                pause.saturating_mul(u32::try_from(*connections).unwrap_or(u32::MAX))
            }
            Arrivals::Stages(stages) => stages.iter().map(|stage| stage.duration).sum(),
            Arrivals::Closed { duration, .. } => *duration,
        }
    }

    /// The most attempts a second of this part; absent where nothing but the target bounds them.
    pub fn per_second(&self) -> Option<f64> {
        let whole = match &self.arrivals {
            Arrivals::Count { connections, pause } if pause.is_zero() => *connections as f64,
            Arrivals::Count { pause, .. } => 1.0 / pause.as_secs_f64(),
            Arrivals::Stages(stages) => stages
                .iter()
                .map(|stage| stage.from_per_second.max(stage.to_per_second))
                .fold(0.0, f64::max),
            Arrivals::Closed { .. } => return None,
        };
        Some(whole / self.step as f64)
    }

    /// Attempts of this part in the second that has the most of them, whatever the target does: those of a closed loop are made all at once
    /// when it begins.
    pub fn at_least_per_second(&self) -> f64 {
        match self.arrivals {
            Arrivals::Closed { concurrency, .. } => share(concurrency, self.first, self.step) as f64,
            _ => self.per_second().unwrap_or_default(),
        }
    }

    /// The most connections of this part that can be open or under way at once, if each takes as long as it may. With a rate, if each is
    /// made when it is due as well: what to allow for, and no bound.
    pub fn at_once(&self) -> u64 {
        if self.udp.is_some() {
            // Sockets of a thread: one to each target.
            return self.targets.len() as u64;
        }
        if let Some(http) = &self.http {
            return match self.arrivals {
                Arrivals::Closed { concurrency, .. } => {
                    share(concurrency, self.first, self.step).div_ceil(http.streams.into())
                }
                _ => share(http.connections, self.first, self.step).max(1),
            };
        }
        match &self.arrivals {
            Arrivals::Count { connections, .. } => share(*connections, self.first, self.step),
            Arrivals::Closed { concurrency, .. } => share(*concurrency, self.first, self.step),
            Arrivals::Stages(stages) => {
                let rounds = self.payload.map_or(0, |payload| payload.rounds);
                let waits = self.timeout.as_secs_f64() * (1 + rounds) as f64;
                let lives = self.hold.as_secs_f64() + waits;
                let by_rate = (self.per_second().unwrap_or_default() * lives).ceil() as u64;
                by_rate.clamp(
                    1,
                    share(crate::load::schedule::total(stages), self.first, self.step).max(1),
                )
            }
        }
    }

    /// Places for connections of this part. What a rate comes to has one for each: a target that answers nothing keeps all that
    /// [`Self::at_once`] says, and those that are made late come on top of it.
    pub fn places(&self) -> u64 {
        match &self.arrivals {
            Arrivals::Stages(stages) if self.http.is_none() && self.udp.is_none() => {
                share(crate::load::schedule::total(stages), self.first, self.step).max(1)
            }
            _ => self.at_once(),
        }
    }

    /// Ports that connections of this part take at once if the target answers: those that are open, and with
    /// [`Close::Finish`] those of the last minute.
    pub fn ports(&self) -> u64 {
        if self.udp.is_some() {
            return 1;
        }
        let lingering = match (self.close, self.per_second()) {
            _ if self.http.as_ref().is_some_and(|http| http.keep_alive) => 0,
            // One end of a connection to be held is closed once, at the end of the run.
            _ if self.http.is_none() && matches!(self.arrivals, Arrivals::Count { .. }) => 0,
            (Close::Reset, _) => 0,
            (Close::Finish, Some(rate)) => {
                (rate * TIME_WAIT_SECONDS.min(self.sending().as_secs_f64())).ceil() as u64
            }
            // How many come to be only the target says: see [`Self::may_linger`].
            (Close::Finish, None) => 0,
        };
        let open = match &self.arrivals {
            Arrivals::Stages(_) if self.http.is_none() => {
                (self.per_second().unwrap_or_default() * self.hold.as_secs_f64()).ceil() as u64 + 1
            }
            _ => self.at_once(),
        };
        open + lingering
    }

    /// Ports on top of that which a closed loop may leave behind, if the target is as fast as any: each place has its next connection when it
    /// has held the one before, and no machine makes more than [`FASTEST_PER_SECOND`]. One that finds no port is counted as such.
    pub fn may_linger(&self) -> u64 {
        let is_kept = self.http.as_ref().is_some_and(|http| http.keep_alive);
        let Arrivals::Closed { duration, .. } = self.arrivals else {
            return 0;
        };
        if self.close == Close::Reset || is_kept {
            return 0;
        }
        // Without a hold it is infinite.
        let by_hold = self.at_once() as f64 / self.hold.as_secs_f64();
        let lasts = TIME_WAIT_SECONDS.min(duration.as_secs_f64());
        (by_hold.min(FASTEST_PER_SECOND) * lasts).ceil() as u64
    }
}

/// How many of `whole` attempts are `first`, `first + step`, ...
pub fn share(whole: u64, first: u64, step: u64) -> u64 {
    whole.saturating_sub(first).div_ceil(step)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn count(connections: u64) -> Plan {
        Plan {
            targets: vec!["127.0.0.1:80".parse().expect("an address")],
            arrivals: Arrivals::Count {
                connections,
                pause: Duration::ZERO,
            },
            first: 0,
            step: 1,
            hold: Duration::ZERO,
            timeout: Duration::from_secs(5),
            payload: None,
            http: None,
            udp: None,
            close: Close::Reset,
            sources: vec![],
        }
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let refused = |change: fn(&mut Plan), part: &str| {
            let mut plan = count(10);
            change(&mut plan);
            let error = plan.check().expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        };
        refused(|plan| plan.targets.clear(), "no target");
        refused(|plan| plan.targets[0].set_port(0), "has no port");
        refused(|plan| plan.timeout = Duration::ZERO, "timeout");
        refused(|plan| plan.first = 1, "no part");
        refused(|plan| plan.hold = Duration::MAX, "none lasts longer");
        refused(
            |plan| plan.sources = vec!["::1".parse().expect("an address")],
            "IPv6",
        );
        refused(
            |plan| {
                plan.arrivals = Arrivals::Count {
                    connections: 0,
                    pause: Duration::ZERO,
                }
            },
            "no connections",
        );
        refused(
            |plan| plan.payload = Some(Payload { bytes: 0, rounds: 1 }),
            "payload",
        );
        for rate in [-1.0, f64::NAN, f64::INFINITY] {
            let mut plan = count(10);
            plan.arrivals = Arrivals::Stages(vec![Stage {
                from_per_second: rate,
                to_per_second: rate,
                duration: Duration::from_secs(1),
            }]);
            assert!(plan.check().is_err(), "{rate}");
        }
    }

    #[test]
    fn the_parts_of_a_run_are_the_whole() {
        for whole in 0..20 {
            for step in 1..6 {
                assert_eq!(
                    (0..step).map(|first| share(whole, first, step)).sum::<u64>(),
                    whole
                );
            }
        }
    }

    #[test]
    fn what_a_rate_can_have_open_is_what_its_target_may_keep_and_each_attempt_has_a_place() {
        let mut plan = count(10);
        plan.arrivals = Arrivals::Stages(vec![Stage {
            from_per_second: 200.0,
            to_per_second: 200.0,
            duration: Duration::from_secs(60),
        }]);
        plan.timeout = Duration::from_millis(500);
        assert_eq!((plan.at_once(), plan.places()), (100, 12_000));
        plan.hold = Duration::from_secs(1);
        assert_eq!(plan.at_once(), 300);
        // Each answer may take as long again.
        plan.payload = Some(Payload { bytes: 1, rounds: 3 });
        assert_eq!(plan.at_once(), 600);
        plan.step = 3;
        assert_eq!((plan.at_once(), plan.places()), (200, 4_000));
        assert_eq!(count(10).places(), 10);
    }

    #[test]
    fn what_closes_with_a_fin_keeps_its_port_for_a_minute() {
        let mut plan = count(10);
        plan.arrivals = Arrivals::Stages(vec![Stage {
            from_per_second: 100.0,
            to_per_second: 100.0,
            duration: Duration::from_secs(300),
        }]);
        assert_eq!(plan.ports(), 1);
        plan.close = Close::Finish;
        assert_eq!(plan.ports(), 6_001);
        // Of a loop as many come to be as its holds let.
        plan.arrivals = Arrivals::Closed {
            concurrency: 100,
            duration: Duration::from_secs(300),
        };
        assert_eq!((plan.ports(), plan.may_linger()), (100, 6_000_000));
        plan.hold = Duration::from_millis(500);
        assert_eq!((plan.ports(), plan.may_linger()), (100, 12_000));
        plan.close = Close::Reset;
        assert_eq!((plan.ports(), plan.may_linger()), (100, 0));
    }
}
