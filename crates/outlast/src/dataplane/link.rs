//! The agent's end: finding, starting, feeding and replacing the proxy.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::sync::mpsc;

use super::process::socket_path;
use super::wire::{self, FromProxy, Hello, ToProxy};

/// How long a new proxy may take until it answers.
const START_MAX: Duration = Duration::from_secs(10);

/// How long a question to a proxy may take.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Messages that may wait for a proxy that does not read.
const QUEUE_MAX: usize = 64;

/// A message for the proxy and the sockets that go with it.
type Parcel = (ToProxy, Vec<Arc<OwnedFd>>);

/// A connection to a running proxy.
#[derive(Debug)]
pub struct Link {
    pub hello: Hello,
    stream: UnixStream,
    outbox: SyncSender<Parcel>,
}

/// What comes from a proxy, and from which.
#[derive(Debug)]
pub enum FromLink {
    Said { pid: u32, message: FromProxy },
    Gone { pid: u32, reason: String },
}

impl Link {
    /// Connects to the proxy with this control socket and reads its greeting.
    pub fn connect(path: &Path) -> io::Result<Link> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        stream.set_write_timeout(Some(ANSWER_MAX))?;
        let greeting = wire::receive::<FromProxy>(&stream)?;
        let Some((FromProxy::Hello(hello), _)) = greeting else {
            return Err(io::Error::other("the proxy did not greet"));
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
        Ok(Link { hello, stream, outbox })
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

    /// Passes everything that the proxy says on to `inbox`, until it goes.
    pub fn listen(&self, inbox: mpsc::Sender<FromLink>) -> io::Result<()> {
        let stream = self.stream.try_clone()?;
        stream.set_read_timeout(None)?;
        let pid = self.hello.pid;
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
            // Without an agent there is nobody to tell.
            inbox.blocking_send(FromLink::Gone { pid, reason }).ok();
        })?;
        Ok(())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.stream.shutdown(std::net::Shutdown::Both).ok();
    }
}

/// The running proxies of a data directory, by their control sockets; leftovers of dead ones are removed.
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
        match Link::connect(&path) {
            Ok(link) => links.push(link),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(&path).ok();
            }
            Err(error) => tracing::warn!(%error, path = %path.display(), "greet a running proxy"),
        }
    }
    links
}

/// Starts a proxy and waits for its greeting. Its exit status is the caller's to take.
pub fn start(data_dir: &Path, threads: usize) -> anyhow::Result<Link> {
    let exe = std::env::current_exe().context("find our own binary")?;
    // After the file was replaced, /proc names it "(deleted)": the running image still starts.
    let exe = if exe.exists() { exe } else { PathBuf::from("/proc/self/exe") };
    let log =
        std::fs::OpenOptions::new().create(true).append(true).open(data_dir.join("proxy.log"));
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
                return Err(error).context("greet the new proxy");
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
