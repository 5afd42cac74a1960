//! Nodes that want a role: they ask for its lease, renew it or forget to, give orders under it, and stop in time.

use core::time::Duration;

use outlast_core::agreed::{
    ACTION_LIMIT, Agreed, ClientId, Command, Entry, Held, LeaseCommand, Moment, NodeCommand,
    NodeRole, Refusal, Reply, STOP_LIMIT,
};
use outlast_core::time::{Instant, Timestamp};

use crate::random::Random;
use crate::users::nobody;

const ROLE: &str = "role";

/// A guard of leases taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slip {
    /// The holder takes nothing off for clocks that run at different rates.
    HeldWithoutMargin,
    /// The holder counts from when the answer came.
    HeldFromAnswer,
    /// Who carries out orders obeys any epoch.
    AnyEpoch,
    /// A client repeats what has no answer as if it were new.
    RepeatsAsNew,
}

impl Slip {
    pub const ALL: [Slip; 4] =
        [Slip::HeldWithoutMargin, Slip::HeldFromAnswer, Slip::AnyEpoch, Slip::RepeatsAsNew];
}

#[derive(Debug)]
pub(crate) struct Holder {
    /// The node on which it runs.
    pub(crate) place: usize,
    ttl: Duration,
    slip: Option<Slip>,
    id: Option<ClientId>,
    sequence: u64,
    pending: Option<Entry>,
    /// When that was asked for first.
    sent: Moment,
    node: Option<u64>,
    held: Option<Held>,
    /// When what is held was asked for.
    renewed: Instant,
    forgets: bool,
}

pub(crate) fn moment(local: Instant) -> Moment {
    let milliseconds = i64::try_from(local.since_start().as_millis()).expect("small");
    Moment { now: local, wall: Timestamp(milliseconds) }
}

impl Holder {
    pub(crate) fn new(place: usize, ttl: Duration, slip: Option<Slip>) -> Holder {
        let sent = moment(Instant::default());
        Holder {
            place,
            ttl,
            slip,
            id: None,
            sequence: 0,
            pending: None,
            sent,
            node: None,
            held: None,
            renewed: Instant::default(),
            forgets: false,
        }
    }

    /// Its process has died.
    pub(crate) fn die(&mut self) {
        *self = Holder { node: self.node, ..Holder::new(self.place, self.ttl, self.slip) };
    }

    /// The epoch under which something may still go on that it has begun.
    pub(crate) fn acts(&self, local: Instant) -> Option<u64> {
        let held = self.held.as_ref()?;
        (local < held.ends() + ACTION_LIMIT + STOP_LIMIT).then_some(held.epoch())
    }

    /// The epoch of an order that it may give now.
    pub(crate) fn order(&mut self, local: Instant) -> Option<u64> {
        self.held.as_mut()?.check(moment(local)).ok()
    }

    /// What it asks for now, if anything, looking at what its own node has applied.
    pub(crate) fn wish(
        &mut self,
        local: Instant,
        agreed: &Agreed,
        random: &mut Random,
    ) -> Option<Entry> {
        if let Some(pending) = &self.pending {
            return Some(pending.clone());
        }
        let Some(id) = self.id else { return Some(nobody(Command::Introduce)) };
        let command = self.command(local, agreed, random)?;
        self.sequence += 1;
        let (sequence, wall) = (self.sequence, Timestamp(0));
        self.sent = moment(local);
        let entry = Entry { origin: id, sequence, wall, command };
        self.pending = Some(entry.clone());
        Some(entry)
    }

    fn command(&mut self, local: Instant, agreed: &Agreed, random: &mut Random) -> Option<Command> {
        let role = ROLE.to_owned();
        let Some(node) = self.node else {
            let (name, address) = (format!("node{}", self.place), "nowhere".to_owned());
            let role = NodeRole::Voter;
            return Some(Command::Node(NodeCommand::Join { name, role, address, replaces: None }));
        };
        if let Some(epoch) = self.order(local) {
            self.forgets |= random.chance(20_000);
            if !self.forgets && random.chance(5_000) {
                // It has stopped: what it has begun is done, since nothing is under way here.
                self.held = None;
                return Some(Command::Lease(LeaseCommand::Release { role, node, epoch }));
            }
            let due = self.ttl / 3 <= local.since(self.renewed);
            return (due && !self.forgets).then_some(Command::Lease(LeaseCommand::Renew {
                role,
                node,
                epoch,
            }));
        }
        // What has ended may still be running for a while.
        let free = agreed.leases().get(ROLE).is_none() && self.acts(local).is_none();
        let ttl = self.ttl;
        free.then_some(Command::Lease(LeaseCommand::Grant { role, node, ttl }))
    }

    pub(crate) fn told(&mut self, local: Instant, reply: Reply) -> Result<(), String> {
        if let Reply::Introduced { client } = reply {
            self.id = Some(ClientId(client));
            return Ok(());
        }
        let Some(entry) = self.pending.take() else { return Ok(()) };
        let sent = match self.slip {
            Some(Slip::HeldFromAnswer) => moment(local),
            Some(Slip::HeldWithoutMargin | Slip::AnyEpoch | Slip::RepeatsAsNew) | None => self.sent,
        };
        match reply {
            Reply::Joined { id } | Reply::Refused { why: Refusal::HasJoined { id } } => {
                self.node = Some(id);
            }
            Reply::Granted { epoch } => {
                let mut ttl = self.ttl;
                if self.slip == Some(Slip::HeldWithoutMargin) {
                    // What Held takes off for it, given back.
                    let margin = Held::granted(epoch, ttl, sent).ends().since(sent.now);
                    ttl += ttl - ACTION_LIMIT - STOP_LIMIT - margin;
                }
                self.held = Some(Held::granted(epoch, ttl, sent));
                (self.renewed, self.forgets) = (sent.now, false);
            }
            Reply::Done => {
                if let Some(held) = &mut self.held {
                    held.renewed(sent, moment(local));
                    self.renewed = sent.now;
                }
            }
            Reply::Refused {
                why:
                    Refusal::Held { .. }
                    | Refusal::NotHeld
                    | Refusal::OtherEpoch { .. }
                    | Refusal::OtherHolder { .. },
            } => {}
            Reply::Introduced { .. }
            | Reply::Proposed { .. }
            | Reply::Applied { .. }
            | Reply::Posted { .. }
            | Reply::Begun { .. }
            | Reply::Started { .. }
            | Reply::Written { .. }
            | Reply::Deleted { .. }
            | Reply::SessionOpened { .. }
            | Reply::Locked { .. }
            | Reply::Queued { .. }
            | Reply::Refused { .. } => {
                return Err(format!("a holder is told that {reply}: {entry:?}"));
            }
        }
        Ok(())
    }
}
