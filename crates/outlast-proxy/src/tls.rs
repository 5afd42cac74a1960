//! TLS by rustls: certificates by SNI for clients, verification of backends.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::table::{Certificate, Protocol, Service};

/// Certificates by the names that they are good for.
#[derive(Debug)]
struct BySni {
    names: BTreeMap<String, Arc<CertifiedKey>>,
    default: Arc<CertifiedKey>,
}

impl ResolvesServerCert for BySni {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let Some(name) = hello.server_name() else { return Some(self.default.clone()) };
        let name = name.to_ascii_lowercase();
        let wildcard = name.split_once('.').map(|(_, parent)| format!("*.{parent}"));
        let found = self.names.get(&name).or_else(|| self.names.get(&wildcard?));
        Some(found.unwrap_or(&self.default).clone())
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The TLS side of a service towards its clients; `None` if it speaks plain.
pub(crate) fn server_config(service: &Service) -> Result<Option<Arc<ServerConfig>>, String> {
    if service.protocol == Protocol::Postgres {
        return Ok(None);
    }
    let mut names = BTreeMap::new();
    let mut default = None;
    for certificate in &service.certificates {
        let key = Arc::new(certified(certificate)?);
        for name in dns_names(&key)? {
            names.entry(name).or_insert_with(|| key.clone());
        }
        default = default.or(Some(key));
    }
    let Some(default) = default else { return Ok(None) };
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("TLS of service.{}: {e}", service.name))?;
    let builder = match service.certificates.iter().find_map(|c| c.client_ca.as_ref()) {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let roots = Arc::new(roots(ca)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
            builder.with_client_cert_verifier(verifier.map_err(|e| format!("client CA: {e}"))?)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(BySni { names, default }));
    if service.protocol == Protocol::Http {
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    }
    Ok(Some(Arc::new(config)))
}

fn certified(certificate: &Certificate) -> Result<CertifiedKey, String> {
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(certificate.chain.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|e| format!("certificate: {e}"))?;
    if chain.is_empty() {
        return Err("certificate: the file holds none".to_owned());
    }
    let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes())
        .map_err(|e| format!("private key: {e}"))?;
    let key = CertifiedKey::from_der(chain, key, &provider())
        .map_err(|e| format!("certificate and key: {e}"))?;
    Ok(key)
}

/// The DNS names of a certificate's subject alternative names.
fn dns_names(key: &CertifiedKey) -> Result<Vec<String>, String> {
    let end_entity = key.end_entity_cert().map_err(|e| format!("certificate: {e}"))?;
    let parsed =
        webpki::EndEntityCert::try_from(end_entity).map_err(|e| format!("certificate: {e}"))?;
    Ok(parsed.valid_dns_names().map(str::to_ascii_lowercase).collect())
}

fn roots(pem: &str) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|e| format!("CA: {e}"))?;
        roots.add(certificate).map_err(|e| format!("CA: {e}"))?;
    }
    Ok(roots)
}

/// How backends are verified: against these roots.
pub(crate) fn client_config(roots: RootCertStore) -> Arc<ClientConfig> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring supports the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}
