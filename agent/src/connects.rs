//! connect() calls that fail before a SYN leaves: which program sees them return. Where syscalls are counted it is the
//! one that counts them, at no cost for other calls; where they are not, one of its own, at 25 ns for every call.

use aya::{
    Ebpf,
    maps::Array,
    programs::{BtfTracePoint, tp_btf::BtfTracePointLinkId},
};
use holdfast_agent_ebpf::syscall::watcher;

use crate::probes::{ProbeError, program_error};

/// The program, and the hook that it shares with the one that counts syscalls.
pub(crate) const PROGRAM: &str = "connect_exit";
const HOOK: &str = "sys_exit";

/// Says which of the two it is.
const WATCHER: &str = "CONNECT_WATCHER";

/// Loads the program; the verifier has accepted it when this returns.
pub(crate) fn load(ebpf: &mut Ebpf, types: &aya::Btf) -> Result<(), ProbeError> {
    program(ebpf)?
        .load(HOOK, types)
        .map_err(|error| program_error(PROGRAM, error))
}

/// The program of its own, while it is needed.
#[derive(Default)]
pub(crate) struct Attached(Option<BtfTracePointLinkId>);

impl Attached {
    /// Syscalls are not counted: our own program watches.
    pub(crate) fn watch(&mut self, ebpf: &mut Ebpf) -> Result<(), ProbeError> {
        if self.0.is_none() {
            let link = program(ebpf)?
                .attach()
                .map_err(|error| program_error(PROGRAM, error))?;
            self.0 = Some(link);
        }
        choose(ebpf, watcher::OWN)
    }

    /// Syscalls are counted from now on: their program watches. From one call to the next, so none is seen twice.
    pub(crate) fn hand_over(&mut self, ebpf: &mut Ebpf) -> Result<(), ProbeError> {
        choose(ebpf, watcher::COUNTING)?;
        match self.0.take() {
            Some(link) => program(ebpf)?
                .detach(link)
                .map_err(|error| program_error(PROGRAM, error)),
            None => Ok(()),
        }
    }
}

fn program(ebpf: &mut Ebpf) -> Result<&mut BtfTracePoint, ProbeError> {
    ebpf.program_mut(PROGRAM)
        .and_then(|program| program.try_into().ok())
        .ok_or(ProbeError::Mismatch { name: PROGRAM })
}

fn choose(ebpf: &mut Ebpf, watcher: u32) -> Result<(), ProbeError> {
    let map = ebpf
        .map_mut(WATCHER)
        .ok_or(ProbeError::Mismatch { name: WATCHER })?;
    Array::try_from(map)
        .and_then(|mut map: Array<_, u32>| map.set(0, watcher, 0))
        .map_err(|source| ProbeError::Map {
            name: WATCHER,
            source,
        })
}
