//! The first file system of a machine (initramfs): the tests and all that they need, at the paths that they have here.
//!
//! The kernel takes several archives one after the other, so what all kernels share is packed once. The format is "newc" of
//! cpio (Documentation/driver-api/early-userspace/buffer-format.rst), not compressed: unpacking costs an emulated machine more
//! than reading.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::guest::{MODULES, PLAN, Plan};
use super::kernels::Kernel;
use crate::{process, workspace};

/// The modules of Python that the tests' foreign programs import. Python is asked for the files.
const PYTHON_MODULES: &str = "import encodings.ascii, encodings.idna, encodings.latin_1, encodings.utf_8, os, select, signal, socket, sys, \
     threading, time\n\
     for module in list(sys.modules.values()):\n    \
     for file in (getattr(module, '__file__', None), getattr(module, '__cached__', None)):\n        \
     if file and os.path.isfile(file): print(file)\n";

/// The tests' Python: they name it so.
const PYTHON: &str = "/usr/bin/python3";

/// Folders that have to be there, to mount something on or to write to.
const FOLDERS: [&str; 8] = ["dev", "proc", "run", "sys", "tmp", "etc", "root", "var"];

/// Packs what all kernels share: these programs, this one, `ip`, Python, and the libraries of all of them.
pub(super) fn base(programs: &[&Path], folder: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut files: BTreeSet<PathBuf> = programs.iter().map(|&program| program.to_owned()).collect();
    files.insert(workspace::own_program()?);
    files.insert(process::find_program("ip").context("there is no ip (Debian package iproute2)")?);
    files.insert(PYTHON.into());
    files.extend(python_files()?);
    for file in files.clone() {
        files.extend(libraries(&file)?);
    }

    let path = folder.join("base.cpio");
    let mut archive = Archive::create(&path)?;
    for folder in FOLDERS {
        archive.folder(Path::new(folder))?;
    }
    for file in &files {
        archive.add(file, file)?;
    }
    archive.finish()?;
    Ok(path)
}

/// The whole for one kernel: the base, its driver, and what is to be run.
pub(super) fn complete(
    base: &Path,
    kernel: &Kernel,
    tests: &Path,
    arguments: &[String],
    folder: &Path,
) -> anyhow::Result<PathBuf> {
    let path = folder.join(format!("{}.cpio", kernel.series));
    let mut archive = Archive::create(&path)?;
    let driver = kernel.driver.file_name().unwrap_or_default();
    archive.add(&kernel.driver, &Path::new(MODULES).join(driver))?;
    let plan = Plan {
        program: tests.to_owned(),
        arguments: arguments.to_vec(),
        folder: workspace::root().join("agent"),
    };
    archive.folder(&plan.folder)?;
    archive.write(Path::new(PLAN), plan.encode().as_bytes(), 0o644, 0)?;
    archive.finish()?;

    let own = fs::read(&path)?;
    fs::copy(base, &path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut whole = File::options().append(true).open(&path)?;
    whole.write_all(&own)?;
    Ok(path)
}

fn python_files() -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new(PYTHON)
        .args(["-c", PYTHON_MODULES])
        .output()
        .with_context(|| format!("cannot run {PYTHON} (Debian package python3)"))?;
    if !output.status.success() {
        bail!(
            "{PYTHON} lacks a module: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let files = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(files.lines().map(PathBuf::from).collect())
}

/// The libraries that a program or a library is loaded with, its loader among them; none for what is no such file.
fn libraries(file: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(file).output().context("cannot run ldd")?;
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(listed.lines().filter_map(library).collect())
}

/// The path in a line of `ldd`: `libc.so.6 => /lib/libc.so.6 (0x7f)` or `/lib64/ld-linux-x86-64.so.2 (0x7f)`.
fn library(line: &str) -> Option<PathBuf> {
    let path = line.split_once(" => ").map_or(line, |(_, path)| path).trim();
    let (path, _) = path.split_once(" (")?;
    path.starts_with('/').then(|| path.into())
}

/// An archive that is being written.
struct Archive {
    out: BufWriter<File>,
    path: PathBuf,
    /// What has been made, so that nothing is made twice.
    folders: BTreeSet<PathBuf>,
    inode: u32,
}

const FOLDER: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;

impl Archive {
    fn create(path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self {
            out: BufWriter::new(file),
            path: path.to_owned(),
            folders: BTreeSet::new(),
            inode: 0,
        })
    }

    /// Puts a file of this machine, links followed, at a path in the archive.
    fn add(&mut self, file: &Path, at: &Path) -> anyhow::Result<()> {
        let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let metadata = fs::metadata(file)?;
        let mode = metadata.permissions().mode() & 0o777;
        // Python takes what it compiled for valid by the source's time.
        self.write(at, &bytes, mode, u32::try_from(metadata.mtime()).unwrap_or(0))
    }

    fn write(&mut self, at: &Path, bytes: &[u8], mode: u32, changed_s: u32) -> anyhow::Result<()> {
        if let Some(parent) = at.parent() {
            self.folder(parent)?;
        }
        self.entry(at, REGULAR | mode, changed_s, bytes)
    }

    fn folder(&mut self, at: &Path) -> anyhow::Result<()> {
        let at = at.strip_prefix("/").unwrap_or(at);
        if at.as_os_str().is_empty() || !self.folders.insert(at.to_owned()) {
            return Ok(());
        }
        if let Some(parent) = at.parent() {
            self.folder(parent)?;
        }
        self.entry(at, FOLDER | 0o755, 0, &[])
    }

    fn entry(&mut self, at: &Path, mode: u32, changed_s: u32, bytes: &[u8]) -> anyhow::Result<()> {
        let name = at.strip_prefix("/").unwrap_or(at).display().to_string();
        self.inode += 1;
        self.header(&name, mode, changed_s, bytes.len())?;
        self.out.write_all(bytes)?;
        self.pad(bytes.len())
    }

    /// Thirteen numbers of eight hexadecimal digits behind the magic one, and the name.
    fn header(&mut self, name: &str, mode: u32, changed_s: u32, size: usize) -> anyhow::Result<()> {
        let size = u32::try_from(size).with_context(|| format!("{name} is too large for an archive"))?;
        let name_size = name.len() as u32 + 1;
        let fields = [
            self.inode, mode, 0, 0, 1, changed_s, size, 0, 0, 0, 0, name_size, 0,
        ];
        write!(self.out, "070701")?;
        for field in fields {
            write!(self.out, "{field:08x}")?;
        }
        write!(self.out, "{name}\0")?;
        self.pad(6 + 13 * 8 + name.len() + 1)
    }

    /// Headers and contents begin at multiples of four.
    fn pad(&mut self, written: usize) -> anyhow::Result<()> {
        self.out
            .write_all(&[0; 3][..written.next_multiple_of(4) - written])?;
        Ok(())
    }

    fn finish(mut self) -> anyhow::Result<()> {
        self.inode = 0;
        self.header("TRAILER!!!", 0, 0, 0)?;
        let written = self.out.flush();
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_as_the_format_wants_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.cpio");
        let mut archive = Archive::create(&path).unwrap();
        archive
            .write(Path::new("/b/c"), b"twelve bytes!", 0o755, 7)
            .unwrap();
        archive.write(Path::new("/b/d"), b"", 0o644, 0).unwrap();
        archive.finish().unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        // The folder once, before what is in it; each with its mode.
        let names: Vec<(&str, &str)> = text
            .split("070701")
            .skip(1)
            .map(|entry| (&entry[8..16], entry[13 * 8..].split('\0').next().unwrap()))
            .collect();
        assert_eq!(
            names,
            [
                ("000041ed", "b"),
                ("000081ed", "b/c"),
                ("000081a4", "b/d"),
                ("00000000", "TRAILER!!!")
            ]
        );
        assert!(
            text.contains("b/c\0\0\0twelve bytes!\x00\x00\x00070701"),
            "{text:?}"
        );
    }

    #[test]
    fn libraries_are_read_from_what_ldd_prints() {
        for (line, expected) in [
            ("\tlibc.so.6 => /lib/libc.so.6 (0x00007f)", Some("/lib/libc.so.6")),
            (
                "\t/lib64/ld-linux-x86-64.so.2 (0x00007f)",
                Some("/lib64/ld-linux-x86-64.so.2"),
            ),
            ("\tlinux-vdso.so.1 (0x00007f)", None),
            ("\tnot a dynamic executable", None),
            ("\tlibgone.so => not found", None),
        ] {
            assert_eq!(library(line), expected.map(PathBuf::from), "{line}");
        }
    }
}
