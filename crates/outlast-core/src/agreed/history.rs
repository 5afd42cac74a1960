//! What happened in the cluster, in the one order in which it happened; older lines are in each node's journal.

use alloc::borrow::ToOwned as _;
use alloc::collections::VecDeque;
use alloc::string::String;

use super::Stamp;
use super::form::coded_struct;
use super::limits::{HISTORY_KEPT, Limit};

/// One line of history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    pub at: Stamp,
    /// The node that it is about or that tells it; 0 is the cluster itself.
    pub node: u64,
    pub text: String,
}

coded_struct!(Fact { at, node, text });

/// The last lines, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    lines: VecDeque<Fact>,
}

coded_struct!(History { lines });

impl History {
    pub fn lines(&self) -> impl DoubleEndedIterator<Item = &Fact> + ExactSizeIterator {
        self.lines.iter()
    }

    /// The lines from this log index on.
    pub fn since(&self, index: u64) -> impl Iterator<Item = &Fact> {
        let from = self.lines.partition_point(|fact| fact.at.index < index);
        self.lines.iter().skip(from)
    }

    pub(super) fn add(&mut self, at: Stamp, node: u64, text: &str) {
        let text = text.get(..text.floor_char_boundary(Limit::FactBytes.most())).unwrap_or(text);
        self.lines.push_back(Fact { at, node, text: text.to_owned() });
        while self.lines.len() > HISTORY_KEPT {
            self.lines.pop_front();
        }
    }
}
