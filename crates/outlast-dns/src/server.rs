//! The running server: threads that answer over UDP, and one that does everything else.

mod notify;
mod slow;
mod tcp;
mod udp;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::Release};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot, watch};

use crate::cookie::CookieSecrets;
use crate::limit::RateLimit;
use crate::name::Name;
use crate::respond::{Dropped, Reply, Sent, State};
use crate::table::Table;
use crate::transfer::History;
use crate::tsig::{Keys, TsigKey};
use crate::update::{Update, UpdateAnswer};

/// Threads per address.
pub const THREADS_MAX: usize = 256;

/// Addresses that a server listens on.
pub const LISTEN_MAX: usize = 64;

/// Secondaries that are told of changes.
pub const SECONDARIES_MAX: usize = 64;

/// Messages over UDP that may wait for the thread that checks signatures.
const SLOW_WAITING_MAX: usize = 256;

/// Updates that may wait for whoever decides on them.
const UPDATES_WAITING_MAX: usize = 64;

/// What a server is told once.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The same for all servers of the zones; no cookies without.
    pub cookies: Option<CookieSecrets>,
    pub rate_limit: Option<RateLimit>,
    /// How this server names itself to who asks (RFC 5001).
    pub nsid: Vec<u8>,
    pub keys: Vec<TsigKey>,
    /// Who may transfer zones without a key.
    pub transfer_to: Vec<IpAddr>,
    /// Who is told when a serial has changed.
    pub secondaries: Vec<Secondary>,
}

/// A server that follows this one.
#[derive(Clone, Debug)]
pub struct Secondary {
    pub address: SocketAddr,
    /// Signs what it is told.
    pub key: Option<TsigKey>,
}

/// An update that somebody has to decide on. If it is dropped without an answer, the client is told that it failed.
#[derive(Debug)]
pub struct UpdateRequest {
    pub update: Update,
    pub source: SocketAddr,
    pub answer: oneshot::Sender<UpdateAnswer>,
}

/// What has happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub answers: u64,
    pub no_data: u64,
    pub no_such_name: u64,
    pub referrals: u64,
    pub refused: u64,
    pub errors: u64,
    /// Cut because the rate is limited.
    pub slipped: u64,
    /// Not sent because the rate is limited.
    pub limited: u64,
    /// Datagrams and messages that are no queries.
    pub no_queries: u64,
    /// Transfers, updates and signed messages.
    pub slow: u64,
    /// Of those, how many found no room to wait in.
    pub slow_dropped: u64,
}

/// Totals that one thread counts, and nobody else writes.
#[derive(Debug, Default)]
struct Counters([AtomicU64; 11]);

impl Counters {
    /// Counts what became of a message.
    fn count(&self, reply: Reply) {
        let place = match reply {
            Reply::Send(_, Sent::Answer) => 0,
            Reply::Send(_, Sent::NoData) => 1,
            Reply::Send(_, Sent::NxDomain) => 2,
            Reply::Send(_, Sent::Referral) => 3,
            Reply::Send(_, Sent::Refused) => 4,
            Reply::Send(_, Sent::Error) => 5,
            Reply::Send(_, Sent::Slipped) => 6,
            Reply::Drop(Dropped::Limited) => 7,
            Reply::Drop(Dropped::NoQuery) => 8,
            Reply::Later(_) => 9,
        };
        self.add(place);
    }

    fn count_slow_dropped(&self) {
        self.add(10);
    }

    /// Without a locked instruction: there is one writer.
    fn add(&self, place: usize) {
        let counter = &self.0[place];
        counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
    }
}

/// What all threads share.
#[derive(Debug)]
struct World {
    state: State,
    keys: Keys,
    config: Config,
    table: Mutex<Arc<Table>>,
    /// Counts up with each table, so that a thread looks at the lock only when there is a new one.
    version: AtomicU64,
    history: Mutex<History>,
    stopping: AtomicBool,
}

impl World {
    fn table(&self) -> Arc<Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A running server. It stops when it is dropped.
#[derive(Debug)]
pub struct Server {
    world: Arc<World>,
    counters: Vec<Arc<Counters>>,
    changed: watch::Sender<Vec<Name>>,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
    addresses: Vec<SocketAddr>,
}

impl Server {
    /// Binds the addresses, for UDP and TCP, and starts `threads` threads for each, which answer by `table` from the first
    /// query on. Each address must be one of this machine, so that answers come from where they were asked. Updates come out of
    /// the receiver.
    pub fn start(
        listen: &[SocketAddr],
        threads: usize,
        config: Config,
        table: Table,
    ) -> io::Result<(Server, mpsc::Receiver<UpdateRequest>)> {
        check(listen, threads, &config)?;
        let random = ring::rand::SystemRandom::new();
        let mut secret = [0; 16];
        ring::rand::SecureRandom::fill(&random, &mut secret)
            .map_err(|_unspecified| io::Error::other("the system has no randomness"))?;
        let world = Arc::new(World {
            state: State::new(config.cookies, config.rate_limit, secret, &config.nsid),
            keys: Keys::new(&config.keys),
            config,
            table: Mutex::default(),
            version: AtomicU64::new(0),
            history: Mutex::default(),
            stopping: AtomicBool::new(false),
        });
        let (slow, slow_inbox) = mpsc::channel(SLOW_WAITING_MAX);
        let (updates, update_inbox) = mpsc::channel(UPDATES_WAITING_MAX);
        let (changed, changes) = watch::channel(Vec::new());
        let (stop, stopped) = watch::channel(false);
        let own = Arc::<Counters>::default();
        let mut server = Server {
            world: world.clone(),
            counters: vec![own.clone()],
            changed,
            stop,
            threads: Vec::new(),
            addresses: Vec::new(),
        };
        server.publish(table);
        let mut listeners = Vec::new();
        for address in listen {
            let (listener, sockets) = udp::bind(*address, threads)?;
            server.addresses.push(listener.local_addr()?);
            listeners.push(listener);
            for socket in sockets {
                server.spawn_udp(socket, slow.clone())?;
            }
        }
        let slow = slow::Slow { world, updates, counters: own };
        let thread = std::thread::Builder::new().name("dns-slow".to_owned());
        let run = move || tcp::run(slow, listeners, slow_inbox, changes, stopped);
        server.threads.push(thread.spawn(run)?);
        Ok((server, update_inbox))
    }

    fn spawn_udp(
        &mut self,
        socket: std::net::UdpSocket,
        slow: mpsc::Sender<slow::Datagram>,
    ) -> io::Result<()> {
        let counters = Arc::<Counters>::default();
        self.counters.push(counters.clone());
        let world = self.world.clone();
        let thread = std::thread::Builder::new().name(format!("dns-{}", self.threads.len()));
        self.threads.push(thread.spawn(move || udp::run(&world, &socket, &slow, &counters))?);
        Ok(())
    }

    /// Puts a table in force and tells the secondaries of zones whose serial it changes.
    pub fn publish(&self, table: Table) {
        let table = Arc::new(table);
        // One publication at a time. The history is noted first, so that it always reaches as far as the table in force.
        let mut history = self.world.history.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = history.note(&self.world.table(), &table);
        *self.world.table.lock().unwrap_or_else(PoisonError::into_inner) = table;
        self.world.version.fetch_add(1, Release);
        drop(history);
        if !changed.is_empty() {
            self.changed.send_replace(changed);
        }
    }

    /// The table in force.
    pub fn table(&self) -> Arc<Table> {
        self.world.table()
    }

    /// The addresses that are listened on; a port 0 has become a real one.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What has happened since the start, over all threads.
    pub fn counters(&self) -> Totals {
        let sum = |place: usize| self.counters.iter().map(|own| own.0[place].load(Relaxed)).sum();
        Totals {
            answers: sum(0),
            no_data: sum(1),
            no_such_name: sum(2),
            referrals: sum(3),
            refused: sum(4),
            errors: sum(5),
            slipped: sum(6),
            limited: sum(7),
            no_queries: sum(8),
            slow: sum(9),
            slow_dropped: sum(10),
        }
    }

    /// Ends all threads and waits for them.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.world.stopping.store(true, Relaxed);
        self.stop.send_replace(true);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the name server has panicked");
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whether a server can be started like that.
fn check(listen: &[SocketAddr], threads: usize, config: &Config) -> io::Result<()> {
    let bad = |text: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    if listen.iter().any(|address| address.ip().is_unspecified()) {
        return bad(
            "a name server listens on addresses of this machine, not on all of them at once",
        );
    }
    if listen.len() > LISTEN_MAX || !(1..=THREADS_MAX).contains(&threads) {
        return bad("too many addresses, or no or too many threads");
    }
    if config.secondaries.len() > SECONDARIES_MAX || config.keys.len() > crate::tsig::KEYS_MAX {
        return bad("too many secondaries or keys");
    }
    Ok(())
}

/// Seconds of the epoch, which go round in 2106.
fn now() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs() & u64::from(u32::MAX)).unwrap_or_default()
}

/// Something to begin choices by chance with.
fn seed() -> u64 {
    std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0u8)
}
