//! What agent, keeper and PostgreSQL may do beyond ordinary programs. That it is enough is what all other tests show.

use std::fs;

use rustix::process::geteuid;
use rustix::thread::CapabilitySet as Set;

use crate::are_real;
use crate::cluster::{Cluster, THREE};

/// docs/rights.md has the same table.
const OF_KEEPER: Set = Set::SETUID
    .union(Set::SETGID)
    .union(Set::KILL)
    .union(Set::SYS_PTRACE)
    .union(Set::DAC_OVERRIDE)
    .union(Set::IPC_LOCK)
    .union(Set::SYS_RESOURCE);
const OF_AGENT: Set = OF_KEEPER
    .union(Set::CHOWN)
    .union(Set::FOWNER)
    .union(Set::SYS_NICE)
    .union(Set::NET_BIND_SERVICE);

fn set(pid: i32, name: &str) -> Set {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    Set::from_bits_retain(u64::from_str_radix(field.trim(), 16).unwrap())
}

#[test]
fn agent_and_keeper_keep_what_they_need_for_postgresql_and_that_inherits_nothing() {
    if !are_real() {
        return;
    }
    let cluster = Cluster::serving(THREE);
    let all = set(rustix::process::getpid().as_raw_nonzero().get(), "CapBnd:");
    for node in THREE.nodes {
        let agent = cluster.agent(node);
        let keeper = cluster.keeper(node)[0];
        let postmaster = cluster.postmaster(node).unwrap();
        for of in ["CapPrm:", "CapEff:"] {
            if geteuid().is_root() {
                assert_eq!(set(agent, of), OF_AGENT & all, "the agent of {node}");
                assert_eq!(set(keeper, of), OF_KEEPER & all, "the keeper of {node}");
            }
            assert_eq!(set(postmaster, of), Set::empty(), "PostgreSQL of {node}");
        }
        // What PostgreSQL starts is somebody else's, and may be `sudo`.
        assert_eq!(set(postmaster, "CapBnd:"), all, "programs of {node}");
    }
}
