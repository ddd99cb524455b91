//! Builds the BPF programs into the agent. Without a BPF toolchain the agent is built all the same, and says at run
//! time what it lacks.

#[path = "../agent-ebpf/build_object.rs"]
#[allow(dead_code, reason = "the part that finds and reports tools is for xtask")]
mod build_object;

use std::{env, error::Error, fs, path::Path, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .ok_or("the package has no parent folder")?;
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    for variable in build_object::ENVIRONMENT {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    for path in build_object::rerun_if_changed(workspace) {
        println!("cargo::rerun-if-changed={}", path.display());
    }

    let source = match build_object::build(workspace, &workspace.join("target/bpf")) {
        Ok(object) => {
            fs::copy(&object, out_dir.join("probes.o"))?;
            "pub(super) static OBJECT: Option<&[u8]> = \
                Some(aya::include_bytes_aligned!(concat!(env!(\"OUT_DIR\"), \"/probes.o\")));\n"
        }
        Err(build_object::Error::NoToolchain(missing)) => {
            println!(
                "cargo::warning=holdfast-agent is built without its BPF programs: run `cargo xtask setup`"
            );
            for line in missing.lines() {
                println!("cargo::warning={line}");
            }
            "pub(super) static OBJECT: Option<&[u8]> = None;\n"
        }
        Err(error @ build_object::Error::Build(_)) => return Err(error.into()),
    };
    fs::write(out_dir.join("object.rs"), source)?;
    Ok(())
}
