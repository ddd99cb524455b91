//! A small disk of its own: a tmpfs that can be full without anybody else's being so.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

/// What makes a disk full; it lies beside what its users have there.
const FILLER: &str = ".filler";
static CHUNK: [u8; 1 << 16] = [0x5a; 1 << 16];

/// A mounted disk, gone when this goes out of scope.
pub(super) struct Volume {
    at: PathBuf,
}

impl Volume {
    pub(super) fn mount(at: &Path, mib: u32) -> anyhow::Result<Self> {
        fs::create_dir_all(at).with_context(|| format!("cannot make {}", at.display()))?;
        let mut mount = Command::new("mount");
        mount.args([
            "-t",
            "tmpfs",
            "-o",
            &format!("size={mib}m,mode=755"),
            "holdfast-torture",
        ]);
        let output = mount.arg(at).output().context("cannot run mount")?;
        ensure!(
            output.status.success(),
            "cannot mount a tmpfs at {}: {}",
            at.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(Self { at: at.to_owned() })
    }

    /// The folder for its user.
    pub(super) fn path(&self) -> PathBuf {
        self.at.join("data")
    }

    /// Takes all the room that is left.
    pub(super) fn fill(&self) -> anyhow::Result<()> {
        let path = self.at.join(FILLER);
        let mut filler = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut chunk = CHUNK.len();
        // Down to the last page: a file of a few bytes does not fit either.
        while chunk > 0 {
            match filler.write_all(&CHUNK[..chunk]) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => chunk /= 2,
                Err(error) => return Err(error).with_context(|| format!("cannot write {}", path.display())),
            }
        }
        Ok(())
    }

    /// Gives the room back.
    pub(super) fn free(&self) -> anyhow::Result<()> {
        match fs::remove_file(self.at.join(FILLER)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove the filler in {}", self.at.display()))
            }
            _ => Ok(()),
        }
    }

    /// Copies what its users have there to a place that stays.
    pub(super) fn keep(&self, to: &Path) -> anyhow::Result<()> {
        let mut copy = Command::new("cp");
        let output = copy
            .arg("-a")
            .arg(self.path())
            .arg(to)
            .output()
            .context("cannot run cp")?;
        ensure!(
            output.status.success(),
            "cannot copy {}: {}",
            self.at.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.at) {
            eprintln!("warning: {error:#}");
        }
    }
}

fn unmount(at: &Path) -> anyhow::Result<()> {
    // Lazily: a process that has just died may still be about to let go of its files.
    let output = Command::new("umount")
        .arg("--lazy")
        .arg(at)
        .output()
        .context("cannot run umount")?;
    ensure!(
        output.status.success(),
        "{} stays mounted: {}",
        at.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Unmounts what killed runs left mounted below a folder, in which every run has a folder `PID-SEED`.
pub(super) fn unmount_leftovers(below: &Path, is_alive: impl Fn(u32) -> bool) -> anyhow::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    for line in mounts.lines() {
        let at = line
            .strip_prefix("holdfast-torture ")
            .and_then(|rest| rest.split(' ').next());
        let Some(at) = at.map(Path::new) else { continue };
        let run = at
            .strip_prefix(below)
            .ok()
            .and_then(|rest| rest.to_str()?.split_once('-'));
        if let Some((pid, _)) = run
            && !pid.parse().is_ok_and(&is_alive)
        {
            unmount(at)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_takes_nothing_more_until_it_is_freed_and_is_gone_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("disk");
        let volume = Volume::mount(&at, 1).unwrap();
        fs::create_dir(volume.path()).unwrap();
        let file = volume.path().join("file");
        volume.fill().unwrap();
        assert_eq!(fs::write(&file, b"x").unwrap_err().kind(), ErrorKind::StorageFull);
        volume.free().unwrap();
        fs::write(&file, b"x").unwrap();
        volume.keep(&folder.path().join("kept")).unwrap();
        drop(volume);
        assert!(!file.exists());
        assert_eq!(fs::read(folder.path().join("kept/file")).unwrap(), b"x");
    }
}
