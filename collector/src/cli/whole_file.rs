//! A file that is there as a whole or not at all.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::anyhow;

use super::Failure;

/// Writes a text to a file, or to stdout for `-`. A file is written beside its place and moved there once it is on disk, so
/// nobody finds half of it and one that was there stays until then. What is no file, such as a pipe, is written to as it is.
///
/// # Errors
/// If it cannot be written: a matter of the call, for another path may do.
pub(super) fn write(path: &Path, text: &str) -> Result<(), Failure> {
    if path == Path::new("-") {
        io::stdout().lock().write_all(text.as_bytes())?;
        return Ok(());
    }
    replace(path, text.as_bytes()).map_err(|error| {
        Failure::Usage(anyhow!(
            "cannot write {}: {error}; nothing of it is left there, give another path or - for stdout",
            path.display()
        ))
    })
}

/// Whether a file can be written there: asked before what takes long is done for it.
///
/// # Errors
/// If it cannot: a matter of the call, for another path may do.
pub(super) fn check(path: &Path) -> Result<(), Failure> {
    let is_standing =
        path == Path::new("-") || fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir());
    if is_standing {
        return Ok(());
    }
    let tried = || {
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if path.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let beside = beside(&path)?;
        write_new(&beside, b"")?;
        fs::remove_file(&beside)
    };
    tried().map_err(|error: io::Error| {
        Failure::Usage(anyhow!(
            "cannot write {}: {error}; give another path",
            path.display()
        ))
    })
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // A link stays one: what it leads to is replaced.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    match fs::metadata(&path) {
        Ok(found) if found.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
        Ok(found) if !found.is_file() => return OpenOptions::new().write(true).open(&path)?.write_all(bytes),
        _ => {}
    }
    let beside = beside(&path)?;
    let written = write_new(&beside, bytes).and_then(|()| fs::rename(&beside, &path));
    if written.is_err() {
        // There may be none.
        let _ = fs::remove_file(&beside);
    }
    written
}

fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}", std::process::id()));
    Ok(path.with_file_name(hidden))
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap());
        entries.collect()
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_also_behind_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("a.html"), folder.path().join("link"));
        std::os::unix::fs::symlink(&path, &link).unwrap();
        for text in ["one", "two"] {
            write(&path, text).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        write(&link, "three").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "three");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(names(folder.path()).len(), 2);
    }

    #[test]
    fn whether_it_can_be_written_is_known_before_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().join("there");
        fs::write(&there, "as it was").unwrap();
        for path in [
            &there,
            &folder.path().join("new"),
            Path::new("-"),
            Path::new("/dev/null"),
        ] {
            assert!(check(path).is_ok(), "{}", path.display());
        }
        assert_eq!(names(folder.path()), ["there"]);
        assert_eq!(fs::read_to_string(&there).unwrap(), "as it was");
        for path in [folder.path(), &folder.path().join("no/report.xml")] {
            let Err(Failure::Usage(error)) = check(path) else {
                panic!("{} can be written", path.display());
            };
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_written_is_named_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let check = |path: &Path, says: &str| {
            let Err(Failure::Usage(error)) = write(path, "text") else {
                panic!("{} was written", path.display());
            };
            let error = error.to_string();
            assert!(
                error.contains(says) && error.contains(path.to_str().unwrap()),
                "{error}"
            );
        };
        check(Path::new("/dev/full"), "No space left on device");
        check(folder.path(), "is a directory");
        check(
            &folder.path().join("no/such/folder.html"),
            "No such file or directory",
        );
        // What is written beside cannot take its place.
        let path = folder.path().join("taken");
        fs::write(beside(&path).unwrap(), "somebody's").unwrap();
        check(&path, "File exists");
        assert!(!path.exists());
    }
}
