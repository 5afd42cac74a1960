//! One unit in the hands of this node.

mod alone;

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use outlast_consensus::boottime;
use outlast_core::address::{GRANT, GUARD_ERROR, Grant, Hold, Order, Plan, Said, unit_of};
use outlast_core::event::{AddressChange, Fact};
use outlast_core::time::Instant;
use outlast_vip::{Event, Guard, Guardian, Place, Rivals, Timetable};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use super::{GUARDIAN, Home, Seen, track};
use crate::rights::FOR_ADDRESSES;
use alone::Alone;

/// After something that this node's kernel refused.
pub(super) const AGAIN: Duration = Duration::from_secs(2);

/// How often the address is announced while a member does not ask, or has only just come back.
const TELL_EVERY: Duration = Duration::from_millis(80);

/// A unit, and which hands of it: what was said to others before them is not theirs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Which {
    pub(super) unit: String,
    number: u64,
}

impl Which {
    pub(super) fn next(unit: &str) -> Which {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        Which { unit: unit.to_owned(), number: NUMBERS.fetch_add(1, Ordering::Relaxed) }
    }
}

/// What the tasks beside a unit have heard or seen.
#[derive(Debug)]
pub(super) enum Heard {
    Of {
        unit: Which,
        event: Event,
    },
    /// Nothing can be heard any more.
    Deaf {
        unit: Which,
        why: String,
    },
    /// Something that is tracked has changed, by its place in the list.
    Tracked {
        unit: Which,
        index: usize,
        down: Option<String>,
    },
}

impl Heard {
    pub(super) fn unit(&self) -> &Which {
        match self {
            Heard::Of { unit, .. } | Heard::Deaf { unit, .. } | Heard::Tracked { unit, .. } => unit,
        }
    }
}

/// What holds an address here, and what sees to its end.
struct Grip {
    guard: Guard,
    guardian: Guardian,
}

pub(super) struct Hands {
    name: String,
    which: Which,
    plan: Plan,
    priority: i32,
    hold: Hold,
    /// Under which epoch, and until when, the kernel was last told to answer.
    told: Option<(u64, Instant)>,
    /// What may last although nothing is held any more: it could not be ended, or an earlier run has left it.
    remains: Option<(u64, Instant)>,
    facts: mpsc::Sender<Fact>,
    /// What the agent may not do, whatever the kernel has for it.
    lacks: Option<String>,
    tell: mpsc::Sender<Heard>,
    /// `None`: the kernel refused, and it is tried again.
    grip: Option<Grip>,
    refused: Option<String>,
    try_at: Instant,
    announce: Option<Timetable>,
    /// When it was announced last, but for the moment of taking it.
    told_at: Instant,
    /// Interfaces that are down.
    down: Vec<String>,
    /// Why each thing that is tracked is down, if it is.
    tracked: Vec<Option<String>>,
    /// As last said in the journal.
    was_able: bool,
    leaving: bool,
    /// Its two nodes do without agreement if they have to.
    alone: Option<Alone>,
    /// That this node holds it without agreement is in the journal.
    went_on: bool,
    /// They listen and look for this unit, and end with it.
    beside: JoinSet<()>,
    /// The one of them that listens for others who claim an address.
    ears: Option<AbortHandle>,
}

impl Hands {
    pub(super) fn new(home: &Home, name: String, plan: Plan, tell: mpsc::Sender<Heard>) -> Hands {
        let which = Which::next(&name);
        let lacks = lacks_rights(home, &name);
        let own = plan.unit.members.iter().find(|member| member.node == home.node);
        let priority = own.map_or(0, |member| member.priority);
        let tracked = plan.track.iter().map(|_| None).collect();
        let mut beside = JoinSet::new();
        for (index, track) in plan.track.iter().enumerate() {
            let (unit, tell) = (which.clone(), tell.clone());
            beside.spawn(track::watch(home.clone(), unit, index, track.what.clone(), tell));
        }
        let mut hands = Hands {
            name,
            which,
            plan,
            priority,
            hold: Hold::default(),
            told: None,
            remains: None,
            facts: home.facts.clone(),
            lacks,
            tell,
            grip: None,
            refused: None,
            try_at: boottime(),
            announce: None,
            told_at: boottime(),
            down: Vec::new(),
            tracked,
            was_able: true,
            leaving: false,
            alone: None,
            went_on: false,
            beside,
            ears: None,
        };
        hands.grip();
        if hands.grip.is_none() {
            hands.remains = Some((0, boottime() + GRANT));
        }
        hands
    }

    /// Whether these hands can go on with this plan.
    pub(super) fn fits(&self, plan: &Plan) -> bool {
        self.plan == *plan
    }

    fn places(&self) -> Vec<Place> {
        let places = self.plan.places.iter();
        places
            .map(|(network, interface)| Place { network: *network, interface: interface.clone() })
            .collect()
    }

    /// Puts up what the kernel needs to know.
    fn grip(&mut self) {
        match self.get_grip() {
            Ok(grip) => (self.grip, self.refused) = (Some(grip), None),
            Err(why) => {
                self.refused = Some(why);
                self.try_at = boottime() + AGAIN;
            }
        }
    }

    fn get_grip(&mut self) -> Result<Grip, String> {
        if let Some(why) = &self.lacks {
            return Err(why.clone());
        }
        let places = self.places();
        let said = |error: outlast_vip::Error| error.to_string();
        let guard = Guard::open(&self.name, &places).map_err(said)?;
        let guardian = Guardian::spawn(guardian_command(), &self.name, &places).map_err(said)?;
        let rivals = Rivals::open(&self.name, &places).map_err(said)?;
        let ears = self.beside.spawn(listen(self.which.clone(), rivals, self.tell.clone()));
        if let Some(before) = self.ears.replace(ears) {
            before.abort();
        }
        Ok(Grip { guard, guardian })
    }

    /// Why this node cannot hold the unit.
    fn unable(&self) -> Option<String> {
        if let Some(why) = &self.refused {
            return Some(why.clone());
        }
        if let Some(interface) = self.down.first() {
            return Some(format!("interface {interface} is down"));
        }
        let mut tracked = self.plan.track.iter().zip(&self.tracked);
        tracked.find_map(|(track, down)| down.clone().filter(|_| track.weight.is_none()))
    }

    /// Less what is down, more what is up.
    fn effective(&self) -> i32 {
        let tracked = self.plan.track.iter().zip(&self.tracked);
        let sum: i32 = tracked
            .filter_map(|(track, down)| {
                let weight = i32::from(track.weight?.get());
                (weight < 0 && down.is_some() || weight > 0 && down.is_none()).then_some(weight)
            })
            .sum();
        self.priority + sum
    }

    pub(super) fn said(&mut self, number: u64) -> Said {
        let able = !self.leaving && self.unable().is_none();
        let priority = self.effective();
        if let Some((epoch, until)) = self.remains {
            if boottime() < until + GUARD_ERROR {
                return Said { able: false, priority, holds: Some(epoch), alone: false };
            }
            self.remains = None;
        }
        let alone = self.alone.as_ref().is_some_and(|alone| alone.lone.took_over());
        Said { alone, ..self.hold.said(number, able, priority) }
    }

    pub(super) fn seen(&self) -> Seen {
        let amiss = self.tracked.iter().flatten().next().cloned();
        Seen {
            holds: self.hold.epoch(),
            trouble: self.unable().or(amiss),
            unagreed: self.seen_alone(),
        }
    }

    /// When there is something to do without being asked.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let announce = self.announce.as_ref().map(Timetable::next);
        let again = self.grip.is_none().then_some(self.try_at);
        [self.hold.until(), announce, again, self.deadline_alone()].into_iter().flatten().min()
    }

    /// Ceases what is over, and says again what is due. True: the leader should know at once.
    pub(super) fn pass(&mut self) -> bool {
        let now = boottime();
        if self.grip.is_none() && self.try_at <= now && !self.leaving {
            self.grip();
        }
        if self.grip.as_mut().is_some_and(|grip| grip.guardian.has_ended()) {
            let ordered = self.hold.let_go();
            self.obey(ordered, AddressChange::LetGo, "its guardian has ended; it is started anew");
            self.grip = None;
            self.grip();
        }
        let mut changed = false;
        if let Some(order) = self.hold.pass(now) {
            self.obey(Some(order), AddressChange::Lost, "nobody has granted this node more time");
            changed = true;
        }
        if let Some(why) = self.unable()
            && let Some(order) = self.hold.let_go()
        {
            self.obey(Some(order), AddressChange::LetGo, &why);
            changed = true;
        }
        self.announce_if_due(now);
        self.note_ability();
        changed
    }

    fn announce_if_due(&mut self, now: Instant) {
        if let Some(timetable) = &mut self.announce
            && timetable.next() <= now
        {
            timetable.said(now);
            self.announce_now();
        }
    }

    fn announce_now(&mut self) {
        let Some(grip) = &self.grip else { return };
        self.told_at = boottime();
        if let Err(error) = grip.guard.announce() {
            tracing::warn!(unit = self.name, %error, "announce an address");
        }
    }

    fn note_ability(&mut self) {
        let why = self.unable();
        if why.is_none() == self.was_able || self.leaving {
            return;
        }
        self.was_able = why.is_none();
        match why {
            Some(why) => {
                self.note(AddressChange::Unable, format!("this node cannot hold it: {why}"));
            }
            None => self.note(AddressChange::Able, "this node can hold it".to_owned()),
        }
    }

    /// Does what was granted. True: the leader should be asked at once.
    pub(super) fn answered(&mut self, number: u64, sent: Instant, grant: Grant) -> bool {
        if self.leaving || self.unable().is_some() {
            return false;
        }
        if let (Some(alone), Grant::Hold { epoch, .. }) = (&mut self.alone, grant)
            && alone.lone.has_to_wait(boottime(), epoch, &self.hold)
        {
            return false;
        }
        let order = self.hold.answered(number, sent, boottime(), grant);
        if let (Some(alone), Some(Order::Take { .. } | Order::Keep { .. })) =
            (&mut self.alone, order)
        {
            alone.lone.granted();
            self.went_on = false;
        }
        let lets_go = order == Some(Order::Drop);
        self.obey(order, AddressChange::LetGo, "it goes to another node");
        lets_go
    }

    fn obey(&mut self, order: Option<Order>, change: AddressChange, why: &str) {
        let Some(grip) = &mut self.grip else { return };
        if let (Some(epoch), Some(until)) = (self.hold.epoch(), self.hold.until()) {
            self.told = Some((epoch, until));
        }
        let result = match order {
            None => return,
            Some(Order::Take { until }) => {
                let taken = grip.guard.take(until);
                if taken.is_ok() {
                    self.announce = Some(Timetable::begin(boottime()));
                    self.note(AddressChange::Taken, format!("this node answers on {}", self.ips()));
                }
                taken
            }
            Some(Order::Keep { until, tell }) => {
                let kept = grip.guard.refresh(until);
                // Somebody who cannot be reached may be reached at any moment.
                if tell && self.told_at + TELL_EVERY <= boottime() {
                    self.announce_now();
                }
                kept
            }
            Some(Order::Drop) => {
                self.announce = None;
                let dropped = grip.guard.drop_all();
                if dropped.is_ok() {
                    self.note(change, format!("this node has let go of {}: {why}", self.ips()));
                }
                dropped
            }
        };
        match result {
            Ok(()) => {}
            // This thread was late; the kernel was not.
            Err(outlast_vip::Error::Over) => {
                self.hold.let_go();
                self.announce = None;
            }
            Err(error) => {
                tracing::error!(unit = self.name, %error, ?order, "carry an address");
                self.fail(error.to_string());
            }
        }
    }

    /// The kernel refuses: all is let go of, and built anew after a while.
    fn fail(&mut self, why: String) {
        self.hold.let_go();
        // Others wait as if nothing of it had worked.
        self.remains = self.told;
        (self.announce, self.grip) = (None, None);
        if self.told.is_some_and(|(_, until)| boottime() < until) {
            self.note(AddressChange::LetGo, format!("this node has let go of it: {why}"));
        }
        self.refused = Some(why);
        self.try_at = boottime() + AGAIN;
    }

    /// True: the leader should know at once.
    pub(super) fn hear(&mut self, heard: Heard) -> bool {
        if *heard.unit() != self.which {
            return false;
        }
        match heard {
            Heard::Of { event: Event::Rival { address, mac }, .. } => {
                if let Some(timetable) = &mut self.announce {
                    timetable.again(boottime());
                    self.note(
                        AddressChange::Rival,
                        format!("{} claims {address}, which is held here", written(mac)),
                    );
                }
                false
            }
            Heard::Of { event: Event::Link { interface, up }, .. } => {
                self.down.retain(|down| *down != interface);
                if !up {
                    self.down.push(interface);
                } else if let Some(timetable) = &mut self.announce {
                    timetable.again(boottime());
                }
                true
            }
            Heard::Deaf { why, .. } => {
                tracing::error!(unit = self.name, why, "nothing is heard of an address any more");
                self.fail(why);
                true
            }
            Heard::Tracked { index, down, .. } => {
                let Some(place) = self.tracked.get_mut(index) else { return false };
                let changed = place.is_some() != down.is_some();
                *place = down;
                changed
            }
        }
    }

    /// Lets go of it for good. True: it was held.
    pub(super) fn leave(&mut self) -> bool {
        self.leaving = true;
        let order = self.hold.let_go();
        self.obey(order, AddressChange::LetGo, "this agent ends");
        order.is_some()
    }

    /// Takes away what was put up in the kernel.
    pub(super) fn close(mut self) {
        if let Some(Grip { guard, guardian }) = self.grip.take() {
            let closed = guard.close().and_then(|()| guardian.goodbye());
            if let Err(error) = closed {
                tracing::warn!(unit = self.name, %error, "take away the guards of an address");
            }
        }
    }

    fn ips(&self) -> String {
        let ips: Vec<String> =
            self.plan.places.iter().map(|(network, _)| network.address.to_string()).collect();
        ips.join(", ")
    }

    fn note(&self, change: AddressChange, text: String) {
        let last = self.told.map(|(epoch, _)| epoch);
        let epoch = self.hold.epoch().or(last).unwrap_or_default();
        let fact = Fact::Address { unit: self.name.clone(), epoch, change, text };
        if let Err(error) = self.facts.try_send(fact) {
            tracing::warn!(%error, "the journal does not keep up with the addresses");
        }
    }
}

pub(super) fn written(mac: [u8; 6]) -> String {
    let bytes: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}

/// Why the agent may not hold a unit, whatever the kernel has for it. It is said of the unit's addresses, as the file names
/// them.
pub(super) fn lacks_rights(home: &Home, unit: &str) -> Option<String> {
    let topology = home.topology.borrow();
    let own = topology.addresses.iter().filter(|(name, address)| unit_of(name, address) == unit);
    let own: Vec<String> = own.map(|(name, _)| format!("address.{name}")).collect();
    home.rights.lacks(&own, FOR_ADDRESSES)
}

/// This binary, even if another one lies at its path by now.
pub(super) fn guardian_command() -> Command {
    let mut command = Command::new(PathBuf::from("/proc/self/exe"));
    command.arg(GUARDIAN);
    command
}

/// Passes on what is heard, until nothing can be.
pub(super) async fn listen(unit: Which, mut rivals: Rivals, tell: mpsc::Sender<Heard>) {
    loop {
        let unit = unit.clone();
        let heard = match rivals.next().await {
            Ok(event) => Heard::Of { unit, event },
            Err(error) => Heard::Deaf { unit, why: error.to_string() },
        };
        let ends = matches!(heard, Heard::Deaf { .. });
        if tell.send(heard).await.is_err() || ends {
            return;
        }
    }
}
