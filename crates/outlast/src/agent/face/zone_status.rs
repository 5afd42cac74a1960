//! Zones that name servers answer for, as `/v1/status` tells of them.

use std::collections::BTreeMap;

use outlast_core::names::{Answers, agreed_answers, lowered};
use outlast_core::time::Timestamp;
use outlast_core::topology::Zone;
use outlast_dns::elsewhere::News;
use serde::{Deserialize, Serialize};

use crate::agent::shared::Picture;
use crate::names::Seen;

/// One `[dns."ZONE"]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ZoneStatus {
    /// Where this node is asked to listen; null: it is not.
    pub listen: Option<String>,
    /// Of the SOA that this node answers with; null while it does not answer.
    pub serial: Option<u32>,
    /// Why this node does not answer as it should.
    pub trouble: Option<String>,
    /// What the parent of a signed zone has to be told: key tag, algorithm, digest type, digest.
    pub ds: Option<String>,
    /// What has come of each place where it is kept elsewhere; of the node that leads.
    pub elsewhere: BTreeMap<String, String>,
    pub records: Vec<RecordStatus>,
    /// Records that updates have added.
    pub added_records: usize,
}

/// One record of the file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RecordStatus {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub policy: String,
    /// up, down or unknown.
    pub health: String,
    /// Something of it is down, is about to be moved, or is not where it belongs.
    pub degraded: bool,
    pub ttl_seconds: u64,
    /// Until when a person wants it to be lower; null: nobody does.
    pub ttl_lowered_until: Option<String>,
    /// Everything that some client may get now.
    pub values: Vec<String>,
}

impl ZoneStatus {
    pub(super) fn all(picture: &Picture) -> BTreeMap<String, ZoneStatus> {
        let zones = picture.topology.dns.iter();
        zones
            .map(|(name, zone)| (name.clone(), ZoneStatus::of(name, zone, &picture.names)))
            .collect()
    }

    fn of(name: &str, zone: &Zone, seen: &Seen) -> ZoneStatus {
        let answers = agreed_answers(name, zone, &seen.agreed);
        let records = zone.records.iter().zip(&answers);
        ZoneStatus {
            listen: zone.listen.map(|address| address.to_string()),
            serial: seen.serials.get(name).copied(),
            trouble: seen.trouble.get(name).cloned(),
            ds: seen.ds.get(name).cloned(),
            elsewhere: elsewhere(name, seen),
            records: records
                .map(|(record, answers)| {
                    let lowered = lowered(name, record, &seen.agreed);
                    RecordStatus::of(record.policy.word(), lowered, answers)
                })
                .collect(),
            added_records: seen.agreed.zones.get(name).map_or(0, |zone| zone.records.len()),
        }
    }
}

fn elsewhere(zone: &str, seen: &Seen) -> BTreeMap<String, String> {
    let of_zone = |place: &String| place.split(' ').next() == Some(zone);
    let own = seen.elsewhere.iter().filter(|(place, _)| of_zone(place));
    let told = own.map(|(place, news)| {
        let text = match news {
            None => "not looked at yet".to_owned(),
            Some(News::AsWanted(_)) => "as wanted".to_owned(),
            Some(News::Failed { trouble, .. }) => trouble.to_string(),
        };
        (place.clone(), text)
    });
    told.collect()
}

impl RecordStatus {
    fn of(policy: &str, lowered: Option<Timestamp>, answers: &Answers) -> RecordStatus {
        RecordStatus {
            name: answers.name.clone(),
            kind: answers.kind.word().to_owned(),
            policy: policy.to_owned(),
            health: answers.health.to_string(),
            degraded: answers.degraded,
            ttl_seconds: answers.ttl.as_secs(),
            ttl_lowered_until: lowered.map(|until| until.to_string()),
            values: answers.choice.values().into_iter().map(ToString::to_string).collect(),
        }
    }
}
