//! What was there before the agent: every network namespace is surveyed once after the programs were attached. The
//! survey gives old connections a place in the kernel's table; their owners, and those of old listeners, are looked up
//! in /proc.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use holdfast_agent_ebpf::{
    event::{ConnectionRecord, SocketReport, attribution, flag, state},
    listener::ListenerKey,
};

use crate::{
    owners::{Owner, owners},
    probes::{Listeners, ProbeError, Probes},
    witness::places::Places,
};

/// Owners of connections that are older than the agent, by cookie, until these connections end.
#[derive(Debug, Default)]
pub struct Seeds(Mutex<HashMap<u64, Owner>>);

/// What the survey at the start found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub connections: usize,
    pub listeners: usize,
    /// Of both, those that no process has open, as far as the agent may look.
    pub unowned: usize,
    /// Old connections for which the table of connections had no room: nobody will see how they end.
    pub untracked: usize,
    /// Network namespaces whose old sockets were found, and are all followed.
    pub surveyed: BTreeSet<u32>,
    /// Those whose old sockets stay unseen, and why.
    pub unseen: BTreeMap<u32, String>,
}

impl Seeds {
    /// Surveys every namespace, or the only one that is observed, and looks for owners.
    ///
    /// # Errors
    /// If the listeners cannot be completed. A namespace that cannot be surveyed is in the answer.
    pub fn find(
        &self,
        probes: &mut Probes,
        listeners: &mut Listeners,
        only_netns: Option<u32>,
    ) -> Result<Found, ProbeError> {
        let mut found = Found::default();
        let mut unowned = Vec::new();
        let mut places = Places::new(Path::new("/proc"));
        let wanted = BTreeSet::from_iter(only_netns);
        places.search(&wanted, Duration::ZERO);
        for (netns, path) in places.paths() {
            if !wanted.is_empty() && !wanted.contains(&netns) {
                continue;
            }
            let mut untracked = 0;
            let surveyed = probes.survey(Some(&path), &mut |report| {
                if report.is_untracked != 0 {
                    untracked += 1;
                    return;
                }
                let is_listener = report.state == state::LISTEN;
                let is_new = report.record.flags & flag::SEEDED != 0 || is_listener;
                if is_new && report.record.attribution == attribution::UNKNOWN {
                    unowned.push(*report);
                }
                found.listeners += usize::from(is_listener);
                found.connections += usize::from(report.record.flags & flag::SEEDED != 0);
            });
            found.untracked += untracked;
            match surveyed {
                Ok(()) if untracked > 0 => {}
                Ok(()) => {
                    found.surveyed.insert(netns);
                }
                Err(error) => {
                    let reason = format!("{:#}", anyhow::Error::new(error));
                    found.unseen.insert(netns, reason);
                }
            }
        }
        let inodes: HashSet<u64> = unowned.iter().map(|report| report.inode).collect();
        let owners = owners(Path::new("/proc"), &inodes);
        for report in &unowned {
            let Some(&owner) = owners.get(&report.inode) else {
                found.unowned += 1;
                continue;
            };
            if report.state == state::LISTEN {
                listeners.complete(&key(report), owner)?;
            } else {
                self.lock().insert(report.record.cookie, owner);
            }
        }
        Ok(found)
    }

    /// Completes the record of a connection that is older than the agent, if its owner was found.
    pub fn complete(&self, record: &mut ConnectionRecord) {
        if record.flags & flag::SEEDED == 0 {
            return;
        }
        let mut owners = self.lock();
        let owner = if record.flags & flag::FINAL == 0 {
            owners.get(&record.cookie).copied()
        } else {
            owners.remove(&record.cookie)
        };
        // A process that was seen to use the socket since is a better answer.
        if let Some(Owner { pid, comm }) = owner
            && record.attribution != attribution::EXACT
        {
            (record.pid, record.comm) = (pid, comm);
            record.attribution = attribution::SNAPSHOT;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Owner>> {
        // Consistent between any two statements: a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the kernel side remembers a listener.
fn key(report: &SocketReport) -> ListenerKey {
    let record = &report.record;
    ListenerKey::new(
        record.netns,
        record.family.into(),
        record.local_address,
        record.local_port,
    )
}
