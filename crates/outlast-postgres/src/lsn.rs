//! A place in the write-ahead log.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Bytes of log from the cluster's beginning; people write it as `X/Y` in hexadecimal.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

/// The text is no place in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoLsn;

impl fmt::Display for NoLsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a place in the write-ahead log")
    }
}

impl FromStr for Lsn {
    type Err = NoLsn;

    fn from_str(text: &str) -> Result<Lsn, NoLsn> {
        let (high, low) = text.split_once('/').ok_or(NoLsn)?;
        let half = |text: &str| match text.len() {
            1..=8 if text.bytes().all(|b| b.is_ascii_hexdigit()) => {
                u64::from_str_radix(text, 16).map_err(|_error| NoLsn)
            }
            _ => Err(NoLsn),
        };
        Ok(Lsn(half(high)? << 32 | half(low)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_read_again() {
        for (text, value) in
            [("0/0", 0), ("0/3000148", 0x300_0148), ("16/B374D848", 0x16_b374_d848)]
        {
            assert_eq!(text.parse(), Ok(Lsn(value)), "{text}");
            assert_eq!(Lsn(value).to_string(), text);
        }
        for text in ["", "0", "/", "0/", "/0", "0/123456789", "+1/0", "0/-1", "x/1", "0/1/2"] {
            assert_eq!(text.parse::<Lsn>(), Err(NoLsn), "{text}");
        }
    }
}
