//! Reading network namespaces from the inside: what /proc says of the network is of the namespace that the asking thread
//! is in.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Goes from namespace to namespace, and back: the thread that made it, which belongs to nothing else meanwhile. It does not
/// stay in one, since that would keep the namespace alive.
pub struct Visitor {
    home: File,
    home_netns: u64,
    /// The thread is not at home: it could not go back the last time.
    is_away: bool,
}

impl Visitor {
    /// Of this thread.
    ///
    /// # Errors
    /// If /proc does not say where it is.
    pub fn new() -> io::Result<Self> {
        let home = File::open("/proc/thread-self/ns/net")?;
        Ok(Self {
            home_netns: home.metadata()?.ino(),
            home,
            is_away: false,
        })
    }

    /// Reads in each of the namespaces, which are given with a path that stands for them. One that cannot be entered, or
    /// where nothing can be read, is not in the answer.
    pub fn visit_all<'a, T>(
        &mut self,
        namespaces: impl IntoIterator<Item = (u32, &'a Path)>,
        mut read: impl FnMut() -> Option<T>,
    ) -> BTreeMap<u32, T> {
        let found = namespaces
            .into_iter()
            .filter_map(|(netns, path)| {
                self.enter(netns, path)?;
                Some((netns, read()?))
            })
            .collect();
        self.go_home();
        found
    }

    /// Whether a namespace can be entered, which takes CAP_SYS_ADMIN and a system that forbids it to nobody. Tried with the own
    /// one: the kernel asks the same.
    ///
    /// # Errors
    /// Why not.
    pub fn can_enter() -> io::Result<()> {
        Ok(enter(&Self::new()?.home)?)
    }

    fn enter(&mut self, netns: u32, path: &Path) -> Option<()> {
        // The agent's own needs no capability.
        if u64::from(netns) == self.home_netns {
            self.go_home();
            return (!self.is_away).then_some(());
        }
        let namespace = File::open(path).ok()?;
        // A task may have left meanwhile, and another namespace may be mounted.
        (namespace.metadata().ok()?.ino() == u64::from(netns)).then_some(())?;
        enter(&namespace).ok()?;
        self.is_away = true;
        Some(())
    }

    /// Tried again with the next reading, where the system has no memory for it.
    fn go_home(&mut self) {
        if self.is_away {
            self.is_away = enter(&self.home).is_err();
        }
    }
}

fn enter(namespace: &File) -> rustix::io::Result<()> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
}

/// A file of /proc, into memory that is used again: the kernel makes such a file's text for each reader anew, and hands it out
/// in one piece where there is room for it.
///
/// # Errors
/// If it cannot be read, or is no text.
pub fn text_of<'a>(path: &str, buffer: &'a mut Vec<u8>) -> io::Result<&'a str> {
    const ROOM: usize = 16 << 10;
    let mut file = File::open(path)?;
    let mut filled = 0;
    loop {
        if buffer.len() < filled + ROOM {
            buffer.resize(filled + ROOM, 0);
        }
        match file.read(&mut buffer[filled..])? {
            0 => return str::from_utf8(&buffer[..filled]).map_err(io::Error::other),
            bytes => filled += bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_text_is_read_whole_and_memory_is_used_again() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let path = file.path().to_str().expect("a name");
        let mut buffer = Vec::new();
        for text in ["line\n".repeat(10_000), "short\n".into(), String::new()] {
            fs::write(path, &text).expect("written");
            assert_eq!(text_of(path, &mut buffer).expect("read"), text);
        }
    }

    #[test]
    fn the_own_namespace_needs_no_capability_and_what_stands_for_another_one_is_not_believed() {
        let here = Path::new("/proc/thread-self/ns/net");
        let mut visitor = Visitor::new().expect("a place");
        let own = u32::try_from(visitor.home_netns).expect("it fits");
        let found = visitor.visit_all([(own, here), (own + 1, here)], || Some(()));
        assert_eq!(found, BTreeMap::from([(own, ())]));
    }
}
