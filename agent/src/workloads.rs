//! Who runs in a cgroup: a unit, a container, a pod, and which service people call that. The kernel side gives each record
//! the id of a cgroup, here it gets its name.
//!
//! A [`tree`] of the cgroups is kept by watching them come and go, so that those that lived for a moment are still known
//! when their records come; what it missed is looked up in /proc at the record's process. Names travel once a day, as rows
//! of a stream of their own ([`rows`]); a record carries the id and the service.

pub mod cri;
pub mod path;
pub mod pods;
pub mod rows;
pub mod rules;
pub mod tree;

use std::{
    collections::VecDeque,
    fs,
    hash::{Hash, Hasher},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use holdfast_proto::v1::Process;
use rustc_hash::{FxHashMap, FxHasher};

use self::{
    path::Place,
    pods::{Pod, Pods},
    rules::Rule,
};

/// Cgroups that are known at once, those that are gone included: of these the oldest make room for new ones. Each takes
/// some 500 bytes.
pub const CGROUPS: usize = 16_384;

/// Processes whose cgroup (v1) is remembered, and cgroups of which nobody in /proc told; and for how long: a process
/// rarely changes its cgroup, and the thread that asks is that of the ring.
const REMEMBERED_ANSWERS: usize = 4_096;
const REMEMBERED: Duration = Duration::from_secs(2);

/// Ids that are made of a path have this bit: no id of the kernel does.
const MADE: u64 = 1 << 63;

/// Whether an id was made of the path of a cgroup of version 1: then the kernel side knows nothing by it.
pub(crate) fn is_made(id: u64) -> bool {
    id & MADE != 0
}

/// What is known of a cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// Below the mount of its hierarchy.
    pub path: String,
    pub place: Place,
    /// Of the pod that `place` names, as far as the kubelet or the container runtime was asked.
    pub pod: Pod,
    pub container_name: String,
}

/// All of them.
pub struct Workloads {
    rules: Vec<Rule>,
    /// Where processes tell their cgroups.
    proc: PathBuf,
    /// Where cgroups of version 2 are mounted; `None`: nowhere.
    root: Option<PathBuf>,
    /// The id of its root. On a machine with cgroup v1 all sockets have it.
    root_id: u64,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    by_id: FxHashMap<u64, Entry>,
    /// Those that may make room, the oldest first: they are gone, or only /proc told of them, and nobody will when they
    /// are gone.
    gone: VecDeque<u64>,
    pods: Pods,
    by_process: FxHashMap<u32, (u64, Instant)>,
    /// When nobody told of a cgroup (v2).
    untold_of: FxHashMap<u64, Instant>,
    /// Those that were used and whose names did not travel today.
    untold: Vec<u64>,
    today: u64,
    /// Cgroups that found no place.
    refused: u64,
}

/// Who told of a cgroup.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// Whoever watches the tree, and will tell when it is gone.
    Tree,
    Proc,
}

struct Entry {
    workload: Workload,
    /// The day on which its names travelled last.
    told: Option<u64>,
    /// Times that whoever may know was asked, and it was not named.
    unnamed_by: u8,
}

/// After being asked for so many times without getting a name, a container is not worth asking often for any more: it is of nobody
/// who answers, or holds a pod's namespaces and has no name.
const ANSWERS: u8 = 6;

impl Entry {
    fn is_worth_asking(&self) -> bool {
        let Workload {
            place,
            pod,
            container_name,
            ..
        } = &self.workload;
        let is_nameless = !place.pod_uid.is_empty() && pod.name.is_empty()
            || !place.container_id.is_empty() && container_name.is_empty();
        is_nameless && self.unnamed_by < ANSWERS
    }
}

impl Workloads {
    /// With the node's rules; cgroups as this machine has them.
    pub fn of_this_machine(rules: Vec<Rule>) -> Self {
        let root = root_of_v2();
        Self::new(rules, PathBuf::from("/proc"), root)
    }

    /// As [`Self::of_this_machine`], for other places.
    pub fn new(rules: Vec<Rule>, proc: PathBuf, root: Option<PathBuf>) -> Self {
        let root_id = root
            .as_ref()
            .and_then(|root| fs::metadata(root).ok())
            .map_or(0, |metadata| metadata.ino());
        Self {
            rules,
            proc,
            root,
            root_id,
            known: Mutex::default(),
        }
    }

    /// Where cgroups of version 2 are mounted.
    pub fn root(&self) -> Option<&Path> {
        self.root.as_deref()
    }

    /// A cgroup is there.
    pub fn appeared(&self, id: u64, path: &str) {
        self.lock().insert(id, path, Source::Tree);
    }

    /// A cgroup is gone. Its records may still come.
    pub fn disappeared(&self, id: u64) {
        let mut known = self.lock();
        if known.by_id.contains_key(&id) {
            known.gone.push_back(id);
        }
    }

    /// The id that names the cgroup of a process, where the kernel side said `id`: itself, or on a machine with cgroup v1
    /// one that is made of the path. Asks /proc if it is not known.
    pub fn locate(&self, id: u64, pid: u32) -> u64 {
        let is_root = id == 0 || id == self.root_id;
        if !is_root && self.lock().by_id.contains_key(&id) {
            return id;
        }
        if pid == 0 {
            return id;
        }
        self.ask(id, is_root, pid, Instant::now())
    }

    /// Asks the process, unless it was asked a moment ago.
    fn ask(&self, id: u64, is_root: bool, pid: u32, now: Instant) -> u64 {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < REMEMBERED;
        let known = self.lock();
        let answer = match is_root {
            true => known.by_process.get(&pid).copied(),
            false => known.untold_of.get(&id).map(|&at| (id, at)),
        };
        drop(known);
        if let Some((id, at)) = answer
            && is_recent(at)
        {
            return id;
        }
        let text = fs::read_to_string(self.proc.join(format!("{pid}/cgroup"))).unwrap_or_default();
        if !is_root {
            // Its own word counts only if it has not moved since.
            let path = path_in_v2(&text).filter(|path| self.id_of(path) == Some(id));
            let mut known = self.lock();
            match path {
                Some(path) => known.insert(id, path, Source::Proc),
                None => remember(&mut known.untold_of, id, now),
            }
            return id;
        }
        let found = path_in_v1(&text).map(|path| (made_id(path), path));
        let mut known = self.lock();
        if let Some((made, path)) = found {
            known.insert(made, path, Source::Proc);
        }
        let id = found.map_or(id, |(made, _)| made);
        remember(&mut known.by_process, pid, (id, now));
        id
    }

    /// The service of a process; its cgroup's names travel if they did not today.
    pub fn service(&self, id: u64, comm: &str) -> String {
        let mut known = self.lock();
        let today = known.today;
        let Some(entry) = known.by_id.get_mut(&id) else {
            return rules::service(&self.rules, &Workload::default(), comm);
        };
        let is_new = entry.told.replace(today) != Some(today);
        let service = rules::service(&self.rules, &entry.workload, comm);
        if is_new {
            known.untold.push(id);
        }
        service
    }

    /// Says of each process which service it belongs to.
    pub fn name(&self, processes: &mut [Process]) {
        for process in processes {
            process.service = self.service(process.cgroup_id, &process.comm);
        }
    }

    /// The cgroups whose names have to travel, each with its service. `today` is the UTC day.
    pub fn untold(&self, today: u64) -> Vec<(u64, Workload, String)> {
        let mut known = self.lock();
        known.today = today;
        let untold = std::mem::take(&mut known.untold);
        let names = |id| {
            let workload = known.by_id.get(&id)?.workload.clone();
            let service = rules::service(&self.rules, &workload, "");
            Some((id, workload, service))
        };
        untold.into_iter().filter_map(names).collect()
    }

    /// What the kubelet and the container runtime told. The names of cgroups that mean something else now travel again when
    /// they are used.
    pub fn learn(&self, pods: Pods) {
        let mut known = self.lock();
        let is_news = known.pods != pods;
        if !is_news {
            return;
        }
        for entry in known.by_id.values_mut() {
            let workload = named(entry.workload.path.clone(), entry.workload.place.clone(), &pods);
            // A pod that is gone keeps its name.
            let is_known = workload.pod != Pod::default() || !workload.container_name.is_empty();
            if is_known && workload != entry.workload {
                entry.workload = workload;
                entry.told = None;
            }
        }
        known.pods = pods;
    }

    /// Names were asked for, and somebody answered, or nobody is there who would.
    pub fn asked(&self) {
        for entry in self.lock().by_id.values_mut() {
            if entry.is_worth_asking() {
                entry.unnamed_by += 1;
            }
        }
    }

    /// Whether there is a pod or a container whose name is not known, and was not asked for often.
    pub fn has_nameless(&self) -> bool {
        self.lock().by_id.values().any(Entry::is_worth_asking)
    }

    /// Cgroups that found no place.
    pub fn refused(&self) -> u64 {
        self.lock().refused
    }

    /// The id of the cgroup (v2) at a path.
    fn id_of(&self, path: &str) -> Option<u64> {
        let folder = self.root.as_ref()?.join(path.trim_start_matches('/'));
        // The inode of its folder is its id (cgroup_ino, include/linux/cgroup.h).
        Some(fs::metadata(folder).ok()?.ino())
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Whole between any two statements: a panic elsewhere does not spoil it.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn insert(&mut self, id: u64, path: &str, source: Source) {
        if self
            .by_id
            .get(&id)
            .is_some_and(|entry| entry.workload.path == path)
        {
            return;
        }
        while self.by_id.len() >= CGROUPS {
            let Some(oldest) = self.gone.pop_front() else {
                self.refused += 1;
                return;
            };
            self.by_id.remove(&oldest);
        }
        let workload = named(path.to_owned(), Place::of(path), &self.pods);
        let entry = Entry {
            workload,
            told: None,
            unnamed_by: 0,
        };
        if self.by_id.insert(id, entry).is_none() && source == Source::Proc {
            self.gone.push_back(id);
        }
    }
}

/// Keeps an answer of /proc. They are young: when there are too many, all of them go.
fn remember<K: Eq + Hash, V>(answers: &mut FxHashMap<K, V>, key: K, answer: V) {
    if answers.len() >= REMEMBERED_ANSWERS {
        answers.clear();
    }
    answers.insert(key, answer);
}

fn named(path: String, mut place: Place, pods: &Pods) -> Workload {
    // Where a runtime puts the containers of a pod elsewhere, the path has only the container's id.
    if place.pod_uid.is_empty()
        && let Some(uid) = pods.uids_by_container.get(&place.container_id)
    {
        place.pod_uid.clone_from(uid);
    }
    // With its cgroupfs driver containerd puts a container below its pod under the bare id.
    if place.runtime.is_empty()
        && let Some(runtime) = pods.runtimes_by_container.get(&place.container_id)
    {
        place.runtime.clone_from(runtime);
    }
    Workload {
        pod: pods.by_uid.get(&place.pod_uid).cloned().unwrap_or_default(),
        container_name: pods
            .container_names
            .get(&place.container_id)
            .cloned()
            .unwrap_or_default(),
        path,
        place,
    }
}

/// An id for a cgroup of version 1, whose hierarchies each have ids of their own.
fn made_id(path: &str) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write(path.as_bytes());
    MADE | hasher.finish()
}

/// The path in the line `0::PATH` of /proc/PID/cgroup.
fn path_in_v2(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

/// Of the paths of all hierarchies the one that says most: of a container, of a unit, of anything but the root.
fn path_in_v1(text: &str) -> Option<&str> {
    let lines = text.lines().filter(|line| !line.starts_with("0::"));
    let paths = lines.filter_map(|line| line.splitn(3, ':').nth(2));
    let says = |path: &str| {
        let place = Place::of(path);
        (
            !place.container_id.is_empty(),
            !place.pod_uid.is_empty(),
            !place.unit.is_empty(),
        )
    };
    // Of several the last that max_by_key finds: by their number, the first hierarchy of the machine.
    paths.filter(|path| *path != "/").max_by_key(|path| says(path))
}

/// Where cgroups of version 2 are mounted; `None`: nowhere.
pub(crate) fn root_of_v2() -> Option<PathBuf> {
    mount_of_v2(&fs::read_to_string("/proc/self/mounts").ok()?)
}

/// The same, by what /proc/self/mounts says.
fn mount_of_v2(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let place = words.next()?;
        (words.next()? == "cgroup2").then(|| PathBuf::from(place))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    /// A machine of the test: /proc, and cgroups of version 2.
    struct Machine {
        folder: tempfile::TempDir,
    }

    impl Machine {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            for name in ["proc", "cgroup"] {
                fs::create_dir(folder.path().join(name)).expect("a folder");
            }
            Self { folder }
        }

        fn workloads(&self, rules: &[&str]) -> Workloads {
            let rules = rules.iter().map(|rule| rule.parse().expect("a rule")).collect();
            let (proc, root) = (self.folder.path().join("proc"), self.folder.path().join("cgroup"));
            Workloads::new(rules, proc, Some(root))
        }

        fn process(&self, pid: u32, cgroup: &str) {
            let folder = self.folder.path().join(format!("proc/{pid}"));
            fs::create_dir(&folder).expect("a folder");
            fs::write(folder.join("cgroup"), cgroup).expect("written");
        }

        /// A cgroup, and its id.
        fn cgroup(&self, path: &str) -> u64 {
            let folder = self
                .folder
                .path()
                .join("cgroup")
                .join(path.trim_start_matches('/'));
            fs::create_dir_all(&folder).expect("a folder");
            fs::metadata(folder).expect("a folder").ino()
        }
    }

    #[test]
    fn a_cgroup_that_came_and_went_is_still_known() {
        let machine = Machine::new();
        let workloads = machine.workloads(&["unit=nginx.service -> web"]);
        workloads.appeared(77, "/system.slice/nginx.service");
        workloads.disappeared(77);
        assert_eq!(workloads.locate(77, 0), 77);
        assert_eq!(workloads.service(77, "nginx"), "web");
        assert_eq!(workloads.service(78, "nginx"), "");
    }

    #[test]
    fn what_nobody_saw_come_is_asked_of_the_process_if_it_is_still_there() {
        let machine = Machine::new();
        let id = machine.cgroup("/system.slice/cron.service");
        let elsewhere = machine.cgroup("/system.slice/sshd.service");
        machine.process(5, "0::/system.slice/cron.service\n");
        let workloads = machine.workloads(&[]);
        assert_eq!(workloads.locate(id, 5), id);
        assert_eq!(workloads.service(id, "cron"), "cron");
        // It has moved since.
        assert_eq!(workloads.locate(elsewhere, 5), elsewhere);
        assert_eq!(workloads.service(elsewhere, "cron"), "");
    }

    #[test]
    fn on_a_machine_with_version_1_the_process_tells_and_the_path_makes_the_id() {
        let machine = Machine::new();
        let root = machine.cgroup("/");
        machine.process(
            7,
            &format!(
                "12:pids:/docker/{ID}\n3:cpu,cpuacct:/\n1:name=systemd:/system.slice/docker.service\n0::/\n"
            ),
        );
        machine.process(8, "12:pids:/\n1:name=systemd:/system.slice/sshd.service\n0::/\n");
        machine.process(9, "12:pids:/\n1:name=systemd:/\n0::/\n");
        let workloads = machine.workloads(&["container=0123* -> cache"]);
        let (container, unit) = (workloads.locate(root, 7), workloads.locate(root, 8));
        assert!(container & MADE != 0 && unit & MADE != 0 && container != unit);
        assert_eq!(workloads.service(container, "redis"), "cache");
        assert_eq!(workloads.service(unit, "sshd"), "sshd");
        assert_eq!(workloads.locate(root, 9), root, "in no cgroup but the root");
        // Only version 2, and moved after it had made its socket.
        machine.process(10, "0::/system.slice/late.service\n");
        assert_eq!(workloads.locate(root, 10), root);
    }

    #[test]
    fn what_only_processes_told_of_makes_room() {
        let machine = Machine::new();
        let root = machine.cgroup("/");
        machine.process(7, "1:name=systemd:/system.slice/last.service\n");
        let workloads = machine.workloads(&[]);
        for number in 0..CGROUPS as u64 {
            workloads
                .lock()
                .insert(MADE | number, &format!("/{number}"), Source::Proc);
        }
        let last = workloads.locate(root, 7);
        assert_eq!(workloads.service(last, "x"), "last");
        assert_eq!(workloads.refused(), 0);
    }

    #[test]
    fn a_cgroup_of_which_nobody_told_is_asked_for_again_only_after_a_moment() {
        let machine = Machine::new();
        let id = machine.cgroup("/system.slice/cron.service");
        let workloads = machine.workloads(&[]);
        let asked = Instant::now();
        workloads.ask(id, false, 5, asked);
        machine.process(5, "0::/system.slice/cron.service\n");
        workloads.ask(id, false, 5, asked + REMEMBERED / 2);
        assert_eq!(workloads.service(id, "cron"), "", "/proc was not read");
        workloads.ask(id, false, 5, asked + REMEMBERED);
        assert_eq!(workloads.service(id, "cron"), "cron");
    }

    #[test]
    fn names_travel_once_a_day_and_again_when_they_change() {
        let machine = Machine::new();
        let workloads = machine.workloads(&[]);
        let path = format!("/kubepods/burstable/pod2f5b6d1a-3c4e-4f60-8a7b-9c0d1e2f3a4b/{ID}");
        workloads.appeared(77, &path);
        assert_eq!(workloads.untold(1).len(), 0, "nobody used it");
        assert_eq!(workloads.service(77, "app"), "");
        workloads.service(77, "app");
        assert_eq!(workloads.untold(1).len(), 1);
        workloads.service(77, "app");
        assert_eq!(workloads.untold(1).len(), 0);
        assert!(workloads.has_nameless());

        let pod = Pod {
            name: "shop-1".into(),
            owner: "shop".into(),
            ..Pod::default()
        };
        workloads.learn(Pods {
            by_uid: [("2f5b6d1a-3c4e-4f60-8a7b-9c0d1e2f3a4b".to_owned(), pod.clone())].into(),
            container_names: [(ID.to_owned(), "app".to_owned())].into(),
            ..Pods::default()
        });
        assert_eq!(workloads.service(77, "app"), "shop");
        let told = workloads.untold(1);
        assert_eq!((&told[0].1.pod, &*told[0].1.container_name), (&pod, "app"));
        // The pod is gone, its records may still come.
        workloads.learn(Pods::default());
        assert_eq!(workloads.service(77, "app"), "shop");
        assert_eq!(workloads.untold(2).len(), 0);
        workloads.service(77, "app");
        assert_eq!(workloads.untold(2).len(), 1, "another day");
    }

    #[test]
    fn the_oldest_that_are_gone_make_room_and_none_that_is_there_does() {
        let machine = Machine::new();
        let workloads = machine.workloads(&[]);
        for id in 1..=CGROUPS as u64 {
            workloads.appeared(id, &format!("/system.slice/s{id}.service"));
        }
        workloads.appeared(1 << 20, "/system.slice/late.service");
        assert_eq!(
            (workloads.refused(), workloads.service(1 << 20, "x")),
            (1, String::new())
        );
        workloads.disappeared(3);
        workloads.appeared(1 << 20, "/system.slice/late.service");
        assert_eq!(workloads.service(1 << 20, "x"), "late");
        assert_eq!(
            (workloads.service(3, "x"), workloads.service(4, "x")),
            (String::new(), "s4".to_owned())
        );
    }
}
