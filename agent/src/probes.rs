//! Loading the BPF programs into the kernel, attaching them, and reading what they count.
//!
//! The programs stay loaded for as long as [`Probes`] lives: the kernel detaches and frees everything when its last
//! file descriptor closes, however the agent ends.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsFd, AsRawFd},
    sync::atomic::{AtomicU64, Ordering},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, MapData, MapError, PerCpuArray, RingBuf},
    programs::{BtfTracePoint, ProgramError, ProgramFd},
};
use holdfast_agent_ebpf::{
    counter::{Counter, Counts},
    limits,
};

use crate::btf::{Btf, BtfError};

mod object {
    // Written by the build script: the programs, or that there are none.
    include!(concat!(env!("OUT_DIR"), "/object.rs"));
}

/// The hook, and the program of the same name.
const STATE_HOOK: &str = "inet_sock_set_state";

/// The programs' own messages; they go to `log`, and from there to `tracing`.
pub type ProgramLog = aya_log::EbpfLogger<&'static dyn log::Log>;

/// How the programs are loaded.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The inode of the only network namespace to observe; `None`: all.
    pub only_netns: Option<u32>,
    /// Bytes of the ring buffer: a power of two, and a multiple of the page size.
    pub ring_bytes: u32,
    /// Connections that are followed at once.
    pub connections: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            only_netns: None,
            ring_bytes: limits::RING_BYTES,
            connections: limits::CONNECTIONS,
        }
    }
}

/// Why there are no probes.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error(
        "this holdfast-agent was built without its BPF programs: run `cargo xtask setup`, then build it again"
    )]
    NoPrograms,
    #[error("the kernel's types cannot be read")]
    Btf(#[from] BtfError),
    #[error(
        "not allowed to load BPF programs: run as root, or with the capabilities CAP_BPF and CAP_PERFMON"
    )]
    NotPermitted,
    #[error("the kernel refused the BPF object")]
    Object(#[source] Box<aya::EbpfError>),
    /// With the verifier's log, when there is one.
    #[error("the kernel refused the program {program}")]
    Program {
        program: &'static str,
        source: Box<ProgramError>,
    },
    #[error("the BPF object has no {name}: agent and programs were built from different sources")]
    Mismatch { name: &'static str },
    #[error("cannot read the map {name}")]
    Map { name: &'static str, source: MapError },
}

/// The programs, loaded; attached once [`Probes::attach`] was called.
pub struct Probes(Ebpf);

/// What the kernel side counts. It outlives the programs.
pub struct KernelCounters {
    counts: PerCpuArray<MapData, KernelSlot>,
    namespaces: HashMap<MapData, u32, u32>,
    program: ProgramFd,
    /// The last that was read of the program: it is gone before its counters are.
    missed: AtomicU64,
}

/// A slot of the kernel's counters, as aya wants it: plain integers.
type KernelSlot = [u64; 8];

/// The counters at one moment, cumulative since the programs were loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelCounts {
    /// By the inode of the network namespace; 0 stands for those that are not observed, or came too late for counters
    /// of their own.
    pub namespaces: BTreeMap<u32, Counts>,
    /// Events that no program saw: an interrupt brought one while the program ran on the same CPU, and the kernel
    /// does not start a program inside itself.
    pub missed: u64,
}

impl KernelCounts {
    /// A counter, over all namespaces.
    pub fn total(&self, counter: Counter) -> u64 {
        self.namespaces.values().map(|counts| counts.get(counter)).sum()
    }

    /// A counter of one namespace.
    pub fn of(&self, netns: u32, counter: Counter) -> u64 {
        self.namespaces
            .get(&netns)
            .map_or(0, |counts| counts.get(counter))
    }
}

impl KernelCounters {
    /// Reads all counters, each summed over the CPUs.
    ///
    /// # Errors
    /// If a map cannot be read. An unreadable counter is never zero.
    pub fn read(&self) -> Result<KernelCounts, ProbeError> {
        let mut namespaces = BTreeMap::from([(0, self.slot(0)?)]);
        for entry in self.namespaces.iter() {
            let (netns, slot) = entry.map_err(|source| ProbeError::Map {
                name: "NAMESPACES",
                source,
            })?;
            namespaces.insert(netns, self.slot(slot)?);
        }
        if let Some(missed) = recursion_misses(&self.program) {
            self.missed.store(missed, Ordering::Relaxed);
        }
        Ok(KernelCounts {
            namespaces,
            missed: self.missed.load(Ordering::Relaxed),
        })
    }

    fn slot(&self, slot: u32) -> Result<Counts, ProbeError> {
        let per_cpu = self.counts.get(&slot, 0).map_err(|source| ProbeError::Map {
            name: "COUNTERS",
            source,
        })?;
        let mut sum = Counts::default();
        for counts in per_cpu.iter() {
            for (total, count) in sum.0.iter_mut().zip(counts) {
                *total += count;
            }
        }
        Ok(sum)
    }
}

/// What the kernel counts for a program in `recursion_misses` (bpf_prog_show_fdinfo, kernel/bpf/syscall.c; 5.12).
fn recursion_misses(program: &ProgramFd) -> Option<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd())).ok()?;
    info.lines()
        .find_map(|line| line.strip_prefix("recursion_misses:")?.trim().parse().ok())
}

/// Whether the agent was built with its programs.
pub fn are_built_in() -> bool {
    object::OBJECT.is_some()
}

impl Probes {
    /// Loads the programs; the verifier has accepted them when this returns.
    ///
    /// # Errors
    /// See [`ProbeError`].
    pub fn load(options: Options) -> Result<Self, ProbeError> {
        let object = object::OBJECT.ok_or(ProbeError::NoPrograms)?;
        let offsets = Btf::of_this_kernel()?.offsets();
        let only_netns = options.only_netns.unwrap_or(0);
        let buckets = limits::slots(options.connections) / limits::WAYS;
        let bucket_mask = buckets - 1;
        let mut ebpf = EbpfLoader::new()
            .override_global("OFFSETS", &offsets[..], true)
            .override_global("ONLY_NETNS", &only_netns, true)
            .map_max_entries("EVENTS", options.ring_bytes)
            .override_global("BUCKET_MASK", &bucket_mask, true)
            .map_max_entries("SOCKETS", buckets)
            .map_max_entries("RECORDS", buckets * limits::WAYS)
            .load(object)
            .map_err(|error| {
                if is_permission(&error) {
                    ProbeError::NotPermitted
                } else {
                    ProbeError::Object(Box::new(error))
                }
            })?;

        let types = aya::Btf::from_sys_fs()
            .map_err(|error| ProbeError::Object(Box::new(aya::EbpfError::BtfError(error))))?;
        state_program(&mut ebpf)?
            .load(STATE_HOOK, &types)
            .map_err(program_error)?;

        Ok(Self(ebpf))
    }

    /// Attaches the programs: from here on they see and count.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn attach(&mut self) -> Result<(), ProbeError> {
        state_program(&mut self.0)?.attach().map_err(program_error)?;
        Ok(())
    }

    /// Takes the ring buffer out; it has one reader.
    ///
    /// # Errors
    /// If it was taken before.
    pub fn take_ring(&mut self) -> Result<RingBuf<MapData>, ProbeError> {
        let ring = self
            .0
            .take_map("EVENTS")
            .ok_or(ProbeError::Mismatch { name: "EVENTS" })?;
        RingBuf::try_from(ring).map_err(|source| ProbeError::Map {
            name: "EVENTS",
            source,
        })
    }

    /// Starts to hand the programs' own messages to `tracing`.
    ///
    /// # Errors
    /// If the object has no log, which is a mismatch of agent and programs.
    pub fn take_log(&mut self) -> Result<ProgramLog, ProbeError> {
        aya_log::EbpfLogger::init(&mut self.0).map_err(|_| ProbeError::Mismatch { name: "AYA_LOGS" })
    }

    /// Takes the counters out; they can be read after the programs are gone.
    ///
    /// # Errors
    /// If they were taken before.
    pub fn take_counters(&mut self) -> Result<KernelCounters, ProbeError> {
        let mut take = |name| self.0.take_map(name).ok_or(ProbeError::Mismatch { name });
        let (counts, namespaces) = (take("COUNTERS")?, take("NAMESPACES")?);
        let program = state_program(&mut self.0)?
            .fd()
            .and_then(|fd| Ok(fd.try_clone()?))
            .map_err(program_error)?;
        Ok(KernelCounters {
            counts: PerCpuArray::try_from(counts).map_err(|source| ProbeError::Map {
                name: "COUNTERS",
                source,
            })?,
            namespaces: HashMap::try_from(namespaces).map_err(|source| ProbeError::Map {
                name: "NAMESPACES",
                source,
            })?,
            program,
            missed: AtomicU64::new(0),
        })
    }
}

fn state_program(ebpf: &mut Ebpf) -> Result<&mut BtfTracePoint, ProbeError> {
    ebpf.program_mut(STATE_HOOK)
        .and_then(|program| program.try_into().ok())
        .ok_or(ProbeError::Mismatch { name: STATE_HOOK })
}

fn program_error(error: ProgramError) -> ProbeError {
    if is_permission(&error) {
        ProbeError::NotPermitted
    } else {
        ProbeError::Program {
            program: STATE_HOOK,
            source: Box::new(error),
        }
    }
}

/// Whether the kernel said EPERM or EACCES somewhere below, without a verifier's log: that is about us, not about
/// the program.
fn is_permission(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(ProgramError::LoadError { verifier_log, .. }) = error.downcast_ref::<ProgramError>()
            && !verifier_log.to_string().trim().is_empty()
        {
            return false;
        }
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && io.kind() == std::io::ErrorKind::PermissionDenied
        {
            return true;
        }
        cause = error.source();
    }
    false
}
