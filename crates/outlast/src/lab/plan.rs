//! What a lab is made of, worked out from a topology: machines, their places on the bridge, what each has for itself.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use outlast_core::topology::Topology;
use outlast_host::lab::Private;
use serde::{Deserialize, Serialize};

/// Machines of one lab. The carrier and the rules grow with the square of it.
pub(super) const NODES_MAX: usize = 64;
/// What the interface is called where the file does not say.
const INTERFACE: &str = "eth0";

/// A lab, as the keeper is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) name: String,
    pub(super) dir: PathBuf,
    pub(super) file: PathBuf,
    pub(super) program: PathBuf,
    pub(super) rootless: bool,
    /// The owner's process.
    pub(super) owner: u32,
    pub(super) nodes: Vec<Node>,
}

/// One machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) address: IpAddr,
    pub(super) interface: String,
    /// Its end of the cable, on the bridge.
    pub(super) port: String,
    pub(super) mac: [u8; 6],
    /// Directories that it has for itself: where it sees them, and their place below its own directory.
    pub(super) private: Vec<(PathBuf, PathBuf)>,
    /// Where the agent listens for its own command line.
    pub(super) data_dir: PathBuf,
}

impl Node {
    /// Where its data and its log lie.
    pub(super) fn dir(&self, lab: &Path) -> PathBuf {
        lab.join("nodes").join(&self.name)
    }

    pub(super) fn log(&self, lab: &Path) -> PathBuf {
        self.dir(lab).join("agent.log")
    }

    /// Where its data directory really lies.
    pub(super) fn data_place(&self, lab: &Path) -> Option<PathBuf> {
        let private = self.private_dirs(lab);
        private.into_iter().find(|private| private.at == self.data_dir).map(|private| private.from)
    }

    pub(super) fn private_dirs(&self, lab: &Path) -> Vec<Private> {
        let dir = self.dir(lab);
        let own = self.private.iter();
        own.map(|(at, below)| Private { at: at.clone(), from: dir.join(below) }).collect()
    }
}

/// The machines of a topology whose file lies in `file_dir`; or all reasons why it cannot be a lab.
pub(super) fn nodes(topology: &Topology, file_dir: &Path) -> Result<Vec<Node>, Vec<String>> {
    let mut faults = Vec::new();
    if topology.nodes.is_empty() {
        faults.push("the file has no [node.NAME], and a lab is made of nodes; add one for each machine, like [node.a] with address = \"10.0.0.1\"".to_owned());
    }
    if NODES_MAX < topology.nodes.len() {
        faults.push(format!(
            "the file has {} nodes; a lab has {NODES_MAX} at most",
            topology.nodes.len()
        ));
    }
    let data_dir = file_dir.join(&topology.cluster.data_dir);
    let mut nodes = Vec::new();
    for (number, (name, node)) in topology.nodes.iter().enumerate() {
        if let Some(why) = unusable(node.address) {
            faults.push(format!(
                "node.{name} has the address {}, {why}; give it one like 10.0.0.1",
                node.address
            ));
        }
        let interfaces: BTreeSet<&str> = topology
            .addresses
            .values()
            .filter(|address| address.nodes.contains(name))
            .map(|address| address.interface.as_str())
            .collect();
        if 1 < interfaces.len() {
            let names: Vec<&str> = interfaces.iter().copied().collect();
            faults.push(format!(
                "node.{name} would need the interfaces {}; a lab has one network, so name one in all [address.NAME]",
                names.join(" and ")
            ));
        }
        let [high, low] = u16::try_from(number).unwrap_or(u16::MAX).to_be_bytes();
        nodes.push(Node {
            name: name.clone(),
            address: node.address,
            interface: interfaces.first().unwrap_or(&INTERFACE).to_string(),
            port: format!("n{number}"),
            // Locally administered, and the same again when the machine is started again.
            mac: [0x02, b'l', b'a', b'b', high, low],
            private: private(topology, name, &data_dir),
            data_dir: data_dir.clone(),
        });
    }
    if faults.is_empty() { Ok(nodes) } else { Err(faults) }
}

/// Why a machine of a lab cannot have this address.
fn unusable(address: IpAddr) -> Option<&'static str> {
    if address.is_loopback() {
        return Some("which is the same machine everywhere");
    }
    if address.is_unspecified() || address.is_multicast() || address == IpAddr::from([255; 4]) {
        return Some("which no single machine can have");
    }
    None
}

/// The data directory, and others of the file that do not lie in it.
fn private(topology: &Topology, node: &str, data_dir: &Path) -> Vec<(PathBuf, PathBuf)> {
    let mut all = vec![(data_dir.to_owned(), PathBuf::from("data"))];
    for (name, postgres) in &topology.postgres {
        let at = PathBuf::from(&postgres.data_dir);
        let is_covered = all.iter().any(|(above, _)| at.starts_with(above));
        if postgres.nodes.iter().any(|n| n == node) && !is_covered {
            all.push((at, PathBuf::from(format!("postgres-{name}"))));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(text: &str) -> Result<Vec<Node>, Vec<String>> {
        let topology = outlast::file::parse("lab.toml", text).unwrap();
        nodes(&topology, Path::new("/project"))
    }

    #[test]
    fn each_node_has_its_own_place_on_the_bridge_and_its_own_data() {
        let nodes = planned(
            "[cluster]\ndata_dir = \"data\"\n[node.a]\naddress = \"10.0.0.1\"\n[node.b]\naddress = \"fd00::2\"\n[address.v]\nip = \"10.0.0.9/24\"\ninterface = \"ens3\"\nnodes = [\"b\"]\nvrrp_id = 1\n[postgres.p]\nnodes = [\"a\"]\nversion = 15\ndata_dir = \"/srv/p\"\n",
        )
        .unwrap();
        let data = (PathBuf::from("/project/data"), PathBuf::from("data"));
        assert_eq!(nodes[0].private, [data.clone(), ("/srv/p".into(), "postgres-p".into())]);
        assert_eq!(nodes[1].private, [data]);
        assert_eq!([&*nodes[0].interface, &*nodes[1].interface], ["eth0", "ens3"]);
        assert_ne!(nodes[0].mac, nodes[1].mac);
        assert_ne!(nodes[0].port, nodes[1].port);
    }

    #[test]
    fn all_that_keeps_a_file_from_being_a_lab_is_said() {
        let faults = planned("[cluster]\nname = \"x\"\n").unwrap_err();
        assert!(faults[0].contains("has no [node.NAME]"), "{faults:?}");
        let faults = planned(
            "[node.a]\naddress = \"127.0.0.1\"\n[node.b]\naddress = \"10.0.0.1\"\n[address.v]\nip = \"10.0.0.8/24\"\ninterface = \"eth0\"\nnodes = [\"b\"]\nvrrp_id = 1\n[address.w]\nip = \"10.0.0.9/24\"\ninterface = \"eth1\"\nnodes = [\"b\"]\nvrrp_id = 2\n",
        )
        .unwrap_err();
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[0].contains("node.a") && faults[1].contains("eth0 and eth1"), "{faults:?}");
    }
}
