//! Physical replication slots: one for each peer, on the primary and on standbys. Only ours are touched.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::error::{Doing, Error};
use crate::look::LOOK_LIMIT;
use crate::look::{Role, Seen, Slot, WalStatus};
use crate::lsn::Lsn;
use crate::postgres::Postgres;
use crate::settings::Upstream;
use crate::sql::{Connection, literal};

/// What the names of our slots begin with.
const PREFIX: &str = "outlast_";
/// What the names of those begin with that a relay has for members that follow it. No node's slot is named so.
const RELAYS: &str = "outlastr_";
/// How long followers of a relay may take to be cut off, and how often that is looked at.
const CUT_LIMIT: Duration = Duration::from_secs(5);
const CUT_LOOK: Duration = Duration::from_millis(10);
/// To make or drop a slot writes a small file.
const SLOT_LIMIT: Duration = Duration::from_secs(10);

/// Bytes of log that an unused slot of a standby keeps for its node: by so much may that lag when this one is promoted.
const STANDBY_KEEPS: u64 = 256 << 20;

impl Slot {
    /// It keeps what its node needs from here on.
    fn keeps(&self) -> bool {
        self.restart_lsn.is_some() && self.wal_status != Some(WalStatus::Lost)
    }
}

impl Seen {
    /// Nodes for which log is kept here.
    pub fn keeps_for<'a>(&self, nodes: impl Iterator<Item = &'a String>) -> BTreeSet<String> {
        let has = |name: String| self.slots.iter().any(|slot| slot.name == name && slot.keeps());
        nodes.filter(|node| has(slot_name(node))).cloned().collect()
    }
}

/// The slot of a node. Different names of nodes give different names of slots.
pub fn slot_name(node: &str) -> String {
    let mut name = PREFIX.to_owned();
    for byte in node.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' => name.push(char::from(byte)),
            b'-' => name.push_str("__"),
            other => drop(write!(name, "_{other:02x}_")),
        }
    }
    name
}

/// The slot of a node at a relay. It is named after the reign: who knows of another one finds none.
fn relay_slot_name(reign: u64, node: &str) -> String {
    let name = slot_name(node);
    format!("{}{}", relay_prefix(reign), name.strip_prefix(PREFIX).unwrap_or(&name))
}

fn relay_prefix(reign: u64) -> String {
    format!("{RELAYS}{reign:x}_")
}

/// The slot that a node uses at its upstream.
pub(crate) fn slot_at(upstream: &Upstream, node: &str) -> String {
    match upstream.relays {
        Some(reign) => relay_slot_name(reign, node),
        None => slot_name(node),
    }
}

/// Removes what a relay had for its followers from a directory without a server. Blocks.
pub(crate) fn remove_relay_slots(data_dir: &Path) -> Result<(), Error> {
    let dir = data_dir.join("pg_replslot");
    let all = match fs::read_dir(&dir) {
        Ok(all) => all,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).doing(format!("read {}", dir.display())),
    };
    for slot in all {
        let slot = slot.doing(format!("read {}", dir.display()))?;
        if slot.file_name().to_string_lossy().starts_with(RELAYS) {
            let path = slot.path();
            fs::remove_dir_all(&path).doing(format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// Who needs a slot here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Followers {
    /// Nodes that follow this one if it is the primary, or would if it were.
    pub peers: Vec<String>,
    /// Members that follow this standby, and the reign of whose log its own is a part.
    pub relayed: Vec<String>,
    pub reign: u64,
    /// Peers that follow a relay, and what each has: so much need not be kept for them.
    pub elsewhere: BTreeMap<String, Lsn>,
}

impl Followers {
    fn slots(&self) -> BTreeSet<String> {
        let peers = self.peers.iter().map(|node| slot_name(node));
        let relayed = self.relayed.iter().map(|node| relay_slot_name(self.reign, node));
        peers.chain(relayed).collect()
    }
}

/// What has to be done to the slots.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    /// Dropped: those of nodes that are gone, and those that have lost their log.
    drop: Vec<String>,
    make: Vec<String>,
    /// Those of a standby, which nobody uses and which would keep its log for ever.
    advance: Vec<(String, Lsn)>,
}

/// `behind`, of a standby, is from where on it keeps log for all; `elsewhere` is what the users of slots have from others.
fn plan(
    wanted: &BTreeSet<String>,
    found: &[Slot],
    behind: Option<Lsn>,
    elsewhere: &BTreeMap<String, Lsn>,
) -> Plan {
    let lost = |slot: &&Slot| slot.wal_status == Some(WalStatus::Lost);
    let is_ours = |name: &str| name.starts_with(PREFIX) || name.starts_with(RELAYS);
    let ours = found.iter().filter(|slot| is_ours(&slot.name) && !slot.active);
    let (mut plan, mut kept) = (Plan::default(), BTreeSet::new());
    for slot in ours {
        if !wanted.contains(&slot.name) || lost(&slot) {
            plan.drop.push(slot.name.clone());
        }
    }
    kept.extend(found.iter().map(|slot| &slot.name).filter(|name| !plan.drop.contains(name)));
    plan.make = wanted.iter().filter(|name| !kept.contains(name)).cloned().collect();
    for slot in found.iter().filter(|slot| wanted.contains(&slot.name) && !slot.active) {
        let keep = behind.or_else(|| elsewhere.get(&slot.name).copied());
        if let (Some(keep), Some(at)) = (keep, slot.restart_lsn)
            && at < keep
            && !plan.drop.contains(&slot.name)
        {
            plan.advance.push((slot.name.clone(), keep));
        }
    }
    plan
}

impl Postgres {
    /// Makes a slot for each of these nodes, makes those anew that have lost their log, and drops those of ours that no
    /// node needs any more. A slot in use is left alone.
    pub async fn ensure_slots(&self, nodes: &[String]) -> Result<(), Error> {
        self.keep_slots(&Followers { peers: nodes.to_vec(), ..Followers::default() }).await
    }

    /// The same, with those of a relay.
    pub async fn keep_slots(&self, followers: &Followers) -> Result<(), Error> {
        let seen = self.look().await.doing("ensure the slots")?;
        let wanted = followers.slots();
        let elsewhere = followers.elsewhere.iter().map(|(node, at)| (slot_name(node), *at));
        let behind = match seen.role {
            Role::Standby { replayed: Some(replayed), .. } => {
                Some(self.keeps_behind(replayed).await?)
            }
            Role::Primary { .. } | Role::Standby { replayed: None, .. } => None,
        };
        let plan = plan(&wanted, &seen.slots, behind, &elsewhere.collect());
        if plan == Plan::default() {
            return Ok(());
        }
        let mut connection =
            Connection::open(&self.settings, SLOT_LIMIT, &[]).await.doing("ensure the slots")?;
        for name in plan.drop {
            let sql = format!("SELECT pg_drop_replication_slot({})", literal(&name));
            connection.query(&sql, SLOT_LIMIT).await.doing(format!("drop slot {name}"))?;
        }
        for name in plan.make {
            // It keeps the log from now on, not only once it is used.
            let sql =
                format!("SELECT pg_create_physical_replication_slot({}, true)", literal(&name));
            connection.query(&sql, SLOT_LIMIT).await.doing(format!("make slot {name}"))?;
        }
        for (name, to) in plan.advance {
            let sql = format!("SELECT pg_replication_slot_advance({}, '{to}')", literal(&name));
            connection.query(&sql, SLOT_LIMIT).await.doing(format!("advance slot {name}"))?;
        }
        connection.close().await;
        Ok(())
    }

    /// From where on a standby keeps log for others: once it is primary, the old one is rewound to before its last checkpoint,
    /// and that is no older than this one's restart point.
    async fn keeps_behind(&self, replayed: Lsn) -> Result<Lsn, Error> {
        let sql = "SELECT redo_lsn FROM pg_control_checkpoint()";
        let redo = self.value(sql, LOOK_LIMIT).await.doing("read the restart point")?;
        let redo: Lsn =
            redo.parse().map_err(|_none| Error::new(format!("no restart point: {redo}")))?;
        Ok(redo.min(Lsn(replayed.0.saturating_sub(STANDBY_KEEPS))))
    }

    /// Cuts off members that follow this one as a relay, unless under this reign: what is written or received from now on may
    /// be another log than the one that they know of.
    pub async fn drop_relay_slots(&self, keep: Option<u64>) -> Result<(), Error> {
        let kept = keep.map(relay_prefix).unwrap_or_default();
        let sql = format!(
            "SELECT slot_name, pg_terminate_backend(active_pid) FROM pg_replication_slots
             WHERE starts_with(slot_name, {}) AND ({} = '' OR NOT starts_with(slot_name, {}))",
            literal(RELAYS),
            literal(&kept),
            literal(&kept),
        );
        let end = Instant::now() + CUT_LIMIT;
        loop {
            let rows = self.ask(&sql, LOOK_LIMIT).await.doing("cut off followers")?;
            if rows.is_empty() {
                return Ok(());
            }
            for name in rows.into_iter().filter_map(|row| row.into_iter().next()?) {
                let sql = format!("SELECT pg_drop_replication_slot({})", literal(&name));
                // One that is still in use is dropped the next time.
                if let Err(error) = self.ask(&sql, LOOK_LIMIT).await {
                    tracing::debug!(%error, name, "drop the slot of a follower");
                }
            }
            if Instant::now() >= end {
                return Err(Error::new("followers are not cut off"));
            }
            sleep(CUT_LOOK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_slots_are_legal_and_differ() {
        assert_eq!(slot_name("db-1"), "outlast_db__1");
        assert_eq!(slot_name("db_1"), "outlast_db_5f_1");
        assert_eq!(slot_name("Db.é"), "outlast__44_b_2e__c3__a9_");
    }

    #[test]
    fn only_our_own_idle_slots_are_dropped() {
        let slot = |name: &str, active, wal_status| Slot {
            name: name.to_owned(),
            active,
            wal_status: Some(wal_status),
            restart_lsn: None,
        };
        let found = [
            slot("outlast_a", true, WalStatus::Reserved),
            slot("outlast_b", false, WalStatus::Lost),
            slot("outlast_gone", false, WalStatus::Reserved),
            slot("outlast_gone2", true, WalStatus::Reserved),
            slot("theirs", false, WalStatus::Lost),
        ];
        let wanted = ["a", "b", "c"].map(slot_name).into();
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        let expected = Plan {
            drop: names(&["outlast_b", "outlast_gone"]),
            make: names(&["outlast_b", "outlast_c"]),
            advance: Vec::new(),
        };
        let nowhere = BTreeMap::new();
        assert_eq!(plan(&wanted, &found, None, &nowhere), expected);
        // On a standby nobody moves them.
        let found = [
            Slot { restart_lsn: Some(Lsn(1)), ..slot("outlast_a", false, WalStatus::Reserved) },
            Slot { restart_lsn: Some(Lsn(9)), ..slot("outlast_b", false, WalStatus::Reserved) },
            Slot { restart_lsn: Some(Lsn(1)), ..slot("outlast_c", true, WalStatus::Reserved) },
        ];
        let advance = vec![("outlast_a".to_owned(), Lsn(5))];
        let expected = Plan { advance, ..Plan::default() };
        assert_eq!(plan(&wanted, &found, Some(Lsn(5)), &nowhere), expected);
        // On a primary, who follows a relay does not move it either.
        let elsewhere = [(slot_name("a"), Lsn(7))].into();
        let expected = Plan { advance: [(slot_name("a"), Lsn(7))].into(), ..Plan::default() };
        assert_eq!(plan(&wanted, &found, None, &elsewhere), expected);
    }

    #[test]
    fn a_relay_has_slots_of_one_reign_only() {
        let followers =
            Followers { relayed: ["e".to_owned()].into(), reign: 31, ..Followers::default() };
        assert_eq!(followers.slots(), [relay_slot_name(31, "e")].into());
        assert_eq!(relay_slot_name(31, "e"), "outlastr_1f_e");
        let slot = |name: &str, active| Slot {
            name: name.to_owned(),
            active,
            wal_status: Some(WalStatus::Reserved),
            restart_lsn: None,
        };
        let found = [slot("outlastr_1e_e", false), slot("outlastr_1e_d", true)];
        let expected = Plan {
            drop: ["outlastr_1e_e".to_owned()].into(),
            make: ["outlastr_1f_e".to_owned()].into(),
            ..Plan::default()
        };
        assert_eq!(plan(&followers.slots(), &found, None, &BTreeMap::new()), expected);
    }
}
