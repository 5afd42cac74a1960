//! What is made of what was seen of a PostgreSQL, before anything is decided on it.

use alloc::borrow::ToOwned as _;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use super::{MemberSight, MemberState};
use crate::agreed::{Confirm, Database};
use crate::time::Instant;

/// Looks without an answer in a row until PostgreSQL counts as hung.
const HANGS_AFTER: u32 = 2;

/// A write that went through counts for this long.
const WROTE_WITHIN: Duration = Duration::from_secs(4);

/// And for no longer than this if no look comes back: a look may take some seconds itself.
const WROTE_MAX: Duration = Duration::from_secs(8);

/// A disk on which less than this is free makes no primary.
const FREE_MIN: u64 = 64 << 20;

/// What looks at a PostgreSQL that runs say of it, taken together.
#[derive(Clone, Debug, Default)]
pub struct Pulse {
    /// Looks without an answer in a row.
    unanswered: u32,
    wrote: Option<Instant>,
}

impl Pulse {
    /// It said something, whatever it was.
    pub fn answers(&mut self) {
        self.unanswered = 0;
    }

    /// It did not, and counts as hung from now on, or not yet. `frozen`: its process is stopped; then once is enough.
    pub fn hangs(&mut self, frozen: bool) -> bool {
        self.unanswered = self.unanswered.saturating_add(1);
        frozen || HANGS_AFTER <= self.unanswered
    }

    /// Whether it takes writes, after one was tried, or could not be.
    pub fn writes(&mut self, now: Instant, wrote: bool) -> bool {
        if wrote {
            self.wrote = Some(now);
        }
        self.wrote.is_some_and(|at| now.since(at) <= WROTE_WITHIN)
    }

    /// Whether it may still be taken to do so, although nothing was heard since.
    pub fn may_write(&self, now: Instant) -> bool {
        self.wrote.is_some_and(|at| now.since(at) <= WROTE_MAX)
    }
}

/// Why a member must not be chosen as primary. 0 bytes: it is not known how much is free.
pub fn why_unfit(replay_paused: bool, replay_delay: Duration, free_bytes: u64) -> Option<String> {
    if replay_paused {
        return Some("its replay is paused".to_owned());
    }
    if !replay_delay.is_zero() {
        return Some("it replays with a delay".to_owned());
    }
    (0 < free_bytes && free_bytes < FREE_MIN)
        .then(|| format!("only {} MiB are free on its disk", free_bytes >> 20))
}

/// What the read port may do with a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readable {
    Yes,
    /// Sessions that are there may stay.
    NoNew,
    No,
    /// It is the primary, and well, but readers are not meant for it.
    Primary,
}

/// Whether a member may be read, by what each node says of its own. `lag_max`: bytes that it may lack.
pub fn readable(
    agreed: Option<&Database>,
    members: &BTreeMap<String, MemberSight>,
    node: &str,
    lag_max: u64,
) -> Readable {
    let primary = agreed.and_then(Database::serving).map(String::as_str);
    if primary == Some(node) {
        return Readable::Primary;
    }
    let Some(member) = members.get(node) else { return Readable::No };
    let lags = primary.and_then(|primary| members.get(primary)).is_some_and(|primary| {
        let lag = primary.reaches.lsn.saturating_sub(member.reaches.lsn);
        lag_max < lag || member.reaches.timeline < primary.reaches.timeline
    });
    match member.state {
        MemberState::Standby if lags => Readable::NoNew,
        // Without a primary to follow there is nothing newer.
        MemberState::Standby if member.follows.is_some() || primary.is_none() => Readable::Yes,
        MemberState::Standby => Readable::NoNew,
        MemberState::Unknown
        | MemberState::Empty
        | MemberState::Broken
        | MemberState::Down
        | MemberState::Starting
        | MemberState::Primary
        | MemberState::Hung
        | MemberState::Rewinding
        | MemberState::Restarting
        | MemberState::Cloning => Readable::No,
    }
}

/// A process of the primary that sends to a standby, as a look shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender {
    pub standby: String,
    /// It has caught up once: only such a one releases commits that wait.
    pub streams: bool,
    /// It has read a rule by which its standby is waited for.
    pub counts: bool,
    pub flushed: u64,
}

/// Shows that a new rule for acknowledgements has come true: nothing is acknowledged under an older one any more, and all that
/// was acknowledged is also on enough members of the new one.
///
/// In PostgreSQL each process reads the configuration by itself. A commit is released by the sender of some standby, by the
/// rule which that sender has read, and it reads the configuration before it looks at what its standby has flushed, once
/// in each round. All processes have been told to read it by the time the rule counts as set. So:
///
/// 1. A sender whose standby counts under the old rule only has read the new one as soon as its standby counts no more; one
///    whose standby counts under the new one only, as soon as it does. Of one that counts under both nothing is seen; but once
///    it has noted that its standby has flushed something that was sent after the rule was set, it has begun a round since
///    then, and has read it. Once all of that is so, nobody goes by the old rule. Senders that begin later have the new one.
/// 2. What was acknowledged until then ends at the latest where the log ends then. Once as many members of the new
///    rule as it asks for have flushed that, all of it is acknowledged under the new rule, too.
///
/// The moments come one look after the other, because a look does not see everything at the same instant. No time is part
/// of it, with one exception: that commits wait for anybody at all is noted by the checkpointer. Where the old rule was
/// nobody, its delay counts, and is not seen; [`Proof::look`] waits for `SETTLES` at least.
#[derive(Clone, Debug, Default)]
pub struct Proof {
    stage: Stage,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// The rule was set; how far the log reached then is not known yet.
    #[default]
    Set,
    /// Senders have to note something that was flushed behind this.
    Read {
        behind: u64,
    },
    /// They have; where the log ends since then is not known yet.
    Followed,
    /// Enough members have to have flushed this.
    Held {
        end: u64,
    },
    Shown,
}

/// The checkpointer has this long to note that commits wait.
const SETTLES: Duration = Duration::from_millis(300);

impl Proof {
    /// Takes in one look that was begun after the rule was set, `since` ago, and answers whether it has come true. `end` is how
    /// far the primary's log is flushed.
    pub fn look(&mut self, rule: &Confirm, since: Duration, end: u64, senders: &[Sender]) -> bool {
        self.stage = match self.stage {
            _ if rule.acks == 0 => Stage::Shown,
            Stage::Set => Stage::Read { behind: end },
            Stage::Read { behind } if follow(rule, behind, senders) && SETTLES <= since => {
                Stage::Followed
            }
            Stage::Followed => Stage::Held { end },
            Stage::Held { end } if is_held(rule, end, senders) => Stage::Shown,
            stage @ (Stage::Read { .. } | Stage::Held { .. } | Stage::Shown) => stage,
        };
        self.stage == Stage::Shown
    }
}

/// Whether every sender that could release a commit goes by the rule.
fn follow(rule: &Confirm, behind: u64, senders: &[Sender]) -> bool {
    senders.iter().filter(|sender| sender.streams).all(|sender| {
        let named = rule.of.contains(&sender.standby);
        sender.counts == named && (!named || behind < sender.flushed)
    })
}

fn is_held(rule: &Confirm, end: u64, senders: &[Sender]) -> bool {
    let held = |name: &&String| {
        let mut own = senders.iter().filter(|sender| sender.standby == **name);
        own.any(|sender| sender.streams && sender.counts && end <= sender.flushed)
    };
    let holders: Vec<&String> = rule.of.iter().filter(held).collect();
    holders.len() >= usize::try_from(rule.acks).unwrap_or(usize::MAX)
}
