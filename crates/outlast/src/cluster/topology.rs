//! A topology for all nodes: each checks what is proposed against its own machine and votes, and takes what is in force.
//!
//! The agent does the checking and the taking, because it has the sockets; this follows what is agreed and tells it.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outlast_core::agreed::{
    Agreed, AgreedTopology, Command, Hash, KvCommand, Reply, TopologyCommand, Verdict, Vote,
};
use outlast_core::codec::{Code, Malformed, Reader};
use outlast_core::event::Fact;
use outlast_core::topology::Topology;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::found::OWN_KEYS;
use super::thread::{ANSWER_MAX, Hub};
use super::view::Phase;

/// The agent may take this long to check or to take a topology.
const AGENT_MAX: Duration = Duration::from_secs(20);

/// A topology that is in force and cannot be taken is tried again after this long; so is a vote that was not heard.
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// Until this node has its place, it looks for it this often.
const PLACE_EVERY: Duration = Duration::from_millis(200);

/// What became of proposals, the newest of them: for the journal, and for whoever waits.
const NOTES_KEPT: usize = 64;

/// Bytes of a reason; the agreement takes no longer ones.
const REASON_MAX: usize = 1000;

/// What the agent is to do with a topology.
#[derive(Debug)]
pub enum Errand {
    /// Says whether this node could run it; what it needs for that is held until it is taken or let go.
    Check { version: u64, text: String, answer: oneshot::Sender<Result<(), String>> },
    /// Writes it down and runs it.
    Take { version: u64, text: String, answer: oneshot::Sender<Result<(), String>> },
    /// Lets go of what was held.
    LetGo { version: u64 },
}

/// What the agent runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Running {
    /// Zero: the operator's file, which nobody else has agreed to.
    pub version: u64,
    pub text: Arc<str>,
    /// Of the text.
    pub hash: Hash,
    /// How the operator's file differs from it, and what to do.
    pub file_differs: Option<String>,
}

impl Running {
    pub fn new(version: u64, text: String, file_differs: Option<String>) -> Running {
        let hash = Hash::of(text.as_bytes());
        Running { version, text: text.into(), hash, file_differs }
    }

    /// What is in force and does not run. Which number is higher says nothing: a new agreement counts from one again.
    fn lacks(&self, in_force: &AgreedTopology) -> Option<(u64, String)> {
        let runs = (self.version, self.hash) == (in_force.version(), in_force.hash());
        (in_force.version() > 0 && !runs).then(|| (in_force.version(), in_force.text().to_owned()))
    }
}

/// What each node runs, as it has told all others: an entry of the key-value space.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runs {
    v: u32,
    pub version: u64,
    /// SHA-256 of its text.
    #[serde(default)]
    hash: String,
    /// Why it does not run what is in force.
    pub trouble: Option<String>,
}

impl Runs {
    fn is_in_force(&self, topology: &AgreedTopology) -> bool {
        (self.version, self.hash.as_str()) == (topology.version(), &topology.hash().to_string())
    }
}

/// What has happened to a proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Note {
    Proposed { version: u64, by: String },
    Opposed { version: u64, node: String, reason: String },
    Ended(Ended),
}

/// What a proposal came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub version: u64,
    /// `None`: it is in force.
    pub reason: Option<String>,
    /// By the nodes' names.
    pub votes: BTreeMap<String, Vote>,
}

/// What happened to proposals while this node took part. Numbered, so that nobody hears anything twice.
#[derive(Debug, Default)]
pub(super) struct Notes {
    next: u64,
    kept: VecDeque<Note>,
}

impl Notes {
    fn add(&mut self, note: Note) {
        if self.kept.len() == NOTES_KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(note);
        self.next += 1;
    }

    /// Those from number `from` on, and the number after them.
    fn since(&self, from: u64) -> (Vec<Note>, u64) {
        let new = usize::try_from(self.next.saturating_sub(from)).unwrap_or(usize::MAX);
        let skip = self.kept.len().saturating_sub(new);
        (self.kept.iter().skip(skip).cloned().collect(), self.next)
    }

    /// What became of a version, if it is still known.
    pub(super) fn ended(&self, version: u64) -> Option<Ended> {
        self.kept.iter().rev().find_map(|note| match note {
            Note::Ended(ended) if ended.version == version => Some(ended.clone()),
            Note::Ended(_) | Note::Proposed { .. } | Note::Opposed { .. } => None,
        })
    }
}

/// What is in force, what is proposed, and what each node runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopologyState {
    /// In force; zero: none was ever agreed on.
    pub version: u64,
    /// Its text, or if there is none that which this node runs; only if it was asked for.
    pub text: Option<String>,
    /// The version that this node runs.
    pub runs: u64,
    /// How the operator's file differs from what this node runs, and what to do.
    pub file_differs: Option<String>,
    pub open: Option<OpenProposal>,
    /// What became of the version that was asked about.
    pub ended: Option<Ended>,
    pub nodes: BTreeMap<String, NodeRuns>,
}

/// What is being voted on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenProposal {
    pub version: u64,
    /// The node that was told to propose it.
    pub by: String,
    pub limit: Duration,
    pub votes: BTreeMap<String, Vote>,
}

/// What a registered node runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeRuns {
    pub voter: bool,
    /// Whether this node can speak to it.
    pub linked: bool,
    /// As it has told; zero: its own file, as far as anybody knows.
    pub version: u64,
    /// Whether that is what is in force, to the letter.
    pub in_force: bool,
    /// Why it does not run what is in force.
    pub trouble: Option<String>,
}

impl Code for Ended {
    fn encode(&self, to: &mut Vec<u8>) {
        let Ended { version, reason, votes } = self;
        version.encode(to);
        reason.encode(to);
        votes.encode(to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Ended, Malformed> {
        let (version, reason) = (Code::decode(from)?, Code::decode(from)?);
        Ok(Ended { version, reason, votes: Code::decode(from)? })
    }
}

impl Code for OpenProposal {
    fn encode(&self, to: &mut Vec<u8>) {
        let OpenProposal { version, by, limit, votes } = self;
        version.encode(to);
        by.encode(to);
        limit.encode(to);
        votes.encode(to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<OpenProposal, Malformed> {
        let (version, by, limit) = (Code::decode(from)?, Code::decode(from)?, Code::decode(from)?);
        Ok(OpenProposal { version, by, limit, votes: Code::decode(from)? })
    }
}

impl Code for NodeRuns {
    fn encode(&self, to: &mut Vec<u8>) {
        let NodeRuns { voter, linked, version, in_force, trouble } = self;
        voter.encode(to);
        linked.encode(to);
        version.encode(to);
        in_force.encode(to);
        trouble.encode(to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<NodeRuns, Malformed> {
        let (voter, linked) = (Code::decode(from)?, Code::decode(from)?);
        let (version, in_force) = (Code::decode(from)?, Code::decode(from)?);
        Ok(NodeRuns { voter, linked, version, in_force, trouble: Code::decode(from)? })
    }
}

impl Code for TopologyState {
    fn encode(&self, to: &mut Vec<u8>) {
        let TopologyState { version, text, runs, file_differs, open, ended, nodes } = self;
        version.encode(to);
        text.encode(to);
        runs.encode(to);
        file_differs.encode(to);
        open.encode(to);
        ended.encode(to);
        nodes.encode(to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<TopologyState, Malformed> {
        Ok(TopologyState {
            version: Code::decode(from)?,
            text: Code::decode(from)?,
            runs: Code::decode(from)?,
            file_differs: Code::decode(from)?,
            open: Code::decode(from)?,
            ended: Code::decode(from)?,
            nodes: Code::decode(from)?,
        })
    }
}

/// The votes on what is being voted on, by the nodes' names.
pub(super) fn votes(agreed: &Agreed) -> BTreeMap<String, Vote> {
    let votes = agreed.topology().proposal().into_iter().flat_map(|proposal| &proposal.votes);
    let named = |(id, vote): (&u64, &Vote)| {
        let name = agreed.registry().nodes().get(id)?.name.clone();
        Some((name, vote.clone()))
    };
    votes.filter_map(named).collect()
}

/// Notes what a command did. `before` are the votes before it.
pub(super) fn note(
    notes: &Mutex<Notes>,
    agreed: &Agreed,
    command: &TopologyCommand,
    reply: Reply,
    before: BTreeMap<String, Vote>,
) {
    let note = match (command, reply) {
        (TopologyCommand::Propose { by, .. }, Reply::Proposed { version }) => {
            Note::Proposed { version, by: by.clone() }
        }
        (TopologyCommand::Vote { version, node, ok: false, reason }, Reply::Done) => {
            let node = agreed.registry().nodes().get(node).map(|node| node.name.clone());
            let (node, reason) = (node.unwrap_or_default(), reason.clone());
            Note::Opposed { version: *version, node, reason }
        }
        // A repeated commit found no votes, and was noted before.
        (TopologyCommand::Commit { version }, Reply::Applied { .. }) if !before.is_empty() => {
            Note::Ended(Ended { version: *version, reason: None, votes: before })
        }
        (TopologyCommand::Abort { version, reason }, Reply::Done) => {
            let reason = Some(reason.clone());
            Note::Ended(Ended { version: *version, reason, votes: before })
        }
        (
            TopologyCommand::Propose { .. }
            | TopologyCommand::Vote { .. }
            | TopologyCommand::Commit { .. }
            | TopologyCommand::Abort { .. },
            _,
        ) => return,
    };
    notes.lock().expect("no panic while held").add(note);
}

/// Where a node tells what it runs.
fn runs_key(id: u64) -> Vec<u8> {
    [OWN_KEYS, b"runs/", id.to_string().as_bytes()].concat()
}

/// What a node has told that it runs.
pub(super) fn runs(agreed: &Agreed, id: u64) -> Option<Runs> {
    let item = agreed.space().items().get(&runs_key(id))?;
    serde_json::from_slice(&item.value).ok()
}

/// What whoever leads knows of an open proposal, by its own clock.
#[derive(Debug, Default)]
pub(super) struct Judge {
    open: Option<Open>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    version: u64,
    since: Instant,
    no_since: Option<Instant>,
}

impl Judge {
    /// What to propose about the open proposal, if anything.
    pub(super) fn look(&mut self, agreed: &Agreed, now: Instant) -> Option<TopologyCommand> {
        let Some(proposal) = agreed.topology().proposal() else {
            self.open = None;
            return None;
        };
        let version = proposal.version;
        let fresh = Open { version, since: now, no_since: None };
        let mut open = self.open.filter(|open| open.version == version).unwrap_or(fresh);
        if proposal.missing(agreed.registry()).1 > 0 {
            open.no_since.get_or_insert(now);
        } else {
            open.no_since = None;
        }
        self.open = Some(open);
        let no_for = open.no_since.map(|since| now - since);
        match proposal.judge(agreed.registry(), now - open.since, no_for) {
            Verdict::Wait => None,
            Verdict::Commit => Some(TopologyCommand::Commit { version }),
            Verdict::Abort { reason } => Some(TopologyCommand::Abort { version, reason }),
        }
    }

    /// Another leads: whoever leads next counts anew.
    pub(super) fn rest(&mut self) {
        self.open = None;
    }
}

/// How far this node has come with the topologies that others propose.
#[derive(Debug, Default)]
struct Course {
    /// The proposal that was checked here, and what came of it; told to the others or not.
    checked: Option<(u64, Result<(), String>, bool)>,
    /// Why the one in force does not run here.
    trouble: Option<(u64, String)>,
    /// What did not work is not tried again before.
    again_at: Option<Instant>,
    notes_from: u64,
    /// The text whose addresses the links follow.
    followed: Arc<str>,
}

impl Course {
    /// Whether something did not work a moment ago.
    fn waits(&self) -> bool {
        self.again_at.is_some_and(|at| Instant::now() < at)
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Hub {
    /// Checks and votes, takes what is in force, and tells the others. Never ends.
    pub(super) async fn follow_topologies(self: Arc<Self>) {
        self.catch_up_first().await;
        let mut reached = self.replica.reached.subscribe();
        let mut running = self.settings.running.clone();
        let notes = |from| self.replica.notes.lock().expect("no panic while held").since(from);
        let mut course = Course { notes_from: notes(u64::MAX).1, ..Course::default() };
        loop {
            let (new, next) = notes(course.notes_from);
            course.notes_from = next;
            new.into_iter().for_each(|note| self.record(fact(note)));
            let done = self.take_what_is_in_force(&mut course).await
                & self.vote(&mut course).await
                & self.tell(&course).await;
            let now = Instant::now();
            course.again_at = match course.again_at {
                _ if done => None,
                Some(at) if now < at => Some(at),
                _ => Some(now + TRY_AGAIN),
            };
            let text = running.borrow_and_update().text.clone();
            if text != course.followed {
                self.follow_addresses(&text);
                course.followed = text;
            }
            tokio::select! {
                changed = reached.changed() => if changed.is_err() { break },
                changed = running.changed() => if changed.is_err() { break },
                () = until(course.again_at) => {}
            }
        }
        // The agent ends.
        std::future::pending::<()>().await;
    }

    /// Waits until all that is known anywhere is known here: what this node reads again from its own log is no news.
    async fn catch_up_first(&self) {
        loop {
            let running = *self.phase.lock().expect("no panic while held") == Phase::Running;
            if running && self.catch_up(ANSWER_MAX).await.is_ok() {
                return;
            }
            tokio::time::sleep(PLACE_EVERY).await;
        }
    }

    /// Whether there is nothing more to do.
    async fn take_what_is_in_force(&self, course: &mut Course) -> bool {
        let running = self.settings.running.borrow().clone();
        let lacking = self.replica.read(|agreed| running.lacks(agreed.topology()));
        let Some((version, text)) = lacking else {
            course.trouble = None;
            return true;
        };
        let known = course.trouble.as_ref().is_some_and(|(known, _)| *known == version);
        if known && course.waits() {
            return false;
        }
        let taken = self.ask_agent(|answer| Errand::Take { version, text, answer }).await;
        let trouble = taken.err().map(|reason| (version, shortened(reason)));
        if let Some((version, reason)) = trouble.clone().filter(|_| trouble != course.trouble) {
            self.record(Fact::TopologyNotTaken { version, reason });
        }
        course.trouble = trouble;
        course.trouble.is_none()
    }

    /// Whether there is nothing more to do.
    async fn vote(&self, course: &mut Course) -> bool {
        let open = self.replica.read(|agreed| {
            let proposal = agreed.topology().proposal()?;
            let known =
                course.checked.as_ref().is_some_and(|(known, ..)| *known == proposal.version);
            Some((proposal.version, if known { None } else { Some(proposal.text.clone()) }))
        });
        let Some((version, text)) = open else {
            if let Some((version, ..)) = course.checked.take() {
                // Taken or given up: either way nothing has to be held any more.
                self.settings.errands.send(Errand::LetGo { version }).await.ok();
            }
            return true;
        };
        if let Some(text) = text {
            let result = self.check(version, text).await;
            course.checked = Some((version, result, false));
        } else if course.waits() {
            return course.checked.as_ref().is_none_or(|(.., told)| *told);
        }
        let Some((_, result, told)) = &mut course.checked else { return true };
        let Some(node) = self.identity().id.filter(|_| !*told) else { return true };
        let (ok, reason) = (result.is_ok(), result.clone().err().unwrap_or_default());
        let vote = TopologyCommand::Vote { version, node, ok, reason };
        match self.write_as_node(Command::Topology(vote)).await {
            // Refused: it is over.
            Ok(_) => *told = true,
            Err(failure) => tracing::warn!(?failure, version, "vote on a topology"),
        }
        *told
    }

    /// Why this node cannot run a topology, if it cannot.
    async fn check(&self, version: u64, text: String) -> Result<(), String> {
        let objections = match crate::file::parse("the topology", &text) {
            Ok(topology) => self.objections(&topology),
            Err(complaints) => Err(complaints.to_string()),
        };
        let checked = match objections {
            Ok(()) => self.ask_agent(|answer| Errand::Check { version, text, answer }).await,
            Err(reason) => Err(reason),
        };
        checked.map_err(shortened)
    }

    /// What cannot change while the agents run.
    fn objections(&self, new: &Topology) -> Result<(), String> {
        let (old, own) = (&self.settings.topology, &self.settings.node);
        if new.cluster.name != old.cluster.name {
            return Err(format!(
                "the cluster is called `{}` and cannot be called `{}` while it runs; write its name, or stop all agents and move `consensus/` away in their data directories to begin anew",
                old.cluster.name, new.cluster.name
            ));
        }
        let missing = self.replica.read(|agreed| {
            let names = agreed.registry().nodes().values().map(|node| &node.name);
            names.filter(|name| !new.nodes.contains_key(*name)).cloned().collect::<Vec<_>>()
        });
        if let Some(name) = missing.first() {
            return Err(format!(
                "node `{name}` belongs to the cluster and [node.{name}] is missing; take it out first: `outlast node remove {name}`"
            ));
        }
        let (addresses, before) = (new.link_addresses(), old.link_addresses());
        if let (Some(new), Some(old)) = (addresses.get(own), before.get(own))
            && new != old
        {
            return Err(format!(
                "this node is reached at {old} and cannot move to {new} while its agent runs; take it out (`outlast node remove {own}`, apply a file without it), then add it at its new address"
            ));
        }
        if self.settings.base.join(&new.cluster.data_dir) != self.settings.data_dir {
            return Err(format!(
                "`data_dir` of [cluster] is {} on this node and cannot change while its agent runs; leave it as it is",
                self.settings.data_dir.display()
            ));
        }
        // How etcd is reached may change: the next start goes by it.
        let kind = |topology: &Topology| std::mem::discriminant(&topology.consensus.kind);
        if kind(new) != kind(old) {
            return Err("`kind` of [consensus] cannot change while agents run; leave it as it is, or begin anew as docs/cluster.md says"
                .to_owned());
        }
        if new.cluster.tls != old.cluster.tls {
            return Err("`tls` of [cluster] cannot change while agents run; put new certificates in the files that it names, and agents take them by themselves".to_owned());
        }
        let plain = !self.links_are_secured();
        let far = addresses.iter().find(|(_, address)| plain && !is_loopback(address));
        if let Some((name, address)) = far {
            return Err(format!(
                "node `{name}` at {address} is another machine, and [cluster] has no `tls`; see docs/certificates.md"
            ));
        }
        Ok(())
    }

    fn links_are_secured(&self) -> bool {
        let settings = &self.settings;
        settings.topology.cluster.tls.is_some() || settings.data_dir.join(super::LAB_CERTS).is_dir()
    }

    /// As this node has it; with the text, and with what became of version `about`, if that is asked for.
    pub(super) fn topology_state(&self, text: bool, about: u64) -> TopologyState {
        let running = self.settings.running.borrow().clone();
        let (own, peers) = (&self.settings.node, self.links().peers());
        let linked = |name: &String| {
            name == own || peers.get(name).is_some_and(|peer| peer.connection.is_some())
        };
        let ended = self.replica.notes.lock().expect("no panic while held").ended(about);
        self.replica.read(|agreed| {
            let topology = agreed.topology();
            let in_force = if topology.version() == 0 { &running.text } else { topology.text() };
            let nodes = agreed.registry().nodes().iter().map(|(&id, node)| {
                let runs = runs(agreed, id).unwrap_or_default();
                let in_force = runs.is_in_force(topology);
                let (version, trouble) = (runs.version, runs.trouble);
                let (voter, linked) = (node.role.votes(), linked(&node.name));
                (node.name.clone(), NodeRuns { voter, linked, version, in_force, trouble })
            });
            TopologyState {
                version: topology.version(),
                text: text.then(|| in_force.to_owned()),
                runs: running.version,
                file_differs: running.file_differs.clone(),
                open: topology.proposal().map(|proposal| OpenProposal {
                    version: proposal.version,
                    by: proposal.by.clone(),
                    limit: proposal.limit,
                    votes: votes(agreed),
                }),
                ended,
                nodes: nodes.collect(),
            }
        })
    }

    async fn ask_agent(
        &self,
        errand: impl FnOnce(oneshot::Sender<Result<(), String>>) -> Errand,
    ) -> Result<(), String> {
        let (sender, answer) = oneshot::channel();
        let asked = async {
            self.settings.errands.send(errand(sender)).await.ok()?;
            answer.await.ok()
        };
        match tokio::time::timeout(AGENT_MAX, asked).await {
            Ok(Some(answer)) => answer,
            Ok(None) => Err("the agent is stopping".to_owned()),
            Err(_elapsed) => Err(format!("the agent has not answered within {AGENT_MAX:?}")),
        }
    }

    /// Tells all nodes what this one runs, once for each change. Whether there is nothing more to do.
    async fn tell(&self, course: &Course) -> bool {
        let (version, hash) = {
            let running = self.settings.running.borrow();
            (running.version, running.hash.to_string())
        };
        let trouble =
            course.trouble.as_ref().map(|(version, reason)| format!("version {version}: {reason}"));
        let runs = Runs { v: 1, version, hash, trouble };
        let Some(id) = self.identity().id else { return true };
        // Before the first agreed topology there is nothing to tell.
        let known = self.replica.read(|agreed| self::runs(agreed, id));
        let nothing = version == 0 && runs.trouble.is_none() && known.is_none();
        if nothing || known.as_ref() == Some(&runs) {
            return true;
        }
        if course.waits() && course.trouble.is_some() {
            return false;
        }
        let value = serde_json::to_vec(&runs).expect("plain data always serializes");
        let put = KvCommand::Put { key: runs_key(id), value, session: None };
        match self.write_as_node(Command::Kv(put)).await {
            Ok(_) => true,
            Err(failure) => {
                tracing::debug!(?failure, "tell which topology runs here");
                false
            }
        }
    }

    /// Dials nodes that are new, and leaves those that are gone; a node that is registered is kept.
    fn follow_addresses(&self, text: &str) {
        let Ok(topology) = crate::file::parse("the topology", text) else { return };
        let mut wanted = topology.link_addresses();
        let registered = self.replica.names();
        for (name, peer) in self.links().peers() {
            if registered.values().any(|known| *known == name) {
                wanted.entry(name).or_insert(peer.address);
            }
        }
        if let Err(error) = self.links().follow(&wanted) {
            tracing::warn!(%error, "follow the addresses of the nodes");
        }
    }
}

fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

fn fact(note: Note) -> Fact {
    match note {
        Note::Proposed { version, by } => Fact::TopologyProposed { version, by },
        Note::Opposed { version, node, reason } => Fact::TopologyOpposed { version, node, reason },
        Note::Ended(Ended { version, reason: None, .. }) => Fact::TopologyInForce { version },
        Note::Ended(Ended { version, reason: Some(reason), .. }) => {
            Fact::TopologyGivenUp { version, reason }
        }
    }
}

/// As long as a reason may be.
fn shortened(mut reason: String) -> String {
    reason.truncate(reason.floor_char_boundary(REASON_MAX));
    reason
}

#[cfg(test)]
mod tests {
    use super::*;
    use outlast_core::agreed::{ClientId, Entry, NodeCommand, NodeRole};

    /// A cluster of `a` and `b` with one open proposal.
    fn proposed(limit: Duration) -> (Agreed, impl FnMut(&mut Agreed, Command) -> Reply) {
        let mut agreed = Agreed::default();
        let mut index = 0;
        let mut apply = move |agreed: &mut Agreed, command: Command| {
            index += 1;
            let first = matches!(command, Command::Introduce);
            let (origin, sequence) =
                if first { (ClientId::NOBODY, 0) } else { (ClientId(1), index - 1) };
            let entry = Entry { origin, sequence, wall: Default::default(), command };
            agreed.apply(index, &entry)
        };
        apply(&mut agreed, Command::Introduce);
        for name in ["a", "b"] {
            let (name, address, role) = (name.to_owned(), "x".to_owned(), NodeRole::Voter);
            let join = NodeCommand::Join { name, role, address, replaces: None };
            apply(&mut agreed, Command::Node(join));
        }
        let (text, by) = ("text".to_owned(), "a".to_owned());
        let propose = TopologyCommand::Propose { text, base_version: 0, by, limit };
        let reply = apply(&mut agreed, Command::Topology(propose));
        assert_eq!(reply, Reply::Proposed { version: 1 });
        (agreed, apply)
    }

    fn vote(node: u64, ok: bool) -> Command {
        let reason = if ok { String::new() } else { "no room".to_owned() };
        Command::Topology(TopologyCommand::Vote { version: 1, node, ok, reason })
    }

    #[test]
    fn a_leader_counts_from_when_it_first_looks() {
        let (mut agreed, mut apply) = proposed(Duration::from_secs(10));
        let (mut judge, start) = (Judge::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(judge.look(&agreed, at(0)), None);
        assert_eq!(judge.look(&agreed, at(9_900)), None);
        // Another led for a while.
        judge.rest();
        assert_eq!(judge.look(&agreed, at(10_100)), None);
        apply(&mut agreed, vote(2, false));
        assert_eq!(judge.look(&agreed, at(10_200)), None);
        let reason = "a: no room; no answer from b yet".to_owned();
        let abort = Some(TopologyCommand::Abort { version: 1, reason });
        assert_eq!(judge.look(&agreed, at(11_300)), abort);
        // Its last word counts.
        apply(&mut agreed, vote(2, true));
        assert_eq!(judge.look(&agreed, at(11_400)), None);
        apply(&mut agreed, vote(3, true));
        let commit = TopologyCommand::Commit { version: 1 };
        assert_eq!(judge.look(&agreed, at(11_500)), Some(commit.clone()));
        apply(&mut agreed, Command::Topology(commit));
        assert_eq!(judge.look(&agreed, at(11_600)), None);
    }

    #[test]
    fn what_is_in_force_is_taken_unless_it_runs_to_the_letter() {
        let (mut agreed, mut apply) = proposed(Duration::from_secs(10));
        let running = |version, text: &str| Running::new(version, text.to_owned(), None);
        assert_eq!(running(7, "old").lacks(agreed.topology()), None, "nothing is in force");
        for node in [2, 3] {
            apply(&mut agreed, vote(node, true));
        }
        apply(&mut agreed, Command::Topology(TopologyCommand::Commit { version: 1 }));
        let runs = |version, text: &str| {
            let hash = Hash::of(text.as_bytes()).to_string();
            Runs { v: 1, version, hash, trouble: None }.is_in_force(agreed.topology())
        };
        assert!(running(1, "text").lacks(agreed.topology()).is_none() && runs(1, "text"));
        // Of an agreement that is gone, whichever number that had come to.
        for (version, text) in [(0, "text"), (1, "old"), (7, "text"), (7, "old")] {
            let new = running(version, text).lacks(agreed.topology());
            assert_eq!(new, Some((1, "text".to_owned())), "{version} {text}");
            assert!(!runs(version, text), "{version} {text}");
        }
    }

    #[test]
    fn every_note_is_heard_once_and_the_oldest_are_dropped() {
        let mut notes = Notes::default();
        let note = |version| Note::Proposed { version, by: "a".to_owned() };
        (0..3).for_each(|version| notes.add(note(version)));
        assert_eq!(notes.since(1), (vec![note(1), note(2)], 3));
        assert_eq!(notes.since(3), (vec![], 3));
        assert_eq!(notes.since(u64::MAX), (vec![], 3));
        (3..100).for_each(|version| notes.add(note(version)));
        let (kept, next) = notes.since(0);
        assert_eq!((kept.len(), kept.first(), next), (NOTES_KEPT, Some(&note(36)), 100));
        let ended = Ended { version: 7, reason: None, votes: BTreeMap::new() };
        notes.add(Note::Ended(ended.clone()));
        assert_eq!((notes.ended(7), notes.ended(8)), (Some(ended), None));
    }

    #[test]
    fn a_state_is_read_as_it_was_written_and_refused_when_it_is_cut() {
        let votes = [("a".to_owned(), Vote { ok: false, reason: "no room".to_owned() })];
        let ended =
            Ended { version: 3, reason: Some("why".to_owned()), votes: votes.clone().into() };
        let (by, limit) = ("b".to_owned(), Duration::from_secs(9));
        let trouble = Some("t".to_owned());
        let node = NodeRuns { voter: true, linked: false, version: 2, in_force: true, trouble };
        let state = TopologyState {
            version: 2,
            text: Some("text".to_owned()),
            runs: 1,
            file_differs: None,
            open: Some(OpenProposal { version: 4, by, limit, votes: votes.into() }),
            ended: Some(ended),
            nodes: [("a".to_owned(), node)].into(),
        };
        let bytes = state.to_bytes();
        assert_eq!(TopologyState::from_bytes(&bytes), Ok(state));
        for length in 0..bytes.len() {
            assert!(TopologyState::from_bytes(&bytes[..length]).is_err(), "{length}");
        }
    }
}
