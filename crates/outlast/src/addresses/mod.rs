//! The addresses that this node may hold: it asks whoever leads for them, and its hands do what is granted.
//!
//! All of it runs on a thread of its own, so that nothing else delays a question. What happens when this thread is late,
//! stopped or dead is the kernel's business: see [`outlast_vip::Guard`].

mod announcer;
mod hands;
mod line;
mod track;
pub mod vrrp;

use std::collections::BTreeMap;
use std::future::pending;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use outlast_consensus::boottime;
use outlast_core::address::{ASK_EVERY, Grants, Plan, Question, digest, plans};
use outlast_core::event::Fact;
use outlast_core::heartbeat::{Kind, News, Said as HeartbeatSaid};
use outlast_core::time::Instant;
use outlast_core::topology::Topology;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::agent::shared::{Picture, wall};
use crate::apart::Apart;
use crate::cluster::OfAddresses;
use crate::cluster::identity::token;
use crate::rights::{self, Rights};
use announcer::Announcers;
use hands::{Hands, Heard};
use line::{Ends, Line, Read};

/// The hidden verb of a guardian's process.
pub const GUARDIAN: &str = "address-guardian";

/// What was heard about addresses and waits.
const HEARD_MAX: usize = 256;

/// How long a node that ends waits until the leader knows that it holds nothing any more.
const GOODBYE_LIMIT: Duration = Duration::from_millis(300);

/// What the hands of this node need to know.
#[derive(Clone, Debug)]
pub struct Home {
    pub node: String,
    /// Relative paths of the file count from here.
    pub base: PathBuf,
    pub topology: watch::Receiver<Arc<Topology>>,
    pub picture: watch::Receiver<Arc<Picture>>,
    pub facts: mpsc::Sender<Fact>,
    pub rights: Rights,
}

/// What this node does about a unit, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The epoch under which it answers on it.
    pub holds: Option<u64>,
    /// Why it cannot hold it, or what makes it hold it less gladly.
    pub trouble: Option<String>,
    /// What its two nodes do without agreement.
    pub unagreed: Option<String>,
}

/// By unit.
pub type AllSeen = BTreeMap<String, Seen>;

/// The addresses of this node. Dropped, it lets go of them.
#[derive(Debug)]
pub struct Addresses {
    seen: watch::Receiver<AllSeen>,
    stop: watch::Sender<bool>,
    thread: Apart,
}

impl Addresses {
    pub fn start(home: Home, cluster: OfAddresses) -> anyhow::Result<Addresses> {
        let (stop, stopping) = watch::channel(false);
        let (show, seen) = watch::channel(AllSeen::new());
        let live = move || Desk::new(home, cluster, show).live(stopping);
        let thread = Apart::start("addresses", live)?;
        Ok(Addresses { seen, stop, thread })
    }

    pub fn seen(&self) -> AllSeen {
        self.seen.borrow().clone()
    }

    /// Returns once that is something else.
    pub async fn changed(&mut self) {
        if self.seen.changed().await.is_err() {
            pending::<()>().await;
        }
    }

    /// Lets go of every address; returns once that is done.
    pub async fn end(&mut self) {
        self.stop.send_replace(true);
        self.thread.ended().await;
    }
}

impl Drop for Addresses {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

/// An answer, and which question it belongs to.
type Answered = (u64, Instant, Option<Grants>);

/// Everything of this node's addresses.
struct Desk {
    home: Home,
    cluster: OfAddresses,
    show: watch::Sender<AllSeen>,
    life: u64,
    number: u64,
    ask_at: Instant,
    /// Stands for the units of all nodes.
    plans: u64,
    units: BTreeMap<String, Hands>,
    announcers: Announcers,
    /// To the other node, where two do without agreement if they have to.
    line: Option<Line>,
    answers: JoinSet<Answered>,
    tell: mpsc::Sender<Heard>,
    heard: mpsc::Receiver<Heard>,
}

impl Desk {
    fn new(home: Home, cluster: OfAddresses, show: watch::Sender<AllSeen>) -> Desk {
        let (tell, heard) = mpsc::channel(HEARD_MAX);
        // Later runs of an agent have higher numbers, unless somebody sets the clock back: then the leader waits until
        // nothing can be left of the run before.
        let life = u64::try_from(wall().0).unwrap_or_default();
        let (units, answers) = (BTreeMap::new(), JoinSet::new());
        Desk {
            home,
            cluster,
            show,
            life,
            number: 0,
            ask_at: boottime(),
            plans: 0,
            units,
            announcers: Announcers::default(),
            line: None,
            answers,
            tell,
            heard,
        }
    }

    async fn live(mut self, mut stop: watch::Receiver<bool>) {
        let mut topology = self.home.topology.clone();
        self.follow(&topology.borrow_and_update().clone());
        self.take_key();
        loop {
            self.read_line();
            self.pass();
            self.talk();
            if self.ask_at <= boottime() {
                self.ask();
            }
            self.announcers.pass(&self.units);
            self.show();
            let wake = self.next_wake();
            let pause = async move {
                match wake {
                    Some(at) => tokio::time::sleep(at.since(boottime())).await,
                    None => pending().await,
                }
            };
            let line = self.line.as_ref();
            let readable = async move {
                match line {
                    Some(line) => line.readable().await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = pause => {}
                () = readable => {}
                Ok(()) = self.cluster.heartbeat_key.changed() => self.take_key(),
                Some(Ok(answered)) = self.answers.join_next() => self.answered(answered),
                Some(heard) = self.heard.recv() => self.hear(heard),
                Ok(()) = self.cluster.nudges.changed(), if !self.units.is_empty() => {
                    self.ask_at = boottime();
                }
                Ok(()) = topology.changed() => {
                    let now = topology.borrow_and_update().clone();
                    self.follow(&now);
                }
                _ = stop.wait_for(|stop| *stop) => break,
            }
        }
        self.end().await;
    }

    /// The units of this node, as the topology has them now.
    fn follow(&mut self, topology: &Topology) {
        let mut plans = plans(topology);
        self.plans = digest(&plans);
        let pairs: BTreeMap<String, Plan> = plans
            .iter()
            .filter(|(_, plan)| plan.pair.is_some())
            .map(|(name, plan)| (name.clone(), plan.clone()))
            .collect();
        plans
            .retain(|_, plan| plan.unit.members.iter().any(|member| member.node == self.home.node));
        let goes =
            |name: &String, hands: &Hands| plans.get(name).is_none_or(|plan| !hands.fits(plan));
        let gone = self.units.iter().filter(|(name, hands)| goes(name, hands));
        let gone: Vec<String> = gone.map(|(name, _)| name.clone()).collect();
        for hands in gone.iter().filter_map(|name| self.units.remove(name)).collect::<Vec<_>>() {
            hands.close();
        }
        for (name, plan) in plans {
            let (home, tell) = (&self.home, &self.tell);
            self.units
                .entry(name.clone())
                .or_insert_with(|| Hands::new(home, name, plan, tell.clone()));
        }
        self.announcers.follow(topology, &self.home.node);
        self.pair_up(topology, &pairs);
        self.ask_at = boottime();
    }

    /// Sets up the line to the other node, if there is one of a pair.
    fn pair_up(&mut self, topology: &Topology, pairs: &BTreeMap<String, Plan>) {
        let ends = Ends::of(topology, &self.home.node).filter(|_| !pairs.is_empty());
        let paces = || pairs.values().filter_map(|plan| plan.pair);
        let (Some(ends), Some(every), Some(fresh)) =
            (ends, paces().map(|pace| pace.every).min(), paces().map(|pace| pace.timeout).max())
        else {
            self.line = None;
            return;
        };
        if self.line.as_ref().is_none_or(|line| line.ends != ends) {
            let life = match token() {
                Ok(life) => life,
                Err(error) => {
                    tracing::error!(%error, "begin to send heartbeats");
                    return;
                }
            };
            self.line = Some(Line::new(&self.home.node, ends, life, fresh));
            self.take_key();
        }
        if let Some(line) = &mut self.line {
            for name in pairs.keys() {
                if let Some(hands) = self.units.get_mut(name) {
                    hands.pair_with(&self.home.node, &line.ends.peer);
                }
            }
            line.speaks_of(pairs.keys().cloned().collect(), digest(pairs), every);
        }
    }

    fn take_key(&mut self) {
        let key = self.cluster.heartbeat_key.borrow_and_update().clone();
        if let Some(line) = &mut self.line {
            line.has_key(key.as_ref());
        }
    }

    /// What the units of pairs are to say, in the order of the line.
    fn said_to_peer(&self) -> Vec<HeartbeatSaid> {
        let units = self.line.iter().flat_map(|line| &line.units);
        units
            .map(|name| self.units.get(name).map(Hands::said_to_peer).unwrap_or_default())
            .collect()
    }

    fn said_under(&mut self, number: u64) {
        for hands in self.units.values_mut() {
            hands.said_under(number);
        }
    }

    /// Hears all that has come from the other node.
    fn read_line(&mut self) {
        while let Some((read, from)) = self.line.as_mut().and_then(Line::read) {
            let asks = match read {
                Read::News(news) => {
                    self.hear_peer(&news);
                    news.asks
                }
                Read::Unproven => true,
            };
            if asks {
                let said = self.said_to_peer();
                let number = self.line.as_mut().map(|line| line.answer(&said, from));
                self.said_under(number.unwrap_or_default());
            }
        }
    }

    fn hear_peer(&mut self, news: &News) {
        let Some(line) = &self.line else { return };
        for (nth, name) in line.units.iter().enumerate() {
            let said = news.units.as_ref().and_then(|units| units.get(nth).copied());
            if let Some(hands) = self.units.get_mut(name) {
                hands.hear_peer(said, news);
            }
        }
    }

    /// Does what nobody can be asked about, and tells the other node how it is here.
    fn talk(&mut self) {
        let Some(line) = &self.line else { return };
        let agreement = self.cluster.agreement.borrow().clone();
        // Who can neither ask nor hear must not decide that the other node is gone.
        let stay = agreement.pause.is_some() || line.mute.is_some();
        let (mut asks, mut at, mut changed) = (false, Vec::new(), false);
        for (name, hands) in &mut self.units {
            let epoch = agreement.addresses.get(name).map_or(0, |agreed| agreed.epoch);
            let sends = hands.step_alone(epoch, stay);
            changed |= sends.changed;
            asks |= sends.asks.is_some();
            at.extend(sends.asks.into_iter().flatten());
        }
        if changed {
            self.ask_at = boottime();
        }
        let said = self.said_to_peer();
        let search = self.units.values().flat_map(Hands::interfaces_to_search).collect();
        let Some(line) = &mut self.line else { return };
        let mut numbers = Vec::new();
        if line.is_due(&said) {
            numbers.push(line.say(Kind::Beat, &said, &[], &search));
        }
        if asks {
            let also: Vec<SocketAddr> = at.into_iter().filter_map(|ip| line.port_at(ip)).collect();
            numbers.push(line.say(Kind::Question, &said, &also, &search));
        }
        for number in numbers {
            self.said_under(number);
        }
    }

    /// Ceases what is over, and says again what is due.
    fn pass(&mut self) {
        let mut changed = false;
        for hands in self.units.values_mut() {
            changed |= hands.pass();
        }
        if changed {
            // The leader need not wait for the end of a grant that nobody uses.
            self.ask_at = boottime();
        }
    }

    fn next_wake(&self) -> Option<Instant> {
        let asks = (!self.units.is_empty()).then_some(self.ask_at);
        let says = self.announcers.deadline();
        let line = self.line.as_ref().map(Line::deadline);
        let all = self.units.values().filter_map(Hands::deadline).chain(asks);
        all.chain(says).chain(line).min()
    }

    fn ask(&mut self) {
        let sent = boottime();
        self.ask_at = sent + ASK_EVERY;
        self.number += 1;
        let number = self.number;
        let units = self.units.iter_mut().map(|(name, hands)| (name.clone(), hands.said(number)));
        let (life, plans) = (self.life, self.plans);
        let question = Question { life, number, plans, units: units.collect() };
        if question.units.is_empty() {
            return;
        }
        let (answer, answered) = oneshot::channel();
        if self.cluster.questions.try_send((question, answer)).is_ok() {
            self.answers.spawn(async move { (number, sent, answered.await.ok()) });
        }
    }

    fn answered(&mut self, (number, sent, grants): Answered) {
        if grants.is_some() {
            for hands in self.units.values_mut() {
                hands.leader_answered(sent);
            }
        }
        for (name, grant) in grants.into_iter().flat_map(|grants| grants.units) {
            if let Some(hands) = self.units.get_mut(&name)
                && hands.answered(number, sent, grant)
            {
                self.ask_at = boottime();
            }
        }
    }

    fn hear(&mut self, heard: Heard) {
        if let Some(hands) = self.units.get_mut(&heard.unit().unit)
            && hands.hear(heard)
        {
            self.ask_at = boottime();
        }
    }

    fn show(&self) {
        let seen = self.units.iter().map(|(name, hands)| (name.clone(), hands.seen()));
        let mut seen: AllSeen = seen.collect();
        if let Some(Line { mute: Some(why), units, .. }) = &self.line {
            for name in units {
                if let Some(seen) = seen.get_mut(name) {
                    seen.unagreed = Some(why.clone());
                }
            }
        }
        self.show.send_if_modified(|before| {
            let changed = *before != seen;
            *before = seen;
            changed
        });
    }

    /// Lets go of everything, and tells the leader so, so that others can take it at once.
    async fn end(mut self) {
        let mut held = false;
        for hands in self.units.values_mut() {
            held |= hands.leave();
        }
        self.announcers.pass(&self.units);
        // The other node need not wait for the end of a silence.
        self.talk();
        if held {
            self.ask();
            let number = self.number;
            let told = async {
                while let Some(Ok((answered, ..))) = self.answers.join_next().await {
                    if answered == number {
                        break;
                    }
                }
            };
            tokio::time::timeout(GOODBYE_LIMIT, told).await.ok();
        }
        for hands in self.units.into_values() {
            hands.close();
        }
    }
}

/// The work of a guardian's process.
pub fn guard() -> anyhow::Result<()> {
    rights::give_up_as_guardian();
    outlast_vip::guardian(std::io::stdin().lock(), std::io::stdout().lock())?;
    Ok(())
}
