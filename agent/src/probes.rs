//! Loading the BPF programs into the kernel, attaching them, and reading what they count.
//!
//! The programs stay loaded for as long as [`Probes`] lives: the kernel detaches and frees everything when its last
//! file descriptor closes, however the agent ends.

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, MapError, PerCpuArray, RingBuf},
    programs::{BtfTracePoint, ProgramError},
};
use holdfast_agent_ebpf::{counter::Counter, limits};

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
pub struct KernelCounters(PerCpuArray<MapData, u64>);

/// The counters at one moment, cumulative since the programs were loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelCounts([u64; Counter::ALL.len()]);

impl KernelCounts {
    /// One of them.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter.slot() as usize]
    }
}

impl KernelCounters {
    /// Reads all counters, each summed over the CPUs.
    ///
    /// # Errors
    /// If a map cannot be read. An unreadable counter is never zero.
    pub fn read(&self) -> Result<KernelCounts, ProbeError> {
        let mut counts = KernelCounts::default();
        for counter in Counter::ALL {
            let per_cpu = self.0.get(&counter.slot(), 0).map_err(|source| ProbeError::Map {
                name: "COUNTERS",
                source,
            })?;
            counts.0[counter.slot() as usize] = per_cpu.iter().sum();
        }
        Ok(counts)
    }
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
        let counters = self
            .0
            .take_map("COUNTERS")
            .ok_or(ProbeError::Mismatch { name: "COUNTERS" })?;
        let counters = PerCpuArray::try_from(counters).map_err(|source| ProbeError::Map {
            name: "COUNTERS",
            source,
        })?;
        Ok(KernelCounters(counters))
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
