//! Loading the BPF programs into the kernel, attaching them, and reading what they count.
//!
//! The programs stay loaded for as long as [`Probes`] lives: the kernel detaches and frees everything when its last
//! file descriptor closes, however the agent ends.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray},
    programs::{BtfTracePoint, Iter, ProgramError, ProgramFd},
};
use holdfast_agent_ebpf::{
    control::{CONTROL_WORDS, Control},
    counter::{self, Counter, Counts},
    event::{SocketReport, attribution},
    limits,
    listener::{Listener, ListenerKey},
    peer::{FILTER_REASONS, NO_REASON, PeerKey, TROUBLES},
};

use crate::{
    btf::{Btf, BtfError},
    connects, kernel,
    owners::Owner,
    ring_buffer::RingBuffer,
    survey::{SurveyError, Surveyor},
    syscalls::{Mode, kernel as syscalls},
    table::Table,
};

mod object {
    // Written by the build script: the programs, or that there are none.
    include!(concat!(env!("OUT_DIR"), "/object.rs"));
}

/// The hook, and the program of the same name.
const STATE_HOOK: &str = "inet_sock_set_state";

/// The hook of resets that arrive, and the program of the same name. It is older than anything else that is needed.
const RESET_HOOK: &str = "tcp_receive_reset";

/// Hooks that an old or a locked kernel may refuse the programs of, which have the same names; and what is missing
/// then.
pub const OPTIONAL_HOOKS: [(&str, &str); 4] = [
    ("tcp_send_reset", "resets that are sent are not counted by peer"),
    ("tcp_retransmit_skb", "what is sent again is not counted by peer"),
    (
        "tcp_retransmit_synack",
        "SYN-ACKs that are sent again are not counted by peer",
    ),
    ("kfree_skb", "what a filter drops is not counted"),
];

/// The ring buffer of records.
const EVENTS: &str = "EVENTS";

/// The ring buffer of transitions.
const TRANSITIONS: &str = "TRANSITIONS";

/// The map of listeners.
const LISTENERS: &str = "LISTENERS";

/// The iterator over a namespace's sockets.
const SURVEY: &str = "survey";

/// What the iterator goes over, by the kernel's name.
const SURVEYED: &str = "tcp";

/// The programs' own messages; they go to `log`, and from there to `tracing`.
pub type ProgramLog = aya_log::EbpfLogger<&'static dyn log::Log>;

/// How the programs are loaded.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The inode of the only network namespace to observe; `None`: all.
    pub only_netns: Option<u32>,
    /// Bytes of the ring buffer: a power of two, and a multiple of the page size.
    pub ring_bytes: u32,
    /// Likewise of the ring buffer of transitions.
    pub transition_ring_bytes: u32,
    /// Connections that are followed at once.
    pub connections: u32,
    /// How large the tables of the syscalls are; `None`: they are not counted.
    pub syscalls: Option<syscalls::Sizes>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            only_netns: None,
            ring_bytes: limits::RING_BYTES,
            transition_ring_bytes: limits::TRANSITION_RING_BYTES,
            connections: limits::CONNECTIONS,
            syscalls: None,
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
    /// An old kernel, which refused the programs and does not say what it lacks.
    #[error(
        "Linux {release} lacks what the programs need: {lacking}; supported are {}.{} and later",
        kernel::SUPPORTED.0,
        kernel::SUPPORTED.1
    )]
    Lacking {
        release: String,
        lacking: String,
        source: Box<ProbeError>,
    },
    #[error("the BPF object has no {name}: agent and programs were built from different sources")]
    Mismatch { name: &'static str },
    #[error("cannot map the table of connections into memory")]
    Table(#[source] io::Error),
    #[error("cannot read the map {name}")]
    Map { name: &'static str, source: MapError },
    #[error("cannot map {name} into memory")]
    Mapping { name: &'static str, source: io::Error },
    #[error("cannot count the CPUs that there can be: is /sys mounted?")]
    Cpus(#[source] io::Error),
    #[error("cannot open another file")]
    Files(#[source] io::Error),
    #[error("syscalls are not counted: the probes were loaded without")]
    NoSyscalls,
}

/// The programs, loaded; attached once [`Probes::attach`] was called.
pub struct Probes {
    ebpf: Ebpf,
    syscalls: Option<(syscalls::Sizes, syscalls::Attached)>,
    /// Who sees connect() fail; `None` where the kernel lets nobody.
    connects: Option<connects::Attached>,
    /// Buckets of the table of connections.
    buckets: u32,
    /// The kernel took the survey: what is older than the programs can be seen.
    can_survey: bool,
    /// Those of [`OPTIONAL_HOOKS`] whose programs the kernel did not take.
    refused: Vec<&'static str>,
}

/// What the kernel side counts. It outlives the programs.
pub struct KernelCounters {
    counts: PerCpuArray<MapData, KernelSlot>,
    namespaces: HashMap<MapData, u32, u32>,
    program: ProgramFd,
    /// The last that was read of the program: it is gone before its counters are.
    missed: AtomicU64,
    /// The programs that see connect() return, and likewise.
    returning: Vec<ProgramFd>,
    missed_returns: AtomicU64,
    surveyed: Mutex<BTreeMap<u32, Surveyed>>,
}

/// A namespace in which all that was open had been found at some moment.
#[derive(Clone, Copy, Default)]
struct Surveyed {
    /// What was `Unseen` then.
    unseen: u64,
    /// The most that were overlooked since, at any reading: what is untracked, or left out by sampling, is taken off for as long
    /// as it is open and longer.
    overlooked: u64,
}

/// A slot of the kernel's counters, as aya wants it: plain integers.
type KernelSlot = [u64; counter::WORDS];

/// The counters at one moment, cumulative since the programs were loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelCounts {
    /// By the inode of the network namespace; 0 stands for those that are not observed, or came too late for counters
    /// of their own.
    pub namespaces: BTreeMap<u32, Counts>,
    /// Events that no program saw: an interrupt brought one while the program ran on the same CPU, and the kernel
    /// does not start a program inside itself.
    pub missed: u64,
    /// Likewise system calls whose return none saw, on kernels that preempt programs: any of them may have been a connect()
    /// that failed before its SYN left, most were not.
    pub missed_returns: u64,
    /// By namespace, connections whose end came although no program had seen their beginning nor a survey the rest: at least so
    /// many beginnings were missed, whatever the kernel counted.
    pub overlooked: BTreeMap<u32, u64>,
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

    /// Connections of a namespace that began with a SYN on the wire: what the kernel's own counters know, too.
    pub fn sent(&self, netns: u32) -> u64 {
        self.of(netns, Counter::Opened)
            .saturating_sub(self.of(netns, Counter::Unsent))
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
        let mut surveyed = self.surveyed.lock().unwrap_or_else(PoisonError::into_inner);
        for (netns, surveyed) in surveyed.iter_mut() {
            if let Some(counts) = namespaces.get(netns) {
                // These have no record either, on purpose or for want of room.
                let without = counts.get(Counter::Untracked) + counts.get(Counter::SampledOut);
                let overlooked = counts
                    .get(Counter::Unseen)
                    .saturating_sub(surveyed.unseen + without);
                surveyed.overlooked = surveyed.overlooked.max(overlooked);
            }
        }
        let overlooked = surveyed
            .iter()
            .map(|(&netns, surveyed)| (netns, surveyed.overlooked))
            .collect();
        drop(surveyed);
        let missed_returns = self.returning.iter().filter_map(recursion_misses).sum();
        self.missed_returns.fetch_max(missed_returns, Ordering::Relaxed);
        Ok(KernelCounts {
            namespaces,
            missed: self.missed.load(Ordering::Relaxed),
            missed_returns: self.missed_returns.load(Ordering::Relaxed),
            overlooked,
        })
    }

    /// All that is open in these namespaces has been found and is followed: from here on, every end is of a connection whose
    /// beginning was seen, or missed.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn surveyed(&self, namespaces: impl IntoIterator<Item = u32>) -> Result<(), ProbeError> {
        let counts = self.read()?;
        let unseen = namespaces.into_iter().map(|netns| {
            let surveyed = Surveyed {
                unseen: counts.of(netns, Counter::Unseen),
                overlooked: 0,
            };
            (netns, surveyed)
        });
        self.surveyed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(unseen);
        Ok(())
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

/// What the kernel counts for a program in `recursion_misses` (bpf_prog_show_fdinfo, kernel/bpf/syscall.c; 5.12): how often
/// it did not start the program because it, or one of its kind, ran on that CPU. `None` where the kernel does not say.
pub fn recursion_misses(program: &ProgramFd) -> Option<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd())).ok()?;
    info.lines()
        .find_map(|line| line.strip_prefix("recursion_misses:")?.trim().parse().ok())
}

/// Whether the agent was built with its programs.
pub fn are_built_in() -> bool {
    object::OBJECT.is_some()
}

impl Probes {
    /// Loads the programs; the verifier has accepted them when this returns. A kernel that does not let programs read
    /// its memory at will (lockdown for confidentiality) gets them without what needs that: see
    /// [`Probes::sees_failed_connects`].
    ///
    /// # Errors
    /// See [`ProbeError`].
    pub fn load(options: Options) -> Result<Self, ProbeError> {
        match Self::load_some(options, true) {
            Err(error @ ProbeError::Program { .. }) => {
                Self::load_some(options, false).map_err(|_| explained(error))
            }
            loaded => loaded.map_err(explained),
        }
    }

    /// Whether a connect() that fails before a SYN leaves is an attempt.
    pub fn sees_failed_connects(&self) -> bool {
        self.connects.is_some()
    }

    fn load_some(options: Options, reads_connect: bool) -> Result<Self, ProbeError> {
        let object = object::OBJECT.ok_or(ProbeError::NoPrograms)?;
        let kernel_types = Btf::of_this_kernel()?;
        let offsets = kernel_types.offsets();
        let filter_reasons = FILTER_REASONS.map(|reason| {
            let number = kernel_types.enumerator("skb_drop_reason", reason);
            number.unwrap_or(NO_REASON)
        });
        let only_netns = options.only_netns.unwrap_or(0);
        let buckets = limits::slots(options.connections) / limits::WAYS;
        let bucket_mask = buckets - 1;
        let syscall_globals = syscalls::Globals::new(options.syscalls, reads_connect);
        let mut loader = EbpfLoader::new();
        syscall_globals.set(&mut loader);
        let mut ebpf = loader
            .override_global("OFFSETS", &offsets[..], true)
            .override_global("ONLY_NETNS", &only_netns, true)
            .override_global("FILTER_REASONS", &filter_reasons[..], true)
            .map_max_entries("EVENTS", options.ring_bytes)
            .map_max_entries(TRANSITIONS, options.transition_ring_bytes)
            .override_global("BUCKET_MASK", &bucket_mask, true)
            .map_max_entries("SOCKETS", buckets)
            .map_max_entries("RECORDS", buckets * limits::WAYS)
            .map_max_entries("NOTICES", buckets * limits::WAYS)
            .map_max_entries("NEWS", limits::regions(buckets * limits::WAYS))
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
        tracepoint(&mut ebpf, STATE_HOOK)?
            .load(STATE_HOOK, &types)
            .map_err(|error| program_error(STATE_HOOK, error))?;
        tracepoint(&mut ebpf, RESET_HOOK)?
            .load(RESET_HOOK, &types)
            .map_err(|error| program_error(RESET_HOOK, error))?;
        let mut refused = Vec::new();
        for (hook, missing) in OPTIONAL_HOOKS {
            if let Err(error) = tracepoint(&mut ebpf, hook)?.load(hook, &types) {
                tracing::warn!("{missing}: {:#}", anyhow::Error::new(program_error(hook, error)));
                refused.push(hook);
            }
        }
        if options.syscalls.is_some() {
            syscalls::load(&mut ebpf, &types)?;
        }
        if reads_connect {
            connects::load(&mut ebpf, &types)?;
        }
        let can_survey = match survey_program(&mut ebpf)?.load(SURVEYED, &types) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!("no survey of sockets: {:#}", anyhow::Error::new(error));
                false
            }
        };
        Ok(Self {
            ebpf,
            connects: reads_connect.then(connects::Attached::default),
            buckets,
            can_survey,
            refused,
            syscalls: options
                .syscalls
                .map(|sizes| (sizes, syscalls::Attached::default())),
        })
    }

    /// Attaches the programs: from here on they see and count.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn attach(&mut self) -> Result<(), ProbeError> {
        let optional = OPTIONAL_HOOKS.map(|(hook, _)| hook);
        let taken = optional.into_iter().filter(|hook| !self.refused.contains(hook));
        let hooks: Vec<_> = taken.chain([RESET_HOOK, STATE_HOOK]).collect();
        for hook in hooks {
            let attached = tracepoint(&mut self.ebpf, hook)?.attach();
            attached.map_err(|error| program_error(hook, error))?;
        }
        match &mut self.connects {
            Some(connects) => connects.watch(&mut self.ebpf),
            None => Ok(()),
        }
    }

    /// Counts syscalls from here on as the mode says.
    ///
    /// # Errors
    /// If the programs were loaded without, or the kernel refuses.
    pub fn count_syscalls(&mut self, mode: Mode) -> Result<(), ProbeError> {
        let Some((_, attached)) = &mut self.syscalls else {
            return if mode == Mode::Off {
                Ok(())
            } else {
                Err(ProbeError::NoSyscalls)
            };
        };
        // Where both programs are attached for a moment, the choice of one goes with the mode.
        match &mut self.connects {
            Some(connects) if mode == Mode::Off => {
                connects.watch(&mut self.ebpf)?;
                attached.switch(&mut self.ebpf, mode)
            }
            Some(connects) => {
                attached.switch(&mut self.ebpf, mode)?;
                connects.hand_over(&mut self.ebpf)
            }
            None => attached.switch(&mut self.ebpf, mode),
        }
    }

    /// Takes the tables of the syscalls out; they have one reader.
    ///
    /// # Errors
    /// If they were taken before, or the programs were loaded without.
    pub fn take_syscalls(&mut self) -> Result<syscalls::KernelSide, ProbeError> {
        let (sizes, _) = self.syscalls.as_ref().ok_or(ProbeError::NoSyscalls)?;
        syscalls::KernelSide::take(&mut self.ebpf, *sizes)
    }

    /// The programs that are loaded, by name: what the kernel knows of them can be asked for as long as these live.
    ///
    /// # Errors
    /// If there are too many open files.
    pub fn programs(&self) -> Result<Vec<(String, ProgramFd)>, ProbeError> {
        let mut programs = Vec::new();
        for (name, program) in self.ebpf.programs() {
            // One that is not loaded has none.
            let Ok(program) = program.fd() else { continue };
            let program = program.try_clone().map_err(ProbeError::Files)?;
            programs.push((name.to_owned(), program));
        }
        Ok(programs)
    }

    /// Changes what the programs do, from now on.
    ///
    /// # Errors
    /// If the maps cannot be written.
    pub fn control(&mut self, control: &Control) -> Result<(), ProbeError> {
        const IN_USE: &str = "CONTROL_IN_USE";
        const CONTROLS: &str = "CONTROLS";
        let unwritten = |name| move |source| ProbeError::Map { name, source };
        let in_use: u32 = Array::try_from(map_mut(&mut self.ebpf, IN_USE)?)
            .and_then(|in_use| in_use.get(&0, 0))
            .map_err(unwritten(IN_USE))?;
        // The set that is not in use, which no program reads.
        let next = if in_use == 1 { 2 } else { 1 };
        Array::try_from(map_mut(&mut self.ebpf, CONTROLS)?)
            .and_then(|mut controls: Array<_, [u64; CONTROL_WORDS]>| {
                controls.set(next - 1, control.to_words(), 0)
            })
            .map_err(unwritten(CONTROLS))?;
        Array::try_from(map_mut(&mut self.ebpf, IN_USE)?)
            .and_then(|mut in_use: Array<_, u32>| in_use.set(0, next, 0))
            .map_err(unwritten(IN_USE))
    }

    /// Has surveys report the sample of the connections that is halved so many times; each still gets a place.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn halve_surveys(&mut self, halvings: u32) -> Result<(), ProbeError> {
        const NAME: &str = "SURVEY_HALVINGS";
        let map = self
            .ebpf
            .map_mut(NAME)
            .ok_or(ProbeError::Mismatch { name: NAME })?;
        Array::try_from(map)
            .and_then(|mut map: Array<_, u32>| map.set(0, halvings, 0))
            .map_err(|source| ProbeError::Map { name: NAME, source })
    }

    /// Surveys the TCP sockets of the network namespace at `path`, or of the one that the caller is in.
    ///
    /// # Errors
    /// See [`SurveyError`].
    pub fn survey(
        &mut self,
        path: Option<&Path>,
        each: &mut (dyn FnMut(&SocketReport) + Send),
    ) -> Result<(), SurveyError> {
        self.surveyor()?.survey(path, each)
    }

    /// What makes one survey, and does not need the programs meanwhile: whoever shares them is not kept waiting.
    ///
    /// # Errors
    /// If the kernel has no surveys, or refuses this one.
    pub fn surveyor(&mut self) -> Result<Surveyor, SurveyError> {
        if !self.can_survey {
            return Err(SurveyError::Unsupported);
        }
        let program = survey_program(&mut self.ebpf).map_err(|_| SurveyError::Unsupported)?;
        let link = program.attach().and_then(|id| program.take_link(id));
        let link = link.map_err(|error| SurveyError::Start(Box::new(error)))?;
        Ok(Surveyor::new(link))
    }

    /// Whether the kernel shows its sockets: what is older than the programs, what is open, and who listens.
    pub fn sees_sockets(&self) -> bool {
        self.can_survey
    }

    /// Those of [`OPTIONAL_HOOKS`] whose programs the kernel did not take.
    pub fn refused(&self) -> &[&'static str] {
        &self.refused
    }

    /// Takes the counts of trouble by peer out.
    ///
    /// # Errors
    /// If they were taken before.
    pub fn take_peers(&mut self) -> Result<Peers, ProbeError> {
        let mut take = |name| self.ebpf.take_map(name).ok_or(ProbeError::Mismatch { name });
        let (peers, others) = (take("PEERS")?, take("OTHER_PEERS")?);
        let unreadable = |name| move |source| ProbeError::Map { name, source };
        Ok(Peers {
            peers: HashMap::try_from(peers).map_err(unreadable("PEERS"))?,
            others: Array::try_from(others).map_err(unreadable("OTHER_PEERS"))?,
        })
    }

    /// Takes the ring buffer out; it has one reader.
    ///
    /// # Errors
    /// If it was taken before, or cannot be mapped into memory.
    pub fn take_ring(&mut self) -> Result<RingBuffer, ProbeError> {
        self.take_ring_map(EVENTS)?.open()
    }

    /// Takes the ring buffer of transitions out; it has one reader.
    ///
    /// # Errors
    /// If it was taken before, or there are too many open files.
    pub fn take_transitions(&mut self) -> Result<TransitionRing, ProbeError> {
        let map = self.take_ring_map(TRANSITIONS)?;
        Ok(TransitionRing { map, ring: None })
    }

    fn take_ring_map(&mut self, name: &'static str) -> Result<RingMap, ProbeError> {
        let Some(Map::RingBuf(map)) = self.ebpf.take_map(name) else {
            return Err(ProbeError::Mismatch { name });
        };
        let info = map.info().map_err(|source| ProbeError::Map { name, source })?;
        Ok(RingMap {
            name,
            map: map.fd().as_fd().try_clone_to_owned().map_err(ProbeError::Files)?,
            data_bytes: info.max_entries(),
        })
    }

    /// Takes the table of open connections out.
    ///
    /// # Errors
    /// If it was taken before, or cannot be mapped.
    pub fn take_table(&mut self) -> Result<Table, ProbeError> {
        let mut take = |name| self.ebpf.take_map(name).ok_or(ProbeError::Mismatch { name });
        let mut words = |name| match take(name)? {
            Map::Array(words) => Ok(words),
            _ => Err(ProbeError::Mismatch { name }),
        };
        let (notices, news) = (words("NOTICES")?, words("NEWS")?);
        let records = Array::try_from(take("RECORDS")?).map_err(|source| ProbeError::Map {
            name: "RECORDS",
            source,
        })?;
        Table::map(&notices, &news, records, self.buckets * limits::WAYS).map_err(ProbeError::Table)
    }

    /// Takes the map of listeners out.
    ///
    /// # Errors
    /// If it was taken before.
    pub fn take_listeners(&mut self) -> Result<Listeners, ProbeError> {
        let map = self
            .ebpf
            .take_map(LISTENERS)
            .ok_or(ProbeError::Mismatch { name: LISTENERS })?;
        HashMap::try_from(map).map(Listeners).map_err(listeners_error)
    }

    /// Starts to hand the programs' own messages to `tracing`.
    ///
    /// # Errors
    /// If the object has no log, which is a mismatch of agent and programs.
    pub fn take_log(&mut self) -> Result<ProgramLog, ProbeError> {
        aya_log::EbpfLogger::init(&mut self.ebpf).map_err(|_| ProbeError::Mismatch { name: "AYA_LOGS" })
    }

    /// Takes the counters out; they can be read after the programs are gone.
    ///
    /// # Errors
    /// If they were taken before.
    pub fn take_counters(&mut self) -> Result<KernelCounters, ProbeError> {
        let mut take = |name| self.ebpf.take_map(name).ok_or(ProbeError::Mismatch { name });
        let (counts, namespaces) = (take("COUNTERS")?, take("NAMESPACES")?);
        let program = tracepoint(&mut self.ebpf, STATE_HOOK)?
            .fd()
            .and_then(|fd| Ok(fd.try_clone()?))
            .map_err(|error| program_error(STATE_HOOK, error))?;
        let sees_returns = |name: &str| [connects::PROGRAM, syscalls::EXIT].contains(&name);
        let mut returning = self.programs()?;
        returning.retain(|(name, _)| sees_returns(name));
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
            surveyed: Mutex::default(),
            returning: returning.into_iter().map(|(_, program)| program).collect(),
            missed_returns: AtomicU64::new(0),
        })
    }
}

/// A ring buffer that is not in memory.
struct RingMap {
    name: &'static str,
    map: OwnedFd,
    data_bytes: u32,
}

impl RingMap {
    fn open(&self) -> Result<RingBuffer, ProbeError> {
        let name = self.name;
        RingBuffer::map(self.map.as_fd(), self.data_bytes)
            .map_err(|source| ProbeError::Mapping { name, source })
    }
}

/// The ring buffer of transitions. In the agent's memory only while it is looked at: most often nobody wants them.
pub struct TransitionRing {
    map: RingMap,
    ring: Option<RingBuffer>,
}

impl TransitionRing {
    /// What the programs wrote.
    ///
    /// # Errors
    /// If it cannot be mapped into memory.
    pub fn open(&mut self) -> Result<&mut RingBuffer, ProbeError> {
        let ring = match self.ring.take() {
            Some(ring) => ring,
            None => self.map.open()?,
        };
        Ok(self.ring.insert(ring))
    }

    /// Gives the memory back; what was not taken stays.
    pub fn close(&mut self) {
        self.ring = None;
    }

    /// Whether it is in memory.
    pub fn is_open(&self) -> bool {
        self.ring.is_some()
    }
}

/// The kernel side's counts of trouble, by peer.
pub struct Peers {
    peers: HashMap<MapData, [u32; 6], [u64; TROUBLES]>,
    others: Array<MapData, [u64; TROUBLES]>,
}

impl Peers {
    /// Every peer with its counts, cumulative since it has its place.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn each(&self, mut each: impl FnMut(PeerKey, [u64; TROUBLES])) -> Result<(), ProbeError> {
        let unreadable = |source| ProbeError::Map {
            name: "PEERS",
            source,
        };
        for entry in self.peers.iter() {
            let (key, counts) = entry.map_err(unreadable)?;
            each(PeerKey::from_words(key), counts);
        }
        Ok(())
    }

    /// The counts of all that found no place.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn others(&self) -> Result<[u64; TROUBLES], ProbeError> {
        let unreadable = |source| ProbeError::Map {
            name: "OTHER_PEERS",
            source,
        };
        self.others.get(&0, 0).map_err(unreadable)
    }

    /// Gives a peer's place away.
    pub fn forget(&mut self, key: PeerKey) {
        // Gone already, or it stays.
        let _ = self.peers.remove(&key.words());
    }
}

/// The kernel side's map of listeners, by where they listen.
pub struct Listeners(HashMap<MapData, ListenerKeyWords, ListenerWords>);

/// A [`ListenerKey`] and a [`Listener`] as aya wants them: plain integers.
type ListenerKeyWords = [u32; 3];
type ListenerWords = [u64; 4];

impl Listeners {
    /// Says who owns a listener that is older than the programs, unless another one has taken its place meanwhile.
    ///
    /// # Errors
    /// If the map cannot be read or written.
    pub fn complete(&mut self, key: &ListenerKey, owner: Owner) -> Result<(), ProbeError> {
        let key = key.words();
        let known = match self.0.get(&key, 0) {
            Ok(known) => Listener::from_words(known),
            Err(MapError::KeyNotFound) => return Ok(()),
            Err(source) => return Err(listeners_error(source)),
        };
        if known.pid != 0 {
            return Ok(());
        }
        let owned = Listener {
            comm: owner.comm,
            pid: owner.pid,
            attribution: attribution::SNAPSHOT.into(),
            ..known
        };
        match self.0.insert(key, owned.words(), BPF_EXIST) {
            // It listens no more.
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(listeners_error),
        }
    }
}

/// Only a key that is there (include/uapi/linux/bpf.h).
const BPF_EXIST: u64 = 2;

fn listeners_error(source: MapError) -> ProbeError {
    ProbeError::Map {
        name: LISTENERS,
        source,
    }
}

fn map_mut<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Map, ProbeError> {
    ebpf.map_mut(name).ok_or(ProbeError::Mismatch { name })
}

fn tracepoint<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut BtfTracePoint, ProbeError> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(ProbeError::Mismatch { name })
}

fn survey_program(ebpf: &mut Ebpf) -> Result<&mut Iter, ProbeError> {
    ebpf.program_mut(SURVEY)
        .and_then(|program| program.try_into().ok())
        .ok_or(ProbeError::Mismatch { name: SURVEY })
}

pub(crate) fn program_error(program: &'static str, error: ProgramError) -> ProbeError {
    if is_permission(&error) {
        ProbeError::NotPermitted
    } else {
        ProbeError::Program {
            program,
            source: Box::new(error),
        }
    }
}

/// Says of a refusal by an old kernel what it lacks. Syscalls the agent can do without: theirs stays what it is.
fn explained(error: ProbeError) -> ProbeError {
    let is_about_the_kernel = match &error {
        ProbeError::Object(_) => true,
        ProbeError::Program { program, .. } => !syscalls::is_ours(program),
        _ => false,
    };
    let release = kernel::release();
    match kernel::version(&release).and_then(kernel::lacking) {
        Some(lacking) if is_about_the_kernel => ProbeError::Lacking {
            release,
            lacking,
            source: Box::new(error),
        },
        _ => error,
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
