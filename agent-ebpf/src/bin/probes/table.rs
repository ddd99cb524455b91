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
    event::{ConnectionRecord, notice},
    limits::{CONNECTIONS, REGION, WAYS, regions, slots},
};

/// The keys; zero: free. Mappable, which also aligns the buckets with the cache lines.
#[map]
static SOCKETS: Array<[u64; WAYS as usize]> =
    Array::with_max_entries(slots(CONNECTIONS) / WAYS, BPF_F_MMAPABLE);

/// The records, each at the place of its key. Not mappable: the agent would have all of it in its memory.
#[map]
static RECORDS: Array<ConnectionRecord> = Array::with_max_entries(slots(CONNECTIONS), 0);

/// What the agent looks for, likewise (see [`notice`]). Mappable: it looks often, and takes announcements.
#[map]
static NOTICES: Array<u64> = Array::with_max_entries(slots(CONNECTIONS), BPF_F_MMAPABLE);

/// Not zero: a notice of this region was written since the agent looked last. Mappable: it takes that back. Read far more
/// often than it is written, so that CPUs do not fight for it.
#[map]
static NEWS: Array<u64> = Array::with_max_entries(regions(slots(CONNECTIONS)), BPF_F_MMAPABLE);

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

/// Where a followed socket is.
pub(crate) struct Place {
    key: *mut u64,
    /// In the other two arrays.
    index: u32,
}

impl Place {
    /// Tells the agent of the connection; it reads the record when it finds this. It looks at connections of a certain age
    /// only, so that a plain store is enough on every machine.
    #[inline(always)]
    pub(crate) fn notify(&self, notice: u64) {
        if let Some(place) = NOTICES.get_ptr_mut(self.index) {
            // SAFETY: the entry is live and aligned.
            unsafe { ptr::write_volatile(place, notice) };
        }
        if let Some(news) = NEWS.get_ptr_mut(self.index / REGION) {
            // SAFETY: the entry is live and aligned. What is read may be what the agent is just taking back, without the notice
            // having reached it: it looks once more later (Table::announce).
            unsafe {
                if ptr::read_volatile(news) == 0 {
                    ptr::write_volatile(news, 1);
                }
            }
        }
    }

    /// Takes back what the agent was told, and tells whether that was a connection that nobody has announced.
    #[inline(always)]
    pub(crate) fn take_announcement(&self) -> bool {
        NOTICES.get_ptr_mut(self.index).is_some_and(|place| {
            // SAFETY: the entry is live and aligned; one instruction of BPF.
            notice::is_unannounced(unsafe { atomic_xchg::<u64, { SeqCst }>(place, 0) })
        })
    }

    /// Gives the place back. The exchange is a full barrier: whoever claims it comes after our last read of the
    /// record.
    #[inline(always)]
    pub(crate) fn release(self) {
        // SAFETY: the place is in a bucket and aligned.
        unsafe { atomic_xchg::<u64, { SeqCst }>(self.key, 0) };
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
                let index = bucket * WAYS + way;
                return Some((Place { key: place, index }, RECORDS.get_ptr_mut(index)?));
            }
        }
    }
    None
}

/// The record of a socket, null if it is not followed. A function of its own, of whose ways the verifier forgets where the
/// record lies once it returns: what comes after it is followed once, not once for each place that a key can have.
#[inline(never)]
pub(crate) fn record(key: u64) -> *mut ConnectionRecord {
    match find(key) {
        Some((_, record)) => record,
        None => ptr::null_mut(),
    }
}

/// Gives the place of a socket back.
#[inline(never)]
pub(crate) fn release(key: u64) {
    if let Some((place, _)) = find(key) {
        place.release();
    }
}

/// A place for a socket that opens.
pub(crate) struct Claim {
    pub(crate) place: Place,
    /// Holds what some earlier connection left there.
    pub(crate) record: *mut ConnectionRecord,
    /// The socket had an entry already: the end of its last connection was missed.
    pub(crate) is_again: bool,
}

/// Finds a place for a socket; `None` if the table is full.
#[inline(always)]
pub(crate) fn claim(key: u64) -> Option<Claim> {
    for probe in 0..PROBES {
        let bucket = bucket(key, probe);
        let keys = SOCKETS.get_ptr_mut(bucket)?.cast::<u64>();
        for way in 0..WAYS {
            // SAFETY: a bucket has WAYS keys, each aligned as a u64; both calls are single instructions of BPF.
            let place = unsafe { keys.add(way as usize) };
            // SAFETY: as above.
            let (found, is_ours) = unsafe {
                let found = ptr::read_volatile(place);
                let is_ours = found == key
                    || (found == 0 && atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(place, 0, key).1);
                (found, is_ours)
            };
            if is_ours {
                let index = bucket * WAYS + way;
                return Some(Claim {
                    place: Place { key: place, index },
                    record: RECORDS.get_ptr_mut(index)?,
                    is_again: found == key,
                });
            }
        }
    }
    None
}
