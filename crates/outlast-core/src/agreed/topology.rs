//! Which topology is in force, and how the next one comes into force everywhere or nowhere.
//!
//! A topology is proposed on top of the one in force, each node says whether it can live with it, and it is taken into
//! force once every registered node has said yes. Numbers of proposals are never used twice, so that a late vote cannot
//! count for a later proposal.

use alloc::borrow::ToOwned as _;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use super::Stamp;
#[cfg(test)]
use super::bugs::{Bug, instead};
use super::form::{coded_enum, coded_struct};
use super::history::History;
use super::limits::{Limit, PROPOSAL_MAX};
use super::registry::Registry;
use super::reply::{Refusal, Reply};
use super::sha256::Hash;

/// What can happen to the topology.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TopologyCommand {
    /// `base_version` is the version that the author of the text started from, `by` the node that was told to propose it;
    /// whoever leads gives it up if it is not in force after `limit`.
    Propose {
        text: String,
        base_version: u64,
        by: String,
        limit: Duration,
    },
    /// A node has checked the proposal; its last word counts.
    Vote {
        version: u64,
        node: u64,
        ok: bool,
        reason: String,
    },
    Commit {
        version: u64,
    },
    /// The leader judges that a no or a missing answer ends it.
    Abort {
        version: u64,
        reason: String,
    },
}

coded_enum!(TopologyCommand, "a command about the topology that is not known here", {
    1 = Propose { text, base_version, by, limit }, 2 = Vote { version, node, ok, reason },
    3 = Commit { version }, 4 = Abort { version, reason },
});

impl TopologyCommand {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        match self {
            TopologyCommand::Propose { text, by, limit, .. } => {
                Limit::TopologyBytes.text(text)?;
                Limit::NameBytes.name(by)?;
                if *limit <= PROPOSAL_MAX { Ok(()) } else { Err(Refusal::Duration) }
            }
            TopologyCommand::Vote { reason, .. } | TopologyCommand::Abort { reason, .. } => {
                Limit::ReasonBytes.text(reason)
            }
            TopologyCommand::Commit { .. } => Ok(()),
        }
    }

    pub(super) fn repeatable(&self) -> bool {
        match self {
            // A node's last word counts, so an old word must not come back.
            TopologyCommand::Propose { .. } | TopologyCommand::Vote { .. } => false,
            TopologyCommand::Commit { .. } | TopologyCommand::Abort { .. } => true,
        }
    }
}

/// What a node says to a proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vote {
    pub ok: bool,
    pub reason: String,
}

coded_struct!(Vote { ok, reason });

/// A topology that is being voted on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    pub version: u64,
    pub text: String,
    pub hash: Hash,
    pub proposed: Stamp,
    pub by: String,
    pub limit: Duration,
    pub votes: BTreeMap<u64, Vote>,
}

coded_struct!(Proposal { version, text, hash, proposed, by, limit, votes });

/// What is to become of a proposal now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Answers are missing, and there is time.
    Wait,
    Commit,
    Abort {
        reason: String,
    },
}

/// After a no, the others have so long to say what else is wrong.
pub const REASONS_WAIT: Duration = Duration::from_secs(1);

impl Proposal {
    /// How many nodes have not answered, and how many are against it.
    pub fn missing(&self, registry: &Registry) -> (usize, usize) {
        let vote = |id: &u64| self.votes.get(id).map(|vote| vote.ok);
        let silent = registry.nodes().keys().filter(|id| vote(id).is_none()).count();
        let against = registry.nodes().keys().filter(|id| vote(id) == Some(false)).count();
        (silent, against)
    }

    /// What whoever leads makes of it, `open_for` after it has first seen the proposal and `no_for` after a no.
    pub fn judge(
        &self,
        registry: &Registry,
        open_for: Duration,
        no_for: Option<Duration>,
    ) -> Verdict {
        let (silent, against) = self.missing(registry);
        if silent == 0 && against == 0 && !registry.nodes().is_empty() {
            return Verdict::Commit;
        }
        let in_time = open_for < self.limit && no_for.is_none_or(|no_for| no_for < REASONS_WAIT);
        if in_time && silent > 0 {
            return Verdict::Wait;
        }
        Verdict::Abort { reason: self.reasons(registry) }
    }

    /// Why it cannot come into force, node by node.
    fn reasons(&self, registry: &Registry) -> String {
        let mut reasons: Vec<String> = Vec::new();
        let mut silent: Vec<&str> = Vec::new();
        for (id, node) in registry.nodes() {
            match self.votes.get(id) {
                None => silent.push(&node.name),
                Some(vote) if !vote.ok => reasons.push(format!("{}: {}", node.name, vote.reason)),
                Some(_) => {}
            }
        }
        if !silent.is_empty() {
            let limit = crate::units::show_duration(self.limit);
            let silent = silent.join(", ");
            // Without a no, the whole time has passed.
            let within =
                if reasons.is_empty() { format!(" within {limit}") } else { " yet".to_owned() };
            reasons.push(format!("no answer from {silent}{within}"));
        }
        let mut reason = reasons.join("; ");
        reason.truncate(reason.floor_char_boundary(Limit::ReasonBytes.most()));
        reason
    }
}

/// The topology in force and the one proposed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgreedTopology {
    version: u64,
    text: String,
    hash: Hash,
    /// The highest version ever proposed.
    proposed: u64,
    proposal: Option<Proposal>,
}

coded_struct!(AgreedTopology { version, text, hash, proposed, proposal });

impl AgreedTopology {
    /// The version in force; 0 before the first.
    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// As `sha256sum` prints it.
    pub fn hash(&self) -> Hash {
        self.hash
    }

    pub fn proposal(&self) -> Option<&Proposal> {
        self.proposal.as_ref()
    }

    pub(super) fn apply(
        &mut self,
        at: Stamp,
        command: &TopologyCommand,
        registry: &Registry,
        history: &mut History,
    ) -> Result<Reply, Refusal> {
        match command {
            TopologyCommand::Propose { text, base_version, by, limit } => {
                if let Some(open) = &self.proposal {
                    return Err(Refusal::ProposalOpen { version: open.version });
                }
                if *base_version != self.version {
                    return Err(Refusal::OtherBase { current: self.version });
                }
                self.proposed = self.proposed.saturating_add(1);
                let (version, hash) = (self.proposed, Hash::of(text.as_bytes()));
                self.proposal = Some(Proposal {
                    version,
                    text: text.clone(),
                    hash,
                    proposed: at,
                    by: by.clone(),
                    limit: *limit,
                    votes: BTreeMap::new(),
                });
                history.add(at, 0, &format!("topology version {version} is proposed"));
                Ok(Reply::Proposed { version })
            }
            TopologyCommand::Vote { version, node, ok, reason } => {
                registry.known(*node)?;
                let vote = Vote { ok: *ok, reason: reason.clone() };
                self.open(*version)?.votes.insert(*node, vote);
                if !ok {
                    let text = format!("is against topology version {version}: {reason}");
                    history.add(at, *node, &text);
                }
                Ok(Reply::Done)
            }
            TopologyCommand::Commit { version } => self.commit(at, *version, registry, history),
            TopologyCommand::Abort { version, reason } => {
                self.open(*version)?;
                self.proposal = None;
                history.add(at, 0, &format!("topology version {version} is given up: {reason}"));
                Ok(Reply::Done)
            }
        }
    }

    fn commit(
        &mut self,
        at: Stamp,
        version: u64,
        registry: &Registry,
        history: &mut History,
    ) -> Result<Reply, Refusal> {
        // A second commit of what is in force is a repetition.
        if version == self.version && version > 0 {
            return Ok(Reply::Applied { version });
        }
        let (silent, against) = self.open(version)?.missing(registry);
        #[cfg(test)]
        let silent = instead(Bug::SilenceIsConsent, silent, 0);
        if registry.nodes().is_empty() {
            return Err(Refusal::NoNodes);
        }
        if silent + against > 0 {
            return Err(Refusal::VotesMissing { silent: silent as u64, against: against as u64 });
        }
        if let Some(proposal) = self.proposal.take() {
            self.version = version;
            self.text = proposal.text;
            self.hash = proposal.hash;
        }
        history.add(at, 0, &format!("topology version {version} is in force"));
        Ok(Reply::Applied { version })
    }

    fn open(&mut self, version: u64) -> Result<&mut Proposal, Refusal> {
        let open = self.proposal.as_mut().filter(|proposal| proposal.version == version);
        open.ok_or(Refusal::NoProposal)
    }
}
