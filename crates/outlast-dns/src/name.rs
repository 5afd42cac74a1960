//! Domain names: wire form, lower case, complete with the root label.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// Bytes of a name with its lengths and the root label (RFC 1035 2.3.4).
pub const NAME_MAX: usize = 255;

/// Bytes of a label (RFC 1035 2.3.4).
pub const LABEL_MAX: usize = 63;

/// Bytes of the longest sort key: each byte of a name may need two.
pub(crate) const KEY_MAX: usize = 2 * NAME_MAX;

/// A complete name in wire form and lower case. Its order is the canonical one (RFC 4034 6.1).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Name(Box<[u8]>);

/// Why a text or bytes are no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadName {
    /// A label is empty or longer than 63 bytes.
    Label,
    /// The name is longer than 255 bytes.
    Length,
    /// A backslash is not followed by a character or by three digits up to 255.
    Escape,
}

impl fmt::Display for BadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BadName::Label => "a label must have 1 to 63 bytes",
            BadName::Length => "a name must have at most 255 bytes",
            BadName::Escape => "a backslash must be followed by a character or three digits",
        })
    }
}

impl std::error::Error for BadName {}

impl Name {
    /// The name of the root zone.
    pub fn root() -> Name {
        Name(Box::new([0]))
    }

    /// The name that these bytes are from the first to the last; pointers are not followed.
    pub fn from_wire(wire: &[u8]) -> Option<Name> {
        (wire_length(wire)? == wire.len()).then(|| Name(wire.to_ascii_lowercase().into()))
    }

    /// The bytes of the name as they stand in a message.
    pub fn wire(&self) -> &[u8] {
        &self.0
    }

    /// How many labels the name has, without the root.
    pub fn label_count(&self) -> usize {
        labels(&self.0).count()
    }

    /// The name without its first label; none above the root.
    pub fn parent(&self) -> Option<Name> {
        let rest = strip(&self.0)?;
        Some(Name(rest.into()))
    }

    /// Whether this name is `zone` or lies below it.
    pub fn is_in(&self, zone: &Name) -> bool {
        let mut rest = Some(&*self.0);
        while let Some(name) = rest {
            if name == zone.wire() {
                return true;
            }
            rest = strip(name);
        }
        false
    }

    /// Whether the first label is `*` (RFC 4592).
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with(b"\x01*")
    }

    /// The name with a label before it.
    pub fn child(&self, label: &[u8]) -> Option<Name> {
        let length = u8::try_from(label.len()).ok()?;
        Name::from_wire(&[&[length], label, &self.0].concat())
    }

    /// Bytes whose plain order is the canonical order of names.
    pub(crate) fn key(&self) -> Box<[u8]> {
        let mut room = [0; KEY_MAX];
        sort_key(&self.0, &mut room).into()
    }
}

impl FromStr for Name {
    type Err = BadName;

    /// Reads the presentation form; a dot at the end is not needed.
    fn from_str(text: &str) -> Result<Name, BadName> {
        let text =
            if text.ends_with("\\.") { text } else { text.strip_suffix('.').unwrap_or(text) };
        let mut wire = Vec::with_capacity(text.len() + 2);
        let mut label = Vec::new();
        let mut bytes = text.bytes();
        while let Some(byte) = bytes.next() {
            match byte {
                b'.' => push_label(&mut wire, &mut label)?,
                b'\\' => label.push(unescape(&mut bytes)?),
                _ => label.push(byte),
            }
        }
        if !text.is_empty() {
            push_label(&mut wire, &mut label)?;
        }
        wire.push(0);
        if wire.len() > NAME_MAX {
            return Err(BadName::Length);
        }
        Ok(Name(wire.to_ascii_lowercase().into()))
    }
}

/// Ends a label in wire form.
fn push_label(wire: &mut Vec<u8>, label: &mut Vec<u8>) -> Result<(), BadName> {
    let length = u8::try_from(label.len()).map_err(|_long| BadName::Label)?;
    if !(1..=LABEL_MAX).contains(&label.len()) {
        return Err(BadName::Label);
    }
    wire.push(length);
    wire.append(label);
    Ok(())
}

/// What follows a backslash: a character, or three digits (RFC 1035 5.1).
fn unescape(bytes: &mut std::str::Bytes<'_>) -> Result<u8, BadName> {
    let first = bytes.next().ok_or(BadName::Escape)?;
    if !first.is_ascii_digit() {
        return Ok(first);
    }
    let mut value = u16::from(first - b'0');
    for _ in 0..2 {
        let digit = bytes.next().filter(u8::is_ascii_digit).ok_or(BadName::Escape)?;
        value = value * 10 + u16::from(digit - b'0');
    }
    u8::try_from(value).map_err(|_large| BadName::Escape)
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() == 1 {
            return f.write_str(".");
        }
        for label in labels(&self.0) {
            for &byte in label {
                match byte {
                    b'.' | b'\\' | b'"' | b';' | b'(' | b')' | b'@' | b'$' => {
                        write!(f, "\\{}", char::from(byte))?;
                    }
                    b'!'..=b'~' => write!(f, "{}", char::from(byte))?,
                    _ => write!(f, "\\{byte:03}")?,
                }
            }
            f.write_str(".")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Name) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Name) -> Ordering {
        let (mut ours, mut theirs) = ([0; KEY_MAX], [0; KEY_MAX]);
        sort_key(&self.0, &mut ours).cmp(sort_key(&other.0, &mut theirs))
    }
}

/// Labels of a name, without the root: each has a byte beside its length.
pub(crate) const LABELS_MAX: usize = NAME_MAX / 2;

/// Bytes that are taken at once.
const WORD: usize = size_of::<u64>();

/// A name in lower case as it stands in a message, and where its labels begin.
#[derive(Clone, Debug)]
pub(crate) struct Labels {
    /// Whole words: what follows the name is of no meaning.
    bytes: [u8; NAME_MAX.next_multiple_of(WORD)],
    length: usize,
    starts: [u8; LABELS_MAX],
    count: usize,
}

impl Labels {
    /// The root.
    pub(crate) const ROOT: Labels = Labels {
        bytes: [0; NAME_MAX.next_multiple_of(WORD)],
        length: 1,
        starts: [0; LABELS_MAX],
        count: 0,
    };

    /// Becomes the name at the front of these bytes; none if there is none, or with a pointer.
    #[inline]
    pub(crate) fn read(&mut self, wire: &[u8]) -> Option<()> {
        let (mut count, mut at) = (0, 0u8);
        loop {
            let length = *wire.get(usize::from(at))?;
            if length == 0 {
                break;
            }
            if usize::from(length) > LABEL_MAX {
                return None;
            }
            *self.starts.get_mut(count)? = at;
            count += 1;
            at = at.checked_add(1 + length)?;
        }
        let length = usize::from(at) + 1;
        if length > NAME_MAX {
            return None;
        }
        (self.count, self.length) = (count, length);
        // Lengths are below 64 and stay as they are.
        let (mut at, (words, _)) = (0, self.bytes.as_chunks_mut());
        for word in words {
            if at >= length {
                break;
            }
            let rest = wire.get(at..).unwrap_or_default();
            let from = rest.first_chunk().copied().unwrap_or_else(|| {
                let mut last = [0; WORD];
                last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
                last
            });
            *word = lower(u64::from_ne_bytes(from)).to_ne_bytes();
            at += WORD;
        }
        Some(())
    }

    /// The whole name.
    pub(crate) fn wire(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    /// Where the labels begin, without the root.
    pub(crate) fn starts(&self) -> &[u8] {
        self.starts.get(..self.count).unwrap_or_default()
    }

    /// Where the root label stands.
    pub(crate) fn root_at(&self) -> usize {
        self.length.saturating_sub(1)
    }
}

/// Eight bytes in lower case.
fn lower(bytes: u64) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x80 * EACH;
    let low = bytes & !HIGH;
    let from_a = low + (0x80 - u64::from(b'A')) * EACH;
    let after_z = low + (0x80 - u64::from(b'Z') - 1) * EACH;
    let is_upper = (from_a ^ after_z) & !bytes & HIGH;
    bytes | is_upper >> 2
}

/// The name without its first label; none for the root.
pub(crate) fn strip(wire: &[u8]) -> Option<&[u8]> {
    let length = usize::from(*wire.first()?);
    if length == 0 { None } else { wire.get(1 + length..) }
}

/// The labels of a complete name, without the root.
pub(crate) fn labels(wire: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = wire;
    std::iter::from_fn(move || {
        let length = usize::from(*rest.first()?);
        let label = rest.get(1..1 + length)?;
        rest = rest.get(1 + length..)?;
        (length > 0).then_some(label)
    })
}

/// How many bytes at the front are a name without pointers; none if they are no name.
pub(crate) fn wire_length(wire: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let length = usize::from(*wire.get(at)?);
        if length > LABEL_MAX {
            return None;
        }
        at += 1 + length;
        if at > NAME_MAX || at > wire.len() {
            return None;
        }
        if length == 0 {
            return Some(at);
        }
    }
}

/// Bytes whose plain order is the canonical order: labels from the right, each ended by a 0 that no label contains.
pub(crate) fn sort_key<'a>(wire: &[u8], room: &'a mut [u8; KEY_MAX]) -> &'a [u8] {
    let mut starts = [0u8; NAME_MAX / 2 + 1];
    let mut count = 0;
    let mut at = 0usize;
    while let Some(&length) = wire.get(at).filter(|length| **length > 0) {
        let (Some(start), Ok(here)) = (starts.get_mut(count), u8::try_from(at)) else { break };
        *start = here;
        count += 1;
        at += 1 + usize::from(length);
    }
    let mut end = 0;
    for &start in starts.iter().take(count).rev() {
        let start = usize::from(start);
        let length = usize::from(wire.get(start).copied().unwrap_or(0));
        let label = wire.get(start + 1..start + 1 + length).unwrap_or_default();
        if label.iter().all(|byte| *byte >= 2)
            && let Some(place) = room.get_mut(end..end + length)
        {
            place.copy_from_slice(label);
            end += length;
        } else {
            end = escape(label, room, end);
        }
        if let Some(place) = room.get_mut(end) {
            *place = 0;
            end += 1;
        }
    }
    room.get(..end).unwrap_or_default()
}

/// Writes a label whose bytes are not all as they are in a sort key; where it ends.
fn escape(label: &[u8], room: &mut [u8; KEY_MAX], start: usize) -> usize {
    let mut end = start;
    for &byte in label {
        // 0 ends a label, so 0 and 1 become two bytes that keep their order.
        let escaped = [1, byte.wrapping_add(1)];
        let put: &[u8] = if byte < 2 { &escaped } else { std::slice::from_ref(&byte) };
        if let Some(place) = room.get_mut(end..end + put.len()) {
            place.copy_from_slice(put);
            end += put.len();
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_wire_are_one_name() {
        for (text, wire, shown) in [
            ("", &b"\0"[..], "."),
            (".", b"\0", "."),
            ("WWW.Example", b"\x03www\x07example\0", "www.example."),
            ("a\\.b.c.", b"\x03a.b\x01c\0", "a\\.b.c."),
            ("\\000\\255.", b"\x02\x00\xff\0", "\\000\\255."),
        ] {
            let name: Name = text.parse().unwrap();
            assert_eq!((name.wire(), name.to_string().as_str()), (wire, shown), "{text}");
            assert_eq!(Name::from_wire(wire), Some(name));
        }
        for (text, why) in [
            ("a..b", BadName::Label),
            (&"a".repeat(64), BadName::Label),
            (&"a.".repeat(128), BadName::Length),
            ("a\\", BadName::Escape),
            ("a\\300", BadName::Escape),
            ("a\\1x", BadName::Escape),
        ] {
            assert_eq!(text.parse::<Name>(), Err(why), "{text}");
        }
    }

    #[test]
    fn a_name_in_a_message_is_read_with_where_its_labels_begin() {
        for (wire, name, starts) in [
            (&b"\0"[..], "", &[][..]),
            (b"\x03WwW\x07eXample\0\0\x01", "www.example", &[0, 4]),
            (b"\x01\xc0\0", "\\192", &[0]),
        ] {
            let mut labels = Labels::ROOT;
            labels.read(wire).unwrap();
            let name: Name = name.parse().unwrap();
            assert_eq!((labels.wire(), labels.starts()), (name.wire(), starts));
            assert_eq!(labels.root_at() + 1, name.wire().len());
        }
        let longest: Name = "a.".repeat(LABELS_MAX).parse().unwrap();
        let mut labels = Labels::ROOT;
        labels.read(longest.wire()).unwrap();
        assert_eq!(labels.starts().len(), LABELS_MAX);
        let too_long = [b"\x01b", longest.wire()].concat();
        let long_label = [&[63][..], &[b'a'; 63]].concat().repeat(4);
        for wire in [&b""[..], b"\x03ww", b"\x03www", b"\xc0\x0c", &too_long, &long_label] {
            assert!(labels.read(wire).is_none(), "{wire:?}");
        }
        let all: Vec<u8> = (0..=u8::MAX).collect();
        for eight in all.as_chunks().0 {
            let lowered = lower(u64::from_ne_bytes(*eight)).to_ne_bytes();
            assert_eq!(lowered[..], eight.to_ascii_lowercase());
        }
    }

    /// The example of RFC 4034 6.1.
    #[test]
    fn names_are_in_canonical_order() {
        let names = [
            "example.",
            "a.example.",
            "yljkjljk.a.example.",
            "Z.a.example.",
            "zABC.a.EXAMPLE.",
            "z.example.",
            "\\001.z.example.",
            "*.z.example.",
            "\\200.z.example.",
        ];
        let names: Vec<Name> = names.iter().map(|text| text.parse().unwrap()).collect();
        assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "{names:?}");
        let (short, long): (Name, Name) =
            ("\\000.a".parse().unwrap(), "\\000\\000.a".parse().unwrap());
        assert!(short < long);
        assert!(names[3].is_in(&names[1]) && !names[3].is_in(&names[5]));
    }
}
