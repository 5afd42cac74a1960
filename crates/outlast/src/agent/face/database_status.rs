//! Databases, as `/v1/status` tells of them.

use std::collections::BTreeMap;

use outlast_core::agreed::{Database, Notice, Position, Upkeep};
use outlast_core::database::{
    MemberSight, MemberState, Scene, Seen, Wish, cannot_lead, cannot_switch,
};
use outlast_core::time::Timestamp;
use outlast_core::units::show_duration;
use serde::{Deserialize, Serialize};

use crate::agent::shared::DatabasesView;

/// One database.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DatabaseStatus {
    /// Null while there is none.
    pub primary: Option<String>,
    pub epoch: u64,
    pub timeline: u32,
    /// The primary serves.
    pub open: bool,
    /// Why there is no primary, or why nothing is done although something is wrong.
    pub why: Option<String>,
    /// How a write is acknowledged.
    pub acknowledged_by: String,
    /// With so many other members writes go on while more are away.
    pub acks_min: u32,
    /// The rule is about to change, and the older one counts, too.
    pub rule_changes: bool,
    /// What the switchover under way is doing.
    pub switchover: Option<String>,
    /// Where the primary stands, if the database has a home; who stands there takes over by itself.
    pub active_region: Option<String>,
    /// One that is to begin at a time.
    pub scheduled: Option<ScheduledStatus>,
    /// Members that restart or are made anew because people want it: which of them now.
    pub upkeep: Option<String>,
    pub members: BTreeMap<String, MemberStatus>,
}

/// A switchover that waits for its time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ScheduledStatus {
    pub to: String,
    pub at: String,
    pub who: String,
}

/// A pause of failover in the whole cluster, or of the members on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PausedStatus {
    pub who: String,
    pub why: String,
    /// It ends by itself then, or a little later if the lead has changed.
    pub until: String,
}

/// One member of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemberStatus {
    /// `primary` or `standby`, by what is agreed.
    pub role: String,
    /// What its PostgreSQL does: `primary`, `standby`, `down`, `cloning` ...
    pub state: String,
    /// A write waits for it, or may.
    pub sync: bool,
    pub timeline: u32,
    pub lsn: String,
    /// What it lacks of the primary's log.
    pub lag_bytes: Option<u64>,
    /// How long ago the primary wrote what it has not replayed yet; null while that is not known.
    pub lag_seconds: Option<f64>,
    pub follows: Option<String>,
    /// Whom it is to follow, by what is agreed: the primary, or the relay of its region.
    pub upstream: Option<String>,
    /// Null where the database has no home.
    pub region: Option<String>,
    /// It receives nothing any more because of this election.
    pub stopped: Option<u64>,
    pub for_seconds: u64,
    pub heard_seconds_ago: f64,
    /// Why it must not be primary.
    pub unfit: Option<String>,
    /// Why no election chooses it now: `unfit`, or its priority, a pause, silence.
    pub cannot_lead: Option<String>,
    /// Why no switchover makes it primary now.
    pub cannot_switch: Option<String>,
    pub trouble: Option<String>,
    /// Settings that take effect with a restart.
    pub needs_restart: Vec<String>,
    /// Null unless it is paused.
    pub paused: Option<PausedStatus>,
}

impl DatabaseStatus {
    /// Where a member stands, if regions play a part.
    pub fn region_of(&self, node: &str) -> Option<String> {
        self.members.get(node)?.region.clone()
    }

    pub(super) fn all(view: &DatabasesView) -> BTreeMap<String, DatabaseStatus> {
        let all = view.wishes.iter();
        all.map(|(name, wish)| (name.clone(), DatabaseStatus::of(view, name, wish))).collect()
    }

    fn of(view: &DatabasesView, name: &str, wish: &Wish) -> DatabaseStatus {
        let agreed = view.agreed.get(name);
        let empty = Database::default();
        let database = agreed.unwrap_or(&empty);
        let members = view.members.get(name).cloned().unwrap_or_default();
        let ruler = members.get(&database.reign.primary).and_then(|(_, sight)| sight.clone());
        let ruler = ruler.filter(|sight| sight.state == MemberState::Primary);
        let end = ruler.as_ref().map(|sight| sight.reaches);
        let stuck = view.stuck.get(name).cloned();
        let election = database.election.as_ref().map(|election| election.why.clone());
        let why = match agreed {
            None => Some(stuck.unwrap_or_else(|| "it was not made yet".to_owned())),
            Some(_) => stuck.or(election),
        };
        let reigns = agreed.is_some() && database.election.is_none();
        let region = |node: &str| wish.regions.get(node).cloned();
        let scene = scene(view, name, wish);
        let members = members.iter().map(|(node, (ago, sight))| {
            let mut member = MemberStatus::of(database, node, *ago, sight.as_ref(), end);
            let lag = ruler.as_ref().and_then(|ruler| ruler.lags.get(node));
            member.lag_seconds = lag.map(std::time::Duration::as_secs_f64);
            member.paused = view.paused.get(node).map(PausedStatus::of);
            member.region = region(node);
            member.cannot_lead = cannot_lead(&scene, node);
            member.cannot_switch = cannot_switch(&scene, node);
            (node.clone(), member)
        });
        DatabaseStatus {
            primary: reigns.then(|| database.reign.primary.clone()),
            epoch: database.epoch(),
            timeline: database.reign.timeline,
            open: reigns && database.reign.open,
            why,
            acknowledged_by: database.rule().to_string(),
            acks_min: wish.acks_min,
            rule_changes: database.confirms.len() > 1,
            switchover: database.switchover.as_ref().map(|switchover| {
                format!("to node `{}`: {}", switchover.to, switchover.step.words())
            }),
            active_region: region(&database.reign.primary).filter(|_| reigns),
            scheduled: database.scheduled.as_ref().map(|scheduled| ScheduledStatus {
                to: scheduled.to.clone(),
                at: scheduled.when.to_string(),
                who: scheduled.who.clone(),
            }),
            upkeep: database.upkeep.as_ref().map(upkeep_words),
            members: members.collect(),
        }
    }
}

/// As a leader that knows what this node knows would see who can become primary.
fn scene<'a>(view: &'a DatabasesView, name: &'a str, wish: &'a Wish) -> Scene<'a> {
    let members = view.members.get(name).into_iter().flatten().map(|(node, (ago, sight))| {
        let seen = Seen { sight: sight.clone(), heard_ago: *ago, ..Seen::default() };
        (node.clone(), seen)
    });
    Scene {
        name,
        wish,
        agreed: view.agreed.get(name),
        leased: false,
        members: members.collect(),
        paused: view.pause.is_some(),
        resting: view.paused.keys().cloned().collect(),
        wall: Timestamp::default(),
    }
}

fn upkeep_words(upkeep: &Upkeep) -> String {
    let nodes = &upkeep.plan.nodes;
    let names: Vec<&str> = nodes.iter().map(String::as_str).collect();
    let done: Vec<&str> = upkeep.done.iter().map(|done| done.node.as_str()).collect();
    let done = if done.is_empty() { String::new() } else { format!("; done: {}", done.join(", ")) };
    let now = upkeep
        .turn
        .as_ref()
        .map_or("the next one waits".to_owned(), |turn| format!("node `{}` now", turn.node));
    let (word, who) = (upkeep.plan.kind.word(), &upkeep.plan.who);
    format!("{word} of {}, asked for by {who}: {now}{done}", names.join(", "))
}

impl PausedStatus {
    pub fn of(notice: &Notice) -> PausedStatus {
        let lasts = i64::try_from(notice.lasts.as_millis()).unwrap_or(i64::MAX);
        let until = Timestamp(notice.posted.wall.0.saturating_add(lasts)).to_string();
        PausedStatus { who: notice.who.clone(), why: notice.why.clone(), until }
    }

    /// `paused by ann until 2026-12-01T02:00:00Z: new switch`.
    pub fn words(&self) -> String {
        let why = if self.why.is_empty() { String::new() } else { format!(": {}", self.why) };
        format!("paused by {} until {}{why}", self.who, self.until)
    }
}

impl MemberStatus {
    fn of(
        database: &Database,
        node: &str,
        heard_ago: std::time::Duration,
        sight: Option<&MemberSight>,
        end: Option<Position>,
    ) -> MemberStatus {
        let unknown = MemberSight::default();
        let known = sight.unwrap_or(&unknown);
        let reigns = database.reign.primary == node && database.election.is_none();
        let lag = end.map(|end| end.lsn.saturating_sub(known.reaches.lsn));
        let lsn = known.reaches.lsn;
        MemberStatus {
            role: if reigns { "primary" } else { "standby" }.to_owned(),
            state: known.state.word().to_owned(),
            sync: !reigns && database.confirms.iter().any(|confirm| confirm.of.contains(node)),
            timeline: known.reaches.timeline,
            lsn: format!("{:X}/{:X}", lsn >> 32, lsn & 0xffff_ffff),
            lag_bytes: lag.filter(|_| sight.is_some()),
            follows: known.follows.clone(),
            upstream: Some(database.upstream(node).to_owned())
                .filter(|upstream| !upstream.is_empty() && upstream != node),
            region: None,
            stopped: known.stopped,
            for_seconds: known.since.as_secs(),
            heard_seconds_ago: heard_ago.as_secs_f64(),
            unfit: known.unfit.clone(),
            cannot_lead: None,
            cannot_switch: None,
            trouble: Some(known.trouble.clone()).filter(|trouble| !trouble.is_empty()),
            needs_restart: known.needs_restart.iter().cloned().collect(),
            lag_seconds: None,
            paused: None,
        }
    }

    /// Since when, for people.
    pub fn lasts(&self) -> String {
        show_duration(std::time::Duration::from_secs(self.for_seconds))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use outlast_core::agreed::{NoticeKind, Reign, Stamp};

    use super::*;

    #[test]
    fn each_member_says_why_it_could_not_take_over() {
        let standby = MemberSight {
            state: MemberState::Standby,
            follows: Some("a".to_owned()),
            ..MemberSight::default()
        };
        let primary = MemberSight { state: MemberState::Primary, ..MemberSight::default() };
        let known = |node: &str, sight: &MemberSight, seconds| {
            (node.to_owned(), (Duration::from_secs(seconds), Some(sight.clone())))
        };
        let members = [
            known("a", &primary, 0),
            known("b", &standby, 0),
            known("c", &standby, 0),
            known("d", &standby, 0),
            known("e", &standby, 9),
        ];
        let names = ["a", "b", "c", "d", "e"].map(str::to_owned);
        let priorities = [("c".to_owned(), 0)].into();
        let wish = Wish { members: names.into(), priorities, ..Wish::default() };
        let (kind, subject) = (NoticeKind::Maintenance, "node.d".to_owned());
        let lasts = Duration::from_secs(60);
        let (who, why, posted) = ("ann".to_owned(), String::new(), Stamp::default());
        let notice = Notice { kind, subject, who, why, lasts, posted };
        let reign = Reign { primary: "a".to_owned(), open: true, ..Reign::default() };
        let view = DatabasesView {
            wishes: [("orders".to_owned(), wish)].into(),
            agreed: [("orders".to_owned(), Database { reign, ..Database::default() })].into(),
            members: [("orders".to_owned(), members.into())].into(),
            paused: [("d".to_owned(), notice)].into(),
            ..DatabasesView::default()
        };
        let all = DatabaseStatus::all(&view);
        let said = ["a", "b", "c", "d", "e"].map(|node| {
            let member = &all["orders"].members[node];
            assert_eq!(member.cannot_lead, member.cannot_switch);
            member.cannot_switch.as_deref()
        });
        let silent = Some("it is silent");
        let expected = [None, None, Some("its priority is 0"), Some("it is paused"), silent];
        assert_eq!(said, expected);
    }
}
