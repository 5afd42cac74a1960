//! What must be right before an agent runs: who this node is, a data directory of its own, sockets that are free.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use outlast_core::topology::Topology;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;

/// Ports from here on are free to all, unless the system says otherwise (ip(7): ip_unprivileged_port_start).
const FREE_PORTS: u16 = 1024;

/// The name of the one node of a file without `[node]`.
const ONLY_NODE: &str = "local";

/// How `outlast run` was called.
#[derive(Clone, Debug)]
pub struct Options {
    pub file: PathBuf,
    pub node: Option<String>,
}

/// The node that this machine is: as told, or the only one, or the one whose address is ours.
pub(super) fn who_am_i(topology: &Topology, told: Option<&str>) -> anyhow::Result<String> {
    let names: Vec<&str> = topology.nodes.keys().map(String::as_str).collect();
    if let Some(name) = told {
        if !names.is_empty() && !names.contains(&name) {
            bail!("there is no node `{name}` in the file; its nodes are {}", names.join(", "));
        }
        return Ok(name.to_owned());
    }
    if names.is_empty() {
        return Ok(ONLY_NODE.to_owned());
    }
    if let [only] = names.as_slice() {
        return Ok((*only).to_owned());
    }
    // An address can be bound only where it is configured.
    let ours = topology.nodes.iter().filter(|(_, n)| UdpSocket::bind((n.address, 0)).is_ok());
    let ours: Vec<&String> = ours.map(|(name, _)| name).collect();
    match ours.as_slice() {
        [one] => Ok((*one).clone()),
        [] => bail!(
            "no node of the file has an address of this machine; say which one it is: --node {}",
            names.join("|")
        ),
        several => {
            let several: Vec<&str> = several.iter().map(|s| s.as_str()).collect();
            bail!(
                "{} all have addresses of this machine; say which one it is: --node NAME",
                several.join(", ")
            )
        }
    }
}

/// Makes the data directory and takes it for this agent alone, for as long as the file is held.
pub(super) fn claim(data_dir: &Path) -> anyhow::Result<File> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(data_dir).with_context(|| {
        format!("create the data directory {}; set `data_dir` in [cluster] to a place that can be written", data_dir.display())
    })?;
    // It holds sockets that steer the node and tables with private keys: whoever made it, it is ours alone.
    std::fs::set_permissions(data_dir, std::fs::Permissions::from_mode(0o700)).with_context(
        || {
            format!(
                "keep others out of {}; it must belong to the user that runs the agent",
                data_dir.display()
            )
        },
    )?;
    let path = data_dir.join("agent.lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => bail!(
            "another agent runs with the data directory {}; stop it, or give this one another `data_dir`",
            data_dir.display()
        ),
        Err(errno) => Err(errno).with_context(|| format!("lock {}", path.display())),
    }
}

/// Opens one listening socket.
pub(super) fn listen(address: SocketAddr) -> std::io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Where clients are awaited, and by which part of the file.
fn listeners(topology: &Topology) -> impl Iterator<Item = (String, SocketAddr)> {
    let services = topology.services.iter();
    let services =
        services.filter_map(|(name, service)| Some((format!("service.{name}"), service.listen?)));
    services.chain(super::ports::listeners(topology))
}

/// Why a topology's listeners cannot be opened beside those that are held: the kernel gives no two sockets the same port of
/// overlapping addresses, and the old one may not be closed before the new one takes its clients.
pub(super) fn overlap(
    topology: &Topology,
    held: &BTreeMap<SocketAddr, Arc<OwnedFd>>,
) -> Option<String> {
    listeners(topology).find_map(|(name, new)| {
        let new = Some(new).filter(|address| !held.contains_key(address))?;
        let old = held.keys().find(|&&old| takes(new, old) || takes(old, new))?;
        Some(format!(
            "{name} cannot listen on {new} while {old} is open, which is in the same place; reload with another port first and with this one after that, or `outlast stop` and run it again"
        ))
    })
}

/// Whether a listener at `wide` would take what is sent to `narrow`.
fn takes(wide: SocketAddr, narrow: SocketAddr) -> bool {
    // Linux: [::] also takes IPv4, unless told otherwise, and we do not.
    wide.port() == narrow.port()
        && wide.ip().is_unspecified()
        && (wide.is_ipv6() || narrow.is_ipv4())
}

/// Opens the sockets that a topology needs and `held` does not have yet; all or none.
pub(super) fn open_missing(
    topology: &Topology,
    held: &BTreeMap<SocketAddr, Arc<OwnedFd>>,
) -> anyhow::Result<BTreeMap<SocketAddr, Arc<OwnedFd>>> {
    let mut opened = BTreeMap::new();
    for (name, address) in listeners(topology) {
        if held.contains_key(&address) {
            continue;
        }
        let socket = listen(address).with_context(|| {
            let low = if address.port() < FREE_PORTS {
                "; ports below 1024 need root or CAP_NET_BIND_SERVICE"
            } else {
                ""
            };
            format!("listen on {address} for {name}; end what uses it, or change its `listen`{low}")
        })?;
        opened.insert(address, Arc::new(socket));
    }
    Ok(opened)
}
