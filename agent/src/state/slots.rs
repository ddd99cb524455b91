//! A small file that can still be written when its disk is full, and that a crash never spoils: two slots, whose room
//! is taken when there is some, and which are overwritten in turn.
//!
//! The usual way, a new file that takes the name of the old one, needs room for both. (File systems that copy on write,
//! such as btrfs, need it here too.)

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

use rustix::fs::{FallocateFlags, fallocate};

/// Begins a slot; the last byte is the version of the format.
const MAGIC: [u8; 4] = *b"HFJ\x01";

/// Magic, length of the content, checksum of what is behind it, number of the write.
const HEADER_BYTES: usize = 4 + 4 + 4 + 8;

/// The checksum covers everything behind itself.
const CHECKED_FROM: usize = 12;

/// Room is taken in steps of this: what is kept here mostly fits into one, and changes its size all the time.
const ROOM_BYTES: u64 = 16 << 10;

/// The two slots, one file each.
pub(super) struct Slots {
    slots: [Slot; 2],
    /// The number of the last write. The slot of the next one is its parity.
    number: u64,
}

struct Slot {
    file: File,
    /// What can be written without asking the disk for room.
    room: u64,
}

impl Slots {
    /// Opens the slots `PATH.0` and `PATH.1`, and gives what was written last, whole; `None` if there is nothing.
    ///
    /// # Errors
    /// If the files cannot be opened. One that is full or spoiled is no error.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Option<Vec<u8>>)> {
        let mut latest: Option<(u64, Vec<u8>)> = None;
        let mut open = |parity: u64| {
            let path = path.with_extension(parity.to_string());
            if let Some((number, content)) = fs::read(&path).ok().as_deref().and_then(decode)
                && number % 2 == parity
                && latest.as_ref().is_none_or(|(last, _)| number > *last)
            {
                latest = Some((number, content));
            }
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)?;
            let mut slot = Slot { room: 0, file };
            // Without room now there may be some later; a write says so if there is none then.
            let _ = slot.take_room(ROOM_BYTES);
            Ok::<_, io::Error>(slot)
        };
        let slots = [open(0)?, open(1)?];
        let (number, content) = latest.unzip();
        let slots = Self {
            slots,
            number: number.unwrap_or(0),
        };
        Ok((slots, content))
    }

    /// Writes the content, so that it survives a loss of power. What was written before is whole until then.
    ///
    /// # Errors
    /// The disk's.
    pub(super) fn write(&mut self, content: &[u8]) -> io::Result<()> {
        let number = self.number + 1;
        let slot = &mut self.slots[(number % 2) as usize];
        let bytes = encode(number, content);
        slot.take_room(bytes.len() as u64)?;
        slot.file.write_all_at(&bytes, 0)?;
        slot.file.sync_data()?;
        self.number = number;
        Ok(())
    }
}

impl Slot {
    fn take_room(&mut self, bytes: u64) -> io::Result<()> {
        if bytes > self.room {
            let room = bytes.next_multiple_of(ROOM_BYTES);
            match fallocate(&self.file, FallocateFlags::empty(), 0, room) {
                // Where room cannot be taken beforehand, it is taken by writing.
                Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => self.room = room,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn encode(number: u64, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + content.len());
    bytes.extend(MAGIC);
    bytes.extend((content.len() as u32).to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(number.to_le_bytes());
    bytes.extend(content);
    let checksum = crc32fast::hash(&bytes[CHECKED_FROM..]);
    bytes[8..CHECKED_FROM].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// The number and the content of a slot; `None` if it was never written, or not whole.
fn decode(slot: &[u8]) -> Option<(u64, Vec<u8>)> {
    let header = slot.get(..HEADER_BYTES)?;
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    let content = slot.get(HEADER_BYTES..)?.get(..word(4) as usize)?;
    let checked = slot.get(CHECKED_FROM..HEADER_BYTES + content.len())?;
    if header[..4] != MAGIC || crc32fast::hash(checked) != word(8) {
        return None;
    }
    let number = u64::from_le_bytes(header[CHECKED_FROM..].try_into().expect("eight bytes"));
    Some((number, content.to_vec()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(path: &Path) -> Option<Vec<u8>> {
        Slots::open(path).expect("two files").1
    }

    #[test]
    fn what_was_written_last_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ledger");
        assert_eq!(read(&path), None);
        for content in [
            &b"one"[..],
            b"a second one that is longer",
            b"3",
            &[7; 40_000],
            b"",
        ] {
            let (mut slots, _) = Slots::open(&path).expect("two files");
            slots.write(content).expect("written");
            assert_eq!(read(&path).as_deref(), Some(content));
        }
    }

    #[test]
    fn a_write_that_was_cut_off_leaves_the_one_before() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ledger");
        let (mut slots, _) = Slots::open(&path).expect("two files");
        slots.write(b"first").expect("written");
        slots.write(b"second").expect("written");
        let second = fs::read(path.with_extension("0")).expect("the slot of even numbers");
        fs::write(path.with_extension("0"), &second[..HEADER_BYTES + 3]).expect("cut off");
        assert_eq!(read(&path).as_deref(), Some(&b"first"[..]));
    }

    proptest! {
        #[test]
        fn a_spoiled_slot_is_none(content in prop::collection::vec(any::<u8>(), 0..100), at in any::<prop::sample::Index>(), bit in 0..8) {
            let mut slot = encode(5, &content);
            let at = at.index(slot.len());
            slot[at] ^= 1_u8 << bit;
            prop_assert_eq!(decode(&slot), None);
        }

        #[test]
        fn no_bytes_make_it_panic(slot in prop::collection::vec(any::<u8>(), 0..100)) {
            decode(&slot);
        }
    }
}
