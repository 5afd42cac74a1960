//! Reads `outlast.toml` into an exact topology, or says everything that is wrong with it at once.

mod address;
mod cluster;
mod complaint;
mod data;
mod desk;
mod difference;
mod dns;
mod goals;
mod item;
mod names;
mod probe;
mod process;
mod regions;
mod schema;
mod section;
mod service;
mod shape;
mod shapes;
mod syntax;
mod together;
mod words;

use std::collections::BTreeMap;
use std::net::IpAddr;

use outlast_core::topology::Topology;
use outlast_core::units::show_size;
use toml::de::DeTable;

pub use complaint::{Complaint, Complaints};
pub(crate) use data::OWN_DIRS;
pub use difference::{Change, Difference, KeyChange, Part, Side, difference};
pub use regions::warnings as region_warnings;
pub use schema::schema;

use complaint::quote;
use desk::Desk;
use names::Names;
use section::Section;
use shape::Kind;
use together::Notes;

/// A longer file is not read.
pub const FILE_MAX: usize = 1 << 20;

/// A name of a part or a node; what is wrong with it otherwise, for people.
pub fn part_name(text: &str) -> Result<String, String> {
    words::part_name(text).map_err(|fault| format!("{}: {}", fault.message, fault.help))
}

/// Reads a file's text. `file_name` is for the complaints.
pub fn parse(file_name: &str, text: &str) -> Result<Topology, Complaints> {
    if text.len() > FILE_MAX {
        let desk = Desk::new("");
        let limit = show_size(FILE_MAX as u64);
        desk.complain(
            0..0,
            format!("the file is larger than {limit}"),
            "split the cluster, or the file",
        );
        let (list, uncounted) = desk.into_list();
        return Err(Complaints::new(file_name, "", list, uncounted));
    }
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut desk = Desk::new(text);
    syntax::complain(&mut desk, root.get_ref(), errors);
    let names = Names::collect(root.get_ref());
    let topology = read(&desk, &names, root.get_ref());
    match topology {
        Some(topology) if desk.is_empty() => Ok(topology),
        Some(_) | None => {
            if desk.is_empty() {
                debug_assert!(false, "a part was given up without a complaint");
                desk.complain(0..0, "the file makes no sense", "see `outlast schema`");
            }
            let (list, uncounted) = desk.into_list();
            Err(Complaints::new(file_name, text, list, uncounted))
        }
    }
}

/// Where a file says that data is, whatever else is wrong with it.
pub fn data_dir(text: &str) -> Option<String> {
    if text.len() > FILE_MAX {
        return None;
    }
    let (root, _) = DeTable::parse_recoverable(text);
    let cluster = root.get_ref().get("cluster").and_then(|value| value.get_ref().as_table());
    let written = cluster.and_then(|table| table.get("data_dir"));
    match written {
        Some(value) => value.get_ref().as_str().map(str::to_owned),
        None => shapes::CLUSTER.key("data_dir")?.default_text().map(str::to_owned),
    }
}

/// Reads all sections; `None` if one of them was given up.
fn read<'t>(desk: &'t Desk<'t>, names: &'t Names, root: &'t DeTable<'t>) -> Option<Topology> {
    let file = Section::open(desk, names, &shapes::FILE, None, root, 0..0);
    let mut notes = Notes::default();
    let cluster_section = file.inner("cluster", &shapes::CLUSTER);
    let cluster = cluster_section.as_ref().and_then(|s| cluster::cluster(s, &mut notes));
    let consensus =
        file.inner("consensus", &shapes::CONSENSUS).and_then(|s| cluster::consensus(&s));
    let nodes = named(&file, "node", |section, _| cluster::node(section));
    let services = named(&file, "service", |s, name| service::read(s, name, &mut notes));
    let processes = named(&file, "process", |s, name| process::process(s, name, &mut notes));
    let data_dir = cluster.as_ref().map_or("/", |cluster| cluster.data_dir.as_str());
    let postgres =
        named(&file, "postgres", |s, name| data::postgres(s, name, data_dir, &mut notes));
    let redis = named(&file, "redis", |s, name| data::redis(s, name, &mut notes));
    let stores = named(&file, "store", |s, name| data::store(s, name, &mut notes));
    let beside = address::Beside { nodes: &nodes, services: &services, postgres: &postgres };
    let addresses = named(&file, "address", |section, _| address::read(section, &beside));
    let followed = dns::Beside { services: &services, postgres: &postgres, addresses: &addresses };
    let dns = named(&file, "dns", |section, name| dns::zone(section, name, &followed, &mut notes));
    let externals = named(&file, "external", |section, _| process::external(section));
    let objectives = named(&file, "objective", |section, _| goals::objective(section));
    let agreements = named(&file, "agreement", |section, _| goals::agreement(section));
    let cost = file.inner("cost", &shapes::COST).and_then(|section| goals::cost(&section));
    let notify = named(&file, "notify", |section, _| goals::notify(section));
    let backups = named(&file, "backup", |section, _| data::backup(section));
    cluster::complain_of_same_address(&nodes);
    address::complain_of_same(&addresses, &nodes);
    address::complain_of_groups(&addresses);
    dns::complain_of_too_many(&dns);
    regions::complain(&postgres, &nodes, consensus.as_ref());
    if let (Some(cluster), Some(section)) = (&cluster, &cluster_section) {
        cluster::note_links(cluster, section, &nodes, &mut notes);
        data::note_directories(cluster, section, &postgres, &mut notes);
    }
    let machines: BTreeMap<&str, IpAddr> =
        nodes.good().map(|(name, _, node)| (name, node.address)).collect();
    notes.check(desk, &machines);
    Some(Topology {
        cluster: cluster?,
        consensus: consensus?,
        nodes: nodes.parts()?,
        services: services.parts()?,
        processes: processes.parts()?,
        postgres: postgres.parts()?,
        redis: redis.parts()?,
        stores: stores.parts()?,
        addresses: addresses.parts()?,
        dns: dns.parts()?,
        externals: externals.parts()?,
        objectives: objectives.parts()?,
        agreements: agreements.parts()?,
        cost: cost?,
        notify: notify.parts()?,
        backups: backups.parts()?,
    })
}

/// The parts of one kind, each with its place; `None` is one that was given up.
struct Parts<'t, T> {
    list: Vec<(String, Section<'t>, Option<T>)>,
    whole: bool,
}

impl<'t, T> Parts<'t, T> {
    /// Those that make sense.
    fn good(&self) -> impl Iterator<Item = (&str, &Section<'t>, &T)> {
        self.list
            .iter()
            .filter_map(|(name, section, part)| Some((name.as_str(), section, part.as_ref()?)))
    }

    /// All of them, if all make sense.
    fn parts(self) -> Option<BTreeMap<String, T>> {
        let parts: Option<BTreeMap<String, T>> =
            self.list.into_iter().map(|(name, _, part)| Some((name, part?))).collect();
        parts.filter(|_| self.whole)
    }
}

/// Reads the parts of `[word.NAME]`.
fn named<'t, T>(
    file: &Section<'t>,
    word: &'static str,
    mut read: impl FnMut(&Section<'t>, &str) -> Option<T>,
) -> Parts<'t, T> {
    let mut parts = Parts { list: Vec::new(), whole: true };
    let Some(item) = file.item(word) else { return parts };
    let Some(shape) = item.kind.alternatives().iter().find_map(Kind::of_named) else {
        return parts;
    };
    let Some(table) = item.value.get_ref().as_table() else {
        item.complain_of_kind::<()>();
        parts.whole = false;
        return parts;
    };
    for (key, value) in table.iter() {
        let name: &str = key.get_ref();
        let check = if word == "dns" { words::zone_name } else { words::part_name };
        if let Err(fault) = check(name) {
            file.desk.complain(key.span(), fault.message, fault.help);
        }
        let Some(inner) = value.get_ref().as_table() else {
            file.desk.complain(
                key.span(),
                format!("{} stands in [{word}] itself, not in a part of it", quote(name)),
                format!("begin a section {} above it", shape.title),
            );
            parts.whole = false;
            continue;
        };
        let section = Section::open(file.desk, file.names, shape, Some(name), inner, value.span());
        let part = read(&section, name);
        parts.list.push((name.to_owned(), section, part));
    }
    parts
}
