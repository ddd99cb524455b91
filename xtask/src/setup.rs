//! `cargo xtask setup`: brings what building, running, testing and measuring need, and says where it puts it.
//!
//! The other commands call [`provide`] first, with what they need themselves.

pub(crate) mod debian;
mod libchdb;
mod linker;
pub(crate) mod oha;

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};

use crate::failure::Failure;
use crate::{build_object, process, span};

/// Bring what building, running and testing need; in no time when nothing is missing.
///
/// As root on Debian everything is installed. Elsewhere the commands to type are printed. Downloads go to the cache
/// directory (`$HOLDFAST_CACHE`, else `~/.cache/holdfast`), packages come from the system's package manager, and
/// nothing else is written.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Change nothing; print what is there and what is missing, and end with 1 if anything is.
    #[arg(long)]
    check: bool,
}

/// What something is needed for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Building the agent with its BPF programs.
    Build,
    /// `up`: running both binaries and making namespaces.
    Up,
    /// The tests.
    Test,
    /// The tools that benchmarks compare with.
    Bench,
    /// Other load generators.
    Peers,
}

/// One thing that may be missing.
struct Item {
    name: &'static str,
    needed_for: &'static [Need],
    look: fn() -> State,
    source: Source,
}

/// Whether a thing is there.
enum State {
    /// Where it is.
    Present(String),
    /// Why it does not count as there, if that is not plain.
    Missing(&'static str),
    /// It does not exist for this machine; what to do instead.
    Impossible(&'static str),
}

/// Where a missing thing comes from.
enum Source {
    /// Debian's packages, and what to type where there are none.
    Packages {
        debian: &'static [&'static str],
        elsewhere: &'static str,
    },
    Linker,
    Libchdb,
    Oha,
}

use Need::{Bench, Build, Peers, Test, Up};

const ITEMS: &[Item] = &[
    Item {
        name: "Rust compiler with library source, for BPF",
        needed_for: &[Build],
        look: || match build_object::find_compiler() {
            Some(compiler) => State::Present(compiler.rustc.display().to_string()),
            None => State::Missing(""),
        },
        source: Source::Packages {
            debian: &["cargo-web", "rustc-web", "rust-web-src"],
            elsewhere: "rustup toolchain install nightly -c rust-src",
        },
    },
    Item {
        name: "bpf-linker",
        needed_for: &[Build],
        look: || match build_object::find_linker() {
            Some(file) => State::Present(file.display().to_string()),
            None => State::Missing(""),
        },
        source: Source::Linker,
    },
    Item {
        name: "libchdb (ClickHouse as a library)",
        needed_for: &[Up, Test, Bench],
        look: libchdb::look,
        source: Source::Libchdb,
    },
    Item {
        name: "ip",
        needed_for: &[Up, Test, Bench],
        look: || look_for_program("ip"),
        source: Source::Packages {
            debian: &["iproute2"],
            elsewhere: "(your package manager) iproute2",
        },
    },
    Item {
        name: "nft",
        needed_for: &[Test],
        look: || look_for_program("nft"),
        source: Source::Packages {
            debian: &["nftables"],
            elsewhere: "(your package manager) nftables",
        },
    },
    Item {
        name: "python3",
        needed_for: &[Test],
        look: || look_for_program("python3"),
        source: Source::Packages {
            debian: &["python3"],
            elsewhere: "(your package manager) python3",
        },
    },
    Item {
        name: "kill",
        needed_for: &[Test],
        look: || look_for_program("kill"),
        source: Source::Packages {
            debian: &["procps"],
            elsewhere: "(your package manager) procps",
        },
    },
    Item {
        name: "C++ compiler, for libFuzzer",
        needed_for: &[Test],
        look: || look_for_program("c++"),
        source: Source::Packages {
            debian: &["g++"],
            elsewhere: "(your package manager) g++",
        },
    },
    Item {
        name: "systemd-analyze",
        needed_for: &[Test],
        look: || look_for_program("systemd-analyze"),
        source: Source::Packages {
            debian: &["systemd"],
            elsewhere: "(your package manager) systemd",
        },
    },
    Item {
        name: "tcpstates and tcplife",
        needed_for: &[Bench],
        look: || look_for_program("tcpstates"),
        source: Source::Packages {
            debian: &["libbpf-tools"],
            elsewhere: "(your package manager) libbpf-tools",
        },
    },
    Item {
        name: "bpftrace",
        needed_for: &[Bench],
        look: || look_for_program("bpftrace"),
        source: Source::Packages {
            debian: &["bpftrace"],
            elsewhere: "(your package manager) bpftrace",
        },
    },
    Item {
        name: "wrk, hey, ab and h2load",
        needed_for: &[Peers],
        look: || {
            let missing = ["wrk", "hey", "ab", "h2load"]
                .into_iter()
                .find(|name| process::find_program(name).is_none());
            missing.map_or_else(|| look_for_program("wrk"), State::Missing)
        },
        source: Source::Packages {
            debian: &["wrk", "hey", "apache2-utils", "nghttp2-client"],
            elsewhere: "(your package manager) wrk hey apache2-utils nghttp2",
        },
    },
    Item {
        name: "oha",
        needed_for: &[Peers],
        look: oha::look,
        source: Source::Oha,
    },
];

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.check {
        check()
    } else {
        provide(&[Build, Up, Test, Bench, Peers])
    }
}

/// Brings what is missing of what `needs` ask for. Says nothing when nothing is.
pub(crate) fn provide(needs: &[Need]) -> anyhow::Result<()> {
    let started = Instant::now();
    let wanted = ITEMS
        .iter()
        .filter(|item| item.needed_for.iter().any(|need| needs.contains(need)));
    let missing: Vec<&Item> = wanted
        .filter(|item| matches!((item.look)(), State::Missing(_)))
        .collect();
    if missing.is_empty() {
        eprintln!("setup: everything is there ({})", span::show(started.elapsed()));
        return Ok(());
    }

    let cache = cache_dir()?;
    eprintln!("setup: downloads go to {}", cache.display());
    provide_packages(&missing)?;
    for item in missing {
        match item.source {
            Source::Packages { .. } => {}
            Source::Linker => linker::install(&cache)?,
            Source::Libchdb => libchdb::install(&cache)?,
            Source::Oha => oha::install(&cache)?,
        }
    }
    eprintln!("setup: done in {}", span::show(started.elapsed()));
    Ok(())
}

/// The packages of all missing items at once. Where they cannot be installed from here, the error is the list of
/// commands to type.
fn provide_packages(missing: &[&Item]) -> anyhow::Result<()> {
    let from_packages: Vec<(&[&str], &str)> = missing
        .iter()
        .filter_map(|item| match item.source {
            Source::Packages { debian, elsewhere } => Some((debian, elsewhere)),
            Source::Linker | Source::Libchdb | Source::Oha => None,
        })
        .collect();
    let mut packages: Vec<&str> = from_packages
        .iter()
        .flat_map(|(debian, _)| *debian)
        .copied()
        .collect();
    let needs_npm = missing.iter().any(|item| matches!(item.source, Source::Libchdb))
        && process::find_program("npm").is_none()
        && !libchdb::is_downloaded(&cache_dir()?);
    if needs_npm {
        packages.push("npm");
    }
    if packages.is_empty() {
        return Ok(());
    }
    if debian::is_debian() && process::is_root() {
        return install_on_debian(missing, &packages);
    }

    let names = missing
        .iter()
        .filter(|item| matches!(item.source, Source::Packages { .. }));
    let names: Vec<&str> = names
        .map(|item| item.name)
        .chain(needs_npm.then_some("npm"))
        .collect();
    let mut commands = format!(
        "    sudo apt-get install --no-install-recommends {}",
        packages.join(" ")
    );
    if !debian::is_debian() {
        let mut lines: Vec<&str> = from_packages.iter().map(|(_, elsewhere)| *elsewhere).collect();
        if needs_npm {
            lines.push("(your package manager) npm");
        }
        commands = format!("    {}\n  or, on Debian:\n{commands}", lines.join("\n    "));
    }
    bail!(
        "missing: {}; type this, then the same command again:\n{commands}",
        names.join(", ")
    )
}

/// Installs the packages, and again from new lists if what they brought is not good enough: lists that came with an
/// image name versions of its day, and a mirror may still have them.
fn install_on_debian(missing: &[&Item], packages: &[&str]) -> anyhow::Result<()> {
    let still_missing = || {
        let of_packages = missing
            .iter()
            .filter(|item| matches!(item.source, Source::Packages { .. }));
        of_packages
            .filter(|item| matches!((item.look)(), State::Missing(_)))
            .map(|item| item.name)
            .collect::<Vec<_>>()
    };
    debian::install(packages)?;
    if still_missing().is_empty() {
        return Ok(());
    }
    debian::update()?;
    debian::install(packages)?;
    match still_missing()[..] {
        [] => Ok(()),
        ref names => bail!(
            "still missing: {}; the newest packages that apt finds ({}) are too old for it",
            names.join(", "),
            packages.join(" ")
        ),
    }
}

fn check() -> anyhow::Result<()> {
    let (green, red, plain) = if io::stdout().is_terminal() {
        ("\x1b[32m", "\x1b[31m", "\x1b[0m")
    } else {
        ("", "", "")
    };
    let width = ITEMS.iter().map(|item| item.name.len()).max().unwrap_or(0);
    let mut missing = 0;
    for item in ITEMS {
        let (colour, state, detail) = match (item.look)() {
            State::Present(place) => (green, "present", place),
            State::Impossible(instead) => ("", "none", instead.to_owned()),
            State::Missing(why) => {
                missing += 1;
                (red, "missing", why.to_owned())
            }
        };
        println!("{colour}{state:8}{plain} {:width$}  {detail}", item.name);
    }
    println!("cache: {}", cache_dir()?.display());
    if missing > 0 {
        return Err(Failure::Check(format!("{missing} missing; `cargo xtask setup` brings them")).into());
    }
    Ok(())
}

fn look_for_program(name: &str) -> State {
    match process::find_program(name) {
        Some(file) => State::Present(file.display().to_string()),
        None => State::Missing(""),
    }
}

pub(crate) fn cache_dir() -> anyhow::Result<PathBuf> {
    build_object::cache_dir().context("no place for downloads: set HOLDFAST_CACHE or HOME")
}

/// A directory beside `target` to prepare it in, so that `target` appears whole or not at all.
pub(crate) fn scratch_beside(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(format!(".tmp-{}", std::process::id()));
    name.into()
}
