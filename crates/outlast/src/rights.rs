//! What the processes of outlast may do beyond ordinary ones: each gives up at its start what nobody needs there.
//!
//! Which capabilities an agent needs is a question of its topology, its node and its user alone; docs/rights.md has the same
//! table for people.

use std::collections::BTreeMap;

use outlast_core::names::value_probes;
use outlast_core::topology::{Address, Check, Pool, Probe, Standby, Topology, Tracked};
use outlast_host::capabilities::{
    CapabilitySet, Kept, Programs, come_back_with_another_image, keep_only, names,
};

/// To put up an address with its guard in the kernel, to announce it, and to hear of others.
pub const FOR_ADDRESSES: CapabilitySet = CapabilitySet::NET_ADMIN.union(CapabilitySet::NET_RAW);

/// Ports below 1024, also of a file that comes later.
const FOR_PORTS: CapabilitySet = CapabilitySet::NET_BIND_SERVICE;

/// Who ends what a lease does not cover any more comes in time, and pipes stay large however many connections there are. The
/// agent has it to pass it on, too.
const FOR_DATA_PLANE: CapabilitySet =
    CapabilitySet::IPC_LOCK.union(CapabilitySet::SYS_NICE).union(CapabilitySet::SYS_RESOURCE);

/// What the file names may belong to anybody: certificates, data directories.
const FOR_FILES_AS_ROOT: CapabilitySet = CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::FOWNER);
/// If the agent has them, somebody has given them to it for that.
const FOR_FILES: CapabilitySet = CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::DAC_READ_SEARCH);

/// To start a program as another user.
const TO_BE_ANOTHER: CapabilitySet = CapabilitySet::SETUID.union(CapabilitySet::SETGID);

/// What PostgreSQL does not run without, where the agent is root and PostgreSQL is not.
const FOR_DATABASES: CapabilitySet =
    TO_BE_ANOTHER.union(CapabilitySet::KILL).union(CapabilitySet::CHOWN).union(FOR_FILES_AS_ROOT);

/// The keeper above PostgreSQL: it starts it as its user, ends it in time, and is the last to be ended by the kernel.
const FOR_KEEPER: CapabilitySet = TO_BE_ANOTHER
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::IPC_LOCK)
    .union(CapabilitySet::SYS_RESOURCE);

/// What a node's agent needs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Needs {
    /// What parts of the topology do not work without here.
    required: BTreeMap<String, CapabilitySet>,
    keep: CapabilitySet,
    /// The first part that starts programs which are not ours: nobody knows what they need, or what it takes to end them.
    starts_others: Option<String>,
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
        let mut keep = FOR_PORTS | FOR_DATA_PLANE | files;
        // Nobody else starts anything as another user, or has more to end than is its own.
        if is_root {
            let processes = topology.processes.iter();
            let processes =
                processes.filter(|(_, part)| part.nodes.is_empty() || here(&part.nodes));
            for (name, _) in processes.filter(|(_, part)| part.user.is_some()) {
                required.insert(format!("process.{name}"), TO_BE_ANOTHER);
            }
            for (name, _) in topology.postgres.iter().filter(|(_, part)| here(&part.nodes)) {
                required.insert(format!("postgres.{name}"), FOR_DATABASES);
                keep |= FOR_DATABASES | FOR_KEEPER;
            }
        }
        keep |= required.values().copied().collect();
        let starts_others = starts_others(topology, node);
        if starts_others.is_some() {
            keep = CapabilitySet::all();
        }
        Needs { required, keep, starts_others }
    }
}

/// The first part for which this node may have to run what somebody else has written. What PostgreSQL starts is its user's,
/// and inherits nothing.
fn starts_others(topology: &Topology, node: &str) -> Option<String> {
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
    let processes = topology.processes.iter();
    let processes = processes.filter(|(_, part)| part.nodes.is_empty() || here(&part.nodes));
    let services = topology.services.iter();
    let services = services.filter(|(_, part)| asks(&part.probe) || orders(&part.pool));
    let externals = topology.externals.iter();
    let externals = externals.filter(|(_, part)| part.probe.as_ref().is_some_and(asks));
    let zones = topology.dns.iter();
    let zones =
        zones.filter(|(_, zone)| value_probes(zone).into_values().any(|value| asks(&value.probe)));
    let addresses = topology.addresses.iter();
    let addresses = addresses.filter(|(_, part)| here(&part.nodes) && tracks(part));
    processes
        .map(|(name, _)| format!("process.{name}"))
        .chain(services.map(|(name, _)| format!("service.{name}")))
        .chain(externals.map(|(name, _)| format!("external.{name}")))
        .chain(zones.map(|(name, _)| format!("dns.{name}")))
        .chain(addresses.map(|(name, _)| format!("address.{name}")))
        .next()
}

/// What the agent may do, and what it could have done.
#[derive(Clone, Copy, Debug)]
pub struct Rights {
    had: CapabilitySet,
    has: CapabilitySet,
    is_root: bool,
    /// `outlast upgrade` takes up again what was given up.
    comes_back: bool,
}

impl Rights {
    /// Gives up what the agent of this node does not need. Before there is a second thread.
    pub(crate) fn of_agent(topology: &Topology, node: &str) -> Rights {
        let is_root = rustix::process::geteuid().is_root();
        let comes_back = come_back_with_another_image();
        let keep = Needs::of(topology, node, is_root).keep;
        let Some(Kept { had, has, trouble: _ }) = give_up(keep, Programs::Inheriting) else {
            // Nobody knows, so nothing is complained of: the kernel says what it does not allow.
            let all = CapabilitySet::all();
            return Rights { had: all, has: all, is_root, comes_back };
        };
        Rights { had, has, is_root, comes_back }
    }

    /// What is kept, for people.
    pub(crate) fn shown(self) -> String {
        let (has, all) = (names(self.has), names(CapabilitySet::all()));
        if has.is_empty() {
            "none".to_owned()
        } else if has == all {
            "all".to_owned()
        } else {
            has
        }
    }

    /// What is missing for this topology on this node, each with what to do.
    pub(crate) fn missing(self, topology: &Topology, node: &str) -> Vec<String> {
        let needs = Needs::of(topology, node, self.is_root);
        let required = needs.required.iter();
        let mut missing: Vec<String> = required
            .filter_map(|(part, set)| self.lacks(std::slice::from_ref(part), *set))
            .collect();
        if let Some(part) = needs.starts_others
            && self.has != self.had
        {
            missing.push(format!(
                "{part} starts programs, and this agent gave up what they may need when it started because the file named none: {}",
                self.to_take_up_again()
            ));
        }
        missing
    }

    /// What parts need that the agent lacks, and what to do.
    pub(crate) fn lacks(self, parts: &[String], needed: CapabilitySet) -> Option<String> {
        let lacks = needed.difference(self.has);
        if lacks.is_empty() {
            return None;
        }
        let need = if parts.len() == 1 { "needs" } else { "need" };
        let (parts, what) = (parts.join(" and "), names(lacks).replace(' ', " and "));
        if self.had.contains(lacks) {
            let how = self.to_take_up_again();
            return Some(format!(
                "{parts} {need} {what}, which this agent gave up when it started because nothing needed it: {how}"
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
        Some(format!("{parts} {need} {what}, which this agent does not have: {how}"))
    }

    fn to_take_up_again(self) -> &'static str {
        if self.comes_back {
            "`outlast upgrade` on this node takes that up again"
        } else {
            "restart the agent"
        }
    }
}

/// The data plane starts nothing, and is handed its sockets. At its end it removes its own from the data directory, which
/// may be somebody else's.
pub(crate) fn give_up_as_data_plane(dir_is_its_own: bool) {
    let to_tidy_up =
        if dir_is_its_own { CapabilitySet::empty() } else { CapabilitySet::DAC_OVERRIDE };
    give_up(FOR_DATA_PLANE | to_tidy_up, Programs::Never);
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
    const TRACKS: &str = "[address.edge]\nip = \"10.0.0.100/24\"\ninterface = \"eth0\"\nnodes = [\"a\", \"b\"]\ntrack = [{ script = [\"look\"] }]\n";
    const API: &str = "[process.api]\nnodes = [\"a\"]\ncommand = [\"api\"]\n";

    fn topology(parts: &str) -> Topology {
        let text = format!("{NODES}{parts}");
        crate::file::parse("t", &text).map_err(|complaints| complaints.to_string()).unwrap()
    }

    /// What an agent keeps, as words without their beginning.
    fn check(parts: &str, node: &str, is_root: bool, keeps: &str) {
        let needs = Needs::of(&topology(parts), node, is_root);
        let said = names(needs.keep).replace("CAP_", "").to_lowercase();
        assert_eq!(said, keeps, "{parts} as root: {is_root}");
        assert_eq!(needs.starts_others, None, "{parts}");
        assert!(needs.required.values().all(|set| needs.keep.contains(*set)), "{parts}");
    }

    /// An agent that keeps all, for the programs of this part.
    fn check_all(parts: &str, node: &str, part: &str) {
        for is_root in [true, false] {
            let needs = Needs::of(&topology(parts), node, is_root);
            assert_eq!(needs.keep, CapabilitySet::all(), "{parts} as root: {is_root}");
            assert_eq!(needs.starts_others.as_deref(), Some(part), "{parts}");
        }
    }

    #[test]
    fn an_agent_keeps_what_its_topology_needs_on_its_node() {
        let own = "dac_override fowner net_bind_service ipc_lock sys_nice sys_resource";
        let with_address =
            "dac_override fowner net_bind_service net_admin net_raw ipc_lock sys_nice sys_resource";
        let with_database = "chown dac_override fowner kill setgid setuid net_bind_service ipc_lock sys_ptrace sys_nice sys_resource";
        check(WEB, "a", true, own);
        check(EDGE, "a", true, with_address);
        check(EDGE, "c", true, own);
        let vrrp = format!("{EDGE}mode = \"vrrp\"\nvrrp_id = 51\n");
        check(&vrrp, "b", true, with_address);
        check(ORDERS, "a", true, with_database);
        check(ORDERS, "c", true, own);
        check(API, "b", true, own);
        check(TRACKS, "c", true, own);
    }

    #[test]
    fn an_agent_that_is_not_root_needs_nothing_to_be_somebody_else() {
        let own = "dac_override dac_read_search net_bind_service ipc_lock sys_nice sys_resource";
        check(WEB, "a", false, own);
        check(ORDERS, "a", false, own);
        check(
            EDGE,
            "a",
            false,
            "dac_override dac_read_search net_bind_service net_admin net_raw ipc_lock sys_nice sys_resource",
        );
    }

    #[test]
    fn an_agent_that_starts_what_others_have_written_keeps_all() {
        check_all(API, "a", "process.api");
        check_all(&format!("{API}user = \"www\"\n"), "a", "process.api");
        check_all(&format!("{ORDERS}{API}"), "a", "process.api");
        let asked = WEB.to_owned() + "probe = { command = [\"ask\", \"{backend}\"] }\n";
        check_all(&asked, "c", "service.web");
        let cold = "[service.billing]\nprimary = \"http://10.0.0.1:1\"\nbackup = \"http://10.0.0.2:1\"\nstandby = \"cold\"\nstart = [\"mount\"]\n";
        check_all(cold, "c", "service.billing");
        check_all(TRACKS, "a", "address.edge");
    }

    fn rights(had: CapabilitySet, has: CapabilitySet, is_root: bool) -> Rights {
        Rights { had, has, is_root, comes_back: is_root }
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
        assert_eq!(rights(CapabilitySet::all(), FOR_ADDRESSES, true).missing(&edge, "a"), [""; 0]);
    }

    #[test]
    fn what_several_parts_need_is_said_of_all_of_them() {
        let rights = rights(CapabilitySet::empty(), CapabilitySet::empty(), true);
        let said = rights.lacks(&["address.four".to_owned(), "address.six".to_owned()], FOR_PORTS);
        let said = said.unwrap();
        assert!(
            said.starts_with("address.four and address.six need CAP_NET_BIND_SERVICE,"),
            "{said}"
        );
    }

    #[test]
    fn programs_that_are_named_later_are_missing_what_was_given_up() {
        let api = topology(API);
        let all = CapabilitySet::all();
        assert_eq!(rights(all, all, true).missing(&api, "a"), [""; 0]);
        assert_eq!(rights(FOR_PORTS, FOR_PORTS, false).missing(&api, "a"), [""; 0]);
        assert_eq!(rights(all, FOR_PORTS, true).missing(&api, "b"), [""; 0]);
        let sealed = Rights { comes_back: false, ..rights(all, FOR_PORTS, true) };
        for (rights, how) in [
            (rights(all, FOR_PORTS, true), "`outlast upgrade` on this node takes that up again"),
            (sealed, "restart the agent"),
            (rights(FOR_FILES, FOR_PORTS, false), "restart the agent"),
        ] {
            let says = "process.api starts programs, and this agent gave up what they may need when it started because the file named none";
            assert_eq!(rights.missing(&api, "a"), [format!("{says}: {how}")]);
        }
        let edge = sealed.missing(&topology(EDGE), "a").concat();
        assert!(edge.ends_with("because nothing needed it: restart the agent"), "{edge}");
    }
}
