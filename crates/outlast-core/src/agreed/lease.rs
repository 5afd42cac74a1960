//! Who holds which role, and under which epoch.
//!
//! A lease is granted by the log, and its epoch is the log index of the grant: higher than every epoch before it, of this
//! role and of all others. There is no time in here. Whoever holds a lease counts by its own clock when its right ends
//! ([`Held`](super::Held)); whoever watches counts when it is over ([`LeaseClock`](super::LeaseClock)) and says so with
//! `Expire`, which names the renewal that was judged and fails if another one came in between.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use core::time::Duration;

use super::Stamp;
#[cfg(test)]
use super::bugs::{Bug, instead};
use super::form::{coded_enum, coded_struct};
use super::history::History;
use super::limits::{self, Limit};
use super::registry::Registry;
use super::reply::{Refusal, Reply};

/// What can happen to the lease of a role, such as "postgres.orders".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseCommand {
    /// Refused while another node holds it. Its own holder gets a new epoch, which fences its former self.
    Grant {
        role: String,
        node: u64,
        ttl: Duration,
    },
    Renew {
        role: String,
        node: u64,
        epoch: u64,
    },
    /// The holder has stopped: nobody has to wait for the end of the lease.
    Release {
        role: String,
        node: u64,
        epoch: u64,
    },
    /// The lease is over, judged from its renewal at this index.
    Expire {
        role: String,
        epoch: u64,
        renewed_index: u64,
    },
}

coded_enum!(LeaseCommand, "a command about leases that is not known here", {
    1 = Grant { role, node, ttl }, 2 = Renew { role, node, epoch }, 3 = Release { role, node, epoch },
    4 = Expire { role, epoch, renewed_index },
});

impl LeaseCommand {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        match self {
            LeaseCommand::Grant { role, ttl, .. } => {
                Limit::RoleBytes.name(role)?;
                limits::ttl(*ttl)
            }
            LeaseCommand::Renew { role, .. }
            | LeaseCommand::Release { role, .. }
            | LeaseCommand::Expire { role, .. } => Limit::RoleBytes.name(role),
        }
    }

    pub(super) fn repeatable(&self) -> bool {
        match self {
            LeaseCommand::Grant { .. } => false,
            // An epoch is given once; a late repetition finds another one or none.
            LeaseCommand::Renew { .. }
            | LeaseCommand::Release { .. }
            | LeaseCommand::Expire { .. } => true,
        }
    }
}

/// A role that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    pub holder: u64,
    pub epoch: u64,
    pub ttl: Duration,
    /// The log index of the grant or of the last renewal.
    pub renewed_index: u64,
    pub granted: Stamp,
}

coded_struct!(Lease { holder, epoch, ttl, renewed_index, granted });

/// The roles that are held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leases {
    held: BTreeMap<String, Lease>,
}

coded_struct!(Leases { held });

impl Leases {
    pub fn get(&self, role: &str) -> Option<&Lease> {
        self.held.get(role)
    }

    pub fn held(&self) -> &BTreeMap<String, Lease> {
        &self.held
    }

    /// Refuses orders of anyone but who holds the role now, under exactly this epoch.
    pub(super) fn admits(&self, role: &str, epoch: u64) -> Result<(), Refusal> {
        let lease = self.held.get(role).ok_or(Refusal::NotHeld)?;
        if lease.epoch == epoch {
            Ok(())
        } else {
            Err(Refusal::OtherEpoch { current: lease.epoch })
        }
    }

    pub(super) fn apply(
        &mut self,
        at: Stamp,
        command: &LeaseCommand,
        registry: &Registry,
        history: &mut History,
    ) -> Result<Reply, Refusal> {
        match command {
            LeaseCommand::Grant { role, node, ttl } => {
                self.grant(at, role, *node, *ttl, registry)?;
                let epoch = self.held.get(role).map_or(at.index, |lease| lease.epoch);
                history.add(at, *node, &format!("holds {role} under epoch {epoch}"));
                Ok(Reply::Granted { epoch })
            }
            LeaseCommand::Renew { role, node, epoch } => {
                // A removed node's leases run out.
                registry.known(*node)?;
                self.of(role, *node, *epoch)?.renewed_index = at.index;
                Ok(Reply::Done)
            }
            LeaseCommand::Release { role, node, epoch } => {
                self.of(role, *node, *epoch)?;
                self.held.remove(role);
                history.add(at, *node, &format!("gave {role} back, epoch {epoch} is over"));
                Ok(Reply::Done)
            }
            LeaseCommand::Expire { role, epoch, renewed_index } => {
                self.admits(role, *epoch)?;
                let Some(lease) = self.held.get(role) else { return Err(Refusal::NotHeld) };
                let judged = lease.renewed_index == *renewed_index;
                #[cfg(test)]
                let judged = instead(Bug::ExpiresBlindly, judged, true);
                if !judged {
                    return Err(Refusal::RenewedSince { renewed_index: lease.renewed_index });
                }
                let text = format!("lost {role}, epoch {epoch} ran out");
                history.add(at, lease.holder, &text);
                self.held.remove(role);
                Ok(Reply::Done)
            }
        }
    }

    /// Gives a role that nobody else holds to a node, as part of another command.
    pub(super) fn appoint(
        &mut self,
        at: Stamp,
        role: &str,
        holder: u64,
        ttl: Duration,
    ) -> Result<(), Refusal> {
        match self.held.get(role) {
            Some(lease) if lease.holder != holder => {
                return Err(Refusal::Held { holder: lease.holder, epoch: lease.epoch });
            }
            Some(_) => {}
            None => Limit::Leases.holds(self.held.len() + 1)?,
        }
        let lease = Lease { holder, epoch: at.index, ttl, renewed_index: at.index, granted: at };
        self.held.insert(String::from(role), lease);
        Ok(())
    }

    /// Ends it at once, as part of another command.
    pub(super) fn end(&mut self, role: &str) {
        self.held.remove(role);
    }

    fn grant(
        &mut self,
        at: Stamp,
        role: &str,
        node: u64,
        ttl: Duration,
        registry: &Registry,
    ) -> Result<(), Refusal> {
        registry.known(node)?;
        match self.held.get(role) {
            Some(&Lease { holder, epoch, .. }) if holder != node => {
                return Err(Refusal::Held { holder, epoch });
            }
            Some(_) => {}
            None => Limit::Leases.holds(self.held.len() + 1)?,
        }
        let epoch = at.index;
        #[cfg(test)]
        let epoch = instead(Bug::EpochKept, epoch, self.held.get(role).map_or(epoch, |l| l.epoch));
        let lease = Lease { holder: node, epoch, ttl, renewed_index: at.index, granted: at };
        self.held.insert(String::from(role), lease);
        Ok(())
    }

    fn of(&mut self, role: &str, node: u64, epoch: u64) -> Result<&mut Lease, Refusal> {
        self.admits(role, epoch)?;
        let lease = self.held.get_mut(role).ok_or(Refusal::NotHeld)?;
        if lease.holder == node {
            Ok(lease)
        } else {
            Err(Refusal::OtherHolder { holder: lease.holder })
        }
    }
}
