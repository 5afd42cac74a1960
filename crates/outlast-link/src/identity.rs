//! Who a node is and whom it believes: certificates, the private CA and the list of what was revoked.
//!
//! A node's certificate names the node in a DNS name under [`NODE_SUFFIX`] and is signed by a CA of the cluster. Chain,
//! dates and revocation are judged here and nowhere else, when a connection begins and again while it lasts.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, TrustAnchor, UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig,
    SignatureScheme,
};
use webpki::{
    CertRevocationList, EndEntityCert, KeyUsage, OwnedCertRevocationList, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy, anchor_from_trusted_cert,
};

use crate::limits::FILE_MAX;

/// What stands behind a node's name in its certificate. `internal` is never a public name.
pub const NODE_SUFFIX: &str = ".node.outlast.internal";

/// The DNS name that a node's certificate has.
pub fn certificate_name(node: &str) -> String {
    format!("{node}{NODE_SUFFIX}")
}

/// PEM: CAs, this node's certificate with those between it and a CA, its key, and what was revoked.
#[derive(Clone, PartialEq, Eq)]
pub struct Pem {
    pub ca: Vec<u8>,
    pub cert: Vec<u8>,
    pub key: Vec<u8>,
    pub crl: Option<Vec<u8>>,
}

impl std::fmt::Debug for Pem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pem")
    }
}

/// Where that is. A list of revocations that does not exist is an empty one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityFiles {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
    pub crl: Option<PathBuf>,
}

impl IdentityFiles {
    pub fn read(&self) -> Result<Pem, IdentityError> {
        let crl = match &self.crl {
            Some(path) if path.exists() => Some(read(path)?),
            Some(_) | None => None,
        };
        Ok(Pem { ca: read(&self.ca)?, cert: read(&self.cert)?, key: read(&self.key)?, crl })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).and_then(|f| f.take(FILE_MAX + 1).read_to_end(&mut bytes));
    file.map_err(|e| IdentityError(format!("read {}: {e}", path.display())))?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(IdentityError(format!(
            "read {}: larger than {FILE_MAX} bytes",
            path.display()
        )));
    }
    Ok(bytes)
}

/// Why files make no identity, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityError(pub String);

impl std::fmt::Display for IdentityError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for IdentityError {}

/// Who this node is and whom it believes.
#[derive(Clone, Debug)]
pub struct Identity {
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) judge: Arc<Judge>,
    names: Vec<String>,
    fault: Option<String>,
}

impl Identity {
    /// Refuses what can never work: no certificate, a key of another certificate, lists that cannot be read.
    pub fn from_pem(pem: &Pem) -> Result<Identity, IdentityError> {
        let provider = provider();
        let chain = certificates(&pem.cert, "certificate")?;
        let first = chain
            .first()
            .ok_or_else(|| IdentityError("certificate: the file holds none".to_owned()))?;
        let names = node_names(first)?;
        let key = PrivateKeyDer::from_pem_slice(&pem.key)
            .map_err(|e| IdentityError(format!("private key: {e}")))?;
        let judge = Arc::new(Judge::new(&pem.ca, pem.crl.as_deref(), &provider)?);
        let fault = match judge.judge(first, &chain[1..], UnixTime::now(), Role::Server) {
            Ok(()) => None,
            Err(
                why @ (webpki::Error::InvalidCrlSignatureForPublicKey
                | webpki::Error::IssuerNotCrlSigner
                | webpki::Error::UnsupportedCriticalExtension),
            ) => {
                return Err(IdentityError(format!("list of revocations: {why}")));
            }
            Err(why) => {
                Some(format!("this node's own certificate: {}", describe(&certificate_error(&why))))
            }
        };

        let wrong = |e: rustls::Error| IdentityError(format!("certificate and key: {e}"));
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(wrong)?
            .dangerous()
            .with_custom_certificate_verifier(judge.clone())
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(wrong)?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(wrong)?
            .with_client_cert_verifier(judge.clone())
            .with_single_cert(chain, key)
            .map_err(wrong)?;
        // A resumed session would go past the certificate, and with it past revocation.
        client.resumption = rustls::client::Resumption::disabled();
        client.enable_sni = false;
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let (client, server) = (Arc::new(client), Arc::new(server));
        Ok(Identity { client, server, judge, names, fault })
    }

    /// The nodes whose certificate this is.
    pub fn nodes(&self) -> &[String] {
        &self.names
    }

    /// Why other nodes will refuse this one: its certificate has expired, was revoked, or is from another CA.
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Random, for instances and for the jitter of retries.
pub(crate) fn random() -> u64 {
    let mut bytes = [0; 8];
    // Without randomness the kernel is broken; TLS would not work either.
    provider().secure_random.fill(&mut bytes).map_or(0, |()| u64::from_le_bytes(bytes))
}

fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let all: Result<_, _> = CertificateDer::pem_slice_iter(pem).collect();
    all.map_err(|e| IdentityError(format!("{what}: {e}")))
}

/// The nodes that a certificate names.
pub(crate) fn node_names(certificate: &CertificateDer<'_>) -> Result<Vec<String>, IdentityError> {
    let parsed = EndEntityCert::try_from(certificate)
        .map_err(|e| IdentityError(format!("certificate: {e}")))?;
    let names = parsed.valid_dns_names();
    Ok(names.filter_map(|name| name.strip_suffix(NODE_SUFFIX)).map(str::to_owned).collect())
}

/// The part that a certificate plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

/// Decides whether a certificate is one of this cluster's, valid now and not revoked. Which node it names is compared
/// with the greeting, where the refusal can be put into words for both sides.
#[derive(Debug)]
pub(crate) struct Judge {
    anchors: Vec<TrustAnchor<'static>>,
    revoked: Vec<CertRevocationList<'static>>,
    provider: Arc<CryptoProvider>,
}

impl Judge {
    fn new(
        ca: &[u8],
        crl: Option<&[u8]>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Judge, IdentityError> {
        let mut anchors = Vec::new();
        for certificate in certificates(ca, "CA")? {
            let anchor = anchor_from_trusted_cert(&certificate)
                .map_err(|e| IdentityError(format!("CA: {e}")))?;
            anchors.push(anchor.to_owned());
        }
        if anchors.is_empty() {
            return Err(IdentityError("CA: the file holds no certificate".to_owned()));
        }
        let mut revoked = Vec::new();
        for list in CertificateRevocationListDer::pem_slice_iter(crl.unwrap_or_default()) {
            let list = list.map_err(|e| IdentityError(format!("list of revocations: {e}")))?;
            let list = OwnedCertRevocationList::from_der(&list)
                .map_err(|e| IdentityError(format!("list of revocations: {e}")))?;
            revoked.push(CertRevocationList::Owned(list));
        }
        Ok(Judge { anchors, revoked, provider: provider.clone() })
    }

    /// A CA without a list has revoked nothing; a list stays in force until there is a newer one, whatever date it has:
    /// a cluster must not fall apart because nobody renewed a list.
    pub(crate) fn judge(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
        role: Role,
    ) -> Result<(), webpki::Error> {
        let lists: Vec<&CertRevocationList<'_>> = self.revoked.iter().collect();
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
            options
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Allow)
                .build()
        });
        let usage = match role {
            Role::Client => KeyUsage::client_auth(),
            Role::Server => KeyUsage::server_auth(),
        };
        EndEntityCert::try_from(certificate)?
            .verify_for_usage(
                self.provider.signature_verification_algorithms.all,
                &self.anchors,
                between,
                now,
                usage,
                revocation,
                None,
            )
            .map(drop)
    }
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verdict = self.judge(end_entity, intermediates, now, Role::Server);
        verdict.map(|()| ServerCertVerified::assertion()).map_err(|e| certificate_error(&e).into())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls13RequiredForQuic))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Judge {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verdict = self.judge(end_entity, intermediates, now, Role::Client);
        verdict.map(|()| ClientCertVerified::assertion()).map_err(|e| certificate_error(&e).into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(self)
    }
}

/// As rustls names it, so that the other side gets the alert that fits.
#[expect(clippy::wildcard_enum_match_arm, reason = "not our enum, and it grows")]
pub(crate) fn certificate_error(why: &webpki::Error) -> CertificateError {
    match why {
        webpki::Error::CertExpired { .. } | webpki::Error::InvalidCertValidity => {
            CertificateError::Expired
        }
        webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
        webpki::Error::CertRevoked => CertificateError::Revoked,
        // A CA of the same name with another key is another CA.
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
            CertificateError::UnknownIssuer
        }
        webpki::Error::BadDer | webpki::Error::BadDerTime => CertificateError::BadEncoding,
        other => CertificateError::Other(rustls::OtherError(Arc::new(other.clone()))),
    }
}

/// What is wrong with a certificate.
#[expect(clippy::wildcard_enum_match_arm, reason = "not our enum, and it grows")]
pub(crate) fn describe(why: &CertificateError) -> String {
    match why {
        CertificateError::Expired => "it has expired".to_owned(),
        CertificateError::NotValidYet => "it is not valid yet; compare the clocks".to_owned(),
        CertificateError::Revoked => "it was revoked".to_owned(),
        CertificateError::UnknownIssuer => "it is from another CA".to_owned(),
        other => other.to_string(),
    }
}
