//! bpf-linker, built from its source by the user's own compiler.

use std::path::Path;
use std::process::Command;

use anyhow::Context;

use crate::build_object::{LINKER_VERSION, linker_root};
use crate::progress;

pub(super) fn install(cache: &Path) -> anyhow::Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args([
            "install",
            "bpf-linker",
            "--version",
            LINKER_VERSION,
            "--locked",
            "--root",
        ])
        .arg(linker_root(cache));
    progress::run(
        &format!("building bpf-linker {LINKER_VERSION} (a minute or two)"),
        &mut cargo,
    )
    .context(
        "it needs the cargo registry, or a mirror of it named in cargo's configuration (source replacement)",
    )
}
