//! `cargo xtask ebpf`: builds the BPF object alone, exactly as the agent's build script does.

use std::time::Instant;

use anyhow::Context;

use crate::{build_object, setup, span, workspace};

/// Build the BPF object alone, and print where it is.
///
/// The agent's build script builds it the same way; this is for work on the programs.
#[derive(clap::Args)]
pub(crate) struct Arguments {}

pub(crate) fn run(_: &Arguments) -> anyhow::Result<()> {
    setup::provide(&[setup::Need::Build])?;
    let started = Instant::now();
    let object = build_object::build(workspace::root(), &workspace::target_dir()?.join("bpf"))?;
    let bytes = object
        .metadata()
        .with_context(|| format!("cannot read {}", object.display()))?
        .len();
    println!(
        "{}  {bytes} bytes  {}",
        object.display(),
        span::show(started.elapsed())
    );
    Ok(())
}
