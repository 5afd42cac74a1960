//! What only the whole file can show: listeners in each other's way, parts that need themselves.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use outlast_core::topology::{LISTENERS_MAX, PartRef};

use super::desk::{Desk, Span};

/// What parts say about themselves that others may contradict.
#[derive(Debug, Default)]
pub(super) struct Notes {
    listeners: Vec<Listener>,
    needs: BTreeMap<PartRef, Vec<(PartRef, Span)>>,
}

#[derive(Debug)]
struct Listener {
    address: SocketAddr,
    owner: String,
    /// `None`: nobody wrote it, it is a default.
    span: Option<Span>,
    /// `None`: on all nodes.
    nodes: Option<Vec<String>>,
    /// Zones share one name server: the same address twice is one listener.
    shared: bool,
}

impl Notes {
    pub(super) fn listen(
        &mut self,
        address: SocketAddr,
        owner: String,
        span: Span,
        nodes: Option<Vec<String>>,
    ) {
        self.listeners.push(Listener { address, owner, span: Some(span), nodes, shared: false });
    }

    /// A listener that nobody asked for by name.
    pub(super) fn listen_by_default(&mut self, address: SocketAddr, owner: &str) {
        let owner = owner.to_owned();
        self.listeners.push(Listener { address, owner, span: None, nodes: None, shared: false });
    }

    pub(super) fn listen_for_dns(&mut self, address: SocketAddr, owner: String, span: Span) {
        self.listeners.push(Listener {
            address,
            owner,
            span: Some(span),
            nodes: None,
            shared: true,
        });
    }

    /// Notes what a part needs; gives it back if `whole`.
    pub(super) fn needs(
        &mut self,
        me: PartRef,
        (needs, whole): (Vec<(PartRef, Span)>, bool),
    ) -> Option<Vec<PartRef>> {
        let parts = needs.iter().map(|(part, _)| part.clone()).collect();
        self.needs.insert(me, needs);
        whole.then_some(parts)
    }

    pub(super) fn check(mut self, desk: &Desk<'_>) {
        self.listeners.sort_by_key(|listener| listener.span.as_ref().map(|span| span.start));
        complain_of_listeners(desk, &self.listeners);
        complain_of_too_many(desk, &self.listeners);
        complain_of_cycles(desk, &self.needs);
    }
}

/// Complains of each listener that is in the way of an earlier one.
fn complain_of_listeners(desk: &Desk<'_>, listeners: &[Listener]) {
    let mut ports: BTreeMap<u16, BTreeMap<IpAddr, Vec<&Listener>>> = BTreeMap::new();
    for listener in listeners {
        let ip = listener.address.ip();
        let earlier = ports.entry(listener.address.port()).or_default();
        let near = [ip, Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let in_the_way = |other: &&&Listener| are_in_the_way(listener, other);
        let other = if ip.is_unspecified() {
            earlier.values().flatten().find(in_the_way)
        } else {
            near.iter().filter_map(|ip| earlier.get(ip)).flatten().find(in_the_way)
        };
        match other {
            Some(other) => complain_of_listener(desk, listener, other),
            None => earlier.entry(ip).or_default().push(listener),
        }
    }
}

/// Complains of the first service that a proxy could not be given a socket for.
fn complain_of_too_many(desk: &Desk<'_>, listeners: &[Listener]) {
    let mut services = listeners.iter().filter(|l| l.owner.starts_with("[service."));
    let count = services.clone().count();
    let Some(span) = services.nth(LISTENERS_MAX).and_then(|first| first.span.clone()) else {
        return;
    };
    desk.complain(
        span,
        format!("{count} services listen, and one agent can run {LISTENERS_MAX} that do"),
        "move some to a file of their own, with a `data_dir` and an agent of its own",
    );
}

fn are_in_the_way(a: &Listener, b: &Listener) -> bool {
    let (ip, other) = (a.address.ip(), b.address.ip());
    // Linux: [::] also takes IPv4, unless told otherwise.
    let takes_all =
        |ip: IpAddr, other: IpAddr| ip.is_unspecified() && (ip.is_ipv6() || other.is_ipv4());
    let same_place = ip == other || takes_all(ip, other) || takes_all(other, ip);
    let same_node = || match (&a.nodes, &b.nodes) {
        (Some(a), Some(b)) => a.is_empty() || b.is_empty() || a.iter().any(|node| b.contains(node)),
        (None, _) | (_, None) => true,
    };
    let one_name_server = a.shared && b.shared && ip == other;
    same_place && !one_name_server && same_node()
}

fn complain_of_listener(desk: &Desk<'_>, listener: &Listener, other: &Listener) {
    let Some(span) = listener.span.clone() else { return };
    let address = other.address;
    let message = if address == listener.address {
        format!("{} listens on {address} already", other.owner)
    } else {
        format!(
            "{} listens on {address} already, which takes {} too",
            other.owner, listener.address
        )
    };
    let also = other.span.clone().map(|span| (span, "here".to_owned()));
    let help = match also {
        Some(_) => "write another port",
        None => "write another port, or another `face` in [cluster]",
    };
    desk.complain_with(span, message, help, also);
}

/// How far a part has been followed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// On the way that is being followed.
    Open,
    Done,
}

/// Complains of each need that closes a circle. Walks without recursion: a file may have a long chain.
fn complain_of_cycles(desk: &Desk<'_>, needs: &BTreeMap<PartRef, Vec<(PartRef, Span)>>) {
    let mut marks: BTreeMap<&PartRef, Mark> = BTreeMap::new();
    for start in needs.keys() {
        if marks.contains_key(start) {
            continue;
        }
        let mut way: Vec<(&PartRef, usize)> = vec![(start, 0)];
        marks.insert(start, Mark::Open);
        while let Some((part, next)) = way.last_mut() {
            let part: &PartRef = part;
            let Some((need, span)) = needs.get(part).and_then(|needs| needs.get(*next)) else {
                marks.insert(part, Mark::Done);
                way.pop();
                continue;
            };
            *next += 1;
            match marks.get(need) {
                Some(Mark::Done) => {}
                Some(Mark::Open) if desk.is_full() => {}
                Some(Mark::Open) => {
                    let from = way.iter().position(|(part, _)| *part == need).unwrap_or(0);
                    let circle: Vec<&PartRef> = way[from..].iter().map(|(part, _)| *part).collect();
                    complain_of_cycle(desk, &circle, span);
                }
                None => {
                    marks.insert(need, Mark::Open);
                    way.push((need, 0));
                }
            }
        }
    }
}

fn complain_of_cycle(desk: &Desk<'_>, circle: &[&PartRef], span: &Span) {
    /// Of a longer circle the middle is left out.
    const SHOWN_MAX: usize = 10;
    let Some(first) = circle.first() else { return };
    let shown =
        |parts: &[&PartRef]| -> Vec<String> { parts.iter().map(ToString::to_string).collect() };
    let mut names = if circle.len() <= SHOWN_MAX {
        shown(circle)
    } else {
        let (head, tail) = (&circle[..SHOWN_MAX / 2], &circle[circle.len() - SHOWN_MAX / 2..]);
        [shown(head), vec!["…".to_owned()], shown(tail)].concat()
    };
    names.push(first.to_string());
    desk.complain(
        span.clone(),
        format!("{first} needs itself: {}", names.join(" → ")),
        "take this need out, or move it to `may_use`",
    );
}
