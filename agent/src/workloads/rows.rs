//! The names of cgroups become batches of a stream of their own; and the kubelet and the container runtime are asked for
//! those of the pods.

use std::{
    collections::BTreeMap,
    fmt::Display,
    io,
    path::PathBuf,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use holdfast_proto::v1::{self, CgroupRows, Stream, batch};

use super::{
    Workload, Workloads,
    cri::{self, Asked, Runtimes, Unanswered},
    pods::{Kubelet, Pods},
};
use crate::{
    clock::Moment,
    seal::Sealer,
    spool::{Sealed, Spool},
};

/// How often names that are to travel are looked for.
const TICK: Duration = Duration::from_secs(1);

/// How often the kubelet and the runtime are asked: often while there is a pod or a container without a name, rarely
/// otherwise.
const ASK_SOON: Duration = Duration::from_secs(5);
const ASK: Duration = Duration::from_secs(60);

/// How long whoever does not answer is not asked, after so many times in a row: one that starts answers soon, one whose
/// socket the agent may not open never does.
fn pause_after(times: u32) -> Duration {
    let doubled = 1 << (times - 1).min(u32::BITS - 1);
    ASK_SOON.saturating_mul(doubled).min(ASK)
}

/// Cgroups of a batch.
const ROWS: usize = 1_024;

const DAY_NS: u64 = 86_400_000_000_000;

/// The thread, for as long as it is not stopped.
pub struct Naming {
    thread: JoinHandle<()>,
    stop: mpsc::Sender<()>,
}

impl Naming {
    /// Starts it. Its rows go into the spool as batches of this start of the agent.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(
        workloads: Arc<Workloads>,
        kubelet: Option<Kubelet>,
        runtimes: Runtimes,
        mut sealer: Sealer,
        spool: Arc<Spool>,
    ) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let thread = thread::Builder::new().name("names".into()).spawn(move || {
            let mut asking = Asking::new(kubelet, runtimes, cri::PATIENCE);
            loop {
                asking.ask(&workloads, Instant::now());
                // The last look comes after it was stopped: what was used until then travels too.
                let is_last = stopped.recv_timeout(TICK) != Err(mpsc::RecvTimeoutError::Timeout);
                let now = Moment::now();
                for sealed in seal(&mut sealer, &workloads.untold(now.wall_ns() / DAY_NS), now) {
                    spool.append_new(sealed);
                }
                if is_last {
                    return;
                }
            }
        })?;
        Ok(Self { thread, stop })
    }

    /// Seals what is left, and ends the thread.
    pub fn finish(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!("the thread that tells the names of cgroups panicked");
        }
    }
}

/// Who is asked for the names of pods, and what they said last.
struct Asking {
    kubelet: Option<Kubelet>,
    runtimes: Runtimes,
    /// How long the runtimes may take.
    patience: Duration,
    asked: Option<Instant>,
    /// Of whoever does not answer now, what it said before. The kubelet knows more, so it is believed where both know.
    by_runtime: BTreeMap<PathBuf, Pods>,
    by_kubelet: Pods,
    silent: BTreeMap<String, Silence>,
}

/// Of one who does not answer.
struct Silence {
    /// Why: the log has one line for each change.
    reason: String,
    /// How often it was asked in vain, in a row.
    times: u32,
    /// It is not asked before.
    until: Instant,
}

impl Asking {
    fn new(kubelet: Option<Kubelet>, runtimes: Runtimes, patience: Duration) -> Self {
        Self {
            kubelet,
            runtimes,
            patience,
            asked: None,
            by_runtime: BTreeMap::new(),
            by_kubelet: Pods::default(),
            silent: BTreeMap::new(),
        }
    }

    /// Asks if it is time, those whose turn it is.
    fn ask(&mut self, workloads: &Workloads, now: Instant) {
        let pause = if workloads.has_nameless() { ASK_SOON } else { ASK };
        if self.asked.is_some_and(|at| now.duration_since(at) < pause) {
            return;
        }
        self.asked = Some(now);
        let mut have_told = false;
        let (sockets, silent): (Vec<_>, Vec<_>) = self
            .runtimes
            .sockets()
            .into_iter()
            .partition(|socket| self.is_due(&socket.display().to_string(), now));
        // Who is there and does not answer may be starting.
        let mut is_anybody_there = self.kubelet.is_some() || !silent.is_empty();
        for Asked { socket, answer } in cri::pods(sockets, self.patience) {
            // Where nobody named it: Docker's containerd, for one, which runs containers of no pod.
            if self.runtimes == Runtimes::Auto && matches!(answer, Err(Unanswered::NotSpoken)) {
                continue;
            }
            is_anybody_there = true;
            let name = socket.display().to_string();
            if let Some(pods) = self.heard(&name, answer, now) {
                self.by_runtime.insert(socket, pods);
                have_told = true;
            }
        }
        if let Some(kubelet) = &self.kubelet {
            let name = kubelet.to_string();
            if self.is_due(&name, now) {
                let answer = kubelet.pods();
                if let Some(pods) = self.heard(&name, answer, now) {
                    self.by_kubelet = pods;
                    have_told = true;
                }
            }
        }
        if have_told {
            let mut pods = Pods::default();
            for told in self.by_runtime.values().chain([&self.by_kubelet]) {
                pods.overlay(told);
            }
            workloads.learn(pods);
        }
        if have_told || !is_anybody_there {
            workloads.asked();
        }
    }

    fn is_due(&self, name: &str, now: Instant) -> bool {
        self.silent.get(name).is_none_or(|silence| now >= silence.until)
    }

    /// What it answered, if it did.
    fn heard<E: Display>(&mut self, name: &str, answer: Result<Pods, E>, now: Instant) -> Option<Pods> {
        match answer {
            Ok(pods) => {
                if self.silent.remove(name).is_some() {
                    tracing::info!(asked = name, "the pods of this node are told again");
                }
                Some(pods)
            }
            Err(error) => {
                let reason = error.to_string();
                let before = self.silent.remove(name);
                if before.as_ref().is_none_or(|before| before.reason != reason) {
                    tracing::warn!(
                        asked = name,
                        "new pods have no names, only their uids: {reason}; `holdfast-agent check` says what to do"
                    );
                }
                let times = before.map_or(0, |before| before.times).saturating_add(1);
                let until = now + pause_after(times);
                let silence = Silence { reason, times, until };
                self.silent.insert(name.to_owned(), silence);
                None
            }
        }
    }
}

fn seal(sealer: &mut Sealer, untold: &[(u64, Workload, String)], now: Moment) -> Vec<Sealed> {
    let batches = untold.chunks(ROWS).map(|rows| {
        let columns = batch::Columns::Cgroups(CgroupRows {
            observed_at_ns: now.wall_ns(),
            cgroups: rows.iter().map(row).collect(),
        });
        sealer.seal(Stream::Cgroups, rows.len(), now, columns)
    });
    batches.collect()
}

fn row((id, workload, service): &(u64, Workload, String)) -> v1::Cgroup {
    let Workload {
        path,
        place,
        pod,
        container_name,
    } = workload;
    v1::Cgroup {
        id: *id,
        path: path.clone(),
        service: service.clone(),
        unit: place.unit.clone(),
        runtime: place.runtime.clone(),
        container_id: place.container_id.clone(),
        container_name: container_name.clone(),
        pod_uid: place.pod_uid.clone(),
        pod_name: pod.name.clone(),
        pod_namespace: pod.namespace.clone(),
        pod_owner: pod.owner.clone(),
        pod_labels: pod.labels.clone().into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use holdfast_proto::v1::Batch;
    use prost::Message;

    use super::*;
    use crate::{
        counters::Counters,
        spool::Limits,
        workloads::{
            cri::tests::{Content, LONG, Runtime, container, sandbox},
            pods::Pod,
        },
    };

    const APP: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const SIDECAR: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";
    const UID: &str = "2f5b6d1a-3c4e-4f60-8a7b-9c0d1e2f3a4b";

    fn workloads(folder: &tempfile::TempDir) -> Arc<Workloads> {
        let proc = folder.path().join("proc");
        Arc::new(Workloads::new(Vec::new(), proc, None))
    }

    fn in_pod(container: &str) -> String {
        format!("/kubepods/burstable/pod{UID}/{container}")
    }

    fn shop(containers: &[(&str, &str)]) -> Content {
        let labels = [("app", "shop"), ("controller-revision-hash", "shop-5f6c")];
        Content {
            sandboxes: vec![sandbox("s1", (UID, "prod", "shop-0"), &labels)],
            containers: containers
                .iter()
                .map(|(id, name)| container(id, "s1", name))
                .collect(),
        }
    }

    #[test]
    fn what_a_runtime_tells_travels_with_the_cgroup() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("runtime.sock");
        let _runtime = Runtime::start(&socket, shop(&[(APP, "app")]));
        let workloads = workloads(&folder);
        workloads.appeared(77, &in_pod(APP));
        // Its path says no pod.
        workloads.appeared(78, &format!("/elsewhere/{APP}"));
        let spool =
            Spool::open(Limits::default(), "boot", None, Arc::new(Counters::default())).expect("in memory");
        let spool = Arc::new(spool);
        let naming = Naming::start(
            Arc::clone(&workloads),
            None,
            Runtimes::At(socket),
            Sealer::new(1, "boot"),
            Arc::clone(&spool),
        )
        .expect("a thread");
        // A record comes once the runtime has told.
        while workloads.has_nameless() {
            thread::sleep(Duration::from_millis(5));
        }
        for id in [77, 78] {
            assert_eq!(workloads.service(id, "x"), "shop");
        }
        naming.finish();

        let mut told = Vec::new();
        let mut position = 0;
        while let Some((next, _)) = spool.next(position) {
            position = next;
            let sealed = spool.load(position).expect("in memory");
            let batch = Batch::decode(sealed.encoded).expect("a batch");
            let Some(batch::Columns::Cgroups(rows)) = batch.columns else {
                panic!("not of cgroups: {batch:?}");
            };
            told.extend(rows.cgroups);
        }
        told.sort_by_key(|cgroup| cgroup.id);
        let ids: Vec<_> = told.iter().map(|cgroup| cgroup.id).collect();
        assert_eq!(ids, [77, 78]);
        for cgroup in &told {
            let names = [
                &cgroup.pod_uid,
                &cgroup.pod_name,
                &cgroup.pod_namespace,
                &cgroup.pod_owner,
                &cgroup.container_name,
                &cgroup.container_id,
                &cgroup.runtime,
                &cgroup.service,
                &cgroup.pod_labels["app"],
            ];
            assert_eq!(
                names,
                [UID, "shop-0", "prod", "shop", "app", APP, "testd", "shop", "shop"]
            );
        }
    }

    #[test]
    fn a_container_that_is_new_in_a_known_pod_is_asked_for_soon_and_not_for_ever() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("runtime.sock");
        let runtime = Runtime::start(&socket, shop(&[(APP, "app")]));
        let workloads = workloads(&folder);
        let mut asking = Asking::new(None, Runtimes::At(socket), LONG);
        let mut now = Instant::now();
        let mut ask = |workloads: &Workloads| {
            now += ASK;
            asking.ask(workloads, now);
        };
        workloads.appeared(77, &in_pod(APP));
        ask(&workloads);
        assert!(!workloads.has_nameless());
        workloads.appeared(78, &in_pod(SIDECAR));
        assert!(workloads.has_nameless());
        runtime.says(Ok(shop(&[(APP, "app"), (SIDECAR, "proxy")])));
        ask(&workloads);
        assert!(!workloads.has_nameless());
        // One that no answer will ever name.
        workloads.appeared(79, &in_pod(&APP.replace('0', "a")));
        let answers = (0..100).take_while(|_| {
            ask(&workloads);
            workloads.has_nameless()
        });
        assert_eq!(answers.count(), 5);
        // No answer is none that does not name it.
        workloads.appeared(80, &in_pod(&APP.replace('0', "b")));
        runtime.says(Err(tonic::Status::unavailable("it starts")));
        for _ in 0..10 {
            ask(&workloads);
        }
        assert!(workloads.has_nameless());
        assert_eq!(workloads.service(77, "x"), "shop", "what was told is still known");
    }

    #[test]
    fn who_does_not_answer_is_asked_ever_more_rarely_until_it_does() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("runtime.sock");
        let name = socket.display().to_string();
        let workloads = workloads(&folder);
        workloads.appeared(77, &in_pod(APP));
        let mut asking = Asking::new(None, Runtimes::At(socket.clone()), LONG);
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let mut asked_at = Vec::new();
        for second in 0..300 {
            let before = asking.silent.get(&name).map_or(0, |silence| silence.times);
            asking.ask(&workloads, at(second));
            if asking.silent[&name].times != before {
                asked_at.push(second);
            }
        }
        assert_eq!(asked_at, [0, 5, 15, 35, 75, 135, 195, 255]);
        assert!(workloads.has_nameless(), "nobody has answered yet");

        let runtime = Runtime::start(&socket, shop(&[(APP, "app")]));
        let answered = (300..400).find(|&second| {
            asking.ask(&workloads, at(second));
            !workloads.has_nameless()
        });
        assert_eq!(answered, Some(315));
        assert!(asking.silent.is_empty());
        // And from then on as soon as it is of use.
        runtime.says(Ok(shop(&[(APP, "app"), (SIDECAR, "proxy")])));
        workloads.appeared(78, &in_pod(SIDECAR));
        asking.ask(&workloads, at(320));
        assert!(!workloads.has_nameless());
    }

    #[test]
    fn where_both_know_a_pod_the_kubelet_is_believed() {
        let pods = |owner: &str, names: &[(&str, &str)]| Pods {
            by_uid: [(
                UID.to_owned(),
                Pod {
                    owner: owner.to_owned(),
                    ..Pod::default()
                },
            )]
            .into(),
            container_names: names
                .iter()
                .map(|(id, name)| ((*id).to_owned(), (*name).to_owned()))
                .collect(),
            ..Pods::default()
        };
        let mut both = pods("guessed", &[(APP, "app")]);
        both.overlay(&pods("told", &[(SIDECAR, "proxy")]));
        assert_eq!(both, pods("told", &[(APP, "app"), (SIDECAR, "proxy")]));
    }
}
