//! The table of open connections, by the address of their socket.
//!
//! A hash table of our own, in two arrays, because it stands on the path of every transition: the kernel's hash map
//! spends 200 ns a transition here, this one 30 (array lookups are inlined, nothing is locked, a new entry is not
//! copied). A bucket is one cache line of eight keys; the record of a key lies at the same place in the second
//! array. A key that finds its bucket full tries three more. When all are full the table refuses: it never evicts.
//!
//! A socket's transitions run under its lock, so an entry has one writer at a time; only claiming a free place races
//! with other sockets, and is one compare-and-exchange (Linux 5.12).

use core::{
    intrinsics::{AtomicOrdering::SeqCst, atomic_cxchg, atomic_xchg},
    ptr,
};

use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use holdfast_agent_ebpf::{
    event::ConnectionRecord,
    limits::{CONNECTIONS, WAYS, slots},
};

/// The keys; zero: free. Mappable, which also aligns the buckets with the cache lines.
#[map]
static SOCKETS: Array<[u64; WAYS as usize]> =
    Array::with_max_entries(slots(CONNECTIONS) / WAYS, BPF_F_MMAPABLE);

/// The records, each at the place of its key. Mappable, so that the agent can look at open connections.
#[map]
static RECORDS: Array<ConnectionRecord> = Array::with_max_entries(slots(CONNECTIONS), BPF_F_MMAPABLE);

/// Buckets less one; their number is a power of two.
#[unsafe(no_mangle)]
static BUCKET_MASK: u32 = slots(CONNECTIONS) / WAYS - 1;

/// Buckets that a key may be in. With the table at most half full, four are never all full in practice.
const PROBES: u32 = 4;

/// 2^64 divided by the golden ratio: spreads the addresses of slab objects, which differ by multiples of their size.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// The bucket of a probe: steps are odd, so that the probes of a key differ.
#[inline(always)]
fn bucket(key: u64, probe: u32) -> u32 {
    let hash = key.wrapping_mul(SPREAD);
    // SAFETY: a plain global. Volatile, or the compiler would use the value it sees here.
    let mask = unsafe { ptr::read_volatile(&raw const BUCKET_MASK) };
    ((hash >> 32) as u32).wrapping_add(probe.wrapping_mul(hash as u32 | 1)) & mask
}

/// Where a followed socket's key is.
pub(crate) struct Place(*mut u64);

impl Place {
    /// Gives the place back. The exchange is a full barrier: whoever claims it comes after our last read of the
    /// record.
    #[inline(always)]
    pub(crate) fn release(self) {
        // SAFETY: the place is in a bucket and aligned.
        unsafe { atomic_xchg::<u64, { SeqCst }>(self.0, 0) };
    }
}

/// A socket's place and its record, if it is followed.
#[inline(always)]
pub(crate) fn find(key: u64) -> Option<(Place, *mut ConnectionRecord)> {
    for probe in 0..PROBES {
        let bucket = bucket(key, probe);
        let keys = SOCKETS.get_ptr_mut(bucket)?.cast::<u64>();
        for way in 0..WAYS {
            // SAFETY: a bucket has WAYS keys.
            let place = unsafe { keys.add(way as usize) };
            // SAFETY: as above; volatile, because other sockets claim places meanwhile.
            if unsafe { ptr::read_volatile(place) } == key {
                return Some((Place(place), RECORDS.get_ptr_mut(bucket * WAYS + way)?));
            }
        }
    }
    None
}

/// A place for a socket's record, which holds what some earlier connection left there; `None` if the table is full.
#[inline(always)]
pub(crate) fn claim(key: u64) -> Option<*mut ConnectionRecord> {
    for probe in 0..PROBES {
        let bucket = bucket(key, probe);
        let keys = SOCKETS.get_ptr_mut(bucket)?.cast::<u64>();
        for way in 0..WAYS {
            // SAFETY: a bucket has WAYS keys, each aligned as a u64; both calls are single instructions of BPF.
            let claimed = unsafe {
                let place = keys.add(way as usize);
                ptr::read_volatile(place) == 0 && atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(place, 0, key).1
            };
            if claimed {
                return RECORDS.get_ptr_mut(bucket * WAYS + way);
            }
        }
    }
    None
}
