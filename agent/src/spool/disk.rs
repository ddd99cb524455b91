//! Where segments are kept. A trait, because the simulation has a disk of its own that forgets what was not synced.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;

/// A disk that holds numbered segments.
pub trait Disk: Send + Sync {
    /// The numbers of the segments that are there, in order.
    fn list(&self) -> io::Result<Vec<u64>>;
    /// All of a segment.
    fn read(&self, segment: u64) -> io::Result<Bytes>;
    /// A part of a segment.
    fn read_part(&self, segment: u64, at: u64, bytes: usize) -> io::Result<Bytes>;
    /// Appends to a segment, which is made if it is not there. An error leaves an unknown part of `bytes` behind.
    fn append(&self, segment: u64, bytes: &[u8]) -> io::Result<()>;
    /// Cuts a segment off after so many bytes; one that is not there is made.
    fn truncate(&self, segment: u64, bytes: u64) -> io::Result<()>;
    /// Returns when all of a segment survives a loss of power.
    fn sync(&self, segment: u64) -> io::Result<()>;
    /// Removes a segment for good: after a loss of power its batches are not there again. They may be counted as
    /// missing by then.
    fn remove(&self, segment: u64) -> io::Result<()>;
    /// Whether a read may keep its thread waiting, so that it is done beside whoever has other things to do.
    fn reads_wait(&self) -> bool {
        true
    }
}

/// A folder of segment files.
pub struct Folder {
    path: PathBuf,
    /// Held for as long as the folder is used: two agents with one folder would read each other's batches.
    _lock: File,
}

impl Folder {
    /// Opens a folder, which is made if it is not there, for this process alone.
    ///
    /// # Errors
    /// If it cannot be made, or another process uses it.
    pub fn open(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join("lock"))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            io::Error::new(
                io::ErrorKind::WouldBlock,
                "another agent uses it: give each agent a --state folder",
            )
        })?;
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    fn segment(&self, number: u64) -> PathBuf {
        self.path.join(format!("{number:020}.segment"))
    }
}

impl Disk for Folder {
    fn list(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let number: Option<u64> = name
                .to_str()
                .and_then(|name| name.strip_suffix(".segment"))
                .and_then(|name| name.parse().ok());
            numbers.extend(number);
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn read(&self, segment: u64) -> io::Result<Bytes> {
        fs::read(self.segment(segment)).map(Bytes::from)
    }

    fn read_part(&self, segment: u64, at: u64, bytes: usize) -> io::Result<Bytes> {
        let mut part = vec![0; bytes];
        File::open(self.segment(segment))?.read_exact_at(&mut part, at)?;
        Ok(part.into())
    }

    fn append(&self, segment: u64, bytes: &[u8]) -> io::Result<()> {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.segment(segment))?
            .write_all(bytes)
    }

    fn truncate(&self, segment: u64, bytes: u64) -> io::Result<()> {
        let path = self.segment(segment);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)?;
        file.set_len(bytes)
    }

    fn sync(&self, segment: u64) -> io::Result<()> {
        File::open(self.segment(segment))?.sync_data()?;
        // The file's name lies in the folder.
        File::open(&self.path)?.sync_all()
    }

    fn remove(&self, segment: u64) -> io::Result<()> {
        fs::remove_file(self.segment(segment))?;
        File::open(&self.path)?.sync_all()
    }
}
