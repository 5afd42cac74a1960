//! This node's part in the addresses that move: it grants them for moments at a time while it leads, and carries the
//! questions of its own hands to whoever leads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outlast_consensus::{Role, Standing, Term, boottime};
use outlast_core::address::{Grants, Lead, Plan, Question, Scene, digest, plans};
use outlast_core::agent::Agreement;
use outlast_core::agreed::{AddressCommand, Agreed, AgreedAddress, Command};
use outlast_core::codec::Code as _;
use outlast_core::topology::Topology;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::ask::{Answer, Ask};
use super::heartbeat::HeartbeatKey;
use super::thread::Hub;

/// Questions of this node that are under way: a new one is asked although older ones have no answer yet.
const QUESTIONS_MAX: usize = 4;

/// How long a question may take. A later answer would be worth little, and the next question is on its way by then.
const QUESTION_LIMIT: Duration = Duration::from_millis(200);

/// How often the leader looks although nobody has asked.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// While this node has been elected, and may not act yet.
const LOOK_SOON: Duration = Duration::from_millis(5);

/// The shortest pause between two looks.
const LOOK_MIN: Duration = Duration::from_millis(2);

/// After what could not be agreed on.
const AGAIN: Duration = Duration::from_millis(50);

/// A question of this node's hands, and where the answer goes. No answer: nobody leads, or it does not answer.
pub type Asked = (Question, oneshot::Sender<Grants>);

/// Where those who carry addresses ask.
#[derive(Clone, Debug)]
pub struct OfAddresses {
    pub questions: mpsc::Sender<Asked>,
    /// Changes whenever the leader wants to be asked at once.
    pub nudges: watch::Receiver<u64>,
    pub agreement: watch::Receiver<Arc<Agreement>>,
    /// With which heartbeats are sealed, once there is one.
    pub heartbeat_key: watch::Receiver<Option<HeartbeatKey>>,
}

/// What the tasks for addresses share.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) topology: watch::Receiver<Arc<Topology>>,
    pub(super) nudge: watch::Sender<u64>,
    pub(super) key: watch::Sender<Option<HeartbeatKey>>,
    reign: Mutex<Option<Reign>>,
    /// Somebody has asked, so that there may be something to decide.
    asked: Notify,
}

/// This node leads, in a term.
#[derive(Debug)]
struct Reign {
    term: Term,
    lead: Lead,
    /// Who led before, unless that handed over.
    before: Option<String>,
}

impl Desk {
    pub(super) fn new(topology: watch::Receiver<Arc<Topology>>, key: Option<HeartbeatKey>) -> Desk {
        let (nudge, reign, asked) = (watch::Sender::default(), Mutex::default(), Notify::new());
        Desk { topology, nudge, key: watch::Sender::new(key), reign, asked }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Option<Reign>) -> T) -> T {
        work(&mut self.reign.lock().expect("no panic while held"))
    }
}

impl Hub {
    /// Answers a node's question, if this node leads.
    pub(super) fn grant(&self, from: &str, question: &Question) -> Answer {
        let (now, acts_until) = (boottime(), self.acts_until());
        if acts_until <= now {
            // Who may not act any more must not pass for one who leads.
            return Answer::NotLeader { leader: None };
        }
        let term = self.leads_in();
        let answer = self.replica.read(|agreed| {
            self.desk.with(|reign| {
                // What an older reign knew is not enough, and what it forgot would be missed.
                let reign = reign.as_mut().filter(|reign| Some(reign.term) == term)?;
                let lead = &mut reign.lead;
                let grants = lead.asked(now, from, question, acts_until, |unit| of(agreed, unit));
                Some(Answer::Grants(grants))
            })
        });
        self.desk.asked.notify_one();
        answer.unwrap_or(Answer::NotLeader { leader: None })
    }

    /// The term in which this node leads.
    fn leads_in(&self) -> Option<Term> {
        let standing = self.consensus()?.standing();
        let now = standing.borrow();
        (now.role == Role::Leader).then_some(now.term)
    }

    fn acts_until(&self) -> outlast_core::time::Instant {
        self.consensus().map(|consensus| consensus.acts_until()).unwrap_or_default()
    }

    /// Carries the questions of this node's hands to whoever leads.
    pub(super) async fn carry_questions(self: Arc<Self>, mut questions: mpsc::Receiver<Asked>) {
        let mut open = JoinSet::new();
        while let Some((question, answer)) = questions.recv().await {
            while open.try_join_next().is_some() {}
            if open.len() >= QUESTIONS_MAX {
                open.join_next().await;
            }
            let hub = self.clone();
            open.spawn(async move {
                if let Some(grants) = hub.ask_for_grants(&question).await {
                    answer.send(grants).ok();
                }
            });
        }
        std::future::pending::<()>().await;
    }

    async fn ask_for_grants(&self, question: &Question) -> Option<Grants> {
        let (own, leader) = {
            let standing = self.consensus()?.standing();
            let now = standing.borrow();
            (now.id, now.leader?)
        };
        let answer = if leader == own {
            self.grant(&self.settings.node, question)
        } else {
            let leader = self.replica.names().get(&leader.0).cloned()?;
            let ask = Ask::Address(question.clone()).to_bytes();
            let answer = self.links().request(&leader, ask, QUESTION_LIMIT).await;
            Answer::from_bytes(&answer.ok()?).ok()?
        };
        match answer {
            Answer::Grants(grants) => Some(grants),
            Answer::Who(_)
            | Answer::Done { .. }
            | Answer::Index { .. }
            | Answer::NotLeader { .. }
            | Answer::Busy
            | Answer::Unknown
            | Answer::Refused { .. }
            | Answer::Told { .. } => None,
        }
    }

    /// Decides for all, while this node leads.
    pub(super) async fn lead_addresses(self: Arc<Self>) {
        let mut agreement = self.replica.agreement.subscribe();
        let mut topology = self.desk.topology.clone();
        let (mut leader, mut standing) = (Leader::default(), None);
        loop {
            standing = standing.or_else(|| Some(self.consensus()?.standing()));
            let now = agreement.borrow_and_update().clone();
            leader.follow(&self);
            let known = topology.borrow_and_update().clone();
            let plans = plans(&known);
            let idle = plans.is_empty() && now.addresses.is_empty();
            let leads = now.leads && !idle && self.reigns(&leader).await;
            let pause = if !leads {
                // Whoever has been elected may act as soon as its first entry is committed.
                if now.leads { LOOK_SOON } else { LOOK_EVERY }
            } else {
                match self.look_at_addresses(&plans, &known, &now).await {
                    Looked::Agreed => continue,
                    Looked::Refused => AGAIN,
                    Looked::Rests => self.next_look(),
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause), if now.leads && !idle => {}
                () = self.desk.asked.notified(), if leads => {}
                Ok(()) = agreement.changed() => {}
                Ok(()) = topology.changed() => {}
                // Who follows has to know who led, in case it leads next.
                () = changed(&mut standing) => {}
            }
        }
    }

    fn next_look(&self) -> Duration {
        let now = boottime();
        let deadline = self.desk.with(|reign| reign.as_ref()?.lead.deadline(now));
        deadline.map_or(LOOK_EVERY, |at| at.since(now)).clamp(LOOK_MIN, LOOK_EVERY)
    }

    /// Whether this node may grant and decide. What a term begins with is kept for as long as it lasts.
    async fn reigns(&self, leader: &Leader) -> bool {
        let Some(consensus) = self.consensus().filter(|consensus| consensus.may_act()) else {
            return false;
        };
        let Some(term) = self.leads_in() else { return false };
        let handed = {
            let standing = consensus.standing();
            let now = standing.borrow();
            // Nobody else has to be elected where this is the only voter: nothing says when it led last.
            now.handed || now.members.voters.len() < 2
        };
        if self.desk.with(|reign| reign.as_ref().is_some_and(|reign| reign.term == term)) {
            return true;
        }
        // What was agreed on before has to be known here first.
        let read = consensus.read().await;
        if read.is_err() || !consensus.may_act() || self.leads_in() != Some(term) {
            return false;
        }
        let before = leader.before.clone().filter(|_| !handed);
        let lead = Lead::began(boottime(), handed);
        self.desk.with(|reign| *reign = Some(Reign { term, lead, before }));
        true
    }

    async fn look_at_addresses(
        &self,
        plans: &BTreeMap<String, Plan>,
        topology: &Topology,
        agreement: &Agreement,
    ) -> Looked {
        let scene = self.address_scene(plans, topology, agreement);
        let digest = digest(plans);
        let term = self.desk.with(|reign| {
            let reign = reign.as_mut()?;
            reign.lead.plans_are(boottime(), digest);
            Some(reign.term)
        });
        let Some(term) = term else { return Looked::Refused };
        let mut looked = Looked::Rests;
        for (name, plan) in plans {
            let decision = self.replica.read(|agreed| {
                let agreed = of(agreed, name);
                self.desk.with(|reign| {
                    let lead = &mut reign.as_mut()?.lead;
                    Some(lead.decide(boottime(), name, &plan.unit, agreed, &scene))
                })
            });
            let Some(decision) = decision else { return Looked::Refused };
            if let Some(node) = decision.nudge {
                self.nudge(&node);
            }
            if let Some(command) = decision.command {
                looked = looked.max(self.agree_on_address(term, command).await);
            }
        }
        for (name, agreed) in
            agreement.addresses.iter().filter(|(name, _)| !plans.contains_key(*name))
        {
            let command =
                self.desk.with(|reign| reign.as_mut()?.lead.retire(boottime(), name, agreed));
            if let Some(command) = command {
                looked = looked.max(self.agree_on_address(term, command).await);
            }
        }
        looked
    }

    async fn agree_on_address(&self, term: Term, command: AddressCommand) -> Looked {
        match self.agree_in(term, Command::Address(command.clone())).await {
            Ok(()) => Looked::Agreed,
            Err(why) => {
                tracing::debug!(why, ?command, "it is not agreed on");
                Looked::Refused
            }
        }
    }

    fn address_scene(
        &self,
        plans: &BTreeMap<String, Plan>,
        topology: &Topology,
        agreement: &Agreement,
    ) -> Scene {
        let peers = self.links().peers();
        let gone = peers.iter().filter(|(_, peer)| peer.connection.is_none());
        let mut suspects: BTreeSet<String> = gone.map(|(node, _)| node.clone()).collect();
        suspects.extend(self.desk.with(|reign| reign.as_ref()?.before.clone()));
        suspects.remove(&self.settings.node);
        let wanted = plans
            .iter()
            .filter_map(|(name, plan)| Some((name.clone(), plan.wanted(topology, agreement)?)));
        Scene { suspects, wanted: wanted.collect(), paused: agreement.pause.is_some() }
    }

    /// Has a node ask at once.
    fn nudge(&self, node: &str) {
        if node == self.settings.node {
            self.be_nudged();
            return;
        }
        let (links, node) = (self.links().clone(), node.to_owned());
        // It ends by its limit; a nudge that is lost costs the time until the node asks anyway.
        tokio::spawn(async move {
            links.request(&node, Ask::Hurry.to_bytes(), QUESTION_LIMIT).await.ok();
        });
    }

    /// The leader wants to be asked now.
    pub(super) fn be_nudged(&self) {
        self.desk.nudge.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// Returns once another one leads, or this node may take part.
async fn changed(standing: &mut Option<watch::Receiver<Standing>>) {
    let Some(standing) = standing else { return tokio::time::sleep(LOOK_EVERY).await };
    if standing.changed().await.is_err() {
        // The engine has ended.
        std::future::pending::<()>().await;
    }
}

fn of<'a>(agreed: &'a Agreed, unit: &str) -> Option<&'a AgreedAddress> {
    agreed.addresses().get(unit)
}

/// What became of a look; the worst of all counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Looked {
    Rests,
    Agreed,
    Refused,
}

/// Who leads, and who led before.
#[derive(Debug, Default)]
struct Leader {
    now: Option<String>,
    before: Option<String>,
}

impl Leader {
    fn follow(&mut self, hub: &Hub) {
        let leader = hub.consensus().and_then(|consensus| consensus.standing().borrow().leader);
        let leader = leader.and_then(|leader| hub.replica.names().get(&leader.0).cloned());
        if leader.is_some() && leader != self.now {
            self.before = std::mem::replace(&mut self.now, leader);
        }
    }
}
