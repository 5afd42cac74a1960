//! Clients, backends and gates. Nothing here sleeps for effect: everything waits for a condition, with a limit.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use outlast_proxy::stats::{ErrorKind, ServiceStats};
use outlast_proxy::table::{BackendState, Protocol, Service, Table};
use outlast_proxy::{Notice, Proxy};

/// Longer than anything takes on a loaded machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// Waits until something is true; `what` says what in the panic that ends the wait.
#[track_caller]
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain until {what}");
        pause(Duration::from_millis(1));
    }
}

/// Lets time pass: for polling, and for backends whose script says "late".
pub(crate) fn pause(time: Duration) {
    let end = Instant::now() + time;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::park_timeout(left);
    }
}

/// Bytes that show every lost, doubled or swapped piece: noise that repeats after a prime number of bytes.
pub(crate) fn noise(count: usize) -> Vec<u8> {
    const PERIOD: usize = 1_000_003;
    let mut state = 1_u64;
    let mut step = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (state >> 56) as u8
    };
    let mut bytes: Vec<u8> = (0..count.min(PERIOD)).map(|_| step()).collect();
    while bytes.len() < count {
        bytes.extend_from_within(..PERIOD.min(count - bytes.len()));
    }
    bytes
}

pub(crate) fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("bind a loopback port")
}

/// An address that refuses connections.
pub(crate) fn nobody() -> SocketAddr {
    // Bound but not listening: nobody else can take it while the socket lives, which is for ever.
    use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &"127.0.0.1:0".parse::<SocketAddr>().unwrap()).unwrap();
    let address = SocketAddr::try_from(getsockname(&socket).unwrap()).unwrap();
    std::mem::forget(socket);
    address
}

/// A listener that never accepts and whose queue is full: connections to it stay half made.
pub(crate) fn unreachable() -> (rustix::fd::OwnedFd, SocketAddr, Vec<TcpStream>) {
    use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &"127.0.0.1:0".parse::<SocketAddr>().unwrap()).unwrap();
    listen(&socket, 0).unwrap();
    let address = SocketAddr::try_from(getsockname(&socket).unwrap()).unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(100)) {
        waiting.push(stream);
    }
    (socket, address, waiting)
}

/// One message, request or answer, as it stood on the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Message {
    pub(crate) fn status(&self) -> u16 {
        self.head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0)
    }

    /// Method and target of a request.
    pub(crate) fn line(&self) -> String {
        let mut words = self.head.split(' ');
        format!("{} {}", words.next().unwrap_or_default(), words.next().unwrap_or_default())
    }

    /// All values of a header.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim()).collect()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A connection with a buffer, on either side of the gate.
#[derive(Debug)]
pub(crate) struct Wire<S = TcpStream> {
    pub(crate) stream: S,
    pub(crate) buffer: Vec<u8>,
    /// The how manieth connection of its backend.
    pub(crate) number: usize,
}

impl Wire {
    pub(crate) fn connect(to: SocketAddr) -> Wire {
        Wire::over(TcpStream::connect(to).expect("connect"))
    }

    pub(crate) fn over(stream: TcpStream) -> Wire {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        stream.set_nodelay(true).unwrap();
        Wire { stream, buffer: Vec::new(), number: 0 }
    }

    pub(crate) fn end(&self) {
        self.stream.shutdown(Shutdown::Write).ok();
    }

    /// Closes with a reset.
    pub(crate) fn reset(self) {
        rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO)).unwrap();
    }
}

impl<S: Read + Write> Wire<S> {
    #[track_caller]
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).expect("send");
    }

    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())?;
        self.stream.flush()
    }

    /// Reads once; false at the end.
    fn more(&mut self) -> io::Result<bool> {
        let mut chunk = vec![0; 64 << 10];
        let count = self.stream.read(&mut chunk)?;
        self.buffer.extend_from_slice(&chunk[..count]);
        Ok(count > 0)
    }

    /// Reads up to and with `end`; `None` if the connection ends before.
    pub(crate) fn until(&mut self, end: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut from = 0;
        loop {
            if let Some(at) = self.buffer[from..].windows(end.len()).position(|w| w == end) {
                return Ok(Some(self.buffer.drain(..from + at + end.len()).collect()));
            }
            from = self.buffer.len().saturating_sub(end.len() - 1);
            if !self.more()? {
                return Ok(None);
            }
        }
    }

    pub(crate) fn exactly(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < count {
            if !self.more()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.buffer.drain(..count).collect())
    }

    /// Everything up to the end of the connection.
    pub(crate) fn rest(&mut self) -> io::Result<Vec<u8>> {
        while self.more()? {}
        Ok(std::mem::take(&mut self.buffer))
    }

    pub(crate) fn head(&mut self) -> io::Result<Option<Message>> {
        let head = self.until(b"\r\n\r\n")?;
        Ok(head.map(|head| Message {
            head: String::from_utf8_lossy(&head).into_owned(),
            body: Vec::new(),
        }))
    }

    fn chunked(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.until(b"\r\n")?.ok_or(io::ErrorKind::UnexpectedEof)?;
            let line = String::from_utf8_lossy(&line).into_owned();
            let digits = line.trim().split(';').next().unwrap_or_default().to_owned();
            let size = usize::from_str_radix(&digits, 16).map_err(io::Error::other)?;
            if size == 0 {
                while self.until(b"\r\n")?.ok_or(io::ErrorKind::UnexpectedEof)? != b"\r\n" {}
                return Ok(body);
            }
            body.extend(self.exactly(size)?);
            self.exactly(2)?;
        }
    }

    /// Reads a request; `None` at the end of the connection.
    pub(crate) fn request(&mut self) -> io::Result<Option<Message>> {
        let Some(mut message) = self.head()? else { return Ok(None) };
        message.body = if message.header("transfer-encoding").is_some() {
            self.chunked()?
        } else {
            let length = message.header("content-length").and_then(|l| l.parse().ok());
            self.exactly(length.unwrap_or(0))?
        };
        Ok(Some(message))
    }

    /// Reads an answer to a request that was not HEAD.
    pub(crate) fn try_answer(&mut self) -> io::Result<Message> {
        let mut message = self.head()?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let status = message.status();
        if status < 200 || status == 204 || status == 304 {
            return Ok(message);
        }
        let length = message.header("content-length").and_then(|l| l.parse().ok());
        message.body = if message.header("transfer-encoding").is_some() {
            self.chunked()?
        } else if let Some(length) = length {
            self.exactly(length)?
        } else {
            self.rest()?
        };
        Ok(message)
    }

    #[track_caller]
    pub(crate) fn answer(&mut self) -> Message {
        self.try_answer().expect("a whole answer")
    }

    #[track_caller]
    pub(crate) fn ask(&mut self, request: impl AsRef<[u8]>) -> Message {
        self.send(request);
        self.answer()
    }
}

/// `GET` with a Host and nothing else.
pub(crate) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: shop\r\n\r\n")
}

pub(crate) fn with_body(method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: shop\r\nContent-Length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

pub(crate) fn ok(body: &str) -> String {
    status("200 OK", body)
}

pub(crate) fn status(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// Asks on a connection of its own.
#[track_caller]
pub(crate) fn ask(gate: &Gate, request: impl AsRef<[u8]>) -> Message {
    Wire::connect(gate.address).ask(request)
}

/// A backend: one thread per connection, each plays the script.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<Message>>>,
}

/// What a script has in its hands.
pub(crate) struct Stage {
    pub(crate) wire: Wire,
    requests: Arc<Mutex<Vec<Message>>>,
}

impl Stage {
    /// The next request, noted down; `None` when the connection has ended.
    pub(crate) fn next(&mut self) -> Option<Message> {
        let request = self.wire.request().ok().flatten()?;
        self.note(&request);
        Some(request)
    }

    pub(crate) fn note(&self, request: &Message) {
        self.requests.lock().unwrap().push(request.clone());
    }

    /// Sends; a proxy that has gone away is no fault of the script.
    pub(crate) fn say(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.wire.try_send(bytes).is_ok()
    }
}

impl Backend {
    pub(crate) fn start(script: impl Fn(Stage) + Send + Sync + 'static) -> Backend {
        Backend::start_on(listen(), script)
    }

    pub(crate) fn start_on(
        listener: TcpListener,
        script: impl Fn(Stage) + Send + Sync + 'static,
    ) -> Backend {
        let backend = Backend {
            address: listener.local_addr().unwrap(),
            connections: Arc::default(),
            requests: Arc::default(),
        };
        let (connections, requests) = (backend.connections.clone(), backend.requests.clone());
        let script = Arc::new(script);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                let mut wire = Wire::over(stream);
                wire.stream.set_read_timeout(None).unwrap();
                wire.number = connections.fetch_add(1, SeqCst);
                let stage = Stage { wire, requests: requests.clone() };
                let script = script.clone();
                std::thread::spawn(move || script(stage));
            }
        });
        backend
    }

    /// Answers every request with its name.
    pub(crate) fn named(name: &'static str) -> Backend {
        Backend::answering(move |_request| ok(name))
    }

    /// Answers every request; connections stay open.
    pub(crate) fn answering(
        answer: impl Fn(&Message) -> String + Send + Sync + 'static,
    ) -> Backend {
        Backend::start(move |mut stage| {
            while let Some(request) = stage.next() {
                if !stage.say(answer(&request)) {
                    return;
                }
            }
        })
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }

    pub(crate) fn requests(&self) -> Vec<Message> {
        self.requests.lock().unwrap().clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

/// A backend that says nothing, or only the beginning of an answer, and counts the connections that ended.
pub(crate) struct Silent {
    pub(crate) backend: Backend,
    pub(crate) ended: Arc<AtomicUsize>,
}

impl Silent {
    pub(crate) fn saying(beginning: &'static str) -> Silent {
        let ended = Arc::new(AtomicUsize::new(0));
        let seen = ended.clone();
        let backend = Backend::start(move |mut stage| {
            stage.next();
            stage.say(beginning);
            stage.wire.rest().ok();
            seen.fetch_add(1, SeqCst);
        });
        Silent { backend, ended }
    }
}

/// A proxy with one service in force.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) proxy: Proxy,
    pub(crate) address: SocketAddr,
    pub(crate) notices: Mutex<tokio::sync::mpsc::Receiver<Notice>>,
    service: Mutex<Service>,
}

impl Gate {
    /// One worker, HTTP, and the file's defaults but for what `tune` changes.
    pub(crate) fn http(backends: &[SocketAddr], tune: impl FnOnce(&mut Service)) -> Gate {
        Gate::start(Protocol::Http, 1, backends, tune)
    }

    pub(crate) fn tcp(backends: &[SocketAddr], tune: impl FnOnce(&mut Service)) -> Gate {
        Gate::start(Protocol::Tcp, 1, backends, tune)
    }

    pub(crate) fn start(
        protocol: Protocol,
        threads: usize,
        backends: &[SocketAddr],
        tune: impl FnOnce(&mut Service),
    ) -> Gate {
        Gate::rooted(protocol, threads, backends, rustls::RootCertStore::empty(), tune)
    }

    pub(crate) fn rooted(
        protocol: Protocol,
        threads: usize,
        backends: &[SocketAddr],
        roots: rustls::RootCertStore,
        tune: impl FnOnce(&mut Service),
    ) -> Gate {
        let socket = listen();
        let address = socket.local_addr().unwrap();
        let mut service = Service::plain("web", address, protocol, backends);
        tune(&mut service);
        let (proxy, notices) = Proxy::start(threads, roots).unwrap();
        let table = Table { generation: 1, services: vec![service.clone()] };
        proxy.apply(table, BTreeMap::from([(address, socket)])).unwrap();
        Gate { proxy, address, notices: Mutex::new(notices), service: Mutex::new(service) }
    }

    /// Puts another table in force, and waits until every worker has it and what it fenced has ended.
    #[track_caller]
    pub(crate) fn change(&self, edit: impl FnOnce(&mut Service)) {
        let mut service = self.service.lock().unwrap();
        edit(&mut service);
        let table = Table { generation: 0, services: vec![service.clone()] };
        let applying = self.proxy.apply(table, BTreeMap::new()).unwrap();
        applying.wait(LIMIT).expect("the table is in force");
    }

    pub(crate) fn set(&self, backend: usize, state: BackendState) {
        self.change(|service| service.backends[backend].state = state);
    }

    pub(crate) fn stats(&self) -> ServiceStats {
        let stats = self.proxy.stats();
        stats.services.into_iter().find(|s| s.name == "web").expect("the one service")
    }

    /// What was counted of one kind of error, at a backend.
    pub(crate) fn errors(&self, backend: usize, kind: ErrorKind) -> u64 {
        self.stats().backends[backend].counts.errors[kind as usize]
    }

    pub(crate) fn own_errors(&self, kind: ErrorKind) -> u64 {
        self.stats().own.errors[kind as usize]
    }

    /// Everything told so far.
    pub(crate) fn notices(&self) -> Vec<Notice> {
        let mut inbox = self.notices.lock().unwrap();
        std::iter::from_fn(|| inbox.try_recv().ok()).collect()
    }
}
