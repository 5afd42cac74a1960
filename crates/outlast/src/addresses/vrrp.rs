//! The virtual routers that this node takes part in: addresses of the mode `vrrp`, which nobody agrees on.
//!
//! They have a thread of their own, which asks nobody: they work on a node that is alone, beside a keepalived, and while the
//! cluster has no leader. Each unit is a task. What is decided is decided by `outlast_core::vrrp`, and what is done by
//! [`outlast_vip::vrrp::Part`]; here it is begun, weighed by what is tracked, ended, and told of.

use std::collections::BTreeMap;
use std::future::pending;
use std::net::IpAddr;
use std::num::NonZeroU8;
use std::time::Duration;

use outlast_consensus::boottime;
use outlast_core::address::{Audience, RouterPlan, Voice, moving, router_plans};
use outlast_core::event::{AddressChange, Fact};
use outlast_core::time::Instant;
use outlast_core::topology::Preempt;
use outlast_core::units::show_duration;
use outlast_core::vrrp::wire::Malformed;
use outlast_core::vrrp::{Event as Order, Settings, State, down_after};
use outlast_vip::vrrp::{self, Part, Refused, Speaker, Status, Word, own_address};
use outlast_vip::{ANNOUNCE_EVERY, Event, Guardian, Place, Rivals};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::hands::{AGAIN, Heard, Which, guardian_command, lacks_rights, listen, written};
use super::{HEARD_MAX, Home, track};
use crate::apart::Apart;

/// Weights that wait to be taken in.
const ORDERS_MAX: usize = 8;

/// How often a guardian is looked after, and whether this node still has the address from which it speaks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// For so long it is told that something was not understood.
const REFUSED_FOR: Duration = Duration::from_secs(10);

/// A rival is written down at most this often: two that do not hear each other announce the address for hours.
const RIVAL_EVERY: Duration = Duration::from_secs(5);

/// What this node does about a virtual router, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouterSeen {
    pub state: State,
    /// With what is tracked; `None`: it does not take part.
    pub priority: Option<NonZeroU8>,
    /// Why it does not take part, or what makes it do so less gladly.
    pub trouble: Option<String>,
    /// What others have said last.
    pub heard: BTreeMap<IpAddr, Word>,
}

impl RouterSeen {
    /// Who is active, of the others, as far as that can be told from what was heard.
    pub fn active(&self, now: Instant) -> Option<IpAddr> {
        let lasts = |word: &Word| {
            let priority = NonZeroU8::new(word.priority);
            priority.is_some_and(|p| now.since(word.at) <= down_after(word.interval, p))
        };
        let active = self.heard.iter().filter(|(_, word)| lasts(word));
        active.max_by_key(|(from, word)| (word.priority, **from)).map(|(from, _)| *from)
    }

    /// What is worth a new picture at once.
    fn news(&self) -> impl PartialEq {
        let heard: Vec<_> = self.heard.iter().map(|(from, word)| (*from, word.priority)).collect();
        (self.state, self.priority, self.trouble.clone(), heard)
    }
}

/// By unit.
pub type AllRouters = BTreeMap<String, RouterSeen>;

/// The virtual routers of this node. Dropped, it leaves them.
#[derive(Debug)]
pub struct Routers {
    seen: watch::Receiver<AllRouters>,
    stop: watch::Sender<bool>,
    thread: Apart,
}

impl Routers {
    pub fn start(home: Home) -> anyhow::Result<Routers> {
        let (stop, stopping) = watch::channel(false);
        let (show, seen) = watch::channel(AllRouters::new());
        let live = move || Desk { home, show, units: BTreeMap::new() }.live(stopping);
        let thread = Apart::start("routers", live)?;
        Ok(Routers { seen, stop, thread })
    }

    pub fn seen(&self) -> AllRouters {
        self.seen.borrow().clone()
    }

    /// Returns once that is something else.
    pub async fn changed(&mut self) {
        if self.seen.changed().await.is_err() {
            pending::<()>().await;
        }
    }

    /// Lets go of every address, and tells the others; returns once that is done.
    pub async fn end(&mut self) {
        self.stop.send_replace(true);
        self.thread.ended().await;
    }
}

impl Drop for Routers {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

/// A unit that is carried by a task.
struct Carried {
    plan: RouterPlan,
    /// Dropped, the unit is left.
    leave: watch::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

/// Everything of this node's virtual routers.
struct Desk {
    home: Home,
    show: watch::Sender<AllRouters>,
    units: BTreeMap<String, Carried>,
}

impl Desk {
    async fn live(mut self, mut stop: watch::Receiver<bool>) {
        let mut topology = self.home.topology.clone();
        loop {
            let now = topology.borrow_and_update().clone();
            self.follow(router_plans(&now, &self.home.node)).await;
            tokio::select! {
                changed = topology.changed() => if changed.is_err() { break },
                _ = stop.wait_for(|stop| *stop) => break,
            }
        }
        self.follow(BTreeMap::new()).await;
    }

    /// What is another one now is left before it is begun anew.
    async fn follow(&mut self, plans: BTreeMap<String, RouterPlan>) {
        let goes = |name: &String, unit: &Carried| plans.get(name) != Some(&unit.plan);
        let gone = self.units.iter().filter(|(name, unit)| goes(name, unit));
        let gone: Vec<String> = gone.map(|(name, _)| name.clone()).collect();
        let gone: Vec<Carried> = gone.iter().filter_map(|name| self.units.remove(name)).collect();
        // All at once, so that none waits for another one.
        let (leave, tasks): (Vec<_>, Vec<_>) =
            gone.into_iter().map(|unit| (unit.leave, unit.task)).unzip();
        drop(leave);
        for task in tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "leave a virtual router");
            }
        }
        for (name, plan) in plans {
            let (home, show) = (&self.home, &self.show);
            self.units.entry(name.clone()).or_insert_with(|| {
                let (leave, left) = watch::channel(());
                let unit = Unit::new(home.clone(), name, plan.clone(), show.clone());
                Carried { plan, leave, task: tokio::task::spawn(unit.live(left)) }
            });
        }
    }
}

/// What takes part, and what sees to its end.
struct Running {
    orders: mpsc::Sender<Order>,
    status: watch::Receiver<Status>,
    task: tokio::task::JoinHandle<Result<(), outlast_vip::Error>>,
    guardian: Guardian,
    /// From where each voice speaks.
    own: Vec<IpAddr>,
    /// What was told of last.
    state: State,
    lost: u64,
}

struct Unit {
    home: Home,
    name: String,
    plan: RouterPlan,
    show: watch::Sender<AllRouters>,
    which: Which,
    /// What the agent may not do, whatever the kernel has for it.
    lacks: Option<String>,
    tell: mpsc::Sender<Heard>,
    heard: mpsc::Receiver<Heard>,
    /// They listen and look for this unit, and end with it.
    beside: JoinSet<()>,
    /// The one of them that hears others who claim an address, and sees links go up and down.
    ears: Option<AbortHandle>,
    /// Each of its interfaces; of those that are not here nothing is known yet.
    links: BTreeMap<String, bool>,
    /// Why each thing that is tracked is down, if it is.
    tracked: Vec<Option<String>>,
    running: Option<Running>,
    refused: Option<String>,
    try_at: Instant,
    look_at: Instant,
    rival_at: Instant,
    /// As last said in the journal.
    was_able: bool,
}

impl Unit {
    fn new(home: Home, name: String, plan: RouterPlan, show: watch::Sender<AllRouters>) -> Unit {
        let (tell, heard) = mpsc::channel(HEARD_MAX);
        let which = Which::next(&name);
        let lacks = lacks_rights(&home, &name);
        let mut beside = JoinSet::new();
        for (index, track) in plan.track.iter().enumerate() {
            let (which, tell) = (which.clone(), tell.clone());
            beside.spawn(track::watch(home.clone(), which, index, track.what.clone(), tell));
        }
        let tracked = plan.track.iter().map(|_| None).collect();
        Unit {
            home,
            name,
            plan,
            show,
            which,
            lacks,
            tell,
            heard,
            beside,
            ears: None,
            links: BTreeMap::new(),
            tracked,
            running: None,
            refused: None,
            try_at: boottime(),
            look_at: boottime(),
            rival_at: boottime(),
            was_able: true,
        }
    }

    /// Takes part whenever it can, until nobody wants it to any more.
    async fn live(mut self, mut left: watch::Receiver<()>) {
        loop {
            self.pass().await;
            self.show();
            let try_in = (self.running.is_none() || self.ears.is_none())
                .then(|| self.try_at.since(boottime()))
                .filter(|wait| !wait.is_zero());
            tokio::select! {
                Some(heard) = self.heard.recv() => self.hear(heard),
                () = next_of(&mut self.running) => {}
                () = tokio::time::sleep(try_in.unwrap_or(LOOK_EVERY)) => {}
                gone = left.changed() => if gone.is_err() { break },
            }
        }
        self.cease("this agent ends, or the address is another one now").await;
        self.show.send_modify(|all| drop(all.remove(&self.name)));
    }

    /// Does what has become possible, and ends what is not any more.
    async fn pass(&mut self) {
        if let Some(why) = self.lacks.clone() {
            self.refuse(why);
        } else if self.ears.is_none() && self.try_at <= boottime() {
            match Rivals::open(&self.name, &self.places()) {
                Ok(rivals) => {
                    let ears = listen(self.which.clone(), rivals, self.tell.clone());
                    self.ears = Some(self.beside.spawn(ears));
                }
                Err(error) => self.refuse(error.to_string()),
            }
        }
        if self.running.as_ref().is_some_and(|running| running.task.is_finished()) {
            self.cease("something failed").await;
        }
        self.note_transitions();
        if self.running.is_some()
            && let Some(why) = self.dark_link()
        {
            // Its sockets belong to the interface as it was.
            self.cease(&why).await;
        }
        let can = self.ears.is_some() && self.links_are_up() && self.try_at <= boottime();
        if self.running.is_none() && can {
            match self.begin().await {
                Ok(running) => (self.running, self.refused) = (Some(running), None),
                Err(error) => self.refuse(error),
            }
            self.weigh();
        }
        if self.look_at <= boottime() {
            self.look_at = boottime() + LOOK_EVERY;
            self.look_after_guardian().await;
            self.look_at_own_addresses().await;
        }
        self.note_ability();
    }

    fn refuse(&mut self, why: String) {
        self.refused = Some(why);
        self.try_at = boottime() + AGAIN;
    }

    fn places(&self) -> Vec<Place> {
        let of = |voice: &Voice| -> Vec<Place> {
            let interface = &voice.interface;
            let place = |network| Place { network, interface: interface.clone() };
            voice.ips.iter().copied().map(place).collect()
        };
        self.plan.voices.iter().flat_map(of).collect()
    }

    fn moving(&self) -> Vec<IpAddr> {
        moving(&self.home.topology.borrow())
    }

    async fn guardian(&self) -> Result<Guardian, String> {
        let (name, places) = (self.name.clone(), self.places());
        let spawned =
            elsewhere(move || Guardian::spawn(guardian_command(), &name, &places)).await?;
        spawned.map_err(|error| error.to_string())
    }

    async fn begin(&self) -> Result<Running, String> {
        let (places, moving) = (self.places(), self.moving());
        let interval = self.plan.interval().ok_or("there is nothing to speak of")?;
        let (preempt, preempt_delay) = match self.plan.preempt {
            Preempt::Never => (false, Duration::ZERO),
            Preempt::After(delay) => (true, delay),
        };
        let settings = Settings {
            priority: self.plan.priority,
            interval,
            preempt,
            preempt_delay,
            refresh: ANNOUNCE_EVERY,
        };
        let voices = self.plan.voices.iter().map(|voice| speak(voice, &moving));
        let voices: Vec<_> = voices.collect::<Result<_, _>>()?;
        let own = voices.iter().map(|voice| voice.speaker.own()).collect();
        let guardian = self.guardian().await?;
        let part = match Part::new(&self.name, settings, voices, &places) {
            Ok(part) => part,
            Err(error) => {
                elsewhere(move || drop(guardian)).await?;
                return Err(error.to_string());
            }
        };
        let (orders, ordered) = mpsc::channel(ORDERS_MAX);
        let status = part.status();
        let task = tokio::task::spawn(part.run(ordered));
        Ok(Running { orders, status, task, guardian, own, state: State::Idle, lost: 0 })
    }

    /// Takes no part any more; the others are told, if it was active.
    async fn cease(&mut self, why: &str) {
        let Some(Running { orders, status, task, guardian, state, .. }) = self.running.take()
        else {
            return;
        };
        drop(orders);
        let failed = match task.await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(format!("its task has ended: {error}")),
        };
        // Without a goodbye it lets go of what could not be let go of here.
        let is_done = failed.is_none();
        let gone = elsewhere(move || {
            if is_done {
                return guardian.goodbye();
            }
            drop(guardian);
            Ok(())
        });
        match gone.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(unit = self.name, %error, "let a guardian go"),
            Err(error) => tracing::warn!(unit = self.name, error, "let a guardian go"),
        }
        if state == State::Active || status.borrow().state == State::Active {
            let why = failed.as_deref().unwrap_or(why);
            self.note(AddressChange::LetGo, self.let_go(why));
        }
        if let Some(error) = failed {
            tracing::error!(unit = self.name, error, "take part in a virtual router");
            self.refuse(error);
        }
    }

    async fn look_after_guardian(&mut self) {
        if !self.running.as_mut().is_some_and(|running| running.guardian.has_ended()) {
            return;
        }
        match (self.guardian().await, &mut self.running) {
            (Ok(guardian), Some(running)) => running.guardian = guardian,
            (Err(error), _) => tracing::error!(unit = self.name, error, "start a guardian anew"),
            (Ok(_), None) => {}
        }
    }

    /// Who speaks from an address that is gone is not heard.
    async fn look_at_own_addresses(&mut self) {
        let Some(running) = &self.running else { return };
        let moving = self.moving();
        let mut voices = self.plan.voices.iter().zip(&running.own);
        let is_there = |(voice, own): (&Voice, &IpAddr)| {
            heading(voice, &moving).is_ok_and(|(now, _)| now == *own)
        };
        if !voices.all(is_there) {
            self.cease("the address from which this node speaks is another one now").await;
        }
    }

    fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Of { event: Event::Rival { address, mac }, .. } => {
                // It announces the address again once it hears the other one's advertisement; if there is none, people
                // have to know.
                if self.is_active() && self.rival_at <= boottime() {
                    self.rival_at = boottime() + RIVAL_EVERY;
                    let mac = written(mac);
                    let text = format!("{mac} claims {address}, which is held here");
                    self.note(AddressChange::Rival, text);
                }
            }
            Heard::Of { event: Event::Link { interface, up }, .. } => {
                self.links.insert(interface, up);
            }
            Heard::Deaf { why, .. } => {
                tracing::error!(unit = self.name, why, "nothing is heard of an address any more");
                self.ears = None;
                self.links.clear();
                self.refuse(why);
            }
            Heard::Tracked { index, down, .. } => {
                if let Some(place) = self.tracked.get_mut(index) {
                    *place = down;
                    self.weigh();
                }
            }
        }
    }

    /// Tells its part what is tracked.
    fn weigh(&self) {
        let down: Vec<bool> = self.tracked.iter().map(Option::is_some).collect();
        let Some(running) = &self.running else { return };
        if let Err(error) = running.orders.try_send(Order::Weigh(self.plan.weighed(&down))) {
            tracing::warn!(unit = self.name, %error, "change a priority");
        }
    }

    fn is_active(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.state == State::Active)
    }

    fn links_are_up(&self) -> bool {
        let mut voices = self.plan.voices.iter();
        voices.all(|voice| self.links.get(&voice.interface) == Some(&true))
    }

    fn dark_link(&self) -> Option<String> {
        let down = self.links.iter().find(|(_, up)| !**up);
        down.map(|(interface, _)| format!("interface {interface} is down"))
    }

    /// Why this node does not take part.
    fn unable(&self) -> Option<String> {
        let needed = || {
            let mut tracked = self.plan.track.iter().zip(&self.tracked);
            tracked.find_map(|(track, down)| down.clone().filter(|_| track.weight.is_none()))
        };
        self.dark_link().or_else(|| self.refused.clone()).or_else(needed)
    }

    fn show(&self) {
        let amiss = || self.tracked.iter().flatten().next().cloned();
        let trouble = self.unable().or_else(amiss);
        let seen = match &self.running {
            None => {
                let (state, heard) = (State::Idle, BTreeMap::new());
                RouterSeen { state, priority: None, trouble, heard }
            }
            Some(running) => {
                let status = running.status.borrow();
                RouterSeen {
                    state: status.state,
                    priority: status.priority,
                    trouble: trouble
                        .or_else(|| status.unsaid.clone())
                        .or_else(|| not_understood(&status)),
                    heard: status.heard.clone(),
                }
            }
        };
        // What is heard every moment is read when there is another reason.
        self.show.send_if_modified(|all| {
            let before = all.insert(self.name.clone(), seen.clone());
            before.is_none_or(|before| before.news() != seen.news())
        });
    }

    fn note_transitions(&mut self) {
        let Some(running) = &mut self.running else { return };
        let status = running.status.borrow_and_update().clone();
        let (before, lost) = (running.state, running.lost);
        (running.state, running.lost) = (status.state, status.lost);
        if lost != status.lost {
            let ips = self.ips();
            let text =
                format!("this process was late, so that the kernel let go of {ips} before it");
            self.note(AddressChange::Lost, text);
        }
        match (before, status.state) {
            (State::Idle | State::Backup, State::Active) => {
                let why = why_active(&status);
                let text = format!("this node answers on {}: {why}", self.ips());
                self.note(AddressChange::Taken, text);
            }
            // What was lost has been told of.
            (State::Active, State::Idle | State::Backup) if lost == status.lost => {
                let why = self.unable().or_else(|| why_backup(&status));
                let why = why.unwrap_or_else(|| "another one is active".to_owned());
                self.note(AddressChange::LetGo, self.let_go(&why));
            }
            (State::Active | State::Idle | State::Backup, _) => {}
        }
    }

    fn note_ability(&mut self) {
        let why = self.unable();
        if why.is_none() == self.was_able {
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

    fn ips(&self) -> String {
        let places = self.places();
        let ips: Vec<String> =
            places.iter().map(|place| place.network.address.to_string()).collect();
        ips.join(", ")
    }

    fn let_go(&self, why: &str) -> String {
        format!("this node has let go of {}: {why}", self.ips())
    }

    /// Nobody has agreed on it: there is no epoch.
    fn note(&self, change: AddressChange, text: String) {
        let fact = Fact::Address { unit: self.name.clone(), epoch: 0, change, text };
        if let Err(error) = self.home.facts.try_send(fact) {
            tracing::warn!(%error, "the journal does not keep up with the addresses");
        }
    }
}

/// Does what may take a while on another thread: other virtual routers speak meanwhile.
async fn elsewhere<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())
}

/// Returns once something has become of it; never, where there is none.
async fn next_of(running: &mut Option<Running>) {
    match running {
        // It ends together with its task.
        Some(running) => drop(running.status.changed().await),
        None => pending().await,
    }
}

/// Who is there and says what does not count: both may be active then.
fn not_understood(status: &Status) -> Option<String> {
    let (Refused { from, why, .. }, at) = status.refused?;
    let help = match why {
        Malformed::Version(_) => "; of a keepalived: set `vrrp_version 3` there",
        Malformed::Short
        | Malformed::Kind(_)
        | Malformed::Router
        | Malformed::Interval
        | Malformed::Checksum
        | Malformed::Length => "",
    };
    let text = format!("what {from} says of this virtual router counts for nothing: {why}{help}");
    (boottime().since(at) < REFUSED_FOR).then_some(text)
}

/// Why nobody else was active any more.
fn why_active(status: &Status) -> String {
    let last = status.heard.iter().max_by_key(|(_, word)| word.at);
    let own = status.priority.map_or(0, NonZeroU8::get);
    match last {
        None => "nobody else was heard".to_owned(),
        Some((from, word)) if word.leaves() => format!("{from} has given it up"),
        Some((from, word)) if word.priority < own && lasts(word) => {
            format!("{from} has the priority {}, and this node {own}", word.priority)
        }
        Some((from, word)) => {
            let ago = boottime().since(word.at);
            format!("{from} has said nothing for {}", show_duration(whole_millis(ago)))
        }
    }
}

fn why_backup(status: &Status) -> Option<String> {
    let (from, word) = status.heard.iter().max_by_key(|(_, word)| word.at)?;
    let own = status.priority.map_or(0, NonZeroU8::get);
    Some(match word.priority.cmp(&own) {
        std::cmp::Ordering::Equal => {
            format!("{from} has the priority {own} as well, and the higher address")
        }
        std::cmp::Ordering::Less | std::cmp::Ordering::Greater => {
            format!("{from} is active, with the priority {}", word.priority)
        }
    })
}

fn lasts(word: &Word) -> bool {
    let Some(priority) = NonZeroU8::new(word.priority) else { return false };
    boottime().since(word.at) < down_after(word.interval, priority)
}

fn whole_millis(duration: Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// From where a voice speaks, and to whom; nobody in the list means everybody.
pub(super) fn heading(voice: &Voice, moving: &[IpAddr]) -> Result<(IpAddr, Vec<IpAddr>), String> {
    let v4 = voice.ips.first().is_some_and(|ip| ip.address.is_ipv4());
    let (wished, to) = match &voice.audience {
        // RFC 9568 5.1.2.1: in IPv6 the group is spoken to from the link-local address.
        Audience::Everybody => (voice.own.filter(|_| v4), Vec::new()),
        Audience::Only(to) if to.is_empty() => {
            return Err(format!(
                "address.{} has nobody to speak to: with `unicast = true` another node needs an address of the same version of IP, or `peers` has to name one",
                voice.name
            ));
        }
        Audience::Only(to) => (voice.own, to.clone()),
    };
    let own = own_address(&voice.interface, v4, wished, moving).map_err(|e| e.to_string())?;
    Ok((own, to))
}

fn speak(voice: &Voice, moving: &[IpAddr]) -> Result<vrrp::Voice, String> {
    let (own, to) = heading(voice, moving)?;
    let speaker = Speaker::open(&voice.interface, own, &to).map_err(|error| error.to_string())?;
    Ok(vrrp::Voice {
        number: voice.vrrp.id,
        interval: voice.vrrp.advert,
        checksum: voice.vrrp.checksum,
        addresses: voice.ips.iter().map(|ip| ip.address).collect(),
        speaker,
    })
}
