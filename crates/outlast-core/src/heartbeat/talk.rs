//! What two nodes send each other, and what a datagram proves.
//!
//! Each datagram is sealed with a key that only the nodes of the cluster have; that is the work of whoever has a socket.
//! Here is what a seal does not prove: that it was said now. Each run of an agent has a life, a number that nobody can
//! foresee, and counts what it sends. A datagram of the life that is known counts if its number is higher than all before
//! it; that of another life only if it repeats a number that this node has sent a moment ago, so that what is replayed from
//! an earlier life is worth nothing.

use alloc::borrow::ToOwned as _;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use super::Said;
use crate::agreed::form::{coded_enum, coded_struct};
#[cfg(test)]
use crate::sim::{Bug, instead};
use crate::time::Instant;

/// The longest datagram: one packet of an Ethernet, with room for tunnels.
pub const DATAGRAM_MAX: usize = 1400;

/// Bytes of the seal at the end: HMAC-SHA256.
pub const TAG_BYTES: usize = 32;

/// Units that one datagram tells of.
pub const UNITS_MAX: usize = 64;

/// Of so many of the last datagrams it is known when they were sent.
const SENT_MAX: usize = 64;

/// What a datagram is sent for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Beat,
    /// Are you there?
    Question,
    Answer,
}

coded_enum!(Kind, "a kind of datagram that is not known here", {
    1 = Beat {}, 2 = Question {}, 3 = Answer {},
});

/// A number of the other node that has arrived here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Echo {
    life: u64,
    number: u64,
}

coded_struct!(Echo { life, number });

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    pub kind: Kind,
    pub from: String,
    life: u64,
    pub number: u64,
    /// The last of the life that is known, and the last of one that has still to prove itself.
    echo: Option<Echo>,
    asked: Option<Echo>,
    /// Which units the node has, with which addresses: see [`crate::address::digest`].
    plans: u64,
    /// In the order of their names.
    units: Vec<Said>,
}

coded_struct!(Datagram version 1 { kind, from, life, number, echo, asked, plans, units });

/// What is sealed, and the seal. `None`: it cannot be one of ours.
pub fn open(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    if bytes.len() > DATAGRAM_MAX {
        return None;
    }
    bytes.split_at_checked(bytes.len().checked_sub(TAG_BYTES)?)
}

/// What a datagram says that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// It has had something of this node not long ago.
    pub hears_us: bool,
    /// The highest number of this node that it has had.
    pub echoed: u64,
    /// Of each unit; `None`: the other node has other ones.
    pub units: Option<Vec<Said>>,
    /// An answer is wanted.
    pub asks: bool,
}

/// Why a datagram does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It is not of the other node of the pair.
    Stranger,
    /// Something that was sent later has arrived before, or it is sent again.
    Old,
    /// It is of another run of its agent, and does not prove that it is of now. It can once it has an answer, which is to be
    /// sent at once.
    Unproven,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Unfit::Stranger => "it is not from the other node of the pair",
            Unfit::Old => "it was sent before what has already come",
            Unfit::Unproven => "it does not prove that it was sent now",
        })
    }
}

/// What was said and heard between this node and the other one.
#[derive(Clone, Debug)]
pub struct Talk {
    own: String,
    other: String,
    /// What this node sent longer ago proves nothing.
    fresh: Duration,
    life: u64,
    number: u64,
    sent: VecDeque<(u64, Instant)>,
    known: Option<Echo>,
    /// The highest number of this node that the other one has repeated.
    echoed: u64,
    candidate: Option<Echo>,
}

impl Talk {
    /// `life`: random. `fresh`: for how long a number of this node proves that it was repeated just now.
    pub fn new(own: &str, other: &str, life: u64, fresh: Duration) -> Talk {
        let (known, candidate) = (None, None);
        let (own, other) = (own.to_owned(), other.to_owned());
        Talk {
            own,
            other,
            fresh,
            life,
            number: 0,
            sent: VecDeque::new(),
            known,
            echoed: 0,
            candidate,
        }
    }

    pub fn say(&mut self, now: Instant, kind: Kind, plans: u64, units: Vec<Said>) -> Datagram {
        self.number += 1;
        if self.sent.len() == SENT_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back((self.number, now));
        let mut units = units;
        units.truncate(UNITS_MAX);
        Datagram {
            kind,
            from: self.own.clone(),
            life: self.life,
            number: self.number,
            echo: self.known,
            asked: self.candidate,
            plans,
            units,
        }
    }

    /// What a datagram with a good seal says. `plans`: what this node takes the units to be.
    pub fn hear(&mut self, now: Instant, datagram: &Datagram, plans: u64) -> Result<News, Unfit> {
        let Datagram { kind, from, life, number, .. } = datagram;
        if *from != self.other || *life == self.life {
            return Err(Unfit::Stranger);
        }
        let echoes = [datagram.echo, datagram.asked].into_iter().flatten();
        let echo = echoes.filter(|echo| echo.life == self.life).map(|echo| echo.number).max();
        let fresh = echo.is_some_and(|number| self.is_fresh(now, number));
        match self.known {
            Some(known) if known.life == *life => {
                let newer = known.number < *number;
                #[cfg(test)]
                let newer = instead(Bug::ReplayCounts, newer, true);
                if !newer {
                    return Err(Unfit::Old);
                }
            }
            Some(_) | None => {
                let proven = fresh && echo.is_some_and(|number| self.echoed < number);
                #[cfg(test)]
                let proven = instead(Bug::ReplayCounts, proven, true);
                if !proven {
                    self.candidate = Some(Echo { life: *life, number: *number });
                    return Err(Unfit::Unproven);
                }
                self.candidate = None;
            }
        }
        self.known = Some(Echo { life: *life, number: *number });
        self.echoed = self.echoed.max(echo.unwrap_or_default());
        let units = (datagram.plans == plans).then(|| datagram.units.clone());
        Ok(News { hears_us: fresh, echoed: self.echoed, units, asks: *kind == Kind::Question })
    }

    fn is_fresh(&self, now: Instant, number: u64) -> bool {
        let sent = self.sent.iter().find(|(sent, _)| *sent == number);
        sent.is_some_and(|&(_, at)| now.since(at) <= self.fresh)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Code as _;
    use crate::heartbeat::{Basis, Claim, TIMEOUT};
    use alloc::vec;

    const MS: Duration = Duration::from_millis(1);

    fn at(ms: u32) -> Instant {
        Instant::from_start(MS * ms)
    }

    fn pair() -> (Talk, Talk) {
        (Talk::new("a", "b", 11, TIMEOUT), Talk::new("b", "a", 22, TIMEOUT))
    }

    /// One says something, and the other hears it at the same moment.
    fn tell(now: Instant, from: &mut Talk, to: &mut Talk) -> Result<News, Unfit> {
        let datagram = from.say(now, Kind::Beat, 7, Vec::new());
        to.hear(now, &datagram, 7)
    }

    #[test]
    fn two_nodes_know_each_other_after_one_datagram_each_way() {
        let (mut a, mut b) = pair();
        assert_eq!(tell(at(1), &mut a, &mut b), Err(Unfit::Unproven));
        let news = tell(at(2), &mut b, &mut a).unwrap();
        assert!(news.hears_us);
        assert!(tell(at(3), &mut a, &mut b).unwrap().hears_us);
    }

    #[test]
    fn what_is_sent_again_does_not_count_nor_what_an_earlier_life_has_sent() {
        let (mut a, mut b) = pair();
        tell(at(1), &mut a, &mut b).ok();
        tell(at(2), &mut b, &mut a).unwrap();
        let early = a.say(at(3), Kind::Beat, 7, Vec::new());
        b.hear(at(3), &early, 7).unwrap();
        assert_eq!(b.hear(at(4), &early, 7), Err(Unfit::Old));
        let held_back = a.say(at(5), Kind::Beat, 7, Vec::new());
        // The agent at a begins anew.
        let mut again = Talk::new("a", "b", 33, TIMEOUT);
        assert_eq!(tell(at(10), &mut again, &mut b), Err(Unfit::Unproven));
        tell(at(11), &mut b, &mut again).unwrap();
        tell(at(12), &mut again, &mut b).unwrap();
        for datagram in [&early, &held_back] {
            assert_eq!(b.hear(at(13), datagram, 7), Err(Unfit::Unproven));
        }
        assert!(tell(at(14), &mut again, &mut b).unwrap().hears_us);
    }

    #[test]
    fn who_repeats_only_what_was_said_long_ago_does_not_hear_us() {
        let (mut a, mut b) = pair();
        tell(at(1), &mut a, &mut b).ok();
        tell(at(2), &mut b, &mut a).unwrap();
        tell(at(3), &mut a, &mut b).unwrap();
        assert!(!tell(at(900), &mut b, &mut a).unwrap().hears_us);
    }

    #[test]
    fn what_comes_from_this_node_itself_or_from_another_one_is_strange() {
        let (mut a, mut b) = pair();
        let own = a.say(at(1), Kind::Question, 7, Vec::new());
        assert_eq!(a.hear(at(1), &own, 7), Err(Unfit::Stranger));
        let mut c = Talk::new("c", "a", 44, TIMEOUT);
        let other = c.say(at(1), Kind::Beat, 7, Vec::new());
        assert_eq!(b.hear(at(1), &other, 7), Err(Unfit::Stranger));
    }

    #[test]
    fn a_datagram_survives_its_way_and_no_beginning_of_one_is_one() {
        let (mut a, mut b) = pair();
        tell(at(1), &mut b, &mut a).ok();
        let claim = Claim { epoch: 900, basis: Basis::WentOn, holds: true };
        let units = vec![Said { able: true, claim: Some(claim) }, Said::default()];
        let datagram = a.say(at(2), Kind::Question, 7, units);
        let bytes = datagram.to_bytes();
        assert_eq!(Datagram::from_bytes(&bytes), Ok(datagram));
        for end in 0..bytes.len() {
            assert!(Datagram::from_bytes(&bytes[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn as_many_units_as_one_may_have_fit_into_a_datagram() {
        let long = "n".repeat(255);
        let mut talk = Talk::new(&long, "b", u64::MAX, TIMEOUT);
        talk.known = Some(Echo { life: u64::MAX, number: u64::MAX });
        talk.candidate = talk.known;
        talk.number = u64::MAX - 1;
        let claim = Claim { epoch: u64::MAX, basis: Basis::WentOn, holds: true };
        let units = vec![Said { able: true, claim: Some(claim) }; UNITS_MAX + 1];
        let bytes = talk.say(at(1), Kind::Beat, u64::MAX, units).to_bytes();
        assert!(bytes.len() + TAG_BYTES <= DATAGRAM_MAX, "{}", bytes.len());
        assert_eq!(open(&vec![0; DATAGRAM_MAX + 1]), None);
        assert_eq!(open(&[0; TAG_BYTES - 1]), None);
    }
}
