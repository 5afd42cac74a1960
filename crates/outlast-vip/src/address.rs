//! The addresses of a unit on this machine's interfaces.

use std::net::IpAddr;
use std::time::Duration;

use outlast_core::topology::Network;
use outlast_kernel::route::{
    Addressed, Link, NO_DUPLICATE_DETECTION, NO_PREFIX_ROUTE, Route, Wanted,
};
use rustix::io::Errno;

use crate::error::Error;
use crate::guard::GRANT_MAX;

/// Addresses of one unit.
pub const ADDRESSES_MAX: usize = 64;

/// Longer than this is only an address that is not ours: what we add is valid for a lease, rounded up, and a second.
const OURS_AT_MOST: Duration = Duration::from_secs(GRANT_MAX.as_secs() + 2);

/// An address, and the interface that it belongs to while this node has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub network: Network,
    pub interface: String,
}

/// An address as this process keeps it.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) place: Place,
    flags: u32,
}

impl Kept {
    pub(crate) fn new(place: Place) -> Kept {
        Kept { place, flags: NO_DUPLICATE_DETECTION }
    }

    pub(crate) fn ip(&self) -> IpAddr {
        self.place.network.address
    }

    pub(crate) fn link(&self, route: &Route) -> Result<Link, Error> {
        let name = &self.place.interface;
        route.link(name).map_err(|error| Error::Interface { name: name.clone(), error })
    }

    /// Adds the address for so long.
    pub(crate) fn put(&mut self, route: &Route, left: Duration) -> Result<(), Error> {
        let link = self.link(route)?;
        self.flags = self.flags_on(route, &link)?;
        self.write(route, &link, left)
    }

    /// Has it for so long from now; adds it if it is gone.
    pub(crate) fn refresh(&self, route: &Route, left: Duration) -> Result<(), Error> {
        self.write(route, &self.link(route)?, left)
    }

    /// Removes it, however it has come there.
    pub(crate) fn remove(&self, route: &Route) -> Result<(), Error> {
        let link = match self.link(route) {
            Ok(link) => link,
            // No interface, no address.
            Err(Error::Interface { error, .. })
                if Errno::from_io_error(&error) == Some(Errno::NODEV) =>
            {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let found = route.addresses(link.index).map_err(|error| self.refused("look for", error))?;
        for here in found.iter().filter(|here| here.ip == self.ip()) {
            route
                .delete_address(link.index, here.ip, here.prefix)
                .map_err(|error| self.refused("remove", error))?;
        }
        Ok(())
    }

    fn write(&self, route: &Route, link: &Link, left: Duration) -> Result<(), Error> {
        let valid = valid_seconds(left);
        // The kernel never chooses a deprecated IPv6 address by itself for what this node sends on its own behalf: that
        // would break when the address moves. IPv4 chooses the interface's first address, which ours is not.
        let preferred = if self.ip().is_ipv4() { valid } else { 0 };
        let Network { address: ip, prefix } = self.place.network;
        let wanted = Wanted { ip, prefix, valid, preferred, flags: self.flags };
        route.put_address(link.index, &wanted).map_err(|error| self.refused("add", error))
    }

    /// In IPv6 the route to the network gets the lifetime of the address that is refreshed last: it has to be left alone
    /// where the node has it by an address of its own.
    fn flags_on(&self, route: &Route, link: &Link) -> Result<u32, Error> {
        let network = self.place.network;
        if network.address.is_ipv4() {
            return Ok(NO_DUPLICATE_DETECTION);
        }
        let found = route.addresses(link.index).map_err(|error| self.refused("look for", error))?;
        let is_foreign = |here: &Addressed| {
            here.ip != network.address
                && here.prefix == network.prefix
                && network.contains(here.ip)
                && here.valid.is_none_or(|valid| OURS_AT_MOST.as_secs() < u64::from(valid))
        };
        let has_route = found.iter().any(is_foreign);
        Ok(NO_DUPLICATE_DETECTION | if has_route { NO_PREFIX_ROUTE } else { 0 })
    }

    fn refused(&self, doing: &str, error: std::io::Error) -> Error {
        let Place { network, interface } = &self.place;
        let Network { address, prefix } = network;
        Error::kernel(format!("{doing} {address}/{prefix} on `{interface}`"), error)
    }
}

/// The lease in whole seconds, rounded up, and one more: nftables ends it on time, this only tidies up.
fn valid_seconds(left: Duration) -> u32 {
    let whole = left.as_secs() + u64::from(0 < left.subsec_nanos());
    u32::try_from(whole + 1).unwrap_or(u32::MAX)
}

/// What cannot be kept by anybody, said before the kernel is asked.
pub(crate) fn check(unit: &str, places: &[Place]) -> Result<(), Error> {
    /// As much of a name as fits into the name of a table, with room to spare.
    const UNIT_MAX: usize = 128;
    let fault = |text: String| Err(Error::Asked(text));
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if unit.is_empty() || UNIT_MAX < unit.len() || !unit.chars().all(is_word) {
        return fault(format!(
            "`{unit}` cannot name addresses that move: use 1 to {UNIT_MAX} letters, digits, `-`, `_` and `.`"
        ));
    }
    if places.is_empty() || ADDRESSES_MAX < places.len() {
        return fault(format!("`{unit}` has to have 1 to {ADDRESSES_MAX} addresses"));
    }
    for (at, place) in places.iter().enumerate() {
        let Network { address, prefix } = place.network;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        if bits < prefix {
            return fault(format!("{address}/{prefix} has a prefix of more than {bits} bits"));
        }
        let cannot_move =
            address.is_unspecified() || address.is_multicast() || address.is_loopback();
        if cannot_move {
            return fault(format!("{address} cannot move between nodes: it names no one machine"));
        }
        if places[..at].iter().any(|before| before.network.address == address) {
            return fault(format!("{address} is there twice in `{unit}`: name it once"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(address: &str, prefix: u8) -> Place {
        let network = Network { address: address.parse().unwrap(), prefix };
        Place { network, interface: "eth0".to_owned() }
    }

    #[test]
    fn a_lifetime_outlasts_its_lease_by_one_to_two_seconds() {
        for (millis, seconds) in [(1, 2), (300, 2), (1000, 2), (1001, 3), (60_000, 61)] {
            assert_eq!(valid_seconds(Duration::from_millis(millis)), seconds, "{millis} ms");
        }
    }

    #[test]
    fn what_cannot_be_kept_is_refused_with_a_reason() {
        let four = place("10.0.0.9", 24);
        assert!(check("db", std::slice::from_ref(&four)).is_ok());
        for (unit, places, says) in [
            ("", vec![four.clone()], "letters"),
            ("a b", vec![four.clone()], "letters"),
            ("db", vec![], "1 to 64"),
            ("db", vec![four.clone(); 65], "1 to 64"),
            ("db", vec![place("10.0.0.9", 32), four], "twice"),
            ("db", vec![place("10.0.0.9", 33)], "32 bits"),
            ("db", vec![place("224.0.0.1", 24)], "cannot move"),
            ("db", vec![place("::1", 128)], "cannot move"),
        ] {
            let refused = check(unit, &places).unwrap_err().to_string();
            assert!(refused.contains(says), "{refused}");
        }
    }
}
