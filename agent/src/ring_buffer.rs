//! A ring buffer of the kernel side (BPF_MAP_TYPE_RINGBUF, kernel/bpf/ringbuf.c), read without system calls.
//!
//! The kernel offers its data twice in a row, so that a record that goes on at the ring's beginning lies in one piece. Both
//! count as resident memory from the start, so here they are mapped once, and each record is copied out.

use std::{
    io,
    os::fd::BorrowedFd,
    sync::atomic::{AtomicU64, Ordering, fence},
};

use rustix::param::page_size;

use crate::mapping::Mapping;

const WORD: usize = size_of::<u64>();

/// What stands before each record: its length and flags in 32 bits, and 32 that are the kernel's own
/// (BPF_RINGBUF_HDR_SZ, include/uapi/linux/bpf.h).
pub const HEADER_BYTES: usize = 8;

/// The program that reserved the record has not submitted it yet (BPF_RINGBUF_BUSY_BIT).
const BUSY: u32 = 1 << 31;

/// The program gave the record up (BPF_RINGBUF_DISCARD_BIT).
const DISCARDED: u32 = 1 << 30;

/// The one reader of a ring buffer.
pub struct RingBuffer {
    /// The page with the reader's position: bytes that were taken since the ring was made.
    taken: Mapping,
    /// The page with the writers' position, likewise, and behind it the data.
    written: Mapping,
    /// Where the data begin in it.
    first_word: usize,
    /// The data's words less one: there are a power of two of them.
    mask: usize,
    /// The reader's position, and the writers' when it was looked at last.
    at: u64,
    until: u64,
    /// The record that was taken last.
    record: Vec<u8>,
}

impl RingBuffer {
    /// Maps a ring buffer with so many bytes of data, and goes on where its last reader stopped.
    ///
    /// # Errors
    /// If the kernel does not map it: it is none, or has another size.
    pub(crate) fn map(ring: BorrowedFd<'_>, data_bytes: u32) -> io::Result<Self> {
        let data_bytes = data_bytes as usize;
        if !data_bytes.is_power_of_two() || data_bytes < page_size() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let first_word = page_size() / WORD;
        let data_words = data_bytes / WORD;
        let taken = Mapping::writable(ring, first_word)?;
        let written = Mapping::read_only(ring, page_size() as u64, first_word + data_words)?;
        let at = taken.words()[0].load(Ordering::Acquire);
        Ok(Self {
            taken,
            written,
            first_word,
            mask: data_words - 1,
            at,
            until: at,
            record: Vec::new(),
        })
    }

    /// Bytes that it has for records and what stands before them.
    pub fn data_bytes(&self) -> usize {
        (self.mask + 1) * WORD
    }

    /// Takes the next record; its room is the writers' again. `None`: there is none, or its program is still writing it.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator could not lend what it gives"
    )]
    pub fn next(&mut self) -> Option<&[u8]> {
        loop {
            if self.at == self.until {
                self.until = self.written.words()[0].load(Ordering::Acquire);
            }
            if self.at == self.until {
                return None;
            }
            // The kernel's exchange of these 32 bits, once the record is written (bpf_ringbuf_commit), comes before.
            let header = self.word(0).load(Ordering::Relaxed);
            fence(Ordering::Acquire);
            let header = header_length(header);
            if header & BUSY != 0 {
                return None;
            }
            let bytes = (header & !DISCARDED) as usize;
            let words = bytes.div_ceil(WORD);
            if header & DISCARDED == 0 {
                self.copy(bytes, words);
            }
            self.at += ((1 + words) * WORD) as u64;
            // The kernel looks at this before it gives the room away (__bpf_ringbuf_reserve).
            self.taken.words()[0].store(self.at, Ordering::Release);
            if header & DISCARDED == 0 {
                return Some(&self.record);
            }
        }
    }

    fn copy(&mut self, bytes: usize, words: usize) {
        let mut record = std::mem::take(&mut self.record);
        record.clear();
        for word in 1..=words {
            record.extend_from_slice(&self.word(word).load(Ordering::Relaxed).to_ne_bytes());
        }
        record.truncate(bytes);
        self.record = record;
    }

    /// A word from the reader's position on.
    fn word(&self, ahead: usize) -> &AtomicU64 {
        let word = (self.at as usize / WORD + ahead) & self.mask;
        &self.written.words()[self.first_word + word]
    }
}

/// The first 32 bits of a header, as they lie in memory.
fn header_length(header: u64) -> u32 {
    let [a, b, c, d, ..] = header.to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};

    use proptest::prelude::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    /// A ring as the kernel keeps one, in a file: the reader's page, the writers' page, and the data.
    struct Kernel {
        file: OwnedFd,
        memory: Mapping,
        data_bytes: usize,
        written: u64,
    }

    impl Kernel {
        fn new() -> Self {
            let data_bytes = page_size();
            let bytes = 2 * page_size() + data_bytes;
            let file = memfd_create("ring", MemfdFlags::CLOEXEC).expect("a file in memory");
            ftruncate(&file, bytes as u64).expect("its size");
            let memory = Mapping::writable(file.as_fd(), bytes / WORD).expect("its memory");
            Self {
                file,
                memory,
                data_bytes,
                written: 0,
            }
        }

        fn reader(&self) -> RingBuffer {
            RingBuffer::map(self.file.as_fd(), self.data_bytes as u32).expect("it can be mapped")
        }

        fn store(&self, at: u64, bytes: [u8; WORD]) {
            let data_word = at as usize % self.data_bytes / WORD;
            let word = 2 * page_size() / WORD + data_word;
            self.memory.words()[word].store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
        }

        /// The place of a record that was reserved; `None`: there is no room.
        fn reserve(&mut self, bytes: usize) -> Option<u64> {
            let at = self.written;
            let end = at + (HEADER_BYTES + bytes.next_multiple_of(WORD)) as u64;
            let taken = self.memory.words()[0].load(Ordering::Relaxed);
            if end - taken >= self.data_bytes as u64 {
                return None;
            }
            self.mark(at, bytes, BUSY);
            self.written = end;
            self.memory.words()[page_size() / WORD].store(end, Ordering::Relaxed);
            Some(at)
        }

        fn mark(&self, at: u64, bytes: usize, flags: u32) {
            let mut header = [0xee; WORD];
            header[..4].copy_from_slice(&(bytes as u32 | flags).to_ne_bytes());
            self.store(at, header);
        }

        fn commit(&self, at: u64, record: &[u8], flags: u32) {
            for (index, bytes) in record.chunks(WORD).enumerate() {
                // What is left of the last word is whatever was there.
                let mut word = [0xdd; WORD];
                word[..bytes.len()].copy_from_slice(bytes);
                self.store(at + (HEADER_BYTES + index * WORD) as u64, word);
            }
            self.mark(at, record.len(), flags);
        }
    }

    fn bytes_of(length: usize, salt: u8) -> Vec<u8> {
        (0..length).map(|index| salt.wrapping_add(index as u8)).collect()
    }

    proptest! {
        /// With rings of one page and records of up to a quarter of it, most sequences wrap many times, also in a record.
        #[test]
        fn what_was_submitted_is_taken_once_and_in_its_order(
            records in proptest::collection::vec((0_usize..1_000, any::<bool>(), 0_usize..4), 1..200),
        ) {
            let mut kernel = Kernel::new();
            let mut reader = kernel.reader();
            let mut expected = std::collections::VecDeque::new();
            for (salt, (length, is_discarded, taken)) in records.into_iter().enumerate() {
                let record = bytes_of(length, salt as u8);
                let at = loop {
                    if let Some(at) = kernel.reserve(length) {
                        break at;
                    }
                    prop_assert_eq!(reader.next().map(<[u8]>::to_vec), expected.pop_front());
                };
                kernel.commit(at, &record, if is_discarded { DISCARDED } else { 0 });
                if !is_discarded {
                    expected.push_back(record);
                }
                for _ in 0..taken {
                    prop_assert_eq!(reader.next().map(<[u8]>::to_vec), expected.pop_front());
                }
            }
            while let Some(record) = expected.pop_front() {
                prop_assert_eq!(reader.next().map(<[u8]>::to_vec), Some(record));
            }
            prop_assert_eq!(reader.next(), None);
            let taken = kernel.memory.words()[0].load(Ordering::Relaxed);
            prop_assert_eq!(taken, kernel.written);
        }
    }

    #[test]
    fn a_record_that_is_being_written_holds_up_those_behind_it() {
        let mut kernel = Kernel::new();
        let mut reader = kernel.reader();
        let slow = kernel.reserve(16).expect("room");
        let fast = kernel.reserve(8).expect("room");
        kernel.commit(fast, &[2; 8], 0);
        assert_eq!(reader.next(), None);
        kernel.commit(slow, &[1; 16], 0);
        assert_eq!(reader.next(), Some(&[1; 16][..]));
        assert_eq!(reader.next(), Some(&[2; 8][..]));
        assert_eq!(reader.next(), None);
    }

    #[test]
    fn the_next_reader_goes_on_where_the_last_one_stopped() {
        let mut kernel = Kernel::new();
        for record in [[1; 8], [2; 8]] {
            let at = kernel.reserve(8).expect("room");
            kernel.commit(at, &record, 0);
        }
        assert_eq!(kernel.reader().next(), Some(&[1; 8][..]));
        assert_eq!(kernel.reader().next(), Some(&[2; 8][..]));
        assert_eq!(kernel.reader().next(), None);
    }

    #[test]
    fn what_is_no_ring_is_refused() {
        let kernel = Kernel::new();
        for bytes in [0, 8, page_size() as u32 * 3] {
            assert!(RingBuffer::map(kernel.file.as_fd(), bytes).is_err(), "{bytes}");
        }
    }
}
