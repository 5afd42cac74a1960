//! Opens a connection, plain or TLS, and says in words why it could not.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use outlast_core::topology::Authority;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Code, Fault, Limit, fault, internal};

/// A connection that may be encrypted.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What is spoken once connected; TLS negotiates it (ALPN).
#[derive(Clone, Copy, Debug)]
pub(super) enum Speech {
    Http1,
    Http2,
}

/// How a connection is encrypted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cover<'a> {
    /// The name that is sent and that the certificate must be for.
    pub(super) name: &'a str,
    pub(super) verify: bool,
    pub(super) speech: Speech,
}

/// TLS settings, made once and shared by all probes.
#[derive(Clone, Debug)]
pub(super) struct Tls {
    verified: [Arc<ClientConfig>; 2],
    unverified: [Arc<ClientConfig>; 2],
}

impl Tls {
    pub(super) fn trusting(extra: impl IntoIterator<Item = CertificateDer<'static>>) -> Tls {
        let native = rustls_native_certs::load_native_certs();
        for error in &native.errors {
            tracing::warn!(%error, "a root certificate store of this machine cannot be read");
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(native.certs.into_iter().chain(extra));
        let provider = Arc::new(ring::default_provider());
        let blind = Arc::new(Unverified(provider.clone()));
        let config = |speech: Speech, verify: bool| {
            let builder = ClientConfig::builder_with_provider(provider.clone())
                .with_safe_default_protocol_versions()
                .expect("ring supports the default versions");
            let mut config = if verify {
                builder.with_root_certificates(roots.clone()).with_no_client_auth()
            } else {
                builder
                    .dangerous()
                    .with_custom_certificate_verifier(blind.clone())
                    .with_no_client_auth()
            };
            config.alpn_protocols = match speech {
                Speech::Http1 => vec![b"http/1.1".to_vec()],
                Speech::Http2 => vec![b"h2".to_vec()],
            };
            // A resumed session would not look at the certificate again, and miss that it expired.
            config.resumption = Resumption::disabled();
            Arc::new(config)
        };
        let both = |verify| [config(Speech::Http1, verify), config(Speech::Http2, verify)];
        Tls { verified: both(true), unverified: both(false) }
    }

    fn config(&self, cover: &Cover<'_>) -> Arc<ClientConfig> {
        let [http1, http2] = if cover.verify { &self.verified } else { &self.unverified };
        Arc::clone(match cover.speech {
            Speech::Http1 => http1,
            Speech::Http2 => http2,
        })
    }
}

/// Connects, and encrypts if there is a cover.
pub(super) async fn open(
    tls: &Tls,
    place: &Authority,
    cover: Option<Cover<'_>>,
    limit: &Limit,
) -> Result<Stream, Fault> {
    let connection = connect(place, limit).await?;
    let Some(cover) = cover else { return Ok(Stream::Plain(connection)) };
    let name = ServerName::try_from(cover.name.to_owned())
        .map_err(|_invalid| internal(format!("`{}` is not a host name", cover.name)))?;
    let shake = TlsConnector::from(tls.config(&cover)).connect(name, connection);
    let stream = limit
        .keep("TLS handshake: ", async { shake.await.map_err(|e| tls_fault(&e, cover.name)) })
        .await?;
    Ok(Stream::Tls(Box::new(stream)))
}

/// Opens a TCP connection to the first address of the place that takes it.
pub(super) async fn connect(place: &Authority, limit: &Limit) -> Result<TcpStream, Fault> {
    let stage = format!("connect {place}: ");
    let addresses = limit.keep(&stage, resolve(place)).await?;
    let mut first = None;
    for (tried, &address) in addresses.iter().enumerate() {
        // A silent address leaves a fair share of the time to those behind it.
        let rest = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        let attempt = tokio::time::timeout(limit.left() / rest, TcpStream::connect(address));
        let fault = match attempt.await {
            Ok(Ok(connection)) => {
                connection.set_nodelay(true).map_err(|e| io_fault(&stage, &e))?;
                return Ok(connection);
            }
            Ok(Err(error)) => io_fault(&stage, &error),
            Err(_elapsed) => limit.silent(&stage),
        };
        first.get_or_insert(fault);
    }
    Err(first.unwrap_or_else(|| fault(Code::Dns, format!("{stage}the name has no address"))))
}

async fn resolve(place: &Authority) -> Result<Vec<SocketAddr>, Fault> {
    match tokio::net::lookup_host((place.host.as_str(), place.port.get())).await {
        Ok(addresses) => Ok(addresses.collect()),
        Err(error) => {
            Err(fault(Code::Dns, format!("look up {}: {}", place.host, resolver_text(&error))))
        }
    }
}

/// The resolver's complaint without the words that the standard library puts before it.
fn resolver_text(error: &io::Error) -> String {
    let text = error.to_string();
    text.rsplit_once("information: ").map_or(text.clone(), |(_, rest)| rest.to_owned())
}

/// An error of a socket as a sentence that begins with `stage`.
pub(super) fn io_fault(stage: &str, error: &io::Error) -> Fault {
    use io::ErrorKind as Kind;
    let kind = error.kind();
    let (code, text) = if ours(error) {
        (Code::Internal, error.to_string())
    } else if kind == Kind::ConnectionRefused {
        (Code::Refused, "refused".to_owned())
    } else if [Kind::ConnectionReset, Kind::ConnectionAborted, Kind::BrokenPipe].contains(&kind) {
        (Code::Reset, "reset by the other side".to_owned())
    } else if kind == Kind::UnexpectedEof {
        (Code::Reset, "closed by the other side".to_owned())
    } else if [Kind::HostUnreachable, Kind::NetworkUnreachable, Kind::NetworkDown].contains(&kind) {
        (Code::Unreachable, "unreachable".to_owned())
    } else if kind == Kind::TimedOut {
        (Code::Timeout, "no answer".to_owned())
    } else {
        (Code::Other, error.to_string())
    };
    fault(code, format!("{stage}{text}"))
}

/// Whether an error is about this machine rather than about the thing probed.
pub(super) fn ours(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let lacks = [
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOMEM,
        Errno::NOBUFS,
        Errno::AGAIN,
        Errno::ADDRNOTAVAIL,
    ];
    Errno::from_io_error(error).is_some_and(|errno| lacks.contains(&errno))
}

/// An error of a TLS handshake as a sentence.
fn tls_fault(error: &io::Error, name: &str) -> Fault {
    use CertificateError as Bad;
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let Some(inner) = inner else { return io_fault("TLS handshake: ", error) };
    let rustls::Error::InvalidCertificate(bad) = inner else {
        return fault(Code::Tls, format!("TLS handshake: {inner}"));
    };
    let text = if matches!(bad, Bad::Expired | Bad::ExpiredContext { .. }) {
        "certificate expired".to_owned()
    } else if matches!(bad, Bad::NotValidYet | Bad::NotValidYetContext { .. }) {
        "certificate not valid yet".to_owned()
    } else if matches!(bad, Bad::NotValidForName | Bad::NotValidForNameContext { .. }) {
        format!("certificate is not for {name}")
    } else if matches!(bad, Bad::UnknownIssuer) {
        "certificate is signed by an unknown authority".to_owned()
    } else if matches!(bad, Bad::Revoked) {
        "certificate revoked".to_owned()
    } else {
        format!("certificate refused: {bad}")
    };
    fault(Code::Certificate, text)
}

/// The `rustls::Error` or I/O error that lies under another error.
pub(super) fn io_cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io);
        }
        next = error.source();
    }
    None
}

/// Takes any certificate, but has the server prove that it holds the key.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
