//! A host of a test: a network namespace that lives in a thread of its own. Nothing is mounted and nothing has a
//! name, so it is gone when the thread is, however the test ends.

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::MetadataExt,
    process::Command,
    sync::mpsc,
    thread::{self, JoinHandle},
};

use nix::sched::{CloneFlags, unshare};

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace with its loopback interface up.
pub(crate) struct Host {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// Inode of the namespace.
    pub(crate) netns: u32,
    thread_id: i32,
}

impl Host {
    pub(crate) fn new() -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, made) = mpsc::channel();
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: these tests need root");
            ip("link set lo up");
            let inode = fs::metadata("/proc/thread-self/ns/net").expect("/proc").ino();
            ready
                .send((inode as u32, nix::unistd::gettid().as_raw()))
                .expect("the test waits");
            queue.into_iter().for_each(|job| job());
        });
        let (netns, thread_id) = made.recv().expect("the namespace was made");
        Self {
            jobs: Some(jobs),
            thread: Some(thread),
            netns,
            thread_id,
        }
    }

    /// Runs something inside, and gives what it gives. Processes that it starts are inside too.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (result, answer) = mpsc::channel();
        let jobs = self.jobs.as_ref().expect("the host is up");
        jobs.send(Box::new(move || {
            let _ = result.send(std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)));
        }))
        .expect("the host is up");
        answer
            .recv()
            .expect("the job ended")
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs `ip` inside.
    pub(crate) fn ip(&self, arguments: &str) {
        let arguments = arguments.to_owned();
        self.run(move || ip(&arguments));
    }

    /// A path by which another process can name the namespace, for as long as the host lives.
    pub(crate) fn netns_path(&self) -> String {
        format!("/proc/{}/task/{}/ns/net", std::process::id(), self.thread_id)
    }

    /// Sets a kernel parameter of this namespace.
    pub(crate) fn sysctl(&self, name: &'static str, value: &'static str) {
        self.run(move || {
            fs::write(format!("/proc/sys/net/{name}"), value).expect("a parameter of the namespace");
        });
    }

    /// Joins two hosts by a cable: 10.0.0.1 on this one, 10.0.0.2 on the other.
    pub(crate) fn connect(&self, other: &Self) {
        self.ip(&format!(
            "link add cable type veth peer name cable netns {}",
            other.thread_id
        ));
        for (host, address) in [(self, "10.0.0.1/24"), (other, "10.0.0.2/24")] {
            host.ip(&format!("address add {address} dev cable"));
            host.ip("link set cable up");
        }
    }

    pub(crate) fn listen(&self, address: &str) -> (TcpListener, SocketAddr) {
        let address: IpAddr = address.parse().expect("an address");
        self.run(move || {
            let listener = TcpListener::bind((address, 0)).expect("a listener");
            let address = listener.local_addr().expect("its address");
            (listener, address)
        })
    }

    pub(crate) fn dial(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        self.run(move || TcpStream::connect(to))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .expect("the command ip (package iproute2)");
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
