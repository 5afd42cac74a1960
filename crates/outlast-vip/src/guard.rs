//! What a node does with the addresses of one unit while it has the lease, and after.

use std::time::Duration;

use outlast_core::time::Instant;
use outlast_kernel::packet;
use outlast_kernel::route::Route;

use crate::address::{Kept, Place, check};
use crate::announce::announce;
use crate::clock::boottime;
use crate::error::Error;
use crate::tables::Tables;

/// By how much the kernel may hear later of a lease than it was reckoned for, and how often it is tried.
const LATE_MAX: Duration = Duration::from_millis(8);
const GRANT_TRIES: u32 = 3;

/// Nothing is granted for longer at one time.
pub const GRANT_MAX: Duration = Duration::from_secs(60);

/// The addresses of one unit, in the hands of this node or not.
///
/// All calls block for a few hundred microseconds at most, as long as the kernel needs, and all may be repeated. A guard
/// that goes away drops its addresses; its rules stay and drop all packets, until [`Guard::close`] or the machine's end.
#[derive(Debug)]
pub struct Guard {
    tables: Tables,
    addresses: Vec<Kept>,
    route: Route,
    packets: packet::Socket,
    /// Until when the addresses are ours; `None` since they were dropped.
    until: Option<Instant>,
}

impl Guard {
    /// Puts up the rules that keep the addresses dark, and removes what an earlier process has left.
    pub fn open(unit: &str, places: &[Place]) -> Result<Guard, Error> {
        check(unit, places)?;
        let ips = places.iter().map(|place| place.network.address);
        let tables = Tables::open(unit, ips)
            .map_err(|error| Error::kernel("open the way to nftables", error))?;
        let route = Route::open().map_err(|error| Error::kernel("open netlink", error))?;
        let packets =
            packet::Socket::open().map_err(|error| Error::kernel("open a packet socket", error))?;
        let addresses: Vec<_> = places.iter().cloned().map(Kept::new).collect();
        for address in &addresses {
            address.link(&route)?;
        }
        tables
            .build()
            .map_err(|error| Error::kernel("have nftables keep the addresses dark", error))?;
        for address in &addresses {
            address.remove(&route)?;
        }
        Ok(Guard { tables, addresses, route, packets, until: None })
    }

    /// Has the addresses until this moment of [`boottime`], and says so to the neighbours. What fails leaves nothing.
    pub fn take(&mut self, until: Instant) -> Result<(), Error> {
        let taken = self.take_all(until);
        if taken.is_err() {
            // The reason why it was not taken says more than that something else failed as well.
            self.drop_all().ok();
        }
        taken
    }

    /// Has them until this moment instead of the one before. What has been lost meanwhile is taken anew, and announced.
    /// What fails leaves all as it is, so that it ends with the lease before.
    pub fn refresh(&mut self, until: Instant) -> Result<(), Error> {
        if !self.holds() {
            return self.take(until);
        }
        let left = self.grant(until)?;
        for address in &self.addresses {
            address.refresh(&self.route, left)?;
        }
        self.until = Some(until);
        Ok(())
    }

    /// Says to the neighbours where the addresses are, if they are here.
    pub fn announce(&self) -> Result<(), Error> {
        if !self.holds() {
            return Ok(());
        }
        for address in &self.addresses {
            let link = address.link(&self.route)?;
            if link.up {
                announce(&self.packets, &link, address.ip()).map_err(|error| {
                    Error::kernel(format!("announce {} on `{}`", address.ip(), link.name), error)
                })?;
            }
        }
        Ok(())
    }

    /// Lets go of the addresses at once: first nobody reaches them, then they are gone. The first failure is said, and
    /// everything else done.
    pub fn drop_all(&mut self) -> Result<(), Error> {
        let revoked =
            self.tables.revoke().map_err(|error| Error::kernel("revoke the lease", error));
        if revoked.is_ok() {
            self.until = None;
        }
        self.addresses.iter().map(|address| address.remove(&self.route)).fold(revoked, Result::and)
    }

    /// Whether the addresses are here and the lease lasts.
    pub fn holds(&self) -> bool {
        self.until.is_some_and(|until| boottime() < until)
    }

    /// Until when they are here; in the past if nobody has refreshed the lease, `None` if they have been dropped.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Drops the addresses, and then takes the rules away.
    pub fn close(mut self) -> Result<(), Error> {
        self.drop_all()?;
        self.tables.delete().map_err(|error| Error::kernel("take the rules away", error))
    }

    fn take_all(&mut self, until: Instant) -> Result<(), Error> {
        let left = self.grant(until)?;
        for address in &mut self.addresses {
            address.put(&self.route, left)?;
        }
        self.until = Some(until);
        // The next announcement follows in 50 ms, and says what is in its way. The address works without.
        self.announce().ok();
        Ok(())
    }

    /// Grants what is left. The kernel counts from when it was told: if that took too long, it is told again.
    fn grant(&self, until: Instant) -> Result<Duration, Error> {
        for _ in 0..GRANT_TRIES {
            let (left, before) = (left(until)?, boottime());
            self.tables.grant(left).map_err(|error| Error::kernel("grant the lease", error))?;
            if boottime().since(before) <= LATE_MAX {
                return Ok(left);
            }
        }
        // It may have been told too much.
        self.tables.revoke().map_err(|error| Error::kernel("revoke the lease", error))?;
        Err(Error::Over)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.until.is_some() {
            // Nobody is left who could be told; the kernel ends what could not be removed.
            self.drop_all().ok();
        }
    }
}

/// What is left of a lease.
fn left(until: Instant) -> Result<Duration, Error> {
    /// The kernel counts milliseconds, and 0 means for ever.
    const SHORTEST: Duration = Duration::from_millis(1);
    let left = until.since(boottime());
    if left < SHORTEST { Err(Error::Over) } else { Ok(left.min(GRANT_MAX)) }
}
