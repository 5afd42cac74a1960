//! Parts of answers as bytes. Names that end like the question's point into it; where to, is written at each query, because
//! names of different length may share a piece.

use crate::name::{Name, strip};
use crate::zone::{Rdata, Rtype};

/// Where the question's name stands in a message.
pub(crate) const QUESTION_AT: usize = 12;

/// The two bits that make a pointer (RFC 1035 4.1.4).
const POINTER: u16 = 0xc000;

/// A part of an answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Piece {
    /// The pointers to be written, then the bytes of the records.
    all: Box<[u8]>,
    /// Where the records begin.
    records_at: u16,
    /// Records in the answer, authority and additional section.
    pub(crate) counts: [u16; 3],
}

/// A pointer to be written: where, and how many bytes of the question's name, from its end, it stands for; 0 for all.
const PATCH: usize = 4;

/// Whose record it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The name that is asked for.
    Asked,
    Name(Name),
}

/// One record of an answer that is being made.
#[derive(Clone, Debug)]
pub(crate) struct Rr {
    pub(crate) owner: Owner,
    pub(crate) rtype: Rtype,
    pub(crate) ttl: u32,
    pub(crate) data: Rdata,
    /// Whether it is only for those who ask for signatures.
    pub(crate) is_proof: bool,
}

impl Piece {
    /// Makes a piece of the records of the three sections. Every name that is asked for ends with `base`.
    pub(crate) fn new(sections: [&[Rr]; 3], base: &Name, with_proofs: bool) -> Piece {
        let mut maker = Maker { base, bytes: Vec::new(), patches: Vec::new() };
        let counts = sections.map(|records| {
            let records = records.iter().filter(|rr| with_proofs || !rr.is_proof);
            u16::try_from(records.map(|rr| maker.record(rr)).count()).unwrap_or(u16::MAX)
        });
        let records_at = u16::try_from(maker.patches.len()).unwrap_or_default();
        Piece { all: [maker.patches, maker.bytes].concat().into(), records_at, counts }
    }

    /// The pointers, and the records.
    fn parts(&self) -> (&[u8], &[u8]) {
        self.all.split_at_checked(usize::from(self.records_at)).unwrap_or_default()
    }

    /// How many bytes it is long.
    pub(crate) fn len(&self) -> usize {
        self.all.len() - usize::from(self.records_at)
    }

    /// Writes the piece for a question whose name has `name_length` bytes; false if there is no room.
    pub(crate) fn write(&self, name_length: usize, out: &mut [u8], at: usize) -> bool {
        let (patches, records) = self.parts();
        let Some(room) = out.get_mut(at..at + records.len()) else { return false };
        room.copy_from_slice(records);
        for &[a1, a2, s1, s2] in patches.as_chunks::<PATCH>().0 {
            let suffix = usize::from(u16::from_ne_bytes([s1, s2]));
            let skipped = if suffix == 0 { 0 } else { name_length.saturating_sub(suffix) };
            let offset = u16::try_from(QUESTION_AT + skipped).unwrap_or_default();
            let place = usize::from(u16::from_ne_bytes([a1, a2]));
            if let Some(two) = room.get_mut(place..place + 2) {
                two.copy_from_slice(&(POINTER | offset).to_be_bytes());
            }
        }
        true
    }
}

/// A piece that is being made.
struct Maker<'a> {
    base: &'a Name,
    bytes: Vec<u8>,
    patches: Vec<u8>,
}

impl Maker<'_> {
    fn record(&mut self, rr: &Rr) {
        match &rr.owner {
            Owner::Asked => self.pointer(0),
            Owner::Name(name) => self.name(name.wire()),
        }
        self.bytes.extend(rr.rtype.0.to_be_bytes());
        self.bytes.extend(1u16.to_be_bytes());
        self.bytes.extend(rr.ttl.to_be_bytes());
        let length_at = self.bytes.len();
        self.bytes.extend([0, 0]);
        self.data(rr);
        let length = u16::try_from(self.bytes.len() - length_at - 2).unwrap_or_default();
        self.bytes[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
    }

    fn data(&mut self, rr: &Rr) {
        let data = &rr.data.0[..];
        match rr.rtype.name_at().and_then(|at| data.split_at_checked(at)) {
            Some((before, name)) => {
                self.bytes.extend(before);
                self.name(name);
            }
            None if rr.rtype == Rtype::SOA => self.soa(data),
            None => self.bytes.extend(data),
        }
    }

    /// Two names and five numbers.
    fn soa(&mut self, data: &[u8]) {
        let mut rest = data;
        for _ in 0..2 {
            let length = crate::name::wire_length(rest).unwrap_or(0);
            let (name, after) = rest.split_at(length);
            self.name(name);
            rest = after;
        }
        self.bytes.extend(rest);
    }

    /// A name: as many labels as the base does not have, and a pointer to the rest.
    fn name(&mut self, name: &[u8]) {
        let mut rest = name;
        loop {
            if rest.len() > 1 && self.has(rest) {
                return self.pointer(rest.len());
            }
            let Some(shorter) = strip(rest) else {
                return self.bytes.extend(rest);
            };
            self.bytes.extend(&rest[..rest.len() - shorter.len()]);
            rest = shorter;
        }
    }

    /// Whether the base ends with these labels.
    fn has(&self, tail: &[u8]) -> bool {
        let mut rest = Some(self.base.wire());
        while let Some(name) = rest {
            if name == tail.to_ascii_lowercase() {
                return true;
            }
            rest = strip(name);
        }
        false
    }

    fn pointer(&mut self, suffix: usize) {
        // Pieces are far shorter; what does not fit is written out by who checks the length of the zone's answers.
        let at = u16::try_from(self.bytes.len()).unwrap_or(u16::MAX);
        let suffix = u16::try_from(suffix).unwrap_or_default();
        self.patches.extend([at.to_ne_bytes(), suffix.to_ne_bytes()].concat());
        self.bytes.extend([0, 0]);
    }
}
