//! Encodes blocks of rows in ClickHouse's Native format, column by column, straight from slices.
//!
//! On the data path this stands between `ingest`, which has columns, and `Store::insert`, which takes a [`Block`].
//! A block is built against the declaration of its [`Table`]: a column that is missing, out of order, of another
//! type or of another length is an error that names it, so a block that was built is one that the table accepts.
//!
//! The format: the number of columns and of rows, then per column its name, its type and its values. Source:
//! ClickHouse, src/Formats/NativeWriter.cpp and src/DataTypes/Serializations.

use bytes::Bytes;

use super::Block;

/// A physical table, as far as inserts are concerned.
#[derive(Debug)]
pub struct Table {
    pub name: &'static str,
    pub columns: &'static [Column],
    /// The names of `columns`, in the same order; see [`names`].
    pub column_names: &'static [&'static str],
}

/// A column of a [`Table`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: &'static str,
    pub kind: Kind,
}

/// The type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bool,
    UInt8,
    UInt16,
    UInt32,
    UInt64,
    Int64,
    Float64,
    /// A number, or none.
    NullableUInt32,
    NullableUInt64,
    /// Names and their values.
    Enum8(&'static [(&'static str, i8)]),
    /// Nanoseconds since the Unix epoch, UTC.
    DateTime64,
    IPv6,
    String,
    /// A string out of few: a dictionary for each block, and an index for each row.
    LowCardinality,
    ArrayIPv6,
    ArrayUInt16,
    ArrayUInt32,
    ArrayUInt64,
    ArrayString,
    /// Keys and values out of few.
    StringMap,
}

impl Kind {
    /// The type in a table's declaration.
    pub fn sql(self) -> String {
        match self {
            Self::Enum8(names) => {
                let names: Vec<_> = names
                    .iter()
                    .map(|(name, value)| format!("'{name}' = {value}"))
                    .collect();
                format!("Enum8({})", names.join(", "))
            }
            Self::Bool => "Bool".into(),
            Self::UInt8 => "UInt8".into(),
            Self::UInt16 => "UInt16".into(),
            Self::UInt32 => "UInt32".into(),
            Self::UInt64 => "UInt64".into(),
            Self::Int64 => "Int64".into(),
            Self::Float64 => "Float64".into(),
            Self::NullableUInt32 => "Nullable(UInt32)".into(),
            Self::NullableUInt64 => "Nullable(UInt64)".into(),
            Self::DateTime64 => "DateTime64(9, 'UTC')".into(),
            Self::IPv6 => "IPv6".into(),
            Self::String => "String".into(),
            Self::LowCardinality => "LowCardinality(String)".into(),
            Self::ArrayIPv6 => "Array(IPv6)".into(),
            Self::ArrayUInt16 => "Array(UInt16)".into(),
            Self::ArrayUInt32 => "Array(UInt32)".into(),
            Self::ArrayUInt64 => "Array(UInt64)".into(),
            Self::ArrayString => "Array(String)".into(),
            Self::StringMap => "Map(LowCardinality(String), LowCardinality(String))".into(),
        }
    }

    /// The type in a block. ClickHouse converts where the table's differs: a map with dictionaries of its own would
    /// be more bytes than the few maps that are sent.
    fn wire(self) -> String {
        match self {
            Self::StringMap => "Map(String, String)".into(),
            kind => kind.sql(),
        }
    }
}

/// The names of columns, for [`Table::column_names`].
pub const fn names<const N: usize>(columns: &[Column; N]) -> [&'static str; N] {
    let mut names = [""; N];
    let mut at = 0;
    while at < N {
        names[at] = columns[at].name;
        at += 1;
    }
    names
}

/// Why a block cannot be built: the code that builds it and the table's declaration disagree.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BlockError {
    #[error("table {table}: expected column {expected}, got {got}")]
    Order {
        table: &'static str,
        expected: &'static str,
        got: String,
    },
    #[error("table {table}: column {column} is {declared}, got {got}")]
    Type {
        table: &'static str,
        column: &'static str,
        declared: String,
        got: &'static str,
    },
    #[error("table {table}: column {column} has {got} rows, the block has {rows}")]
    Rows {
        table: &'static str,
        column: &'static str,
        rows: usize,
        got: usize,
    },
    #[error("table {table}: row {row} of column {column}: {value} is none of its values")]
    Value {
        table: &'static str,
        column: &'static str,
        row: usize,
        value: i64,
    },
    #[error("table {table}: row {row} of column {column}: index {index} into a dictionary of {entries}")]
    Index {
        table: &'static str,
        column: &'static str,
        row: usize,
        index: u32,
        entries: usize,
    },
    #[error("table {table}: arrays of column {column} need {needed} elements, got {got}")]
    Elements {
        table: &'static str,
        column: &'static str,
        needed: usize,
        got: usize,
    },
    #[error("table {table}: a block without rows")]
    Empty { table: &'static str },
}

/// Builds one block. Columns are added in the order of the table's declaration, each whole.
#[derive(Debug)]
pub struct BlockBuilder {
    table: &'static Table,
    rows: usize,
    /// Columns that are in `native`.
    done: usize,
    native: Vec<u8>,
}

/// Bytes a row that are reserved; a row of the widest table takes about 150.
const RESERVED_BYTES_PER_ROW: usize = 160;

/// LowCardinality in Native (src/DataTypes/Serializations/SerializationLowCardinality.cpp): shared dictionaries with
/// additional keys, version 1; each block brings its keys itself (bit 9) and replaces earlier ones (bit 10).
const DICTIONARY_VERSION: u64 = 1;
const DICTIONARY_FLAGS: u64 = 1 << 9 | 1 << 10;

impl BlockBuilder {
    pub fn new(table: &'static Table, rows: usize) -> Result<Self, BlockError> {
        if rows == 0 {
            return Err(BlockError::Empty { table: table.name });
        }
        let mut native = Vec::with_capacity(rows * RESERVED_BYTES_PER_ROW + 64 * table.columns.len());
        write_varint(&mut native, table.columns.len() as u64);
        write_varint(&mut native, rows as u64);
        Ok(Self {
            table,
            rows,
            done: 0,
            native,
        })
    }

    pub fn bools(&mut self, name: &str, values: &[bool]) -> Result<(), BlockError> {
        self.begin(name, values.len(), "Bool", |kind| kind == Kind::Bool)?;
        self.native.extend(values.iter().map(|&value| u8::from(value)));
        Ok(())
    }

    pub fn u8s(&mut self, name: &str, values: &[u8]) -> Result<(), BlockError> {
        self.begin(name, values.len(), "UInt8", |kind| kind == Kind::UInt8)?;
        self.native.extend_from_slice(values);
        Ok(())
    }

    pub fn u16s(&mut self, name: &str, values: &[u16]) -> Result<(), BlockError> {
        self.begin(name, values.len(), "UInt16", |kind| kind == Kind::UInt16)?;
        write_le(&mut self.native, values, u16::to_le_bytes);
        Ok(())
    }

    pub fn u32s(&mut self, name: &str, values: &[u32]) -> Result<(), BlockError> {
        self.begin(name, values.len(), "UInt32", |kind| kind == Kind::UInt32)?;
        write_u32s(&mut self.native, values);
        Ok(())
    }

    pub fn u64s(&mut self, name: &str, values: &[u64]) -> Result<(), BlockError> {
        self.begin(name, values.len(), "UInt64", |kind| kind == Kind::UInt64)?;
        write_u64s(&mut self.native, values);
        Ok(())
    }

    /// A mark for each that is none, then the numbers (SerializationNullable.cpp).
    pub fn nullable_u32s(&mut self, name: &str, values: &[Option<u32>]) -> Result<(), BlockError> {
        let is_ours = |kind| kind == Kind::NullableUInt32;
        self.begin(name, values.len(), "Nullable(UInt32)", is_ours)?;
        self.native
            .extend(values.iter().map(|value| u8::from(value.is_none())));
        write_le(&mut self.native, values, |value| value.unwrap_or(0).to_le_bytes());
        Ok(())
    }

    /// Likewise.
    pub fn nullable_u64s(&mut self, name: &str, values: &[Option<u64>]) -> Result<(), BlockError> {
        let is_ours = |kind| kind == Kind::NullableUInt64;
        self.begin(name, values.len(), "Nullable(UInt64)", is_ours)?;
        self.native
            .extend(values.iter().map(|value| u8::from(value.is_none())));
        write_le(&mut self.native, values, |value| value.unwrap_or(0).to_le_bytes());
        Ok(())
    }

    pub fn i64s(&mut self, name: &str, values: &[i64]) -> Result<(), BlockError> {
        self.begin(name, values.len(), "Int64", |kind| kind == Kind::Int64)?;
        write_i64s(&mut self.native, values);
        Ok(())
    }

    pub fn f64s(&mut self, name: &str, values: &[f64]) -> Result<(), BlockError> {
        self.begin(name, values.len(), "Float64", |kind| kind == Kind::Float64)?;
        write_le(&mut self.native, values, f64::to_le_bytes);
        Ok(())
    }

    /// Nanoseconds since the Unix epoch.
    pub fn datetimes(&mut self, name: &str, values: &[i64]) -> Result<(), BlockError> {
        self.begin(name, values.len(), "DateTime64", |kind| kind == Kind::DateTime64)?;
        write_i64s(&mut self.native, values);
        Ok(())
    }

    /// Values that the enum does not declare are an error: ClickHouse would store them and fail when it reads them.
    pub fn enums(&mut self, name: &str, values: &[i8]) -> Result<(), BlockError> {
        let column = self.check(name, values.len(), "Enum8", |kind| matches!(kind, Kind::Enum8(_)))?;
        let Kind::Enum8(declared) = column.kind else {
            unreachable!("begin checked the type")
        };
        let mut known = [false; 256];
        for &(_, value) in declared {
            known[usize::from(value.cast_unsigned())] = true;
        }
        if let Some(row) = values
            .iter()
            .position(|value| !known[usize::from(value.cast_unsigned())])
        {
            let value = i64::from(values[row]);
            return Err(BlockError::Value {
                table: self.table.name,
                column: column.name,
                row,
                value,
            });
        }
        self.write_head(column);
        self.native
            .extend(values.iter().map(|value| value.cast_unsigned()));
        Ok(())
    }

    /// In network order, IPv4 as ::ffff:a.b.c.d.
    pub fn ipv6s(&mut self, name: &str, values: &[[u8; 16]]) -> Result<(), BlockError> {
        self.begin(name, values.len(), "IPv6", |kind| kind == Kind::IPv6)?;
        self.native.extend_from_slice(values.as_flattened());
        Ok(())
    }

    pub fn strings<S: AsRef<str>>(&mut self, name: &str, values: &[S]) -> Result<(), BlockError> {
        self.begin(name, values.len(), "String", |kind| kind == Kind::String)?;
        for value in values {
            write_string(&mut self.native, value.as_ref());
        }
        Ok(())
    }

    /// Strings that need not be text.
    pub fn blobs(&mut self, name: &str, values: &[&[u8]]) -> Result<(), BlockError> {
        self.begin(name, values.len(), "String", |kind| kind == Kind::String)?;
        for value in values {
            write_varint(&mut self.native, value.len() as u64);
            self.native.extend_from_slice(value);
        }
        Ok(())
    }

    /// `indices` has a row's place in `dictionary`. Entries that no row uses cost their bytes, nothing else.
    pub fn low_cardinality<S: AsRef<str>>(
        &mut self,
        name: &str,
        dictionary: &[S],
        indices: &[u32],
    ) -> Result<(), BlockError> {
        let column = self.check(name, indices.len(), "LowCardinality", |kind| {
            kind == Kind::LowCardinality
        })?;
        let entries = dictionary.len();
        if let Some(row) = indices.iter().position(|&index| index as usize >= entries) {
            let (table, index) = (self.table.name, indices[row]);
            return Err(BlockError::Index {
                table,
                column: column.name,
                row,
                index,
                entries,
            });
        }
        self.write_head(column);
        let (width, log2_width) = match entries {
            ..=0x100 => (1, 0),
            0x101..=0x1_0000 => (2, 1),
            _ => (4, 2),
        };
        write_u64s(
            &mut self.native,
            &[DICTIONARY_VERSION, DICTIONARY_FLAGS | log2_width, entries as u64],
        );
        for entry in dictionary {
            write_string(&mut self.native, entry.as_ref());
        }
        write_u64s(&mut self.native, &[indices.len() as u64]);
        // An index fits its width, since it is below the number of entries.
        match width {
            1 => self
                .native
                .extend(indices.iter().map(|index| index.to_le_bytes()[0])),
            2 => write_le(&mut self.native, indices, |index| {
                let [low, high, ..] = index.to_le_bytes();
                [low, high]
            }),
            _ => write_u32s(&mut self.native, indices),
        }
        Ok(())
    }

    /// One value for all rows.
    pub fn low_cardinality_constant(&mut self, name: &str, value: &str) -> Result<(), BlockError> {
        self.low_cardinality(name, &[value], &vec![0; self.rows])
    }

    /// `ends` has, for each row, where its array ends in `elements`; the next one begins there.
    pub fn u16_arrays(&mut self, name: &str, ends: &[u64], elements: &[u16]) -> Result<(), BlockError> {
        let column = self.check(name, ends.len(), "Array(UInt16)", |kind| {
            kind == Kind::ArrayUInt16
        })?;
        self.check_ends(column, ends, elements.len())?;
        self.write_head(column);
        write_u64s(&mut self.native, ends);
        write_le(&mut self.native, elements, u16::to_le_bytes);
        Ok(())
    }

    /// As [`Self::u16_arrays`].
    pub fn ipv6_arrays(&mut self, name: &str, ends: &[u64], elements: &[[u8; 16]]) -> Result<(), BlockError> {
        let column = self.check(name, ends.len(), "Array(IPv6)", |kind| kind == Kind::ArrayIPv6)?;
        self.check_ends(column, ends, elements.len())?;
        self.write_head(column);
        write_u64s(&mut self.native, ends);
        self.native.extend_from_slice(elements.as_flattened());
        Ok(())
    }

    /// As [`Self::u16_arrays`].
    pub fn u32_arrays(&mut self, name: &str, ends: &[u64], elements: &[u32]) -> Result<(), BlockError> {
        let column = self.check(name, ends.len(), "Array(UInt32)", |kind| {
            kind == Kind::ArrayUInt32
        })?;
        self.check_ends(column, ends, elements.len())?;
        self.write_head(column);
        write_u64s(&mut self.native, ends);
        write_u32s(&mut self.native, elements);
        Ok(())
    }

    /// As [`Self::u16_arrays`].
    pub fn u64_arrays(&mut self, name: &str, ends: &[u64], elements: &[u64]) -> Result<(), BlockError> {
        let column = self.check(name, ends.len(), "Array(UInt64)", |kind| {
            kind == Kind::ArrayUInt64
        })?;
        self.check_ends(column, ends, elements.len())?;
        self.write_head(column);
        write_u64s(&mut self.native, ends);
        write_u64s(&mut self.native, elements);
        Ok(())
    }

    pub fn string_arrays<S: AsRef<str>>(&mut self, name: &str, rows: &[Vec<S>]) -> Result<(), BlockError> {
        self.begin(name, rows.len(), "Array(String)", |kind| {
            kind == Kind::ArrayString
        })?;
        let mut end = 0;
        for row in rows {
            end += row.len() as u64;
            write_u64s(&mut self.native, &[end]);
        }
        for element in rows.iter().flatten() {
            write_string(&mut self.native, element.as_ref());
        }
        Ok(())
    }

    /// A list of keys with their values for each row.
    pub fn string_maps<S: AsRef<str>>(&mut self, name: &str, rows: &[Vec<(S, S)>]) -> Result<(), BlockError> {
        self.begin(name, rows.len(), "Map(String, String)", |kind| {
            kind == Kind::StringMap
        })?;
        let mut end = 0;
        for row in rows {
            end += row.len() as u64;
            write_u64s(&mut self.native, &[end]);
        }
        for (key, _) in rows.iter().flatten() {
            write_string(&mut self.native, key.as_ref());
        }
        for (_, value) in rows.iter().flatten() {
            write_string(&mut self.native, value.as_ref());
        }
        Ok(())
    }

    pub fn finish(self) -> Result<Block, BlockError> {
        if let Some(column) = self.table.columns.get(self.done) {
            let (table, got) = (self.table.name, "the end of the block".into());
            return Err(BlockError::Order {
                table,
                expected: column.name,
                got,
            });
        }
        Ok(Block {
            columns: self.table.column_names,
            rows: self.rows,
            native: Bytes::from(self.native),
            deadline_ms: None,
        })
    }

    /// Checks the next column, and writes its head.
    fn begin(
        &mut self,
        name: &str,
        rows: usize,
        got: &'static str,
        fits: impl Fn(Kind) -> bool,
    ) -> Result<(), BlockError> {
        let column = self.check(name, rows, got, fits)?;
        self.write_head(column);
        Ok(())
    }

    /// The declaration of the next column, if it is of this name and type and the rows are as many as the block's.
    fn check(
        &self,
        name: &str,
        rows: usize,
        got: &'static str,
        fits: impl Fn(Kind) -> bool,
    ) -> Result<&'static Column, BlockError> {
        let table = self.table.name;
        let Some(column) = self.table.columns.get(self.done) else {
            return Err(BlockError::Order {
                table,
                expected: "no more columns",
                got: name.into(),
            });
        };
        if column.name != name {
            return Err(BlockError::Order {
                table,
                expected: column.name,
                got: name.into(),
            });
        }
        if !fits(column.kind) {
            let declared = column.kind.sql();
            return Err(BlockError::Type {
                table,
                column: column.name,
                declared,
                got,
            });
        }
        if rows != self.rows {
            return Err(BlockError::Rows {
                table,
                column: column.name,
                rows: self.rows,
                got: rows,
            });
        }
        Ok(column)
    }

    fn check_ends(&self, column: &Column, ends: &[u64], elements: usize) -> Result<(), BlockError> {
        let needed = ends
            .last()
            .map_or(0, |&end| usize::try_from(end).unwrap_or(usize::MAX));
        if needed != elements || !ends.is_sorted() {
            return Err(BlockError::Elements {
                table: self.table.name,
                column: column.name,
                needed,
                got: elements,
            });
        }
        Ok(())
    }

    fn write_head(&mut self, column: &Column) {
        write_string(&mut self.native, column.name);
        write_string(&mut self.native, &column.kind.wire());
        self.done += 1;
    }
}

/// Grows `out` once and fills it in place, which compiles to a copy on a little-endian machine.
fn write_le<T: Copy, const N: usize>(out: &mut Vec<u8>, values: &[T], bytes: impl Fn(T) -> [u8; N]) {
    let start = out.len();
    out.resize(start + N * values.len(), 0);
    for (place, &value) in out[start..].as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *place = bytes(value);
    }
}

fn write_u32s(out: &mut Vec<u8>, values: &[u32]) {
    write_le(out, values, u32::to_le_bytes);
}

fn write_u64s(out: &mut Vec<u8>, values: &[u64]) {
    write_le(out, values, u64::to_le_bytes);
}

fn write_i64s(out: &mut Vec<u8>, values: &[i64]) {
    write_le(out, values, i64::to_le_bytes);
}

fn write_string(out: &mut Vec<u8>, text: &str) {
    write_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// Seven bits a byte, the lowest first; the eighth says that more follow.
fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn column(name: &'static str, kind: Kind) -> Column {
        Column { name, kind }
    }

    const COLUMNS: [Column; 3] = [
        column("port", Kind::UInt16),
        column("role", Kind::Enum8(&[("active", 1), ("passive", 2)])),
        column("node", Kind::LowCardinality),
    ];
    static TABLE: Table = Table {
        name: "t",
        columns: &COLUMNS,
        column_names: &names(&COLUMNS),
    };

    fn builder() -> BlockBuilder {
        BlockBuilder::new(&TABLE, 2).unwrap()
    }

    #[test]
    fn a_block_is_its_columns_one_after_another() {
        let mut block = builder();
        block.u16s("port", &[80, 0x1234]).unwrap();
        block.enums("role", &[1, 2]).unwrap();
        block.low_cardinality("node", &["a", "bc"], &[1, 0]).unwrap();
        let block = block.finish().unwrap();

        let mut expected = vec![3, 2];
        expected.extend(b"\x04port\x06UInt16\x50\x00\x34\x12");
        expected.extend(b"\x04role\x22Enum8('active' = 1, 'passive' = 2)\x01\x02");
        expected.extend(b"\x04node\x16LowCardinality(String)");
        for word in [1_u64, 0x600, 2] {
            expected.extend(word.to_le_bytes());
        }
        expected.extend(b"\x01a\x02bc");
        expected.extend(2_u64.to_le_bytes());
        expected.extend([1, 0]);
        assert_eq!(block.native, expected);
        assert_eq!(
            (block.rows, block.columns),
            (2, ["port", "role", "node"].as_slice())
        );
    }

    #[test]
    fn what_the_table_does_not_declare_is_an_error_that_names_it() {
        let says = |error: BlockError| error.to_string();

        assert_eq!(
            says(builder().enums("role", &[1, 2]).unwrap_err()),
            "table t: expected column port, got role"
        );
        assert_eq!(
            says(builder().u32s("port", &[1, 2]).unwrap_err()),
            "table t: column port is UInt16, got UInt32"
        );
        assert_eq!(
            says(builder().u16s("port", &[1]).unwrap_err()),
            "table t: column port has 1 rows, the block has 2"
        );

        let mut block = builder();
        block.u16s("port", &[1, 2]).unwrap();
        assert_eq!(
            says(block.enums("role", &[1, 3]).unwrap_err()),
            "table t: row 1 of column role: 3 is none of its values"
        );

        let mut block = builder();
        block.u16s("port", &[1, 2]).unwrap();
        block.enums("role", &[1, 2]).unwrap();
        assert_eq!(
            says(block.low_cardinality("node", &["a"], &[0, 1]).unwrap_err()),
            "table t: row 1 of column node: index 1 into a dictionary of 1"
        );

        let mut block = builder();
        block.u16s("port", &[1, 2]).unwrap();
        assert_eq!(
            says(block.finish().unwrap_err()),
            "table t: expected column role, got the end of the block"
        );
        assert_eq!(
            says(BlockBuilder::new(&TABLE, 0).unwrap_err()),
            "table t: a block without rows"
        );
    }

    #[test]
    fn arrays_must_add_up() {
        const COLUMNS: [Column; 1] = [column("path_us", Kind::ArrayUInt64)];
        static TABLE: Table = Table {
            name: "t",
            columns: &COLUMNS,
            column_names: &names(&COLUMNS),
        };
        let fails = |ends: &[u64], elements: &[u64]| {
            let mut block = BlockBuilder::new(&TABLE, ends.len()).unwrap();
            block.u64_arrays("path_us", ends, elements).is_err()
        };
        assert!(!fails(&[1, 1, 3], &[7, 8, 9]));
        assert!(fails(&[1, 1, 3], &[7, 8]));
        assert!(fails(&[3, 1, 3], &[7, 8, 9]));
    }
}
