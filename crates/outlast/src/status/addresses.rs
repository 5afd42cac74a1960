//! The part of `outlast status` that is about addresses that move.

use std::collections::BTreeMap;

use outlast::agent::face::address_status::AddressStatus;
use outlast::agent::face::router_status::{PeerStatus, RouterStatus};

use crate::output::{Ink, Paint, plain};

/// Who holds each address, and why this node cannot if it cannot.
pub(super) fn block(all: &BTreeMap<String, AddressStatus>, ink: Ink) -> String {
    let mut text = format!("{}\n", ink.on(Paint::Bold, "addresses"));
    for (name, address) in all {
        let ips = plain(&address.ips.join(", "));
        let held = match &address.holder {
            Some(holder) if address.here => format!("held by {}, here", plain(holder)),
            Some(holder) => format!("held by {}", plain(holder)),
            None => ink.on(Paint::Yellow, "nobody holds it"),
        };
        if let Some(router) = &address.router {
            text += &of_router(name, &ips, address, router, ink);
            continue;
        }
        let why = address.why.as_ref().map(|why| format!(": {}", plain(why))).unwrap_or_default();
        text += &format!("  {}  {ips}  {held} under epoch {}{why}\n", plain(name), address.epoch);
        if let Some(unagreed) = &address.unagreed {
            text += &format!("    {}\n", ink.on(Paint::Yellow, &plain(unagreed)));
        }
        text += &trouble(address, ink);
    }
    text
}

fn trouble(address: &AddressStatus, ink: Ink) -> String {
    let line = |trouble: &String| {
        let trouble = format!("this node: {}", plain(trouble));
        format!("    {}\n", ink.on(Paint::Yellow, &trouble))
    };
    address.trouble.as_ref().map(line).unwrap_or_default()
}

/// Who is active as this node hears it, this node's part, and what it has heard of the others.
fn of_router(
    name: &str,
    ips: &str,
    address: &AddressStatus,
    router: &RouterStatus,
    ink: Ink,
) -> String {
    let active = match &address.holder {
        Some(_) if address.here => "active here".to_owned(),
        Some(holder) => format!("active at {}", plain(holder)),
        None => ink.on(Paint::Yellow, "nobody active is heard"),
    };
    let own = match (&router.state, router.priority) {
        (Some(state), Some(priority)) => format!("; this node: {}, {priority}", plain(state)),
        (Some(state), None) => format!("; this node: {}", plain(state)),
        (None, _) => String::new(),
    };
    let mut text = format!("  {}  {ips}  VRRP {}: {active}{own}\n", plain(name), router.id);
    for (from, peer) in &router.peers {
        text += &format!("    {}\n", of_peer(from, peer));
    }
    text + &trouble(address, ink)
}

fn of_peer(from: &str, peer: &PeerStatus) -> String {
    let who = match &peer.node {
        Some(node) => format!("{} ({})", plain(node), plain(from)),
        None => plain(from),
    };
    let said = match peer.priority {
        0 => "gave it up".to_owned(),
        priority => format!("priority {priority}"),
    };
    format!("{who}: {said}, heard {:.1}s ago", peer.heard_seconds_ago)
}
