//! Physical replication slots: one for each peer, on the primary and on standbys. Only ours are touched.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use crate::error::{Doing, Error};
use crate::look::{Role, Slot, WalStatus};
use crate::lsn::Lsn;
use crate::postgres::Postgres;
use crate::sql::{Connection, literal};

/// What the names of our slots begin with.
const PREFIX: &str = "outlast_";
/// To make or drop a slot writes a small file.
const SLOT_LIMIT: Duration = Duration::from_secs(10);

/// Bytes of log that an unused slot of a standby keeps for its node: by so much may that lag when this one is promoted.
const STANDBY_KEEPS: u64 = 256 << 20;

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

/// What has to be done to the slots.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    /// Dropped: those of nodes that are gone, and those that have lost their log.
    drop: Vec<String>,
    make: Vec<String>,
    /// Those of a standby, which nobody uses and which would keep its log for ever.
    advance: Vec<(String, Lsn)>,
}

/// `replayed`, of a standby, is how far it has come.
fn plan(wanted: &BTreeSet<String>, found: &[Slot], replayed: Option<Lsn>) -> Plan {
    let lost = |slot: &&Slot| slot.wal_status == Some(WalStatus::Lost);
    let ours = found.iter().filter(|slot| slot.name.starts_with(PREFIX) && !slot.active);
    let (mut plan, mut kept) = (Plan::default(), BTreeSet::new());
    for slot in ours {
        if !wanted.contains(&slot.name) || lost(&slot) {
            plan.drop.push(slot.name.clone());
        }
    }
    kept.extend(found.iter().map(|slot| &slot.name).filter(|name| !plan.drop.contains(name)));
    plan.make = wanted.iter().filter(|name| !kept.contains(name)).cloned().collect();
    let keep = replayed.map(|replayed| Lsn(replayed.0.saturating_sub(STANDBY_KEEPS)));
    for slot in found.iter().filter(|slot| wanted.contains(&slot.name) && !slot.active) {
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
        let seen = self.look().await.doing("ensure the slots")?;
        let wanted = nodes.iter().map(|node| slot_name(node)).collect();
        let replayed = match seen.role {
            Role::Primary { .. } => None,
            Role::Standby { replayed, .. } => replayed,
        };
        let plan = plan(&wanted, &seen.slots, replayed);
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
        assert_eq!(plan(&wanted, &found, None), expected);
        // On a standby nobody moves them.
        let found = [
            Slot { restart_lsn: Some(Lsn(1)), ..slot("outlast_a", false, WalStatus::Reserved) },
            Slot { restart_lsn: Some(Lsn(9)), ..slot("outlast_b", false, WalStatus::Reserved) },
            Slot { restart_lsn: Some(Lsn(1)), ..slot("outlast_c", true, WalStatus::Reserved) },
        ];
        let advance = vec![("outlast_a".to_owned(), Lsn(5))];
        let expected = Plan { advance, ..Plan::default() };
        assert_eq!(plan(&wanted, &found, Some(Lsn(STANDBY_KEEPS + 5))), expected);
    }
}
