//! DNSSEC: one key per zone signs everything (RFC 4033 to 4035, RFC 6605). Signatures are made when a table is built.

use std::collections::HashMap;
use std::fmt;

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};

use crate::name::Name;
use crate::zone::{Rdata, Rtype};

/// ECDSAP256SHA256 (RFC 6605).
const ALGORITHM: u8 = 13;

/// Zone key and secure entry point (RFC 4034 2.1.1): a key that signs the zone and itself.
const FLAGS_CSK: u16 = 257;

/// SHA-256 as the digest of a DS (RFC 4509).
const DIGEST_SHA256: u8 = 2;

/// For how long a signature is valid, in seconds.
pub const SIGNATURE_VALID: u32 = 14 * 86_400;

/// How much of that a kept signature must still have when a table is built, or else a new one is made. Tables are to be built
/// anew at least this often.
pub const SIGNATURE_REFRESH: u32 = SIGNATURE_VALID / 3;

/// How long before now a signature begins to be valid, for clocks that are slow.
const SIGNATURE_EARLY: u32 = 3_600;

/// Signatures that are kept; of more, none is kept any longer.
const KEPT_MAX: usize = 1 << 20;

/// The key of a zone.
pub struct ZoneKey {
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

impl fmt::Debug for ZoneKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ZoneKey({})", self.tag())
    }
}

/// The bytes are no key for ECDSA with P-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadKey;

impl fmt::Display for BadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the key of a zone must be an ECDSA key for P-256 in PKCS#8 form")
    }
}

impl std::error::Error for BadKey {}

impl ZoneKey {
    /// Makes a new key; in PKCS#8 form.
    pub fn generate() -> Result<Vec<u8>, BadKey> {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random);
        Ok(document.map_err(|_unspecified| BadKey)?.as_ref().to_vec())
    }

    /// Reads a key in PKCS#8 form.
    pub fn from_pkcs8(bytes: &[u8]) -> Result<ZoneKey, BadKey> {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, bytes, &random)
            .map_err(|_rejected| BadKey)?;
        Ok(ZoneKey { pair, random })
    }

    /// The data of the DNSKEY and CDNSKEY records.
    pub fn dnskey(&self) -> Rdata {
        let [high, low] = FLAGS_CSK.to_be_bytes();
        // After the format byte of an uncompressed point (RFC 6605 4).
        let point = self.pair.public_key().as_ref().get(1..).unwrap_or_default();
        Rdata([&[high, low, 3, ALGORITHM], point].concat())
    }

    /// The data of the DS that the parent zone needs, and of the CDS that tells it (RFC 7344).
    pub fn ds(&self, zone: &Name) -> Rdata {
        let [high, low] = self.tag().to_be_bytes();
        let whole = [zone.wire(), &self.dnskey().0].concat();
        let digest = ring::digest::digest(&ring::digest::SHA256, &whole);
        Rdata([&[high, low, ALGORITHM, DIGEST_SHA256], digest.as_ref()].concat())
    }

    /// The tag by which signatures name the key (RFC 4034 appendix B).
    pub fn tag(&self) -> u16 {
        let data = self.dnskey().0;
        let sum = data.chunks(2).map(|pair| match *pair {
            [high, low] => u32::from(u16::from_be_bytes([high, low])),
            [high] => u32::from(high) << 8,
            _ => 0,
        });
        let sum = sum.sum::<u32>();
        u16::try_from((sum + (sum >> 16)) & 0xffff).unwrap_or_default()
    }

    /// Signs; none if the system has no randomness.
    fn sign(&self, bytes: &[u8]) -> Option<[u8; 64]> {
        let signature = self.pair.sign(&self.random, bytes).ok()?;
        signature.as_ref().try_into().ok()
    }
}

/// A signature that may be used again.
#[derive(Clone, Copy, Debug)]
struct Kept {
    inception: u32,
    signature: [u8; 64],
    /// Which table used it last.
    round: u64,
}

/// Signatures of earlier tables, so that only what has changed is signed again.
#[derive(Debug, Default)]
pub struct Signatures {
    kept: HashMap<Box<[u8]>, Kept>,
    round: u64,
}

/// One set of records as it is signed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Signed<'a> {
    pub(crate) zone: &'a Name,
    pub(crate) owner: &'a Name,
    pub(crate) rtype: Rtype,
    pub(crate) ttl: u32,
    pub(crate) records: &'a [Rdata],
}

impl Signatures {
    /// Begins a table.
    pub(crate) fn begin(&mut self) {
        self.round += 1;
    }

    /// Forgets what the table that was built last did not use.
    pub(crate) fn end(&mut self) {
        let round = self.round;
        self.kept.retain(|_, kept| kept.round == round);
    }

    /// The data of the RRSIG over a set (RFC 4034 3.1), at `now` in seconds of the epoch.
    pub(crate) fn rrsig(&mut self, key: &ZoneKey, set: Signed<'_>, now: u32) -> Option<Rdata> {
        let content = content(set);
        let id: Box<[u8]> =
            [&key.tag().to_be_bytes()[..], set.zone.wire(), &content].concat().into();
        let kept = self.kept.get(&id).copied().filter(|kept| {
            let age = now.wrapping_sub(kept.inception).cast_signed();
            // An age below 0: the clock went back; a signature of the future would be refused.
            age >= 0 && age.cast_unsigned() < SIGNATURE_EARLY + SIGNATURE_VALID - SIGNATURE_REFRESH
        });
        let inception = kept.map_or(now.wrapping_sub(SIGNATURE_EARLY), |kept| kept.inception);
        let head = head(key, set, inception);
        let signature = match kept {
            Some(kept) => kept.signature,
            None => key.sign(&[&head[..], &content].concat())?,
        };
        if self.kept.len() < KEPT_MAX {
            self.kept.insert(id, Kept { inception, signature, round: self.round });
        }
        Some(Rdata([&head[..], &signature].concat()))
    }
}

/// The data of an RRSIG before its signature.
fn head(key: &ZoneKey, set: Signed<'_>, inception: u32) -> Vec<u8> {
    let labels = set.owner.label_count() - usize::from(set.owner.is_wildcard());
    let expiration = inception.wrapping_add(SIGNATURE_EARLY + SIGNATURE_VALID);
    let mut head = Vec::with_capacity(18 + set.zone.wire().len());
    head.extend(set.rtype.0.to_be_bytes());
    head.extend([ALGORITHM, u8::try_from(labels).unwrap_or(u8::MAX)]);
    head.extend(set.ttl.to_be_bytes());
    head.extend(expiration.to_be_bytes());
    head.extend(inception.to_be_bytes());
    head.extend(key.tag().to_be_bytes());
    head.extend(set.zone.wire());
    head
}

/// The records of a set in canonical form and order (RFC 4034 6).
fn content(set: Signed<'_>) -> Vec<u8> {
    let mut records: Vec<Rdata> = set.records.iter().map(|r| r.canonical(set.rtype)).collect();
    records.sort();
    records.dedup();
    let mut content = Vec::new();
    for record in &records {
        content.extend(set.owner.wire());
        content.extend(set.rtype.0.to_be_bytes());
        content.extend(1u16.to_be_bytes());
        content.extend(set.ttl.to_be_bytes());
        content.extend(u16::try_from(record.0.len()).unwrap_or(u16::MAX).to_be_bytes());
        content.extend(&record.0);
    }
    content
}

/// The data of an NSEC: the next name, and the types that are here (RFC 4034 4.1).
pub(crate) fn nsec(next: &Name, types: impl IntoIterator<Item = Rtype>) -> Rdata {
    let mut windows: std::collections::BTreeMap<u8, Vec<u8>> = std::collections::BTreeMap::new();
    for rtype in types {
        let [window, low] = rtype.0.to_be_bytes();
        let bits = windows.entry(window).or_default();
        let byte = usize::from(low / 8);
        bits.resize(bits.len().max(byte + 1), 0);
        bits[byte] |= 0x80 >> (low % 8);
    }
    let mut data = next.wire().to_vec();
    for (window, bits) in windows {
        data.extend([window, u8::try_from(bits.len()).unwrap_or(32)]);
        data.extend(bits);
    }
    Rdata(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 4034 4.3.
    #[test]
    fn types_are_bits_in_windows() {
        let next: Name = "host.example.com".parse().unwrap();
        let types = [Rtype::A, Rtype::MX, Rtype::RRSIG, Rtype::NSEC, Rtype(1234)];
        let mut bits = vec![0, 6, 0x40, 1, 0, 0, 0, 3, 4, 27];
        bits.extend([0; 26]);
        bits.push(0x20);
        assert_eq!(nsec(&next, types).0, [next.wire(), &bits].concat());
    }

    #[test]
    fn a_signature_is_kept_until_a_third_of_its_time_is_left() {
        let key = ZoneKey::from_pkcs8(&ZoneKey::generate().unwrap()).unwrap();
        let zone: Name = "example.com".parse().unwrap();
        let records = [Rdata::a([192, 0, 2, 1].into())];
        let set = Signed { zone: &zone, owner: &zone, rtype: Rtype::A, ttl: 30, records: &records };
        let mut signatures = Signatures::default();
        signatures.begin();
        let mut at = |now| signatures.rrsig(&key, set, now).unwrap();
        let first = at(1_000_000);
        assert_eq!(first, at(1_000_000 + SIGNATURE_VALID - SIGNATURE_REFRESH - 1));
        assert_ne!(first, at(1_000_000 + SIGNATURE_VALID - SIGNATURE_REFRESH));
        signatures.begin();
        signatures.end();
        assert!(signatures.kept.is_empty());
    }
}
