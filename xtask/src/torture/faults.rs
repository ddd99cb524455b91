//! What goes wrong, and when: a schedule that a seed determines, and nothing else. Pure.
//!
//! Faults come in storms, a few a second and several at once, with lulls between them in which what waits may arrive.
//! The agents are left alone for longer: one that is killed before it works has nothing to lose.

use std::time::Duration;

/// Between two faults of a storm, in milliseconds: on average half of this.
const MOST_BETWEEN_MS: u64 = 1_200;
/// How long a storm and a lull last, in milliseconds, from and to.
const STORM_MS: (u64, u64) = (12_000, 25_000);
const LULL_MS: (u64, u64) = (4_000, 9_000);
/// How long a killed process stays away. One of ten restarts takes longer.
const DOWN_MS: (u64, u64) = (0, 1_500);
const LONG_DOWN_MS: (u64, u64) = (2_000, 6_000);
/// How long a process is stopped, and a link is cut.
const PAUSE_MS: (u64, u64) = (100, 8_000);
const CUT_MS: (u64, u64) = (300, 8_000);
/// How long a disk is full.
const FULL_MS: (u64, u64) = (500, 8_000);
/// How far the clock of an agent is set, either way: by minutes, by hours, which is across midnight more often than not,
/// and by more days than retention keeps, or the future has.
const JUMPS_S: [u64; 3] = [600, 20 * 3_600, 60 * 86_400];

/// What happens, and for how long where it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Since the schedule began.
    pub(super) at: Duration,
    pub(super) what: What,
    /// When it is mended: the process is started again, goes on, the link is there again.
    pub(super) lasts: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Kill(Victim),
    Pause(Victim),
    /// The node's link is down.
    CutOff(usize),
    /// What the node sends to the collector vanishes; what the collector sends arrives.
    Mute(usize),
    /// The other way round.
    Deafen(usize),
    /// The disk of the agent's spool.
    FillSpool(usize),
    FillStore,
    /// The agent's clock is set to be so far from the host's, in nanoseconds.
    SetClock(usize, i64),
}

/// A process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Victim {
    Agent(usize),
    Collector,
    /// ClickHouse, where it is a process of its own.
    Engine,
}

/// The shape of the world, as far as the schedule depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stage {
    pub(super) nodes: usize,
    pub(super) has_engine: bool,
}

/// The faults of a run, in order. Once an agent was killed or stopped, and that was mended, neither is done to it for
/// `life`.
pub(super) fn schedule(seed: u64, stage: Stage, span: Duration, life: Duration) -> Vec<Fault> {
    let mut dice = Dice::new(seed);
    let mut faults = Vec::new();
    let mut spared_until = vec![Duration::ZERO; stage.nodes];
    let mut storm_ends = dice.within(STORM_MS);
    let mut at = Duration::ZERO;
    loop {
        at += Duration::from_millis(dice.below(MOST_BETWEEN_MS));
        if at > storm_ends {
            at += dice.within(LULL_MS);
            storm_ends = at + dice.within(STORM_MS);
        }
        if at >= span {
            return faults;
        }
        let (what, lasts) = fault(&mut dice, stage);
        if let What::Kill(Victim::Agent(node)) | What::Pause(Victim::Agent(node)) = what
            && !life.is_zero()
        {
            if at < spared_until[node] {
                continue;
            }
            spared_until[node] = at + lasts + life;
        }
        faults.push(Fault { at, what, lasts });
    }
}

fn fault(dice: &mut Dice, stage: Stage) -> (What, Duration) {
    let node = dice.below(stage.nodes as u64) as usize;
    match dice.below(100) {
        0..60 => {
            let lasts = if dice.below(10) == 0 {
                dice.within(LONG_DOWN_MS)
            } else {
                dice.within(DOWN_MS)
            };
            (What::Kill(victim(dice, node, stage)), lasts)
        }
        60..74 => (What::Pause(victim(dice, node, stage)), dice.within(PAUSE_MS)),
        74..79 => (What::CutOff(node), dice.within(CUT_MS)),
        79..83 => (What::Mute(node), dice.within(CUT_MS)),
        83..87 => (What::Deafen(node), dice.within(CUT_MS)),
        87..91 => (What::FillSpool(node), dice.within(FULL_MS)),
        91..94 => (What::FillStore, dice.within(FULL_MS)),
        _ => (What::SetClock(node, jump(dice)), Duration::ZERO),
    }
}

/// Mostly an agent: there are several, and they are quick to start.
fn victim(dice: &mut Dice, node: usize, stage: Stage) -> Victim {
    match (dice.below(10), stage.has_engine) {
        (0..7, _) => Victim::Agent(node),
        (7, true) => Victim::Engine,
        _ => Victim::Collector,
    }
}

fn jump(dice: &mut Dice) -> i64 {
    let most_s = JUMPS_S[dice.below(JUMPS_S.len() as u64) as usize];
    let size_ns = (dice.below(most_s * 1_000) * 1_000_000) as i64;
    if dice.below(2) == 0 { size_ns } else { -size_ns }
}

/// Numbers that a seed determines: SplitMix64 (Steele, Lea, Flood, 2014).
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// From zero to below `bound`, which is not zero and far below 2^64: the bias is none that anyone could see.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn within(&mut self, (from_ms, to_ms): (u64, u64)) -> Duration {
        Duration::from_millis(from_ms + self.below(to_ms - from_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAGE: Stage = Stage {
        nodes: 3,
        has_engine: true,
    };
    const SPAN: Duration = Duration::from_secs(1_800);
    const LIFE: Duration = Duration::from_secs(60);
    const DAY_NS: i64 = 24 * 3_600 * 1_000_000_000;

    #[test]
    fn a_seed_determines_the_schedule() {
        assert_eq!(schedule(7, STAGE, SPAN, LIFE), schedule(7, STAGE, SPAN, LIFE));
        assert_ne!(schedule(7, STAGE, SPAN, LIFE), schedule(8, STAGE, SPAN, LIFE));
    }

    #[test]
    fn a_longer_run_begins_like_a_shorter_one() {
        let (short, long) = (schedule(7, STAGE, SPAN / 4, LIFE), schedule(7, STAGE, SPAN, LIFE));
        assert!(short.len() < long.len());
        assert_eq!(short[..], long[..short.len()]);
    }

    #[test]
    fn half_an_hour_has_every_kind_of_fault_for_everyone_and_some_at_once() {
        let faults = schedule(7, STAGE, SPAN, LIFE);
        let happens = |is_it: &dyn Fn(What) -> bool| faults.iter().any(|fault| is_it(fault.what));
        let victims = [
            Victim::Agent(0),
            Victim::Agent(1),
            Victim::Agent(2),
            Victim::Collector,
            Victim::Engine,
        ];
        for victim in victims {
            assert!(happens(&|what| what == What::Kill(victim)), "{victim:?}");
            assert!(happens(&|what| what == What::Pause(victim)), "{victim:?}");
        }
        for node in 0..3 {
            for what in [
                What::CutOff(node),
                What::Mute(node),
                What::Deafen(node),
                What::FillSpool(node),
            ] {
                assert!(happens(&|happened| happened == what), "{what:?}");
            }
            assert!(happens(
                &|what| matches!(what, What::SetClock(set, _) if set == node)
            ));
        }
        assert!(happens(&|what| what == What::FillStore));
        for is_wrong_by_days in [|ns: i64| ns > 2 * DAY_NS, |ns: i64| ns < -2 * DAY_NS] {
            assert!(happens(
                &|what| matches!(what, What::SetClock(_, ns) if is_wrong_by_days(ns))
            ));
        }
        assert!(
            faults
                .windows(2)
                .any(|pair| pair[0].at + pair[0].lasts > pair[1].at)
        );
    }

    #[test]
    fn an_agent_is_left_alone_for_its_life_and_nobody_else_is() {
        let faults = schedule(7, STAGE, SPAN, LIFE);
        for node in 0..STAGE.nodes {
            let strikes: Vec<&Fault> = faults
                .iter()
                .filter(|fault| {
                    [What::Kill(Victim::Agent(node)), What::Pause(Victim::Agent(node))].contains(&fault.what)
                })
                .collect();
            assert!(strikes.len() > 10, "{strikes:?}");
            for pair in strikes.windows(2) {
                assert!(pair[1].at >= pair[0].at + pair[0].lasts + LIFE, "{pair:?}");
            }
        }
        let others = |faults: &[Fault]| {
            let is_agent =
                |what| matches!(what, What::Kill(Victim::Agent(_)) | What::Pause(Victim::Agent(_)));
            let mut others = faults.to_vec();
            others.retain(|fault| !is_agent(fault.what));
            others
        };
        let fierce = schedule(7, STAGE, SPAN, Duration::ZERO);
        assert!(fierce.len() > faults.len() * 3 / 2);
        assert_eq!(others(&faults), others(&fierce));
    }

    #[test]
    fn nobody_kills_an_engine_that_is_no_process_of_its_own() {
        let stage = Stage {
            has_engine: false,
            ..STAGE
        };
        let faults = schedule(7, stage, SPAN, LIFE);
        let is_engine = |what| matches!(what, What::Kill(Victim::Engine) | What::Pause(Victim::Engine));
        assert!(!faults.iter().any(|fault| is_engine(fault.what)));
    }
}
