//! Durations and sizes as people write them: `"5s"`, `"1h30m"`, `"16MiB"`.

use alloc::borrow::ToOwned as _;
use alloc::string::String;
use core::fmt;
use core::time::Duration;

/// Why a duration or a size does not parse, in words for the person who wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Empty,
    NoUnit,
    NoNumber,
    Space,
    UnknownUnit,
    TooLarge,
    OutOfOrder,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::Empty => "is empty",
            Fault::NoUnit => "has no unit",
            Fault::NoNumber => "has no number before the unit",
            Fault::Space => "has a space in it",
            Fault::UnknownUnit => "has an unknown unit",
            Fault::TooLarge => "is too large",
            Fault::OutOfOrder => "has its units in the wrong order, or one twice",
        })
    }
}

/// Units of a duration, longest first, in nanoseconds.
const DURATION_UNITS: [(&str, u64); 8] = [
    ("w", 7 * 86_400_000_000_000),
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// The units that a duration may be written in, longest first.
pub fn duration_units() -> impl Iterator<Item = &'static str> {
    DURATION_UNITS.iter().map(|&(unit, _)| unit)
}

/// Parses `"250ms"`, `"5s"`, `"1.5h"`, `"1h30m"`; a bare `"0"` needs no unit.
pub fn parse_duration(text: &str) -> Result<Duration, Fault> {
    or_space(text, duration_of)
}

/// Says so where a space is all that is wrong.
fn or_space<T>(text: &str, parse: fn(&str) -> Result<T, Fault>) -> Result<T, Fault> {
    parse(text).map_err(|fault| {
        let joined: String = text.split_whitespace().collect();
        if joined != text && parse(&joined).is_ok() { Fault::Space } else { fault }
    })
}

fn duration_of(text: &str) -> Result<Duration, Fault> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if text.is_empty() {
        return Err(Fault::Empty);
    }
    let mut rest = text;
    let mut total: u64 = 0;
    let mut units = DURATION_UNITS.as_slice();
    while !rest.is_empty() {
        let (nanos, unit, after) = term(rest, &DURATION_UNITS)?;
        let place = units.iter().position(|&(u, _)| u == unit).ok_or(Fault::OutOfOrder)?;
        units = units.get(place + 1..).unwrap_or_default();
        total = total.checked_add(nanos).ok_or(Fault::TooLarge)?;
        rest = after;
    }
    Ok(Duration::from_nanos(total))
}

/// Units of a size in bytes: decimal (SI) and binary (IEC).
const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// The units that a size may be written in, largest first.
pub fn size_units() -> impl Iterator<Item = &'static str> {
    SIZE_UNITS.iter().map(|&(unit, _)| unit)
}

/// Parses `"16MiB"`, `"1.5GiB"`, `"512B"`; a bare `"0"` needs no unit.
pub fn parse_size(text: &str) -> Result<u64, Fault> {
    or_space(text, size_of)
}

fn size_of(text: &str) -> Result<u64, Fault> {
    if text == "0" {
        return Ok(0);
    }
    if text.is_empty() {
        return Err(Fault::Empty);
    }
    let (bytes, _, rest) = term(text, &SIZE_UNITS)?;
    if rest.is_empty() { Ok(bytes) } else { Err(Fault::UnknownUnit) }
}

/// Takes one `number unit` off the front: its value in the smallest unit, its unit and the rest.
fn term<'a>(
    text: &'a str,
    units: &[(&'static str, u64)],
) -> Result<(u64, &'static str, &'a str), Fault> {
    let number_len = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(Fault::NoUnit)?;
    let (number, rest) = text.split_at(number_len);
    let unit_len = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
    let (word, rest) = rest.split_at(unit_len);
    let &(unit, scale) = units.iter().find(|(u, _)| *u == word).ok_or(Fault::UnknownUnit)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') || (number.contains('.') && fraction.is_empty()) {
        return Err(Fault::NoNumber);
    }
    let whole: u64 = whole.parse().map_err(|_digits_only| Fault::TooLarge)?;
    let mut value = whole.checked_mul(scale).ok_or(Fault::TooLarge)?;
    let mut place: u128 = 1;
    let mut part: u128 = 0;
    // Beyond nine digits a fraction is smaller than a nanosecond or a byte.
    for digit in fraction.bytes().take(9) {
        place *= 10;
        part = part * 10 + u128::from(digit - b'0');
    }
    let part =
        u64::try_from(part * u128::from(scale) / place).map_err(|_below_scale| Fault::TooLarge)?;
    value = value.checked_add(part).ok_or(Fault::TooLarge)?;
    Ok((value, unit, rest))
}

/// Prints a duration as `parse_duration` reads it, in at most two units: `1h30m`, `2.5s`, `250ms`.
pub fn show_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    let secs = duration.as_secs();
    if duration < Duration::from_secs(1) {
        let (unit, scale) = [("ms", 1_000_000), ("us", 1_000), ("ns", 1)]
            .into_iter()
            .find(|&(_, scale)| nanos >= scale)
            .unwrap_or(("ns", 1));
        return alloc::format!("{}{unit}", decimal(nanos, scale));
    }
    if secs < 60 {
        return alloc::format!("{}s", decimal(nanos, 1_000_000_000));
    }
    let (big, big_unit, small, small_unit) = match secs {
        60..3600 => (secs / 60, "m", secs % 60, "s"),
        3600..86_400 => (secs / 3600, "h", secs / 60 % 60, "m"),
        _ => (secs / 86_400, "d", secs / 3600 % 24, "h"),
    };
    if small == 0 {
        alloc::format!("{big}{big_unit}")
    } else {
        alloc::format!("{big}{big_unit}{small}{small_unit}")
    }
}

/// `nanos / scale` with up to three digits after the point, without trailing zeros.
fn decimal(nanos: u128, scale: u128) -> String {
    let milli = nanos * 1000 / scale;
    let text = alloc::format!("{}.{:03}", milli / 1000, milli % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Prints a size as `parse_size` reads it: the largest binary unit that divides it, else plain bytes.
pub fn show_size(bytes: u64) -> String {
    SIZE_UNITS
        .iter()
        .filter(|(unit, _)| unit.len() != 2)
        .find(|&&(_, scale)| bytes >= scale && bytes.is_multiple_of(scale))
        .map_or_else(
            || alloc::format!("{bytes}B"),
            |(unit, scale)| alloc::format!("{}{unit}", bytes / scale),
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_parse_as_people_write_them() {
        for (text, ms) in [
            ("5s", 5000),
            ("250ms", 250),
            ("1.5h", 5_400_000),
            ("1h30m", 5_400_000),
            ("2m", 120_000),
            ("90d", 7_776_000_000),
            ("1w", 604_800_000),
            ("0", 0),
            ("0s", 0),
            ("0.25s", 250),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn a_bad_duration_says_what_is_wrong() {
        for (text, fault) in [
            ("", Fault::Empty),
            ("5", Fault::NoUnit),
            ("5 s", Fault::Space),
            ("1h 30m", Fault::Space),
            ("ten seconds", Fault::UnknownUnit),
            ("s", Fault::NoNumber),
            ("5sec", Fault::UnknownUnit),
            ("-5s", Fault::UnknownUnit),
            ("1m1h", Fault::OutOfOrder),
            ("1m1m", Fault::OutOfOrder),
            ("99999999999w", Fault::TooLarge),
            ("1.s", Fault::NoNumber),
            ("1..5s", Fault::NoNumber),
        ] {
            assert_eq!(parse_duration(text), Err(fault), "{text}");
        }
    }

    #[test]
    fn sizes_parse_as_people_write_them() {
        for (text, bytes) in [
            ("16MiB", 16 << 20),
            ("1GB", 1_000_000_000),
            ("512B", 512),
            ("1.5KiB", 1536),
            ("0", 0),
            ("10kB", 10_000),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for (text, fault) in [
            ("16", Fault::NoUnit),
            ("16mb", Fault::UnknownUnit),
            ("16 MB", Fault::Space),
            ("16 mb", Fault::UnknownUnit),
            ("", Fault::Empty),
            ("1MiB2B", Fault::UnknownUnit),
        ] {
            assert_eq!(parse_size(text), Err(fault), "{text}");
        }
    }

    #[test]
    fn shown_durations_are_short() {
        for (ms, text) in [
            (5000, "5s"),
            (250, "250ms"),
            (5_400_000, "1h30m"),
            (61_000, "1m1s"),
            (2500, "2.5s"),
            (0, "0s"),
        ] {
            assert_eq!(show_duration(Duration::from_millis(ms)), text);
        }
        assert_eq!(show_size(16 << 20), "16MiB");
        assert_eq!(show_size(1000), "1000B");
    }

    proptest! {
        #[test]
        fn a_shown_duration_of_whole_minutes_parses_to_itself(minutes in 1u64..10_000) {
            let duration = Duration::from_secs(minutes * 60);
            if minutes < 1440 || minutes % 60 == 0 {
                prop_assert_eq!(parse_duration(&show_duration(duration)), Ok(duration));
            }
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in "\\PC*") {
            parse_duration(&text).ok();
            parse_size(&text).ok();
        }
    }
}
