//! Zones of the topology in other people's name servers: which they are, and with which keys they are spoken to.

use std::collections::BTreeMap;
use std::path::Path;

use outlast_core::health::Health;
use outlast_core::names::{Asked, Seen, Sticky};
use outlast_core::topology::{self, Zone};
use outlast_dns::elsewhere::{Elsewhere, Rfc2136, Trouble, Wanted};
use outlast_dns::name::Name;

use crate::tsig_keys;

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
    let place = |elsewhere: &topology::Elsewhere| {
        let server = match elsewhere {
            topology::Elsewhere::Rfc2136 { server, key } => {
                key_of(zone, key, base).and_then(|key| {
                    let zone = name.parse().map_err(|_bad| format!("{name} is no name"))?;
                    Ok(Elsewhere::Rfc2136(Rfc2136 { server: *server, zone, key }))
                })
            }
            topology::Elsewhere::Route53(id) => route53(cluster, id),
        };
        Place { name: format!("{name} at {elsewhere}"), server }
    };
    zone.elsewhere.iter().map(place).collect()
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

fn key_of(zone: &Zone, key: &str, base: &Path) -> Result<outlast_dns::TsigKey, String> {
    let file = zone.keys.as_ref().ok_or("the zone names no file of keys")?;
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
