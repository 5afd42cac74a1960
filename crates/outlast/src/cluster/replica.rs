//! This node's copy of what is agreed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use outlast_consensus::{Index, Machine, boottime};
use outlast_core::agent::Agreement;
use outlast_core::agreed::{Agreed, Command, Entry, LeaseClock};
use outlast_core::codec::{Code as _, Malformed};
use tokio::sync::watch;

use super::topology::{self, Notes};

/// What the threads of the cluster share of it.
#[derive(Debug)]
pub(super) struct Replica {
    pub(super) agreed: RwLock<Agreed>,
    /// Everything up to here has been applied.
    pub(super) reached: watch::Sender<Index>,
    clock: Mutex<LeaseClock>,
    leads: AtomicBool,
    names: RwLock<Arc<BTreeMap<u64, String>>>,
    /// What an agent goes by.
    pub(super) agreement: watch::Sender<Arc<Agreement>>,
    /// What is in there is as new as what others knew when this node asked for it first.
    pub(super) caught_up: watch::Sender<bool>,
    /// What happened to proposed topologies.
    pub(super) notes: Mutex<Notes>,
}

impl Replica {
    pub(super) fn new() -> Arc<Replica> {
        Arc::new(Replica {
            agreed: RwLock::default(),
            reached: watch::Sender::new(0),
            clock: Mutex::default(),
            leads: AtomicBool::new(false),
            names: RwLock::default(),
            agreement: watch::Sender::new(Arc::default()),
            caught_up: watch::Sender::new(false),
            notes: Mutex::default(),
        })
    }

    pub(super) fn read<T>(&self, look: impl FnOnce(&Agreed) -> T) -> T {
        look(&self.agreed.read().expect("no panic while held"))
    }

    /// The names of the nodes by their ids.
    pub(super) fn names(&self) -> Arc<BTreeMap<u64, String>> {
        self.names.read().expect("no panic while held").clone()
    }

    /// What has run out by this node's clock, if it leads.
    pub(super) fn over(&self) -> Vec<Command> {
        if !self.leads.load(Ordering::Acquire) {
            return Vec::new();
        }
        self.clock.lock().expect("no panic while held").over(boottime())
    }

    /// Draws what an agent goes by anew.
    fn learn_agreement(&self) {
        let leads = self.leads.load(Ordering::Acquire);
        let now = self.read(|agreed| Agreement::of(agreed, leads));
        self.agreement.send_if_modified(|before| {
            let changed = **before != now;
            if changed {
                *before = Arc::new(now);
            }
            changed
        });
    }

    fn learn_names(&self, agreed: &Agreed) {
        let names = agreed.registry().nodes().iter();
        let names = names.map(|(&id, node)| (id, node.name.clone())).collect();
        *self.names.write().expect("no panic while held") = Arc::new(names);
    }
}

/// Feeds it with what is committed.
#[derive(Debug)]
pub(super) struct Feeder {
    pub(super) replica: Arc<Replica>,
    /// Something ends after a while, or did: the clock has to look.
    timed: bool,
    /// Something that an agent goes by may have changed.
    roles: bool,
}

impl Feeder {
    pub(super) fn new(replica: Arc<Replica>) -> Feeder {
        Feeder { replica, timed: true, roles: true }
    }
}

impl Machine for Feeder {
    fn apply(&mut self, index: Index, command: &[u8]) -> Result<Vec<u8>, Malformed> {
        let entry = Entry::from_bytes(command)?;
        let mut agreed = self.replica.agreed.write().expect("no panic while held");
        let votes = topology::votes(&agreed);
        let reply = agreed.apply(index, &entry);
        match &entry.command {
            Command::Node(_) => {
                self.replica.learn_names(&agreed);
                self.roles = true;
            }
            Command::Lease(_) => (self.timed, self.roles) = (true, true),
            Command::Session(_) | Command::Notice(_) => self.timed = true,
            Command::Side(_) | Command::Address(_) | Command::Names(_) => self.roles = true,
            // A reign begins and ends with its lease.
            Command::Database(_) => (self.timed, self.roles) = (true, true),
            Command::Topology(command) => {
                topology::note(&self.replica.notes, &agreed, command, reply, votes);
            }
            Command::Introduce
            | Command::Procedure(_)
            | Command::Kv(_)
            | Command::Lock(_)
            | Command::Record { .. } => {}
        }
        Ok(reply.to_bytes())
    }

    fn reached(&mut self, index: Index) {
        if std::mem::take(&mut self.timed) {
            let agreed = self.replica.agreed.read().expect("no panic while held");
            self.replica.clock.lock().expect("no panic while held").observe(boottime(), &agreed);
        }
        if std::mem::take(&mut self.roles) {
            self.replica.learn_agreement();
        }
        self.replica.reached.send_replace(index);
    }

    fn snapshot(&self) -> Box<dyn FnOnce() -> Vec<u8> + Send> {
        // Shares the keys and values, which are the most of it.
        let agreed = self.replica.read(Agreed::clone);
        Box::new(move || agreed.snapshot())
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        let restored = Agreed::restore(bytes)?;
        self.replica.learn_names(&restored);
        *self.replica.agreed.write().expect("no panic while held") = restored;
        (self.timed, self.roles) = (true, true);
        Ok(())
    }

    fn leads(&mut self, leads: bool) {
        if leads {
            let agreed = self.replica.agreed.read().expect("no panic while held");
            self.replica.clock.lock().expect("no panic while held").took_over(boottime(), &agreed);
        }
        self.replica.leads.store(leads, Ordering::Release);
        self.replica.learn_agreement();
    }
}
