//! The node's pods, as its kubelet lists them: what their uids and container ids are called. Asked over HTTP, on a port or a
//! socket that the node's configuration names.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    os::{fd::AsFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, Instant},
};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType,
    sockopt::{Timeout, set_socket_timeout},
};
use serde_json::Value;

/// How long the kubelet may take, from connecting to the end of its answer: an agent that stops waits for it.
const PATIENCE: Duration = Duration::from_secs(3);

/// Bytes of an answer: a pod takes 10 to 30 KiB, and a node has 110, or a few hundred.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Bytes that are read at one go.
const PART_BYTES: usize = 64 << 10;

/// Labels of a pod that are kept.
const MAX_LABELS: usize = 32;

/// Bytes of a name, of a label's key and of its value: the collector takes no more. Names of Kubernetes have 253, values 63;
/// a key with the longest prefix would have 317.
pub(super) const MAX_NAME_BYTES: usize = 256;

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    pub name: String,
    pub namespace: String,
    /// What made it: a Deployment, a StatefulSet, a Job; empty: nobody.
    pub owner: String,
    pub labels: BTreeMap<String, String>,
}

/// The pods of a node by uid, and by id the names of their containers and whose those are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pods {
    pub by_uid: BTreeMap<String, Pod>,
    pub container_names: BTreeMap<String, String>,
    /// The uid of the pod that a container is of.
    pub uids_by_container: BTreeMap<String, String>,
    /// What runs a container: `containerd`, `cri-o`, `docker`.
    pub runtimes_by_container: BTreeMap<String, String>,
}

impl Pod {
    /// Without labels that are too many or too long.
    pub(super) fn bounded(mut self) -> Self {
        self.labels
            .retain(|key, value| key.len() <= MAX_NAME_BYTES && value.len() <= MAX_NAME_BYTES);
        while self.labels.len() > MAX_LABELS {
            self.labels.pop_last();
        }
        for name in [&mut self.name, &mut self.namespace, &mut self.owner] {
            cut(name);
        }
        self
    }
}

/// Cuts a name where the collector would refuse it.
pub(super) fn cut(name: &mut String) {
    name.truncate(name.floor_char_boundary(MAX_NAME_BYTES));
}

/// Where the kubelet answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kubelet {
    Port(String),
    Socket(PathBuf),
}

impl FromStr for Kubelet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Socket(path.into()));
        }
        match text
            .strip_prefix("http://")
            .map(|rest| rest.trim_end_matches('/'))
        {
            Some(address) if address.contains(':') && !address.contains('/') => {
                Ok(Self::Port(address.to_owned()))
            }
            _ => Err(format!(
                "{text:?} is neither http://HOST:PORT, such as http://127.0.0.1:10255, nor unix:PATH"
            )),
        }
    }
}

impl fmt::Display for Kubelet {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(address) => write!(out, "http://{address}"),
            Self::Socket(path) => write!(out, "unix:{}", path.display()),
        }
    }
}

impl Kubelet {
    /// Asks for the pods (`GET /pods`).
    ///
    /// # Errors
    /// If there is no answer, or none that lists pods.
    pub fn pods(&self) -> io::Result<Pods> {
        self.pods_until(Instant::now() + PATIENCE)
    }

    fn pods_until(&self, until: Instant) -> io::Result<Pods> {
        let answer = match self {
            Self::Port(address) => ask(connect(address, until)?, until)?,
            Self::Socket(path) => ask(connect_unix(path, until)?, until)?,
        };
        Pods::parse(&answer)
    }
}

/// The time that is left.
fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    // The kernel takes zero for no limit, and rounds down to a microsecond.
    if left < Duration::from_millis(1) {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "it takes too long"));
    }
    Ok(left)
}

fn connect(address: &str, until: Instant) -> io::Result<TcpStream> {
    let mut failed = io::Error::other(format!("{address:?} is no address"));
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, left(until)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// A listener whose queue is full lets a connect() wait for as long as the socket's writes may (unix_stream_connect,
/// net/unix/af_unix.c).
fn connect_unix(path: &Path, until: Instant) -> io::Result<UnixStream> {
    let kind = (AddressFamily::UNIX, SocketType::STREAM);
    let socket = rustix::net::socket_with(kind.0, kind.1, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(left(until)?))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// HTTP/1.0: the answer ends with the connection, and comes in one piece.
fn ask(mut stream: impl Read + Write + AsFd, until: Instant) -> io::Result<Vec<u8>> {
    set_socket_timeout(&stream, Timeout::Send, Some(left(until)?))?;
    stream.write_all(b"GET /pods HTTP/1.0\r\nHost: kubelet\r\nAccept: application/json\r\n\r\n")?;
    let (mut answer, mut part) = (Vec::new(), vec![0; PART_BYTES]);
    while answer.len() < MAX_ANSWER_BYTES {
        set_socket_timeout(&stream, Timeout::Recv, Some(left(until)?))?;
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(bytes) => answer.extend_from_slice(&part[..bytes]),
            // The time is over, or a signal came: `left` knows.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(error),
        }
    }
    let head_end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .ok_or_else(|| io::Error::other("the answer is not HTTP"))?;
    let status = String::from_utf8_lossy(&answer[..head_end]);
    let status = status.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        return Err(io::Error::other(format!("the answer is {status:?}")));
    }
    Ok(answer.split_off(head_end + 4))
}

impl Pods {
    /// Takes in what somebody else knows, who is believed where both know something.
    pub(super) fn overlay(&mut self, other: &Self) {
        let copy = |(key, value): (&String, &String)| (key.clone(), value.clone());
        let pods = other.by_uid.iter().map(|(uid, pod)| (uid.clone(), pod.clone()));
        self.by_uid.extend(pods);
        self.container_names
            .extend(other.container_names.iter().map(copy));
        self.uids_by_container
            .extend(other.uids_by_container.iter().map(copy));
        self.runtimes_by_container
            .extend(other.runtimes_by_container.iter().map(copy));
    }

    /// Reads a `PodList` of the API (v1).
    fn parse(json: &[u8]) -> io::Result<Self> {
        let list: Value = serde_json::from_slice(json)?;
        let items = list["items"]
            .as_array()
            .ok_or_else(|| io::Error::other("the answer is no list of pods"))?;
        let mut pods = Self::default();
        for item in items {
            let metadata = &item["metadata"];
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let labels = metadata["labels"].as_object().into_iter().flatten();
            let pod = Pod {
                name: text(&metadata["name"]),
                namespace: text(&metadata["namespace"]),
                owner: owner(metadata),
                labels: labels.map(|(key, value)| (key.clone(), text(value))).collect(),
            };
            let pod = pod.bounded();
            // A static pod runs under the hash of its file, which the API calls so.
            let hash = text(&metadata["annotations"]["kubernetes.io/config.hash"]);
            let uid = text(&metadata["uid"]);
            for uid in [&uid, &hash] {
                if !uid.is_empty() && uid.len() <= MAX_NAME_BYTES {
                    pods.by_uid.insert(uid.clone(), pod.clone());
                }
            }
            let uid = if hash.is_empty() { uid } else { hash };
            for statuses in [
                "containerStatuses",
                "initContainerStatuses",
                "ephemeralContainerStatuses",
            ] {
                for status in item["status"][statuses].as_array().into_iter().flatten() {
                    // containerd://ID
                    let id = status["containerID"].as_str().and_then(|id| id.split_once("://"));
                    if let Some((runtime, id)) = id {
                        let mut runtime = runtime.to_owned();
                        cut(&mut runtime);
                        pods.runtimes_by_container.insert(id.to_owned(), runtime);
                        let mut name = text(&status["name"]);
                        cut(&mut name);
                        pods.container_names.insert(id.to_owned(), name);
                        if pods.by_uid.contains_key(&uid) {
                            pods.uids_by_container.insert(id.to_owned(), uid.clone());
                        }
                    }
                }
            }
        }
        Ok(pods)
    }
}

/// The Deployment behind a ReplicaSet, else the owner itself.
fn owner(metadata: &Value) -> String {
    let Some(owner) = metadata["ownerReferences"].get(0) else {
        return String::new();
    };
    let name = owner["name"].as_str().unwrap_or_default();
    let hash = metadata["labels"]["pod-template-hash"].as_str();
    match (owner["kind"].as_str(), hash) {
        (Some("ReplicaSet"), Some(hash)) => name
            .strip_suffix(hash)
            .and_then(|name| name.strip_suffix('-'))
            .unwrap_or(name)
            .to_owned(),
        // A static pod is its node's.
        (Some("Node"), _) => String::new(),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, thread};

    use super::*;

    const LIST: &str = r#"{"kind":"PodList","apiVersion":"v1","items":[
        {"metadata":{"name":"shop-7c9f6d5b8-x2x4z","namespace":"prod","uid":"2f5b6d1a-3c4e-4f60-8a7b-9c0d1e2f3a4b",
          "labels":{"app":"shop","pod-template-hash":"7c9f6d5b8"},
          "ownerReferences":[{"kind":"ReplicaSet","name":"shop-7c9f6d5b8"}]},
         "status":{"containerStatuses":[{"name":"app","containerID":"containerd://aa"},{"name":"new"}],
                   "initContainerStatuses":[{"name":"init","containerID":"containerd://bb"}]}},
        {"metadata":{"name":"etcd-node","namespace":"kube-system","uid":"u2",
          "annotations":{"kubernetes.io/config.hash":"0123456789abcdef0123456789abcdef"},
          "ownerReferences":[{"kind":"Node","name":"node"}]}}]}"#;

    #[test]
    fn a_socket_that_speaks_http_tells_the_pods() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("kubelet.sock");
        let listener = UnixListener::bind(&path).expect("a socket");
        let server = thread::spawn(move || {
            for answer in [
                format!("HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{LIST}"),
                "HTTP/1.0 401 Unauthorized\r\n\r\nno".to_owned(),
            ] {
                let (mut stream, _) = listener.accept().expect("the agent");
                let mut request = [0; 512];
                let read = stream.read(&mut request).expect("a request");
                assert!(request[..read].starts_with(b"GET /pods HTTP/1.0\r\n"));
                stream.write_all(answer.as_bytes()).expect("read");
            }
        });
        let kubelet: Kubelet = format!("unix:{}", path.display()).parse().expect("a socket");
        let pods = kubelet.pods().expect("pods");
        let pod = &pods.by_uid["2f5b6d1a-3c4e-4f60-8a7b-9c0d1e2f3a4b"];
        assert_eq!(
            (&*pod.name, &*pod.namespace, &*pod.owner, &*pod.labels["app"]),
            ("shop-7c9f6d5b8-x2x4z", "prod", "shop", "shop")
        );
        assert_eq!(
            pods.container_names,
            [("aa", "app"), ("bb", "init")]
                .map(|(id, name)| (id.into(), name.into()))
                .into()
        );
        assert_eq!(pods.runtimes_by_container["bb"], "containerd");
        assert_eq!(
            pods.uids_by_container["bb"],
            "2f5b6d1a-3c4e-4f60-8a7b-9c0d1e2f3a4b"
        );
        let etcd = &pods.by_uid["0123456789abcdef0123456789abcdef"];
        assert_eq!((&*etcd.name, &*etcd.owner), ("etcd-node", ""));
        assert!(kubelet.pods().expect_err("401").to_string().contains("401"));
        server.join().expect("the server");
    }

    #[test]
    fn a_kubelet_that_never_comes_to_an_end_is_given_up() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("kubelet.sock");
        let listener = UnixListener::bind(&path).expect("a socket");
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("the agent");
            // Never silent, never done, until the agent hangs up.
            while stream.write_all(b" ").is_ok() {}
        });
        let soon = Instant::now() + Duration::from_millis(50);
        let error = Kubelet::Socket(path).pods_until(soon).expect_err("no end");
        // Or it has sent more than anybody's pods take.
        assert!(
            error.kind() == io::ErrorKind::TimedOut || error.to_string().contains("not HTTP"),
            "{error}"
        );
        server.join().expect("the server");
    }

    #[test]
    fn a_kubelet_that_takes_no_connection_is_given_up() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("kubelet.sock");
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("a socket");
        rustix::net::bind(&socket, &SocketAddrUnix::new(&path).expect("a path")).expect("bound");
        rustix::net::listen(&socket, 0).expect("a listener");
        let _waiting = UnixStream::connect(&path).expect("the one that fits into its queue");
        let soon = Instant::now() + Duration::from_millis(50);
        Kubelet::Socket(path)
            .pods_until(soon)
            .expect_err("its queue is full");
    }

    #[test]
    fn what_the_collector_would_refuse_is_left_out_or_cut() {
        let labels = (0..40).map(|number| (format!("key-{number:02}"), "value".to_owned()));
        let long = "ä".repeat(MAX_NAME_BYTES);
        let pod = Pod {
            name: format!("n{long}"),
            labels: labels
                .chain([(long.clone(), "value".to_owned()), ("a".to_owned(), long.clone())])
                .collect(),
            ..Pod::default()
        };
        let bounded = pod.bounded();
        assert_eq!(bounded.labels.len(), MAX_LABELS);
        assert!(bounded.labels.keys().all(|key| key.starts_with("key-")));
        // A letter is never cut in two.
        assert_eq!(bounded.name.len(), MAX_NAME_BYTES - 1);
    }

    #[test]
    fn an_address_is_a_port_or_a_socket() {
        assert_eq!(
            "http://127.0.0.1:10255/".parse(),
            Ok(Kubelet::Port("127.0.0.1:10255".into()))
        );
        for bad in [
            "",
            "127.0.0.1:10255",
            "https://h:10250",
            "http://h",
            "http://h:1/pods",
            "unix:",
        ] {
            assert!(bad.parse::<Kubelet>().is_err(), "{bad}");
        }
    }
}
