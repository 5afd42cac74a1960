//! Reads the parts that hold data: `[postgres.NAME]`, `[redis.NAME]`, `[store.NAME]`, `[backup.NAME]`.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::path::{Component, Path};

use outlast_core::topology::{
    Backup, Cluster, Durability, Postgres, Redis, RegionFailover, Store, StoreMode,
};

use super::Parts;
use super::complaint::quote;
use super::item::Item;
use super::section::Section;
use super::together::Notes;
use super::words;

/// What the agent keeps in the `data_dir` of `[cluster]` under names that parts can have, too.
pub(crate) const OWN_DIRS: [&str; 5] =
    ["journal", "consensus", "processes", "postgres", crate::cluster::LAB_CERTS];

/// Everybody may connect who has a password.
const HBA: &str = "host all all all scram-sha-256";

/// `data_dir` is the cluster's.
pub(super) fn postgres(
    section: &Section<'_>,
    name: &str,
    data_dir: &str,
    notes: &mut Notes,
) -> Option<Postgres> {
    let nodes = section.nodes();
    let version = section.count("version");
    let own_dir = section.absolute_path("data_dir");
    let listen = section.optional("listen", |item| {
        let listen = item.section()?;
        let mut address = |key| {
            let address = listen.optional(key, |item| item.listen())?;
            if let Some(address) = address {
                let owner = format!("`{key}` of [postgres.{name}]");
                // These ports are on every node, also on those without a member.
                notes.listen(address, owner, listen.span_of(key), None);
            }
            Some(address)
        };
        let write = address("write");
        let read = address("read");
        Some((write?, read?))
    });
    let durability = durability(section, nodes.as_deref());
    let lag_limit = section.size("lag_limit");
    let waits = !matches!(durability, Some(Durability::Async));
    let parameters = section.optional("parameters", |item| parameters(item, waits));
    let priorities = section.optional("priorities", |item| priorities(item, nodes.as_deref()));
    let home = section.optional("home", |item| item.text().map(str::to_owned));
    let region_failover = section.word("region_failover").map(|word| match word {
        "automatic" => RegionFailover::Automatic,
        _ => RegionFailover::Manual,
    });
    if !section.has("home") {
        section.refuse(&["region_failover"], "goes with `home`", "add that, or take it out");
    }
    let bin_dir = section.absolute_path("bin_dir");
    let port = section.count("port").and_then(NonZeroU16::new);
    let user = section.text("user");
    let hold = section.duration("hold");
    let hba = section.optional("hba", |item| {
        let lines: Vec<Option<String>> = item.list()?.into_iter().map(hba_line).collect();
        lines.into_iter().collect::<Option<Vec<_>>>()
    });
    let read_from_primary = section.switch("read_from_primary");
    let reliability = section.reliability();
    let (listen_write, listen_read) = listen?.unwrap_or_default();
    let (nodes, port) = (nodes?, port?);
    let own_dir = own_dir?.unwrap_or_else(|| format!("{}/{name}", data_dir.trim_end_matches('/')));
    let server = format!("the PostgreSQL of [postgres.{name}]");
    notes.serve(port.get(), server, Some(section.span_of("port")), nodes.clone());
    Some(Postgres {
        nodes,
        version: version?,
        data_dir: own_dir,
        listen_write,
        listen_read,
        durability: durability?,
        lag_limit: lag_limit?,
        priorities: priorities?.unwrap_or_default(),
        home: home?,
        region_failover: region_failover?,
        bin_dir: bin_dir?,
        port,
        user: user?,
        hold: hold?,
        hba: hba?.unwrap_or_else(|| vec![HBA.to_owned()]),
        read_from_primary: read_from_primary?,
        parameters: parameters?.unwrap_or_default(),
        reliability: reliability?,
    })
}

/// Notes where databases have their data. Complains where that would be in the way of the agent, or is not known before links
/// are followed.
pub(super) fn note_directories(
    cluster: &Cluster,
    of_cluster: &Section<'_>,
    postgres: &Parts<'_, Postgres>,
    notes: &mut Notes,
) {
    let home = Path::new(&cluster.data_dir);
    let show = |path: &Path| quote(&path.display().to_string());
    for (name, section, part) in postgres.good() {
        let dir = Path::new(&part.data_dir);
        let mut own = OWN_DIRS.iter().map(|own| home.join(own));
        let near = own.find(|own| dir.starts_with(own) || own.starts_with(dir));
        let also = of_cluster.item("data_dir").map(|item| (item.span(), "here".to_owned()));
        let goes_up = dir.components().any(|part| part == Component::ParentDir);
        let (message, also) = if goes_up && section.has("data_dir") {
            (format!("{} goes up again by `..`", show(dir)), None)
        } else if dir.parent().is_none() {
            (format!("{} holds all other files", show(dir)), None)
        } else if dir == home {
            (format!("`data_dir` in [cluster] is {} already", show(dir)), also)
        } else if let Some(own) = near {
            let (dir, own) = (show(dir), show(&own));
            let message = format!(
                "data in {dir} would be in the way of the agent, which has files of its own in {own}"
            );
            (message, also)
        } else {
            let span = section.span_of("data_dir");
            notes.keep_data(dir.to_owned(), name, span, part.nodes.clone());
            continue;
        };
        let parent = if home.is_absolute() { home } else { Path::new("/var/lib/outlast") };
        let proposal = show(&parent.join(format!("{name}-data")));
        section.desk.complain_with(
            section.span_of("data_dir"),
            message,
            format!(
                "write another directory in [postgres.{name}], like data_dir = \"{}\"",
                proposal.trim_matches('`')
            ),
            also,
        );
    }
}

fn durability(section: &Section<'_>, nodes: Option<&[String]>) -> Option<Durability> {
    let word = section.optional("durability", |item| match item.as_text() {
        // The nearest word would be its opposite.
        Some(word @ ("sync" | "synchronous" | "strict")) => {
            item.complain(format!("`durability` cannot be `{word}`"), "write \"quorum\"");
            None
        }
        Some(_) | None => item.word(),
    });
    let acks = section.count("acks").and_then(NonZeroU16::new);
    let acks_min =
        if section.has("acks_min") { section.count("acks_min") } else { acks.map(u16::from) };
    // A file without nodes is about one machine.
    let others = nodes.map(|nodes| nodes.len().saturating_sub(1));
    let is_async = match word? {
        Some(word) => word == "async",
        None => others == Some(0) && !section.has("acks"),
    };
    if is_async {
        section.refuse(
            &["acks", "acks_min"],
            "goes with `durability = \"quorum\"`",
            "write that instead of async, or take it out",
        );
        return Some(Durability::Async);
    }
    let (acks, acks_min) = (acks?, acks_min?);
    if acks_min > acks.get() {
        section.desk.complain(
            section.span_of("acks_min"),
            format!("`acks_min` is more than `acks`, which is {acks}"),
            "write at most as many, or raise `acks`",
        );
    }
    if let Some(others) = others
        && usize::from(acks.get()) > others
    {
        let key = if section.has("acks") { "acks" } else { "durability" };
        let besides = match others {
            0 => "there is no other node".to_owned(),
            1 => "there is one other node".to_owned(),
            others => format!("there are {others} other nodes"),
        };
        section.desk.complain(
            section.span_of(key),
            match acks.get() {
                1 => format!("no write could be on another node: {besides}"),
                _ => format!("no write could be on {acks} other nodes: {besides}"),
            },
            match others {
                0 => "write durability = \"async\", or add nodes".to_owned(),
                others => format!("write acks = {others} or less, or add nodes"),
            },
        );
    }
    Some(Durability::Quorum { acks, acks_min })
}

fn priorities(item: Item<'_>, nodes: Option<&[String]>) -> Option<BTreeMap<String, u32>> {
    let read = |(key, value): (&str, Item<'_>)| {
        if nodes.is_some_and(|nodes| !nodes.iter().any(|node| node == key)) {
            value.complain(
                format!("the node {} is no member", quote(key)),
                "name one of its `nodes`, or take it out",
            );
            return None;
        }
        Some((key.to_owned(), u32::try_from(value.count()?).ok()?))
    };
    let read: Vec<Option<(String, u32)>> =
        item.entries()?.into_iter().map(|(key, value)| read((key.get_ref(), value))).collect();
    read.into_iter().collect()
}

/// One line of `pg_hba.conf`: with a bad one, PostgreSQL takes none of them and does not start.
fn hba_line(item: Item<'_>) -> Option<String> {
    let line = item.text()?;
    if let Some(fault) = outlast_postgres::hba_fault(line) {
        item.complain(
            format!("{} cannot be a line of pg_hba.conf: {fault}", quote(line)),
            format!("write a line like \"{HBA}\""),
        );
        return None;
    }
    Some(line.to_owned())
}

/// `waits`: commits wait for others.
fn parameters(item: Item<'_>, waits: bool) -> Option<BTreeMap<String, String>> {
    let mut entries = item.entries()?;
    entries.sort_by_key(|(key, _)| key.span().start);
    let read: Vec<Option<(String, String)>> =
        entries.iter().map(|(key, value)| parameter(key.get_ref(), value)).collect();
    let mut first: BTreeMap<String, Item<'_>> = BTreeMap::new();
    for (key, value) in &entries {
        if let Some(first) = first.insert(key.get_ref().to_ascii_lowercase(), *value) {
            item.desk.complain_with(
                value.span(),
                format!("the setting {} is there twice", quote(key.get_ref())),
                "take one of the two out; PostgreSQL does not tell capital letters from small ones",
                Some((first.span(), "here first".to_owned())),
            );
        }
    }
    let read: BTreeMap<String, String> = read.into_iter().collect::<Option<_>>()?;
    for outlast_postgres::Refused { name, why, is_settable } in
        outlast_postgres::refused(&read, waits)
    {
        let at = entries.iter().find(|(key, _)| *key.get_ref() == name);
        let at = at.map_or(item, |(_, value)| *value);
        let fault = if is_settable { "does not go as it is" } else { "is outlast's own" };
        at.complain(format!("the setting {} {fault}", quote(&name)), why);
    }
    Some(read)
}

fn parameter(key: &str, value: &Item<'_>) -> Option<(String, String)> {
    let text = match (value.as_switch(), value.as_digits()) {
        (Some(switch), _) => Some(if switch { "on" } else { "off" }.to_owned()),
        (None, Some(digits)) => Some(digits),
        (None, None) => value.text().map(str::to_owned),
    };
    let fits = !key.is_empty()
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.".contains(&byte));
    if !fits {
        value.complain(
            format!("{} cannot be the name of a setting", quote(key)),
            "a name has letters, digits, _ and . only",
        );
    }
    let text = text?;
    if text.contains(['\n', '\r']) {
        value.complain(
            format!("the setting {} has more than one line", quote(key)),
            "write one line",
        );
        return None;
    }
    fits.then(|| (key.to_owned(), text))
}

pub(super) fn redis(section: &Section<'_>, name: &str, notes: &mut Notes) -> Option<Redis> {
    let nodes = section.nodes();
    let sentinel = section.optional("sentinel", |item| item.listen());
    let reliability = section.reliability();
    if let Some(Some(address)) = sentinel {
        let span = section.span_of("sentinel");
        notes.listen(address, format!("`sentinel` of [redis.{name}]"), span, nodes.clone());
    }
    Some(Redis { nodes: nodes?, sentinel: sentinel?, reliability: reliability? })
}

pub(super) fn store(section: &Section<'_>, name: &str, notes: &mut Notes) -> Option<Store> {
    let nodes = section.nodes();
    let mode = section.word("mode");
    let listen = section.item("listen").map(|item| item.listen());
    let reliability = section.reliability();
    let listen = listen??;
    notes.listen(listen, format!("[store.{name}]"), section.span_of("listen"), nodes.clone());
    Some(Store {
        nodes: nodes?,
        mode: if mode? == "quorum" { StoreMode::Quorum } else { StoreMode::ActiveActive },
        listen,
        reliability: reliability?,
    })
}

pub(super) fn backup(section: &Section<'_>) -> Option<Backup> {
    let of = section.item("of").map(|item| item.part());
    let to = section.item("to").map(|item| item.parsed(words::backup_target));
    let full = section.item("full").map(|item| item.parsed(words::schedule));
    let incremental = section.optional("incremental", |item| item.parsed(words::schedule));
    let keep = section.duration("keep");
    Some(Backup { of: of??, to: to??, full: full??, incremental: incremental?, keep: keep? })
}
