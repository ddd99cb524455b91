//! The kernel's side of counting syscalls, as the agent handles it: how large its tables are, loading its programs, and
//! attaching as many of them as the mode wants.

use std::path::Path;

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, Map, MapData, MapError, PerCpuArray},
    programs::{BtfTracePoint, ProgramFd, tp_btf::BtfTracePointLinkId},
};
use holdfast_agent_ebpf::{
    limits::{LATENCIES, LATENCY_WAYS, SYSCALL_SLOTS, TALLIES, THREADS, WAYS},
    syscall::{ABI_ENTRIES, Abi, NO_NUMBER, SyscallCounter},
};

use super::{Mode, names, tables::Tables};
use crate::{
    mapping::Mapping,
    probes::{ProbeError, program_error, recursion_misses},
};

/// Notes when a measured call begins.
const ENTER: &str = "sys_enter";

/// Counts a call where it returns.
pub(crate) const EXIT: &str = "sys_exit";

/// The programs that count, each of the same name as its hook.
const COUNTING: [&str; 3] = [EXIT, "sched_process_exec", "sched_process_exit"];

/// Bytes that the counts of all tallies may take on all CPUs together: on machines with more than 32 CPUs there are
/// fewer tallies.
const COUNT_BYTES: u32 = 32 << 20;

/// How large the tables are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Processes that are counted one by one.
    pub slots: u32,
    pub tallies: u32,
    pub latencies: u32,
    pub threads: u32,
    /// CPUs that there can be.
    pub cpus: u32,
}

impl Sizes {
    /// As they are on this machine.
    pub fn of_this_machine() -> Result<Self, ProbeError> {
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| ProbeError::Cpus(error))? as u32;
        let tallies = (COUNT_BYTES / 8 / cpus).next_power_of_two() / 2;
        Ok(Self {
            slots: SYSCALL_SLOTS,
            tallies: tallies.clamp(TALLIES / 16, TALLIES),
            latencies: LATENCIES,
            threads: threads(Path::new("/proc/sys/kernel/pid_max")),
            cpus,
        })
    }

    /// Tables that nothing is counted in.
    pub const fn none() -> Self {
        Self {
            slots: WAYS,
            tallies: WAYS,
            latencies: LATENCY_WAYS,
            threads: 1,
            cpus: 1,
        }
    }
}

/// Places for as many threads as can have ids, or as there are at most.
fn threads(pid_max: &Path) -> u32 {
    std::fs::read_to_string(pid_max)
        .ok()
        .and_then(|text| text.trim().parse::<u32>().ok())
        .map_or(THREADS, |ids| ids.clamp(1, THREADS).next_power_of_two())
}

/// What the object is loaded with.
pub(crate) struct Globals {
    sizes: Sizes,
    abi: [u32; ABI_ENTRIES],
    process_mask: u32,
    tally_mask: u32,
    latency_mask: u32,
    thread_mask: u32,
}

impl Globals {
    /// `reads_connect`: whether the programs read why connect() fails.
    pub(crate) fn new(sizes: Option<Sizes>, reads_connect: bool) -> Self {
        let sizes = sizes.unwrap_or(Sizes::none());
        let mut abi = names::abi();
        if !reads_connect {
            for call in [Abi::Connect, Abi::Accept, Abi::Accept4] {
                abi[call as usize] = NO_NUMBER;
            }
        }
        Self {
            sizes,
            abi,
            process_mask: sizes.slots / WAYS - 1,
            tally_mask: sizes.tallies / WAYS - 1,
            latency_mask: sizes.latencies / LATENCY_WAYS - 1,
            thread_mask: sizes.threads - 1,
        }
    }

    pub(crate) fn set<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        loader
            .override_global("ABI", &self.abi[..], true)
            .override_global("PROCESS_MASK", &self.process_mask, true)
            .override_global("TALLY_MASK", &self.tally_mask, true)
            .override_global("LATENCY_MASK", &self.latency_mask, true)
            .override_global("THREAD_MASK", &self.thread_mask, true)
            .map_max_entries("PROCESSES", self.sizes.slots / WAYS)
            .map_max_entries("SLOT_OWNERS", self.sizes.slots)
            .map_max_entries("TALLIES", self.sizes.tallies / WAYS)
            .map_max_entries("TALLY_COUNTS", self.sizes.tallies * self.sizes.cpus)
            .map_max_entries("LATENCIES", self.sizes.latencies / LATENCY_WAYS)
            .map_max_entries("THREADS", self.sizes.threads);
    }
}

/// Loads the programs; the verifier has accepted them when this returns.
pub(crate) fn load(ebpf: &mut Ebpf, types: &aya::Btf) -> Result<(), ProbeError> {
    for name in COUNTING.into_iter().chain([ENTER]) {
        program(ebpf, name)?
            .load(name, types)
            .map_err(|error| program_error(name, error))?;
    }
    Ok(())
}

/// Whether this is one of the programs, none of which the rest of the agent needs.
pub fn is_ours(program: &str) -> bool {
    program == ENTER || COUNTING.contains(&program)
}

/// Which programs are attached.
#[derive(Default)]
pub(crate) struct Attached {
    counting: Vec<(&'static str, BtfTracePointLinkId)>,
    measuring: Option<BtfTracePointLinkId>,
}

impl Attached {
    /// Attaches and detaches what the mode wants. While nothing is attached nothing is counted, and what a thread's place
    /// remembers may be of a thread that is gone: the caller clears the tables before it attaches again.
    pub(crate) fn switch(&mut self, ebpf: &mut Ebpf, mode: Mode) -> Result<(), ProbeError> {
        if let Some(largest) = mode.largest_measured() {
            let sampling = ebpf
                .map_mut("SAMPLING")
                .ok_or(ProbeError::Mismatch { name: "SAMPLING" })?;
            Array::try_from(sampling)
                .and_then(|mut sampling: Array<_, u32>| sampling.set(0, largest, 0))
                .map_err(|source| ProbeError::Map {
                    name: "SAMPLING",
                    source,
                })?;
        }
        // Measuring needs counting, so it comes after it and goes before it.
        if mode.largest_measured().is_none()
            && let Some(link) = self.measuring.take()
        {
            detach(ebpf, ENTER, link)?;
        }
        if mode == Mode::Off {
            for (name, link) in self.counting.drain(..) {
                detach(ebpf, name, link)?;
            }
        } else if self.counting.is_empty() {
            for name in COUNTING {
                self.counting.push((name, attach(ebpf, name)?));
            }
        }
        if mode.largest_measured().is_some() && self.measuring.is_none() {
            self.measuring = Some(attach(ebpf, ENTER)?);
        }
        Ok(())
    }
}

/// What the kernel side counted, and how it is read.
pub struct KernelSide {
    pub(super) tables: Tables,
    counters: PerCpuArray<MapData, [u64; 4]>,
    programs: Vec<ProgramFd>,
}

/// What is counted beside the tables, cumulative since the programs were loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beside {
    /// Calls that found no place in the table of tallies.
    pub untallied: u64,
    /// Measured calls that found no place in the table of latencies.
    pub unrecorded: u64,
    /// Times that a thread found no slot for its process.
    pub slotless: u64,
    /// Calls, and ends of tasks, that no program saw: the kernel does not start a program inside itself.
    pub missed: u64,
}

impl KernelSide {
    /// Takes the tables out; they have one reader.
    pub(crate) fn take(ebpf: &mut Ebpf, sizes: Sizes) -> Result<Self, ProbeError> {
        let [processes, owners, tallies, tally_counts, latencies, threads] = Tables::words(sizes);
        let mut map = |name, words| match ebpf.take_map(name) {
            Some(Map::Array(map)) => {
                Mapping::new(&map, words).map_err(|source| ProbeError::Mapping { name, source })
            }
            _ => Err(ProbeError::Mismatch { name }),
        };
        let tables = Tables {
            sizes,
            processes: map("PROCESSES", processes)?,
            owners: map("SLOT_OWNERS", owners)?,
            tallies: map("TALLIES", tallies)?,
            tally_counts: map("TALLY_COUNTS", tally_counts)?,
            latencies: map("LATENCIES", latencies)?,
            threads: map("THREADS", threads)?,
        };
        let counters = ebpf
            .take_map(COUNTERS)
            .ok_or(ProbeError::Mismatch { name: COUNTERS })?;
        let programs = COUNTING.into_iter().chain([ENTER]).map(|name| {
            program(ebpf, name)?
                .fd()
                .and_then(|fd| Ok(fd.try_clone()?))
                .map_err(|error| program_error(name, error))
        });
        let programs = programs.collect::<Result<_, _>>()?;
        let counters = PerCpuArray::try_from(counters).map_err(counters_unread)?;
        Ok(Self {
            tables,
            counters,
            programs,
        })
    }

    /// Reads what is counted beside the tables.
    ///
    /// # Errors
    /// If the map cannot be read. An unreadable counter is never zero.
    pub fn beside(&self) -> Result<Beside, ProbeError> {
        let per_cpu = self.counters.get(&0, 0).map_err(counters_unread)?;
        let sum = |counter: SyscallCounter| per_cpu.iter().map(|counts| counts[counter as usize]).sum();
        Ok(Beside {
            untallied: sum(SyscallCounter::Untallied),
            unrecorded: sum(SyscallCounter::Unrecorded),
            slotless: sum(SyscallCounter::Slotless),
            missed: self.programs.iter().filter_map(recursion_misses).sum(),
        })
    }
}

const COUNTERS: &str = "SYSCALL_COUNTERS";

fn counters_unread(source: MapError) -> ProbeError {
    ProbeError::Map {
        name: COUNTERS,
        source,
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut BtfTracePoint, ProbeError> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(ProbeError::Mismatch { name })
}

fn attach(ebpf: &mut Ebpf, name: &'static str) -> Result<BtfTracePointLinkId, ProbeError> {
    program(ebpf, name)?
        .attach()
        .map_err(|error| program_error(name, error))
}

fn detach(ebpf: &mut Ebpf, name: &'static str, link: BtfTracePointLinkId) -> Result<(), ProbeError> {
    program(ebpf, name)?
        .detach(link)
        .map_err(|error| program_error(name, error))
}
