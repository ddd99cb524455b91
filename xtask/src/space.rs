//! Whether the disk has room for what is still to be built: a build that finds none ends late, in messages of the compiler's.

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

/// What `cargo xtask test` builds.
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

/// What is built optimised: the two programs, and what they are measured with.
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
    /// It may not: what a build takes depends on the compiler and on how cargo is set up.
    MayNotFit,
    /// It is far from it.
    CannotFit,
}

/// Says so if the disk of the target directory may be too small for what is not there yet.
///
/// # Errors
/// If it certainly is, or cannot be looked at.
pub(crate) fn check(parts: &[Part]) -> anyhow::Result<()> {
    let target = workspace::target_dir()?;
    let mut wanted = ALWAYS;
    for part in parts {
        let folder = target.join(part.folder);
        let there = size(&folder).with_context(|| format!("cannot look into {}", folder.display()))?;
        wanted += part.bytes.saturating_sub(there);
    }
    let disk = rustix::fs::statvfs(&target)
        .with_context(|| format!("cannot look at the disk of {}", target.display()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let words = format!(
        "the disk of {} has {} free, and what is still to be built takes about {}: make space there, or build on another disk \
         with CARGO_TARGET_DIR=DIR",
        target.display(),
        show(free),
        show(wanted)
    );
    match judge(free, wanted) {
        Judgement::Fits => {}
        Judgement::MayNotFit => eprintln!("warning: {words}"),
        Judgement::CannotFit => bail!(words),
    }
    Ok(())
}

fn judge(free: u64, wanted: u64) -> Judgement {
    if free >= wanted {
        Judgement::Fits
    } else if wanted > 2 * ALWAYS && free < wanted / 2 {
        Judgement::CannotFit
    } else {
        Judgement::MayNotFit
    }
}

/// What the files below a folder take on their disk; zero if it is not there.
fn size(folder: &Path) -> io::Result<u64> {
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
            size(&entry.path())?
        } else {
            found.blocks() * 512
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
        assert_eq!(size(&target.path().join("debug")).unwrap(), 0);
        fs::create_dir_all(target.path().join("debug/deps")).unwrap();
        fs::write(target.path().join("debug/deps/it"), vec![1; 1 << 20]).unwrap();
        assert!(size(target.path()).unwrap() >= 1 << 20);
    }

    #[test]
    fn only_a_build_that_is_far_from_fitting_is_refused() {
        let whole = ALWAYS + TESTED.iter().map(|part| part.bytes).sum::<u64>();
        assert_eq!(judge(whole, whole), Judgement::Fits);
        assert_eq!(judge(whole - 1, whole), Judgement::MayNotFit);
        assert_eq!(judge(3 * GB, whole), Judgement::CannotFit);
        // All of it is there, however little is free.
        assert_eq!(judge(GB, ALWAYS), Judgement::Fits);
        assert_eq!(judge(0, ALWAYS), Judgement::MayNotFit);
        assert_eq!(show(12_540_000_000), "12.5 GB");
    }
}
