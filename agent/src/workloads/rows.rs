//! The names of cgroups become batches of a stream of their own; and the kubelet is asked for those of the pods.

use std::{
    io,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use holdfast_proto::v1::{self, CgroupRows, Stream, batch};

use super::{Workload, Workloads, pods::Kubelet};
use crate::{
    clock,
    seal::Sealer,
    spool::{Sealed, Spool},
};

/// How often names that are to travel are looked for.
const TICK: Duration = Duration::from_secs(1);

/// How often the kubelet is asked: often while there is a pod without a name, rarely otherwise.
const ASK_SOON: Duration = Duration::from_secs(5);
const ASK: Duration = Duration::from_secs(60);

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
        mut sealer: Sealer,
        spool: Arc<Spool>,
    ) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let thread = thread::Builder::new().name("names".into()).spawn(move || {
            let mut asking = Asking {
                kubelet,
                asked: None,
                failed: false,
            };
            loop {
                asking.ask(&workloads);
                // The last look comes after it was stopped: what was used until then travels too.
                let is_last = stopped.recv_timeout(TICK) != Err(mpsc::RecvTimeoutError::Timeout);
                let now_ns = clock::wall_now().as_nanos() as u64;
                for sealed in seal(&mut sealer, &workloads.untold(now_ns / DAY_NS), now_ns) {
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

struct Asking {
    kubelet: Option<Kubelet>,
    asked: Option<Instant>,
    failed: bool,
}

impl Asking {
    /// Asks the kubelet if it is time. The log has one line for each change of state.
    fn ask(&mut self, workloads: &Workloads) {
        let Some(kubelet) = &self.kubelet else { return };
        let pause = if workloads.has_nameless_pods() {
            ASK_SOON
        } else {
            ASK
        };
        if self.asked.is_some_and(|at| at.elapsed() < pause) {
            return;
        }
        self.asked = Some(Instant::now());
        match kubelet.pods() {
            Ok(pods) => {
                if std::mem::replace(&mut self.failed, false) {
                    tracing::info!(%kubelet, "the kubelet tells its pods again");
                }
                workloads.learn(pods);
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::warn!(%kubelet, "pods have no names, only their uids: {error}");
                }
            }
        }
    }
}

fn seal(sealer: &mut Sealer, untold: &[(u64, Workload, String)], now_ns: u64) -> Vec<Sealed> {
    let batches = untold.chunks(ROWS).map(|rows| {
        let columns = batch::Columns::Cgroups(CgroupRows {
            observed_at_ns: now_ns,
            cgroups: rows.iter().map(row).collect(),
        });
        sealer.seal(Stream::Cgroups, rows.len(), now_ns, columns)
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
