//! Where things are.

use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::Context;

/// The workspace that this xtask was built from.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the workspace")
}

/// Cargo's target directory, wherever the user has put it: this program runs from `<target>/<profile>/`.
pub(crate) fn target_dir() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("cannot find this program's own path")?;
    let target = program.parent().and_then(Path::parent).map(Path::to_owned);
    target.with_context(|| format!("{} is not in a target directory", program.display()))
}

/// A folder of this name in the target directory, for the state of a benchmark's turn; what an earlier one left there is gone.
pub(crate) fn fresh_dir(name: &str) -> anyhow::Result<PathBuf> {
    let folder = target_dir()?.join(name);
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot empty {}", folder.display()))
        }
        _ => Ok(folder),
    }
}

/// This program, also once it was built anew: the path stays, the file that runs here is not under it any more.
pub(crate) fn own_program() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("cannot find this program's own path")?;
    Ok(program.with_file_name("xtask"))
}

/// What `up` leaves behind: the data, and the logs of what it ran.
pub(crate) fn state_dir() -> PathBuf {
    root().join(".holdfast")
}
