//! Where the counters of a network namespace can be read: at a task that is in it, or, where only a mount keeps it
//! (`ip netns add`), from a thread that goes there for a moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::{
    opens,
    visitor::{Visitor, text_of},
};

/// A search may take this part of the time at most: on a machine of ten thousand processes it takes 50 ms.
const SEARCH_PART: u32 = 50;

/// What was not found is looked for again after so long at least, not at every reading.
const SEARCH_PAUSE: Duration = Duration::from_secs(5);

/// The places that are known.
pub struct Places {
    proc: PathBuf,
    known: BTreeMap<u32, Place>,
    /// What the last search did not find.
    hidden: BTreeSet<u32>,
    /// Since the agent started: when a namespace that was never looked for may be, and when one that was.
    next_search: Duration,
    next_search_again: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// A task's folder in /proc.
    Task(PathBuf),
    /// The namespace itself, mounted.
    Mount(PathBuf),
}

impl Places {
    /// None is known yet. `proc` is /proc, but for tests.
    pub fn new(proc: &Path) -> Self {
        Self {
            proc: proc.to_owned(),
            known: BTreeMap::new(),
            hidden: BTreeSet::new(),
            next_search: Duration::ZERO,
            next_search_again: Duration::ZERO,
        }
    }

    /// How often each of the namespaces opened a connection, ever. One that cannot be read is not in the answer.
    pub fn opens(&mut self, wanted: &BTreeSet<u32>, now: Duration) -> BTreeMap<u32, u64> {
        let mut found = self.read(wanted);
        let missing: BTreeSet<u32> = wanted
            .iter()
            .filter(|netns| !found.contains_key(netns))
            .copied()
            .collect();
        let is_news = missing.iter().any(|netns| !self.hidden.contains(netns));
        let next_search = if is_news {
            self.next_search
        } else {
            self.next_search_again
        };
        if !missing.is_empty() && now >= next_search {
            self.search(&missing, now);
            found.extend(self.read(&missing));
        }
        found
    }

    /// Looks for every namespace of the machine; those in `wanted` also among the threads of processes.
    pub fn search(&mut self, wanted: &BTreeSet<u32>, now: Duration) {
        let started = Instant::now();
        let mut known = BTreeMap::new();
        let processes = numbered(&self.proc);
        for process in &processes {
            if let Ok(netns) = namespace_of(process) {
                known.entry(netns).or_insert_with(|| Place::Task(process.clone()));
            }
        }
        for (netns, mount) in mounted(&self.proc) {
            known.entry(netns).or_insert(Place::Mount(mount));
        }
        let is_missing = |known: &BTreeMap<u32, Place>| wanted.iter().any(|netns| !known.contains_key(netns));
        for process in &processes {
            if !is_missing(&known) {
                break;
            }
            for task in numbered(&process.join("task")) {
                if let Ok(netns) = namespace_of(&task) {
                    known.entry(netns).or_insert(Place::Task(task));
                }
            }
        }
        self.hidden = wanted
            .iter()
            .filter(|netns| !known.contains_key(netns))
            .copied()
            .collect();
        self.known = known;
        self.next_search = now + started.elapsed() * SEARCH_PART;
        self.next_search_again = self.next_search.max(now + SEARCH_PAUSE);
    }

    /// The namespaces that the last search found.
    pub fn found(&self) -> BTreeSet<u32> {
        self.known.keys().copied().collect()
    }

    /// By which paths the last search found them: files that stand for the namespace.
    pub fn paths(&self) -> BTreeMap<u32, PathBuf> {
        let path = |place: &Place| match place {
            Place::Task(task) => task.join("ns/net"),
            Place::Mount(mount) => mount.clone(),
        };
        self.known
            .iter()
            .map(|(&netns, place)| (netns, path(place)))
            .collect()
    }

    fn read(&self, wanted: &BTreeSet<u32>) -> BTreeMap<u32, u64> {
        let mut found = BTreeMap::new();
        let mut mounts = Vec::new();
        for netns in wanted {
            match self.known.get(netns) {
                Some(Place::Task(task)) => {
                    if let Some(opens) = read_at(task, *netns) {
                        found.insert(*netns, opens);
                    }
                }
                Some(Place::Mount(mount)) => mounts.push((*netns, mount.clone())),
                None => {}
            }
        }
        found.extend(read_inside(mounts));
        found
    }
}

/// Reads at a task, and makes sure that it is in the namespace: it may have left, or ended and given its number away.
fn read_at(task: &Path, netns: u32) -> Option<u64> {
    let text = fs::read_to_string(task.join("net/snmp")).ok()?;
    (namespace_of(task).ok()? == netns).then_some(())?;
    opens(&text).ok()
}

/// Reads inside namespaces, from a thread of its own: where it cannot come back, it ends there.
fn read_inside(mounts: Vec<(u32, PathBuf)>) -> BTreeMap<u32, u64> {
    if mounts.is_empty() {
        return BTreeMap::new();
    }
    let visit = move || {
        let mut snmp = Vec::new();
        let mounts = mounts.iter().map(|(netns, mount)| (*netns, mount.as_path()));
        let mut visitor = Visitor::new().ok()?;
        Some(visitor.visit_all(mounts, || {
            opens(text_of("/proc/thread-self/net/snmp", &mut snmp).ok()?).ok()
        }))
    };
    let thread = thread::Builder::new().name("witness".into()).spawn(visit);
    thread
        .ok()
        .and_then(|thread| thread.join().ok().flatten())
        .unwrap_or_default()
}

/// The namespace that a task is in. Others' tasks may be looked at with CAP_SYS_PTRACE.
fn namespace_of(task: &Path) -> io::Result<u32> {
    let inode = fs::metadata(task.join("ns/net"))?.ino();
    u32::try_from(inode).map_err(io::Error::other)
}

/// The folders that are named by numbers: processes in /proc, threads in a process's `task`.
fn numbered(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .as_encoded_bytes()
                .iter()
                .all(u8::is_ascii_digit)
        })
        .map(|entry| entry.path())
        .collect()
}

/// Network namespaces that are mounted where the agent can see it, by their lines in mountinfo (proc(5)): the fourth
/// word is `net:[inode]`, the fifth the mount point, with spaces and the like as octal numbers.
fn mounted(proc: &Path) -> Vec<(u32, PathBuf)> {
    let Ok(mounts) = fs::read_to_string(proc.join("self/mountinfo")) else {
        return Vec::new();
    };
    mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ').skip(3);
            let (root, point) = (words.next()?, words.next()?);
            let netns = root.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()?;
            (!point.contains('\\')).then(|| (netns, PathBuf::from(point)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A /proc with one process of two threads, each in a namespace of its own.
    fn fake_proc() -> (tempfile::TempDir, [u32; 2]) {
        let proc = tempfile::tempdir().expect("a folder");
        let namespaces = [("7", 40), ("7/task/8", 50)].map(|(task, opens)| {
            let task = proc.path().join(task);
            fs::create_dir_all(task.join("ns")).expect("a folder");
            fs::create_dir_all(task.join("net")).expect("a folder");
            fs::write(task.join("ns/net"), "").expect("a file");
            let snmp = format!("Tcp: ActiveOpens PassiveOpens\nTcp: {opens} 2\n");
            fs::write(task.join("net/snmp"), snmp).expect("a file");
            namespace_of(&task).expect("an inode that fits")
        });
        (proc, namespaces)
    }

    #[test]
    fn a_namespace_is_read_at_any_task_that_is_in_it() {
        let (proc, [of_process, of_thread]) = fake_proc();
        let mut places = Places::new(proc.path());
        let found = places.opens(&BTreeSet::from([of_process, of_thread]), Duration::ZERO);
        assert_eq!(found, BTreeMap::from([(of_process, 42), (of_thread, 52)]));
    }

    #[test]
    fn what_cannot_be_read_is_not_there_and_not_looked_for_again_at_once() {
        let (proc, [of_process, _]) = fake_proc();
        let mut places = Places::new(proc.path());
        let wanted = BTreeSet::from([of_process]);
        fs::rename(proc.path().join("7"), proc.path().join("away")).expect("renamed");
        assert_eq!(places.opens(&wanted, Duration::ZERO), BTreeMap::new());
        fs::rename(proc.path().join("away"), proc.path().join("9")).expect("renamed");
        assert_eq!(places.opens(&wanted, Duration::from_secs(1)), BTreeMap::new());
        assert_eq!(
            places.opens(&wanted, SEARCH_PAUSE),
            BTreeMap::from([(of_process, 42)])
        );
    }

    #[test]
    fn a_task_that_is_in_another_namespace_by_now_is_not_believed() {
        let (proc, [of_process, _]) = fake_proc();
        let mut places = Places::new(proc.path());
        let wanted = BTreeSet::from([of_process]);
        assert_eq!(places.opens(&wanted, Duration::ZERO).len(), 1);
        let moved = proc.path().join("7/ns/net");
        fs::rename(&moved, proc.path().join("kept")).expect("renamed");
        fs::write(&moved, "").expect("another inode");
        assert_eq!(places.opens(&wanted, Duration::from_secs(1)), BTreeMap::new());
    }

    #[test]
    fn mounts_of_namespaces_are_told_from_others() {
        let proc = tempfile::tempdir().expect("a folder");
        fs::create_dir(proc.path().join("self")).expect("a folder");
        let mounts = "\
25 1 254:0 / / rw,relatime - ext4 /dev/vda rw
300 25 0:4 net:[4026532281] /run/netns/web rw shared:1 - nsfs nsfs rw
301 25 0:4 mnt:[4026532282] /run/mnt rw - nsfs nsfs rw
";
        fs::write(proc.path().join("self/mountinfo"), mounts).expect("a file");
        assert_eq!(
            mounted(proc.path()),
            [(4_026_532_281, PathBuf::from("/run/netns/web"))]
        );
    }
}
