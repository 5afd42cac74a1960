//! Response rate limiting, as NSD and BIND have it: a forged source must not turn the server against its owner.
//!
//! Answers are counted by network and kind. Above the rate they are dropped, but for every so-many-th, which is sent cut, so
//! that a client that is really there asks again over TCP.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::cookie::siphash;

/// Networks and kinds that are counted at a time. Of two that share a place, the later one begins anew.
const PLACES: usize = 1 << 16;

/// Bits of an address that are one network.
const PREFIX_V4: u32 = 24;
const PREFIX_V6: u32 = 56;

/// How many answers of a kind a network gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Answers of one kind to one network in a second.
    pub per_second: NonZeroU32,
    /// Every which answer above that is sent cut instead of dropped; 1 for all, 0 for none.
    pub slip: u32,
}

impl Default for RateLimit {
    fn default() -> RateLimit {
        RateLimit { per_second: NonZeroU32::new(200).expect("not 0"), slip: 2 }
    }
}

/// What is counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Answer,
    NoData,
    NxDomain,
    Referral,
    Error,
}

/// Whether an answer may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ruling {
    Send,
    /// Only cut.
    Slip,
    Drop,
}

/// The counts.
#[derive(Debug)]
pub(crate) struct Limiter {
    limit: RateLimit,
    secret: [u8; 16],
    places: Box<[Place]>,
}

#[derive(Debug, Default)]
struct Place {
    /// Which network and kind, and in which second: the upper half of its hash, and the second.
    whose: AtomicU64,
    count: AtomicU32,
}

impl Limiter {
    pub(crate) fn new(limit: RateLimit, secret: [u8; 16]) -> Limiter {
        Limiter { limit, secret, places: (0..PLACES).map(|_| Place::default()).collect() }
    }

    /// Counts an answer, at `now` in seconds.
    pub(crate) fn count(&self, address: IpAddr, kind: Kind, now: u32) -> Ruling {
        let hash = siphash(self.secret, &key(address, kind));
        let place = usize::try_from(hash % PLACES as u64).unwrap_or_default();
        let Some(place) = self.places.get(place) else { return Ruling::Send };
        let whose = hash & 0xffff_ffff_0000_0000 | u64::from(now);
        // Two threads may both begin a second; a few answers more or less do no harm.
        if place.whose.load(Relaxed) != whose {
            place.whose.store(whose, Relaxed);
            place.count.store(0, Relaxed);
        }
        let before = place.count.fetch_add(1, Relaxed);
        let Some(above) = before.checked_sub(self.limit.per_second.get()) else {
            return Ruling::Send;
        };
        match self.limit.slip {
            0 => Ruling::Drop,
            slip if above % slip == slip - 1 => Ruling::Slip,
            _ => Ruling::Drop,
        }
    }
}

/// The bytes of a network and a kind.
fn key(address: IpAddr, kind: Kind) -> [u8; 10] {
    let mut key = [0; 10];
    let network = match address {
        IpAddr::V4(v4) => u64::from(v4.to_bits() >> (32 - PREFIX_V4)),
        IpAddr::V6(v6) => u64::try_from(v6.to_bits() >> (128 - PREFIX_V6)).unwrap_or_default(),
    };
    key[..8].copy_from_slice(&network.to_be_bytes());
    key[8] = if address.is_ipv4() { 4 } else { 6 };
    key[9] = kind as u8;
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_second_answer_above_the_rate_is_cut_and_the_others_dropped() {
        let limit = RateLimit { per_second: NonZeroU32::new(3).unwrap(), slip: 2 };
        let limiter = Limiter::new(limit, [7; 16]);
        let ask = |text: &str, kind, now| limiter.count(text.parse().unwrap(), kind, now);
        let rulings: Vec<_> =
            (0..7).map(|n| ask(&format!("192.0.2.{n}"), Kind::Answer, 1)).collect();
        use Ruling::{Drop, Send, Slip};
        assert_eq!(rulings, [Send, Send, Send, Drop, Slip, Drop, Slip]);
        assert_eq!(ask("192.0.2.1", Kind::NxDomain, 1), Send);
        assert_eq!(ask("192.0.3.1", Kind::Answer, 1), Send);
        assert_eq!(ask("192.0.2.1", Kind::Answer, 2), Send);
        let rulings: Vec<_> =
            (0..4).map(|n| ask(&format!("2001:db8:0:{n}::1"), Kind::Error, 1)).collect();
        assert_eq!(rulings, [Send, Send, Send, Drop]);
    }
}
