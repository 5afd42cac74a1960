//! Between the nodes: who reaches whom.

use std::collections::BTreeSet;

use outlast_raft::NodeId;

#[derive(Debug, Default)]
pub(crate) struct Network {
    /// From and to: this way nothing passes.
    cut: BTreeSet<(NodeId, NodeId)>,
    /// From these, also what is on its way does not arrive.
    lost: BTreeSet<NodeId>,
}

impl Network {
    pub(crate) fn passes(&self, from: NodeId, to: NodeId) -> bool {
        !self.cut.contains(&(from, to))
    }

    pub(crate) fn cut(&mut self, from: NodeId, to: NodeId) {
        self.cut.insert((from, to));
    }

    /// Cuts a node off from all of these; what it has just sent is lost as well.
    pub(crate) fn drown(&mut self, node: NodeId, nodes: &[NodeId]) {
        for &other in nodes.iter().filter(|&&other| other != node) {
            self.cut(node, other);
            self.cut(other, node);
        }
        self.lost.insert(node);
    }

    pub(crate) fn loses(&self, from: NodeId) -> bool {
        self.lost.contains(&from)
    }

    /// Everybody reaches only the hub.
    pub(crate) fn star(&mut self, nodes: &[NodeId], hub: NodeId) {
        for &from in nodes.iter().filter(|&&node| node != hub) {
            for &to in nodes.iter().filter(|&&node| node != hub && node != from) {
                self.cut.insert((from, to));
            }
        }
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
        self.lost.clear();
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.cut.is_empty()
    }
}
