//! What the processes of outlast may do beyond ordinary ones: each gives up at its start what nobody needs there.
//!
//! Which capabilities an agent needs is a question of its topology, its node and its user alone; docs/rights.md has the same
//! table for people.

use std::collections::BTreeMap;

use outlast_core::names::value_probes;
use outlast_core::topology::{Address, Check, Pool, Probe, Standby, Topology, Tracked};
use outlast_host::capabilities::{CapabilitySet, Kept, Programs, keep_only, names};

/// To put up an address with its guard in the kernel, to announce it, and to hear of others.
pub const FOR_ADDRESSES: CapabilitySet = CapabilitySet::NET_ADMIN.union(CapabilitySet::NET_RAW);

/// Ports below 1024, also of a file that comes later.
const FOR_PORTS: CapabilitySet = CapabilitySet::NET_BIND_SERVICE;

/// Who ends what a lease does not cover any more comes in time; the data plane inherits it.
const TO_BE_IN_TIME: CapabilitySet = CapabilitySet::IPC_LOCK.union(CapabilitySet::SYS_NICE);

/// What the file names may belong to anybody: certificates, data directories.
const FOR_FILES_AS_ROOT: CapabilitySet = CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::FOWNER);
/// If the agent has them, somebody has given them to it for that.
const FOR_FILES: CapabilitySet = CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::DAC_READ_SEARCH);

/// To find and end what programs have left behind, whoever they have become and whatever they may do.
const TO_END_PROGRAMS: CapabilitySet = CapabilitySet::KILL.union(CapabilitySet::SYS_PTRACE);

/// To start a program as another user.
const TO_BE_ANOTHER: CapabilitySet = CapabilitySet::SETUID.union(CapabilitySet::SETGID);

/// What PostgreSQL does not run without, where the agent is root and PostgreSQL is not.
const FOR_DATABASES: CapabilitySet =
    TO_BE_ANOTHER.union(CapabilitySet::KILL).union(CapabilitySet::CHOWN).union(FOR_FILES_AS_ROOT);

/// The keeper above PostgreSQL: it starts it as its user, ends it in time, and is the last to be ended by the kernel.
const FOR_KEEPER: CapabilitySet = TO_BE_ANOTHER
    .union(TO_END_PROGRAMS)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::IPC_LOCK)
    .union(CapabilitySet::SYS_RESOURCE);

/// All that outlast may need under whatever topology; with the first, what it starts gives up the rest.
const EVER: CapabilitySet = CapabilitySet::SETPCAP
    .union(FOR_ADDRESSES)
    .union(FOR_PORTS)
    .union(TO_BE_IN_TIME)
    .union(FOR_DATABASES)
    .union(FOR_KEEPER);

/// What a node's agent needs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Needs {
    /// What parts of the topology do not work without here.
    required: BTreeMap<String, CapabilitySet>,
    keep: CapabilitySet,
    /// It starts programs that are not ours: nobody knows what they need.
    starts_others: bool,
}

impl Needs {
    /// Of the agent of this node.
    fn of(topology: &Topology, node: &str, is_root: bool) -> Needs {
        let mut required = BTreeMap::new();
        let here = |nodes: &[String]| nodes.iter().any(|name| name == node);
        for (name, _) in topology.addresses.iter().filter(|(_, address)| here(&address.nodes)) {
            required.insert(format!("address.{name}"), FOR_ADDRESSES);
        }
        let files = if is_root { FOR_FILES_AS_ROOT } else { FOR_FILES };
        let mut keep = FOR_PORTS | TO_BE_IN_TIME | files;
        let names_commands = names_commands(topology, node);
        let databases = topology.postgres.iter().filter(|(_, part)| here(&part.nodes));
        let databases: Vec<&String> = databases.map(|(name, _)| name).collect();
        // Nobody else starts anything as another user, or has more to end than is its own.
        if is_root {
            let processes = topology.processes.iter();
            let processes =
                processes.filter(|(_, part)| part.nodes.is_empty() || here(&part.nodes));
            for (name, _) in processes.filter(|(_, part)| part.user.is_some()) {
                required.insert(format!("process.{name}"), TO_BE_ANOTHER);
            }
            if names_commands {
                keep |= TO_END_PROGRAMS;
            }
            for name in &databases {
                required.insert(format!("postgres.{name}"), FOR_DATABASES);
                keep |= FOR_DATABASES | FOR_KEEPER;
            }
        }
        keep |= required.values().copied().collect();
        let starts_others = names_commands || !databases.is_empty();
        Needs { required, keep, starts_others }
    }
}

/// Whether this node may have to run what somebody else has written.
fn names_commands(topology: &Topology, node: &str) -> bool {
    let here = |nodes: &[String]| nodes.iter().any(|name| name == node);
    let asks = |probe: &Probe| matches!(probe.check, Check::Command(_));
    let tracks = |address: &Address| {
        address.track.iter().any(|track| matches!(track.what, Tracked::Script { .. }))
    };
    let orders = |pool: &Pool| match pool {
        Pool::Pair(pair) => match &pair.standby {
            Standby::Hot => false,
            Standby::Warm { activate } => activate.is_some(),
            Standby::Cold { .. } => true,
        },
        Pool::Balanced { .. } => false,
    };
    let mut processes = topology.processes.values();
    let mut services = topology.services.values();
    let mut externals = topology.externals.values().filter_map(|external| external.probe.as_ref());
    let mut values = topology.dns.values().flat_map(|zone| value_probes(zone).into_values());
    let mut addresses = topology.addresses.values().filter(|address| here(&address.nodes));
    processes.any(|process| process.nodes.is_empty() || here(&process.nodes))
        || services.any(|service| asks(&service.probe) || orders(&service.pool))
        || externals.any(asks)
        || values.any(|value| asks(&value.probe))
        || addresses.any(tracks)
}

/// What the agent may do, and what it could have done.
#[derive(Clone, Copy, Debug)]
pub struct Rights {
    had: CapabilitySet,
    has: CapabilitySet,
    is_root: bool,
    /// Programs that are root's get no more than outlast itself may ever need.
    limits_programs: bool,
}

impl Rights {
    /// Gives up what the agent of this node does not need. Before there is a second thread.
    pub(crate) fn of_agent(topology: &Topology, node: &str) -> Rights {
        let is_root = rustix::process::geteuid().is_root();
        let Needs { keep, starts_others, .. } = Needs::of(topology, node, is_root);
        // Not less than what a changed topology may need: root's next image takes it up again (`outlast upgrade`).
        let programs = if starts_others { Programs::AsBefore } else { Programs::AtMost(EVER) };
        let Some(Kept { had, has, limits_programs, trouble: _ }) = give_up(keep, programs) else {
            // Nobody knows, so nothing is complained of: the kernel says what it does not allow.
            let all = CapabilitySet::all();
            return Rights { had: all, has: all, is_root, limits_programs: false };
        };
        Rights { had, has, is_root, limits_programs }
    }

    /// What is kept, for people.
    pub(crate) fn shown(self) -> String {
        let names = names(self.has);
        if names.is_empty() { "none".to_owned() } else { names }
    }

    /// What is missing for this topology on this node, each with what to do.
    pub(crate) fn missing(self, topology: &Topology, node: &str) -> Vec<String> {
        let needs = Needs::of(topology, node, self.is_root);
        let required = needs.required.iter();
        let mut missing: Vec<String> =
            required.filter_map(|(part, set)| self.lacks(part, *set)).collect();
        if needs.starts_others && self.limits_programs {
            missing.push(
                "the file named no programs when this agent started, so that those it names now get few capabilities: restart the agent if they need more"
                    .to_owned(),
            );
        }
        missing
    }

    /// What a part needs and the agent lacks, and what to do.
    pub(crate) fn lacks(self, part: &str, needed: CapabilitySet) -> Option<String> {
        let lacks = needed.difference(self.has);
        if lacks.is_empty() {
            return None;
        }
        let what = names(lacks).replace(' ', " and ");
        if self.had.contains(lacks) {
            let how = if self.is_root {
                "`outlast upgrade` on this node takes that up again"
            } else {
                "restart the agent"
            };
            return Some(format!(
                "{part} needs {what}, which this agent gave up when it started because nothing needed it: {how}"
            ));
        }
        let names = names(needed);
        let how = if self.is_root {
            "it is root without that, so look at what starts it (systemd: `CapabilityBoundingSet`; a container: `--cap-add`)"
                .to_owned()
        } else {
            format!(
                "give it to the agent (systemd: `AmbientCapabilities={names}`), or run it as root"
            )
        };
        Some(format!("{part} needs {what}, which this agent does not have: {how}"))
    }
}

/// The data plane starts nothing, and is handed its sockets.
pub(crate) fn give_up_as_data_plane() {
    give_up(TO_BE_IN_TIME, Programs::Never);
}

/// A guardian takes addresses away.
pub(crate) fn give_up_as_guardian() {
    give_up(CapabilitySet::NET_ADMIN, Programs::Never);
}

/// PostgreSQL inherits nothing of the keeper above it; what it starts is not ours.
pub(crate) fn give_up_as_keeper() {
    let is_root = rustix::process::geteuid().is_root();
    let keep = if is_root { FOR_KEEPER } else { FOR_KEEPER.difference(TO_BE_ANOTHER) };
    give_up(keep, Programs::WithoutInheritance);
}

/// `None` if not even the kernel says what there is.
fn give_up(keep: CapabilitySet, programs: Programs) -> Option<Kept> {
    let kept = keep_only(keep, programs)
        .inspect_err(|error| tracing::warn!(%error, "give up capabilities; all are kept"))
        .ok()?;
    if let Some(error) = &kept.trouble {
        tracing::warn!(%error, kept = names(kept.has), "give up capabilities; more than these may be left");
    }
    Some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODES: &str = r#"
[cluster]
name = "t"
[node.a]
address = "10.0.0.1"
[node.b]
address = "10.0.0.2"
[node.c]
address = "10.0.0.3"
"#;
    const WEB: &str = "[service.web]\nlisten = \"0.0.0.0:80\"\nbackends = [\"http://10.0.0.9\"]\n";
    const EDGE: &str =
        "[address.edge]\nip = \"10.0.0.100/24\"\ninterface = \"eth0\"\nnodes = [\"a\", \"b\"]\n";
    const ORDERS: &str =
        "[postgres.orders]\nversion = 16\nnodes = [\"a\", \"b\"]\ndata_dir = \"/srv/orders\"\n";
    const API: &str = "[process.api]\nnodes = [\"a\"]\ncommand = [\"api\"]\n";

    fn topology(parts: &str) -> Topology {
        let text = format!("{NODES}{parts}");
        crate::file::parse("t", &text).map_err(|complaints| complaints.to_string()).unwrap()
    }

    /// What an agent keeps, as words without their beginning, and whether it starts others' programs.
    fn check(parts: &str, node: &str, is_root: bool, keeps: &str, starts_others: bool) {
        let needs = Needs::of(&topology(parts), node, is_root);
        let said = names(needs.keep).replace("CAP_", "").to_lowercase();
        assert_eq!(said, keeps, "{parts} as root: {is_root}");
        assert_eq!(needs.starts_others, starts_others, "{parts}");
        assert!(needs.required.values().all(|set| needs.keep.contains(*set)), "{parts}");
        assert!(EVER.contains(needs.keep.difference(FOR_FILES)), "{parts}");
    }

    #[test]
    fn an_agent_keeps_what_its_topology_needs_on_its_node() {
        let own = "dac_override fowner net_bind_service ipc_lock sys_nice";
        let with_address =
            "dac_override fowner net_bind_service net_admin net_raw ipc_lock sys_nice";
        let with_programs =
            "dac_override fowner kill net_bind_service ipc_lock sys_ptrace sys_nice";
        let with_database = "chown dac_override fowner kill setgid setuid net_bind_service ipc_lock sys_ptrace sys_nice sys_resource";
        check(WEB, "a", true, own, false);
        check(EDGE, "a", true, with_address, false);
        check(EDGE, "c", true, own, false);
        let vrrp = format!("{EDGE}mode = \"vrrp\"\nvrrp_id = 51\n");
        check(&vrrp, "b", true, with_address, false);
        check(ORDERS, "a", true, with_database, true);
        check(ORDERS, "c", true, own, false);
        check(API, "a", true, with_programs, true);
        check(API, "b", true, own, false);
        let asked = WEB.to_owned() + "probe = { command = [\"ask\", \"{backend}\"] }\n";
        check(&asked, "c", true, with_programs, true);
        let cold = "[service.billing]\nprimary = \"http://10.0.0.1:1\"\nbackup = \"http://10.0.0.2:1\"\nstandby = \"cold\"\nstart = [\"mount\"]\n";
        check(cold, "c", true, with_programs, true);
        let tracks = format!("{EDGE}track = [{{ script = [\"look\"] }}]\n");
        check(
            &tracks,
            "a",
            true,
            "dac_override fowner kill net_bind_service net_admin net_raw ipc_lock sys_ptrace sys_nice",
            true,
        );
        check(&tracks, "c", true, own, false);
        let as_user = format!("{API}user = \"www\"\n");
        check(
            &as_user,
            "a",
            true,
            "dac_override fowner kill setgid setuid net_bind_service ipc_lock sys_ptrace sys_nice",
            true,
        );
    }

    #[test]
    fn an_agent_that_is_not_root_needs_nothing_to_be_somebody_else() {
        let own = "dac_override dac_read_search net_bind_service ipc_lock sys_nice";
        check(WEB, "a", false, own, false);
        check(ORDERS, "a", false, own, true);
        check(&format!("{API}user = \"www\"\n"), "a", false, own, true);
        check(
            EDGE,
            "a",
            false,
            "dac_override dac_read_search net_bind_service net_admin net_raw ipc_lock sys_nice",
            false,
        );
    }

    fn rights(had: CapabilitySet, has: CapabilitySet, is_root: bool) -> Rights {
        Rights { had, has, is_root, limits_programs: false }
    }

    #[test]
    fn what_is_missing_is_said_with_what_to_do() {
        let (none, raw) = (CapabilitySet::empty(), CapabilitySet::NET_RAW);
        let edge = topology(EDGE);
        for (rights, says) in [
            (
                rights(none, none, false),
                "address.edge needs CAP_NET_ADMIN and CAP_NET_RAW, which this agent does not have: give it to the agent (systemd: `AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW`), or run it as root",
            ),
            (
                rights(raw, raw, false),
                "address.edge needs CAP_NET_ADMIN, which this agent does not have: give it to the agent (systemd: `AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW`), or run it as root",
            ),
            (
                rights(raw, raw, true),
                "address.edge needs CAP_NET_ADMIN, which this agent does not have: it is root without that, so look at what starts it (systemd: `CapabilityBoundingSet`; a container: `--cap-add`)",
            ),
            (
                rights(FOR_ADDRESSES, none, true),
                "address.edge needs CAP_NET_ADMIN and CAP_NET_RAW, which this agent gave up when it started because nothing needed it: `outlast upgrade` on this node takes that up again",
            ),
            (
                rights(FOR_ADDRESSES, none, false),
                "address.edge needs CAP_NET_ADMIN and CAP_NET_RAW, which this agent gave up when it started because nothing needed it: restart the agent",
            ),
        ] {
            assert_eq!(rights.missing(&edge, "a"), [says]);
            assert_eq!(rights.missing(&edge, "c"), [""; 0]);
        }
        assert_eq!(rights(EVER, FOR_ADDRESSES, true).missing(&edge, "a"), [""; 0]);
    }

    #[test]
    fn programs_that_are_named_later_may_have_too_little() {
        let rights =
            |limits_programs| Rights { had: EVER, has: EVER, is_root: true, limits_programs };
        let api = topology(API);
        assert_eq!(rights(false).missing(&api, "a"), [""; 0]);
        assert!(
            rights(true).missing(&api, "a")[0].ends_with("restart the agent if they need more")
        );
        assert_eq!(rights(true).missing(&api, "b"), [""; 0]);
    }
}
