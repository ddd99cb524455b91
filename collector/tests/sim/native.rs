//! Reads blocks of ClickHouse's Native format, as the store of the simulation does: what the collector's encoder
//! writes is read by something that shares no code with it.

use std::collections::BTreeMap;

/// The columns of a block that a question can be asked about.
pub(crate) struct Columns {
    pub(crate) rows: usize,
    numbers: BTreeMap<String, Vec<u64>>,
    texts: BTreeMap<String, (Vec<String>, Vec<u64>)>,
}

impl Columns {
    /// A column of integers, times or enums; signed ones as their bits.
    pub(crate) fn number(&self, column: &str, row: usize) -> u64 {
        self.numbers
            .get(column)
            .unwrap_or_else(|| panic!("the block has no column {column}"))[row]
    }

    /// A column of `LowCardinality(String)`.
    pub(crate) fn text(&self, column: &str, row: usize) -> &str {
        let (dictionary, indices) = self
            .texts
            .get(column)
            .unwrap_or_else(|| panic!("the block has no column {column}"));
        &dictionary[indices[row] as usize]
    }
}

/// Reads one block whole.
///
/// # Panics
/// If it is none, or has a type that is not known here: the collector sent what the store would refuse.
pub(crate) fn read(block: &[u8]) -> Columns {
    let mut at = Cursor { block, at: 0 };
    let columns = at.varint();
    let rows = at.varint() as usize;
    let mut read = Columns {
        rows,
        numbers: BTreeMap::new(),
        texts: BTreeMap::new(),
    };
    for _ in 0..columns {
        let name = at.text();
        let kind = at.text();
        match kind.as_str() {
            "LowCardinality(String)" => {
                let column = at.low_cardinality(rows);
                read.texts.insert(name, column);
            }
            kind => {
                if let Some(numbers) = at.values(kind, rows) {
                    read.numbers.insert(name, numbers);
                }
            }
        }
    }
    assert_eq!(at.at, block.len(), "bytes behind the last column");
    read
}

struct Cursor<'a> {
    block: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn bytes(&mut self, count: usize) -> &[u8] {
        self.at += count;
        &self.block[self.at - count..self.at]
    }

    fn varint(&mut self) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = self.bytes(1)[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }

    fn text(&mut self) -> String {
        let length = self.varint() as usize;
        String::from_utf8(self.bytes(length).to_vec()).expect("texts are UTF-8")
    }

    fn numbers(&mut self, width: usize, count: usize) -> Vec<u64> {
        let number = |bytes: &[u8]| {
            let mut wide = [0; 8];
            wide[..width].copy_from_slice(bytes);
            u64::from_le_bytes(wide)
        };
        self.bytes(width * count)
            .chunks_exact(width)
            .map(number)
            .collect()
    }

    fn low_cardinality(&mut self, rows: usize) -> (Vec<String>, Vec<u64>) {
        let head = self.numbers(8, 3);
        assert_eq!(head[0], 1, "the version of dictionaries");
        let width = 1 << (head[1] & 0xff);
        let dictionary = (0..head[2]).map(|_| self.text()).collect();
        assert_eq!(self.numbers(8, 1)[0], rows as u64, "an index for each row");
        (dictionary, self.numbers(width, rows))
    }

    /// The values of a column, if they are numbers; all others are passed over.
    fn values(&mut self, kind: &str, count: usize) -> Option<Vec<u64>> {
        if let Some(inner) = kind
            .strip_prefix("Nullable(")
            .and_then(|kind| kind.strip_suffix(')'))
        {
            // First which are missing, a byte each. Those have a value all the same.
            self.bytes(count);
            return self.values(inner, count);
        }
        let width = match kind {
            "Bool" | "UInt8" | "Int8" => 1,
            "UInt16" => 2,
            "UInt32" => 4,
            "UInt64" | "Int64" => 8,
            kind if kind.starts_with("DateTime64(") => 8,
            kind if kind.starts_with("Enum8(") => 1,
            "IPv6" => {
                self.bytes(16 * count);
                return None;
            }
            "String" => {
                // Any bytes.
                for _ in 0..count {
                    let length = self.varint() as usize;
                    self.bytes(length);
                }
                return None;
            }
            kind => {
                let elements = |inner: &str| inner.to_owned();
                let inner = if let Some(inner) = kind.strip_prefix("Array(").and_then(|k| k.strip_suffix(')'))
                {
                    vec![elements(inner)]
                } else if kind == "Map(String, String)" {
                    vec!["String".into(), "String".into()]
                } else {
                    panic!("a column of {kind}, which no table has")
                };
                let ends = self.numbers(8, count);
                let elements = ends.last().map_or(0, |&end| end as usize);
                for kind in inner {
                    self.values(&kind, elements);
                }
                return None;
            }
        };
        Some(self.numbers(width, count))
    }
}
