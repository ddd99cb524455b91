//! One process per data folder. The engine refuses a second process too, but cannot say who the first one is.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
};

/// Held for as long as it lives. The kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct FolderLock {
    _file: File,
}

/// Why a folder cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error(
        "the data folder {} is in use by {}: stop it, or choose another folder with --store embedded:DIR",
        dir.display(),
        holder.map_or("another process".into(), |pid| format!("process {pid}"))
    )]
    InUse { dir: PathBuf, holder: Option<u32> },
    #[error("the data folder {} cannot be used, choose another with --store embedded:DIR", dir.display())]
    Io { dir: PathBuf, source: std::io::Error },
}

impl FolderLock {
    /// Takes the lock, and leaves this process's id in it for the error message of the next one.
    pub(super) fn take(dir: &Path) -> Result<Self, LockError> {
        let io = |source| LockError::Io {
            dir: dir.to_owned(),
            source,
        };
        std::fs::create_dir_all(dir).map_err(io)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(dir.join("lock"))
            .map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let holder = file
                    .read_to_string(&mut text)
                    .ok()
                    .and_then(|_| text.trim().parse().ok());
                return Err(LockError::InUse {
                    dir: dir.to_owned(),
                    holder,
                });
            }
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        file.set_len(0).and_then(|()| file.rewind()).map_err(io)?;
        writeln!(file, "{}", std::process::id()).map_err(io)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_in_use_names_the_process_that_uses_it() {
        let dir = tempfile::tempdir().unwrap();
        let held = FolderLock::take(dir.path()).unwrap();
        let error = FolderLock::take(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("is in use by process {}", std::process::id())),
            "{error}"
        );
        assert!(error.contains(&dir.path().display().to_string()), "{error}");
        drop(held);
        FolderLock::take(dir.path()).unwrap();
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error_that_names_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = FolderLock::take(&file.path().join("data"))
            .unwrap_err()
            .to_string();
        assert!(error.contains(&file.path().display().to_string()), "{error}");
    }
}
