//! libchdb: ClickHouse's engine as a library, which the embedded store opens.
//!
//! It comes as an npm package. What is unpacked is the file with the known checksum or nothing, and beside it lies
//! a note of what was verified, so that the next look takes no time.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::State;
use crate::{build_object, progress};

/// The directory's name carries the engine's version, which is what the collector asks for.
const DIRECTORY: &str = "libchdb-26.7.3";
const LIBRARY: &str = "libchdb.so";
const LIBRARY_SHA256: &str = "36ad4e999882821ef13cf2d0f52c93f48e6ee1b4498b35a201c23ce4b8d15bf5";
const PACKAGE: &str = "@chdb/lib-linux-x64-gnu@26.7.3-stable.1";
const ARCHIVE: &str = "chdb-lib-linux-x64-gnu-26.7.3-stable.1.tgz";
const ARCHIVE_SHA256: &str = "c0d32b129e988f2b9a9a31c9141aecf5e1e2453f9a079efc4d36ab8e3f92b2ad";
/// The note: checksum, size and time of change of the library when it was verified.
const NOTE: &str = "verified";

pub(super) fn look() -> State {
    if !cfg!(target_arch = "x86_64") {
        return State::Impossible(
            "only for x86-64; give `holdfast serve --store http://...` a ClickHouse server",
        );
    }
    let Some(directory) = build_object::cache_dir().map(|cache| cache.join(DIRECTORY)) else {
        return State::Missing("no cache directory");
    };
    let library = directory.join(LIBRARY);
    match (note_for(&library), fs::read_to_string(directory.join(NOTE))) {
        (Some(expected), Ok(note)) if note == expected => State::Present(library.display().to_string()),
        (Some(_), _) => State::Missing("there, but its checksum was never verified"),
        (None, _) => State::Missing(""),
    }
}

/// Whether the archive is in the cache already, so that npm is not needed.
pub(super) fn is_downloaded(cache: &Path) -> bool {
    cache.join(ARCHIVE).is_file() || cache.join(DIRECTORY).join(LIBRARY).is_file()
}

pub(super) fn install(cache: &Path) -> anyhow::Result<()> {
    let directory = cache.join(DIRECTORY);
    let library = directory.join(LIBRARY);
    if library.is_file() && sha256("verifying libchdb", &library)? == LIBRARY_SHA256 {
        return write_note(&directory);
    }

    let scratch = super::scratch_beside(&directory);
    fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
    let result = unpack_into(&scratch, cache).and_then(|()| {
        write_note(&scratch)?;
        if directory.exists() {
            fs::remove_dir_all(&directory)
                .with_context(|| format!("cannot replace {}", directory.display()))?;
        }
        fs::rename(&scratch, &directory).with_context(|| format!("cannot make {}", directory.display()))
    });
    if result.is_err() {
        // The reason to report is the first one.
        let _ = fs::remove_dir_all(&scratch);
    }
    result
}

/// Leaves the verified library, and nothing else, in `scratch`.
fn unpack_into(scratch: &Path, cache: &Path) -> anyhow::Result<()> {
    let archive = find_archive(scratch, cache)?;
    let mut tar = Command::new("tar");
    tar.arg("--extract")
        .arg("--file")
        .arg(&archive)
        .arg("--directory")
        .arg(scratch);
    tar.args(["--no-same-owner", "--strip-components=1"])
        .arg(format!("package/{LIBRARY}"));
    progress::run("unpacking libchdb", &mut tar)?;
    if archive.starts_with(scratch) {
        fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))?;
    }
    let library = scratch.join(LIBRARY);
    let found = sha256("verifying libchdb", &library)?;
    if found != LIBRARY_SHA256 {
        bail!("{LIBRARY} has the sha256 {found} instead of {LIBRARY_SHA256}; it was not kept");
    }
    Ok(())
}

/// The archive from the cache, if it is the right one, else from the registry.
fn find_archive(scratch: &Path, cache: &Path) -> anyhow::Result<PathBuf> {
    let cached = cache.join(ARCHIVE);
    if cached.is_file() && sha256("verifying the cached archive of libchdb", &cached)? == ARCHIVE_SHA256 {
        return Ok(cached);
    }
    let mut npm = Command::new("npm");
    npm.args(["pack", PACKAGE, "--silent", "--pack-destination"])
        .arg(scratch)
        .current_dir(scratch);
    progress::run("downloading libchdb (178 MB)", &mut npm)
        .context("it needs npm's registry or a mirror of it (`npm config set registry ...`)")?;
    let archive = scratch.join(ARCHIVE);
    let found = sha256("verifying the archive", &archive)?;
    if found != ARCHIVE_SHA256 {
        bail!("{PACKAGE} came with the sha256 {found} instead of {ARCHIVE_SHA256}; it was not kept");
    }
    Ok(archive)
}

fn sha256(title: &str, file: &Path) -> anyhow::Result<String> {
    let finished = progress::watch(title, Command::new("sha256sum").arg("--binary").arg(file))?;
    match finished.tail.split_whitespace().next() {
        Some(sum) if finished.succeeded => Ok(sum.to_owned()),
        _ => bail!(
            "cannot take the checksum of {}: {}",
            file.display(),
            finished.tail
        ),
    }
}

fn write_note(directory: &Path) -> anyhow::Result<()> {
    let library = directory.join(LIBRARY);
    let note = note_for(&library).with_context(|| format!("cannot read {}", library.display()))?;
    fs::write(directory.join(NOTE), note).with_context(|| format!("cannot write in {}", directory.display()))
}

/// What the note says once `library` is verified; nothing if there is no such file.
fn note_for(library: &Path) -> Option<String> {
    let metadata = fs::metadata(library).ok()?;
    let (seconds, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
    Some(format!(
        "{LIBRARY_SHA256} {} bytes, changed {seconds}.{nanoseconds:09}\n",
        metadata.len()
    ))
}
