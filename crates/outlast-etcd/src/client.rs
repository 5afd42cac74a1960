//! Calls to etcd: gRPC over HTTP/2 with messages written by hand, on one connection to one of its members at a time.
//!
//! Whatever goes wrong on the connection ends it, and the next call takes the next member. Each call has a limit.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Method, Request, Version};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use crate::message::{self, Op, Txn, TxnAnswer, WatchAnswer};

/// How long it may take to reach a member, its name and TLS included.
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// How long an answer is waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// For its beginning, and from one piece of it to the next.
    silence: Duration,
    /// For all of it: a long one may take its time as long as it comes.
    whole: Duration,
}

const WHOLE_MAX: Duration = Duration::from_secs(30);

/// Of what is asked again and again and does no harm if it is done twice: a member that has died without a word must be
/// left for another one before the lease of the leader is over.
pub(crate) const SHORT: Patience =
    Patience { silence: Duration::from_millis(500), whole: WHOLE_MAX };

/// Of what is sent once: it has to be written by a majority, and may be long.
pub(crate) const LONG: Patience = Patience { silence: Duration::from_secs(2), whole: WHOLE_MAX };

/// Bytes of one message of etcd's.
const MESSAGE_MAX: usize = 64 << 20;

/// Bytes that etcd may send ahead, on a stream and on all together.
const WINDOW: u32 = 4 << 20;

/// Bytes of a file with certificates or a key.
const FILE_MAX: u64 = 1 << 20;

/// Compressed flag and length (grpc/doc/PROTOCOL-HTTP2.md).
const PREFIX: usize = 5;

/// Files with which members are believed and convinced, PEM. They are read for each connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    pub ca: PathBuf,
    /// This node's certificate and its key, where etcd asks for one.
    pub own: Option<(PathBuf, PathBuf)>,
}

impl Tls {
    /// What rustls makes of the files.
    pub fn config(&self) -> Result<Arc<rustls::ClientConfig>, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        for certificate in certificates(&self.ca)? {
            roots.add(certificate).map_err(|e| format!("use {}: {e}", self.ca.display()))?;
        }
        if roots.is_empty() {
            return Err(format!("{} holds no certificate", self.ca.display()));
        }
        let wrong = |e: rustls::Error| format!("certificate and key: {e}");
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(wrong)?
            .with_root_certificates(roots);
        let mut config = match &self.own {
            None => config.with_no_client_auth(),
            Some((cert, key)) => {
                let key_of = PrivateKeyDer::from_pem_slice(&read(key)?);
                let key = key_of.map_err(|e| format!("use {}: {e}", key.display()))?;
                config.with_client_auth_cert(certificates(cert)?, key).map_err(wrong)?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

fn read(path: &PathBuf) -> Result<Vec<u8>, String> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).and_then(|f| f.take(FILE_MAX).read_to_end(&mut bytes));
    file.map_err(|e| format!("read {}: {e}", path.display()))?;
    Ok(bytes)
}

fn certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    all.map_err(|e| format!("use {}: {e}", path.display()))
}

/// Where a member is: `http://HOST:PORT` or `https://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    tls: bool,
    host: String,
    port: u16,
}

impl Endpoint {
    pub fn parse(url: &str) -> Option<Endpoint> {
        let uri: http::Uri = url.parse().ok()?;
        let tls = match uri.scheme_str()? {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let host = uri.host()?.trim_matches(['[', ']']).to_owned();
        Some(Endpoint { tls, host, port: uri.port_u16().unwrap_or(2379) })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// etcd was not reached, or said no: nothing has happened.
    Nothing(String),
    /// The same, and it will say no again: the question is at fault.
    Never(String),
    /// It may have happened.
    Unknown(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Trouble::Nothing(why) | Trouble::Never(why) | Trouble::Unknown(why)) = self;
        f.write_str(why)
    }
}

/// A connection that lasts.
#[derive(Clone)]
struct Live {
    number: u64,
    name: String,
    tls: bool,
    sender: SendRequest<Bytes>,
    driver: AbortHandle,
}

#[derive(Default)]
struct State {
    live: Option<Live>,
    /// Connections that have been begun; which member is next.
    begun: u64,
    /// The etcd cluster that is ours, once it is known.
    cluster: Option<u64>,
}

/// Speaks to etcd.
pub(crate) struct Client {
    endpoints: Vec<Endpoint>,
    tls: Option<Tls>,
    /// A key that this node may read: with it each member is asked first.
    known: Vec<u8>,
    /// Where it begins: nodes spread over the members.
    first: u64,
    state: Mutex<State>,
    /// Held by whoever connects.
    connecting: tokio::sync::Mutex<()>,
}

impl Client {
    pub(crate) fn new(
        endpoints: Vec<Endpoint>,
        tls: Option<Tls>,
        known: Vec<u8>,
        first: u64,
        cluster: Option<u64>,
    ) -> Client {
        let state = Mutex::new(State { cluster, ..State::default() });
        Client { endpoints, tls, known, first, state, connecting: tokio::sync::Mutex::default() }
    }

    /// The etcd cluster that answers.
    pub(crate) fn cluster(&self) -> Option<u64> {
        self.state.lock().expect("no panic while held").cluster
    }

    /// Has a transaction done.
    pub(crate) async fn txn(&self, txn: &Txn, patience: Patience) -> Result<TxnAnswer, Trouble> {
        let live = self.connection().await?;
        let answer = self.txn_at(&live, txn, patience).await;
        answer.map_err(|trouble| self.left(&live, trouble))
    }

    async fn txn_at(
        &self,
        live: &Live,
        txn: &Txn,
        patience: Patience,
    ) -> Result<TxnAnswer, Trouble> {
        let call = self.call(live, message::TXN, txn.encode(), patience);
        let bytes = within(patience.whole, call).await??;
        let answer = TxnAnswer::decode(&bytes);
        let answer = answer.map_err(|error| Trouble::Unknown(error.to_string()))?;
        self.is_ours(answer.header.cluster)?;
        Ok(answer)
    }

    async fn call(
        &self,
        live: &Live,
        path: &str,
        message: Vec<u8>,
        patience: Patience,
    ) -> Result<Bytes, Trouble> {
        let Patience { silence, whole } = patience;
        let asked = within(silence, async {
            let (_asked, response) = live.ask(path, message, true, Some(whole)).await?;
            response.await.map_err(unknown)
        });
        let response = asked.await??;
        status(response.headers())?;
        let mut frames = Frames { body: response.into_body(), read: BytesMut::new() };
        let answer = frames.next(Some(silence)).await?;
        // The status comes behind the message.
        let trailers = within(silence, frames.body.trailers()).await?.map_err(unknown)?;
        status(&trailers.unwrap_or_default())?;
        answer.ok_or_else(|| Trouble::Unknown("an answer without a message".to_owned()))
    }

    /// Watches a range from now on.
    pub(crate) async fn watch(&self, key: &[u8], end: &[u8]) -> Result<Watch, Trouble> {
        let live = self.connection().await?;
        let begin = async {
            let asked = live.ask(message::WATCH, message::watch(key, end), false, None);
            let (asking, response) = asked.await?;
            let response = response.await.map_err(unknown)?;
            status(response.headers())?;
            let frames = Frames { body: response.into_body(), read: BytesMut::new() };
            let mut watch = Watch { frames, _asking: asking };
            let answer = watch.next().await?;
            self.is_ours(answer.header.cluster)?;
            match answer.canceled {
                None if answer.created => Ok(watch),
                Some(why) => Err(Trouble::Nothing(why)),
                None => Err(Trouble::Nothing("a watch that was not begun".to_owned())),
            }
        };
        let watch = within(LONG.silence, begin).await.and_then(|watch| watch);
        watch.map_err(|trouble| self.left(&live, trouble))
    }

    fn is_ours(&self, cluster: u64) -> Result<(), Trouble> {
        let mut state = self.state.lock().expect("no panic while held");
        let ours = *state.cluster.get_or_insert(cluster);
        if ours == cluster {
            return Ok(());
        }
        Err(Trouble::Unknown(format!(
            "it belongs to etcd cluster {cluster:x}, and what is agreed here lies in {ours:x}"
        )))
    }

    /// Leaves a member that does not do its part; says which one it was.
    fn left(&self, live: &Live, trouble: Trouble) -> Trouble {
        let named = |why: String| format!("etcd at {}: {why}", live.name);
        match trouble {
            Trouble::Nothing(why) => Trouble::Nothing(named(why)),
            Trouble::Never(why) => Trouble::Never(named(why)),
            Trouble::Unknown(why) => {
                let mut state = self.state.lock().expect("no panic while held");
                if state.live.as_ref().is_some_and(|now| now.number == live.number) {
                    state.live = None;
                }
                // Ends every stream on it, the watch too.
                live.driver.abort();
                Trouble::Unknown(named(why))
            }
        }
    }

    /// Leaves the member that is spoken to.
    pub(crate) fn leave(&self) {
        let live = self.state.lock().expect("no panic while held").live.take();
        if let Some(live) = live {
            live.driver.abort();
        }
    }

    async fn connection(&self) -> Result<Live, Trouble> {
        let _one_at_a_time = self.connecting.lock().await;
        let live = self.state.lock().expect("no panic while held").live.clone();
        if let Some(live) = live.filter(|live| !live.driver.is_finished()) {
            return Ok(live);
        }
        let number = {
            let mut state = self.state.lock().expect("no panic while held");
            state.begun += 1;
            state.begun
        };
        let at = (self.first + number) % self.endpoints.len() as u64;
        let endpoint = &self.endpoints[usize::try_from(at).expect("it is below a length")];
        let connected = tokio::time::timeout(CONNECT_MAX, self.connect(endpoint)).await;
        let connected = match connected {
            Ok(connected) => connected,
            Err(_elapsed) => Err(format!("no answer within {CONNECT_MAX:?}")),
        };
        let failed = |why| Trouble::Nothing(format!("reach etcd at {endpoint}: {why}"));
        let (sender, driver) = connected.map_err(failed)?;
        let (name, tls) = (endpoint.to_string(), endpoint.tls);
        let live = Live { number, name, tls, sender, driver };
        // Before anything is written: it is a member of our etcd, and reaches a majority of it.
        let first = Txn { then: vec![Op::get(self.known.clone())], ..Txn::default() };
        self.txn_at(&live, &first, SHORT).await.map_err(|trouble| {
            match self.left(&live, trouble) {
                Trouble::Unknown(why) | Trouble::Nothing(why) => Trouble::Nothing(why),
                Trouble::Never(why) => Trouble::Never(why),
            }
        })?;
        self.state.lock().expect("no panic while held").live = Some(live.clone());
        Ok(live)
    }

    async fn connect(
        &self,
        endpoint: &Endpoint,
    ) -> Result<(SendRequest<Bytes>, AbortHandle), String> {
        let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await;
        let stream = stream.map_err(|e| e.to_string())?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        if !endpoint.tls {
            return greet(stream).await;
        }
        let files = self.tls.as_ref().ok_or("its files for TLS are not named")?;
        let name = ServerName::try_from(endpoint.host.clone()).map_err(|e| e.to_string())?;
        let connector = tokio_rustls::TlsConnector::from(files.config()?);
        let stream = connector.connect(name, stream).await.map_err(|e| e.to_string())?;
        greet(stream).await
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(live) = &self.state.get_mut().expect("no panic while held").live {
            live.driver.abort();
        }
    }
}

async fn greet(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<(SendRequest<Bytes>, AbortHandle), String> {
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW);
    let greeted = builder.handshake(stream).await;
    let (sender, connection) = greeted.map_err(|e| e.to_string())?;
    // Whoever holds the handle ends it.
    let driver = tokio::task::spawn(async move { connection.await.ok() });
    Ok((sender, driver.abort_handle()))
}

impl Live {
    /// Sends a question; `whole`: nothing follows it.
    async fn ask(
        &self,
        path: &str,
        message: Vec<u8>,
        whole: bool,
        limit: Option<Duration>,
    ) -> Result<(SendStream<Bytes>, h2::client::ResponseFuture), Trouble> {
        let scheme = if self.tls { "https" } else { "http" };
        let mut request = Request::builder()
            .method(Method::POST)
            .version(Version::HTTP_2)
            .uri(format!("{scheme}://{}{path}", self.name))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            // A member that knows of no leader says so at once.
            .header("hasleader", "true");
        if let Some(limit) = limit {
            request = request.header("grpc-timeout", format!("{}m", limit.as_millis()));
        }
        let never = |error: http::Error| Trouble::Never(error.to_string());
        let request = request.body(()).map_err(never)?;
        // Not begun yet, but the connection is at fault and must be left.
        let gone = |error: h2::Error| Trouble::Unknown(error.to_string());
        let mut sender = self.sender.clone().ready().await.map_err(gone)?;
        let (response, mut asking) = sender.send_request(request, false).map_err(gone)?;
        let length = u32::try_from(message.len());
        let length = length.map_err(|error| Trouble::Never(error.to_string()))?;
        // Not compressed, then the length.
        let mut framed = vec![0];
        framed.extend(length.to_be_bytes());
        framed.extend(message);
        asking.send_data(Bytes::from(framed), whole).map_err(gone)?;
        Ok((asking, response))
    }
}

fn unknown(error: h2::Error) -> Trouble {
    Trouble::Unknown(error.to_string())
}

async fn within<T>(limit: Duration, answer: impl Future<Output = T>) -> Result<T, Trouble> {
    let answer = tokio::time::timeout(limit, answer).await;
    answer.map_err(|_elapsed| Trouble::Unknown(format!("no answer within {limit:?}")))
}

/// The messages of an answer.
struct Frames {
    body: RecvStream,
    read: BytesMut,
}

impl Frames {
    /// `None`: no more come. `silence`: how long each piece may take.
    async fn next(&mut self, silence: Option<Duration>) -> Result<Option<Bytes>, Trouble> {
        let broken = |what: &str| Trouble::Unknown(what.to_owned());
        loop {
            if let Some((prefix, _)) = self.read.split_first_chunk::<PREFIX>() {
                let [compressed, length @ ..] = *prefix;
                let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                if compressed != 0 || MESSAGE_MAX < length {
                    return Err(broken("an answer that is compressed or too long"));
                }
                if PREFIX + length <= self.read.len() {
                    self.read.advance(PREFIX);
                    return Ok(Some(self.read.split_to(length).freeze()));
                }
            }
            let chunk = match silence {
                Some(silence) => within(silence, self.body.data()).await?,
                None => self.body.data().await,
            };
            match chunk {
                Some(chunk) => {
                    let chunk = chunk.map_err(unknown)?;
                    let released = self.body.flow_control().release_capacity(chunk.len());
                    released.map_err(unknown)?;
                    self.read.extend_from_slice(&chunk);
                }
                None if self.read.is_empty() => return Ok(None),
                None => return Err(broken("an answer that ends too early")),
            }
        }
    }
}

/// A watch that goes on.
pub(crate) struct Watch {
    frames: Frames,
    /// Dropped, it would end the watch.
    _asking: SendStream<Bytes>,
}

impl Watch {
    pub(crate) async fn next(&mut self) -> Result<WatchAnswer, Trouble> {
        let Some(bytes) = self.frames.next(None).await? else {
            let trailers = self.frames.body.trailers().await.map_err(unknown)?;
            status(&trailers.unwrap_or_default())?;
            return Err(Trouble::Unknown("the watch has ended".to_owned()));
        };
        WatchAnswer::decode(&bytes).map_err(|error| Trouble::Unknown(error.to_string()))
    }
}

/// What the headers or trailers of an answer say of it.
fn status(headers: &HeaderMap) -> Result<(), Trouble> {
    let text = |name: &str| {
        let value = headers.get(name).map(|value| value.as_bytes());
        value.map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    };
    let Some(status) = text("grpc-status") else { return Ok(()) };
    let why = text("grpc-message").unwrap_or_default();
    let why = if why.is_empty() { format!("status {status}") } else { why.replace("%20", " ") };
    // grpc/doc/statuscodes.md; what etcd says with each stands in its api/v3rpc/rpctypes/error.go.
    match status.as_str() {
        "0" => Ok(()),
        // Invalid, out of range, not there, not allowed, not known: asked again, it is the same.
        "3" | "5" | "7" | "9" | "12" | "16" => Err(Trouble::Never(why)),
        // Its space or its queue is full.
        "8" => Err(Trouble::Nothing(why)),
        // No leader, a leader that went, too slow: who knows.
        _ => Err(Trouble::Unknown(why)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_has_a_scheme_a_host_and_a_port() {
        let shown = |url: &str| Endpoint::parse(url).map(|e| (e.tls, e.to_string()));
        assert_eq!(shown("http://10.0.0.1:2379"), Some((false, "10.0.0.1:2379".to_owned())));
        assert_eq!(shown("https://etcd.example/"), Some((true, "etcd.example:2379".to_owned())));
        assert_eq!(shown("https://[::1]:23790"), Some((true, "[::1]:23790".to_owned())));
        for bad in ["10.0.0.1:2379", "ftp://x", "", "http://"] {
            assert_eq!(shown(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_status_says_whether_anything_can_have_happened() {
        let of = |code: &'static str, why: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-status", http::HeaderValue::from_static(code));
            headers.insert("grpc-message", http::HeaderValue::from_static(why));
            status(&headers)
        };
        assert_eq!(of("0", ""), Ok(()));
        assert_eq!(status(&HeaderMap::new()), Ok(()));
        let why = "etcdserver: permission denied";
        assert_eq!(of("7", why), Err(Trouble::Never(why.to_owned())));
        let why = "etcdserver: mvcc: database space exceeded";
        assert_eq!(of("8", why), Err(Trouble::Nothing(why.to_owned())));
        let why = "etcdserver: no leader";
        assert_eq!(of("14", why), Err(Trouble::Unknown(why.to_owned())));
    }
}
