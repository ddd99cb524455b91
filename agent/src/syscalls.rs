//! Syscalls, from the kernel side's tables to batches.
//!
//! The kernel side counts every call in tables of its own ([`kernel`] loads it, [`tables`] is what they look like). A
//! [`sweep`] reads by how much they have grown, an [`interval`] adds that up by process and syscall, [`columns`] makes batches
//! of it, and [`watch`] is the thread that does all this.

pub mod columns;
pub mod interval;
pub mod kernel;
pub mod names;
pub mod sweep;
mod tables;
pub mod watch;

use std::{fmt, num::NonZeroU32, str::FromStr};

/// One call in so many is measured, unless the configuration says otherwise: reading the clock twice costs more than
/// everything else together.
pub const SAMPLED: NonZeroU32 = NonZeroU32::new(16).expect("not zero");

/// What is counted of the syscalls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing: nothing is attached, and it costs nothing.
    Off,
    /// Calls and errors.
    Counts,
    /// And how long one in so many took, chosen at random.
    Sampled(NonZeroU32),
    /// And how long each took.
    Full,
}

impl Mode {
    /// The largest random number of 32 bits that makes a call a measured one; `None` if none is measured.
    fn largest_measured(self) -> Option<u32> {
        match self {
            Self::Off | Self::Counts => None,
            Self::Sampled(one_in) => Some(((1_u64 << 32) / u64::from(one_in.get()) - 1) as u32),
            Self::Full => Some(u32::MAX),
        }
    }
}

impl Mode {
    /// One call in so many is measured; zero: none is.
    pub fn measured_one_in(self) -> u32 {
        match self {
            Self::Off | Self::Counts => 0,
            Self::Sampled(one_in) => one_in.get(),
            Self::Full => 1,
        }
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None => match text {
                "off" => return Ok(Self::Off),
                "counts" => return Ok(Self::Counts),
                "sampled" => return Ok(Self::Sampled(SAMPLED)),
                "full" => return Ok(Self::Full),
                _ => {}
            },
            Some(("sampled", number)) => {
                if let Ok(one_in) = number.parse() {
                    return Ok(Self::Sampled(one_in));
                }
            }
            Some(_) => {}
        }
        Err(format!(
            "{text:?} is none of off, counts, sampled, sampled=N and full"
        ))
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => out.write_str("off"),
            Self::Counts => out.write_str("counts"),
            Self::Sampled(one_in) if *one_in == SAMPLED => out.write_str("sampled"),
            Self::Sampled(one_in) => write!(out, "sampled={one_in}"),
            Self::Full => out.write_str("full"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_printed_as_it_is_written() {
        for text in ["off", "counts", "sampled", "sampled=64", "full"] {
            assert_eq!(text.parse::<Mode>().expect(text).to_string(), text);
        }
        for bad in ["", "on", "sampled=0", "sampled=x", "full=3"] {
            assert!(bad.parse::<Mode>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn one_call_in_so_many_is_measured() {
        assert_eq!(Mode::Sampled(SAMPLED).largest_measured(), Some((1 << 28) - 1));
        assert_eq!(Mode::Sampled(NonZeroU32::MIN).largest_measured(), Some(u32::MAX));
        assert_eq!(Mode::Sampled(NonZeroU32::MAX).largest_measured(), Some(0));
        assert_eq!(Mode::Counts.largest_measured(), None);
    }
}
