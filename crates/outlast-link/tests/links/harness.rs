//! Nodes on loopback, a CA for them, and a peer that says whatever a test wants.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outlast_link::wire::{Frame, Greeting, Hello, PREAMBLE, VERSIONS};
use outlast_link::{
    Config, Identity, Inboxes, LinkEvent, Links, Pem, Refusal, RefusalKind, Security, Timing,
    certificate_name,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SerialNumber,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// Nothing here takes so long, not even on a machine with much else to do.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.unwrap_or_else(|_| panic!("{what}: not in time"))
}

/// Waits for a condition, with a limit.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    within(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

pub(crate) struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate that was issued, and its key.
#[derive(Clone)]
pub(crate) struct Issued {
    pub(crate) cert: String,
    pub(crate) key: String,
}

impl Ca {
    pub(crate) fn new(name: &str) -> Ca {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).unwrap().pem();
        Ca { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate that is good for so long.
    pub(crate) fn issue_for(&self, node: &str, serial: u64, seconds: i64) -> Issued {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![certificate_name(node)]).unwrap();
        let end = SystemTime::UNIX_EPOCH
            + Duration::from_secs(UnixTime::now().as_secs().saturating_add_signed(seconds));
        params.not_before = (SystemTime::now() - Duration::from_secs(7200)).into();
        params.not_after = end.into();
        params.serial_number = Some(SerialNumber::from(serial));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let cert = params.signed_by(&key, &self.issuer).unwrap().pem();
        Issued { cert, key: key.serialize_pem() }
    }

    pub(crate) fn sign(&self, params: CertificateParams, key: &KeyPair) -> String {
        params.signed_by(key, &self.issuer).unwrap().pem()
    }

    pub(crate) fn issue(&self, node: &str, serial: u64) -> Issued {
        self.issue_for(node, serial, 3600)
    }

    pub(crate) fn crl(&self, serials: &[u64]) -> String {
        let now = SystemTime::now();
        let ago = |seconds| (now - Duration::from_secs(seconds)).into();
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: ago(60),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: ago(120),
            // Over: a list stays in force until there is a newer one.
            next_update: ago(60),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    pub(crate) fn pem(&self, issued: &Issued, revoked: &[u64]) -> Pem {
        Pem {
            ca: self.pem.clone().into_bytes(),
            cert: issued.cert.clone().into_bytes(),
            key: issued.key.clone().into_bytes(),
            crl: (!revoked.is_empty()).then(|| self.crl(revoked).into_bytes()),
        }
    }

    pub(crate) fn identity(&self, issued: &Issued, revoked: &[u64]) -> Identity {
        Identity::from_pem(&self.pem(issued, revoked)).unwrap()
    }

    /// This CA and another, as while one takes the place of the other.
    pub(crate) fn pem_with(&self, other: &Ca, issued: &Issued) -> Pem {
        let ca = format!("{}{}", self.pem, other.pem).into_bytes();
        Pem { ca, ..self.pem(issued, &[]) }
    }
}

/// Short, so that tests need not wait, except where a loaded machine would make it fail.
pub(crate) fn timing() -> Timing {
    Timing {
        handshake_max: LIMIT,
        ping_every: Duration::from_millis(20),
        measure_every: Duration::from_millis(20),
        silent_max: LIMIT,
        doubted_max: LIMIT,
        verify_every: Duration::from_millis(20),
        files_every: Duration::from_millis(10),
        backoff_min: Duration::from_millis(5),
        backoff_max: Duration::from_millis(50),
        dial_grace: Duration::from_millis(5),
        report_every: Duration::from_millis(1),
    }
}

pub(crate) fn config(node: &str) -> Config {
    Config { timing: timing(), ..Config::new("shop", node, 7, "test 1") }
}

pub(crate) struct Node {
    pub(crate) links: Arc<Links>,
    pub(crate) inboxes: Inboxes,
    pub(crate) events: mpsc::Receiver<LinkEvent>,
    pub(crate) address: SocketAddr,
}

pub(crate) type Peers = BTreeMap<String, SocketAddr>;

pub(crate) fn peers(list: &[(&str, SocketAddr)]) -> Peers {
    list.iter().map(|(name, address)| ((*name).to_owned(), *address)).collect()
}

pub(crate) async fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

/// An address at which nobody listens.
pub(crate) async fn nowhere() -> SocketAddr {
    listen().await.local_addr().unwrap()
}

impl Node {
    pub(crate) fn start(
        config: Config,
        listener: TcpListener,
        peers: &Peers,
        security: Security,
    ) -> Node {
        let (sender, events) = mpsc::channel(1000);
        let address = listener.local_addr().unwrap();
        let (links, inboxes) = Links::start(config, listener, peers, security, sender).unwrap();
        Node { links: Arc::new(links), inboxes, events, address }
    }

    /// Node `a`, which knows `b` but cannot reach it; others come to it.
    pub(crate) async fn alone(ca: &Ca) -> Node {
        Node::alone_with(config("a"), Security::Tls(ca.identity(&ca.issue("a", 1), &[]))).await
    }

    pub(crate) async fn alone_with(config: Config, security: Security) -> Node {
        let peers = peers(&[("b", nowhere().await), ("c", nowhere().await)]);
        Node::start(config, listen().await, &peers, security)
    }

    pub(crate) fn is_up(&self, node: &str) -> bool {
        self.links.peers().get(node).is_some_and(|peer| peer.connection.is_some())
    }

    /// The first event of which something is wanted.
    pub(crate) async fn event<T>(
        &mut self,
        what: &str,
        wanted: impl Fn(LinkEvent) -> Option<T>,
    ) -> T {
        let mut seen = Vec::new();
        let found = tokio::time::timeout(LIMIT, async {
            loop {
                let event = self.events.recv().await.expect("the links live");
                seen.push(format!("{event:?}"));
                if let Some(found) = wanted(event) {
                    return found;
                }
            }
        });
        found.await.unwrap_or_else(|_| panic!("{what}: not in time; there was {seen:#?}"))
    }

    pub(crate) async fn refusal(&mut self, kind: RefusalKind) -> Refusal {
        self.event(&format!("{kind:?}"), |event| {
            if let LinkEvent::Refused { refusal, .. } = event
                && refusal.kind == kind
            {
                Some(refusal)
            } else {
                None
            }
        })
        .await
    }

    pub(crate) async fn down(&mut self, node: &str) -> String {
        self.event("down", |event| {
            if let LinkEvent::Down { node: down, reason, .. } = event
                && down == node
            {
                Some(reason)
            } else {
                None
            }
        })
        .await
    }
}

/// Nodes that know each other, all connected.
pub(crate) async fn cluster(ca: Option<&Ca>, names: &[&str]) -> Vec<Node> {
    let mut listeners = Vec::new();
    for _ in names {
        listeners.push(listen().await);
    }
    let addresses: Vec<_> = names
        .iter()
        .zip(&listeners)
        .map(|(name, listener)| (*name, listener.local_addr().unwrap()))
        .collect();
    let all = peers(&addresses);
    let nodes: Vec<Node> = names
        .iter()
        .zip(listeners)
        .map(|(name, listener)| {
            let security = match ca {
                Some(ca) => Security::Tls(ca.identity(&ca.issue(name, 1), &[])),
                None => Security::Loopback,
            };
            Node::start(config(name), listener, &all, security)
        })
        .collect();
    connected(&nodes, names).await;
    nodes
}

pub(crate) async fn connected(nodes: &[Node], names: &[&str]) {
    until("all nodes are connected", || {
        nodes.iter().zip(names).all(|(node, name)| {
            names.iter().filter(|other| *other != name).all(|other| node.is_up(other))
        })
    })
    .await;
}

pub(crate) fn hello(node: &str) -> Hello {
    Hello {
        versions: VERSIONS,
        cluster: "shop".to_owned(),
        node: node.to_owned(),
        id: 2,
        instance: 99,
        build: "raw".to_owned(),
    }
}

/// Believes every server: the other side is what a test is about.
#[derive(Debug)]
struct Gullible(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

pub(crate) fn client_config(
    issued: Option<&Issued>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Arc<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible(provider)));
    Arc::new(match issued {
        None => builder.with_no_client_auth(),
        Some(issued) => {
            let cert = CertificateDer::from_pem_slice(issued.cert.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
            builder.with_client_auth_cert(vec![cert], key).unwrap()
        }
    })
}

/// A peer that speaks as a test says.
pub(crate) struct Raw {
    stream: tokio_rustls::client::TlsStream<TcpStream>,
    read: Vec<u8>,
}

impl Raw {
    /// Connects by TLS; `issued` is shown if there is one.
    pub(crate) async fn connect(
        to: SocketAddr,
        issued: Option<&Issued>,
    ) -> Result<Raw, std::io::Error> {
        Raw::over(TcpStream::connect(to).await?, issued).await
    }

    pub(crate) async fn over(
        stream: TcpStream,
        issued: Option<&Issued>,
    ) -> Result<Raw, std::io::Error> {
        let config = client_config(issued, &[&rustls::version::TLS13]);
        let name = ServerName::try_from("a").unwrap();
        let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await?;
        Ok(Raw { stream, read: Vec::new() })
    }

    /// Connects, greets as `hello` and is accepted.
    pub(crate) async fn accepted(to: SocketAddr, issued: &Issued, hello: Hello) -> Raw {
        let mut raw = Raw::connect(to, Some(issued)).await.unwrap();
        raw.greet(hello).await;
        assert_eq!(raw.greeting().await, Greeting::Accepted);
        raw
    }

    /// Greets and says that it accepts; the node's own greeting is read.
    pub(crate) async fn greet(&mut self, hello: Hello) {
        self.say(Greeting::Hello(hello)).await;
        let mut out = Vec::new();
        Greeting::Accepted.write(&mut out);
        self.send(&out).await;
        assert!(matches!(self.greeting().await, Greeting::Hello(_)));
    }

    /// Sends a preamble and a greeting.
    pub(crate) async fn say(&mut self, greeting: Greeting) {
        let mut out = PREAMBLE.to_vec();
        greeting.write(&mut out);
        self.send(&out).await;
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        // Whoever refuses us may have closed already.
        drop(self.stream.write_all(bytes).await);
        drop(self.stream.flush().await);
    }

    async fn more(&mut self) -> bool {
        let mut piece = vec![0; 64 << 10];
        let count = within("read", self.stream.read(&mut piece)).await.unwrap_or(0);
        self.read.extend_from_slice(&piece[..count]);
        count > 0
    }

    pub(crate) async fn greeting(&mut self) -> Greeting {
        loop {
            if self.read.starts_with(&PREAMBLE) {
                self.read.drain(..PREAMBLE.len());
            }
            if let Some((greeting, used)) = Greeting::read(&self.read).unwrap() {
                self.read.drain(..used);
                return greeting;
            }
            assert!(self.more().await, "closed in the middle of a greeting: {:?}", self.read);
        }
    }

    /// Why this side is refused.
    pub(crate) async fn refused(&mut self) -> String {
        loop {
            match self.greeting().await {
                Greeting::Refused { reason, .. } => return reason,
                Greeting::Hello(_) | Greeting::Accepted => {}
            }
        }
    }

    /// The next frame, looked at; `None` at the end.
    pub(crate) async fn frame<T>(&mut self, look: impl FnOnce(Frame<'_>) -> T) -> Option<T> {
        loop {
            if let Some((frame, used)) = Frame::read(&self.read).unwrap() {
                let seen = look(frame);
                self.read.drain(..used);
                return Some(seen);
            }
            if !self.more().await {
                return None;
            }
        }
    }

    /// The reason of the goodbye, after whatever else comes.
    pub(crate) async fn goodbye(&mut self) -> String {
        loop {
            let seen = self.frame(|frame| match frame {
                Frame::Goodbye(reason) => Some(reason.to_owned()),
                Frame::Data { .. } | Frame::Ping(_) | Frame::Pong(_) | Frame::Credit { .. } => None,
            });
            match seen.await {
                Some(Some(reason)) => return reason,
                Some(None) => {}
                None => panic!("closed without a goodbye"),
            }
        }
    }

    pub(crate) async fn send_frame(&mut self, frame: Frame<'_>) {
        let mut out = Vec::new();
        frame.write(&mut out);
        self.send(&out).await;
    }
}
