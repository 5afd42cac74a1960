//! What people tell the whole cluster for a while: a pause of automatic failover, maintenance of a part, silences.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use core::fmt;
use core::time::Duration;

use super::Stamp;
use super::form::{coded_enum, coded_struct};
use super::history::History;
use super::limits::{Limit, NOTICE_MAX};
use super::reply::{Refusal, Reply};

const NODE: &str = "node.";

/// The subject of a notice about a node.
pub fn node_subject(node: &str) -> String {
    format!("{NODE}{node}")
}

/// The node that a notice is about.
pub fn node_of_subject(subject: &str) -> Option<&str> {
    subject.strip_prefix(NODE)
}

/// What a notice asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NoticeKind {
    /// No automatic failover in the whole cluster. There is one at a time.
    Pause,
    /// The subject is a part that is being worked on.
    Maintenance,
    /// The subject says which alerts are not to be sent.
    Silence,
}

coded_enum!(NoticeKind, "a kind of notice that is not known here", {
    1 = Pause, 2 = Maintenance, 3 = Silence,
});

impl fmt::Display for NoticeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            NoticeKind::Pause => "pause",
            NoticeKind::Maintenance => "maintenance",
            NoticeKind::Silence => "silence",
        })
    }
}

/// What can happen to notices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoticeCommand {
    /// A pause has an empty subject.
    Post { kind: NoticeKind, subject: String, who: String, why: String, lasts: Duration },
    /// A person lifts it, or the leader when its time is over.
    Lift { id: u64, who: String },
}

coded_enum!(NoticeCommand, "a command about notices that is not known here", {
    1 = Post { kind, subject, who, why, lasts }, 2 = Lift { id, who },
});

impl NoticeCommand {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        match self {
            NoticeCommand::Post { kind, subject, who, why, lasts } => {
                match kind {
                    NoticeKind::Pause => Limit::SubjectBytes.text(subject)?,
                    NoticeKind::Maintenance | NoticeKind::Silence => {
                        Limit::SubjectBytes.name(subject)?;
                    }
                }
                Limit::WhoBytes.name(who)?;
                Limit::ReasonBytes.text(why)?;
                if lasts.is_zero() || *lasts > NOTICE_MAX { Err(Refusal::Duration) } else { Ok(()) }
            }
            NoticeCommand::Lift { who, .. } => Limit::WhoBytes.name(who),
        }
    }

    pub(super) fn repeatable(&self) -> bool {
        match self {
            NoticeCommand::Post { .. } => false,
            NoticeCommand::Lift { .. } => true,
        }
    }
}

/// A notice that is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub kind: NoticeKind,
    pub subject: String,
    pub who: String,
    pub why: String,
    /// Counted by the leader's clock, anew after a change of leader.
    pub lasts: Duration,
    pub posted: Stamp,
}

coded_struct!(Notice { kind, subject, who, why, lasts, posted });

impl fmt::Display for Notice {
    /// The kind and what it is about: "maintenance of node.db1".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            NoticeKind::Pause => write!(f, "{}", self.kind),
            NoticeKind::Maintenance | NoticeKind::Silence => {
                write!(f, "{} of {}", self.kind, self.subject)
            }
        }
    }
}

/// The notices that are up, by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notices {
    up: BTreeMap<u64, Notice>,
}

coded_struct!(Notices { up });

impl Notices {
    pub fn up(&self) -> &BTreeMap<u64, Notice> {
        &self.up
    }

    /// The pause, if automatic failover is paused.
    pub fn pause(&self) -> Option<(u64, &Notice)> {
        self.of(NoticeKind::Pause).next()
    }

    pub fn of(&self, kind: NoticeKind) -> impl Iterator<Item = (u64, &Notice)> {
        self.up.iter().filter(move |(_, notice)| notice.kind == kind).map(|(&id, n)| (id, n))
    }

    /// Nodes whose members are paused, because people work on them.
    pub fn paused_nodes(&self) -> impl Iterator<Item = (&str, u64, &Notice)> {
        self.of(NoticeKind::Maintenance)
            .filter_map(|(id, notice)| Some((node_of_subject(&notice.subject)?, id, notice)))
    }

    pub(super) fn apply(
        &mut self,
        at: Stamp,
        command: &NoticeCommand,
        history: &mut History,
    ) -> Result<Reply, Refusal> {
        match command {
            NoticeCommand::Post { kind, subject, who, why, lasts } => {
                let count = self.of(*kind).count() + 1;
                match kind {
                    NoticeKind::Pause => {
                        if let Some((id, _)) = self.pause() {
                            return Err(Refusal::AlreadyPaused { id });
                        }
                    }
                    NoticeKind::Maintenance => Limit::Maintenance.holds(count)?,
                    NoticeKind::Silence => Limit::Silences.holds(count)?,
                }
                let notice = Notice {
                    kind: *kind,
                    subject: subject.clone(),
                    who: who.clone(),
                    why: why.clone(),
                    lasts: *lasts,
                    posted: at,
                };
                history.add(at, 0, &format!("{notice} by {who}: {why}"));
                self.up.insert(at.index, notice);
                Ok(Reply::Posted { id: at.index })
            }
            NoticeCommand::Lift { id, who } => {
                let notice = self.up.remove(id).ok_or(Refusal::NoNotice)?;
                history.add(at, 0, &format!("{notice} ended by {who}"));
                Ok(Reply::Done)
            }
        }
    }
}
