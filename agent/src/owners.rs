//! Who owns a socket that is older than the agent: /proc names the sockets that a process has open by their inodes.

use std::{
    collections::{HashMap, HashSet},
    fs,
    os::unix::ffi::OsStrExt,
    path::Path,
};

use holdfast_agent_ebpf::limits::COMM_BYTES;

/// A process, as records name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The thread group id.
    pub pid: u32,
    /// The command name, zero-padded.
    pub comm: [u8; COMM_BYTES],
}

/// Looks for the owners of sockets, by the inodes of these. A socket that several processes have open is given to the one
/// with the lowest number, most often the parent; one that no process has open (it waits in a listen queue, or the agent may not
/// look) is not in the answer. `proc` is /proc, but for tests.
pub fn owners(proc: &Path, wanted: &HashSet<u64>) -> HashMap<u64, Owner> {
    let mut found: HashMap<u64, Owner> = HashMap::new();
    if wanted.is_empty() {
        return found;
    }
    for pid in processes(proc) {
        let folder = proc.join(pid.to_string());
        let Ok(files) = fs::read_dir(folder.join("fd")) else {
            continue;
        };
        let mut owner = None;
        for file in files.flatten() {
            let Ok(target) = fs::read_link(file.path()) else {
                continue;
            };
            let Some(inode) = socket_inode(target.as_os_str().as_bytes()) else {
                continue;
            };
            if wanted.contains(&inode) && !found.contains_key(&inode) {
                let owner = *owner.get_or_insert_with(|| Owner {
                    pid,
                    comm: comm(&folder),
                });
                found.insert(inode, owner);
            }
        }
    }
    found
}

/// Process numbers, lowest first.
fn processes(proc: &Path) -> Vec<u32> {
    let mut processes: Vec<u32> = fs::read_dir(proc)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    processes.sort_unstable();
    processes
}

/// `socket:[12345]` (sockfs_dname, net/socket.c).
fn socket_inode(target: &[u8]) -> Option<u64> {
    let number = target.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

fn comm(process: &Path) -> [u8; COMM_BYTES] {
    let mut padded = [0; COMM_BYTES];
    let name = fs::read(process.join("comm")).unwrap_or_default();
    let name = name.strip_suffix(b"\n").unwrap_or(&name);
    let len = name.len().min(COMM_BYTES - 1);
    padded[..len].copy_from_slice(&name[..len]);
    padded
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::fd::AsRawFd, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn a_socket_of_this_process_is_found() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a listener");
        let link = fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).expect("/proc");
        let inode = socket_inode(link.as_os_str().as_bytes()).expect("a socket");
        let found = owners(Path::new("/proc"), &HashSet::from([inode, u64::MAX]));
        assert_eq!(found.len(), 1);
        assert_eq!(found[&inode].pid, std::process::id());
    }

    #[test]
    fn a_socket_that_several_have_open_is_the_first_ones() {
        let proc = tempfile::tempdir().expect("a folder");
        for (pid, comm) in [("30", "child\n"), ("7", "a-name-that-is-too-long\n")] {
            let fds = proc.path().join(pid).join("fd");
            fs::create_dir_all(&fds).expect("a folder");
            symlink("socket:[99]", fds.join("3")).expect("a link");
            symlink("/dev/null", fds.join("0")).expect("a link");
            fs::write(proc.path().join(pid).join("comm"), comm).expect("a file");
        }
        let found = owners(proc.path(), &HashSet::from([99]));
        let expected = Owner {
            pid: 7,
            comm: *b"a-name-that-is-\0",
        };
        assert_eq!(found, HashMap::from([(99, expected)]));
    }
}
