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
    Applying { ledger: world.ledger.clone(), orders: number, fenced }
}
