//! Byte offsets of kernel members, from the BTF that the running kernel describes itself with.
//!
//! This stands where CO-RE would: the programs carry no relocations (the Rust BPF toolchain emits none), so the
//! agent resolves each member of [`PATHS`] once, at start, and passes the offsets in a frozen global. The format
//! is Documentation/bpf/btf.rst; only structures, unions, what leads to them, and enumerations are looked at.

use std::{collections::HashMap, path::Path};

use holdfast_agent_ebpf::offset::{ABSENT, MEMBERS, PATHS};

/// Where the kernel offers its BTF (since 5.4, with CONFIG_DEBUG_INFO_BTF).
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Why BTF could not be read.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    #[error("cannot read {path}: the kernel needs CONFIG_DEBUG_INFO_BTF, and /sys must be mounted")]
    Missing { path: String, source: std::io::Error },
    #[error("malformed BTF at byte {at}: {what}")]
    Malformed { at: usize, what: &'static str },
}

/// The structures and unions of a kernel.
pub struct Btf {
    data: Vec<u8>,
    strings: usize,
    /// Where each type begins in `data`; type 0 is `void` and has no place.
    types: Vec<usize>,
    by_name: HashMap<Vec<u8>, Vec<u32>>,
}

mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// Bytes of the part that all types share.
const TYPE_BYTES: usize = 12;
/// Bytes of one member of a structure.
const MEMBER_BYTES: usize = 12;

impl Btf {
    /// Reads the running kernel's.
    ///
    /// # Errors
    /// [`BtfError::Missing`] if the kernel offers none, [`BtfError::Malformed`] if it is not understood.
    pub fn of_this_kernel() -> Result<Self, BtfError> {
        Self::read(Path::new(VMLINUX))
    }

    /// Reads BTF from a file.
    ///
    /// # Errors
    /// As [`Btf::of_this_kernel`].
    pub fn read(path: &Path) -> Result<Self, BtfError> {
        let data = std::fs::read(path).map_err(|source| BtfError::Missing {
            path: path.display().to_string(),
            source,
        })?;
        Self::parse(data)
    }

    /// Indexes the structures and unions of raw BTF.
    ///
    /// # Errors
    /// [`BtfError::Malformed`] with the place.
    pub fn parse(data: Vec<u8>) -> Result<Self, BtfError> {
        const MAGIC: u32 = 0xeb9f;
        if word(&data, 0)? & 0xffff != MAGIC {
            return Err(BtfError::Malformed {
                at: 0,
                what: "not BTF in this machine's byte order",
            });
        }
        let header = word(&data, 4)? as usize;
        let begin = header.saturating_add(word(&data, 8)? as usize);
        let end = begin.saturating_add(word(&data, 12)? as usize);
        let strings = header.saturating_add(word(&data, 16)? as usize);
        if end > data.len() || strings > data.len() {
            return Err(BtfError::Malformed {
                at: 8,
                what: "a section lies outside the data",
            });
        }

        let mut btf = Self {
            data,
            strings,
            types: vec![0],
            by_name: HashMap::new(),
        };
        let mut at = begin;
        while at < end {
            let (name, info) = (word(&btf.data, at)?, word(&btf.data, at + 4)?);
            if matches!(kind_of(info), kind::STRUCT | kind::UNION | kind::ENUM) && name != 0 {
                let id = btf.types.len() as u32;
                let name = btf.string(name).to_vec();
                btf.by_name.entry(name).or_default().push(id);
            }
            btf.types.push(at);
            at += TYPE_BYTES
                + tail_bytes(info).ok_or(BtfError::Malformed {
                    at,
                    what: "a kind of type that is unknown",
                })?;
        }
        Ok(btf)
    }

    /// The byte offset of a member of the structure `name`, through a path of member names. `None` if this kernel
    /// has no such structure or member.
    pub fn offset(&self, name: &str, path: &[&str]) -> Option<u32> {
        let candidates = self.by_name.get(name.as_bytes())?;
        candidates
            .iter()
            .find_map(|&id| self.walk(id, path))
            .map(|bits| bits / 8)
    }

    /// The offsets of all members that the programs read, [`ABSENT`] for those that this kernel lacks.
    pub fn offsets(&self) -> [u32; MEMBERS] {
        PATHS.map(|(name, path)| self.offset(name, path).unwrap_or(ABSENT))
    }

    /// The number that a name stands for in the enumeration `name`.
    pub fn enumerator(&self, name: &str, enumerator: &str) -> Option<u32> {
        /// Bytes of one name and number.
        const BYTES: usize = 8;
        let ids = self.by_name.get(name.as_bytes())?;
        ids.iter().find_map(|&id| {
            let at = *self.types.get(id as usize)?;
            let info = word(&self.data, at + 4).ok()?;
            let count = if kind_of(info) == kind::ENUM {
                vlen(info)
            } else {
                0
            };
            (0..count).find_map(|index| {
                let place = at + TYPE_BYTES + BYTES * index;
                let is_it = self.string(word(&self.data, place).ok()?) == enumerator.as_bytes();
                is_it.then(|| word(&self.data, place + 4).ok())?
            })
        })
    }

    fn walk(&self, start: u32, path: &[&str]) -> Option<u32> {
        let (mut id, mut bits) = (start, 0);
        for name in path {
            if let Ok(element) = name.parse::<u32>() {
                bits += element * u64::BITS;
                continue;
            }
            let (offset, member) = self.member(id, name.as_bytes(), 0)?;
            bits += offset;
            id = member;
        }
        Some(bits)
    }

    /// Bit offset and type of a member; looks through anonymous members.
    fn member(&self, id: u32, name: &[u8], depth: u32) -> Option<(u32, u32)> {
        // The kernel nests anonymous members three or four deep; this only stops a loop in malformed data.
        if depth > 16 {
            return None;
        }
        let at = *self.types.get(self.strip(id)? as usize)?;
        let info = word(&self.data, at + 4).ok()?;
        if !matches!(kind_of(info), kind::STRUCT | kind::UNION) {
            return None;
        }
        let has_bitfields = info >> 31 == 1;
        for index in 0..vlen(info) {
            let member = at + TYPE_BYTES + MEMBER_BYTES * index;
            let (member_name, member_type) =
                (word(&self.data, member).ok()?, word(&self.data, member + 4).ok()?);
            let mut offset = word(&self.data, member + 8).ok()?;
            if has_bitfields {
                // The upper byte is the width of a bit field.
                offset &= 0x00ff_ffff;
            }
            if member_name == 0 {
                if let Some((inner, found)) = self.member(member_type, name, depth + 1) {
                    return Some((offset + inner, found));
                }
            } else if self.string(member_name) == name {
                return Some((offset, member_type));
            }
        }
        None
    }

    /// Looks through typedefs and qualifiers.
    fn strip(&self, mut id: u32) -> Option<u32> {
        for _ in 0..32 {
            let at = *self.types.get(id as usize)?;
            if id == 0 {
                return None;
            }
            match kind_of(word(&self.data, at + 4).ok()?) {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = word(&self.data, at + 8).ok()?;
                }
                _ => return Some(id),
            }
        }
        None
    }

    fn string(&self, offset: u32) -> &[u8] {
        let tail = self
            .data
            .get(self.strings + offset as usize..)
            .unwrap_or_default();
        let end = tail.iter().position(|&byte| byte == 0).unwrap_or(tail.len());
        &tail[..end]
    }
}

/// Bytes that follow the common part of a type; `None` if the kind is unknown.
fn tail_bytes(info: u32) -> Option<usize> {
    let vlen = vlen(info);
    Some(match kind_of(info) {
        kind::INT | kind::VAR | kind::DECL_TAG => 4,
        kind::ARRAY => 12,
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * vlen,
        kind::ENUM | kind::FUNC_PROTO => 8 * vlen,
        // Pointers, forward declarations, qualifiers, functions and floats have none.
        2 | 7..=12 | 16 | kind::TYPE_TAG => 0,
        _ => return None,
    })
}

fn kind_of(info: u32) -> u32 {
    (info >> 24) & 0x1f
}

fn vlen(info: u32) -> usize {
    (info & 0xffff) as usize
}

fn word(data: &[u8], at: usize) -> Result<u32, BtfError> {
    let bytes = data.get(at..at + 4).ok_or(BtfError::Malformed {
        at,
        what: "the data ends in the middle",
    })?;
    Ok(u32::from_ne_bytes(bytes.try_into().expect("four bytes")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn this_kernel_has_every_member_that_the_programs_read() {
        let btf = Btf::of_this_kernel().expect("BTF");
        for (name, path) in PATHS {
            assert!(
                btf.offset(name, path).is_some(),
                "no member {name}.{}",
                path.join(".")
            );
        }
    }

    #[test]
    fn an_enumeration_tells_its_numbers() {
        let btf = Btf::of_this_kernel().expect("BTF");
        // Two that never change: they are the protocol's and the interface's.
        assert_eq!(btf.enumerator("bpf_map_type", "BPF_MAP_TYPE_HASH"), Some(1));
        assert_eq!(btf.enumerator("bpf_map_type", "BPF_MAP_TYPE_RINGBUF"), Some(27));
        assert_eq!(btf.enumerator("bpf_map_type", "NO_SUCH_NAME"), None);
        assert_eq!(btf.enumerator("sock", "BPF_MAP_TYPE_HASH"), None);
    }

    #[test]
    fn a_member_that_does_not_exist_is_absent() {
        let btf = Btf::of_this_kernel().expect("BTF");
        assert_eq!(btf.offset("sock", &["no_such_member"]), None);
        assert_eq!(btf.offset("no_such_structure", &["sk_err"]), None);
        // A path through something that is no structure.
        assert_eq!(btf.offset("sock", &["sk_err", "deeper"]), None);
    }

    #[test]
    fn a_file_that_is_not_btf_is_refused() {
        assert!(matches!(
            Btf::parse(b"\x7fELF____________________".to_vec()),
            Err(BtfError::Malformed { at: 0, .. })
        ));
    }

    proptest! {
        #[test]
        fn malformed_btf_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            if bytes.len() > 24 {
                bytes[..4].copy_from_slice(&[0x9f, 0xeb, 1, 0]);
                bytes[4..8].copy_from_slice(&24_u32.to_ne_bytes());
                for place in [8, 12, 16, 20] {
                    bytes[place + 1..place + 4].fill(0);
                }
            }
            if let Ok(btf) = Btf::parse(bytes) {
                let _ = btf.offsets();
            }
        }
    }
}
