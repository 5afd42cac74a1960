//! The topology that the nodes have agreed on, as `/v1/status` has it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cluster::topology::TopologyState;

/// What is in force, what is proposed, and what each node runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TopologyStatus {
    /// In force; 0: none was ever agreed on, each node runs its own file.
    pub version: u64,
    /// What this node runs.
    pub runs: u64,
    /// How the file of `outlast run` differs from it, and what to do.
    pub file_differs: Option<String>,
    pub proposal: Option<ProposalStatus>,
    pub nodes: BTreeMap<String, NodeRunsStatus>,
}

/// What is being voted on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProposalStatus {
    pub version: u64,
    /// The node on which it was proposed.
    pub by: String,
    /// `yes`, or why not, by node; who is not there has not answered.
    pub votes: BTreeMap<String, String>,
}

/// What a node has told that it runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeRunsStatus {
    pub version: u64,
    /// Whether that is what is in force, to the letter.
    pub in_force: bool,
    /// Why it does not run what is in force.
    pub trouble: Option<String>,
}

impl TopologyStatus {
    pub fn of(state: &TopologyState) -> TopologyStatus {
        let proposal = state.open.as_ref().map(|open| {
            let votes = open.votes.iter().map(|(name, vote)| {
                let said = if vote.ok { "yes" } else { vote.reason.as_str() };
                (name.clone(), said.to_owned())
            });
            let (version, by) = (open.version, open.by.clone());
            ProposalStatus { version, by, votes: votes.collect() }
        });
        let nodes = state.nodes.iter().map(|(name, node)| {
            let (version, trouble) = (node.version, node.trouble.clone());
            (name.clone(), NodeRunsStatus { version, in_force: node.in_force, trouble })
        });
        TopologyStatus {
            version: state.version,
            runs: state.runs,
            file_differs: state.file_differs.clone(),
            proposal,
            nodes: nodes.collect(),
        }
    }
}
