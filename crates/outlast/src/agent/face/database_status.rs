//! Databases, as `/v1/status` tells of them.

use std::collections::BTreeMap;

use outlast_core::agreed::{Database, Position};
use outlast_core::database::{MemberSight, MemberState};
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
    /// The rule is about to change, and the older one counts, too.
    pub rule_changes: bool,
    /// What the switchover under way is doing.
    pub switchover: Option<String>,
    /// Where the primary stands, if the database has a home; who stands there takes over by itself.
    pub active_region: Option<String>,
    pub members: BTreeMap<String, MemberStatus>,
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
    pub trouble: Option<String>,
}

impl DatabaseStatus {
    /// Where a member stands, if regions play a part.
    pub fn region_of(&self, node: &str) -> Option<String> {
        self.members.get(node)?.region.clone()
    }

    pub(super) fn all(view: &DatabasesView) -> BTreeMap<String, DatabaseStatus> {
        let all = view.names.iter().map(|name| (name.clone(), DatabaseStatus::of(view, name)));
        all.collect()
    }

    fn of(view: &DatabasesView, name: &str) -> DatabaseStatus {
        let agreed = view.agreed.get(name);
        let empty = Database::default();
        let database = agreed.unwrap_or(&empty);
        let members = view.members.get(name).cloned().unwrap_or_default();
        let end = members.get(&database.reign.primary).and_then(|(_, sight)| sight.clone());
        let end = end.filter(|sight| sight.state == MemberState::Primary).map(|s| s.reaches);
        let stuck = view.stuck.get(name).cloned();
        let election = database.election.as_ref().map(|election| election.why.clone());
        let why = match agreed {
            None => Some(stuck.unwrap_or_else(|| "it was not made yet".to_owned())),
            Some(_) => stuck.or(election),
        };
        let reigns = agreed.is_some() && database.election.is_none();
        let regions = view.regions.get(name);
        let region = |node: &str| regions.and_then(|regions| regions.get(node).cloned());
        let members = members.iter().map(|(node, (ago, sight))| {
            let member = MemberStatus::of(database, node, *ago, sight.as_ref(), end);
            (node.clone(), MemberStatus { region: region(node), ..member })
        });
        DatabaseStatus {
            primary: reigns.then(|| database.reign.primary.clone()),
            epoch: database.epoch(),
            timeline: database.reign.timeline,
            open: reigns && database.reign.open,
            why,
            acknowledged_by: database.rule().to_string(),
            rule_changes: database.confirms.len() > 1,
            switchover: database.switchover.as_ref().map(|switchover| {
                format!("to node `{}`: {}", switchover.to, switchover.step.words())
            }),
            active_region: region(&database.reign.primary).filter(|_| reigns),
            members: members.collect(),
        }
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
            trouble: Some(known.trouble.clone()).filter(|trouble| !trouble.is_empty()),
        }
    }

    /// Since when, for people.
    pub fn lasts(&self) -> String {
        show_duration(std::time::Duration::from_secs(self.for_seconds))
    }
}
