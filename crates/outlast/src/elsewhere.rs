//! Zones of the topology in other people's name servers: which they are, and with which keys they are spoken to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use outlast_core::health::Health;
use outlast_core::names::{Asked, Seen, Sticky};
use outlast_core::topology::{self, Topology, Zone};
use outlast_dns::elsewhere::{Elsewhere, News, Rfc2136, Settled, Trouble, Wanted};
use outlast_dns::name::Name;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use crate::names::keys as tsig_keys;

/// How often keys and credentials are read again, so that a changed file is taken.
const KEYS_EVERY: Duration = Duration::from_secs(600);

/// How soon it is tried again where they cannot be read.
const UNABLE_AGAIN: Duration = Duration::from_secs(30);

/// What is known of things that answers depend on: a part by `service.web`, a probed value by its id. What is not there was
/// never judged.
pub type Healths = BTreeMap<String, Health>;

/// One of the places where a zone is kept.
#[derive(Debug)]
pub struct Place {
    /// As people call it.
    pub name: String,
    /// Why it cannot even be spoken to.
    pub server: Result<Elsewhere, String>,
}

/// The places where a zone is kept. `base`: the directory that relative paths of the file count from.
pub fn places(cluster: &str, name: &str, zone: &Zone, base: &Path) -> Vec<Place> {
    let place = |elsewhere| Place {
        name: place_name(name, elsewhere),
        server: server(cluster, name, zone.keys.as_deref(), base, elsewhere),
    };
    zone.elsewhere.iter().map(place).collect()
}

fn place_name(zone: &str, elsewhere: &topology::Elsewhere) -> String {
    format!("{zone} at {elsewhere}")
}

fn server(
    cluster: &str,
    zone: &str,
    keys: Option<&str>,
    base: &Path,
    elsewhere: &topology::Elsewhere,
) -> Result<Elsewhere, String> {
    match elsewhere {
        topology::Elsewhere::Rfc2136 { server, key } => {
            let key = key_of(keys, key, base)?;
            let zone = zone.parse().map_err(|_bad| format!("{zone} is no name"))?;
            Ok(Elsewhere::Rfc2136(Rfc2136 { server: *server, zone, key }))
        }
        topology::Elsewhere::Route53(id) => route53(cluster, id),
    }
}

/// Keeps zones elsewhere as they are wanted. For whoever leads alone: two would not harm each other, but ask twice as often.
/// Dropped, it stops; what is under way then is done or not, and looked at by the next one.
#[derive(Debug)]
pub struct Keepers {
    cluster: String,
    /// Relative paths of the file count from here.
    base: PathBuf,
    running: BTreeMap<(String, topology::Elsewhere), Keeper>,
    /// What has last come of each place; `None`: nothing yet.
    standings: watch::Sender<Standings>,
}

/// By the names of places.
pub type Standings = BTreeMap<String, Option<News>>;

#[derive(Debug)]
struct Keeper {
    place: String,
    /// Names the key's file: with another one it begins anew.
    keys: Option<String>,
    want: watch::Sender<Option<Wanted>>,
    task: AbortHandle,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Keepers {
    pub fn new(cluster: &str, base: &Path) -> Keepers {
        let standings = watch::channel(Standings::new()).0;
        let (cluster, base) = (cluster.to_owned(), base.to_owned());
        Keepers { cluster, base, running: BTreeMap::new(), standings }
    }

    /// What has come of it, and when that changes.
    pub fn standings(&self) -> watch::Receiver<Standings> {
        self.standings.subscribe()
    }

    /// To be called whenever the topology or an answer may have changed, within a runtime: what is as before costs nothing.
    /// `wanted` says what is wanted of a zone.
    pub fn follow(
        &mut self,
        topology: &Topology,
        wanted: impl Fn(&str, &Zone) -> Result<Wanted, Trouble>,
    ) {
        self.running.retain(|(name, elsewhere), keeper| {
            let zone = topology.dns.get(name);
            zone.is_some_and(|zone| zone.elsewhere.contains(elsewhere) && zone.keys == keeper.keys)
        });
        let running = &self.running;
        self.standings.send_if_modified(|standings| {
            let before = standings.len();
            standings.retain(|place, _| running.values().any(|keeper| keeper.place == *place));
            standings.len() != before
        });
        for (name, zone) in topology.dns.iter().filter(|(_, zone)| !zone.elsewhere.is_empty()) {
            let now = wanted(name, zone);
            for elsewhere in &zone.elsewhere {
                let key = (name.clone(), elsewhere.clone());
                if !self.running.contains_key(&key) {
                    let keeper = self.start(name, zone, elsewhere);
                    self.running.insert(key.clone(), keeper);
                }
                match (&now, self.running.get(&key)) {
                    (Ok(now), Some(keeper)) => keeper.want(now),
                    (Err(trouble), Some(keeper)) => {
                        self.say(&keeper.place, &failed(&trouble.to_string()));
                    }
                    (_, None) => {}
                }
            }
        }
    }

    fn start(&self, name: &str, zone: &Zone, elsewhere: &topology::Elsewhere) -> Keeper {
        let place = place_name(name, elsewhere);
        let (want, wants) = watch::channel(None);
        let (standings, own) = (self.standings.clone(), place.clone());
        standings.send_modify(|standings| drop(standings.insert(own.clone(), None)));
        let (cluster, base) = (self.cluster.clone(), self.base.clone());
        let (name, keys, elsewhere) = (name.to_owned(), zone.keys.clone(), elsewhere.clone());
        let keep = async move {
            let mut settled = Settled::default();
            loop {
                let tell = |news: News| note(&standings, &own, &news);
                match server(&cluster, &name, keys.as_deref(), &base, &elsewhere) {
                    Ok(server) => {
                        let keep = server.reconcile(wants.clone(), &mut settled, tell);
                        // After this time the keys are read again.
                        if timeout(KEYS_EVERY, keep).await.is_ok() {
                            return;
                        }
                    }
                    Err(why) => {
                        tell(failed(&why));
                        sleep(UNABLE_AGAIN).await;
                    }
                }
            }
        };
        // Ended when the keeper is dropped.
        let task = tokio::task::spawn(keep).abort_handle();
        Keeper { place, keys: zone.keys.clone(), want, task }
    }

    fn say(&self, place: &str, news: &News) {
        note(&self.standings, place, news);
    }
}

fn note(standings: &watch::Sender<Standings>, place: &str, news: &News) {
    match news {
        News::AsWanted(outline) if outline.lines.is_empty() => {}
        News::AsWanted(outline) => {
            tracing::info!(place, changes = outline.lines.len(), "records elsewhere were changed");
        }
        News::Failed { trouble, .. } => {
            tracing::warn!(place, %trouble, "records elsewhere are not known to be as wanted");
        }
    }
    standings.send_if_modified(|standings| {
        let before = standings.insert(place.to_owned(), Some(news.clone()));
        before != Some(Some(news.clone()))
    });
}

fn failed(why: &str) -> News {
    News::Failed { trouble: Trouble::Never(why.to_owned()), again_in: UNABLE_AGAIN }
}

impl Keeper {
    /// What was wanted and is not any more goes.
    fn want(&self, now: &Wanted) {
        self.want.send_if_modified(|before| {
            let next = match before {
                Some(before) => now.clone().after(before),
                None => now.clone(),
            };
            let is_other = before.as_ref() != Some(&next);
            *before = Some(next);
            is_other
        });
    }
}

/// What is wanted of a zone elsewhere; what is remembered of failover policies decides which of several serves.
pub fn wanted(
    name: &str,
    zone: &Zone,
    healths: &Healths,
    sticky: &Sticky,
) -> Result<Wanted, Trouble> {
    let sight = |asked: Asked<'_>| {
        let key = match asked {
            Asked::Part(part) => part.to_string(),
            Asked::Value(probe) => probe.id.clone(),
        };
        Seen { health: healths.get(&key).copied().unwrap_or_default(), ..Seen::default() }
    };
    Wanted::new(name, zone, &sight, sticky)
}

fn key_of(keys: Option<&str>, key: &str, base: &Path) -> Result<outlast_dns::TsigKey, String> {
    let file = keys.ok_or("the zone names no file of keys")?;
    let path = base.join(file);
    let keys = tsig_keys::load(&path).map_err(|error| format!("{error:#}"))?;
    let name: Name = key.parse().map_err(|_bad| format!("{key} is no name"))?;
    let known = || keys.keys().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    keys.get(&name)
        .cloned()
        .ok_or_else(|| format!("{} has no key {key}; it has {}", path.display(), known()))
}

#[cfg(feature = "aws")]
fn route53(cluster: &str, id: &str) -> Result<Elsewhere, String> {
    let client = outlast_aws::Client::of_process(None).map_err(|error| error.to_string())?;
    Ok(Elsewhere::Route53(outlast_dns::elsewhere::Route53 {
        client,
        zone_id: id.to_owned(),
        cluster: cluster.to_owned(),
    }))
}

#[cfg(not(feature = "aws"))]
fn route53(_cluster: &str, _id: &str) -> Result<Elsewhere, String> {
    Err("this outlast was built without AWS; use a release, or build with --features aws"
        .to_owned())
}
