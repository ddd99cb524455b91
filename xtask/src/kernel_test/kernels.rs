//! Debian's kernels, from the package to what a machine boots. They are found by a list of releases of our own, in a state
//! of apt of our own: what is installed, and what the machine installs from, stays as it is.
//!
//! What was fetched once is used from then on; a newer kernel of a series comes when its folder in the cache is removed.

use std::cmp::Ordering;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::{Series, sources};
use crate::{progress, setup};

/// The flavour: small, and with all that the tests need but the network driver, which is a module.
const FLAVOUR: &str = "-cloud-amd64";

/// The driver of cables between namespaces.
const DRIVER: &str = "veth.ko";

/// A kernel in the cache.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) series: Series,
    /// Of its package, such as `6.1.192-2`.
    version: String,
    pub(super) image: PathBuf,
    /// The network driver, compressed where Debian compresses modules.
    pub(super) driver: PathBuf,
}

impl fmt::Display for Kernel {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Debian {}", self.version)
    }
}

/// The newest kernel of each series, from the cache or from Debian; or why it cannot be had.
pub(super) fn provide(series: &[Series], cache: &Path) -> Vec<anyhow::Result<Kernel>> {
    let mut apt = None;
    let mut fetch = |series| {
        match apt.get_or_insert_with(|| Apt::new(cache)) {
            Ok(apt) => apt.fetch(series, cache)?,
            Err(error) => bail!("{error:#}"),
        }
        cached(series, cache).with_context(|| format!("it is not in {}", cache.display()))
    };
    series
        .iter()
        .map(|&series| cached(series, cache).map_or_else(|| fetch(series), Ok))
        .zip(series)
        .map(|(kernel, series)| kernel.with_context(|| format!("no Linux {series}")))
        .collect()
}

fn cached(series: Series, cache: &Path) -> Option<Kernel> {
    let folder = cache.join(series.to_string());
    let file = |name: &str| Some(folder.join(name)).filter(|file| file.is_file());
    Some(Kernel {
        series,
        version: fs::read_to_string(folder.join("version")).ok()?,
        image: file("vmlinuz")?,
        driver: file(DRIVER).or_else(|| file(&format!("{DRIVER}.xz")))?,
    })
}

/// apt with a state of its own.
struct Apt {
    state: PathBuf,
}

impl Apt {
    fn new(cache: &Path) -> anyhow::Result<Self> {
        if !setup::debian::is_debian() {
            bail!("Debian's kernels come through apt, which is not here");
        }
        let mirrors = sources::mirrors(Path::new("/etc/apt"))
            .context("apt's sources in /etc/apt name no mirror of Debian")?;
        let apt = Self {
            state: cache.join("apt"),
        };
        for folder in ["lists/partial", "archives/partial"] {
            let folder = apt.state.join(folder);
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let list = apt.state.join("sources.list");
        fs::write(&list, mirrors.list()).with_context(|| format!("cannot write {}", list.display()))?;
        // A release that a mirror has no more is no reason to do without the others: what is missing then says so.
        progress::watch(
            "looking for Debian's kernels",
            apt.command("apt-get").arg("update"),
        )?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let place = |name: &str| self.state.join(name).display().to_string();
        let options = [
            format!("Dir::Etc::SourceList={}", place("sources.list")),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            format!("Dir::State::Lists={}", place("lists")),
            format!("Dir::Cache={}", self.state.display()),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            // What is ours needs no other user to fetch it.
            "APT::Sandbox::User=root".to_owned(),
            "Debug::NoLocking=1".to_owned(),
        ];
        for option in options {
            command.args(["-o".to_owned(), option]);
        }
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    /// What one of apt's programs prints.
    fn ask(&self, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = self.command(program);
        let output = command.args(arguments).output();
        let output = output.with_context(|| format!("cannot run {program}"))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Leaves the newest kernel of a series in the cache.
    fn fetch(&self, series: Series, cache: &Path) -> anyhow::Result<()> {
        let names = self.ask("apt-cache", &["pkgnames", &format!("linux-image-{series}.")])?;
        let names: Vec<&str> = names.lines().filter(|name| name.ends_with(FLAVOUR)).collect();
        if names.is_empty() {
            bail!("none of the releases of Debian that this machine's mirrors have has Linux {series}");
        }
        let offered = self.ask("apt-cache", &[&["madison"], names.as_slice()].concat())?;
        let (name, version) = newest(&offered).with_context(|| format!("apt offers none of {names:?}"))?;

        let folder = cache.join(series.to_string());
        let scratch = setup::scratch_beside(&folder);
        fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
        let result = self.unpack(name, version, &scratch).and_then(|()| {
            let _ = fs::remove_dir_all(&folder);
            let kernel = scratch.join("kernel");
            fs::rename(&kernel, &folder).with_context(|| format!("cannot make {}", folder.display()))
        });
        let _ = fs::remove_dir_all(&scratch);
        result
    }

    /// Leaves what a machine boots in `scratch/kernel`.
    fn unpack(&self, name: &str, version: &str, scratch: &Path) -> anyhow::Result<()> {
        // From 7.2 on the image's package is empty, and needs these two.
        let flavour = name.trim_start_matches("linux-image-");
        let parts = ["linux-binary-", "linux-modules-"].map(|part| format!("{part}{flavour}={version}"));
        let image = format!("{name}={version}");
        let title = format!("fetching Linux {version}");
        let fetch = |packages: &[&str]| {
            let mut command = self.command("apt-get");
            command.arg("download").args(packages).current_dir(scratch);
            command
        };
        progress::run(&title, &mut fetch(&[&image]))?;
        let has_parts = !self
            .ask(
                "apt-cache",
                &["pkgnames", parts[0].split('=').next().unwrap_or_default()],
            )?
            .is_empty();
        if has_parts {
            progress::run(&title, &mut fetch(&[&parts[0], &parts[1]]))?;
        }
        let root = scratch.join("root");
        unpack_all(scratch, &root)?;

        let kernel = scratch.join("kernel");
        fs::create_dir(&kernel)?;
        for (prefix, to) in [("vmlinuz", Some("vmlinuz")), (DRIVER, None)] {
            let file = find(&root, prefix).with_context(|| format!("{name} {version} has no {prefix}"))?;
            let to = to.map_or_else(|| file.file_name().unwrap_or_default().into(), PathBuf::from);
            fs::copy(&file, kernel.join(to))?;
        }
        fs::write(kernel.join("version"), version)?;
        Ok(())
    }
}

/// Unpacks every package in a folder, without installing it.
pub(super) fn unpack_all(folder: &Path, into: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        let package = entry.path();
        if package.extension().is_none_or(|extension| extension != "deb") {
            continue;
        }
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("--extract").arg(&package).arg(into);
        let output = unpack.output().context("cannot run dpkg-deb")?;
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
            bail!("cannot unpack {}: {}", package.display(), complaint.trim());
        }
    }
    Ok(())
}

/// The file below `folder` whose name begins so. Links are not followed.
fn find(folder: &Path, prefix: &str) -> Option<PathBuf> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).ok()?.flatten() {
            let kind = entry.file_type().ok()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && entry.file_name().to_string_lossy().starts_with(prefix) {
                return Some(entry.path());
            }
        }
    }
    None
}

/// Name and version of the newest package in what `apt-cache madison` prints: `name | version | where`.
fn newest(offered: &str) -> Option<(&str, &str)> {
    let packages = offered.lines().filter_map(|line| {
        let mut columns = line.split('|').map(str::trim);
        Some((columns.next()?, columns.next()?))
    });
    packages.max_by(|(_, a), (_, b)| by_number(a, b))
}

/// Kernels of one series are numbered throughout: `6.1.99-1` comes before `6.1.192-2`.
fn by_number(a: &str, b: &str) -> Ordering {
    let numbers = |version: &str| -> Vec<u64> {
        version
            .split(|letter: char| !letter.is_ascii_digit())
            .filter_map(|number| number.parse().ok())
            .collect()
    };
    numbers(a).cmp(&numbers(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_the_one_with_the_highest_numbers() {
        let offered = "\
linux-image-6.1.0-9-cloud-amd64 | 6.1.27-1 | http://mirror.invalid/debian bookworm/main amd64 Packages
linux-image-6.1.0-56-cloud-amd64 | 6.1.192-2 | http://mirror.invalid/security bookworm-security/main amd64 Packages
linux-image-6.1.0-47-cloud-amd64 | 6.1.176-1 | http://mirror.invalid/debian bookworm/main amd64 Packages
";
        assert_eq!(
            newest(offered),
            Some(("linux-image-6.1.0-56-cloud-amd64", "6.1.192-2"))
        );
        assert_eq!(newest(""), None);
    }

    #[test]
    fn a_kernel_is_cached_once_all_of_it_is_there() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("6.1");
        fs::create_dir(&folder).unwrap();
        for file in ["vmlinuz", "version"] {
            fs::write(folder.join(file), "6.1.192-2").unwrap();
            assert!(cached(Series(6, 1), cache.path()).is_none());
        }
        fs::write(folder.join("veth.ko.xz"), "").unwrap();
        let kernel = cached(Series(6, 1), cache.path()).unwrap();
        assert_eq!(kernel.to_string(), "Debian 6.1.192-2");
        assert_eq!(kernel.driver, folder.join("veth.ko.xz"));
    }
}
