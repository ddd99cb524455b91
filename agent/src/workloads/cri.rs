//! The node's pods and containers, as its container runtime lists them: what [`super::pods`] asks of the kubelet, asked
//! over the Container Runtime Interface (v1) on the socket that the kubelet itself uses. A runtime knows how pods and
//! containers are called and labelled, not what made them: that is read off the names that controllers give.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    io,
    path::{Path, PathBuf},
    str::FromStr,
    thread,
    time::{Duration, Instant},
};

use holdfast_proto::cri::{
    Container, ListContainersRequest, ListPodSandboxRequest, PodSandbox, VersionRequest, VersionResponse,
    runtime_service_client::RuntimeServiceClient,
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use super::pods::{MAX_NAME_BYTES, Pod, Pods, cut};
use crate::uplink::innermost;

/// How long runtimes may take, from connecting to the end of their answers: an agent that stops waits for it.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// How long they may take to say who they are: the first hello of an agent waits for it.
pub const PATIENCE_AT_START: Duration = Duration::from_secs(1);

/// Bytes of an answer: as many as the kubelet takes (maxMsgSize, k8s.io/cri-client/pkg/remote_runtime.go).
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// Pods and containers that are kept of an answer, those that have ended included. A node has 110 pods, or a few hundred.
const MAX_PODS: usize = 4_096;
const MAX_CONTAINERS: usize = 16_384;

/// Where runtimes listen if nobody moved them: containerd, CRI-O, Docker with cri-dockerd, and K3s' or RKE2's containerd.
const WELL_KNOWN: [&str; 4] = [
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/cri-dockerd.sock",
    "/run/k3s/containerd/containerd.sock",
];

/// Which runtimes are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Runtimes {
    /// Those that listen where runtimes do.
    Auto,
    Off,
    At(PathBuf),
}

impl FromStr for Runtimes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            // As the kubelet's own setting has it, and without its scheme.
            path => match path.strip_prefix("unix://").unwrap_or(path) {
                path if path.starts_with('/') => Ok(Self::At(path.into())),
                _ => Err(format!(
                    "{text:?} is neither auto, nor off, nor the path of a socket such as {}",
                    WELL_KNOWN[0]
                )),
            },
        }
    }
}

/// Why a runtime did not tell.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    #[error("cannot connect: {0}")]
    Connection(String),
    #[error("it does not speak the Container Runtime Interface, version 1")]
    NotSpoken,
    #[error("it takes too long")]
    Silent,
    #[error("{0}")]
    Failed(String),
}

impl From<Status> for Unanswered {
    fn from(status: Status) -> Self {
        match status.code() {
            Code::Unimplemented => Self::NotSpoken,
            code => Self::Failed(format!("{code:?}: {}", status.message())),
        }
    }
}

impl From<io::Error> for Unanswered {
    fn from(error: io::Error) -> Self {
        Self::Connection(error.to_string())
    }
}

/// What one socket answered.
#[derive(Debug)]
pub struct Asked<T> {
    pub socket: PathBuf,
    pub answer: Result<T, Unanswered>,
}

/// Who a runtime says it is: `containerd v2.1.4`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version(String);

impl fmt::Display for Version {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl Runtimes {
    /// Asks all who they are, together for as long as `patience`.
    pub fn versions(&self, patience: Duration) -> Vec<Asked<Version>> {
        ask(self.sockets(), patience, version)
    }

    /// Where they are to be asked: of the well-known sockets those that are there.
    pub fn sockets(&self) -> Vec<PathBuf> {
        match self {
            Self::Off => Vec::new(),
            Self::At(path) => vec![path.clone()],
            Self::Auto => {
                // One that may not be seen may be there.
                let may_be = |path: &PathBuf| path.try_exists().unwrap_or(true);
                WELL_KNOWN.map(PathBuf::from).into_iter().filter(may_be).collect()
            }
        }
    }
}

/// Asks the runtimes at these sockets for their pods and containers, together for as long as `patience`.
pub fn pods(sockets: Vec<PathBuf>, patience: Duration) -> Vec<Asked<Pods>> {
    ask(sockets, patience, list)
}

type Client = RuntimeServiceClient<Channel>;

/// Asks all at once, with one deadline: one that hangs takes no time from another. On threads of their own, so that it does not
/// matter who asks: in a task one cannot wait for another runtime.
fn ask<T, F>(
    sockets: Vec<PathBuf>,
    patience: Duration,
    question: impl Fn(Client) -> F + Sync,
) -> Vec<Asked<T>>
where
    T: Send,
    F: Future<Output = Result<T, Unanswered>>,
{
    let deadline = Instant::now() + patience;
    let question = &question;
    thread::scope(|scope| {
        let ask = |socket: PathBuf| {
            let at = socket.clone();
            let asking = thread::Builder::new()
                .name("cri".into())
                .spawn_scoped(scope, move || answer(&at, deadline, question));
            (socket, asking)
        };
        let asked: Vec<_> = sockets.into_iter().map(ask).collect();
        let answered = asked.into_iter().map(|(socket, asking)| Asked {
            answer: asking.map_err(Unanswered::from).and_then(|asking| {
                asking
                    .join()
                    .unwrap_or_else(|_| Err(Unanswered::Failed("its answer made the agent panic".into())))
            }),
            socket,
        });
        answered.collect()
    })
}

/// Asks on a connection of its own: a runtime that has restarted is asked like any other.
fn answer<T, F>(
    socket: &Path,
    deadline: Instant,
    question: &(impl Fn(Client) -> F + Sync),
) -> Result<T, Unanswered>
where
    F: Future<Output = Result<T, Unanswered>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let asking = async { question(connect(socket).await?).await };
        match tokio::time::timeout_at(deadline.into(), asking).await {
            Ok(answer) => answer,
            Err(_) => Err(Unanswered::Silent),
        }
    })
}

async fn connect(socket: &Path) -> Result<Client, Unanswered> {
    let path = socket
        .to_str()
        .ok_or_else(|| Unanswered::Connection("its path is not UTF-8".into()))?;
    let connection = |error: &tonic::transport::Error| Unanswered::Connection(innermost(error));
    let channel = Endpoint::from_shared(format!("unix://{path}"))
        .map_err(|error| connection(&error))?
        .connect()
        .await
        .map_err(|error| connection(&error))?;
    Ok(RuntimeServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES))
}

async fn asked_version(client: &mut Client) -> Result<VersionResponse, Unanswered> {
    let request = VersionRequest { version: "v1".into() };
    Ok(client.version(request).await?.into_inner())
}

async fn version(mut client: Client) -> Result<Version, Unanswered> {
    let version = asked_version(&mut client).await?;
    let mut name = format!("{} {}", version.runtime_name, version.runtime_version);
    cut(&mut name);
    Ok(Version(name.replace(char::is_control, " ").trim().to_owned()))
}

/// The pods first: one of a container that comes meanwhile is known the next time.
async fn list(mut client: Client) -> Result<Pods, Unanswered> {
    let mut runtime = asked_version(&mut client).await?.runtime_name;
    cut(&mut runtime);
    let sandboxes = client.list_pod_sandbox(ListPodSandboxRequest {}).await?;
    let containers = client.list_containers(ListContainersRequest {}).await?;
    Ok(understood(
        &runtime,
        sandboxes.into_inner().items,
        containers.into_inner().containers,
    ))
}

fn understood(runtime: &str, sandboxes: Vec<PodSandbox>, containers: Vec<Container>) -> Pods {
    let is_id = |id: &str| !id.is_empty() && id.len() <= MAX_NAME_BYTES;
    let mut pods = Pods::default();
    for sandbox in sandboxes.into_iter().take(MAX_PODS) {
        let Some(metadata) = sandbox.metadata else {
            continue;
        };
        if !is_id(&sandbox.id) || !is_id(&metadata.uid) {
            continue;
        }
        let mut labels: BTreeMap<_, _> = sandbox.labels.into_iter().collect();
        labels.retain(|key, _| !is_of_kubelet(key));
        let pod = Pod {
            owner: owner(&metadata.name, &labels).unwrap_or_default(),
            name: metadata.name,
            namespace: metadata.namespace,
            labels,
        };
        pods.runtimes_by_container
            .insert(sandbox.id.clone(), runtime.to_owned());
        pods.uids_by_container.insert(sandbox.id, metadata.uid.clone());
        pods.by_uid.insert(metadata.uid, pod.bounded());
    }
    for container in containers.into_iter().take(MAX_CONTAINERS) {
        let Some(mut metadata) = container.metadata else {
            continue;
        };
        if !is_id(&container.id) {
            continue;
        }
        if let Some(uid) = pods.uids_by_container.get(&container.pod_sandbox_id).cloned() {
            pods.uids_by_container.insert(container.id.clone(), uid);
        }
        cut(&mut metadata.name);
        pods.runtimes_by_container
            .insert(container.id.clone(), runtime.to_owned());
        pods.container_names.insert(container.id, metadata.name);
    }
    pods
}

/// Labels that the kubelet adds to those of a pod, and CRI-O to a sandbox (pkg/kubelet/types/labels.go).
fn is_of_kubelet(key: &str) -> bool {
    key.starts_with("io.kubernetes.pod.") || key.starts_with("io.kubernetes.container.")
}

/// What made a pod: a Job says so in a label, the others begin the pod's name with their own.
fn owner(name: &str, labels: &BTreeMap<String, String>) -> Option<String> {
    if let Some(job) = ["batch.kubernetes.io/job-name", "job-name"]
        .iter()
        .find_map(|key| labels.get(*key))
    {
        return Some(job.clone());
    }
    // DEPLOYMENT-HASH-RANDOM
    if let Some(hash) = labels.get("pod-template-hash") {
        let (replica_set, _) = name.rsplit_once('-')?;
        return Some(
            replica_set
                .strip_suffix(hash.as_str())?
                .strip_suffix('-')?
                .to_owned(),
        );
    }
    // STATEFULSET-ORDINAL, DAEMONSET-RANDOM
    let is_owned = labels.contains_key("controller-revision-hash");
    let (owner, _) = name.rsplit_once('-').filter(|_| is_owned)?;
    Some(owner.to_owned())
}

#[cfg(test)]
pub(super) mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::{UnixListener, UnixStream},
        sync::{Arc, Mutex},
    };

    use holdfast_proto::cri::{
        ContainerMetadata, ListContainersResponse, ListPodSandboxResponse, PodSandboxMetadata,
        runtime_service_server::{RuntimeService, RuntimeServiceServer},
    };
    use tokio::sync::oneshot;
    use tokio_stream::wrappers::UnixListenerStream;
    use tonic::{Request, Response};

    use super::*;

    /// What a runtime of the test has.
    #[derive(Clone, Default)]
    pub(in crate::workloads) struct Content {
        pub(in crate::workloads) sandboxes: Vec<PodSandbox>,
        pub(in crate::workloads) containers: Vec<Container>,
    }

    type Answer = Arc<Mutex<Result<Content, Status>>>;

    /// A container runtime, which speaks as they do, on a socket.
    pub(in crate::workloads) struct Runtime {
        answer: Answer,
        stop: Option<oneshot::Sender<()>>,
        thread: Option<thread::JoinHandle<()>>,
    }

    struct Service(Answer);

    impl Service {
        fn content(&self) -> Result<Content, Status> {
            self.0.lock().expect("no panic").clone()
        }
    }

    #[tonic::async_trait]
    impl RuntimeService for Service {
        async fn version(&self, _: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
            self.content()?;
            Ok(Response::new(VersionResponse {
                version: "0.1.0".into(),
                runtime_name: "testd".into(),
                runtime_version: "v1.2\n".into(),
                runtime_api_version: "v1".into(),
            }))
        }

        async fn list_pod_sandbox(
            &self,
            _: Request<ListPodSandboxRequest>,
        ) -> Result<Response<ListPodSandboxResponse>, Status> {
            let items = self.content()?.sandboxes;
            Ok(Response::new(ListPodSandboxResponse { items }))
        }

        async fn list_containers(
            &self,
            _: Request<ListContainersRequest>,
        ) -> Result<Response<ListContainersResponse>, Status> {
            let containers = self.content()?.containers;
            Ok(Response::new(ListContainersResponse { containers }))
        }
    }

    impl Runtime {
        pub(in crate::workloads) fn start(socket: &Path, content: Content) -> Self {
            let answer = Answer::new(Mutex::new(Ok(content)));
            let service = RuntimeServiceServer::new(Service(Arc::clone(&answer)));
            let listener = UnixListener::bind(socket).expect("a socket");
            listener.set_nonblocking(true).expect("a socket");
            let (stop, stopped) = oneshot::channel();
            let thread = thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime");
                runtime.block_on(async {
                    let listener = tokio::net::UnixListener::from_std(listener).expect("a socket");
                    tonic::transport::Server::builder()
                        .add_service(service)
                        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async {
                            let _ = stopped.await;
                        })
                        .await
                        .expect("a server");
                });
            });
            Self {
                answer,
                stop: Some(stop),
                thread: Some(thread),
            }
        }

        pub(in crate::workloads) fn says(&self, answer: Result<Content, Status>) {
            *self.answer.lock().expect("no panic") = answer;
        }
    }

    impl Drop for Runtime {
        fn drop(&mut self) {
            drop(self.stop.take());
            if let Some(thread) = self.thread.take() {
                let _ = thread.join();
            }
        }
    }

    pub(in crate::workloads) fn sandbox(
        id: &str,
        (uid, namespace, name): (&str, &str, &str),
        labels: &[(&str, &str)],
    ) -> PodSandbox {
        PodSandbox {
            id: id.to_owned(),
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: uid.to_owned(),
                namespace: namespace.to_owned(),
                attempt: 0,
            }),
            labels: labels
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        }
    }

    pub(in crate::workloads) fn container(id: &str, sandbox: &str, name: &str) -> Container {
        Container {
            id: id.to_owned(),
            pod_sandbox_id: sandbox.to_owned(),
            metadata: Some(ContainerMetadata {
                name: name.to_owned(),
                attempt: 0,
            }),
        }
    }

    fn shop() -> Content {
        let labels = [
            ("app", "shop"),
            ("pod-template-hash", "7c9f6d5b8"),
            ("io.kubernetes.pod.name", "shop-7c9f6d5b8-x2x4z"),
            ("io.kubernetes.container.name", "POD"),
        ];
        Content {
            sandboxes: vec![sandbox("s1", ("u1", "prod", "shop-7c9f6d5b8-x2x4z"), &labels)],
            containers: vec![container("c1", "s1", "app"), container("c2", "gone", "other")],
        }
    }

    /// An answer comes, however busy the machine is.
    pub(in crate::workloads) const LONG: Duration = Duration::from_secs(120);

    /// The one answer.
    fn answer(runtimes: &Runtimes) -> Result<Pods, Unanswered> {
        let mut asked = pods(runtimes.sockets(), LONG);
        assert_eq!(asked.len(), 1);
        asked.remove(0).answer
    }

    #[test]
    fn a_runtime_tells_its_pods_and_so_does_the_next_one_on_its_socket() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("runtime.sock");
        let runtimes: Runtimes = format!("unix://{}", socket.display()).parse().expect("a socket");
        let missing = answer(&runtimes).expect_err("nothing listens");
        assert!(missing.to_string().contains("No such file"), "{missing}");

        let runtime = Runtime::start(&socket, shop());
        let pods = answer(&runtimes).expect("pods");
        let pod = Pod {
            name: "shop-7c9f6d5b8-x2x4z".into(),
            namespace: "prod".into(),
            owner: "shop".into(),
            labels: [("app", "shop"), ("pod-template-hash", "7c9f6d5b8")]
                .map(|(key, value)| (key.into(), value.into()))
                .into(),
        };
        let texts = |texts: &[(&str, &str)]| {
            texts
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect()
        };
        let expected = Pods {
            by_uid: [("u1".to_owned(), pod)].into(),
            container_names: texts(&[("c1", "app"), ("c2", "other")]),
            uids_by_container: texts(&[("s1", "u1"), ("c1", "u1")]),
            runtimes_by_container: texts(&[("s1", "testd"), ("c1", "testd"), ("c2", "testd")]),
        };
        assert_eq!(pods, expected);
        let versions = runtimes.versions(LONG);
        let version = versions[0].answer.as_ref().expect("a version");
        assert_eq!(version.to_string(), "testd v1.2");

        runtime.says(Err(Status::unimplemented(
            "unknown service runtime.v1.RuntimeService",
        )));
        assert_eq!(answer(&runtimes), Err(Unanswered::NotSpoken));
        runtime.says(Err(Status::internal("the disk is gone")));
        let failed = answer(&runtimes).expect_err("it says no").to_string();
        assert!(failed.contains("the disk is gone"), "{failed}");

        drop(runtime);
        let refused = answer(&runtimes).expect_err("it has stopped").to_string();
        assert!(refused.contains("Connection refused"), "{refused}");
        std::fs::remove_file(&socket).expect("its socket");
        let _next = Runtime::start(&socket, Content::default());
        assert_eq!(answer(&runtimes), Ok(Pods::default()));
    }

    #[test]
    fn in_a_task_it_can_be_asked_too() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        let nowhere = Runtimes::At("/nonexistent/runtime.sock".into());
        let versions = runtime.block_on(async { nowhere.versions(LONG) });
        assert!(matches!(versions[0].answer, Err(Unanswered::Connection(_))));
    }

    #[test]
    fn what_is_no_runtime_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("runtime.sock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let server = thread::spawn(move || {
            let answers = ["HTTP/1.1 400 Bad Request\r\n\r\n", "\0\u{1}\u{2}", ""];
            for answer in answers.into_iter().cycle() {
                let (mut stream, _) = listener.accept().expect("the agent");
                let mut preface = [0; 24];
                if stream.read_exact(&mut preface).is_err() {
                    return;
                }
                assert!(preface.starts_with(b"PRI * HTTP/2.0"));
                // The agent may have hung up.
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        let runtimes = Runtimes::At(socket.clone());
        for _ in 0..3 {
            let error = answer(&runtimes).expect_err("no runtime");
            assert_ne!(error, Unanswered::NotSpoken);
        }
        // Somebody who says nothing, which ends it.
        let _ = UnixStream::connect(&socket);
        server.join().expect("the server");
    }

    #[test]
    fn one_that_does_not_answer_is_given_up() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("runtime.sock");
        // The connection waits in its queue for ever.
        let _listener = UnixListener::bind(&socket).expect("a socket");
        let soon = Duration::from_millis(50);
        let asked = pods(vec![socket], soon);
        assert_eq!(asked[0].answer, Err(Unanswered::Silent));
    }

    #[test]
    fn one_that_hangs_takes_no_time_from_another() {
        let folder = tempfile::tempdir().expect("a folder");
        let sockets = ["first.sock", "second.sock"].map(|name| folder.path().join(name));
        let listeners = sockets
            .each_ref()
            .map(|socket| UnixListener::bind(socket).expect("a socket"));
        // Each hangs until the other is asked as well, and then hangs up.
        let server = thread::spawn(move || {
            let asked = listeners.map(|listener| listener.accept().expect("the agent"));
            drop(asked);
        });
        let asked = pods(sockets.to_vec(), LONG);
        server.join().expect("the server");
        for (Asked { socket, answer }, expected) in asked.into_iter().zip(sockets) {
            assert_eq!(socket, expected);
            assert_ne!(answer.expect_err("nobody answers"), Unanswered::Silent);
        }
    }

    #[test]
    fn an_answer_that_is_too_large_is_not_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("runtime.sock");
        let long = "x".repeat(MAX_ANSWER_BYTES);
        let _runtime = Runtime::start(
            &socket,
            Content {
                containers: vec![container("c1", "s1", &long)],
                ..Content::default()
            },
        );
        let error = answer(&Runtimes::At(socket)).expect_err("too large").to_string();
        assert!(error.contains("OutOfRange"), "{error}");
    }

    #[test]
    fn what_names_nothing_is_left_out_and_what_is_too_long_is_cut() {
        let long = "x".repeat(MAX_NAME_BYTES + 1);
        let nameless = PodSandbox {
            id: "s4".into(),
            ..PodSandbox::default()
        };
        let pods = understood(
            "testd",
            vec![
                sandbox("s1", ("", "ns", "no-uid"), &[]),
                sandbox(&long, ("u2", "ns", "long-id"), &[]),
                sandbox("s3", (&long, "ns", "long-uid"), &[]),
                nameless,
                sandbox("s5", ("u5", "ns", &long), &[("key", &long)]),
            ],
            vec![
                Container::default(),
                container("", "s5", "no-id"),
                container("c1", "s5", &long),
            ],
        );
        let uids: Vec<_> = pods.by_uid.keys().collect();
        assert_eq!(uids, ["u5"]);
        let pod = &pods.by_uid["u5"];
        assert_eq!((pod.name.len(), pod.labels.len()), (MAX_NAME_BYTES, 0));
        assert_eq!(pods.container_names["c1"].len(), MAX_NAME_BYTES);
        assert_eq!(pods.container_names.len(), 1);
    }

    #[test]
    fn of_too_many_pods_the_first_are_kept() {
        let sandboxes = (0..=MAX_PODS).map(|number| {
            let (id, uid) = (format!("s{number}"), format!("u{number}"));
            sandbox(&id, (&uid, "ns", "pod"), &[])
        });
        let pods = understood("testd", sandboxes.collect(), Vec::new());
        assert_eq!(pods.by_uid.len(), MAX_PODS);
        assert!(!pods.by_uid.contains_key(&format!("u{MAX_PODS}")));
    }

    #[test]
    fn the_name_of_a_pod_begins_with_what_made_it() {
        let check = |name: &str, labels: &[(&str, &str)], expected: &str| {
            let labels = labels
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect();
            assert_eq!(owner(name, &labels).unwrap_or_default(), expected, "{name}");
        };
        let revision = ("controller-revision-hash", "db-5f6c");
        check(
            "web-front-7c9f-x2x4z",
            &[("pod-template-hash", "7c9f")],
            "web-front",
        );
        check("web-front-0000-x2x4z", &[("pod-template-hash", "7c9f")], "");
        check(
            "db-0",
            &[revision, ("statefulset.kubernetes.io/pod-name", "db-0")],
            "db",
        );
        check("node-exporter-8vw2k", &[revision], "node-exporter");
        check(
            "nightly-28571520-abcde",
            &[("job-name", "nightly-28571520")],
            "nightly-28571520",
        );
        check("by-hand", &[("app", "x")], "");
        check("", &[revision], "");
    }

    #[test]
    fn a_setting_is_a_word_or_a_path() {
        assert_eq!("auto".parse(), Ok(Runtimes::Auto));
        assert_eq!("off".parse(), Ok(Runtimes::Off));
        let at = Ok(Runtimes::At("/run/crio/crio.sock".into()));
        assert_eq!("/run/crio/crio.sock".parse(), at);
        assert_eq!("unix:///run/crio/crio.sock".parse(), at);
        for bad in [
            "",
            "on",
            "crio.sock",
            "unix:crio.sock",
            "unix://crio.sock",
            "http://h:1",
        ] {
            assert!(bad.parse::<Runtimes>().is_err(), "{bad}");
        }
        assert_eq!(Runtimes::Off.sockets(), Vec::<PathBuf>::new());
    }
}
