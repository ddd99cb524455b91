//! Whether the disk has room for what is still to be built: a build that finds none ends late, in messages of the compiler's.

use std::collections::HashSet;
use std::path::Path;
use std::{fs, io};

use anyhow::{Context, bail};

use crate::workspace;

/// A folder of the target directory, and what it has once all is built, in bytes: measured on x86-64 with Rust 1.95, debug
/// information included.
pub(crate) struct Part {
    folder: &'static str,
    bytes: u64,
}

/// What `cargo xtask test` builds, most of it in the first folder.
pub(crate) const TESTED: &[Part] = &[
    Part {
        folder: "debug",
        bytes: 10 * GB,
    },
    Part {
        folder: "fuzz",
        bytes: GB,
    },
    BPF,
];

/// What is built optimised, most of it in the first folder: the two programs, and what they are measured with.
pub(crate) const OPTIMISED: &[Part] = &[
    Part {
        folder: "release",
        bytes: 3 * GB,
    },
    BPF,
];

const BPF: Part = Part {
    folder: "bpf",
    bytes: GB / 2,
};

const GB: u64 = 1_000_000_000;

/// A build that is done needs so much all the same: for what it builds anew, and for what the tests write.
const ALWAYS: u64 = GB;

/// What is to be said before a build.
#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    Fits,
    /// It may not: what a build takes depends on the compiler and on how cargo is set up, and how much of it is done is not known.
    MayNotFit,
    /// It is far from it, and hardly anything of it is done.
    CannotFit,
}

/// Says so if the disk of the target directory may be too small for what is not there yet.
///
/// # Errors
/// If it certainly is, or cannot be looked at.
pub(crate) fn check(parts: &[Part]) -> anyhow::Result<()> {
    let target = workspace::target_dir()?;
    let mut to_build = 0;
    let mut seen = HashSet::new();
    let mut is_begun = false;
    for (index, part) in parts.iter().enumerate() {
        let folder = target.join(part.folder);
        let there =
            size(&folder, &mut seen).with_context(|| format!("cannot look into {}", folder.display()))?;
        to_build += part.bytes.saturating_sub(there);
        if index == 0 {
            is_begun = there >= part.bytes / 10;
        }
    }
    let disk = rustix::fs::statvfs(&target)
        .with_context(|| format!("cannot look at the disk of {}", target.display()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let words = format!(
        "the disk of {} has {} free, and what is still to be built takes about {}, what is built anew and what the tests write \
         {}: make space there, or build on another disk with CARGO_TARGET_DIR=DIR",
        target.display(),
        show(free),
        show(to_build),
        show(ALWAYS)
    );
    match judge(free, to_build, is_begun) {
        Judgement::Fits => {}
        Judgement::MayNotFit => eprintln!("warning: {words}"),
        Judgement::CannotFit => bail!(words),
    }
    Ok(())
}

/// `is_begun`: there is more than the beginning of a build. One without debug information, say, is small when it is done, so
/// what is not there may not be wanting.
fn judge(free: u64, to_build: u64, is_begun: bool) -> Judgement {
    let wanted = to_build + ALWAYS;
    if free >= wanted {
        Judgement::Fits
    } else if !is_begun && free < wanted / 2 {
        Judgement::CannotFit
    } else {
        Judgement::MayNotFit
    }
}

/// What the files below a folder take on their disk; zero if it is not there. Cargo gives what it has built a second name, so each
/// file counts once: those in `seen`, by device and inode, have.
fn size(folder: &Path, seen: &mut HashSet<(u64, u64)>) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut bytes = 0;
    for entry in entries {
        let entry = entry?;
        // What another cargo removes meanwhile is not there any more.
        let Ok(found) = entry.metadata() else { continue };
        bytes += if found.is_dir() {
            size(&entry.path(), seen)?
        } else if seen.insert((found.dev(), found.ino())) {
            found.blocks() * 512
        } else {
            0
        };
    }
    Ok(bytes)
}

fn show(bytes: u64) -> String {
    format!("{}.{} GB", bytes / GB, bytes % GB / (GB / 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_not_built_again() {
        let target = tempfile::tempdir().unwrap();
        let size = |folder: &Path| size(folder, &mut HashSet::new()).unwrap();
        assert_eq!(size(&target.path().join("debug")), 0);
        fs::create_dir_all(target.path().join("debug/deps")).unwrap();
        let built = target.path().join("debug/deps/it-0a1b");
        fs::write(&built, vec![1; 1 << 20]).unwrap();
        let once = size(target.path());
        assert!(once >= 1 << 20);
        fs::hard_link(&built, target.path().join("debug/it")).unwrap();
        assert_eq!(size(target.path()), once);
    }

    #[test]
    fn only_a_build_that_is_far_from_fitting_is_refused() {
        let whole = TESTED.iter().map(|part| part.bytes).sum::<u64>();
        assert_eq!(judge(whole + ALWAYS, whole, false), Judgement::Fits);
        assert_eq!(judge(whole + ALWAYS - 1, whole, false), Judgement::MayNotFit);
        assert_eq!(judge(3 * GB, whole, false), Judgement::CannotFit);
        // Without debug information a whole build is a third of it.
        assert_eq!(judge(3 * GB, whole - 4 * GB, true), Judgement::MayNotFit);
        // All of it is there, however little is free.
        assert_eq!(judge(ALWAYS, 0, true), Judgement::Fits);
        assert_eq!(judge(0, 0, true), Judgement::MayNotFit);
        assert_eq!(show(12_540_000_000), "12.5 GB");
    }
}
