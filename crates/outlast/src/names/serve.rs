//! The servers themselves: one for each address that the file names, with all zones that are answered for there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use outlast_core::agreed::AgreedNames;
use outlast_core::event::Fact;
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

/// All servers of this node.
pub(super) struct Servers {
    base: PathBuf,
    node: String,
    updates: mpsc::Sender<UpdateRequest>,
    running: BTreeMap<SocketAddr, Running>,
    /// Where one could not be started, and when that was tried.
    failed: BTreeMap<SocketAddr, Instant>,
    signatures: Signatures,
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
    addresses: Vec<SocketAddr>,
    cookies: Option<[u8; 16]>,
    rate_limit: Option<std::num::NonZeroU32>,
    secondaries: BTreeSet<SocketAddr>,
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
            failed: BTreeMap::new(),
            signatures: Signatures::default(),
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
        let again = self.failed.values().any(|at| START_AGAIN <= at.elapsed());
        let same = self.made.as_ref().is_some_and(|(of, with, at)| {
            Arc::ptr_eq(of, topology) && with == kept && at.elapsed() < SIGN_EVERY
        });
        if same && !self.stale && !again {
            return Vec::new();
        }
        if self.made.is_none() {
            self.look(topology);
        }
        self.stale = false;
        self.made = Some((topology.clone(), kept.clone(), Instant::now()));
        let before = std::mem::take(&mut self.trouble);
        let mut groups: BTreeMap<SocketAddr, Vec<(&String, &Zone)>> = BTreeMap::new();
        for (name, zone) in &topology.dns {
            if let Some(listen) = zone.listen {
                groups.entry(listen).or_default().push((name, zone));
            }
        }
        let gone: Vec<SocketAddr> =
            self.running.keys().filter(|at| !groups.contains_key(*at)).copied().collect();
        for at in gone {
            self.end(at);
        }
        self.failed.retain(|at, _| groups.contains_key(at));
        (self.serials, self.ds) = (BTreeMap::new(), BTreeMap::new());
        for (listen, zones) in groups {
            let table = self.table(&zones, kept);
            if let Err(error) = self.run(listen, &zones, kept, table) {
                self.failed.insert(listen, Instant::now());
                for (name, _) in zones {
                    self.trouble.insert(name.clone(), format!("{error:#}"));
                }
            } else {
                self.failed.remove(&listen);
            }
        }
        told(&before, &self.trouble)
    }

    /// The table of those zones that can be answered for.
    fn table(&mut self, zones: &[(&String, &Zone)], kept: &Kept) -> Table {
        let mut specs: BTreeMap<&String, ZoneSpec> = BTreeMap::new();
        for (name, zone) in zones {
            match spec::spec(name, zone, &kept.agreed, &kept.secrets) {
                Ok(spec) => drop(specs.insert(name, spec)),
                Err(why) => drop(self.trouble.insert((*name).clone(), why)),
            }
        }
        let all: Vec<ZoneSpec> = specs.values().cloned().collect();
        let table = Table::build(&all, &mut self.signatures, now());
        let table = table.unwrap_or_else(|_one_is_bad| {
            for (name, zone) in zones {
                match self.checked(name, zone, kept) {
                    Ok(spec) => drop(specs.insert(name, spec)),
                    Err(why) => {
                        specs.remove(name);
                        self.trouble.insert((*name).clone(), why);
                    }
                }
            }
            let good: Vec<ZoneSpec> = specs.values().cloned().collect();
            Table::build(&good, &mut self.signatures, now()).unwrap_or_default()
        });
        for (name, spec) in specs {
            self.serials.insert(name.clone(), spec.serial);
            if let Some(key) = &spec.key {
                self.ds.insert(name.clone(), ds_text(&key.ds(&spec.name).0));
            }
        }
        table
    }

    /// A zone that can be built; without what updates have added, if that is what spoils it.
    fn checked(&mut self, name: &str, zone: &Zone, kept: &Kept) -> Result<ZoneSpec, String> {
        let build = |agreed: &AgreedNames| {
            let spec = spec::spec(name, zone, agreed, &kept.secrets)?;
            let bare = ZoneSpec { key: None, ..spec.clone() };
            let table = Table::build(&[bare], &mut Signatures::default(), now());
            table.map(|_table| spec).map_err(|error| error.to_string())
        };
        let why = match build(&kept.agreed) {
            Ok(spec) => return Ok(spec),
            Err(why) => why,
        };
        let mut bare = AgreedNames::clone(&kept.agreed);
        let added = bare.zones.get_mut(name).map(|zone| std::mem::take(&mut zone.records));
        if added.is_none_or(|added| added.is_empty()) {
            return Err(why);
        }
        let spec = build(&bare)?;
        self.trouble.insert(
            name.to_owned(),
            format!("is answered for without what updates have added, because of that: {why}"),
        );
        Ok(spec)
    }

    fn run(
        &mut self,
        listen: SocketAddr,
        zones: &[(&String, &Zone)],
        kept: &Kept,
        table: Table,
    ) -> anyhow::Result<()> {
        let plan = self.plan(listen, zones, kept);
        if self.running.get(&listen).is_none_or(|running| running.plan != plan) {
            // Its sockets have to be closed before others take their place.
            self.end(listen);
            let running = self.start(plan, zones, listen, table)?;
            self.running.insert(listen, running);
        } else if let Some(running) = self.running.get(&listen) {
            running.server.publish(table);
        }
        Ok(())
    }

    fn plan(&self, listen: SocketAddr, zones: &[(&String, &Zone)], kept: &Kept) -> Plan {
        let addresses = if listen.ip().is_unspecified() {
            let fits = |ip: &&IpAddr| ip.is_ipv4() || listen.is_ipv6();
            let own = self.local.iter().filter(fits).take(LISTEN_MAX);
            own.map(|ip| SocketAddr::new(*ip, listen.port())).collect()
        } else {
            vec![listen]
        };
        let of = |wanted: fn(&Zone) -> bool| zones.iter().any(|(_, zone)| wanted(zone));
        let secret = kept.secrets.0.get(&cookie_secret());
        let cookies = secret.filter(|_| of(|zone| zone.cookies));
        // One server counts for all of its zones: the most generous of their limits.
        let unlimited = of(|zone| zone.rate_limit.is_none());
        let limit = zones.iter().filter_map(|(_, zone)| zone.rate_limit).max();
        Plan {
            addresses,
            cookies: cookies.and_then(|secret| secret.as_slice().try_into().ok()),
            rate_limit: limit.filter(|_| !unlimited),
            secondaries: zones.iter().flat_map(|(_, zone)| &zone.secondaries).copied().collect(),
            keys: key_files(&self.base, zones.iter().map(|(_, zone)| *zone)),
            updaters: zones.iter().flat_map(|(_, zone)| zone.update.iter().cloned()).collect(),
        }
    }

    fn start(
        &self,
        plan: Plan,
        zones: &[(&String, &Zone)],
        listen: SocketAddr,
        table: Table,
    ) -> anyhow::Result<Running> {
        let mut tsig: BTreeMap<Name, TsigKey> = BTreeMap::new();
        for path in plan.keys.keys() {
            tsig.extend(keys::load(path)?);
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
        let config = Config {
            cookies: plan.cookies.map(|current| CookieSecrets { current, previous: None }),
            rate_limit: plan
                .rate_limit
                .map(|per_second| RateLimit { per_second, ..RateLimit::default() }),
            nsid: self.node.clone().into_bytes(),
            transfer_to: plan.secondaries.iter().map(SocketAddr::ip).collect(),
            secondaries: plan
                .secondaries
                .iter()
                .map(|address| Secondary { address: *address, key: None })
                .collect(),
            keys: tsig.into_values().collect(),
        };
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let names: Vec<&str> = zones.iter().map(|(name, _)| name.as_str()).collect();
        let (server, mut requests) = Server::start(&plan.addresses, threads, config, table).with_context(|| {
            format!(
                "listen on {listen} for {}; end what uses it (systemd-resolved has 127.0.0.53:53), or change `listen`; \
                 ports below 1024 need root or CAP_NET_BIND_SERVICE",
                names.join(", ")
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
