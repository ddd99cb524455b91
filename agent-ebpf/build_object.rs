//! Builds the BPF object: finds a compiler that can target BPF, runs it in a clean environment, and says where the
//! object is or what is missing.
//!
//! Not part of any crate: `agent/build.rs` and `xtask` include it by path, so that both build the same object, and
//! it needs nothing but the standard library.
//!
//! A compiler has no prebuilt `core` for BPF, so it must come with its own library source, and unstable options are
//! needed to compile that. Two kinds of installation have it: a rustup toolchain with the component `rust-src`, and
//! Debian's `rustc-web` with `rust-web-src`. The linker is `bpf-linker`, which opens an LLVM at run time: the one of
//! that same compiler, or the bitcode may be newer than what reads it.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The version of bpf-linker that the project is developed with; newer ones want a newer compiler to be built.
pub(crate) const LINKER_VERSION: &str = "0.10.1";

/// The oldest compiler that the programs build with, as (major, minor): the workspace's `rust-version`.
const OLDEST_RUSTC: (u32, u32) = (1, 95);

const TARGET: &str = "bpfel-unknown-none";

/// Variables that decide which tools are found; a build script names them in `cargo::rerun-if-env-changed`.
pub(crate) const ENVIRONMENT: [&str; 5] = ["HOLDFAST_CACHE", "XDG_CACHE_HOME", "RUSTUP_HOME", "HOME", "PATH"];

#[derive(Debug)]
pub(crate) enum Error {
    /// A tool is missing. The text says which, and how to get it.
    NoToolchain(String),
    /// The tools are there and the build failed. The text is what they printed.
    Build(String),
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoToolchain(message) => out.write_str(message),
            Self::Build(output) => write!(out, "the BPF programs do not build:\n{output}"),
        }
    }
}

impl std::error::Error for Error {}

/// A compiler that brings its library source.
#[derive(Debug)]
pub(crate) struct Compiler {
    pub(crate) cargo: PathBuf,
    pub(crate) rustc: PathBuf,
    /// The LLVM that it uses.
    llvm: PathBuf,
}

/// Builds the programs into `target_dir`, which must not be the directory that an outer cargo holds its lock on
/// (`target/bpf` is a good one: every caller then shares the work), and returns the object's path.
///
/// What the compiler prints goes on to stderr while it runs.
pub(crate) fn build(workspace: &Path, target_dir: &Path) -> Result<PathBuf, Error> {
    let compiler = find_compiler().ok_or_else(|| Error::NoToolchain(no_compiler()))?;
    let linker = find_linker().ok_or_else(|| Error::NoToolchain(no_linker()))?;
    // Absolute, because the compiler is started in the workspace.
    let target_dir = std::path::absolute(target_dir).map_err(|error| failed("find", target_dir, &error))?;
    let llvm_dir =
        provide_llvm(&compiler.llvm, &target_dir).map_err(|error| failed("write", &target_dir, &error))?;

    let mut cargo = Command::new(&compiler.cargo);
    cargo
        .args([
            "build",
            "--release",
            "--locked",
            "--package",
            "holdfast-agent-ebpf",
            "--bin",
            "probes",
        ])
        .args(["-Z", "build-std=core", "--target", TARGET, "--target-dir"])
        .arg(&target_dir)
        .current_dir(workspace);
    clear_outer_build(&mut cargo);
    cargo
        .env("RUSTC", &compiler.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTC_WRAPPER", "")
        .env("RUSTC_WORKSPACE_WRAPPER", "")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(&linker))
        .env("LD_LIBRARY_PATH", llvm_dir);

    let (succeeded, output) = run(&mut cargo).map_err(|error| failed("run", &compiler.cargo, &error))?;
    let object = target_dir.join(TARGET).join("release/probes");
    if succeeded && object.is_file() {
        Ok(object)
    } else {
        Err(Error::Build(output))
    }
}

/// The files that the object is made from, the tools included, for `cargo::rerun-if-changed`. While a tool is
/// missing one of them is a file that never exists, which makes cargo look again with every build.
pub(crate) fn rerun_if_changed(workspace: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = [
        "agent-ebpf/src",
        "agent-ebpf/Cargo.toml",
        "agent-ebpf/build_object.rs",
        "Cargo.toml",
        "Cargo.lock",
    ]
    .iter()
    .map(|file| workspace.join(file))
    .collect();
    match (find_compiler(), find_linker()) {
        (Some(compiler), Some(linker)) => files.extend([compiler.rustc, linker]),
        _ => files.push(workspace.join("target/bpf/no-toolchain")),
    }
    files
}

/// The first compiler that can build the programs: rustup's, nightly before others, then the system's.
pub(crate) fn find_compiler() -> Option<Compiler> {
    rustup_toolchains()
        .into_iter()
        .find_map(|root| compiler_in(&root, rustup_llvm(&root)?))
        .or_else(|| compiler_in(Path::new("/usr"), linked_llvm(Path::new("/usr/bin/rustc"))?))
}

/// The linker that `cargo xtask setup` installed, else one on the PATH.
pub(crate) fn find_linker() -> Option<PathBuf> {
    let cached = cache_dir().map(|cache| cached_linker(&cache));
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|directory| directory.join("bpf-linker"));
    cached.into_iter().chain(on_path).find(|file| file.is_file())
}

/// Where the project keeps what it downloads: `$HOLDFAST_CACHE`, else `holdfast` in the user's cache directory.
pub(crate) fn cache_dir() -> Option<PathBuf> {
    let set = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set("HOLDFAST_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("holdfast")))
        .or_else(|| Some(set("HOME")?.join(".cache/holdfast")))
}

fn no_compiler() -> String {
    let (major, minor) = OLDEST_RUSTC;
    format!(
        "no Rust compiler {major}.{minor} or newer with its library source, which BPF programs need; \
         run `cargo xtask setup`, or `rustup toolchain install nightly -c rust-src`, \
         or on Debian `apt-get install cargo-web rustc-web rust-web-src`"
    )
}

fn no_linker() -> String {
    format!(
        "no bpf-linker, in {} or on the PATH; \
         run `cargo xtask setup`, or `cargo install bpf-linker --version {LINKER_VERSION} --locked`",
        cache_dir().map_or_else(
            || "the cache".to_owned(),
            |cache| cached_linker(&cache).display().to_string()
        ),
    )
}

fn failed(verb: &str, path: &Path, error: &io::Error) -> Error {
    Error::Build(format!("cannot {verb} {}: {error}", path.display()))
}

/// `root/bin/rustc` and its cargo, if they are new enough and bring their library source.
fn compiler_in(root: &Path, llvm: PathBuf) -> Option<Compiler> {
    let (cargo, rustc) = (root.join("bin/cargo"), root.join("bin/rustc"));
    let complete = cargo.is_file()
        && root
            .join("lib/rustlib/src/rust/library/core/src/lib.rs")
            .is_file()
        && version(&rustc)? >= OLDEST_RUSTC;
    complete.then_some(Compiler { cargo, rustc, llvm })
}

fn version(rustc: &Path) -> Option<(u32, u32)> {
    let text = stdout_of(Command::new(rustc).arg("-vV"))?;
    let release = text.lines().find_map(|line| line.strip_prefix("release: "))?;
    let mut parts = release.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

fn rustup_toolchains() -> Vec<PathBuf> {
    let home = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".rustup")));
    let mut roots = entries(&home.unwrap_or_default().join("toolchains"));
    roots.sort_by_key(|root| (!file_name_starts_with(root, "nightly-"), root.clone()));
    roots
}

fn rustup_llvm(root: &Path) -> Option<PathBuf> {
    entries(&root.join("lib"))
        .into_iter()
        .find(|file| file_name_starts_with(file, "libLLVM"))
}

/// The LLVM that a distribution's compiler is linked to.
fn linked_llvm(rustc: &Path) -> Option<PathBuf> {
    let libraries = stdout_of(Command::new("ldd").arg(rustc))?;
    let llvm = libraries
        .lines()
        .find(|line| line.trim_start().starts_with("libLLVM"))?;
    Some(llvm.split_whitespace().nth(2)?.into())
}

/// bpf-linker takes the first `libLLVM*` in the directories of LD_LIBRARY_PATH. A distribution has several of them
/// side by side, so it gets a directory in which there is only the right one.
fn provide_llvm(llvm: &Path, target_dir: &Path) -> io::Result<PathBuf> {
    let directory = target_dir.join("llvm");
    fs::create_dir_all(&directory)?;
    let link = directory.join(llvm.file_name().unwrap_or_default());
    for other in entries(&directory) {
        if fs::read_link(&other).ok().as_deref() != Some(llvm) {
            fs::remove_file(&other)?;
        }
    }
    match std::os::unix::fs::symlink(llvm, &link) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(directory),
    }
}

/// Where `cargo xtask setup` installs the linker, in its `bin`.
pub(crate) fn linker_root(cache: &Path) -> PathBuf {
    cache.join(format!("bpf-linker-{LINKER_VERSION}"))
}

fn cached_linker(cache: &Path) -> PathBuf {
    linker_root(cache).join("bin/bpf-linker")
}

/// CPU version 3 has the atomic operations whose results are used, and 32-bit arithmetic. Debug information is what
/// lets the verifier's log name source lines. No BTF (`--btf`): what the linker writes for `Global<T>` and for
/// aya-log is refused by the kernel.
fn rustflags(linker: &Path) -> OsString {
    let mut linker_flag = OsString::from("-Clinker=");
    linker_flag.push(linker);
    [
        OsStr::new("-Cdebuginfo=2"),
        OsStr::new("-Ctarget-cpu=v3"),
        &linker_flag,
    ]
    .join(OsStr::new("\x1f"))
}

/// Takes away what an outer cargo or rustup says to its children about another compiler, target or profile, and
/// leaves what the user says about registries, the network and homes.
fn clear_outer_build(command: &mut Command) {
    const KEPT: &[&str] = &[
        "CARGO_HOME",
        "CARGO_NET_",
        "CARGO_HTTP_",
        "CARGO_REGISTR",
        "CARGO_TERM_",
        "RUSTUP_HOME",
    ];
    #[rustfmt::skip]
    const OUTER: &[&str] = &[
        "CARGO", "RUST", "DEP_", "TARGET", "HOST", "OUT_DIR", "NUM_JOBS", "OPT_LEVEL", "PROFILE", "DEBUG",
        "MAKEFLAGS", "MFLAGS", "LD_LIBRARY_PATH",
    ];
    for (name, _) in env::vars_os() {
        let is_among = |prefixes: &[&str]| {
            prefixes
                .iter()
                .any(|prefix| name.as_encoded_bytes().starts_with(prefix.as_bytes()))
        };
        if is_among(OUTER) && !is_among(KEPT) {
            command.env_remove(&name);
        }
    }
}

/// Runs the command, passes its stderr on line by line, and returns it as well.
fn run(command: &mut Command) -> io::Result<(bool, String)> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut output = String::new();
    for line in child
        .stderr
        .take()
        .into_iter()
        .flat_map(|stderr| BufReader::new(stderr).lines())
    {
        let line = line?;
        eprintln!("{line}");
        output.push_str(&line);
        output.push('\n');
    }
    Ok((child.wait()?.success(), output))
}

fn stdout_of(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect()
}

fn file_name_starts_with(path: &Path, prefix: &str) -> bool {
    path.file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(prefix.as_bytes()))
}
