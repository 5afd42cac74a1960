//! Which members must have a write before it is acknowledged, and which of them an election has heard.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use super::Position;
use crate::agreed::form::coded_struct;

/// A rule for acknowledgements: a write is acknowledged once it is on the primary and on `acks` of these members.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Confirm {
    /// The log index from which on it counts; 0: it is proposed. The same rule again is another one: what was said of the
    /// first does not hold for it.
    pub since: u64,
    /// 0: the primary alone acknowledges.
    pub acks: u32,
    /// With `acks` 0 nobody, where nothing is promised, or the primary, where only it has what it acknowledges.
    pub of: BTreeSet<String>,
}

coded_struct!(Confirm { since, acks, of });

impl Confirm {
    /// Too few others are there, and the primary goes on without them: nobody else can come after it.
    pub fn alone(primary: &str) -> Confirm {
        Confirm { of: BTreeSet::from([String::from(primary)]), ..Confirm::default() }
    }

    /// Nothing is promised.
    pub fn is_async(&self) -> bool {
        self.acks == 0 && self.of.is_empty()
    }

    /// Whether both ask for the same, whenever they were agreed on.
    pub fn is_like(&self, other: &Confirm) -> bool {
        (self.acks, &self.of) == (other.acks, &other.of)
    }

    /// Whether these members, stopped, leave no set that can acknowledge, and have seen all that was acknowledged.
    pub fn is_covered(&self, recruits: &BTreeSet<&str>, primary: &str) -> bool {
        let among = self.of.iter().filter(|name| recruits.contains(name.as_str())).count();
        self.is_async()
            || recruits.contains(primary)
            || among + usize::try_from(self.acks).unwrap_or(usize::MAX) > self.of.len() && among > 0
    }
}

impl fmt::Display for Confirm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_async() {
            return f.write_str("the primary alone");
        }
        let names: Vec<&str> = self.of.iter().map(String::as_str).collect();
        if self.acks == 0 {
            return write!(f, "{} alone, as long as others are away", names.join(", "));
        }
        write!(f, "the primary and {} of {}", self.acks, names.join(", "))
    }
}

/// A member that receives nothing any more, and how far its log reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recruit {
    pub node: String,
    pub reaches: Position,
}

coded_struct!(Recruit { node, reaches });
