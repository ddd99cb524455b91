//! Maps of the kernel side, mapped into the agent: reading them costs no system call, and the programs never
//! notice. The kernel counts all of a mapping as resident from its beginning (vm_insert_page, mm/memory.c), touched or not.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    ptr::{self, NonNull},
    slice,
    sync::atomic::AtomicU64,
};

use aya::maps::MapData;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Memory of a map that is made of words, mapped for as long as this lives. The programs write meanwhile.
pub(crate) struct Mapping {
    memory: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the memory belongs to the mapping alone, and is used through atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `words` words of an array map.
    ///
    /// # Errors
    /// If the kernel does not map them: the map is smaller, or not mappable.
    pub(crate) fn new(map: &MapData, words: usize) -> io::Result<Self> {
        Self::writable(map.fd().as_fd(), words)
    }

    /// Maps the first `words` words of what a descriptor is of.
    ///
    /// # Errors
    /// As above.
    pub(crate) fn writable(file: BorrowedFd<'_>, words: usize) -> io::Result<Self> {
        Self::map(file, ProtFlags::READ | ProtFlags::WRITE, 0, words)
    }

    /// Maps `words` words from the byte `offset` on, which is a page's first. The agent must only load them: a store ends it.
    ///
    /// # Errors
    /// As above.
    pub(crate) fn read_only(file: BorrowedFd<'_>, offset: u64, words: usize) -> io::Result<Self> {
        Self::map(file, ProtFlags::READ, offset, words)
    }

    fn map(file: BorrowedFd<'_>, protection: ProtFlags, offset: u64, words: usize) -> io::Result<Self> {
        let bytes = words * size_of::<AtomicU64>();
        // SAFETY: a new mapping at a place of the kernel's choice disturbs nobody; the kernel checks its size.
        let memory = unsafe { mmap(ptr::null_mut(), bytes, protection, MapFlags::SHARED, file, offset)? };
        let memory = NonNull::new(memory.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { memory, words })
    }

    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: so many words are mapped, aligned to a page, for as long as this lives; others only write them as the
        // atomics that they are.
        unsafe { slice::from_raw_parts(self.memory.as_ptr(), self.words) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nothing that was borrowed from the mapping outlives it.
        let _ = unsafe { munmap(self.memory.as_ptr().cast(), self.words * size_of::<AtomicU64>()) };
    }
}
