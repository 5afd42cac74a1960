//! What people want to know of a certificate or a list of revocations, read from its DER.
//!
//! Only what this project writes itself need be understood; whatever does not fit is an error, never a panic. Nothing
//! here decides whether a certificate is believed: that is done where links begin.

use std::net::IpAddr;

use anyhow::{Context as _, anyhow};

const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// `[0]` round the version of a certificate.
const VERSION: u8 = 0xa0;
/// `[3]` round the extensions of a certificate.
const EXTENSIONS: u8 = 0xa3;
/// In a subject alternative name.
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;

/// RFC 5280, 4.1.2.4: id-at-commonName.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
/// RFC 5280, 4.2.1.6: id-ce-subjectAltName.
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];

/// A certificate, as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// In hexadecimal digits.
    pub serial: String,
    pub common_name: String,
    pub not_before: jiff::Timestamp,
    pub not_after: jiff::Timestamp,
    pub dns_names: Vec<String>,
    pub addresses: Vec<IpAddr>,
    /// The names as they are encoded, to compare them.
    pub issuer: Vec<u8>,
    pub subject: Vec<u8>,
    pub public_key: Vec<u8>,
}

/// A list of revocations: of whom, and each serial with when that was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocations {
    pub issuer: Vec<u8>,
    pub revoked: Vec<(String, jiff::Timestamp)>,
}

impl Certificate {
    pub fn read(der: &[u8]) -> anyhow::Result<Certificate> {
        Certificate::parts(der).context("read a certificate")
    }

    fn parts(der: &[u8]) -> anyhow::Result<Certificate> {
        let mut signed = Der(Der(der).the(SEQUENCE)?);
        let mut body = Der(signed.the(SEQUENCE)?);
        if body.tag() == Some(VERSION) {
            body.any()?;
        }
        let serial = hex(body.the(INTEGER)?);
        body.the(SEQUENCE)?;
        let issuer = body.whole()?.to_vec();
        let mut validity = Der(body.the(SEQUENCE)?);
        let (not_before, not_after) = (validity.time()?, validity.time()?);
        let subject = body.whole()?.to_vec();
        let public_key = body.whole()?.to_vec();
        let mut certificate = Certificate {
            serial,
            common_name: common_name(&subject).unwrap_or_default(),
            not_before,
            not_after,
            dns_names: Vec::new(),
            addresses: Vec::new(),
            issuer,
            subject,
            public_key,
        };
        while let Some(tag) = body.tag() {
            let (_, content) = body.any()?;
            if tag == EXTENSIONS {
                certificate.read_names(content)?;
            }
        }
        Ok(certificate)
    }

    fn read_names(&mut self, extensions: &[u8]) -> anyhow::Result<()> {
        let mut extensions = Der(Der(extensions).the(SEQUENCE)?);
        while extensions.tag().is_some() {
            let mut extension = Der(extensions.the(SEQUENCE)?);
            if extension.the(OID)? != SUBJECT_ALT_NAME {
                continue;
            }
            while extension.tag().is_some_and(|tag| tag != OCTET_STRING) {
                extension.any()?;
            }
            let mut names = Der(Der(extension.the(OCTET_STRING)?).the(SEQUENCE)?);
            while names.tag().is_some() {
                match names.any()? {
                    (DNS_NAME, name) => {
                        self.dns_names.push(String::from_utf8_lossy(name).into_owned());
                    }
                    (IP_ADDRESS, address) => self.addresses.extend(address_of(address)),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

impl Revocations {
    pub fn read(der: &[u8]) -> anyhow::Result<Revocations> {
        Revocations::parts(der).context("read a list of revocations")
    }

    fn parts(der: &[u8]) -> anyhow::Result<Revocations> {
        let mut signed = Der(Der(der).the(SEQUENCE)?);
        let mut body = Der(signed.the(SEQUENCE)?);
        if body.tag() == Some(INTEGER) {
            body.any()?;
        }
        body.the(SEQUENCE)?;
        let issuer = body.whole()?.to_vec();
        body.time()?;
        if matches!(body.tag(), Some(UTC_TIME | GENERALIZED_TIME)) {
            body.time()?;
        }
        let mut revoked = Vec::new();
        if body.tag() == Some(SEQUENCE) {
            let mut list = Der(body.the(SEQUENCE)?);
            while list.tag().is_some() {
                let mut entry = Der(list.the(SEQUENCE)?);
                revoked.push((hex(entry.the(INTEGER)?), entry.time()?));
            }
        }
        Ok(Revocations { issuer, revoked })
    }
}

/// The common name within an encoded name.
fn common_name(name: &[u8]) -> Option<String> {
    let mut sets = Der(Der(name).the(SEQUENCE).ok()?);
    while sets.tag().is_some() {
        let mut set = Der(sets.the(SET).ok()?);
        while set.tag().is_some() {
            let mut pair = Der(set.the(SEQUENCE).ok()?);
            let is_it = pair.the(OID).ok()? == COMMON_NAME;
            let (_, text) = pair.any().ok()?;
            if is_it {
                return Some(String::from_utf8_lossy(text).into_owned());
            }
        }
    }
    None
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let sixteen = <[u8; 16]>::try_from(bytes).map(IpAddr::from);
    four.or(sixteen).ok()
}

/// A positive number; the zero before a high bit is not part of it.
fn hex(integer: &[u8]) -> String {
    let digits = match integer {
        [0, rest @ ..] if !rest.is_empty() => rest,
        all => all,
    };
    digits.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What is still to be read.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    fn tag(&self) -> Option<u8> {
        self.0.first().copied()
    }

    /// The next value: its tag, its content.
    fn any(&mut self) -> anyhow::Result<(u8, &'a [u8])> {
        let before = self.0;
        let whole = self.whole()?;
        let header = header_length(before)?;
        let content = whole.get(header..).context("it ends too early")?;
        Ok((before[0], content))
    }

    /// The content of the next value, which has this tag.
    fn the(&mut self, tag: u8) -> anyhow::Result<&'a [u8]> {
        match self.any()? {
            (found, content) if found == tag => Ok(content),
            (found, _) => Err(anyhow!("there is {found:#04x} where {tag:#04x} belongs")),
        }
    }

    /// The next value with its tag and length.
    fn whole(&mut self) -> anyhow::Result<&'a [u8]> {
        let header = header_length(self.0)?;
        let length = match self.0.get(1..header).context("it ends too early")? {
            [short] => usize::from(*short),
            [_, long @ ..] => long.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)),
            [] => return Err(anyhow!("it ends too early")),
        };
        let end = header.checked_add(length).context("a length beyond the end")?;
        let (whole, rest) = self.0.split_at_checked(end).context("it ends too early")?;
        self.0 = rest;
        Ok(whole)
    }

    fn time(&mut self) -> anyhow::Result<jiff::Timestamp> {
        let (tag, text) = self.any()?;
        let text = str::from_utf8(text).context("a time that is no text")?;
        let full = match tag {
            // RFC 5280, 4.1.2.5.1: two digits from 50 on are of the century before.
            UTC_TIME if text.starts_with(|first| first >= '5') => format!("19{text}"),
            UTC_TIME => format!("20{text}"),
            GENERALIZED_TIME => text.to_owned(),
            other => return Err(anyhow!("there is {other:#04x} where a time belongs")),
        };
        let time = full.strip_suffix('Z').context("a time that is not in UTC")?;
        let time = jiff::civil::DateTime::strptime("%Y%m%d%H%M%S", time)
            .with_context(|| format!("the time {full:?}"))?;
        Ok(time.to_zoned(jiff::tz::TimeZone::UTC)?.timestamp())
    }
}

/// How long tag and length of a value are.
fn header_length(bytes: &[u8]) -> anyhow::Result<usize> {
    /// Longer lengths belong to nothing that fits a file of ours.
    const LENGTH_BYTES_MAX: u8 = 4;
    let length = *bytes.get(1).context("it ends too early")?;
    match length {
        0..0x80 => Ok(2),
        long if (1..=LENGTH_BYTES_MAX).contains(&(long & 0x7f)) => Ok(2 + usize::from(long & 0x7f)),
        _ => Err(anyhow!("a length in a form that is not DER")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn certificate() -> Vec<u8> {
        let key = rcgen::KeyPair::generate().unwrap();
        let names = vec!["a.node.outlast.internal".to_owned(), "10.0.0.1".to_owned()];
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.serial_number = Some(rcgen::SerialNumber::from(0x80ab_u64));
        params.distinguished_name.push(rcgen::DnType::CommonName, "a");
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn what_was_put_in_is_read() {
        let read = Certificate::read(&certificate()).unwrap();
        assert_eq!((read.serial.as_str(), read.common_name.as_str()), ("80ab", "a"));
        assert_eq!(read.dns_names, ["a.node.outlast.internal"]);
        assert_eq!(read.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(read.not_before.to_string(), "1975-01-01T00:00:00Z");
        assert_eq!(read.not_after.to_string(), "4096-01-01T00:00:00Z");
        assert_eq!(read.issuer, read.subject);
    }

    #[test]
    fn a_certificate_cut_short_is_refused() {
        let der = certificate();
        for cut in 0..der.len() {
            assert!(Certificate::read(&der[..cut]).is_err(), "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            drop(Certificate::read(&bytes));
            drop(Revocations::read(&bytes));
        }

        #[test]
        fn a_damaged_certificate_is_read_or_refused(at in any::<prop::sample::Index>(), to in any::<u8>()) {
            let mut der = certificate();
            let at = at.index(der.len());
            der[at] = to;
            drop(Certificate::read(&der));
            drop(Revocations::read(&der));
        }
    }
}
