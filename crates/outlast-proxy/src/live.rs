//! The table in force, with the state that outlives it: what is in flight, ejections, budgets, counters.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{
    AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::Release,
    Ordering::SeqCst,
};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::balance;
use crate::budget::Budget;
use crate::eject::{Change, Ejection, Outcome};
use crate::fence::{Fence, Pass};
use crate::lease::Lease;
use crate::settle::Ledger;
use crate::stats::{BackendStats, Counters, PostgresStats, ServiceStats, Stats};
use crate::table::{Backend, BackendState, Balance, Service, Table};

/// What the data plane tells its agent at once.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Notice {
    Ejected {
        service: String,
        backend: String,
        reason: String,
        time: Duration,
    },
    Returned {
        service: String,
        backend: String,
    },
    /// A request failed there: probe it now.
    Suspect {
        service: String,
        backend: String,
    },
    /// What needs somebody to vouch for it is served from now on.
    LeaseBegun,
    /// Nobody vouches any more for what needs it; what is still under way there is being cut: `open` requests and connections.
    LeaseEnded {
        open: u64,
    },
    /// Something that was to be cut goes on.
    NotCut {
        reason: String,
    },
}

/// A table compiled for use. Replaced whole.
#[derive(Debug, Default)]
pub(crate) struct Live {
    pub(crate) table: Table,
    pub(crate) services: BTreeMap<String, Arc<LiveService>>,
    /// How often fences had been changed when this table was made.
    pub(crate) fences: u64,
}

/// One service in force.
#[derive(Debug)]
pub(crate) struct LiveService {
    pub(crate) spec: Service,
    pub(crate) backends: Vec<LiveBackend>,
    pub(crate) state: Arc<ServiceState>,
    pub(crate) tls: Option<Arc<rustls::ServerConfig>>,
    /// Of a service that is served only while vouched for.
    pub(crate) lease: Option<Arc<Lease>>,
}

#[derive(Debug)]
pub(crate) struct LiveBackend {
    pub(crate) spec: Backend,
    pub(crate) hash: u64,
    pub(crate) state: Arc<BackendRun>,
}

/// What a statement of a session is cancelled with.
pub(crate) type CancelKey = Vec<u8>;

/// What a service keeps over tables.
#[derive(Debug)]
pub(crate) struct ServiceState {
    pub(crate) own: Counters,
    pub(crate) turn: AtomicU64,
    pub(crate) budget: Budget,
    pub(crate) retries: AtomicU64,
    pub(crate) retries_denied: AtomicU64,
    pub(crate) connections: AtomicU32,
    pub(crate) in_flight: AtomicU32,
    pub(crate) queued: AtomicU32,
    /// Clients of PostgreSQL that had to wait for a backend, sessions that changed theirs, and those that could not.
    pub(crate) held: AtomicU64,
    pub(crate) resumed: AtomicU64,
    pub(crate) bound: AtomicU64,
    /// Of sessions of PostgreSQL that have changed their server: the key that the client has, and where it means which.
    pub(crate) keys: Mutex<BTreeMap<CancelKey, (u64, CancelKey)>>,
    /// Told whenever a request has ended while others wait.
    pub(crate) freed: Notify,
    /// Draining has taken all the time that the service has for it: what is still open ends.
    pub(crate) over: AtomicBool,
}

/// What a backend keeps over tables.
#[derive(Debug)]
pub(crate) struct BackendRun {
    /// Key of pooled connections; never reused in one process.
    pub(crate) id: u64,
    pub(crate) in_flight: AtomicU32,
    pub(crate) counters: Counters,
    /// Failures, or anything but good answers, since the last good one: the fast path touches no lock while this is 0.
    pub(crate) trouble: AtomicBool,
    pub(crate) ejected: AtomicBool,
    pub(crate) ejection: Mutex<Ejection>,
    /// When it last became up, in milliseconds of the process clock; for slow start.
    pub(crate) up_since_ms: AtomicI64,
    /// Closed for the passive side of a pair, so that no request is answered by a side that has lost its role.
    pub(crate) requests: Fence,
    /// Closed for a backend that is no longer in the table, too, and cut when it goes down: tunnels do not end by themselves.
    pub(crate) tunnels: Fence,
    ledger: Arc<Ledger>,
    /// Sessions of PostgreSQL that a pause waits for.
    pub(crate) working: AtomicU32,
    /// Since when it drains, in milliseconds of the process clock; never: `i64::MAX`.
    draining_since_ms: AtomicI64,
    /// It has drained for as long as its service allows: what is still open there ends.
    pub(crate) over: AtomicBool,
    pub(crate) last_suspect_ms: AtomicI64,
}

/// The process-wide clock and notices.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) start: Instant,
    pub(crate) notices: tokio::sync::mpsc::Sender<Notice>,
    ids: AtomicU64,
    /// Client connections, from the moment when they are accepted.
    pub(crate) connections: Arc<AtomicU64>,
    /// Tasks that accept connections.
    pub(crate) doors: Arc<AtomicU64>,
    /// How often any fence was closed or cut.
    pub(crate) fences: AtomicU64,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) lease: Arc<Lease>,
}

/// A backend that failed is reported at most this often.
const SUSPECT_EVERY_MS: i64 = 200;

impl World {
    pub(crate) fn new(
        notices: tokio::sync::mpsc::Sender<Notice>,
        workers: usize,
        lease: Lease,
    ) -> World {
        World {
            start: Instant::now(),
            notices,
            ids: AtomicU64::new(1),
            connections: Arc::default(),
            doors: Arc::default(),
            fences: AtomicU64::new(0),
            ledger: Arc::new(Ledger::new(workers)),
            lease: Arc::new(lease),
        }
    }

    pub(crate) fn now_ms(&self) -> i64 {
        i64::try_from(self.start.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    /// Tells the agent; a full queue drops the notice, because the next stats carry the same state.
    pub(crate) fn tell(&self, notice: Notice) {
        drop(self.notices.try_send(notice));
    }

    /// Compiles a table, keeping the state of what was there before.
    pub(crate) fn compile(&self, table: Table, before: &Live) -> Result<Live, String> {
        // All that can fail comes first: a table that is refused must leave no trace.
        let tls = table.services.iter().map(|spec| match before.services.get(&spec.name) {
            Some(old)
                if old.spec.certificates == spec.certificates
                    && old.spec.protocol == spec.protocol =>
            {
                Ok(old.tls.clone())
            }
            Some(_) | None => crate::tls::server_config(spec),
        });
        let tls = tls.collect::<Result<Vec<_>, String>>()?;
        let now_ms = self.now_ms();
        let mut services = BTreeMap::new();
        for (spec, tls) in table.services.iter().zip(tls) {
            let old = before.services.get(&spec.name);
            let backends = spec.backends.iter().map(|backend| {
                let kept = old.and_then(|o| {
                    o.backends
                        .iter()
                        .find(|b| b.spec.name == backend.name && b.spec.address == backend.address)
                });
                let state =
                    kept.map_or_else(|| Arc::new(self.backend_run(now_ms)), |k| k.state.clone());
                if backend.state == BackendState::Draining {
                    state.draining_since_ms.fetch_min(now_ms, Relaxed);
                } else {
                    state.draining_since_ms.store(i64::MAX, Relaxed);
                    state.over.store(false, Relaxed);
                }
                let was_up = kept.is_some_and(|k| k.spec.state == BackendState::Up);
                if backend.state == BackendState::Up && !was_up {
                    state.up_since_ms.store(now_ms, Relaxed);
                    // The probe vouches for it anew.
                    state.ejection.lock().expect("no panic while held").pardon(Instant::now());
                    if state.ejected.swap(false, Relaxed) {
                        self.tell(Notice::Returned {
                            service: spec.name.clone(),
                            backend: backend.name.clone(),
                        });
                    }
                }
                LiveBackend {
                    spec: backend.clone(),
                    hash: balance::hash(backend.name.as_bytes()),
                    state,
                }
            });
            let live = LiveService {
                backends: backends.collect(),
                state: old
                    .map_or_else(|| Arc::new(self.service_state(now_ms)), |o| o.state.clone()),
                tls,
                lease: spec.vouched.then(|| self.lease.clone()),
                spec: spec.clone(),
            };
            services.insert(spec.name.clone(), Arc::new(live));
        }
        let fences = self.set_fences(before, &services);
        Ok(Live { table, services, fences })
    }

    fn backend_run(&self, now_ms: i64) -> BackendRun {
        BackendRun {
            id: self.ids.fetch_add(1, Relaxed),
            in_flight: AtomicU32::new(0),
            counters: Counters::default(),
            trouble: AtomicBool::new(false),
            ejected: AtomicBool::new(false),
            ejection: Mutex::new(Ejection::new(Instant::now())),
            up_since_ms: AtomicI64::new(now_ms),
            requests: Fence::default(),
            tunnels: Fence::default(),
            ledger: self.ledger.clone(),
            working: AtomicU32::new(0),
            draining_since_ms: AtomicI64::new(i64::MAX),
            over: AtomicBool::new(false),
            last_suspect_ms: AtomicI64::new(i64::MIN / 2),
        }
    }

    fn service_state(&self, now_ms: i64) -> ServiceState {
        ServiceState {
            own: Counters::default(),
            turn: AtomicU64::new(0),
            budget: Budget::new(now_ms),
            retries: AtomicU64::new(0),
            retries_denied: AtomicU64::new(0),
            connections: AtomicU32::new(0),
            in_flight: AtomicU32::new(0),
            queued: AtomicU32::new(0),
            held: AtomicU64::new(0),
            resumed: AtomicU64::new(0),
            bound: AtomicU64::new(0),
            keys: Mutex::default(),
            freed: Notify::new(),
            over: AtomicBool::new(false),
        }
    }

    /// Closes and opens fences before the new table is seen; returns how often that has been done.
    ///
    /// A worker acts on a fence once it has the table, and then wakes everybody: who was cut off must find the other side.
    fn set_fences(&self, before: &Live, after: &BTreeMap<String, Arc<LiveService>>) -> u64 {
        let mut changed = false;
        for (name, old) in &before.services {
            for backend in &old.backends {
                let service = after.get(name);
                if service.is_some_and(|s| s.stands_in(backend) && !old.stands_in(backend)) {
                    // A standby that has been promoted: what is open there could write from now on.
                    backend.state.tunnels.cut();
                    changed = true;
                }
                let now = service
                    .and_then(|s| s.backends.iter().find(|b| b.state.id == backend.state.id));
                if service.is_some_and(|s| s.spec.vouched && !old.spec.vouched) {
                    // What is under way was let in without a word and would not end with the lease.
                    backend.state.requests.cut();
                    backend.state.tunnels.cut();
                    changed = true;
                }
                match now.map(|b| b.spec.state) {
                    // Its requests may finish: nobody else has taken its role.
                    None => changed |= backend.state.tunnels.close(),
                    Some(BackendState::Down) if backend.spec.state != BackendState::Down => {
                        backend.state.tunnels.cut();
                        changed = true;
                    }
                    Some(
                        BackendState::Down
                        | BackendState::Up
                        | BackendState::Unknown
                        | BackendState::Draining
                        | BackendState::Passive,
                    ) => {}
                }
            }
        }
        for backend in after.values().flat_map(|service| &service.backends) {
            let run = &backend.state;
            match backend.spec.state {
                BackendState::Passive => changed |= run.tunnels.close() | run.requests.close(),
                BackendState::Up
                | BackendState::Down
                | BackendState::Draining
                | BackendState::Unknown => {
                    run.tunnels.open();
                    run.requests.open();
                }
            }
        }
        let sessions = after.iter().filter(|(_, service)| service.spec.postgres.is_some());
        for (name, service) in sessions {
            // Whoever waits for a server, or has to leave one, looks at every change.
            changed |= before.services.get(name).is_none_or(|old| old.spec != service.spec);
        }
        if changed {
            self.fences.fetch_add(1, SeqCst);
        }
        self.fences.load(SeqCst)
    }
}

impl BackendRun {
    pub(crate) fn work_begins(&self) {
        self.working.fetch_add(1, SeqCst);
    }

    pub(crate) fn work_ends(&self) {
        if self.working.fetch_sub(1, SeqCst) == 1 {
            self.ledger.tell();
        }
    }
}

impl Live {
    /// The addresses to listen on, and the service of each.
    pub(crate) fn listeners(&self) -> BTreeMap<SocketAddr, String> {
        self.table.services.iter().map(|s| (s.listen, s.name.clone())).collect()
    }

    pub(crate) fn stats(&self, world: &World) -> Stats {
        let services = self.services.values().map(|service| ServiceStats {
            name: service.spec.name.clone(),
            own: service.state.own.snapshot(),
            retries: service.state.retries.load(Relaxed),
            retries_denied: service.state.retries_denied.load(Relaxed),
            unvouched: service.unvouched(),
            connections: u64::from(service.state.connections.load(Relaxed)),
            in_flight: u64::from(service.state.in_flight.load(Relaxed)),
            backends: service
                .backends
                .iter()
                .map(|backend| BackendStats {
                    name: backend.spec.name.clone(),
                    in_flight: u64::from(backend.state.in_flight.load(Relaxed)),
                    ejected: backend.state.ejected.load(Relaxed),
                    counts: backend.state.counters.snapshot(),
                })
                .collect(),
            postgres: PostgresStats {
                waiting: u64::from(service.state.queued.load(Relaxed)),
                held: service.state.held.load(Relaxed),
                resumed: service.state.resumed.load(Relaxed),
                bound: service.state.bound.load(Relaxed),
            },
        });
        Stats {
            services: services.collect(),
            connections: world.connections.load(Relaxed),
            lease: world.lease.stats(),
        }
    }
}

impl LiveService {
    /// Whether it may not be served now, because nobody vouches for it.
    pub(crate) fn unvouched(&self) -> bool {
        self.lease.as_ref().is_some_and(|lease| !lease.lasts())
    }

    /// What work is let in with, where somebody has to vouch for it.
    pub(crate) fn lease_pass(&self) -> Option<Pass> {
        self.lease.as_ref().map(|lease| lease.pass())
    }

    /// Whether work with this pass has to end with the lease that it began under.
    pub(crate) fn lease_stops(&self, pass: Option<Pass>) -> bool {
        let Some(lease) = &self.lease else { return false };
        pass.is_none_or(|pass| lease.stops(pass))
    }

    /// The primary that may stand in for a standby of PostgreSQL.
    pub(crate) fn fallback(&self) -> Option<usize> {
        let name = self.spec.postgres.as_ref()?.fallback.as_ref()?;
        self.backends.iter().position(|backend| backend.spec.name == *name)
    }

    fn stands_in(&self, backend: &LiveBackend) -> bool {
        self.fallback().is_some_and(|i| self.backends[i].state.id == backend.state.id)
    }

    /// Chooses a backend that is not among `tried`; `None` if none can take a request now. One that only stands in is the last.
    pub(crate) fn pick(
        &self,
        world: &World,
        tried: &[usize],
        random: u64,
        key: u64,
    ) -> Option<usize> {
        let last = self.fallback();
        self.pick_but(last, world, tried, random, key).or_else(|| {
            let backend = &self.backends[last?];
            let usable = backend.spec.state == BackendState::Up && !self.full(backend);
            last.filter(|i| usable && !tried.contains(i))
        })
    }

    fn pick_but(
        &self,
        last: Option<usize>,
        world: &World,
        tried: &[usize],
        random: u64,
        key: u64,
    ) -> Option<usize> {
        let up = |b: &LiveBackend| b.spec.state == BackendState::Up;
        let candidate = |i: usize, backend: &LiveBackend, usable: bool| balance::Candidate {
            usable: usable && last != Some(i) && !tried.contains(&i) && !self.full(backend),
            in_flight: backend.state.in_flight.load(Relaxed),
            weight: self.weight(world, backend),
            hash: backend.hash,
        };
        let usable =
            self.backends.iter().filter(|b| up(b) && !b.state.ejected.load(Relaxed)).count();
        let all = self.backends.iter().filter(|b| b.spec.state != BackendState::Passive).count();
        #[expect(clippy::cast_precision_loss, reason = "a handful of backends")]
        let panic = self.spec.panic.is_some_and(|share| usable as f64 <= share * all as f64)
            // Roles are agreed on: nothing is sent to a server that may have lost its own.
            && self.spec.postgres.is_none();
        let mut few = [balance::Candidate { usable: false, in_flight: 0, weight: 1.0, hash: 0 }; 8];
        let mut many = Vec::new();
        let candidates = if self.backends.len() <= few.len() {
            &mut few[..self.backends.len()]
        } else {
            many.resize(self.backends.len(), few[0]);
            &mut many[..]
        };
        for (i, backend) in self.backends.iter().enumerate() {
            let usable = match backend.spec.state {
                BackendState::Up => {
                    panic
                        || !backend.state.ejected.load(Relaxed)
                        || Self::trial_is_due(backend, tried)
                }
                BackendState::Down => panic,
                BackendState::Unknown | BackendState::Draining | BackendState::Passive => false,
            };
            candidates[i] = candidate(i, backend, usable);
        }
        let turn = match self.spec.balance {
            // A retry does not use up a turn, or the next request would go to the same backend again.
            Balance::RoundRobin if tried.is_empty() => self.state.turn.fetch_add(1, Relaxed),
            Balance::RoundRobin
            | Balance::Random
            | Balance::LeastRequests
            | Balance::HashIp
            | Balance::HashPath
            | Balance::HashHeader(_)
            | Balance::HashCookie(_) => random,
        };
        loop {
            let i = balance::choose(&self.spec.balance, candidates, turn, random, key)?;
            let ejected = self.backends[i].state.ejected.load(Relaxed);
            if panic || !ejected || Self::takes_trial(&self.backends[i]) {
                return Some(i);
            }
            // Another thread's request is the trial.
            candidates[i].usable = false;
        }
    }

    fn full(&self, backend: &LiveBackend) -> bool {
        let max = self.spec.limits.per_backend;
        max > 0 && max <= backend.state.in_flight.load(Relaxed)
    }

    /// Whether this request could be the trial of an ejected backend; it takes the one place only once it is chosen.
    fn trial_is_due(backend: &LiveBackend, tried: &[usize]) -> bool {
        // Only a first try is spent on a trial: its retry then goes to a backend that is known to be good.
        tried.is_empty()
            && backend.state.ejection.lock().expect("no panic while held").due(Instant::now())
    }

    fn takes_trial(backend: &LiveBackend) -> bool {
        backend.state.ejection.lock().expect("no panic while held").admit(Instant::now())
    }

    fn weight(&self, world: &World, backend: &LiveBackend) -> f32 {
        if self.spec.slow_start.is_zero() {
            return 1.0;
        }
        let age = world.now_ms() - backend.state.up_since_ms.load(Relaxed);
        let full = i64::try_from(self.spec.slow_start.as_millis()).unwrap_or(i64::MAX);
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let share = age.max(0) as f32 / full.max(1) as f32;
        share.clamp(0.1, 1.0)
    }

    /// Counts how a request at a backend went, and ejects it or lets it back in.
    pub(crate) fn observe(&self, world: &World, i: usize, outcome: Outcome) {
        let Some(backend) = self.backends.get(i) else { return };
        let run = &backend.state;
        if outcome == Outcome::Good && !run.trouble.load(Relaxed) {
            return;
        }
        if outcome == Outcome::Failure {
            self.suspect(world, backend);
        }
        let others = self.backends.iter().enumerate().any(|(j, b)| {
            j != i && b.spec.state == BackendState::Up && !b.state.ejected.load(Relaxed)
        });
        let mut ejection = run.ejection.lock().expect("no panic while held");
        run.trouble.store(true, Relaxed);
        let change = ejection.observe(Instant::now(), outcome, !others, &self.spec.eject);
        run.ejected.store(ejection.ejected(), Relaxed);
        if outcome == Outcome::Good && ejection.quiet() {
            run.trouble.store(false, Relaxed);
        }
        drop(ejection);
        self.announce(world, backend, change);
    }

    pub(crate) fn suspect(&self, world: &World, backend: &LiveBackend) {
        let now = world.now_ms();
        let last = backend.state.last_suspect_ms.load(Relaxed);
        let due = last + SUSPECT_EVERY_MS <= now;
        if due
            && backend.state.last_suspect_ms.compare_exchange(last, now, Relaxed, Relaxed).is_ok()
        {
            world.tell(Notice::Suspect {
                service: self.spec.name.clone(),
                backend: backend.spec.name.clone(),
            });
        }
    }

    /// Lets backends back in whose ejection ended without a request to try them.
    pub(crate) fn lapse(&self, world: &World, now: Instant) {
        for backend in self.backends.iter().filter(|b| b.state.ejected.load(Relaxed)) {
            let mut ejection = backend.state.ejection.lock().expect("no panic while held");
            if ejection.lapse(now) {
                backend.state.ejected.store(false, Relaxed);
                drop(ejection);
                self.announce(world, backend, Change::Returned);
            }
        }
    }

    /// Ends what is still open at backends that have drained for long enough. True: somebody has to look.
    pub(crate) fn end_drained(&self, world: &World) -> bool {
        let allowed = i64::try_from(self.spec.timeouts.drain.as_millis()).unwrap_or(i64::MAX);
        let latest = world.now_ms().saturating_sub(allowed);
        let mut open = false;
        for backend in &self.backends {
            let run = &backend.state;
            if run.draining_since_ms.load(Relaxed) <= latest && run.in_flight.load(Relaxed) > 0 {
                run.over.store(true, Relaxed);
                open = true;
            }
        }
        open
    }

    fn announce(&self, world: &World, backend: &LiveBackend, change: Change) {
        let (service, backend) = (self.spec.name.clone(), backend.spec.name.clone());
        match change {
            Change::None => {}
            Change::Ejected { time, reason } => {
                world.tell(Notice::Ejected { service, backend, reason: reason.to_owned(), time });
            }
            Change::Returned => world.tell(Notice::Returned { service, backend }),
        }
    }

    /// Whether waiting on at this backend makes sense: it is still meant to serve.
    pub(crate) fn still_good(&self, backend_id: u64) -> bool {
        self.backends.iter().any(|b| {
            b.state.id == backend_id
                && matches!(b.spec.state, BackendState::Up | BackendState::Draining)
                && !b.state.ejected.load(Relaxed)
        })
    }
}

/// Counts one request in flight, at the service and, once chosen, at a backend.
#[derive(Debug)]
pub(crate) struct Flight {
    service: Arc<ServiceState>,
    backend: Option<Arc<BackendRun>>,
}

impl Flight {
    /// Counts one at a service without asking for its limit.
    pub(crate) fn enter(service: &LiveService) -> Flight {
        service.state.in_flight.fetch_add(1, Relaxed);
        Flight { service: service.state.clone(), backend: None }
    }

    /// Takes a place among the service's requests; waits in its bounded queue if there is none.
    pub(crate) async fn board(service: &LiveService) -> Option<Flight> {
        let state = &service.state;
        let limit = service.spec.limits.requests;
        if take(&state.in_flight, limit) {
            return Some(Flight { service: state.clone(), backend: None });
        }
        let _queued = Queued::join(state, service.spec.limits.queue)?;
        let waited = tokio::time::timeout(service.spec.timeouts.queue, async {
            loop {
                let freed = state.freed.notified();
                if take(&state.in_flight, limit) {
                    return;
                }
                freed.await;
            }
        })
        .await;
        waited.ok().map(|()| Flight { service: state.clone(), backend: None })
    }

    pub(crate) fn goes_to(&mut self, backend: &Arc<BackendRun>) {
        self.leaves_backend();
        backend.in_flight.fetch_add(1, Relaxed);
        self.backend = Some(backend.clone());
    }

    pub(crate) fn leaves_backend(&mut self) {
        if let Some(backend) = self.backend.take() {
            backend.in_flight.fetch_sub(1, SeqCst);
            if backend.requests.closed() {
                backend.ledger.tell();
            }
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.leaves_backend();
        self.service.in_flight.fetch_sub(1, Relaxed);
        if self.service.queued.load(Relaxed) > 0 {
            self.service.freed.notify_one();
        }
    }
}

/// A place in the queue of a service, given back even by a request whose client has gone.
struct Queued<'a>(&'a AtomicU32);

impl Queued<'_> {
    fn join(state: &ServiceState, limit: u32) -> Option<Queued<'_>> {
        take(&state.queued, limit).then(|| Queued(&state.queued))
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// One of something that is counted for as long as it lives.
#[derive(Debug)]
pub(crate) struct Counted(Arc<AtomicU64>);

impl Counted {
    pub(crate) fn one(counter: &Arc<AtomicU64>) -> Counted {
        counter.fetch_add(1, Relaxed);
        Counted(counter.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // Whoever sees that this one is gone sees everything that it counted before.
        self.0.fetch_sub(1, Release);
    }
}

/// Adds one if that stays within the limit.
pub(crate) fn take(counter: &AtomicU32, limit: u32) -> bool {
    if counter.fetch_add(1, Relaxed) < limit {
        return true;
    }
    counter.fetch_sub(1, Relaxed);
    false
}
