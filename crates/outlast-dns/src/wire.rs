//! Messages that are read and written whole, off the fast path: names with pointers, records, heads.

use crate::name::{LABEL_MAX, NAME_MAX, Name};
use crate::respond::{HEAD, QR, Question, RawRecord, Rcode};
use crate::zone::{Rdata, Record, Rtype};

/// Pointers that are followed for one name; each must lead back.
const POINTERS_MAX: usize = 64;

/// Class IN.
pub(crate) const IN: u16 = 1;

/// Reads a name that may have pointers; also where what follows it begins.
pub(crate) fn read_name(message: &[u8], start: usize) -> Option<(Name, usize)> {
    let mut wire = Vec::new();
    let (mut at, mut end, mut pointers) = (start, None, 0);
    loop {
        let length = *message.get(at)?;
        match length {
            0 => {
                wire.push(0);
                break;
            }
            0xc0.. => {
                let low = *message.get(at + 1)?;
                let to = usize::from(u16::from_be_bytes([length & 0x3f, low]));
                end = end.or(Some(at + 2));
                pointers += 1;
                if to >= at || pointers > POINTERS_MAX {
                    return None;
                }
                at = to;
            }
            _ if usize::from(length) > LABEL_MAX => return None,
            _ => {
                let next = at + 1 + usize::from(length);
                wire.extend(message.get(at..next)?);
                at = next;
            }
        }
        if wire.len() > NAME_MAX {
            return None;
        }
    }
    Some((Name::from_wire(&wire)?, end.unwrap_or(at + 1)))
}

/// A record with its class; updates say with the class what is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) record: Record,
    pub(crate) class: u16,
    pub(crate) end: usize,
}

/// Reads the record at a place, with all names written out.
pub(crate) fn read_record(message: &[u8], at: usize) -> Option<Read> {
    let (owner, _) = read_name(message, at)?;
    let raw = RawRecord::read(message, at)?;
    let data_at = raw.end - raw.data.len();
    let data = read_data(message, raw.rtype, data_at, raw.end)?;
    let record = Record { owner, rtype: raw.rtype, ttl: u32::from_be_bytes(raw.ttl), data };
    Some(Read { record, class: raw.class, end: raw.end })
}

/// The data between two places, with its names written out if its type may have pointers there.
fn read_data(message: &[u8], rtype: Rtype, start: usize, end: usize) -> Option<Rdata> {
    let plain = message.get(start..end)?;
    let (before, names) = match rtype {
        // Updates delete with empty data.
        _ if plain.is_empty() => return Some(Rdata(Vec::new())),
        Rtype::NS | Rtype::CNAME | Rtype::PTR => (0, 1),
        Rtype::MX => (2, 1),
        Rtype::SRV => (6, 1),
        Rtype::SOA => (0, 2),
        _ => return Some(Rdata(plain.to_vec())),
    };
    let mut data = plain.get(..before)?.to_vec();
    let mut at = start + before;
    for _ in 0..names {
        let (name, next) = read_name(message, at)?;
        data.extend(name.wire());
        at = next;
    }
    data.extend(message.get(at..end)?);
    Some(Rdata(data))
}

/// A message that is being written, uncompressed.
#[derive(Debug)]
pub(crate) struct Message(pub(crate) Vec<u8>);

impl Message {
    /// A message with a head and a question.
    pub(crate) fn new(id: u16, flags: [u8; 2], name: &Name, rtype: Rtype) -> Message {
        let mut bytes = Vec::with_capacity(512);
        bytes.extend(id.to_be_bytes());
        bytes.extend(flags);
        bytes.extend([0, 1, 0, 0, 0, 0, 0, 0]);
        bytes.extend(name.wire());
        bytes.extend(rtype.0.to_be_bytes());
        bytes.extend(IN.to_be_bytes());
        Message(bytes)
    }

    /// An answer to a message that has no records yet; it has the question if the message's can be read.
    pub(crate) fn answer(to: &[u8], rcode: Rcode, flags: u8) -> Message {
        let question = Question::read(to).map_or(HEAD, |question| question.end());
        let mut bytes = to.get(..question).unwrap_or(to).to_vec();
        bytes.resize(bytes.len().max(HEAD), 0);
        bytes[2] = QR | (bytes[2] & 0x79) | flags;
        bytes[3] = u8::try_from(rcode.0 & 0xf).unwrap_or_default();
        bytes[4..HEAD].fill(0);
        bytes[5] = u8::from(question > HEAD);
        Message(bytes)
    }

    /// Appends a record and counts it in a section: 1 answer, 2 authority, 3 additional. False if the message is full.
    pub(crate) fn push(&mut self, section: usize, record: &Record, class: u16, max: usize) -> bool {
        let Record { owner, rtype, ttl, data } = record;
        let Ok(length) = u16::try_from(data.0.len()) else { return false };
        if self.0.len() + owner.wire().len() + 10 + data.0.len() > max {
            return false;
        }
        self.0.extend(owner.wire());
        self.0.extend(rtype.0.to_be_bytes());
        self.0.extend(class.to_be_bytes());
        self.0.extend(ttl.to_be_bytes());
        self.0.extend(length.to_be_bytes());
        self.0.extend(&data.0);
        let place = 4 + 2 * section;
        let count = u16::from_be_bytes([self.0[place], self.0[place + 1]]).saturating_add(1);
        self.0[place..place + 2].copy_from_slice(&count.to_be_bytes());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_lead_back_or_the_name_is_refused() {
        let name = |text: &str| Some(text.parse::<Name>().unwrap());
        for (bytes, at, wanted) in [
            (&b"\x01a\0"[..], 0, name("a")),
            (b"\x01a\0\x01b\xc0\0", 3, name("b.a")),
            (b"\xc0\0", 0, None),
            (b"\xc0\x02\x01a\0", 0, None),
            (b"\x01a\xc0\0", 0, None),
            (b"\x41a", 0, None),
            (b"\x01", 0, None),
        ] {
            assert_eq!(read_name(bytes, at).map(|(name, _)| name), wanted, "{bytes:?}");
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let zone: Name = "example.com".parse().unwrap();
        let mut message = Message::new(7, [0, 0], &zone, Rtype::SOA);
        let record =
            Record { owner: zone.clone(), rtype: Rtype::MX, ttl: 30, data: Rdata::mx(10, &zone) };
        assert!(message.push(2, &record, IN, 512));
        assert!(!message.push(2, &record, IN, 80));
        let read = read_record(&message.0, HEAD + zone.wire().len() + 4).unwrap();
        assert_eq!((read.record, read.class, read.end), (record, IN, message.0.len()));
        assert_eq!(message.0[8..10], [0, 1]);
    }
}
