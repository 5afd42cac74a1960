//! What one member of a database does next, by what is agreed and what is seen here.
//!
//! [`order_of`] is the whole of it as a table: what this member is by what is agreed ([`Part`]), and what its PostgreSQL is
//! like ([`State`]), give one thing to do ([`Duty`]). A test walks through all of it: whatever the part, every state leads
//! to where the part wants to be.

mod table;

use alloc::borrow::ToOwned as _;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;
use core::time::Duration;

pub use table::{Duty, Part, State, order_of};

use super::{MemberSight, MemberState};
use crate::agreed::{Confirm, Database, Position, UpkeepKind};
#[cfg(test)]
use crate::sim::{Bug, instead};
use crate::time::Instant;

/// A primary that went down gets this long to serve again before another member takes over.
const RESTART_MAX: Duration = Duration::from_secs(10);

/// A primary that goes down this often within this time is given up.
const CRASHES_MAX: usize = 3;
const CRASHES_WITHIN: Duration = Duration::from_secs(60);

/// A primary that was given up starts again if nobody has taken over in this time.
const HAND_OVER_MAX: Duration = Duration::from_secs(10);

/// A rewind that comes to nothing is begun so often before everything is copied.
const REWINDS_MAX: u32 = 3;

/// A copy that people want is begun so often.
const REMAKES_MAX: u32 = 3;

/// One that starts as a standby, and nobody knows any more how far that has come, begins anew after this time.
const STARTS_WITHIN: Duration = Duration::from_secs(60);

/// A standby that receives nothing for this long is made like the primary again.
const RECEIVES_WITHIN: Duration = Duration::from_secs(10);

/// The same of one that follows a relay: it follows the primary then, and the relay not again for so long.
const RELAYED_WITHIN: Duration = Duration::from_secs(5);
const SHUNS_FOR: Duration = Duration::from_secs(60);

/// An order that had no effect is given again after this long.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

const DATA_GONE: &str = "its data is gone or cannot be used";

/// What is in the data directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Disk {
    #[default]
    Unknown,
    Empty,
    /// Left half-way by a rewind or a clone, or not ours.
    Broken,
    /// `standby`: it would start as a standby.
    Data {
        standby: bool,
    },
}

/// What PostgreSQL is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Server {
    #[default]
    Unknown,
    Down,
    Starting,
    Standby,
    Primary,
    /// It runs and does not answer.
    Hung,
}

/// What the driver sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Local {
    pub disk: Disk,
    pub server: Server,
    /// An order is being carried out; what takes long is said here.
    pub busy: Option<MemberState>,
    pub system: Option<u64>,
    pub reaches: Position,
    /// The election for which it has stopped receiving.
    pub stopped: Option<u64>,
    /// Whom it is told to receive from, and whether it does.
    pub upstream: Option<String>,
    pub receives: bool,
    /// How far it has replayed.
    pub replayed: u64,
    /// Its replay waits because it is told to: it may receive nothing until it has read what it has.
    pub holds: bool,
    /// The reign under which it was made primary; remembered on disk.
    pub promoted: Option<u64>,
    /// The reign of whose primary's log this one is a part; remembered on disk.
    pub lineage: Option<u64>,
    /// A write went through here a moment ago.
    pub writes: bool,
    pub rule: Option<Confirm>,
    /// Everything up to now would be acknowledged under the rule.
    pub confirmed: bool,
    /// The reign under which others have acknowledged a write.
    pub verified: Option<u64>,
    /// The switchover for which it accepts no writes.
    pub closed: Option<u64>,
    pub streams_to: BTreeSet<String>,
    pub lags: BTreeMap<String, Duration>,
    pub is_source: bool,
    pub slots: BTreeSet<String>,
    pub keeps_from: u64,
    /// Of one that is down: from where on the log is read when it starts.
    pub redo: Option<u64>,
    pub unfit: Option<String>,
    /// The turn of an upkeep that was carried out last; remembered on disk.
    pub turned: Option<u64>,
    /// The turn for which all was written down, so that its end will be short.
    pub flushed: Option<u64>,
    pub needs_restart: BTreeSet<String>,
    pub lowers: bool,
    /// People work on it: it is neither started nor rewound nor cloned.
    pub rests: bool,
    /// The disk does not answer.
    pub storage_stuck: bool,
    pub trouble: String,
    pub free_bytes: u64,
}

/// An order for the driver. Each can be given again. It is given under [`Database::epoch`], which the driver writes down
/// before it carries the order out; it carries out none under a lower one. It carries out one at a time and keeps none
/// waiting, except that a kill comes at once: what is being done may change what the next one was decided on.
///
/// Who is told to follow a node receives from that node's address until it is told otherwise, also through new connections:
/// from whatever server answers there, be it primary under a later reign by then, or itself a standby of somebody else. So
/// its lineage says less than it may have. What it gets that way lies behind the end of the reign that it names, on a later
/// timeline ([`Database::is_part`] and [`Database::can_rewind`] see it); where the number of the timeline is the same, its
/// lineage can only be cloned. So no such log is ever followed with, chosen or rewound, and it is looked at again under the
/// next reign even where the address stays the same.
///
/// From a relay it receives only while the relay's own lineage is the order's epoch: a replication slot sees to it that is
/// named after the epoch, and that the relay drops before its lineage changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    Create,
    StartPrimary {
        epoch: u64,
        rule: Confirm,
    },
    StartStandby {
        follow: Option<String>,
    },
    Promote {
        epoch: u64,
        rule: Confirm,
    },
    StopReceiving {
        election: u64,
    },
    Follow {
        node: String,
    },
    SetRule {
        rule: Confirm,
    },
    Close {
        begun: u64,
    },
    Open,
    /// Bring the new timeline to disk, so that others can be made like it.
    MakeSource,
    Verify {
        epoch: u64,
    },
    Rewind {
        from: String,
    },
    /// `turn`: of the upkeep for which it is done, if it is.
    Clone {
        from: String,
        turn: Option<u64>,
    },
    /// Write down what is dirty, so that a restart takes no longer than it must.
    Flush {
        turn: u64,
    },
    /// End cleanly, to be started again.
    Stop {
        turn: u64,
    },
    Kill {
        why: String,
    },
}

/// What a driver remembers on disk of the log: [`Local::lineage`] and [`Local::promoted`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descent {
    pub lineage: Option<u64>,
    pub promoted: Option<u64>,
}

impl Order {
    /// What this order, given under a reign, makes of it before it is carried out.
    pub fn begins(&self, descent: Descent, reign: u64) -> Descent {
        let lineage = Some(reign);
        match self {
            Order::StartPrimary { epoch, .. } | Order::Promote { epoch, .. } => {
                Descent { lineage, promoted: Some(*epoch) }
            }
            Order::Create | Order::Follow { .. } | Order::StartStandby { follow: Some(_) } => {
                Descent { lineage, ..descent }
            }
            // Of a copy that is not complete nothing is known. One that changes nothing gives back what was known before.
            Order::Rewind { .. } | Order::Clone { .. } => Descent { lineage: None, ..descent },
            Order::StartStandby { follow: None }
            | Order::StopReceiving { .. }
            | Order::SetRule { .. }
            | Order::Close { .. }
            | Order::Open
            | Order::MakeSource
            | Order::Verify { .. }
            | Order::Flush { .. }
            | Order::Stop { .. }
            | Order::Kill { .. } => descent,
        }
    }

    /// The same once it is done.
    pub fn ends(&self, descent: Descent, reign: u64) -> Descent {
        match self {
            Order::Rewind { .. } | Order::Clone { .. } => {
                Descent { lineage: Some(reign), promoted: None }
            }
            Order::Create
            | Order::StartPrimary { .. }
            | Order::StartStandby { .. }
            | Order::Promote { .. }
            | Order::StopReceiving { .. }
            | Order::Follow { .. }
            | Order::SetRule { .. }
            | Order::Close { .. }
            | Order::Open
            | Order::MakeSource
            | Order::Verify { .. }
            | Order::Flush { .. }
            | Order::Stop { .. }
            | Order::Kill { .. } => descent,
        }
    }
}

/// What a member remembers between two looks.
#[derive(Clone, Debug, Default)]
pub struct Member {
    me: String,
    /// The reign that the rest is about.
    epoch: u64,
    state: Option<(State, Instant)>,
    /// Since when it is primary and does not serve.
    down_since: Option<Instant>,
    starved_since: Option<Instant>,
    /// How far it had replayed then: one that still reads what it has does not starve.
    starved_at: u64,
    /// The relay from which nothing came, and since when it is not followed.
    shuns: Option<(String, Instant)>,
    crashes: VecDeque<Instant>,
    /// Since when it asks for another primary, and why.
    gives_up: Option<(Instant, String)>,
    /// Rewinds that were begun and have not helped yet.
    rewinds: u32,
    /// Clones that were begun for this turn of an upkeep.
    remade: (u64, u32),
    last: Option<(Order, Instant)>,
}

impl Member {
    pub fn new(me: String) -> Member {
        Member { me, ..Member::default() }
    }

    /// What this member is, by what is agreed. `leased`: this node holds the lease of the primary, and that lasts.
    pub fn part(&self, agreed: Option<&Database>, leased: bool) -> Part {
        let Some(agreed) = agreed else { return Part::Outsider };
        let reign = &agreed.reign;
        #[cfg(test)]
        let leased = instead(Bug::StartedUnleased, leased, true);
        match () {
            () if agreed.election.is_some() => Part::Elector,
            () if reign.primary == self.me && !leased => Part::Unleased,
            () if reign.primary == self.me && agreed.system.is_none() => Part::Maker,
            () if reign.primary == self.me => Part::Primary,
            () if reign.open || reign.recruits.contains(&self.me) => Part::Follower,
            () => Part::FollowerLater,
        }
    }

    /// Whom it has to follow: the relay that is agreed on, while that is known to have a part of the primary's log and to receive
    /// more of it; else the primary.
    fn upstream(
        &self,
        now: Instant,
        agreed: &Database,
        local: &Local,
        relay: Option<&MemberSight>,
    ) -> String {
        let (primary, epoch) = (&agreed.reign.primary, Some(agreed.reign.epoch));
        let upstream = agreed.upstream(&self.me);
        let shuns = self.shuns.as_ref();
        let shuns =
            shuns.is_some_and(|(node, since)| node == upstream && now.since(*since) < SHUNS_FOR);
        let receives =
            local.receives && local.lineage == epoch && local.upstream.as_deref() == Some(upstream);
        let known = relay.is_some_and(|relay| {
            relay.state == MemberState::Standby
                && relay.lineage == epoch
                && relay.follows.as_ref() == Some(primary)
        });
        #[cfg(test)]
        let known = instead(Bug::RelayUnknown, known, true);
        let upstream = if !shuns && (known || receives) { upstream } else { primary };
        upstream.to_owned()
    }

    fn state(
        &self,
        now: Instant,
        agreed: Option<&Database>,
        local: &Local,
        upstream: &str,
    ) -> State {
        let reign = agreed.map(|agreed| &agreed.reign);
        let ours = local.promoted.is_some() && local.promoted == reign.map(|reign| reign.epoch);
        match (local.server, local.disk) {
            _ if local.busy.is_some() => State::Busy,
            (Server::Unknown, _) | (Server::Down, Disk::Unknown) => State::Unknown,
            (Server::Hung, _) => State::Hung,
            (Server::Starting, Disk::Data { standby: false }) => State::Rising,
            (Server::Starting, _) => State::Starting,
            (Server::Primary, _) if ours => State::Reigns,
            (Server::Primary, _) => State::Usurps,
            (Server::Standby, _) => self.standby_state(now, agreed, local, upstream),
            (Server::Down, Disk::Empty) => State::Empty,
            (Server::Down, Disk::Broken) => State::Broken,
            (Server::Down, Disk::Data { standby: true }) => State::Asleep,
            (Server::Down, Disk::Data { standby: false }) if ours => State::Dead,
            (Server::Down, Disk::Data { standby: false }) => State::Deposed,
        }
    }

    fn standby_state(
        &self,
        now: Instant,
        agreed: Option<&Database>,
        local: &Local,
        upstream: &str,
    ) -> State {
        let Some(agreed) = agreed else { return State::Astray };
        let election = agreed.election.as_ref().map(|election| election.epoch);
        let starved = self.starved_since.is_some_and(|since| RECEIVES_WITHIN < now.since(since));
        if local.stopped.is_some() && local.stopped == election {
            State::Stopped
        } else if local.upstream.as_deref() != Some(upstream)
            || local.lineage != Some(agreed.reign.epoch)
        {
            // The same server under another reign can have another log.
            State::Astray
        } else if starved && !local.receives {
            State::Starves
        } else {
            State::Follows
        }
    }

    /// What to order next. `source`: what the primary's node says of it; `relay`: what that of the relay says that this member
    /// is to follow.
    pub fn decide(
        &mut self,
        now: Instant,
        agreed: Option<&Database>,
        leased: bool,
        local: &Local,
        source: Option<&MemberSight>,
        relay: Option<&MemberSight>,
    ) -> Option<Order> {
        self.remember(now, agreed, local, source);
        let part = self.part(agreed, leased);
        let upstream = agreed.map(|agreed| self.upstream(now, agreed, local, relay));
        let upstream = upstream.unwrap_or_default();
        let state = self.state(now, agreed, local, &upstream);
        if self.state.is_none_or(|(before, _)| before != state) {
            self.state = Some((state, now));
        }
        let order = self.order(now, agreed?, (part, state), local, source, upstream)?;
        // An order that is under way, or that had no effect, is not repeated at once.
        let again = self.last.as_ref().is_none_or(|(last, at)| {
            *last != order || at.since_start() + AGAIN_AFTER <= now.since_start()
        });
        again.then(|| {
            self.count(&order);
            self.last = Some((order.clone(), now));
            order
        })
    }

    fn count(&mut self, order: &Order) {
        if let Order::Clone { turn: Some(turn), .. } = order {
            let before = if self.remade.0 == *turn { self.remade.1 } else { 0 };
            self.remade = (*turn, before + 1);
        }
        self.rewinds += u32::from(matches!(order, Order::Rewind { .. }));
    }

    /// Notes what has been so for how long.
    fn remember(
        &mut self,
        now: Instant,
        agreed: Option<&Database>,
        local: &Local,
        source: Option<&MemberSight>,
    ) {
        let epoch = agreed.map_or(0, Database::epoch);
        if self.epoch != epoch {
            self.epoch = epoch;
            self.gives_up = None;
            self.down_since = None;
            self.starved_since = None;
            self.starved_at = 0;
            self.shuns = None;
            self.rewinds = 0;
            self.last = None;
        }
        // Where the primary does not serve there is nothing to receive.
        let serves = source.is_some_and(|sight| {
            sight.serves.is_some() && sight.serves == agreed.map(|agreed| agreed.reign.epoch)
        });
        let starves = local.server == Server::Standby
            && local.upstream.is_some()
            && !local.receives
            && !local.holds
            && serves;
        if self.starved_at < local.replayed {
            self.starved_at = local.replayed;
            self.starved_since = None;
        }
        self.starved_since = starves.then(|| self.starved_since.unwrap_or(now));
        let from = agreed.map(|agreed| &agreed.reign.primary);
        let relayed = local.upstream.as_ref().filter(|upstream| Some(*upstream) != from);
        if let (Some(relay), Some(since)) = (relayed, self.starved_since)
            && RELAYED_WITHIN < now.since(since)
        {
            self.shuns = Some((relay.clone(), now));
            self.starved_since = None;
        }
        if local.receives {
            self.rewinds = 0;
        }
        let mine = agreed.is_some_and(|agreed| {
            agreed.election.is_none() && agreed.reign.primary == self.me && agreed.reign.open
        });
        let serves = local.server == Server::Primary && local.writes;
        if !mine || serves {
            self.down_since = None;
            if serves {
                self.gives_up = None;
            }
            return;
        }
        if self.down_since.is_none() {
            self.down_since = Some(now);
            // One of which nothing is known yet may be well: an agent that has just begun knows nothing.
            let down = matches!(local.server, Server::Down | Server::Hung);
            if down && !self.restarts(agreed) {
                self.crashes.push_back(now);
            }
            self.crashes.retain(|crash| now.since(*crash) <= CRASHES_WITHIN);
        }
        if CRASHES_MAX <= self.crashes.len() {
            self.give_up(now, "PostgreSQL went down again and again");
        }
        if self.down_since.is_some_and(|since| RESTART_MAX < now.since(since)) {
            self.give_up(now, "PostgreSQL does not serve again");
        }
        if local.storage_stuck {
            self.give_up(now, "the disk does not answer");
        }
    }

    /// Whether people have asked for what ends it now.
    fn restarts(&self, agreed: Option<&Database>) -> bool {
        let turn = agreed.and_then(|agreed| agreed.turn_of(&self.me));
        turn.is_some_and(|(kind, _)| kind == UpkeepKind::Restart)
    }

    fn give_up(&mut self, now: Instant, why: &str) {
        self.gives_up.get_or_insert_with(|| (now, why.to_owned()));
    }

    fn order(
        &mut self,
        now: Instant,
        agreed: &Database,
        (part, state): (Part, State),
        local: &Local,
        source: Option<&MemberSight>,
        upstream: String,
    ) -> Option<Order> {
        let primary = || agreed.reign.primary.clone();
        let (epoch, rule) = (agreed.reign.epoch, agreed.rule());
        // What it said as primary of an earlier reign does not count.
        let source = source.filter(|sight| {
            sight.is_source
                && sight.serves == Some(agreed.reign.epoch)
                // What is written meanwhile has to be there when the copy is done.
                && sight.slots.contains(&self.me)
        });
        let is_source = source.is_some();
        let duty = match self.upkeep(agreed, part, state, local, is_source) {
            Some(order) => return Some(order),
            None => order_of(part, state),
        };
        // It may wait for log of a primary that is gone. Started anew it follows the present one, and is watched.
        let since = self.state.map_or(now, |(_, since)| since);
        let begins_anew = (part, state) == (Part::Follower, State::Starting)
            && is_source
            && !local.rests
            && STARTS_WITHIN < now.since(since);
        let duty = if begins_anew { Duty::Kill } else { duty };
        let keeps_off = local.rests
            && matches!(part, Part::Elector | Part::Follower | Part::FollowerLater)
            && match duty {
                Duty::Follow => !self.may_follow(agreed, local),
                Duty::StartAlone | Duty::StartFollowing | Duty::Rewind | Duty::Clone => true,
                Duty::Rest
                | Duty::Create
                | Duty::StartPrimary
                | Duty::Promote
                | Duty::Stop
                | Duty::Govern
                | Duty::Kill
                | Duty::Yield
                | Duty::GiveUp => false,
            };
        if keeps_off {
            return None;
        }
        if duty != Duty::GiveUp {
            self.gives_up.take_if(|(_, why)| why == DATA_GONE);
        }
        match duty {
            Duty::Rest => None,
            Duty::Create => Some(Order::Create),
            // It would accept writes which the next primary lacks.
            Duty::StartPrimary if agreed.is_closed() => None,
            Duty::StartPrimary => {
                // Whoever has asked for another primary waits until nobody has come.
                let waits = self.gives_up.as_ref();
                let waits = waits.is_some_and(|(since, _)| now.since(*since) < HAND_OVER_MAX);
                (!waits).then_some(Order::StartPrimary { epoch, rule })
            }
            Duty::StartAlone => Some(Order::StartStandby { follow: None }),
            Duty::StartFollowing => {
                // How far a log reaches is known once it is read.
                let follow = self.surely_part(agreed, local).then_some(upstream);
                Some(Order::StartStandby { follow })
            }
            Duty::Promote if local.reaches < agreed.reign.from && local.stopped.is_none() => {
                Some(Order::StopReceiving { election: self.epoch })
            }
            Duty::Promote if local.reaches < agreed.reign.from => {
                self.give_up(now, "its log is shorter than when it was appointed");
                None
            }
            Duty::Promote => Some(Order::Promote { epoch, rule }),
            Duty::Stop if part == Part::FollowerLater && local.stopped.is_some() => None,
            Duty::Stop => Some(Order::StopReceiving { election: self.epoch }),
            // How far a log reaches is known once nothing more arrives, and all that lies on the disk was read.
            Duty::Follow if local.stopped.is_none() && !self.surely_part(agreed, local) => {
                Some(Order::StopReceiving { election: self.epoch })
            }
            Duty::Follow if self.may_follow(agreed, local) => {
                Some(Order::Follow { node: upstream })
            }
            Duty::Follow => self.rejoin(agreed, local, source, state),
            Duty::Rewind if state != State::Starves && self.surely_part(agreed, local) => {
                // It was closed before it handed over: there is nothing that the new primary lacks.
                match self.rewinds {
                    0 => Some(Order::StartStandby { follow: Some(upstream) }),
                    _ => self.rejoin(agreed, local, source, state),
                }
            }
            Duty::Rewind => self.rejoin(agreed, local, source, state),
            Duty::Clone => is_source.then(|| Order::Clone { from: primary(), turn: None }),
            Duty::Govern => govern(agreed, local),
            Duty::Kill => Some(Order::Kill { why: why_kill(part, state).to_owned() }),
            Duty::Yield => {
                self.give_up(now, "PostgreSQL did not answer and was killed");
                Some(Order::Kill { why: why_kill(part, state).to_owned() })
            }
            Duty::GiveUp => {
                self.give_up(now, DATA_GONE);
                None
            }
        }
    }

    /// What people have asked for, once it is this member's turn.
    fn upkeep(
        &self,
        agreed: &Database,
        part: Part,
        state: State,
        local: &Local,
        is_source: bool,
    ) -> Option<Order> {
        let (kind, turn) =
            agreed.turn_of(&self.me).filter(|(_, turn)| local.turned != Some(*turn))?;
        let runs = part == Part::Follower && state == State::Follows
            || part == Part::Primary && state == State::Reigns && !agreed.is_closed();
        match kind {
            UpkeepKind::Restart if !runs => None,
            UpkeepKind::Restart if local.flushed != Some(turn) => Some(Order::Flush { turn }),
            UpkeepKind::Restart => Some(Order::Stop { turn }),
            UpkeepKind::Remake => {
                let free = part == Part::Follower && !agreed.counts(&self.me);
                let still = !matches!(state, State::Busy | State::Unknown);
                // The leader gives it up once nothing is copied for a while, and what it had is started again.
                let tried = self.remade.0 == turn && REMAKES_MAX <= self.remade.1;
                let from = agreed.reign.primary.clone();
                (free && still && is_source && !tried)
                    .then_some(Order::Clone { from, turn: Some(turn) })
            }
        }
    }

    /// Whether the primary has all that is here, however far that reaches.
    fn surely_part(&self, agreed: &Database, local: &Local) -> bool {
        let reign = &agreed.reign;
        let recruited = reign.recruits.contains(&self.me)
            && local.lineage.is_some_and(|lineage| lineage < reign.epoch);
        recruited || local.lineage == Some(reign.epoch)
    }

    fn may_follow(&self, agreed: &Database, local: &Local) -> bool {
        let may = self.surely_part(agreed, local) || agreed.is_part(local.lineage, local.reaches);
        #[cfg(test)]
        let may = instead(Bug::FollowsAhead, may, true);
        may
    }

    /// A rewind first; where that does not help or could be mistaken, everything anew.
    fn rejoin(
        &self,
        agreed: &Database,
        local: &Local,
        source: Option<&MemberSight>,
        state: State,
    ) -> Option<Order> {
        let source = source?;
        let from = agreed.reign.primary.clone();
        let needs = match local.server {
            Server::Standby => Some(local.reaches.lsn),
            Server::Unknown | Server::Down | Server::Starting | Server::Primary | Server::Hung => {
                local.redo
            }
        };
        let lacks = needs.is_some_and(|needs| needs < source.keeps_from);
        // What receives nothing has got all that a rewind brings. Elsewhere one that came to nothing may have met a server that
        // had too many clients: that is no reason to copy everything.
        let most = if state == State::Starves { 1 } else { REWINDS_MAX };
        let tried = most <= self.rewinds;
        if tried || lacks || !agreed.can_rewind(local.lineage, local.reaches) {
            return Some(Order::Clone { from, turn: None });
        }
        Some(Order::Rewind { from })
    }

    /// What the others are told.
    pub fn sight(
        &self,
        now: Instant,
        agreed: Option<&Database>,
        leased: bool,
        local: &Local,
    ) -> MemberSight {
        let state = match (local.busy, local.server, local.disk) {
            (Some(busy), _, _) => busy,
            (None, Server::Unknown, _) | (None, Server::Down, Disk::Unknown) => {
                MemberState::Unknown
            }
            (None, Server::Down, Disk::Empty) => MemberState::Empty,
            (None, Server::Down, Disk::Broken) => MemberState::Broken,
            (None, Server::Down, Disk::Data { .. }) => MemberState::Down,
            (None, Server::Starting, _) => MemberState::Starting,
            (None, Server::Standby, _) => MemberState::Standby,
            (None, Server::Primary, _) => MemberState::Primary,
            (None, Server::Hung, _) => MemberState::Hung,
        };
        let epoch = agreed.map(|agreed| agreed.reign.epoch);
        let reigns = matches!(self.part(agreed, leased), Part::Primary | Part::Maker)
            && local.server == Server::Primary
            && local.promoted == epoch;
        let since = self.state.map_or(Duration::ZERO, |(_, at)| now.since(at));
        MemberSight {
            state,
            system: local.system,
            reaches: local.reaches,
            lineage: local.lineage,
            // Of one that is down it is not known how far it reaches.
            stopped: local.stopped.filter(|_| state == MemberState::Standby),
            follows: local.upstream.clone().filter(|_| local.receives),
            // One that is about to end serves nobody any more, and is not missed for that.
            serves: epoch
                .filter(|_| reigns && local.writes && local.busy != Some(MemberState::Restarting)),
            rule: local.rule.as_ref().filter(|_| reigns).map(|rule| rule.since),
            confirmed: local.rule.clone().filter(|_| reigns && local.confirmed),
            verified: local.verified.filter(|_| reigns),
            closed: local.closed.filter(|_| reigns),
            streams_to: if reigns { local.streams_to.clone() } else { BTreeSet::new() },
            lags: if reigns { local.lags.clone() } else { BTreeMap::new() },
            is_source: reigns && local.is_source,
            slots: if reigns { local.slots.clone() } else { BTreeSet::new() },
            keeps_from: if reigns { local.keeps_from } else { 0 },
            unfit: local.unfit.clone(),
            gives_up: self.gives_up.as_ref().map(|(_, why)| why.clone()),
            turned: local.turned,
            needs_restart: local.needs_restart.clone(),
            lowers: local.lowers,
            trouble: local.trouble.clone(),
            since,
            free_bytes: local.free_bytes,
        }
    }
}

/// What a primary has to keep in order, one thing at a time.
fn govern(agreed: &Database, local: &Local) -> Option<Order> {
    let (epoch, rule) = (agreed.reign.epoch, agreed.rule());
    let close = agreed.switchover.as_ref().filter(|_| agreed.is_closed());
    let close = close.map(|switchover| switchover.begun.index);
    if local.rule.as_ref() != Some(&rule) {
        return Some(Order::SetRule { rule });
    }
    match close {
        Some(begun) if local.closed != Some(begun) => return Some(Order::Close { begun }),
        None if local.closed.is_some() => return Some(Order::Open),
        Some(_) | None => {}
    }
    if !local.is_source {
        return Some(Order::MakeSource);
    }
    let unverified = agreed.reign.open && local.verified != Some(epoch);
    unverified.then_some(Order::Verify { epoch })
}

fn why_kill(part: Part, state: State) -> &'static str {
    match (part, state) {
        (_, State::Hung) => "PostgreSQL does not answer",
        (_, State::Starting) => "its start does not come to an end",
        (Part::Unleased, _) => "this node's lease is over",
        (Part::Elector, _) => "the reign is over",
        (Part::Follower | Part::FollowerLater, _) => "another node is primary",
        (Part::Primary | Part::Maker | Part::Outsider, _) => "it is primary under another reign",
    }
}
