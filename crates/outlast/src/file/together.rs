//! What only the whole file can show: listeners and directories in each other's way, parts that need themselves.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use outlast_core::topology::{LISTENERS_MAX, PartRef};

use super::complaint::quote;
use super::desk::{Desk, Span};

/// What parts say about themselves that others may contradict.
#[derive(Debug, Default)]
pub(super) struct Notes {
    listeners: Vec<Listener>,
    servers: Vec<Server>,
    directories: Vec<Directory>,
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

/// What listens on the own address of each of its nodes: a database's PostgreSQL, the agents towards each other.
#[derive(Debug)]
struct Server {
    port: u16,
    owner: String,
    /// `None`: nobody wrote it, it is a default.
    span: Option<Span>,
    nodes: Vec<String>,
}

/// Where a database has its data.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    database: String,
    span: Span,
    nodes: Vec<String>,
}

impl Listener {
    fn is_on(&self, node: &str) -> bool {
        let nodes = self.nodes.as_deref().unwrap_or_default();
        nodes.is_empty() || nodes.iter().any(|name| name == node)
    }
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

    /// A listener on the own address of each of these nodes.
    pub(super) fn serve(
        &mut self,
        port: u16,
        owner: String,
        span: Option<Span>,
        nodes: Vec<String>,
    ) {
        self.servers.push(Server { port, owner, span, nodes });
    }

    /// A directory that a database has for itself on these nodes.
    pub(super) fn keep_data(
        &mut self,
        path: PathBuf,
        database: &str,
        span: Span,
        nodes: Vec<String>,
    ) {
        self.directories.push(Directory { path, database: database.to_owned(), span, nodes });
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

    /// `addresses`: of all nodes.
    pub(super) fn check(mut self, desk: &Desk<'_>, addresses: &BTreeMap<&str, IpAddr>) {
        self.listeners.sort_by_key(|listener| start_of(listener.span.as_ref()));
        self.servers.sort_by_key(|server| start_of(server.span.as_ref()));
        self.directories.sort_by_key(|directory| directory.span.start);
        complain_of_listeners(desk, &self.listeners);
        complain_of_servers(desk, &self.servers, &self.listeners, addresses);
        complain_of_directories(desk, &self.directories);
        complain_of_too_many(desk, &self.listeners);
        complain_of_cycles(desk, &self.needs);
    }
}

/// Where something stands in the file; defaults come first.
fn start_of(span: Option<&Span>) -> Option<usize> {
    span.map(|span| span.start)
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
    let same_place = takes(ip, other) || takes(other, ip);
    let same_node = || match (&a.nodes, &b.nodes) {
        (Some(a), Some(b)) => share_a_node(a, b),
        (None, _) | (_, None) => true,
    };
    let one_name_server = a.shared && b.shared && ip == other;
    same_place && !one_name_server && same_node()
}

/// Whether a listener at `ip` is in the way of one at `other`.
fn takes(ip: IpAddr, other: IpAddr) -> bool {
    // Linux: [::] also takes IPv4, unless told otherwise.
    ip == other || ip.is_unspecified() && (ip.is_ipv6() || other.is_ipv4())
}

/// A file without nodes is about one machine.
fn share_a_node(a: &[String], b: &[String]) -> bool {
    a.is_empty() || b.is_empty() || a.iter().any(|node| b.contains(node))
}

/// `already` of what listens at `theirs`, for what would listen at `ours`.
fn listens_already(owner: &str, theirs: SocketAddr, ours: SocketAddr) -> String {
    if theirs == ours {
        format!("{owner} listens on {theirs} already")
    } else {
        format!("{owner} listens on {theirs} already, which takes {ours} too")
    }
}

/// Complains of each server that is in the way of an earlier one or of a listener, whichever of the two comes later.
fn complain_of_servers(
    desk: &Desk<'_>,
    servers: &[Server],
    listeners: &[Listener],
    addresses: &BTreeMap<&str, IpAddr>,
) {
    let mut ports: BTreeMap<u16, BTreeMap<IpAddr, (&str, &Server)>> = BTreeMap::new();
    for server in servers {
        let taken = ports.entry(server.port).or_default();
        let places = || {
            let nodes = server.nodes.iter().map(String::as_str);
            nodes.filter_map(|node| Some((*addresses.get(node)?, node)))
        };
        match places().find_map(|(ip, _)| Some((ip, taken.get(&ip)?))) {
            Some((ip, (_, other))) => complain_of_server(desk, server, other, ip),
            None => taken.extend(places().map(|(ip, node)| (ip, (node, server)))),
        }
    }
    for listener in listeners {
        let ip = listener.address.ip();
        let Some(taken) = ports.get(&listener.address.port()) else { continue };
        let is_taken =
            |&(&at, (node, _)): &(&IpAddr, &(&str, &Server))| takes(ip, at) && listener.is_on(node);
        let other = if ip.is_unspecified() {
            taken.iter().find(is_taken)
        } else {
            taken.get_key_value(&ip).filter(is_taken)
        };
        if let Some((&at, (_, server))) = other {
            complain_of_listener_and_server(desk, listener, server, at);
        }
    }
}

fn complain_of_server(desk: &Desk<'_>, server: &Server, other: &Server, ip: IpAddr) {
    let Some(span) = server.span.clone() else { return };
    let address = SocketAddr::new(ip, server.port);
    let also = here(other.span.clone());
    let help = match also {
        Some(_) => "write another `port`",
        None => "write another `port` here, or in [cluster]",
    };
    desk.complain_with(span, listens_already(&other.owner, address, address), help, also);
}

/// The server would be at the address `ip` of a node.
fn complain_of_listener_and_server(
    desk: &Desk<'_>,
    listener: &Listener,
    server: &Server,
    ip: IpAddr,
) {
    let (listens, serves) = (listener.address, SocketAddr::new(ip, server.port));
    let listener_is_later = start_of(server.span.as_ref()) < start_of(listener.span.as_ref());
    // Without a place in the file both are defaults, which are not in each other's way.
    if listener_is_later && let Some(span) = listener.span.clone() {
        let also = here(server.span.clone());
        let help = match also {
            Some(_) => "write another port",
            None => "write another port, or another `port` in [cluster]",
        };
        desk.complain_with(span, listens_already(&server.owner, serves, listens), help, also);
    } else if let Some(span) = server.span.clone() {
        let also = here(listener.span.clone());
        let help = match also {
            Some(_) => "write another `port`",
            None => "write another `port`, or another `face` in [cluster]",
        };
        desk.complain_with(span, listens_already(&listener.owner, listens, serves), help, also);
    }
}

fn here(span: Option<Span>) -> Option<(Span, String)> {
    span.map(|span| (span, "here".to_owned()))
}

/// Complains of directories of databases that are the same or lie in each other, at the later one.
fn complain_of_directories(desk: &Desk<'_>, directories: &[Directory]) {
    let mut paths: BTreeMap<&Path, Vec<&Directory>> = BTreeMap::new();
    for directory in directories {
        paths.entry(&directory.path).or_default().push(directory);
    }
    for directory in directories {
        let near = directory.path.ancestors().find_map(|above| {
            let is_same = above == directory.path;
            let there = paths.get(above)?.iter().copied();
            // Of two that are the same each would find the other.
            let mut others = there.take_while(|o| !is_same || o.span.start < directory.span.start);
            others.find(|other| share_a_node(&directory.nodes, &other.nodes))
        });
        match near {
            Some(other) if other.span.start < directory.span.start => {
                complain_of_directory(desk, directory, other);
            }
            Some(other) => complain_of_directory(desk, other, directory),
            None => {}
        }
    }
}

fn complain_of_directory(desk: &Desk<'_>, directory: &Directory, other: &Directory) {
    let show = |path: &Path| quote(&path.display().to_string());
    let (path, there) = (show(&directory.path), show(&other.path));
    let message = if directory.path == other.path {
        format!("[postgres.{}] has its data in {there} already", other.database)
    } else if directory.path.starts_with(&other.path) {
        format!("{path} lies in {there}, where [postgres.{}] has its data", other.database)
    } else {
        format!("{path} holds {there}, where [postgres.{}] has its data", other.database)
    };
    let help = format!("write another `data_dir` in [postgres.{}]", directory.database);
    desk.complain_with(directory.span.clone(), message, help, here(Some(other.span.clone())));
}

fn complain_of_listener(desk: &Desk<'_>, listener: &Listener, other: &Listener) {
    let Some(span) = listener.span.clone() else { return };
    let message = listens_already(&other.owner, other.address, listener.address);
    let also = here(other.span.clone());
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
