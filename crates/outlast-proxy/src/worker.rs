//! What one worker thread keeps: the table in force, its idle connections, its random numbers.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use crate::fence::{Fence, Pass};
use crate::io::{Io, with_scratch};
use crate::live::{Live, LiveBackend, LiveService, World};
use crate::table::ProxyVersion;

/// Idle connections to one backend that one thread keeps.
const IDLE_PER_BACKEND: usize = 1024;

thread_local! {
    static WORKER: RefCell<Option<Worker>> = const { RefCell::new(None) };
}

/// The state of one worker thread.
pub(crate) struct Worker {
    pub(crate) world: Arc<World>,
    pub(crate) live: Arc<Live>,
    /// The ends of the lease that this thread has acted on.
    pub(crate) lease_ends: u64,
    idle: BTreeMap<u64, Vec<Idle>>,
    random: u64,
    /// Since when the process is to end: every answer closes its connection.
    pub(crate) draining_since: Option<Instant>,
    /// Services whose time for draining was up by then have been ended.
    ended_until: Option<Instant>,
    tls_client: Arc<rustls::ClientConfig>,
}

struct Idle {
    io: Io,
    since: Instant,
}

impl Worker {
    pub(crate) fn install(world: Arc<World>, seed: u64, tls_client: Arc<rustls::ClientConfig>) {
        let worker = Worker {
            world,
            live: Arc::default(),
            lease_ends: 0,
            idle: BTreeMap::new(),
            random: seed | 1,
            draining_since: None,
            ended_until: None,
            tls_client,
        };
        WORKER.set(Some(worker));
    }

    /// Ends ejections that nobody tries and what backends that drain still have after their time, closes what has been idle too long, and what belongs to backends that are gone.
    /// True: connections have to look whether they are meant.
    pub(crate) fn tidy(&mut self, now: Instant) -> bool {
        let services = &self.live.services;
        services.values().for_each(|service| service.lapse(&self.world, now));
        let over = services.values().filter(|s| s.end_drained(&self.world)).count() > 0;
        self.idle.retain(|id, idle| {
            let keep = services
                .values()
                .find(|s| s.backends.iter().any(|b| b.state.id == *id))
                .map_or(Duration::ZERO, |s| s.spec.timeouts.backend_idle);
            idle.retain(|i| now.duration_since(i.since) < keep);
            !idle.is_empty()
        });
        over
    }

    /// When the next service will have used up its time for draining.
    pub(crate) fn next_over(&self) -> Option<Instant> {
        let since = self.draining_since?;
        let ends =
            self.live.services.values().filter_map(|s| since.checked_add(s.spec.timeouts.drain));
        ends.filter(|&end| self.ended_until.is_none_or(|until| until < end)).min()
    }

    /// Ends the services that have used up their time for draining.
    pub(crate) fn end_services(&mut self, now: Instant) {
        let Some(since) = self.draining_since else { return };
        self.ended_until = Some(now);
        for service in self.live.services.values() {
            if since.checked_add(service.spec.timeouts.drain).is_some_and(|end| end <= now) {
                service.state.over.store(true, Relaxed);
            }
        }
    }

    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        crate::balance::mix(self.random)
    }
}

/// Borrows this thread's worker; not to be nested.
pub(crate) fn with<R>(body: impl FnOnce(&mut Worker) -> R) -> R {
    WORKER.with_borrow_mut(|worker| {
        body(worker.as_mut().expect("installed before the first task of this thread"))
    })
}

pub(crate) fn random() -> u64 {
    with(Worker::random)
}

pub(crate) fn draining() -> bool {
    with(|w| w.draining_since.is_some())
}

/// Whether work at a backend has to end, and this worker already knows who serves instead.
pub(crate) fn stops(fence: &Fence, pass: Pass) -> bool {
    fence.stops(pass) && with(|w| w.live.fences == w.world.fences.load(SeqCst))
}

/// The service of this name in the table in force.
pub(crate) fn service(name: &str) -> Option<Arc<LiveService>> {
    with(|w| w.live.services.get(name).cloned())
}

/// Takes an idle connection that is still open and not older than `age`, the youngest first.
pub(crate) fn take_idle(backend_id: u64, age: Duration) -> Option<Io> {
    loop {
        let idle = with(|w| w.idle.get_mut(&backend_id)?.pop())?;
        if idle.since.elapsed() > age {
            // The others are older still; the reaper closes them.
            return None;
        }
        let mut io = idle.io;
        // Closed by the backend, or spoken on out of turn? The kernel knows before the event loop does.
        let quiet = match &mut io {
            Io::Tcp(stream) => is_silent(stream),
            Io::Server(_) | Io::Client(_) | Io::Memory(_) => {
                let cx = &mut Context::from_waker(Waker::noop());
                with_scratch(|s| io.poll_read(cx, s)).is_pending()
            }
        };
        if quiet {
            return Some(io);
        }
    }
}

/// Whether a connection is open and has nothing to say.
fn is_silent(stream: &TcpStream) -> bool {
    let mut byte = [0u8; 1];
    let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
    rustix::net::recv(stream, &mut byte[..], flags)
        .is_err_and(|e| e == rustix::io::Errno::WOULDBLOCK)
}

/// Keeps a connection for the next request.
pub(crate) fn put_idle(backend_id: u64, io: Io) {
    with(|w| {
        if w.draining_since.is_none() {
            let idle = w.idle.entry(backend_id).or_default();
            if idle.len() < IDLE_PER_BACKEND {
                idle.push(Idle { io, since: Instant::now() });
            }
        }
    });
}

/// Opens a connection to a backend, TLS and PROXY header included.
pub(crate) async fn connect(
    service: &LiveService,
    backend: &LiveBackend,
    client: std::net::SocketAddr,
    local: std::net::SocketAddr,
) -> io::Result<Io> {
    let within = service.spec.timeouts.connect;
    let opening = async {
        let mut stream = TcpStream::connect(backend.spec.address).await?;
        stream.set_nodelay(true)?;
        if let Some(version) = service.spec.send_proxy {
            let header = match version {
                ProxyVersion::V1 => crate::proxy_protocol::write_v1(client, local),
                ProxyVersion::V2 => crate::proxy_protocol::write_v2(client, local),
            };
            tokio::io::AsyncWriteExt::write_all(&mut stream, &header).await?;
        }
        let Some(name) = &backend.spec.tls_name else { return Ok(Io::Tcp(stream)) };
        let name =
            rustls::pki_types::ServerName::try_from(name.clone()).map_err(io::Error::other)?;
        let config = with(|w| w.tls_client.clone());
        let tls = tokio_rustls::TlsConnector::from(config).connect(name, stream).await?;
        Ok(Io::Client(Box::new(tls)))
    };
    tokio::time::timeout(within, opening)
        .await
        .unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))
}

/// Counts a connection at its service for as long as it lives.
pub(crate) struct Guest {
    service: Arc<LiveService>,
}

impl Guest {
    /// `None` if the service has all the connections that it may have.
    pub(crate) fn admit(service: Arc<LiveService>) -> Option<Guest> {
        if !crate::live::take(&service.state.connections, service.spec.limits.connections) {
            return None;
        }
        Some(Guest { service })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.service.state.connections.fetch_sub(1, Relaxed);
    }
}
