//! What these hands do when nobody can grant anything: see [`outlast_core::heartbeat`].

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use outlast_consensus::boottime;
use outlast_core::address::Order;
use outlast_core::event::AddressChange;
use outlast_core::heartbeat::takeover::{Outcome, Takeover};
use outlast_core::heartbeat::{Act, Basis, Lone, News, Peer, Said, Scene, UNHEARD};
use outlast_core::time::Instant;
use outlast_core::units::show_duration;

use super::Hands;

/// A unit of a pair, and the name of the other node.
pub(super) struct Alone {
    pub(super) lone: Lone,
    peer: String,
}

/// What is to be sent.
#[derive(Debug, Default)]
pub(in crate::addresses) struct Sends {
    /// The other node is to be asked, at these addresses too.
    pub(in crate::addresses) asks: Option<Vec<IpAddr>>,
    /// The leader should know at once.
    pub(in crate::addresses) changed: bool,
}

impl Hands {
    /// Its two nodes do without agreement if they have to; `peer` is the other one.
    pub(in crate::addresses) fn pair_with(&mut self, node: &str, peer: &str) {
        let Some(pace) = self.plan.pair else { return };
        if self.alone.as_ref().is_some_and(|alone| alone.peer == peer) {
            return;
        }
        let lone = Lone::new(boottime(), pace, self.plan.is_first(node));
        self.alone = Some(Alone { lone, peer: peer.to_owned() });
    }

    pub(in crate::addresses) fn hear_peer(&mut self, said: Option<Said>, news: &News) {
        if let Some(alone) = &mut self.alone {
            alone.lone.hear(boottime(), said, news);
        }
    }

    /// What the other node has to know.
    pub(in crate::addresses) fn said_to_peer(&self) -> Said {
        let able = !self.leaving && self.unable().is_none() && self.remains.is_none();
        self.alone.as_ref().map(|alone| alone.lone.said(&self.hold, able)).unwrap_or_default()
    }

    pub(in crate::addresses) fn said_under(&mut self, number: u64) {
        if let Some(alone) = &mut self.alone {
            alone.lone.sent(number);
        }
    }

    /// Whoever leads has answered a question that was asked then.
    pub(in crate::addresses) fn leader_answered(&mut self, asked: Instant) {
        if let Some(alone) = &mut self.alone {
            alone.lone.answered(asked);
        }
    }

    pub(super) fn deadline_alone(&self) -> Option<Instant> {
        let alone = self.alone.as_ref()?;
        Some(alone.lone.deadline(boottime(), &self.hold))
    }

    /// Does what has to be done without anybody's leave. `epoch`: the last one of this unit that is known to be agreed on.
    /// `stay`: nothing is taken over.
    pub(in crate::addresses) fn step_alone(&mut self, epoch: u64, stay: bool) -> Sends {
        let mut sends = Sends::default();
        let able = !self.leaving && self.unable().is_none() && self.remains.is_none();
        let Some(alone) = &mut self.alone else { return sends };
        let scene = Scene { able, paused: stay, epoch };
        let now = boottime();
        let acts = alone.lone.step(now, &mut self.hold, &scene);
        let peer = alone.peer.clone();
        for act in acts {
            match act {
                Act::Ask { .. } => {
                    let places = self.plan.places.iter().map(|(network, _)| network.address);
                    let held = self.hold.epoch().is_some();
                    // Whoever answers there lives, whatever has become of its own address.
                    sends.asks = Some(places.filter(|_| !held).collect());
                }
                Act::GoOn(order) => self.obey(Some(order), AddressChange::LetGo, ""),
                Act::TakeOver { until, gone, verified } => {
                    self.take_over(until, gone, verified, &peer);
                    sends.changed = true;
                }
                Act::CannotServe { verified } => self.cannot_serve(verified, &peer),
                Act::Yield => {
                    let why = format!("{peer} holds it too, and it stays there");
                    self.obey(Some(Order::Drop), AddressChange::Yielded, &why);
                    sends.changed = true;
                }
                Act::Announce => {
                    self.announce_now();
                    if let Some(timetable) = &mut self.announce {
                        timetable.again(now);
                    }
                }
                // Whatever has changed is said anyway.
                Act::Say => {}
            }
        }
        self.note_going_on();
        sends
    }

    /// Writes down that this node holds it without agreement. An election is no news.
    fn note_going_on(&mut self) {
        let Some(Alone { lone, peer }) = &self.alone else { return };
        let alone = lone.is_alone() && lone.peer(boottime()) == Peer::Down;
        if !alone || self.went_on {
            return;
        }
        let text = format!(
            "this node goes on holding {}: {peer} was not heard and did not answer, and nobody leads",
            self.ips()
        );
        self.went_on = true;
        self.note(AddressChange::WentOn, text);
    }

    /// Steps three to five; the first two are done.
    fn take_over(&mut self, until: Instant, gone: bool, verified: Duration, peer: &str) {
        let mut takeover = Takeover::default();
        takeover.record(verified, Outcome::Done);
        takeover.record(Duration::ZERO, Outcome::Done);
        self.went_on = true;
        let began = boottime();
        self.obey(Some(Order::Take { until }), AddressChange::LetGo, "");
        let taken = boottime();
        if self.hold.epoch().is_none() {
            let why = self.refused.clone().unwrap_or_else(|| "this node was late".to_owned());
            takeover.record(taken.since(began), Outcome::Failed(why));
            self.note(
                AddressChange::TakeoverFailed,
                format!("this node could not take over from {peer}: {takeover}"),
            );
            return;
        }
        takeover.record(taken.since(began), Outcome::Done);
        self.announce_now();
        takeover.record(boottime().since(taken), Outcome::Done);
        // Everything that tells of it begins with the journal.
        takeover.record(Duration::ZERO, Outcome::Done);
        let why = if gone {
            format!("{peer} was not heard and did not answer; if it lives, it may hold it too")
        } else {
            format!("{peer} is there and does not hold it, and nobody leads")
        };
        self.note(
            AddressChange::TookOver,
            format!("this node took over {}: {why}: {takeover}", self.ips()),
        );
    }

    fn cannot_serve(&self, verified: Duration, peer: &str) {
        let mut takeover = Takeover::default();
        takeover.record(verified, Outcome::Done);
        let why = self.unable().unwrap_or_else(|| "it has to wait".to_owned());
        takeover.record(Duration::ZERO, Outcome::Failed(why));
        self.note(
            AddressChange::TakeoverFailed,
            format!("{peer} is gone and this node does not take over: {takeover}"),
        );
    }

    /// Where the other node may be heard although its own address is not, while it is not heard.
    pub(in crate::addresses) fn interfaces_to_search(&self) -> BTreeSet<String> {
        let searches = |alone: &Alone| alone.lone.peer(boottime()) != Peer::Up;
        let places = self.plan.places.iter().filter(|_| self.alone.as_ref().is_some_and(searches));
        places.map(|(_, interface)| interface.clone()).collect()
    }

    /// How the pair is, for people, where that is not as it should be.
    pub(super) fn seen_alone(&self) -> Option<String> {
        let Alone { lone, peer } = self.alone.as_ref()?;
        let now = boottime();
        let theirs = lone.theirs(now).is_some_and(|said| said.holds());
        let state = lone.peer(now);
        let basis = lone.basis().filter(|_| self.hold.epoch().is_some());
        if state == Peer::Down && lone.agrees_unheard(now) {
            return Some(format!(
                "both nodes agree, but no heartbeat of {peer} arrives: let UDP pass to the port of [cluster]; without it a dead node is noticed late"
            ));
        }
        let done = match basis {
            Some(Basis::TookOver) => "it was taken over here",
            Some(Basis::WentOn) => "it stays here",
            Some(Basis::Granted) => return None,
            None => {
                return match state {
                    Peer::Unknown => Some(format!(
                        "{peer} has not been heard since this node started; after {} without a word this node takes over if nobody leads",
                        show_duration(UNHEARD)
                    )),
                    Peer::Down => Some(format!("{peer} is not heard")),
                    Peer::Up | Peer::Suspect => None,
                };
            }
        };
        Some(match (state, theirs) {
            (Peer::Up | Peer::Suspect, true) => {
                format!("{done} without agreement, and {peer} holds it too: one of both lets go")
            }
            (Peer::Up, false) => {
                format!("{done} without agreement; {peer} is heard and does not hold it")
            }
            (Peer::Unknown | Peer::Suspect | Peer::Down, _) => format!(
                "{done} without agreement, since {peer} is not heard: if it lives and is only cut off, both hold it (`split_brain = \"accept\"`)"
            ),
        })
    }
}
