//! The worker threads: each has its own runtime, accepts on every listener and keeps its own idle connections.
//!
//! One table in force is shared by all, swapped whole. Load on one connection never moves to another thread, and no thread
//! takes a lock to serve a request.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

use crate::guard::Guard;
use crate::http1::{self, Door, QUIET};
use crate::io::{Io, Rest, with_scratch};
use crate::lease::Lease;
use crate::live::{Counted, Live, LiveService, Notice, World};
use crate::proxy_protocol::{self, HEADER_MAX};
use crate::seats::{self, Seat};
use crate::settle::Applying;
use crate::stats::Stats;
use crate::table::{BackendState, Protocol, Table};
use crate::worker::{self, Worker};
use crate::{http2, postgres, tcp};

/// Notices that may wait for the agent.
const NOTICES_MAX: usize = 1024;

/// How long a failed accept (no descriptors left) waits before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What every worker follows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Orders {
    /// Counts up with each change.
    pub(crate) number: u64,
    pub(crate) live: Arc<Live>,
    /// How often the lease of this node has ended.
    pub(crate) lease_ends: u64,
    sockets: BTreeMap<SocketAddr, Arc<std::net::TcpListener>>,
    draining: bool,
}

/// The running data plane.
#[derive(Debug)]
pub struct Proxy {
    world: Arc<World>,
    orders: Arc<watch::Sender<Orders>>,
    /// After `orders`: whoever is woken finds that they are gone.
    bell: Bell,
    threads: Vec<std::thread::JoinHandle<()>>,
}

/// Wakes the guard when its proxy goes.
#[derive(Debug)]
struct Bell(Arc<World>);

impl Drop for Bell {
    fn drop(&mut self) {
        self.0.lease.ring();
    }
}

/// Why a table was not taken.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// These addresses have no listening socket yet.
    NoSocket(Vec<SocketAddr>),
    /// A certificate or key does not work.
    Tls(String),
}

impl Proxy {
    /// Starts `threads` workers that serve nothing yet.
    pub fn start(
        threads: usize,
        roots: rustls::RootCertStore,
    ) -> io::Result<(Proxy, mpsc::Receiver<Notice>)> {
        let (notices, inbox) = mpsc::channel(NOTICES_MAX);
        let count = threads.max(1);
        let world = Arc::new(World::new(notices, count, Lease::none()?));
        let (orders, _) = watch::channel(Orders::default());
        let tls = crate::tls::client_config(roots);
        let threads = (0..count)
            .map(|n| {
                let (world, orders, tls) = (world.clone(), orders.subscribe(), tls.clone());
                std::thread::Builder::new()
                    .name(format!("worker-{n}"))
                    .spawn(move || work(world, n, orders, tls))
            })
            .collect::<io::Result<_>>()?;
        let bell = Bell(world.clone());
        Ok((Proxy { world, orders: Arc::new(orders), bell, threads }, inbox))
    }

    /// Puts a table in force; the answer can be waited for until every worker uses it and fenced work has ended. `sockets`
    /// are listening sockets that it needs beyond those already held.
    pub fn apply(
        &self,
        table: Table,
        sockets: BTreeMap<SocketAddr, std::net::TcpListener>,
    ) -> Result<Applying, Refused> {
        let before = self.orders.borrow().clone();
        let mut held = before.sockets;
        for (address, socket) in sockets {
            held.insert(address, Arc::new(socket));
        }
        let mut missing: Vec<SocketAddr> = table.services.iter().map(|s| s.listen).collect();
        missing.retain(|address| !held.contains_key(address));
        missing.sort_unstable();
        missing.dedup();
        if !missing.is_empty() {
            return Err(Refused::NoSocket(missing));
        }
        let live = self.world.compile(table, &before.live).map_err(Refused::Tls)?;
        let wanted = live.listeners();
        held.retain(|address, _| wanted.contains_key(address));
        let backends = live.services.values().flat_map(|service| &service.backends);
        let fenced = backends
            .filter(|b| b.spec.state == BackendState::Passive)
            .map(|b| b.state.clone())
            .collect();
        let pauses = |s: &LiveService| s.spec.postgres.as_ref().is_some_and(|port| port.paused);
        let paused = live.services.values().filter(|service| pauses(service));
        let paused = paused.flat_map(|s| &s.backends).map(|b| b.state.clone()).collect();
        let live = Arc::new(live);
        let mut number = 0;
        self.orders.send_modify(|orders| {
            orders.number += 1;
            orders.live = live;
            orders.sockets = held;
            number = orders.number;
        });
        Ok(Applying { ledger: self.world.ledger.clone(), orders: number, fenced, paused })
    }

    /// Vouches for what this node knows until that moment of the boottime clock, be it later or earlier than said before; a
    /// moment that has passed gives the lease up at once.
    pub fn vouch(&self, until: outlast_core::time::Instant) {
        let vouched = self.world.lease.vouch(until);
        if vouched.overslept {
            // The guard was late, and has nothing to do any more.
            crate::guard::cut(&self.world, &self.orders);
        }
        if vouched.begins {
            self.world.tell(Notice::LeaseBegun);
        }
    }

    /// Who ends what is under way when the lease ends: one, on a thread of its own.
    pub fn guard(&self) -> Guard {
        Guard { world: self.world.clone(), orders: Arc::downgrade(&self.orders) }
    }

    /// The table in force.
    pub fn table(&self) -> Table {
        self.live().table.clone()
    }

    /// The listening sockets held, to be handed to a successor.
    pub fn sockets(&self) -> BTreeMap<SocketAddr, Arc<std::net::TcpListener>> {
        self.orders.borrow().sockets.clone()
    }

    pub fn stats(&self) -> Stats {
        self.live().stats(&self.world)
    }

    /// What is in force, taken out of the lock: whoever changes the orders, the guard above all, does not wait for a reader.
    fn live(&self) -> Arc<Live> {
        self.orders.borrow().live.clone()
    }

    /// Stops accepting, closes what is idle; every answer from now on closes its connection. What a service still has open
    /// after its own time for draining is cut off.
    pub fn drain(&self) {
        self.orders.send_modify(|orders| {
            orders.number += 1;
            orders.draining = true;
            orders.sockets = BTreeMap::new();
        });
    }

    /// Whether, after `drain`, no worker accepts any more and every connection that was accepted has ended.
    pub fn is_drained(&self) -> bool {
        // In this order: a door that is still open may let somebody in.
        self.world.doors.load(std::sync::atomic::Ordering::Acquire) == 0 && self.connections() == 0
    }

    /// Open client connections.
    pub fn connections(&self) -> u64 {
        self.world.connections.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Ends every worker at once, with whatever is still open.
    pub fn stop(self) {
        drop(self.orders);
        drop(self.bell);
        for thread in self.threads {
            // A worker that panicked has said so already.
            drop(thread.join());
        }
    }
}

fn work(
    world: Arc<World>,
    n: usize,
    orders: watch::Receiver<Orders>,
    tls: Arc<rustls::ClientConfig>,
) {
    let seed = u64::from(std::process::id()) << 32 | (n as u64 + 1);
    Worker::install(world, crate::balance::mix(seed), tls);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(follow(n, orders)),
        Err(error) => tracing::error!(%error, "start a worker's runtime"),
    }
}

/// Follows the orders until the sender is gone.
async fn follow(n: usize, mut orders: watch::Receiver<Orders>) {
    let mut doors: BTreeMap<SocketAddr, OpenDoor> = BTreeMap::new();
    let mut tidy = tokio::time::interval(Duration::from_secs(1));
    loop {
        let now = orders.borrow_and_update().clone();
        let (fenced, draining) = worker::with(|w| {
            let fenced = w.live.fences != now.live.fences || w.lease_ends != now.lease_ends;
            w.lease_ends = now.lease_ends;
            let draining = now.draining && w.draining_since.is_none();
            w.live = now.live.clone();
            if draining {
                w.draining_since = Some(Instant::now());
            }
            (fenced, draining)
        });
        if fenced || draining {
            seats::wake_all();
        }
        let listeners = now.live.listeners();
        doors.retain(|address, door| {
            let keep = now.sockets.get(address).is_some_and(|s| Arc::ptr_eq(s, &door.socket))
                && listeners.get(address) == Some(&door.service);
            if !keep {
                door.task.abort();
            }
            keep
        });
        for (address, socket) in now.sockets {
            let Some(service) = listeners.get(&address) else { continue };
            if let std::collections::btree_map::Entry::Vacant(place) = doors.entry(address) {
                match open(&socket, service) {
                    Ok(task) => {
                        place.insert(OpenDoor { socket, service: service.clone(), task });
                    }
                    Err(error) => tracing::error!(%error, %address, "listen"),
                }
            }
        }
        worker::with(|w| w.world.ledger.clone()).saw(n, now.number);
        loop {
            let over = worker::with(|w| w.next_over());
            tokio::select! {
                changed = orders.changed() => match changed {
                    Ok(()) => break,
                    Err(_sender_gone) => return,
                },
                _tick = tidy.tick() => {
                    if worker::with(|w| w.tidy(Instant::now())) {
                        seats::wake_all();
                    }
                }
                () = at(over) => {
                    worker::with(|w| w.end_services(Instant::now()));
                    seats::wake_all();
                }
            }
        }
    }
}

/// Waits for a moment that may never come.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

/// A listener that this worker accepts on.
struct OpenDoor {
    socket: Arc<std::net::TcpListener>,
    service: String,
    task: tokio::task::JoinHandle<()>,
}

fn open(socket: &std::net::TcpListener, service: &str) -> io::Result<tokio::task::JoinHandle<()>> {
    let socket = socket.try_clone()?;
    socket.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(socket)?;
    let service = service.to_owned();
    let world = worker::with(|w| w.world.clone());
    let open = Counted::one(&world.doors);
    // Held in `doors`, aborted when its listener goes.
    Ok(tokio::task::spawn(async move {
        let _open = open;
        loop {
            match listener.accept().await {
                Ok((stream, client)) => {
                    // Counted before anything is waited for: a proxy that drains must not end without having served it.
                    let (accepted, service) = (Counted::one(&world.connections), service.clone());
                    // Ends by its own deadlines.
                    drop(tokio::task::spawn(greet(stream, client, service, accepted)));
                }
                Err(error) => {
                    tracing::warn!(%error, service, "accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }))
}

/// Learns who the client is and what it speaks, and serves it.
async fn greet(stream: TcpStream, client: SocketAddr, name: String, _accepted: Counted) {
    let Some(service) = worker::service(&name) else { return };
    // Whatever it will speak, it counts from now on.
    let Some(_guest) = worker::Guest::admit(service.clone()) else {
        service.state.own.failed(crate::stats::ErrorKind::Limit);
        if service.spec.protocol == Protocol::Postgres {
            postgres::turn_away(stream).await;
        }
        return;
    };
    let (Ok(local), Ok(())) = (stream.local_addr(), stream.set_nodelay(true)) else { return };
    let mut door = Door { service: name, client, local, tls: service.tls.is_some() };
    let spec = &service.spec;
    let hello = async {
        let first_words = spec.accept_proxy || service.tls.is_some();
        if first_words && !speaks(&stream).await {
            return None;
        }
        if spec.accept_proxy && spec.trusts(client.ip()) {
            let header = read_proxy_header(&stream).await?;
            if let Some((client, local)) = header {
                (door.client, door.local) = (client, local);
            }
        }
        let Some(config) = &service.tls else { return Some((Io::Tcp(stream), false)) };
        let tls = tokio_rustls::TlsAcceptor::from(config.clone()).accept(stream).await.ok()?;
        let h2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
        Some((Io::Server(Box::new(tls)), h2))
    };
    let Ok(Some((io, h2))) = tokio::time::timeout(spec.timeouts.head, hello).await else {
        service.state.own.failed(crate::stats::ErrorKind::BadRequest);
        return;
    };
    match spec.protocol {
        Protocol::Tcp => tcp::serve(io, Rest::default(), door).await,
        Protocol::Postgres => postgres::serve(io, door).await,
        Protocol::Http if h2 => http2::serve(io, Rest::default(), door).await,
        Protocol::Http => http1::serve(io, Rest::default(), door).await,
    }
}

/// Whether a client says anything at all; one that does not is not waited for once the process is to end.
async fn speaks(stream: &TcpStream) -> bool {
    let _seat = Seat::take().await;
    // Not `readable`, which is true of every new connection until somebody has looked.
    let speaking = async { stream.peek(&mut [0]).await.is_ok_and(|count| count > 0) };
    let mut speaking = pin!(speaking);
    let told = poll_fn(|_cx| if worker::draining() { Poll::Ready(()) } else { Poll::Pending });
    tokio::select! {
        biased;
        speaks = speaking.as_mut() => speaks,
        () = told => tokio::time::timeout(QUIET, speaking).await.unwrap_or(false),
    }
}

/// Reads a PROXY header and not a byte that comes after it: TLS may begin there.
async fn read_proxy_header(stream: &TcpStream) -> Option<Option<(SocketAddr, SocketAddr)>> {
    // An incomplete header is taken out of the socket, so that the next wait is for what is still missing.
    let mut begun = Vec::new();
    poll_fn(|cx| {
        loop {
            let read = with_scratch(|scratch| {
                scratch[..begun.len()].copy_from_slice(&begun);
                let mut fresh = ReadBuf::new(&mut scratch[begun.len()..HEADER_MAX]);
                let Ok(count) = ready!(stream.poll_peek(cx, &mut fresh)) else {
                    return Poll::Ready(None);
                };
                let seen = begun.len() + count;
                let header = match proxy_protocol::read(&scratch[..seen]) {
                    Ok(header) if count > 0 => header,
                    Ok(_) | Err(_) => return Poll::Ready(None),
                };
                // All that there is of an incomplete header belongs to it.
                let taken = header.map_or(seen, |header| header.length) - begun.len();
                begun.extend_from_slice(&scratch[begun.len()..][..taken]);
                let got = stream.try_read(&mut scratch[..taken]);
                let whole = got.is_ok_and(|count| count == taken);
                Poll::Ready(whole.then(|| header.map(|header| header.addresses)))
            });
            match ready!(read) {
                None => return Poll::Ready(None),
                Some(Some(addresses)) => return Poll::Ready(Some(addresses)),
                Some(None) => {}
            }
        }
    })
    .await
}
