//! Packages on Debian and what descends from it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::progress::{self, Finished};

/// How long another package manager may hold apt's locks; an unattended upgrade takes a few minutes.
const LOCK_PATIENCE: Duration = Duration::from_secs(600);

pub(crate) fn is_debian() -> bool {
    Path::new("/etc/debian_version").exists()
}

/// Installs packages; the lists of what exists are fetched first if they do not know one of them.
pub(super) fn install(packages: &[&str]) -> anyhow::Result<()> {
    let title = format!("installing {}", packages.join(" "));
    let mut install = vec!["install", "--yes", "--no-install-recommends"];
    install.extend(packages);

    let are_known = packages.iter().all(|package| is_known(package));
    if are_known && apt(&title, &install).is_ok() {
        return Ok(());
    }
    // Old lists name versions that the mirrors no longer have.
    update()?;
    apt(&title, &install)
}

/// Fetches the lists of what exists.
pub(super) fn update() -> anyhow::Result<()> {
    apt("fetching the package lists", &["update"])
}

/// Leaves packages in a folder, with those that they need and that are not installed. Installs nothing.
pub(crate) fn fetch(packages: &[&str], folder: &Path) -> anyhow::Result<()> {
    let archives = format!("Dir::Cache::Archives={}", folder.display());
    let mut install = vec!["install", "--download-only", "--yes", "--no-install-recommends"];
    install.extend(["-o", &archives]);
    install.extend(packages);
    let title = format!("fetching {}", packages.join(" "));
    if packages.iter().all(|package| is_known(package)) && apt(&title, &install).is_ok() {
        return Ok(());
    }
    // Unknown, or of a version that the mirrors no longer have.
    update()?;
    apt(&title, &install)
}

fn is_known(package: &str) -> bool {
    let mut query = Command::new("apt-cache");
    query
        .args(["show", "--no-all-versions", package])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    query.status().is_ok_and(|status| status.success())
}

fn apt(title: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let started = Instant::now();
    loop {
        let mut command = Command::new("apt-get");
        command
            .args(["--quiet", "-o", "Dpkg::Use-Pty=0", "-o"])
            .arg(format!("DPkg::Lock::Timeout={}", LOCK_PATIENCE.as_secs()))
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive");
        let Finished { succeeded, tail } = progress::watch(title, &mut command)?;
        if succeeded {
            return Ok(());
        }
        // apt-get waits for dpkg's lock by itself, but not for the one of the package lists.
        let is_locked = tail.contains("Could not get lock") || tail.contains("Unable to lock");
        if !is_locked || started.elapsed() > LOCK_PATIENCE {
            bail!(
                "`{}` failed, type it yourself to see why:\n{tail}",
                progress::line_of(&command)
            );
        }
        eprintln!("  another package manager is at work; waiting for it");
        thread::sleep(Duration::from_secs(5));
    }
}
