//! The language of `--where`, and of every other place where people say which rows they mean:
//! `remote_port = 5432 and comm in ('nginx', 'envoy') and not connect_us < 20ms`.
//!
//! Pure: text in, a checked tree out, errors with their place. It knows no SQL; the store renders the tree.

mod parse;
mod print;

use std::{fmt, net::IpAddr};

/// What can be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: &'static str,
    pub kind: Kind,
}

/// What a column holds, as far as comparing it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Whole numbers up to `max`.
    Number {
        max: u64,
        unit: Unit,
    },
    Text,
    /// One of these words.
    Word(&'static [(&'static str, i8)]),
    Address,
    /// A point in time, UTC.
    Time,
}

/// What a column's numbers count. Literals may carry a unit where this is not `One`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    One,
    Microseconds,
    Bytes,
}

/// A filter that fits the columns it was parsed against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    And(Vec<Filter>),
    Or(Vec<Filter>),
    Not(Box<Filter>),
    Compare {
        column: &'static str,
        operator: Operator,
        value: Value,
    },
    In {
        column: &'static str,
        negated: bool,
        values: Vec<Value>,
    },
    /// `%` stands for any text, `_` for any one character.
    Like {
        column: &'static str,
        negated: bool,
        pattern: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// A literal, converted to what its column holds: a number in the column's unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Number(u64),
    Text(String),
    Word(&'static str),
    Address(IpAddr),
    Network(Network),
    /// `YYYY-MM-DD hh:mm:ss`, with up to nine decimals.
    Time(String),
}

/// The addresses that share their first bits with this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// The lowest address of the network.
    pub address: IpAddr,
    /// How many bits are shared: at most 32 for IPv4, 128 for IPv6.
    pub bits: u8,
}

/// Why a text is no filter, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterError {
    pub message: String,
    /// Counted from one.
    pub line: usize,
    /// In characters, counted from one.
    pub column: usize,
    /// The line, for the caret.
    pub text: String,
}

impl Filter {
    /// Parses `text` against the columns that there are.
    pub fn parse(text: &str, columns: &[Column]) -> Result<Self, FilterError> {
        parse::filter(text, columns)
    }
}

impl Network {
    /// The lowest and the highest address.
    pub fn range(&self) -> (IpAddr, IpAddr) {
        match self.address {
            IpAddr::V4(address) => {
                let host = u32::MAX.checked_shr(u32::from(self.bits)).unwrap_or(0);
                (IpAddr::V4(address), IpAddr::V4((address.to_bits() | host).into()))
            }
            IpAddr::V6(address) => {
                let host = u128::MAX.checked_shr(u32::from(self.bits)).unwrap_or(0);
                (IpAddr::V6(address), IpAddr::V6((address.to_bits() | host).into()))
            }
        }
    }
}

impl fmt::Display for FilterError {
    /// One line that says all, then the text with a caret below the place.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} (line {}, column {})", self.message, self.line, self.column)?;
        writeln!(f, "  {}", self.text)?;
        write!(f, "  {:>width$}", '^', width = self.column)
    }
}

impl std::error::Error for FilterError {}

#[cfg(test)]
mod tests;
