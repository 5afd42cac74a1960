//! Ends what is under way when this node's lease does, whoever else hangs.
//!
//! The guard sleeps on a clock that counts suspension and does nothing but this. It writes no log and waits for no disk: what
//! there is to tell goes into a queue that may be full.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Weak};

use outlast_core::agreed::STOP_LIMIT;
use tokio::sync::watch;

use crate::live::{Notice, World};
use crate::server::Orders;
use crate::settle::Applying;

/// Watches over the lease of one proxy.
#[derive(Debug)]
pub struct Guard {
    pub(crate) world: Arc<World>,
    pub(crate) orders: Weak<watch::Sender<Orders>>,
}

impl Guard {
    /// Keeps watch until the proxy ends; for a thread of its own.
    pub fn watch(self) {
        loop {
            self.world.lease.wait();
            let Some(orders) = self.orders.upgrade() else { return };
            if !self.world.lease.end_if_over() {
                continue;
            }
            let cutting = cut(&self.world, &orders);
            drop(orders);
            if let Err(unsettled) = cutting.wait(STOP_LIMIT) {
                let reason = format!("{unsettled}, {STOP_LIMIT:?} after the end of the lease");
                self.world.tell(Notice::NotCut { reason });
            }
        }
    }
}

/// Has every worker end what is under way where nobody vouches any more.
pub(crate) fn cut(world: &World, orders: &watch::Sender<Orders>) -> Applying {
    let (mut number, mut fenced) = (0, Vec::new());
    orders.send_modify(|orders| {
        orders.number += 1;
        orders.lease_ends += 1;
        number = orders.number;
        let vouched = orders.live.services.values().filter(|service| service.spec.vouched);
        fenced = vouched.flat_map(|s| &s.backends).map(|b| b.state.clone()).collect();
    });
    let open = fenced.iter().map(|backend| u64::from(backend.in_flight.load(SeqCst))).sum();
    world.tell(Notice::LeaseEnded { open });
    Applying { ledger: world.ledger.clone(), orders: number, fenced, paused: Vec::new() }
}

#[cfg(test)]
mod tests {
    use outlast_core::time::Instant;

    use super::*;
    use crate::lease::Lease;

    #[test]
    fn a_worker_that_does_not_cut_in_time_is_told_of() {
        let (notices, mut inbox) = tokio::sync::mpsc::channel(2);
        let world = Arc::new(World::new(notices, 1, Lease::none().unwrap()));
        let orders = Arc::new(watch::channel(Orders::default()).0);
        let guard = Guard { world: world.clone(), orders: Arc::downgrade(&orders) };
        let watching = std::thread::spawn(move || guard.watch());
        world.lease.vouch(Instant::from_start(std::time::Duration::MAX));
        world.lease.vouch(Instant::default());
        assert_eq!(inbox.blocking_recv(), Some(Notice::LeaseEnded { open: 0 }));
        let Some(Notice::NotCut { reason }) = inbox.blocking_recv() else { panic!("no word") };
        assert!(reason.starts_with("1 workers still use an older table"), "{reason}");
        assert_eq!((orders.borrow().number, orders.borrow().lease_ends), (1, 1));
        // Whoever has no proxy any more has nothing to watch over.
        drop(orders);
        world.lease.ring();
        watching.join().unwrap();
    }
}
