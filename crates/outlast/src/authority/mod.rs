//! The private CA of a cluster: makes it, issues and rotates certificates of nodes, revokes them, says what is there.
//!
//! All of it is files in one directory: `ca.pem` (one CA or several, while one takes the place of another), `ca.key`,
//! `ca.crl`, and for each node `NODE.pem` and `NODE.key`. The key of the CA never leaves the directory.

pub mod der;

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow, bail};
use outlast_link::{Identity, Pem, certificate_name};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PublicKeyData as _, RevokedCertParams, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};

use crate::file::part_name;
use der::{Certificate, Revocations};

/// How long a CA is good for.
pub const CA_DAYS: u32 = 3650;
/// How long a node's certificate is good for.
pub const NODE_DAYS: u32 = 365;
/// More is a mistake; clocks and formats have their ends.
pub const DAYS_MAX: u32 = 36_500;
/// A certificate is good a little earlier than it is made: clocks of nodes differ.
const CLOCKS_DIFFER_MAX: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Hexadecimal digits of a serial that was made here.
const SERIAL_DIGITS: usize = 32;

const CA: &str = "ca.pem";
const CA_KEY: &str = "ca.key";
const CA_CRL: &str = "ca.crl";

const PUBLIC: u32 = 0o644;
const PRIVATE: u32 = 0o600;

/// A directory with a CA in it, or for one.
#[derive(Clone, Debug)]
pub struct Authority {
    pub dir: PathBuf,
}

/// A node and the address that other nodes reach it at, if that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    pub node: String,
    pub address: Option<IpAddr>,
}

/// A certificate that was made for a node.
#[derive(Clone, Debug)]
pub struct Issued {
    pub node: String,
    pub cert: PathBuf,
    pub key: PathBuf,
    pub certificate: Certificate,
    /// The one that it takes the place of.
    pub before: Option<Certificate>,
}

/// What stands in the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub file: String,
    /// `None`: a CA.
    pub node: Option<String>,
    pub certificate: Certificate,
    pub state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Good,
    NotYet,
    Expired,
    Revoked,
    /// Of no CA in `ca.pem`.
    OtherCa,
}

/// The CA with its key: it can sign.
struct Signer {
    issuer: Issuer<'static, KeyPair>,
    certificate: Certificate,
}

impl Authority {
    /// Makes the CA. Refuses to touch one that is there.
    pub fn init(&self, cluster: &str, days: u32) -> anyhow::Result<Certificate> {
        part_name(cluster).map_err(|why| anyhow!("the cluster's name: {why}"))?;
        fs::create_dir_all(&self.dir)
            .with_context(|| format!("make the directory {}", self.dir.display()))?;
        for name in [CA, CA_KEY] {
            if self.path(name).exists() {
                bail!(
                    "{} exists already: a new CA would shut out every node that has a certificate of the old one; name \
                     another directory with --dir, or see docs/certificates.md for how one CA takes the place of another",
                    self.path(name).display()
                );
            }
        }
        let key = KeyPair::generate().context("make a key")?;
        // Two CAs of a cluster must differ in name, else lists of revocations are held against the wrong one.
        let name = format!("outlast CA of {cluster} {}", &random_serial()?[..8]);
        let mut params = ca_params(&name);
        (params.not_before, params.not_after) = validity(days);
        params.serial_number = Some(serial(&random_serial()?)?);
        let certificate = params.self_signed(&key).context("sign the CA's certificate")?;
        write_new(&self.path(CA_KEY), key.serialize_pem().as_bytes(), PRIVATE)?;
        write_new(&self.path(CA), certificate.pem().as_bytes(), PUBLIC)?;
        Certificate::read(certificate.der())
    }

    /// Makes first certificates of nodes; all or none.
    pub fn issue(&self, subjects: &[Subject], days: u32) -> anyhow::Result<Vec<Issued>> {
        let signer = self.signer()?;
        for Subject { node, .. } in subjects {
            good_name(node)?;
            let (cert, key) = self.paths_of(node);
            if let Some(path) = [cert, key].iter().find(|path| path.exists()) {
                bail!(
                    "{} exists already: `outlast certs rotate {node}` makes a new one in its place",
                    path.display()
                );
            }
        }
        subjects.iter().map(|subject| self.make(&signer, subject, days, None)).collect()
    }

    /// Makes new certificates of nodes in place of those that are there; all or none. What no topology says of the
    /// address is taken over.
    pub fn rotate(&self, subjects: &[Subject], days: u32) -> anyhow::Result<Vec<Issued>> {
        let signer = self.signer()?;
        let mut with_old = Vec::new();
        for subject in subjects {
            let (cert, _) = self.paths_of(&subject.node);
            if !cert.exists() {
                bail!(
                    "there is no {}: `outlast certs issue {}` makes the first one",
                    cert.display(),
                    subject.node
                );
            }
            let old = read_certificate(&cert)?;
            let address = subject.address.or_else(|| old.addresses.first().copied());
            with_old.push((Subject { address, ..subject.clone() }, old));
        }
        with_old
            .into_iter()
            .map(|(subject, old)| self.make(&signer, &subject, days, Some(old)))
            .collect()
    }

    fn make(
        &self,
        signer: &Signer,
        subject: &Subject,
        days: u32,
        before: Option<Certificate>,
    ) -> anyhow::Result<Issued> {
        let node = &subject.node;
        let end: SystemTime = validity(days).1;
        if jiff::Timestamp::try_from(end)? > signer.certificate.not_after {
            bail!(
                "the CA itself is good until {} only: give fewer --days, or let a new CA take its place \
                 (docs/certificates.md)",
                signer.certificate.not_after.strftime("%Y-%m-%d")
            );
        }
        let pair = KeyPair::generate().context("make a key")?;
        let name = certificate_name(node);
        let mut params = CertificateParams::default();
        params.distinguished_name = named(node);
        params.subject_alt_names =
            vec![SanType::DnsName(name.try_into().context("the node's name in a certificate")?)];
        params.subject_alt_names.extend(subject.address.map(SanType::IpAddress));
        (params.not_before, params.not_after) = validity(days);
        params.serial_number = Some(serial(&random_serial()?)?);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate =
            params.signed_by(&pair, &signer.issuer).context("sign the node's certificate")?;

        // What links would say to it is known here and now.
        let pem = Pem {
            ca: read(&self.path(CA))?.into_bytes(),
            cert: certificate.pem().into_bytes(),
            key: pair.serialize_pem().into_bytes(),
            crl: None,
        };
        let identity = Identity::from_pem(&pem)?;
        if let Some(fault) = identity.fault() {
            bail!(
                "make a certificate of node `{node}`: {fault}; is the CA itself still good? See `outlast certs show`"
            );
        }
        if identity.nodes() != [node.as_str()] {
            bail!("the name `{node}` cannot stand in a certificate: give the node another one");
        }

        let (cert, key) = self.paths_of(node);
        if before.is_some() {
            replace(&key, &pem.key, PRIVATE)?;
            replace(&cert, &pem.cert, PUBLIC)?;
        } else {
            write_new(&key, &pem.key, PRIVATE)?;
            write_new(&cert, &pem.cert, PUBLIC)?;
        }
        let certificate = Certificate::read(certificate.der())?;
        Ok(Issued { node: node.clone(), cert, key, certificate, before })
    }

    /// Revokes a node's certificate, or one by its serial. Returns the serial, and whether that was news.
    pub fn revoke(&self, which: &str) -> anyhow::Result<(String, bool)> {
        let signer = self.signer()?;
        let serial_text = self.serial_of(which, &signer)?;
        let mut lists = Vec::new();
        let mut revoked = Vec::new();
        for (pem, list) in self.revocations()? {
            // Lists of other CAs stay as they are.
            if list.issuer == signer.certificate.subject {
                revoked.extend(list.revoked);
            } else {
                lists.push(pem);
            }
        }
        if revoked.iter().any(|(serial, _)| *serial == serial_text) {
            return Ok((serial_text, false));
        }
        let now = SystemTime::now();
        revoked.push((serial_text.clone(), jiff::Timestamp::try_from(now)?));
        let mut entries = Vec::new();
        for (text, time) in &revoked {
            entries.push(RevokedCertParams {
                serial_number: serial(text)?,
                revocation_time: SystemTime::from(*time).into(),
                reason_code: None,
                invalidity_date: None,
            });
        }
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let list = CertificateRevocationListParams {
            this_update: (now - CLOCKS_DIFFER_MAX).into(),
            next_update: (now + DAY * CA_DAYS).into(),
            // It only has to grow.
            crl_number: SerialNumber::from(since_epoch.as_secs()),
            issuing_distribution_point: None,
            revoked_certs: entries,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&signer.issuer).context("sign the list of revocations")?;
        lists.push(list.pem().context("write the list of revocations")?);
        replace(&self.path(CA_CRL), lists.concat().as_bytes(), PUBLIC)?;
        Ok((serial_text, true))
    }

    fn serial_of(&self, which: &str, signer: &Signer) -> anyhow::Result<String> {
        if good_name(which).is_ok() {
            let (cert, _) = self.paths_of(which);
            if cert.exists() {
                let certificate = read_certificate(&cert)?;
                if certificate.issuer != signer.certificate.subject {
                    bail!(
                        "{} is of another CA than ca.key: take that CA out of ca.pem on all nodes instead",
                        cert.display()
                    );
                }
                return Ok(certificate.serial);
            }
        }
        let digits = which.to_ascii_lowercase();
        let even = digits.len().is_multiple_of(2) && !digits.is_empty() && digits.len() <= 40;
        // Shorter ones are more likely the name of a node that has no certificate here.
        if even
            && digits.len() >= SERIAL_DIGITS / 2
            && digits.bytes().all(|b| b.is_ascii_hexdigit())
        {
            return Ok(digits);
        }
        bail!(
            "there is neither a node `{which}` with a certificate in {} nor is that a serial: `outlast certs show` lists \
             both",
            self.dir.display()
        )
    }

    /// All certificates in the directory: CAs first, then nodes by name.
    pub fn list(&self) -> anyhow::Result<Vec<Listed>> {
        let cas = self.cas()?;
        let revoked = self.revocations()?;
        let now = jiff::Timestamp::now();
        let state = |certificate: &Certificate, is_ca: bool| {
            let is_known = is_ca || cas.iter().any(|ca| ca.subject == certificate.issuer);
            let is_revoked = revoked.iter().any(|(_, list)| {
                list.issuer == certificate.issuer
                    && list.revoked.iter().any(|(serial, _)| *serial == certificate.serial)
            });
            match () {
                () if !is_known => State::OtherCa,
                () if is_revoked => State::Revoked,
                () if certificate.not_after < now => State::Expired,
                () if certificate.not_before > now => State::NotYet,
                () => State::Good,
            }
        };
        let mut listed: Vec<Listed> = cas
            .iter()
            .map(|ca| Listed {
                file: CA.to_owned(),
                node: None,
                certificate: ca.clone(),
                state: state(ca, true),
            })
            .collect();
        for file in self.node_files()? {
            let certificate = read_certificate(&self.path(&file))?;
            let suffix = outlast_link::NODE_SUFFIX;
            let node = certificate.dns_names.iter().find_map(|name| name.strip_suffix(suffix));
            let node = node.unwrap_or(&certificate.common_name).to_owned();
            let state = state(&certificate, false);
            listed.push(Listed { file, node: Some(node), certificate, state });
        }
        Ok(listed)
    }

    fn node_files(&self) -> anyhow::Result<Vec<String>> {
        let reading = || format!("read the directory {}", self.dir.display());
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir).with_context(reading)? {
            let name = entry.with_context(reading)?.file_name();
            match name.to_str() {
                Some(name) if name.ends_with(".pem") && name != CA => files.push(name.to_owned()),
                Some(_) | None => {}
            }
        }
        files.sort();
        Ok(files)
    }

    fn cas(&self) -> anyhow::Result<Vec<Certificate>> {
        let path = self.path(CA);
        let pem = read(&path)?;
        let mut cas = Vec::new();
        for der in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let der = der.map_err(|e| anyhow!("read {}: {e}", path.display()))?;
            cas.push(Certificate::read(&der).with_context(|| format!("read {}", path.display()))?);
        }
        if cas.is_empty() {
            bail!("read {}: it holds no certificate", path.display());
        }
        Ok(cas)
    }

    fn signer(&self) -> anyhow::Result<Signer> {
        let cas = self.cas()?;
        let path = self.path(CA_KEY);
        let key = KeyPair::from_pem(&read(&path)?)
            .map_err(|e| anyhow!("read the CA's key {}: {e}", path.display()))?;
        let public = key.subject_public_key_info();
        let Some(certificate) = cas.into_iter().find(|ca| ca.public_key == public) else {
            bail!("{} is the key of no CA in {}", path.display(), self.path(CA).display());
        };
        let issuer = Issuer::new(ca_params(&certificate.common_name), key);
        Ok(Signer { issuer, certificate })
    }

    /// The lists in `ca.crl`, each with its PEM; none if there is no file.
    fn revocations(&self) -> anyhow::Result<Vec<(String, Revocations)>> {
        const BEGIN: &str = "-----BEGIN X509 CRL-----";
        let path = self.path(CA_CRL);
        if !path.exists() {
            return Ok(Vec::new());
        }
        let text = read(&path)?;
        let mut lists = Vec::new();
        for piece in text.split(BEGIN).skip(1) {
            let pem = format!("{BEGIN}{piece}");
            let der = CertificateRevocationListDer::from_pem_slice(pem.as_bytes())
                .map_err(|e| anyhow!("read {}: {e}", path.display()))?;
            let list =
                Revocations::read(&der).with_context(|| format!("read {}", path.display()))?;
            lists.push((pem, list));
        }
        Ok(lists)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn paths_of(&self, node: &str) -> (PathBuf, PathBuf) {
        (self.path(&format!("{node}.pem")), self.path(&format!("{node}.key")))
    }
}

/// A node's name that can stand in a file name and in a certificate.
fn good_name(node: &str) -> anyhow::Result<()> {
    part_name(node).map_err(|why| anyhow!("the node's name: {why}"))?;
    if node == "ca" {
        bail!("a node `ca` would have the files of the CA: give the node another name");
    }
    if node.starts_with('-') || node.ends_with('-') {
        bail!("the name `{node}` cannot stand in a certificate: it must not begin or end with `-`");
    }
    Ok(())
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(name);
    // It signs certificates of nodes and nothing below them.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// From a little before now.
fn validity<T: From<SystemTime>>(days: u32) -> (T, T) {
    let now = SystemTime::now();
    ((now - CLOCKS_DIFFER_MAX).into(), (now + DAY * days).into())
}

fn random_serial() -> anyhow::Result<String> {
    let mut bytes = [0; SERIAL_DIGITS / 2];
    rustls::crypto::ring::default_provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_unspecified| anyhow!("the kernel gives no random numbers"))?;
    // RFC 5280, 4.1.2.2: positive; and never with a zero in front, so that it reads as it is written.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn serial(digits: &str) -> anyhow::Result<SerialNumber> {
    let pairs = digits.as_bytes().chunks(2).map(|pair| {
        let pair = str::from_utf8(pair).context("a serial that is no text")?;
        u8::from_str_radix(pair, 16).with_context(|| format!("the serial {digits}"))
    });
    Ok(SerialNumber::from_slice(&pairs.collect::<anyhow::Result<Vec<u8>>>()?))
}

fn read(path: &Path) -> anyhow::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(anyhow!(
            "there is no {}: name the CA's directory with --dir, or make a CA with `outlast certs init`",
            path.display()
        )),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

fn read_certificate(path: &Path) -> anyhow::Result<Certificate> {
    let der = CertificateDer::from_pem_slice(read(path)?.as_bytes())
        .map_err(|e| anyhow!("read {}: {e}", path.display()))?;
    Certificate::read(&der).with_context(|| format!("read {}", path.display()))
}

/// Writes a file that must not exist yet.
fn write_new(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    file.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .with_context(|| format!("write {}", path.display()))
}

/// Puts a file in the place of another; whoever reads sees the one or the other.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", beside.display()));
        }
        // What an interrupted run left is gone.
        Ok(()) | Err(_) => {}
    }
    write_new(&beside, bytes, mode)?;
    fs::rename(&beside, path).with_context(|| format!("write {}", path.display()))
}
