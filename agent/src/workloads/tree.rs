//! The cgroups (v2) of the machine, as they come and go: a thread of its own waits for the kernel to tell, so that one that
//! lives for milliseconds is seen. What was there before is scanned at the start.

use std::{
    collections::HashMap,
    fs, io,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use rustix::{
    fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags},
    io::Errno,
};

use super::{CGROUPS, Workloads};

/// Some hundred events.
const BUFFER_BYTES: usize = 16 << 10;

/// The thread, for as long as it is not stopped.
pub struct Watching {
    thread: JoinHandle<()>,
    stop: Arc<AtomicBool>,
    inotify: Arc<OwnedFd>,
    root: i32,
}

struct Tree {
    workloads: Arc<Workloads>,
    root: PathBuf,
    inotify: Arc<OwnedFd>,
    /// Folders by the number of their watch.
    watched: HashMap<i32, PathBuf>,
    ids: HashMap<PathBuf, u64>,
}

impl Watching {
    /// Scans the tree at `root`, and watches it from then on.
    ///
    /// # Errors
    /// If the kernel gives nothing to watch with.
    pub fn start(workloads: Arc<Workloads>, root: &Path) -> io::Result<Self> {
        let inotify = Arc::new(inotify::init(CreateFlags::CLOEXEC)?);
        let mut tree = Tree {
            workloads,
            root: root.to_owned(),
            inotify: Arc::clone(&inotify),
            watched: HashMap::new(),
            ids: HashMap::new(),
        };
        let root = tree.watch(root)?;
        tree.enter(&tree.root.clone());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("cgroups".into())
            .spawn(move || tree.follow(&stopped))?;
        Ok(Self {
            thread,
            stop,
            inotify,
            root,
        })
    }

    /// Ends the thread.
    pub fn finish(self) {
        self.stop.store(true, Ordering::Release);
        // It waits for events, and this is one (IN_IGNORED).
        let is_woken = inotify::remove_watch(&self.inotify, self.root).is_ok();
        if is_woken && self.thread.join().is_err() {
            tracing::error!("the thread that watches the cgroups panicked: new ones have no names");
        }
    }
}

impl Tree {
    fn watch(&mut self, folder: &Path) -> io::Result<i32> {
        const EVENTS: WatchFlags = WatchFlags::CREATE
            .union(WatchFlags::DELETE)
            .union(WatchFlags::MOVED_FROM)
            .union(WatchFlags::MOVED_TO)
            .union(WatchFlags::ONLYDIR);
        let watch = inotify::add_watch(&self.inotify, folder, EVENTS)?;
        self.watched.insert(watch, folder.to_owned());
        Ok(watch)
    }

    /// Takes in a folder and all below it. First it is watched, then read: what comes meanwhile is seen twice, not never.
    fn enter(&mut self, folder: &Path) {
        let Ok(metadata) = fs::metadata(folder) else {
            return;
        };
        let below = folder.strip_prefix(&self.root).unwrap_or(folder);
        self.workloads
            .appeared(metadata.ino(), &format!("/{}", below.display()));
        self.ids.insert(folder.to_owned(), metadata.ino());
        if self.watched.len() >= CGROUPS || self.watch(folder).is_err() {
            return;
        }
        let Ok(entries) = fs::read_dir(folder) else { return };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.enter(&entry.path());
            }
        }
    }

    fn follow(mut self, stopped: &AtomicBool) {
        let mut buffer = [MaybeUninit::uninit(); BUFFER_BYTES];
        let inotify = Arc::clone(&self.inotify);
        let mut reader = inotify::Reader::new(&*inotify, &mut buffer);
        while !stopped.load(Ordering::Acquire) {
            match reader.next() {
                Ok(event) => {
                    let name = event
                        .file_name()
                        .map(|name| name.to_string_lossy().into_owned())
                        .unwrap_or_default();
                    self.take(event.wd(), event.events(), &name);
                }
                Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::error!("new cgroups have no names: {error}");
                    return;
                }
            }
        }
    }

    fn take(&mut self, watch: i32, events: ReadFlags, name: &str) {
        if events.contains(ReadFlags::QUEUE_OVERFLOW) {
            return self.enter(&self.root.clone());
        }
        if events.contains(ReadFlags::IGNORED) {
            self.watched.remove(&watch);
            return;
        }
        if !events.contains(ReadFlags::ISDIR) {
            return;
        }
        let Some(path) = self.watched.get(&watch).map(|folder| folder.join(name)) else {
            return;
        };
        if events.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
            self.enter(&path);
        } else if let Some(id) = self.ids.remove(&path) {
            self.workloads.disappeared(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn wait_until(what: &str, is_so: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !is_so() {
            assert!(Instant::now() < deadline, "{what}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn what_is_there_and_what_comes_is_known_by_its_inode() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        fs::create_dir_all(root.join("system.slice/cron.service")).expect("a folder");
        let workloads = Arc::new(Workloads::new(Vec::new(), "/proc".into(), Some(root.to_owned())));
        let watching = Watching::start(Arc::clone(&workloads), root).expect("inotify");
        let id = |path: &str| fs::metadata(root.join(path)).expect("a folder").ino();
        assert_eq!(workloads.service(id("system.slice/cron.service"), "x"), "cron");

        // A tree that comes at once.
        fs::create_dir_all(root.join("a.slice/b.slice/new.service/deep")).expect("folders");
        let deep = id("a.slice/b.slice/new.service/deep");
        wait_until("the deepest folder is known", || {
            workloads.service(deep, "x") == "new"
        });
        let new = id("a.slice/b.slice/new.service");
        fs::remove_dir_all(root.join("a.slice")).expect("removed");
        assert_eq!(
            workloads.service(new, "x"),
            "new",
            "it is gone, and its records may still come"
        );
        watching.finish();
    }
}
