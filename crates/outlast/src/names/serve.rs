//! The servers themselves: one for each address of this machine that a zone is answered for at, so that one that cannot be
//! listened on, or that comes and goes, does not trouble the others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use outlast_core::agreed::AgreedNames;
use outlast_core::event::Fact;
use outlast_core::names::digest;
use outlast_core::topology::{Topology, Zone};
use outlast_dns::dnssec::Signatures;
use outlast_dns::name::Name;
use outlast_dns::server::{Config, LISTEN_MAX, Secondary, Server, Totals, UpdateRequest};
use outlast_dns::table::Table;
use outlast_dns::zone::ZoneSpec;
use outlast_dns::{CookieSecrets, RateLimit, TsigKey};
use outlast_kernel::route::Route;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::store::Kept;
use super::{Seen, keys, spec};
use crate::cluster::cookie_secret;

/// How often tables are made anew although nothing has changed, so that no signature gets old.
const SIGN_EVERY: Duration = Duration::from_secs(6 * 3600);

/// How often it is tried again to start a server that cannot be started.
const START_AGAIN: Duration = Duration::from_secs(1);

/// Threads that answer at one address.
const THREADS: usize = 16;

/// All servers of this node.
pub(super) struct Servers {
    base: PathBuf,
    node: String,
    updates: mpsc::Sender<UpdateRequest>,
    running: BTreeMap<SocketAddr, Running>,
    /// When something could not be started last.
    failed: Option<Instant>,
    /// By what the zones of one place say in `listen`.
    places: BTreeMap<SocketAddr, Place>,
    /// Of each zone, the part of a topology by which it is answered.
    answered: BTreeMap<String, Zone>,
    /// What the tables were made of, and when.
    made: Option<(Arc<Topology>, Kept, Instant)>,
    /// By zone.
    trouble: BTreeMap<String, String>,
    serials: BTreeMap<String, u32>,
    ds: BTreeMap<String, String>,
    /// Of servers that have ended: what was counted stays counted.
    ended: Totals,
    /// Addresses of this machine have changed, or files of keys.
    stale: bool,
    local: BTreeSet<IpAddr>,
    key_files: BTreeMap<PathBuf, Option<SystemTime>>,
}

/// The zones of one `listen`.
#[derive(Debug, Default)]
struct Place {
    signatures: Signatures,
    /// The last specification of each zone that could be made.
    specs: BTreeMap<String, ZoneSpec>,
    table: Table,
}

struct Running {
    server: Server,
    /// What it was started with, as far as that can change.
    plan: Plan,
    forward: tokio::task::JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.forward.abort();
    }
}

/// What one server is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plan {
    cookies: Option<[u8; 16]>,
    rate_limit: Option<std::num::NonZeroU32>,
    /// Who is told of changes; empty at all but one of the addresses of one `listen`.
    secondaries: BTreeSet<SocketAddr>,
    transfer_to: BTreeSet<IpAddr>,
    /// Which files of keys, as they were at which time, and who may do what by them.
    keys: BTreeMap<PathBuf, Option<SystemTime>>,
    updaters: BTreeSet<String>,
}

impl Servers {
    pub(super) fn new(
        base: PathBuf,
        node: String,
        updates: mpsc::Sender<UpdateRequest>,
    ) -> Servers {
        Servers {
            base,
            node,
            updates,
            running: BTreeMap::new(),
            failed: None,
            places: BTreeMap::new(),
            answered: BTreeMap::new(),
            made: None,
            trouble: BTreeMap::new(),
            serials: BTreeMap::new(),
            ds: BTreeMap::new(),
            ended: Totals::default(),
            stale: true,
            local: BTreeSet::new(),
            key_files: BTreeMap::new(),
        }
    }

    /// Looks at what nobody tells: the addresses of this machine and the files of keys.
    pub(super) fn look(&mut self, topology: &Topology) {
        let everywhere = |zone: &Zone| zone.listen.is_some_and(|at| at.ip().is_unspecified());
        if topology.dns.values().any(everywhere) {
            match local_addresses() {
                Ok(local) if local != self.local => (self.local, self.stale) = (local, true),
                Ok(_same) => {}
                Err(error) => tracing::debug!(%error, "list the addresses of this machine"),
            }
        }
        let files = key_files(&self.base, topology.dns.values());
        if files != self.key_files {
            (self.key_files, self.stale) = (files, true);
        }
    }

    /// Starts and ends servers until they are as the topology has them, and has them answer by what is known. What people
    /// should hear of comes back.
    pub(super) fn serve(&mut self, topology: &Arc<Topology>, kept: &Kept) -> Vec<Fact> {
        if topology.dns.is_empty() && self.running.is_empty() {
            return Vec::new();
        }
        let again = self.failed.is_some_and(|at| START_AGAIN <= at.elapsed());
        let same = self.made.as_ref().is_some_and(|(of, with, at)| {
            Arc::ptr_eq(of, topology) && with == kept && at.elapsed() < SIGN_EVERY
        });
        if same && !self.stale && !again {
            return Vec::new();
        }
        if self.made.is_none() {
            self.look(topology);
        }
        (self.stale, self.failed) = (false, None);
        self.made = Some((topology.clone(), kept.clone(), Instant::now()));
        let before = std::mem::take(&mut self.trouble);
        self.choose_zones(topology, &kept.agreed);
        let mut groups: BTreeMap<SocketAddr, BTreeMap<String, Zone>> = BTreeMap::new();
        for (name, zone) in &self.answered {
            if let Some(listen) = zone.listen {
                groups.entry(listen).or_default().insert(name.clone(), zone.clone());
            }
        }
        self.places.retain(|listen, _| groups.contains_key(listen));
        (self.serials, self.ds) = (BTreeMap::new(), BTreeMap::new());
        let mut wanted = BTreeMap::new();
        for (listen, zones) in groups {
            let table = self.table(listen, &zones, kept);
            for (nth, address) in self.addresses(listen, &zones).into_iter().enumerate() {
                wanted.insert(
                    address,
                    (self.plan(&zones, kept, nth == 0), zones.clone(), table.clone()),
                );
            }
        }
        let gone: Vec<SocketAddr> =
            self.running.keys().filter(|at| !wanted.contains_key(*at)).copied().collect();
        gone.into_iter().for_each(|at| self.end(at));
        for (address, (plan, zones, table)) in wanted {
            if let Err(error) = self.run(address, plan, table) {
                self.failed = Some(Instant::now());
                for name in zones.keys() {
                    self.complain(name, format!("{error:#}"));
                }
            }
        }
        told(&before, &self.trouble)
    }

    /// A second complaint goes behind the first.
    fn complain(&mut self, zone: &str, why: String) {
        let all = self.trouble.entry(zone.to_owned()).or_default();
        if all.is_empty() {
            *all = why;
        } else if !all.contains(&why) {
            all.push_str("; ");
            all.push_str(&why);
        }
    }

    /// By which part of which topology each zone is answered: the one that is agreed on, if this node has it. While a changed
    /// file is on its way to all nodes, none of them answers by it before the others do.
    fn choose_zones(&mut self, topology: &Topology, agreed: &AgreedNames) {
        let mut chosen = BTreeMap::new();
        for (name, of_file) in &topology.dns {
            let wanted = agreed.zones.get(name).map(|zone| zone.digest);
            let fits = |zone: &&Zone| wanted.is_none_or(|wanted| digest(zone) == wanted);
            let both = [Some(of_file), self.answered.get(name)];
            let found = both.into_iter().flatten().find(fits);
            if found.is_none() {
                self.trouble.insert(
                    name.clone(),
                    "this node's file has another zone than is agreed on: bring the same file to all nodes, or use \
                     `outlast apply`"
                        .to_owned(),
                );
            }
            chosen.insert(name.clone(), found.unwrap_or(of_file).clone());
        }
        self.answered = chosen;
    }

    /// The table of those zones that can be answered for. One that cannot be made now stays as it was.
    fn table(&mut self, listen: SocketAddr, zones: &BTreeMap<String, Zone>, kept: &Kept) -> Table {
        let mut place = self.places.remove(&listen).unwrap_or_default();
        place.specs.retain(|name, _| zones.contains_key(name));
        for (name, zone) in zones {
            match spec::spec(name, zone, &kept.agreed, &kept.secrets) {
                Ok(spec) => drop(place.specs.insert(name.clone(), spec)),
                Err(why) => self.complain(name, why),
            }
        }
        let all: Vec<ZoneSpec> = place.specs.values().cloned().collect();
        match Table::build(&all, &mut place.signatures, now()) {
            Ok(table) => place.table = table,
            Err(error) => {
                tracing::warn!(%error, "a zone cannot be answered for");
                let good = zones.iter().filter_map(|(name, zone)| {
                    Some((name.clone(), self.checked(name, zone, kept)?))
                });
                place.specs = good.collect();
                let good: Vec<ZoneSpec> = place.specs.values().cloned().collect();
                match Table::build(&good, &mut place.signatures, now()) {
                    Ok(table) => place.table = table,
                    // Each of them can be built alone: together they are too many, and what was answered stays.
                    Err(error) => {
                        zones.keys().for_each(|name| self.complain(name, error.to_string()));
                    }
                }
            }
        }
        for (name, spec) in &place.specs {
            self.serials.insert(name.clone(), spec.serial);
            if let Some(key) = &spec.key {
                self.ds.insert(name.clone(), ds_text(&key.ds(&spec.name).0));
            }
        }
        let table = place.table.clone();
        self.places.insert(listen, place);
        table
    }

    /// A zone that can be built; without what updates have added, if that is what spoils it.
    fn checked(&mut self, name: &str, zone: &Zone, kept: &Kept) -> Option<ZoneSpec> {
        let build = |agreed: &AgreedNames| {
            let spec = spec::spec(name, zone, agreed, &kept.secrets)?;
            let table =
                Table::build(std::slice::from_ref(&spec), &mut Signatures::default(), now());
            table.map(|_table| spec).map_err(|error| error.to_string())
        };
        let why = match build(&kept.agreed) {
            Ok(spec) => return Some(spec),
            Err(why) => why,
        };
        let mut bare = AgreedNames::clone(&kept.agreed);
        let added = bare.zones.get_mut(name).map(|zone| std::mem::take(&mut zone.records));
        let bare = added.filter(|added| !added.is_empty()).and_then(|_added| build(&bare).ok());
        self.complain(
            name,
            match &bare {
                Some(_) => format!(
                    "is answered for without what updates have added, because of that: {why}"
                ),
                None => why,
            },
        );
        bare
    }

    /// Has a server at an address as it is to be. While it cannot be given what it needs, an old one goes on.
    fn run(&mut self, address: SocketAddr, plan: Plan, table: Table) -> anyhow::Result<()> {
        if let Some(running) = self.running.get(&address).filter(|running| running.plan == plan) {
            running.server.publish(table);
            return Ok(());
        }
        let (config, plan, trouble) = match self.config(&plan) {
            Ok(config) => (config, plan, None),
            Err(error) => {
                if let Some(running) = self.running.get(&address) {
                    running.server.publish(table);
                    return Err(error);
                }
                // Nobody can transfer or update by keys that cannot be read, and everybody can ask.
                let keyless = Plan { keys: BTreeMap::new(), updaters: BTreeSet::new(), ..plan };
                (self.config(&keyless)?, keyless, Some(error))
            }
        };
        // Its sockets have to be closed before others take their place.
        self.end(address);
        let running = self.start(address, plan, config, table)?;
        self.running.insert(address, running);
        trouble.map_or(Ok(()), Err)
    }

    /// Where the zones of one `listen` are answered for.
    fn addresses(&mut self, listen: SocketAddr, zones: &BTreeMap<String, Zone>) -> Vec<SocketAddr> {
        if !listen.ip().is_unspecified() {
            return vec![listen];
        }
        let fits = |ip: &&IpAddr| ip.is_ipv4() || listen.is_ipv6();
        let mut own: Vec<IpAddr> = self.local.iter().filter(fits).copied().collect();
        // Secondaries know the first one, and do not know us as 127.0.0.1.
        own.sort_by_key(|ip| (ip.is_loopback(), *ip));
        if LISTEN_MAX < own.len() {
            let why = format!(
                "this machine has {} addresses, and {LISTEN_MAX} of them are listened on: name one in `listen`",
                own.len()
            );
            zones.keys().for_each(|name| self.complain(name, why.clone()));
        }
        own.into_iter().take(LISTEN_MAX).map(|ip| SocketAddr::new(ip, listen.port())).collect()
    }

    fn plan(&self, zones: &BTreeMap<String, Zone>, kept: &Kept, tells: bool) -> Plan {
        let of = |wanted: fn(&Zone) -> bool| zones.values().any(wanted);
        let secret = kept.secrets.0.get(&cookie_secret());
        let cookies = secret.filter(|_| of(|zone| zone.cookies));
        // One server counts for all of its zones: the most generous of their limits.
        let unlimited = of(|zone| zone.rate_limit.is_none());
        let limit = zones.values().filter_map(|zone| zone.rate_limit).max();
        let secondaries: BTreeSet<SocketAddr> =
            zones.values().flat_map(|zone| &zone.secondaries).copied().collect();
        Plan {
            cookies: cookies.and_then(|secret| secret.as_slice().try_into().ok()),
            rate_limit: limit.filter(|_| !unlimited),
            transfer_to: secondaries.iter().map(SocketAddr::ip).collect(),
            secondaries: if tells { secondaries } else { BTreeSet::new() },
            keys: key_files(&self.base, zones.values()),
            updaters: zones.values().flat_map(|zone| zone.update.iter().cloned()).collect(),
        }
    }

    fn config(&self, plan: &Plan) -> anyhow::Result<Config> {
        let mut tsig: BTreeMap<Name, TsigKey> = BTreeMap::new();
        for path in plan.keys.keys() {
            for (name, key) in keys::load(path)? {
                anyhow::ensure!(
                    tsig.insert(name.clone(), key).is_none(),
                    "the key `{name}` is in two files of zones with one `listen`: give one of them another name"
                );
            }
        }
        for updater in &plan.updaters {
            let name = spec::parse(updater).map_err(anyhow::Error::msg)?;
            let key = tsig.get_mut(&name).with_context(|| {
                format!("`update` names the key `{updater}`, which is not in the file of `keys`")
            })?;
            key.may_update = true;
        }
        // Who has a key of the file is a secondary or changes the zone: both may read it.
        tsig.values_mut().for_each(|key| key.may_transfer = true);
        let secondaries = plan.secondaries.iter();
        Ok(Config {
            cookies: plan.cookies.map(|current| CookieSecrets { current, previous: None }),
            rate_limit: plan
                .rate_limit
                .map(|per_second| RateLimit { per_second, ..RateLimit::default() }),
            nsid: self.node.clone().into_bytes(),
            transfer_to: plan.transfer_to.iter().copied().collect(),
            secondaries: secondaries
                .map(|address| Secondary { address: *address, key: None })
                .collect(),
            keys: tsig.into_values().collect(),
        })
    }

    fn start(
        &self,
        address: SocketAddr,
        plan: Plan,
        config: Config,
        table: Table,
    ) -> anyhow::Result<Running> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let started = Server::start(&[address], cores.min(THREADS), config, table);
        let (server, mut requests) = started.with_context(|| {
            format!(
                "listen on {address}; end what uses it, or change `listen`; ports below 1024 need root or \
                 CAP_NET_BIND_SERVICE"
            )
        })?;
        let updates = self.updates.clone();
        // Held in `running`, aborted when the server ends.
        let forward = tokio::task::spawn(async move {
            while let Some(request) = requests.recv().await {
                if updates.send(request).await.is_err() {
                    return;
                }
            }
        });
        Ok(Running { server, plan, forward })
    }

    fn end(&mut self, at: SocketAddr) {
        if let Some(running) = self.running.remove(&at) {
            self.ended = sum(self.ended, running.server.counters());
        }
    }

    pub(super) fn seen(&self, agreed: Arc<AgreedNames>) -> Seen {
        let listens = self.running.values().flat_map(|running| running.server.addresses());
        let totals = self.running.values().map(|running| running.server.counters());
        Seen {
            agreed,
            listens: listens.copied().collect(),
            trouble: self.trouble.clone(),
            serials: self.serials.clone(),
            ds: self.ds.clone(),
            elsewhere: crate::elsewhere::Standings::new(),
            totals: totals.fold(self.ended, sum),
        }
    }
}

/// What has become wrong, and what has become right again.
fn told(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<Fact> {
    let fact = |zone: &String, trouble, text: &str| Fact::NameServer {
        zone: zone.clone(),
        trouble,
        text: text.to_owned(),
    };
    let new = after.iter().filter(|(zone, why)| before.get(*zone) != Some(*why));
    let new = new.map(|(zone, why)| fact(zone, true, why));
    let over = before.keys().filter(|zone| !after.contains_key(*zone));
    new.chain(over.map(|zone| fact(zone, false, "is answered for as it should be again"))).collect()
}

/// A DS as a registrar's form has it: key tag, algorithm, digest type, digest (RFC 4034 5.3).
fn ds_text(data: &[u8]) -> String {
    let [high, low, algorithm, kind, digest @ ..] = data else { return String::new() };
    let tag = u16::from_be_bytes([*high, *low]);
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{tag} {algorithm} {kind} {digest}")
}

/// When each file of keys was changed last; `None`: it cannot be read.
fn key_files<'a>(
    base: &std::path::Path,
    zones: impl Iterator<Item = &'a Zone>,
) -> BTreeMap<PathBuf, Option<SystemTime>> {
    let files = zones.filter_map(|zone| Some(base.join(zone.keys.as_ref()?)));
    files
        .map(|path| (path.clone(), std::fs::metadata(path).and_then(|it| it.modified()).ok()))
        .collect()
}

/// The addresses of this machine that can be listened on without naming an interface.
fn local_addresses() -> std::io::Result<BTreeSet<IpAddr>> {
    let all = Route::open()?.all_addresses()?.into_iter().map(|address| address.ip);
    let link_local =
        |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if Ipv6Addr::is_unicast_link_local(ip));
    Ok(all.filter(|ip| !link_local(ip)).collect())
}

fn sum(a: Totals, b: Totals) -> Totals {
    Totals {
        answers: a.answers + b.answers,
        no_data: a.no_data + b.no_data,
        no_such_name: a.no_such_name + b.no_such_name,
        referrals: a.referrals + b.referrals,
        refused: a.refused + b.refused,
        errors: a.errors + b.errors,
        slipped: a.slipped + b.slipped,
        limited: a.limited + b.limited,
        no_queries: a.no_queries + b.no_queries,
        slow: a.slow + b.slow,
        slow_dropped: a.slow_dropped + b.slow_dropped,
    }
}

/// Seconds of the epoch, which go round in 2106.
fn now() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs() & u64::from(u32::MAX)).unwrap_or_default()
}
