//! What the agent keeps on disk from one start to the next: the number of its last start, and its spool.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;

use crate::spool::disk::{Disk, Folder};

/// Where it is kept unless the configuration says otherwise; a folder for each name, because two agents on one
/// machine have two names.
const DEFAULT: &str = "/var/lib/holdfast/agents";

/// The folder, if there is one that can be written.
pub struct State(Option<(PathBuf, Folder)>);

impl State {
    /// Opens the folder, the default one for a node of this name.
    ///
    /// A folder that cannot be made or written leaves the agent in memory only, and the log says so.
    ///
    /// # Errors
    /// If another agent uses the folder: the two would take each other's batches for their own.
    pub fn open(path: Option<&Path>, node: &str) -> anyhow::Result<Self> {
        let path = path.map_or_else(|| Path::new(DEFAULT).join(file_name(node)), Path::to_owned);
        match Folder::open(&path) {
            Ok(folder) => Ok(Self(Some((path, folder)))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(error).with_context(|| format!("cannot use the folder {}", path.display()))
            }
            Err(error) => {
                tracing::warn!(
                    "cannot use the folder {}: {error}; what the collector has not acknowledged is kept in memory \
                     only, and lost with this process",
                    path.display()
                );
                Ok(Self(None))
            }
        }
    }

    /// The number of this start: `now_ms`, but always larger than that of the start before, however the clock was
    /// set meanwhile.
    pub fn next_epoch(&self, now_ms: u64) -> u64 {
        let Some((folder, _)) = &self.0 else { return now_ms };
        let path = folder.join("epoch");
        let last: Option<u64> = fs::read_to_string(&path)
            .ok()
            .and_then(|text| text.trim().parse().ok());
        let epoch = last.map_or(now_ms, |last| now_ms.max(last + 1));
        if let Err(error) = replace(&path, &format!("{epoch}\n")) {
            tracing::warn!(
                "cannot write {}: {error}; a clock that is set back could give two starts one number",
                path.display()
            );
        }
        epoch
    }

    /// The disk of the spool.
    pub fn into_disk(self) -> Option<Box<dyn Disk>> {
        self.0.map(|(_, folder)| Box::new(folder) as Box<dyn Disk>)
    }
}

/// A name as a single component of a path.
fn file_name(node: &str) -> String {
    node.chars()
        .map(|letter| {
            if letter.is_ascii_alphanumeric() || "-_.".contains(letter) {
                letter
            } else {
                '_'
            }
        })
        .collect::<String>()
        .trim_start_matches('.')
        .to_owned()
}

/// Writes a file whole or not at all.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_start_has_a_larger_number_whatever_the_clock_says() {
        let folder = tempfile::tempdir().expect("a folder");
        let start = |now_ms| {
            State::open(Some(folder.path()), "node")
                .expect("a folder")
                .next_epoch(now_ms)
        };
        assert_eq!(start(1_000), 1_000);
        assert_eq!(start(1_000), 1_001);
        assert_eq!(start(5), 1_002);
        assert_eq!(start(2_000), 2_000);
    }

    #[test]
    fn a_folder_that_cannot_be_made_leaves_the_memory() {
        let state = State::open(Some(Path::new("/proc/no/such/folder")), "node").expect("no folder");
        assert_eq!(state.next_epoch(7), 7);
        assert!(state.into_disk().is_none());
    }

    #[test]
    fn a_node_name_never_leaves_the_folder() {
        assert_eq!(file_name("../../etc/passwd"), "_.._etc_passwd");
        assert_eq!(file_name("web-1.example"), "web-1.example");
    }
}
