//! The agent's end: finding, starting, feeding and replacing the proxy.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use outlast_host::handle::Handle;
use outlast_host::process::Output;
use rustix::process::Signal;
use tokio::sync::mpsc;

use super::process::socket_path;
use super::wire::{self, FromProxy, Hello, ToProxy};

/// How long a new proxy may take until it answers.
const START_MAX: Duration = Duration::from_secs(30);

/// How long a question to a proxy may take.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// A proxy whose connection has ended is given this long to have ended itself.
const EXIT_MAX: Duration = Duration::from_millis(200);

/// How long a connection to a living proxy is tried again before the proxy counts as out of reach.
const REGAIN_MAX: Duration = Duration::from_secs(5);

/// How often somebody looks whether a proxy that is out of reach has ended.
const EXIT_LOOK: Duration = Duration::from_secs(1);

/// A proxy that is killed before an agent starts has this long to be gone.
const KILL_MAX: Duration = Duration::from_secs(5);

/// How long between two tries.
const REGAIN_PAUSE: Duration = Duration::from_millis(50);

/// Messages that may wait for a proxy that does not read.
const QUEUE_MAX: usize = 64;

/// A message for the proxy and the sockets that go with it.
type Parcel = (ToProxy, Vec<Arc<OwnedFd>>);

/// A connection to a running proxy.
#[derive(Debug)]
pub struct Link {
    pub hello: Hello,
    /// The process itself, whatever becomes of the connection.
    pub handle: Arc<Handle>,
    path: PathBuf,
    stream: UnixStream,
    outbox: SyncSender<Parcel>,
    /// We have let go of it: its end is no news.
    dropped: Arc<AtomicBool>,
}

/// What comes of the proxies, and from which.
#[derive(Debug)]
pub enum FromLink {
    Said {
        pid: u32,
        message: FromProxy,
    },
    /// The connection broke and the process lives: it is being tried again.
    Lost {
        pid: u32,
        reason: String,
    },
    Regained {
        link: Box<Link>,
    },
    /// It lives, and cannot be reached.
    Unreachable {
        pid: u32,
        reason: String,
    },
    /// It has exited.
    Gone {
        pid: u32,
        reason: String,
    },
    Started {
        link: Box<Link>,
    },
    NotStarted {
        reason: String,
    },
}

/// Why there is no connection.
#[derive(Debug)]
pub enum Unconnected {
    /// Nobody listens there.
    Nobody(io::Error),
    /// Somebody listens, and does not greet.
    Mute { handle: Handle, error: io::Error },
}

impl From<Unconnected> for io::Error {
    fn from(why: Unconnected) -> io::Error {
        match why {
            Unconnected::Nobody(error) | Unconnected::Mute { error, .. } => error,
        }
    }
}

impl Link {
    /// Connects to the proxy with this control socket and reads its greeting.
    pub fn connect(path: &Path) -> Result<Link, Unconnected> {
        let stream = UnixStream::connect(path).map_err(Unconnected::Nobody)?;
        let handle = Handle::of_peer(&stream).map_err(Unconnected::Nobody)?;
        match Link::greet(path, &stream) {
            Ok((hello, outbox)) => Ok(Link {
                hello,
                handle: Arc::new(handle),
                path: path.to_owned(),
                stream,
                outbox,
                dropped: Arc::default(),
            }),
            Err(error) => Err(Unconnected::Mute { handle, error }),
        }
    }

    fn greet(path: &Path, stream: &UnixStream) -> io::Result<(Hello, SyncSender<Parcel>)> {
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        stream.set_write_timeout(Some(ANSWER_MAX))?;
        let greeting = wire::receive::<FromProxy>(stream)?;
        let Some((FromProxy::Hello(hello), _)) = greeting else {
            return Err(io::Error::other(format!("{} did not greet", path.display())));
        };
        let (outbox, parcels) = sync_channel::<Parcel>(QUEUE_MAX);
        let writer = stream.try_clone()?;
        std::thread::Builder::new().name("to-proxy".to_owned()).spawn(move || {
            while let Ok((message, sockets)) = parcels.recv() {
                let fds: Vec<BorrowedFd<'_>> = sockets.iter().map(|s| s.as_fd()).collect();
                if wire::send(&writer, &message, &fds).is_err() {
                    // The reader sees the end and tells.
                    writer.shutdown(std::net::Shutdown::Both).ok();
                    return;
                }
            }
        })?;
        Ok((hello, outbox))
    }

    /// Sends; false if the proxy takes nothing any more.
    pub fn send(&self, message: ToProxy, sockets: Vec<Arc<OwnedFd>>) -> bool {
        self.outbox.try_send((message, sockets)).is_ok()
    }

    /// Asks for the listening sockets. Before `listen` only.
    pub fn take_sockets(&self) -> io::Result<Vec<(SocketAddr, Arc<OwnedFd>)>> {
        self.send(ToProxy::GiveSockets, Vec::new());
        let until = Instant::now() + ANSWER_MAX;
        while Instant::now() < until {
            let Some((message, fds)) = wire::receive::<FromProxy>(&self.stream)? else {
                return Err(io::ErrorKind::UnexpectedEof.into());
            };
            if let FromProxy::Sockets { addresses } = message {
                return Ok(addresses.into_iter().zip(fds.into_iter().map(Arc::new)).collect());
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// Passes everything that the proxy says on to `inbox`, until it goes; a connection that breaks while the process
    /// lives is tried again.
    pub fn listen(&self, inbox: mpsc::Sender<FromLink>) -> io::Result<()> {
        let stream = self.stream.try_clone()?;
        stream.set_read_timeout(None)?;
        let (pid, path) = (self.hello.pid, self.path.clone());
        let (handle, dropped) = (self.handle.clone(), self.dropped.clone());
        std::thread::Builder::new().name("from-proxy".to_owned()).spawn(move || {
            let reason = loop {
                match wire::receive::<FromProxy>(&stream) {
                    Ok(Some((message, _))) => {
                        if inbox.blocking_send(FromLink::Said { pid, message }).is_err() {
                            return;
                        }
                    }
                    Ok(None) => break "it closed the connection".to_owned(),
                    // A predecessor of another build that drains: its counters may have another form.
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                        tracing::debug!(pid, %error, "skip a message of the proxy");
                    }
                    Err(error) => break error.to_string(),
                }
            };
            drop(stream);
            // Without an agent there is nobody to tell.
            let tell = |news| inbox.blocking_send(news).is_ok();
            if handle.exits_within(EXIT_MAX) {
                tell(FromLink::Gone { pid, reason });
                return;
            }
            if dropped.load(Ordering::Acquire)
                || !tell(FromLink::Lost { pid, reason: reason.clone() })
            {
                return;
            }
            match regain(&path, &handle, &reason) {
                Ok(link) => {
                    tell(FromLink::Regained { link: Box::new(link) });
                    return;
                }
                Err(error) if handle.is_alive() => {
                    tell(FromLink::Unreachable { pid, reason: format!("{reason}; {error}") });
                }
                // It was about to end.
                Err(_gone) => {}
            }
            while !handle.exits_within(EXIT_LOOK) {
                if inbox.is_closed() {
                    return;
                }
            }
            tell(FromLink::Gone { pid, reason });
        })?;
        Ok(())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.dropped.store(true, Ordering::Release);
        self.stream.shutdown(std::net::Shutdown::Both).ok();
    }
}

/// Connects to a living proxy again.
fn regain(path: &Path, handle: &Handle, reason: &str) -> anyhow::Result<Link> {
    let until = Instant::now() + REGAIN_MAX;
    loop {
        // Also the pause between two tries.
        anyhow::ensure!(!handle.exits_within(REGAIN_PAUSE), "it has exited");
        let error = match Link::connect(path) {
            Ok(link) if link.handle.pid() == handle.pid() => {
                tracing::warn!(pid = handle.pid(), reason, "connected to the proxy again");
                return Ok(link);
            }
            Ok(other) => anyhow::anyhow!("pid {} answers in its place", other.handle.pid()),
            Err(why) => anyhow::Error::new(io::Error::from(why)),
        };
        if until <= Instant::now() {
            return Err(error.context(format!("connect to {} again", path.display())));
        }
    }
}

/// The running proxies of a data directory, by their control sockets; leftovers of dead ones are removed, and one that
/// does not even greet is killed: it serves nobody, and holds sockets that its successor needs.
pub fn find(data_dir: &Path) -> Vec<Link> {
    let mut links = Vec::new();
    let Ok(entries) = std::fs::read_dir(data_dir) else { return links };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    paths.sort();
    for path in paths {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if !(name.starts_with("proxy-") && name.ends_with(".sock")) {
            continue;
        }
        // Once more: a machine under load may hold a greeting up.
        let found = match Link::connect(&path) {
            Err(Unconnected::Mute { .. }) => Link::connect(&path),
            found @ (Ok(_) | Err(Unconnected::Nobody(_))) => found,
        };
        match found {
            Ok(link) => links.push(link),
            Err(Unconnected::Nobody(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(&path).ok();
            }
            Err(Unconnected::Nobody(error)) => {
                tracing::warn!(%error, path = %path.display(), "greet a running proxy");
            }
            Err(Unconnected::Mute { handle, error }) => {
                let pid = handle.pid();
                tracing::error!(pid, %error, "a running proxy does not answer; it is killed");
                if let Err(error) = handle.signal(Signal::KILL) {
                    tracing::error!(pid, %error, "kill a proxy");
                }
                if handle.exits_within(KILL_MAX) {
                    handle.collect();
                    std::fs::remove_file(&path).ok();
                }
            }
        }
    }
    links
}

/// Starts a proxy without waiting for it; `Started` or `NotStarted` comes back.
pub fn start_behind(
    data_dir: PathBuf,
    threads: usize,
    inbox: mpsc::Sender<FromLink>,
) -> io::Result<()> {
    let body = move || {
        let news = match start(&data_dir, threads) {
            Ok(link) => FromLink::Started { link: Box::new(link) },
            Err(error) => FromLink::NotStarted { reason: format!("{error:#}") },
        };
        if let Err(mpsc::error::SendError(FromLink::Started { link })) = inbox.blocking_send(news) {
            // The agent is gone that would have owned it.
            link.handle.signal(Signal::KILL).ok();
        }
    };
    std::thread::Builder::new().name("start-proxy".to_owned()).spawn(body).map(drop)
}

/// What proxies log.
pub fn log(data_dir: &Path) -> Output {
    Output::at(data_dir.join("proxy.log"))
}

/// Starts a proxy and waits for its greeting. Its exit status is the caller's to take.
pub fn start(data_dir: &Path, threads: usize) -> anyhow::Result<Link> {
    let exe = std::env::current_exe().context("find our own binary")?;
    // After the file was replaced, /proc names it "(deleted)": the running image still starts.
    let exe = if exe.exists() { exe } else { PathBuf::from("/proc/self/exe") };
    let log = log(data_dir).open();
    let mut child = Command::new(exe)
        .arg("proxy")
        .arg("--data-dir")
        .arg(data_dir)
        .args(["--threads", &threads.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log.map_or_else(|_| Stdio::inherit(), Stdio::from))
        // Ctrl-C in the agent's terminal is the agent's to handle.
        .process_group(0)
        .spawn()
        .context("start the proxy")?;
    let path = socket_path(data_dir, child.id());
    let until = Instant::now() + START_MAX;
    loop {
        match Link::connect(&path) {
            Ok(link) => return Ok(link),
            Err(error) if until < Instant::now() => {
                child.kill().ok();
                child.wait().ok();
                return Err(io::Error::from(error)).context("greet the new proxy");
            }
            Err(_not_yet) => {
                if let Some(status) = child.try_wait().context("look after the new proxy")? {
                    anyhow::bail!(
                        "the proxy ended at once, {status}; see proxy.log in the data directory"
                    );
                }
                #[expect(
                    clippy::disallowed_methods,
                    reason = "bounded by START_MAX; not on the runtime"
                )]
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}
