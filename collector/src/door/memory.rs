//! What all questions together take: the memory of each, from its first byte until the answer is whole or nobody waits for it.
//!
//! It is counted before a question is read, so by what the worst one of its kind comes to.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A question that takes so many bytes is a small one: for these a quarter is left by all others.
const SMALL_BYTES: usize = 64 << 10;

/// What a question takes for each of its bytes: as it came, as the text in it, and as the text that the store is asked.
const OF_TEXT: usize = 3;

/// The same of a question with lists: an entry of two empty texts has two bytes as it comes and 48 in memory.
const OF_LISTS: usize = 25;

/// The questions without lists.
const WITHOUT_LISTS: [&str; 17] = [
    "Sql",
    "Connections",
    "Transitions",
    "Listeners",
    "Nodes",
    "Ledger",
    "Syscalls",
    "Probes",
    "Runs",
    "StopRun",
    "Causes",
    "Overhead",
    "Verdicts",
    "Explain",
    "Notifications",
    "Silences",
    "Suggest",
];

/// What a question at this path (`/holdfast.v1.Query/Sql`) takes at most for each of its bytes.
fn expansion(path: &str) -> usize {
    let method = path.rsplit('/').next().unwrap_or_default();
    match WITHOUT_LISTS.contains(&method) {
        true => OF_TEXT,
        false => OF_LISTS,
    }
}

/// The memory of questions.
#[derive(Debug)]
pub struct Memory {
    bytes: usize,
    held: AtomicUsize,
}

impl Memory {
    /// All questions together take so many bytes at most.
    pub fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            bytes,
            held: AtomicUsize::new(0),
        })
    }

    /// For the question at this path.
    pub(super) fn hold(self: &Arc<Self>, path: &str) -> Held {
        Held {
            memory: self.clone(),
            expansion: expansion(path),
            bytes: AtomicUsize::new(0),
        }
    }
}

/// What one question takes of it, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    memory: Arc<Memory>,
    expansion: usize,
    bytes: AtomicUsize,
}

impl Held {
    /// So many bytes more have come. False, and nothing more is held, if there is no room for what they come to.
    pub(super) fn take(&self, bytes: usize) -> bool {
        let bytes = bytes.saturating_mul(self.expansion);
        let whole = self.memory.bytes;
        let is_small = self.bytes.load(Ordering::Relaxed) + bytes <= SMALL_BYTES;
        let most = if is_small { whole } else { whole / 4 * 3 };
        let taken = self
            .memory
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
                held.checked_add(bytes).filter(|held| *held <= most)
            });
        if taken.is_ok() {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        taken.is_ok()
    }

    /// What is above `bytes` of memory was read and is needed no more.
    pub(super) fn shrink_to(&self, bytes: usize) {
        let before = self.bytes.fetch_min(bytes, Ordering::Relaxed);
        self.memory
            .held
            .fetch_sub(before.saturating_sub(bytes), Ordering::Relaxed);
    }

    /// Memory that it takes now.
    pub(super) fn held_bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::Path;

    use holdfast_proto::v1::{AssertionFile, LoadHttpField, LoadStage, LoadStatuses};
    use protox::prost_reflect::{Kind, MessageDescriptor};

    use super::*;

    /// A question of plain text.
    const SQL: &str = "/holdfast.v1.Query/Sql";

    /// Adds the kinds of entries of the lists in a message.
    fn lists(message: &MessageDescriptor, seen: &mut HashSet<String>, entries: &mut HashSet<String>) {
        if !seen.insert(message.full_name().to_owned()) {
            return;
        }
        for field in message.fields() {
            let entry = match field.kind() {
                Kind::Message(entry) => {
                    lists(&entry, seen, entries);
                    entry.name().to_owned()
                }
                kind => format!("{kind:?}"),
            };
            if field.is_list() || field.is_map() {
                entries.insert(entry);
            }
        }
    }

    #[test]
    fn a_question_with_lists_counts_for_what_its_smallest_entries_come_to() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/proto");
        let files = protox::compile(["holdfast/v1.proto"], [root]).unwrap();
        let pool = protox::prost_reflect::DescriptorPool::from_file_descriptor_set(files).unwrap();
        let query = pool.get_service_by_name("holdfast.v1.Query").unwrap();
        let mut entries = HashSet::new();
        for method in query.methods() {
            let mut of_this = HashSet::new();
            lists(&method.input(), &mut HashSet::new(), &mut of_this);
            let expected = if of_this.is_empty() { OF_TEXT } else { OF_LISTS };
            let path = format!("/holdfast.v1.Query/{}", method.name());
            assert_eq!(expansion(&path), expected, "{path}: {of_this:?}");
            entries.extend(of_this);
        }
        // An entry has two bytes at least, its number and its length; one of a map needs a key of its own. They count as they came,
        // too.
        for entry in entries {
            let bytes = match &*entry {
                "string" => size_of::<String>(),
                "AssertionFile" => size_of::<AssertionFile>(),
                "LoadHttpField" => size_of::<LoadHttpField>(),
                "LoadStage" => size_of::<LoadStage>(),
                "LoadStatuses" => size_of::<LoadStatuses>(),
                map if map.ends_with("Entry") => continue,
                other => panic!("how large is an entry of {other}?"),
            };
            assert!(bytes.div_ceil(2) < OF_LISTS, "{entry}: {bytes}");
        }
    }

    #[test]
    fn all_together_take_no_more_than_there_is_and_give_it_back() {
        let memory = Memory::new(8 * SMALL_BYTES);
        let small_bytes = SMALL_BYTES / OF_TEXT;
        let large = memory.hold(SQL);
        assert!(large.take(6 * small_bytes));
        // The rest is for small ones.
        let other = memory.hold(SQL);
        assert!(!large.take(OF_TEXT) && !other.take(small_bytes + 1));
        let small: Vec<Held> = (0..2).map(|_| memory.hold(SQL)).collect();
        assert!(small.iter().all(|held| held.take(small_bytes)));
        assert!(!other.take(OF_TEXT));
        large.shrink_to(SMALL_BYTES);
        assert!(other.take(small_bytes + 1));
        // What has lists takes more for as many bytes.
        let check = memory.hold("/holdfast.v1.Query/Check");
        assert!(check.take(100));
        assert_eq!(check.held_bytes(), 100 * OF_LISTS);
        drop((large, other, small, check));
        assert_eq!(memory.held.load(Ordering::Relaxed), 0);
    }
}
