//! What the agent has changed since the programs were loaded. The agent writes the set that is not in use and then
//! names it, so no program sees half a set for longer than it runs.

use core::ptr;

use aya_ebpf::{helpers::generated::bpf_get_prandom_u32, macros::map, maps::Array};
use holdfast_agent_ebpf::{
    control::{ALL, Control, Filter},
    event::ConnectionRecord,
};

#[map]
static CONTROLS: Array<Control> = Array::with_max_entries(2, 0);

/// Which of the two sets is in use: 1 or 2; zero: none, everything is followed and handed over.
#[map]
static CONTROL_IN_USE: Array<u32> = Array::with_max_entries(1, 0);

#[inline(always)]
fn control() -> Option<*const Control> {
    let in_use = CONTROL_IN_USE.get_ptr(0)?;
    // SAFETY: the entry is live; volatile, because the agent changes it.
    match unsafe { ptr::read_volatile(in_use) } {
        0 => None,
        set => Some(CONTROLS.get_ptr(set - 1)?),
    }
}

/// Whether a connection that begins is followed.
#[inline(always)]
pub(crate) fn follows() -> bool {
    let largest = largest_followed();
    // SAFETY: no preconditions.
    largest == ALL || unsafe { bpf_get_prandom_u32() } as u32 <= largest
}

/// Whether every connection is.
#[inline(always)]
pub(crate) fn follows_all() -> bool {
    largest_followed() == ALL
}

#[inline(always)]
fn largest_followed() -> u32 {
    // SAFETY: the entry is live.
    control().map_or(ALL, |control| unsafe { (*control).largest_followed })
}

/// What is in force, if any transition is streamed. One branch where the agent never changed anything, two where it did.
#[inline(always)]
pub(crate) fn streaming() -> Option<&'static Control> {
    let control = control()?;
    // SAFETY: the entry lives as long as the programs.
    let control = unsafe { &*control };
    (control.is_streaming != 0).then_some(control)
}

/// Whether a transition of this connection is streamed, where any is.
#[inline(always)]
pub(crate) fn streams(control: &Control, record: &ConnectionRecord) -> bool {
    (control.is_filtering == 0 || passes(&control.filter, record))
        && (control.is_selecting == 0 || passes(&control.streamed, record))
}

/// Whether a connection that ends is handed over.
#[inline(always)]
pub(crate) fn hands_over(record: &ConnectionRecord) -> bool {
    let Some(control) = control() else { return true };
    // SAFETY: the entry is live.
    let control = unsafe { &*control };
    control.is_filtering == 0 || passes(&control.filter, record)
}

/// A function of its own: it is off the path where there is no filter.
#[inline(never)]
fn passes(filter: &Filter, record: &ConnectionRecord) -> bool {
    filter.passes(record)
}
