//! oha, a load generator to compare with, built from its source.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::{State, cache_dir};
use crate::progress;

/// The newest when the benchmark was written.
const VERSION: &str = "1.16.0";

/// Where it is, once it is there.
pub(crate) fn program() -> anyhow::Result<PathBuf> {
    Ok(root(&cache_dir()?).join("bin/oha"))
}

fn root(cache: &Path) -> PathBuf {
    cache.join(format!("oha-{VERSION}"))
}

pub(super) fn look() -> State {
    match program() {
        Ok(program) if program.is_file() => State::Present(program.display().to_string()),
        _ => State::Missing(""),
    }
}

pub(super) fn install(cache: &Path) -> anyhow::Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["install", "oha", "--version", VERSION, "--locked", "--root"])
        .arg(root(cache));
    progress::run(&format!("building oha {VERSION} (some minutes)"), &mut cargo).context(
        "it needs the cargo registry, or a mirror of it named in cargo's configuration (source replacement)",
    )
}
