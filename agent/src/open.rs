//! What is open on this node, looked at regularly from a thread of its own: connections as they stand, listeners with
//! their queues, and, more often, attempts that wait for an answer. Each look is a batch of a stream of its own.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context;
use holdfast_agent_ebpf::event::{ConnectionRecord, SocketReport, flag, is_in_sample, state};
use holdfast_proto::v1::{ListenerRows, OpenConnections, Stream, batch};

use crate::{
    clock::{self, Moment},
    controls::Shown,
    counters::Counters,
    network::QueuesByNetns,
    probes::Probes,
    seal::Sealer,
    seeds::Seeds,
    spool::{Sealed, Spool},
    table::Table,
    wire::{self, ConnectionRows},
    witness::places::Places,
    workloads::Workloads,
};

/// How often open connections and listeners are looked at. A look costs about 1 us for each socket.
pub const LOOK: Duration = Duration::from_secs(10);

/// How soon after a look there may be another one because a listener turned somebody away.
const ALARMED: Duration = Duration::from_secs(3);

/// How often attempts without an answer are looked for, and how long they have to wait to be shown.
pub const PENDING: Duration = Duration::from_secs(1);

/// Connections of one look at most, beside the attempts that wait: a node that holds a million shows one in 512.
pub const CONNECTIONS: usize = 2_000;

/// Attempts and listeners of one look at most, so that a look fits a batch.
const ROWS: usize = 8_192;

/// The thread that looks, for as long as it is not stopped.
pub struct Looks {
    thread: JoinHandle<()>,
    stop: std::sync::mpsc::Sender<()>,
}

/// What a look needs.
pub struct Eyes {
    pub probes: Arc<Mutex<Probes>>,
    pub table: Arc<Table>,
    pub seeds: Arc<Seeds>,
    /// A listener turned somebody away: the next look should be soon.
    pub alarm: Arc<AtomicBool>,
    /// What the listeners of each namespace turned away.
    pub queues: QueuesByNetns,
    /// The inode of the only network namespace that is observed; `None`: all.
    pub only_netns: Option<u32>,
    /// What of it is reported.
    pub shown: Arc<Shown>,
    /// What is not.
    pub counters: Arc<Counters>,
    pub workloads: Arc<Workloads>,
}

impl Looks {
    /// Starts the thread. What it finds goes into the spool as batches of this start of the agent.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(eyes: Eyes, mut sealer: Sealer, spool: Arc<Spool>) -> anyhow::Result<Self> {
        let (stop, stopped) = std::sync::mpsc::channel();
        let thread = thread::Builder::new()
            .name("open".into())
            .spawn(move || {
                let mut next_look = Instant::now();
                let mut next_alarm = next_look;
                let mut places = Places::new(Path::new("/proc"));
                let mut halvings = 0;
                let started = Instant::now();
                // It ends when it is told to, and when the agent is gone.
                while stopped.recv_timeout(PENDING) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                    let now = Instant::now();
                    let is_alarmed = now >= next_alarm && eyes.alarm.swap(false, Ordering::AcqRel);
                    let sealed = if now >= next_look || is_alarmed {
                        next_look = now + LOOK;
                        next_alarm = now + ALARMED;
                        let look = eyes.look(&mut places, &mut halvings, started.elapsed());
                        eyes.counters.hidden(Stream::OpenConnections, look.hidden);
                        let listeners = if eyes.shown.listeners() {
                            listeners(&mut sealer, &look, &eyes.queues, &eyes.workloads)
                        } else {
                            None
                        };
                        vec![connections(&mut sealer, &look, &eyes.workloads), listeners]
                    } else {
                        let look = eyes.pending();
                        eyes.counters.hidden(Stream::OpenConnections, look.hidden);
                        vec![connections(&mut sealer, &look, &eyes.workloads)]
                    };
                    for sealed in sealed.into_iter().flatten() {
                        spool.append_new(sealed);
                    }
                }
            })
            .context("cannot start the thread that looks at what is open")?;
        Ok(Self { thread, stop })
    }

    /// Ends the thread.
    pub fn finish(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!(
                "the thread that looks at what is open panicked: nothing of it is reported any more"
            );
        }
    }
}

/// What one look found.
#[derive(Debug, Default)]
pub struct Look {
    /// Attempts that wait, all of them, and one in [`Look::one_in`] of the connections.
    connections: Vec<ConnectionRecord>,
    one_in: u32,
    /// Attempts and connections of the sample that the filter hides.
    hidden: u64,
    listeners: Vec<SocketReport>,
}

impl Eyes {
    /// Whether a look reports it; where that is for the filter alone, it is one more that is hidden.
    fn shows(&self, record: &ConnectionRecord, hidden: &mut u64) -> bool {
        let (is_reported, passes) = (self.shown.open_connections(), self.shown.passes(record));
        *hidden += u64::from(is_reported && !passes);
        is_reported && passes
    }

    fn probes(&self) -> MutexGuard<'_, Probes> {
        self.probes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Attempts that have waited for a second.
    fn pending(&self) -> Look {
        let mut look = Look {
            one_in: 1,
            ..Look::default()
        };
        let until_ns = clock::boot_now_ns().saturating_sub(PENDING.as_nanos() as u64);
        self.table.pending(until_ns, |record| {
            if look.connections.len() < ROWS && self.shows(record, &mut look.hidden) {
                look.connections.push(*record);
            }
        });
        look
    }

    /// Everything. `halvings`: how small the sample of the connections was the last time.
    fn look(&self, places: &mut Places, halvings: &mut u32, now: Duration) -> Look {
        let mut look = self.pending();
        let mut open = Sample {
            records: Vec::new(),
            halvings: *halvings,
        };
        let halved = self.probes().halve_surveys(*halvings);
        if let Err(error) = halved {
            tracing::debug!("{:#}", anyhow::Error::new(error));
        }
        let wanted = BTreeSet::from_iter(self.only_netns);
        places.search(&wanted, now);
        for (netns, path) in places.paths() {
            if !wanted.is_empty() && !wanted.contains(&netns) {
                continue;
            }
            // The lock is not held while sockets are read: a change of settings does not wait for a million of them.
            let surveyor = self.probes().surveyor();
            let surveyed = surveyor.and_then(|surveyor| {
                surveyor.survey(Some(&path), &mut |report| match report.state {
                    state::LISTEN if look.listeners.len() < ROWS => look.listeners.push(*report),
                    // Those that wait are in the look already, if they have waited long enough.
                    state::LISTEN | state::SYN_SENT | state::SYN_RECV => {}
                    _ if report.is_untracked != 0 => {}
                    _ if self.shows(&report.record, &mut look.hidden) => open.add(&report.record),
                    _ => {}
                })
            });
            if let Err(error) = surveyed {
                tracing::debug!(netns, "its sockets stay unseen: {:#}", anyhow::Error::new(error));
            }
        }
        look.one_in = open.one_in();
        *halvings = open.next_halvings();
        for record in &mut open.records {
            record.flags &= flag::SEEDED | flag::ESTABLISHED | flag::FIN_RECEIVED | flag::PATH_TRUNCATED;
            self.seeds.complete(record);
        }
        look.connections.extend(open.records);
        look
    }
}

/// Some of the open connections, each as likely as any other: never more than [`CONNECTIONS`], however many there are.
#[derive(Default)]
struct Sample {
    records: Vec<ConnectionRecord>,
    /// How often the part of them that is kept was halved.
    halvings: u32,
}

impl Sample {
    fn add(&mut self, record: &ConnectionRecord) {
        if !self.has(record.cookie) {
            return;
        }
        self.records.push(*record);
        while self.records.len() > CONNECTIONS {
            self.halvings += 1;
            let mut records = std::mem::take(&mut self.records);
            records.retain(|record| self.has(record.cookie));
            self.records = records;
        }
    }

    fn has(&self, cookie: u64) -> bool {
        is_in_sample(cookie, self.halvings)
    }

    /// With what to begin the next time: with more of them again, where there are few.
    fn next_halvings(&self) -> u32 {
        if self.records.len() < CONNECTIONS / 3 {
            self.halvings.saturating_sub(1)
        } else {
            self.halvings
        }
    }

    fn one_in(&self) -> u32 {
        1_u32.checked_shl(self.halvings).unwrap_or(u32::MAX)
    }
}

fn connections(sealer: &mut Sealer, look: &Look, workloads: &Workloads) -> Option<Sealed> {
    if look.connections.is_empty() {
        return None;
    }
    let at = Moment::now();
    let mut rows = ConnectionRows::default();
    for record in &look.connections {
        let cgroup_id = workloads.locate(record.cgroup_id, record.pid);
        rows.push(&ConnectionRecord { cgroup_id, ..*record }, at.clock);
    }
    let mut rows = rows.finish();
    workloads.name(&mut rows.processes);
    let columns = batch::Columns::OpenConnections(OpenConnections {
        observed_at_ns: at.wall_ns(),
        one_in: look.one_in,
        connections: Some(rows),
    });
    let rows = look.connections.len();
    Some(sealer.seal(Stream::OpenConnections, rows, at, columns))
}

fn listeners(
    sealer: &mut Sealer,
    look: &Look,
    queues: &QueuesByNetns,
    workloads: &Workloads,
) -> Option<Sealed> {
    if look.listeners.is_empty() {
        return None;
    }
    let at = Moment::now();
    let queues = queues.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut listeners: Vec<_> = look
        .listeners
        .iter()
        .map(|report| wire::listener(report, queues.get(&report.record.netns).copied()))
        .collect();
    for process in listeners
        .iter_mut()
        .filter_map(|listener| listener.process.as_mut())
    {
        process.cgroup_id = workloads.locate(process.cgroup_id, process.pid);
        workloads.name(std::slice::from_mut(process));
    }
    let columns = batch::Columns::Listeners(ListenerRows {
        observed_at_ns: at.wall_ns(),
        listeners,
    });
    Some(sealer.seal(Stream::Listeners, look.listeners.len(), at, columns))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(connections: u64) -> Sample {
        let mut sample = Sample::default();
        for cookie in 1..=connections {
            sample.add(&ConnectionRecord {
                cookie,
                ..ConnectionRecord::ZERO
            });
        }
        sample
    }

    #[test]
    fn few_connections_are_all_shown() {
        let sample = sample(CONNECTIONS as u64);
        assert_eq!((sample.records.len(), sample.one_in()), (CONNECTIONS, 1));
    }

    #[test]
    fn of_many_connections_a_fair_part_is_shown_and_the_same_ones_later() {
        let all = 65_536;
        let shown = sample(all);
        assert!(shown.records.len() <= CONNECTIONS);
        let estimate = shown.records.len() as u64 * u64::from(shown.one_in());
        assert!((all * 9 / 10..all * 11 / 10).contains(&estimate), "{estimate}");
        let odd = shown
            .records
            .iter()
            .filter(|record| record.cookie % 2 == 1)
            .count();
        let part = shown.records.len();
        assert!((part * 4 / 10..part * 6 / 10).contains(&odd), "{odd} of {part}");
        // With more of them, those that are shown are among the same.
        let cookies = |sample: &Sample| {
            sample
                .records
                .iter()
                .map(|record| record.cookie)
                .collect::<BTreeSet<_>>()
        };
        let more = sample(all * 2);
        let still: BTreeSet<_> = cookies(&more)
            .into_iter()
            .filter(|cookie| *cookie <= all)
            .collect();
        assert!(still.is_subset(&cookies(&shown)));
    }
}
