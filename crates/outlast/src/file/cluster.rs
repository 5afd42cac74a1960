//! Reads `[cluster]`, `[consensus]` and `[node.NAME]`.

use std::num::NonZeroU16;

use std::collections::BTreeMap;
use std::net::IpAddr;

use outlast_core::topology::{
    Cluster, ClusterTls, Consensus, ConsensusKind, EtcdTls, LinkPort, Node,
};

use super::Parts;
use super::complaint::quote;
use super::desk::Span;
use super::item::Item;
use super::section::Section;
use super::together::Notes;
use super::words;

pub(super) fn cluster(section: &Section<'_>, notes: &mut Notes) -> Option<Cluster> {
    let name = match section.item("name") {
        Some(item) => item.parsed(words::part_name),
        None => section.text("name"),
    };
    let data_dir = match section.item("data_dir") {
        Some(item) => item.parsed(words::path),
        None => section.text("data_dir"),
    };
    let tls = section.optional("tls", tls);
    let port = section.count("port").and_then(NonZeroU16::new).map(LinkPort);
    let proxy_threads = section.optional("proxy_threads", |item| {
        item.count().map(|n| u16::try_from(n).ok().and_then(NonZeroU16::new))
    });
    let face = match section.item("face") {
        Some(item) if item.as_text() == Some("off") => Some(None),
        Some(item) => item.listen().map(Some),
        None => Some(words::listen(&section.text("face")?).ok()),
    };
    if let Some(Some(address)) = face {
        match section.item("face") {
            Some(item) => {
                notes.listen(address, "`face` in [cluster]".to_owned(), item.span(), None);
            }
            None => notes.listen_by_default(address, "`face` in [cluster]"),
        }
    }
    Some(Cluster {
        name: name?,
        data_dir: data_dir?,
        tls: tls?,
        port: port?,
        face: face?,
        proxy_threads: proxy_threads?.flatten(),
    })
}

/// So many nodes vote, the first by name, unless the file says who: three survive the loss of one, and each more makes a
/// write wait for more disks.
const VOTERS_DEFAULT: usize = 3;

fn tls(item: Item<'_>) -> Option<ClusterTls> {
    let section = item.section()?;
    let [ca, cert, key] = ["ca", "cert", "key"].map(|name| section.text(name));
    let crl = section.optional("crl", |item| item.text().map(str::to_owned));
    Some(ClusterTls { ca: ca?, cert: cert?, key: key?, crl: crl? })
}

pub(super) fn consensus(section: &Section<'_>) -> Option<Consensus> {
    let voters = section.optional("voters", |item| item.distinct(Item::node_name));
    let endpoints =
        section.optional("endpoints", |item| item.distinct(|item| item.parsed(words::http_url)));
    let tls = section.optional("tls", etcd_tls);
    if section.word("kind")? == "etcd" {
        section.refuse(
            &["voters"],
            "goes with `kind = \"embedded\"`",
            "take it out: etcd has its own",
        );
        if !section.has("endpoints") {
            section.complain_of_missing("endpoints");
        }
        let (endpoints, tls) = (endpoints??, tls?);
        let secret = endpoints.iter().any(|url| url.starts_with("https://"));
        if secret && tls.is_none() {
            section.complain_of_missing("tls");
            return None;
        }
        if !secret {
            section.refuse(&["tls"], "goes with https:// endpoints", "write these so");
        }
        let kind = ConsensusKind::Etcd { endpoints, tls };
        return Some(Consensus { kind, voters: Vec::new() });
    }
    section.refuse(
        &["endpoints", "tls"],
        "goes with `kind = \"etcd\"`",
        "write that too, or take it out",
    );
    let first = || section.names.nodes.iter().take(VOTERS_DEFAULT).cloned().collect();
    Some(Consensus { kind: ConsensusKind::Embedded, voters: voters?.unwrap_or_else(first) })
}

fn etcd_tls(item: Item<'_>) -> Option<EtcdTls> {
    let section = item.section()?;
    let ca = section.text("ca");
    let [cert, key] =
        ["cert", "key"].map(|name| section.optional(name, |item| item.text().map(str::to_owned)));
    for (there, lacking) in [("cert", "key"), ("key", "cert")] {
        if section.has(there) && !section.has(lacking) {
            section.complain_of_missing(lacking);
            return None;
        }
    }
    Some(EtcdTls { ca: ca?, own: cert?.zip(key?) })
}

pub(super) fn node(section: &Section<'_>) -> Option<Node> {
    let address = match section.item("address") {
        Some(item) => item.ip().filter(|ip| is_reachable(&item, *ip)),
        None => None,
    };
    let port = section.optional("port", |item| {
        item.count().map(|port| u16::try_from(port).ok().and_then(NonZeroU16::new).map(LinkPort))
    });
    let region = section.optional("region", |item| item.text().map(str::to_owned));
    let zone = section.optional("zone", |item| item.text().map(str::to_owned));
    let reliability = section.reliability();
    let cost_per_month = section.optional("cost_per_month", |item| item.number());
    Some(Node {
        address: address?,
        port: port?.flatten(),
        region: region?,
        zone: zone?,
        reliability: reliability?,
        cost_per_month: cost_per_month?,
    })
}

fn is_reachable(item: &Item<'_>, ip: IpAddr) -> bool {
    let reachable = !ip.is_unspecified() && !ip.is_multicast();
    if !reachable {
        item.complain(
            format!("no machine can be reached at {ip}"),
            "write the address that other nodes use, like \"10.0.0.1\"",
        );
    }
    reachable
}

/// Notes where the agents listen for each other. One node has nobody to listen for.
pub(super) fn note_links(
    cluster: &Cluster,
    section: &Section<'_>,
    nodes: &Parts<'_, Node>,
    notes: &mut Notes,
) {
    if nodes.good().nth(1).is_none() {
        return;
    }
    let mut others = Vec::new();
    for (name, section, node) in nodes.good() {
        match node.port {
            Some(LinkPort(port)) => {
                let owner = format!("the agent (`port` in [node.{name}])");
                let span = Some(section.span_of("port"));
                notes.serve(port.get(), owner, span, vec![name.to_owned()]);
            }
            None => others.push(name.to_owned()),
        }
    }
    let span = section.item("port").map(|item| item.span());
    let owner = "the agent (`port` in [cluster])".to_owned();
    notes.serve(cluster.port.0.get(), owner, span, others);
}

/// Complains of nodes that claim the same address.
pub(super) fn complain_of_same_address(nodes: &Parts<'_, Node>) {
    let mut seen: BTreeMap<IpAddr, Span> = BTreeMap::new();
    for (_, section, node) in nodes.good() {
        let ip = node.address;
        let span = section.span_of("address");
        match seen.get(&ip) {
            Some(first) => section.desk.complain_with(
                span,
                format!("another node has the address {} already", quote(&ip.to_string())),
                "write the address of this machine",
                Some((first.clone(), "here".to_owned())),
            ),
            None => {
                seen.insert(ip, span);
            }
        }
    }
}
