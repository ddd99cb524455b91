//! Whether memory is left to go on: of the machine, and of the control groups that the agent is in. A kernel that finds none ends processes, and
//! those that watch or are watched are no better than others to it; so a run ends before.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A run leaves a twentieth of the memory alone, and a GiB at most: what a machine needs for a second, in which a run does not end at once.
const LEFT_ALONE: u64 = 20;
const MOST_LEFT_ALONE: u64 = 1 << 30;

/// Where the kernel tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    proc: PathBuf,
    cgroups: PathBuf,
}

impl Default for Memory {
    fn default() -> Self {
        Self::at(Path::new("/proc"), Path::new("/sys/fs/cgroup"))
    }
}

/// What may be used together, and how much of it is left, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Room {
    total: u64,
    left: u64,
}

impl Room {
    fn is_short(self) -> bool {
        self.left < (self.total / LEFT_ALONE).min(MOST_LEFT_ALONE)
    }

    fn in_words(self, of_what: &str) -> String {
        let mib = |bytes: u64| bytes >> 20;
        format!(
            "{} of the {} MiB of memory of {of_what} are left, and a run leaves {} MiB alone: ask for less, or use more agents",
            mib(self.left),
            mib(self.total),
            mib((self.total / LEFT_ALONE).min(MOST_LEFT_ALONE))
        )
    }
}

impl Memory {
    /// With another /proc and /sys/fs/cgroup.
    pub fn at(proc: &Path, cgroups: &Path) -> Self {
        Self {
            proc: proc.to_owned(),
            cgroups: cgroups.to_owned(),
        }
    }

    /// Why a run has to end, if memory is short. What cannot be read is not known to be.
    pub fn shortage(&self) -> Option<String> {
        let machine = fs::read_to_string(self.proc.join("meminfo")).ok();
        if let Some(room) = machine
            .as_deref()
            .and_then(of_machine)
            .filter(|room| room.is_short())
        {
            return Some(room.in_words("this node"));
        }
        let groups = fs::read_to_string(self.proc.join("self/cgroup")).ok()?;
        groups.lines().find_map(|line| self.of_groups(line))
    }

    /// Of a group and of those that it is in: each may have a limit.
    fn of_groups(&self, line: &str) -> Option<String> {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        // Version 1 has a tree of its own for memory; 2 has one for all, which is elsewhere where both are mounted.
        let is_first = controllers.split(',').any(|controller| controller == "memory");
        let roots: &[&str] = match controllers {
            "" => &["", "unified"],
            _ if is_first => &["memory"],
            _ => return None,
        };
        let path = path.trim_start_matches('/');
        roots.iter().find_map(|root| {
            let root = self.cgroups.join(root);
            Path::new(path).ancestors().find_map(|group| {
                let room = of_group(&root.join(group), is_first).filter(|room| room.is_short())?;
                Some(room.in_words(&format!("the control group /{}", group.display())))
            })
        })
    }
}

/// Of /proc/meminfo, which counts in KiB.
fn of_machine(meminfo: &str) -> Option<Room> {
    let kib = |name: &str| -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    Some(Room {
        total: kib("MemTotal:")? << 10,
        left: kib("MemAvailable:")? << 10,
    })
}

/// Of a group, unless it has no limit. The file cache that nobody has used lately is counted as used, but the kernel takes it back before it
/// refuses anything (Documentation/admin-guide/cgroup-v2.rst, memory.stat).
fn of_group(folder: &Path, is_first: bool) -> Option<Room> {
    let [limit, usage, cache] = if is_first {
        [
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file ",
        ]
    } else {
        ["memory.max", "memory.current", "inactive_file "]
    };
    let number =
        |name: &str| -> Option<u64> { fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok() };
    // "max" is no number, and version 1 says the greatest.
    let total = number(limit).filter(|limit| *limit < 1 << 60)?;
    let statistics = fs::read_to_string(folder.join("memory.stat")).ok()?;
    let cache: u64 = statistics
        .lines()
        .find_map(|line| line.strip_prefix(cache))?
        .parse()
        .ok()?;
    let used = number(usage)?.saturating_sub(cache);
    Some(Room {
        total,
        left: total.saturating_sub(used),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A /proc and a /sys/fs/cgroup with these files, of which the names are relative to both.
    fn check(files: &[(&str, &str)], expected: Option<&str>) {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, text).expect("written");
        }
        let said = Memory::at(folder.path(), folder.path()).shortage();
        match expected {
            None => assert_eq!(said, None, "{files:?}"),
            Some(part) => assert!(
                said.as_deref().is_some_and(|said| said.contains(part)),
                "{files:?}: {said:?}"
            ),
        }
    }

    const ENOUGH: (&str, &str) = (
        "meminfo",
        "MemTotal:       16384000 kB\nMemFree:          100000 kB\nMemAvailable:    1100000 kB\n",
    );

    #[test]
    fn a_machine_is_short_of_memory_when_less_than_a_twentieth_is_available() {
        check(&[ENOUGH], None);
        check(
            &[("meminfo", "MemTotal: 16384000 kB\nMemAvailable: 700000 kB\n")],
            Some("683 of the 16000 MiB of memory of this node are left, and a run leaves 800 MiB alone"),
        );
        // Of a large one a GiB is enough.
        let large = |left: &str| format!("MemTotal: 1000000000 kB\nMemAvailable: {left} kB\n");
        check(&[("meminfo", &large("1100000"))], None);
        check(&[("meminfo", &large("1000000"))], Some("leaves 1024 MiB alone"));
        // What cannot be read stops nothing.
        check(&[], None);
        check(&[("meminfo", "MemTotal: x kB\n")], None);
    }

    #[test]
    fn a_control_group_is_short_of_memory_by_its_own_limit_or_that_of_one_around_it() {
        let own = ("self/cgroup", "0::/a/b\n");
        let limits = |max, current, stat| {
            [
                ENOUGH,
                own,
                ("a/b/memory.max", "max\n"),
                ("a/memory.max", max),
                ("a/memory.current", current),
                ("a/memory.stat", stat),
            ]
        };
        check(
            &limits("104857600\n", "102400000\n", "anon 1\ninactive_file 0\n"),
            Some("2 of the 100 MiB of memory of the control group /a are left, and a run leaves 5 MiB alone"),
        );
        // What the kernel takes back first is not used up.
        check(
            &limits("104857600\n", "102400000\n", "inactive_file 52428800\n"),
            None,
        );
        check(&limits("max\n", "102400000\n", "inactive_file 0\n"), None);
    }

    #[test]
    fn the_first_version_of_control_groups_has_a_tree_for_memory() {
        let files = |limit| {
            [
                ENOUGH,
                ("self/cgroup", "4:cpu,cpuacct:/x\n3:memory:/a\n0::/y\n"),
                ("memory/a/memory.limit_in_bytes", limit),
                ("memory/a/memory.usage_in_bytes", "102400000\n"),
                (
                    "memory/a/memory.stat",
                    "inactive_file 52428800\ntotal_inactive_file 0\n",
                ),
            ]
        };
        check(&files("104857600\n"), Some("of the control group /a are left"));
        check(&files("9223372036854771712\n"), None);
    }
}
