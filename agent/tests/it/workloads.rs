//! Pods, from their container runtime to the query: a runtime of the test's own, which speaks as they do, on a socket.

use std::{
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use holdfast_proto::cri::{
    Container, ContainerMetadata, ListContainersRequest, ListContainersResponse, ListPodSandboxRequest,
    ListPodSandboxResponse, PodSandbox, PodSandboxMetadata, VersionRequest, VersionResponse,
    runtime_service_server::{RuntimeService, RuntimeServiceServer},
};
use serde_json::Value;
use tokio::{net::UnixListener, sync::oneshot};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use crate::{
    end_to_end::{Cgroup, Collector, binary, start_agent_that, wait_for, wait_for_node},
    host::Host,
};

/// The one of this process.
fn pod_uid() -> String {
    format!("00000000-0000-4000-8000-{:012}", std::process::id())
}

fn container_id() -> String {
    format!("{:064}", std::process::id())
}

/// A container runtime with one pod of one container.
struct Runtime {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

struct Service;

#[tonic::async_trait]
impl RuntimeService for Service {
    async fn version(&self, _: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "testd".into(),
            runtime_version: "v1.2".into(),
            runtime_api_version: "v1".into(),
        }))
    }

    async fn list_pod_sandbox(
        &self,
        _: Request<ListPodSandboxRequest>,
    ) -> Result<Response<ListPodSandboxResponse>, Status> {
        let pod = PodSandbox {
            id: "sandbox".into(),
            metadata: Some(PodSandboxMetadata {
                name: "shop-7c9f6d5b8-x2x4z".into(),
                uid: pod_uid(),
                namespace: "prod".into(),
                attempt: 0,
            }),
            labels: [("app", "shop"), ("pod-template-hash", "7c9f6d5b8")]
                .map(|(key, value)| (key.into(), value.into()))
                .into(),
        };
        Ok(Response::new(ListPodSandboxResponse { items: vec![pod] }))
    }

    async fn list_containers(
        &self,
        _: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        let container = Container {
            id: container_id(),
            pod_sandbox_id: "sandbox".into(),
            metadata: Some(ContainerMetadata {
                name: "app".into(),
                attempt: 0,
            }),
        };
        Ok(Response::new(ListContainersResponse {
            containers: vec![container],
        }))
    }
}

impl Runtime {
    fn start(socket: &Path) -> Self {
        let socket = PathBuf::from(socket);
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let listener = UnixListener::bind(&socket).expect("a socket");
                ready.send(()).expect("the test");
                tonic::transport::Server::builder()
                    .add_service(RuntimeServiceServer::new(Service))
                    .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async {
                        let _ = stopped.await;
                    })
                    .await
                    .expect("a server");
            });
        });
        is_ready.recv().expect("a socket");
        Self {
            stop: Some(stop),
            thread: Some(thread),
        }
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

#[test]
fn a_connection_of_a_pod_carries_the_names_that_its_container_runtime_tells() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("runtime.sock");
    let _runtime = Runtime::start(&socket);
    let socket = socket.display().to_string();
    let collector = Collector::start();
    let host = Host::new();
    let agent = start_agent_that(
        &collector.url,
        &host,
        "pods",
        folder.path(),
        &["--cri-socket", &socket],
        &[],
    );
    wait_for_node(&collector, "pods");
    let missing = "SELECT count() AS n FROM nodes WHERE has(missing_features, 'container_runtime')";
    assert_eq!(collector.number(missing), 0);
    let slice = format!("kubepods-pod{}.slice", pod_uid().replace('-', "_"));
    let cgroup = Cgroup::new(&format!("{slice}/cri-containerd-{}.scope", container_id()));
    let procs = cgroup.0.join("cgroup.procs").display().to_string();
    let (listener, to) = host.listen("127.0.0.1");
    let named = "SELECT service, pod_uid, pod_name, pod_namespace, container_name, runtime, \
                 pod_labels['app'] AS app FROM connection_workloads WHERE pod_name != '' AND service != '' LIMIT 1";
    // A busy runtime may have told nothing yet when the first one comes.
    let row: Value = wait_for("a connection of a named pod", || {
        let (procs, port) = (procs.clone(), to.port());
        let mut child = host.run(move || {
            let script = format!(
                "echo $$ > {procs} && exec python3 -c \
                 'import socket; socket.create_connection((\"127.0.0.1\", {port})).close()'"
            );
            Command::new("sh").args(["-c", &script]).spawn().expect("a shell")
        });
        drop(listener.accept().expect("a connection"));
        assert!(child.wait().expect("our own child").success());
        thread::sleep(std::time::Duration::from_millis(500));
        collector.sql(named).pop()
    });
    for (column, expected) in [
        ("service", "shop"),
        ("pod_uid", &pod_uid()),
        ("pod_name", "shop-7c9f6d5b8-x2x4z"),
        ("pod_namespace", "prod"),
        ("container_name", "app"),
        ("runtime", "containerd"),
        ("app", "shop"),
    ] {
        assert_eq!(row[column], expected, "{column} in {row}");
    }
    agent.stop();

    let check = |socket: &str| {
        let output = Command::new(binary("holdfast-agent"))
            .args(["check", "--json", "--cri-socket", socket])
            .output()
            .expect("holdfast-agent check");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let findings = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let mut of_runtime = findings.filter(|finding| finding["name"] == "container_runtime");
        of_runtime.next().expect("a finding")
    };
    let found = check(&socket);
    assert_eq!(found["verdict"], "ok", "{found}");
    assert_eq!(found["found"], format!("testd v1.2 at {socket}"));
    assert_eq!(check("/nonexistent/runtime.sock")["verdict"], "less");
}
