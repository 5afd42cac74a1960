//! A table is in force once every worker uses it and nothing is left at the backends that it fenced.
//!
//! Whoever applies a table waits here, for a bounded time; workers and the ends of fenced requests tell.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::live::BackendRun;

/// How long one wait lasts before it looks again, should a word be missed.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What has been seen by whom.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// The newest orders that each worker follows.
    seen: Vec<AtomicU64>,
    lock: Mutex<()>,
    told: Condvar,
}

impl Ledger {
    pub(crate) fn new(workers: usize) -> Ledger {
        Ledger {
            seen: (0..workers).map(|_| AtomicU64::new(0)).collect(),
            lock: Mutex::new(()),
            told: Condvar::new(),
        }
    }

    /// A worker follows these orders, and has woken everybody whom they concern.
    pub(crate) fn saw(&self, worker: usize, orders: u64) {
        if let Some(seen) = self.seen.get(worker) {
            seen.store(orders, SeqCst);
        }
        self.tell();
    }

    /// Somebody may have waited for this.
    pub(crate) fn tell(&self) {
        drop(self.lock.lock().expect("no panic while held"));
        self.told.notify_all();
    }
}

/// A table on its way into force.
#[derive(Clone, Debug)]
pub struct Applying {
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) orders: u64,
    pub(crate) fenced: Vec<Arc<BackendRun>>,
    /// Where no session may be under way.
    pub(crate) paused: Vec<Arc<BackendRun>>,
}

/// A table that is not yet in force everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsettled {
    /// Workers that still use an older table.
    pub workers: usize,
    /// Requests and connections that are still open at fenced backends, and sessions that are under way at paused ones.
    pub open: u64,
}

impl std::fmt::Display for Unsettled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Unsettled { workers, open } = self;
        write!(
            f,
            "{workers} workers still use an older table, {open} requests or connections are still at a side that must \
             not serve"
        )
    }
}

impl Applying {
    /// Whether the table is in force everywhere.
    pub fn look(&self) -> Result<(), Unsettled> {
        // In this order: a worker that has the table lets nothing more in.
        let workers =
            self.ledger.seen.iter().filter(|seen| seen.load(SeqCst) < self.orders).count();
        let fenced = self.fenced.iter().map(|b| u64::from(b.in_flight.load(SeqCst)));
        let paused = self.paused.iter().map(|b| u64::from(b.working.load(SeqCst)));
        let open = fenced.chain(paused).sum();
        if (workers, open) == (0, 0) { Ok(()) } else { Err(Unsettled { workers, open }) }
    }

    /// Waits until the table is in force everywhere, or says what is missing.
    pub fn wait(&self, limit: Duration) -> Result<(), Unsettled> {
        let end = Instant::now() + limit;
        let mut held = self.ledger.lock.lock().expect("no panic while held");
        loop {
            let settled = self.look();
            let left = end.saturating_duration_since(Instant::now());
            if settled.is_ok() || left.is_zero() {
                return settled;
            }
            held = self
                .ledger
                .told
                .wait_timeout(held, left.min(LOOK_EVERY))
                .expect("no panic while held")
                .0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::SocketAddr;

    use super::*;
    use crate::live::{Flight, Live, World};
    use crate::table::{BackendState, Protocol, Service, Table};

    const SOON: Duration = Duration::from_millis(1);
    const LONG: Duration = Duration::from_secs(20);

    /// A world with two workers and one backend that has just been fenced with a request under way.
    fn fenced() -> (Applying, Flight) {
        let (notices, _inbox) = tokio::sync::mpsc::channel(1);
        let world = World::new(notices, 2, crate::lease::Lease::none().unwrap());
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let mut service = Service::plain("web", address, Protocol::Http, &[address]);
        let table = |service: &Service| Table { generation: 0, services: vec![service.clone()] };
        let live = world.compile(table(&service), &Live::default()).unwrap();
        let mut boarding = std::pin::pin!(Flight::board(&live.services["web"]));
        let cx = &mut std::task::Context::from_waker(std::task::Waker::noop());
        let std::task::Poll::Ready(Some(mut flight)) = boarding.as_mut().poll(cx) else {
            panic!("there is room");
        };
        let backend = live.services["web"].backends[0].state.clone();
        flight.goes_to(&backend);
        service.backends[0].state = BackendState::Passive;
        let after = world.compile(table(&service), &live).unwrap();
        assert!(after.fences > live.fences && BTreeMap::len(&after.services) == 1);
        (
            Applying { ledger: world.ledger, orders: 7, fenced: vec![backend], paused: Vec::new() },
            flight,
        )
    }

    #[test]
    fn a_table_is_in_force_when_all_workers_have_it_and_fenced_work_has_ended() {
        let (applying, flight) = fenced();
        assert_eq!(applying.wait(SOON), Err(Unsettled { workers: 2, open: 1 }));
        applying.ledger.saw(0, 7);
        applying.ledger.saw(1, 6);
        assert_eq!(applying.wait(SOON), Err(Unsettled { workers: 1, open: 1 }));
        applying.ledger.saw(1, 8);
        assert_eq!(applying.wait(SOON), Err(Unsettled { workers: 0, open: 1 }));
        drop(flight);
        assert_eq!(applying.wait(Duration::ZERO), Ok(()));
    }

    #[test]
    fn whoever_waits_is_told() {
        let (applying, flight) = fenced();
        let ledger = applying.ledger.clone();
        let telling = std::thread::spawn(move || {
            ledger.saw(0, 7);
            ledger.saw(1, 7);
            drop(flight);
        });
        assert_eq!(applying.wait(LONG), Ok(()));
        telling.join().unwrap();
    }
}
