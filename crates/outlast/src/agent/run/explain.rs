//! Why a name is answered as it is.

use std::collections::BTreeMap;
use std::net::IpAddr;

use outlast_core::health::Health;
use outlast_core::names::{
    AGREEMENT, Answers, Explained, Sights, agreed_answers, explain, lowered, of_record, wanted_by,
};
use outlast_core::topology::{Record, Zone};
use serde_json::{Value, json};

use super::Loop;

impl Loop {
    /// All records of a name, as JSON.
    pub(super) fn explain(&self, name: &str, from: Option<IpAddr>) -> Result<String, String> {
        let seen = self.name_servers.seen();
        let wanted = name.trim_end_matches('.').to_ascii_lowercase();
        let witnesses = self.core.witnesses(self.now().instant, &self.node);
        let mut found = Vec::new();
        for (zone_name, zone) in &self.topology.dns {
            let answers = agreed_answers(zone_name, zone, &seen.agreed);
            for (record, answers) in zone.records.iter().zip(answers) {
                let full = match record.name.as_str() {
                    "@" => zone_name.clone(),
                    own => format!("{own}.{zone_name}"),
                };
                if full.to_ascii_lowercase() == wanted || record.name == name {
                    found.push(
                        self.explained(&full, zone_name, zone, record, &answers, from, &witnesses),
                    );
                }
            }
        }
        if found.is_empty() {
            let zones: Vec<&str> = self.topology.dns.keys().map(String::as_str).collect();
            return Err(match zones.as_slice() {
                [] => "the topology has no zone: add a [dns.\"ZONE\"]".to_owned(),
                zones => format!(
                    "no record of the topology has the name `{name}`; its zones are {}; what updates have added \
                     depends on nothing",
                    zones.join(", ")
                ),
            });
        }
        Ok(Value::from(found).to_string())
    }

    #[expect(clippy::too_many_arguments, reason = "one record in all its aspects")]
    fn explained(
        &self,
        full: &str,
        zone_name: &str,
        zone: &Zone,
        record: &Record,
        answers: &Answers,
        from: Option<IpAddr>,
        witnesses: &BTreeMap<String, Sights>,
    ) -> Value {
        let seen = self.name_servers.seen();
        let things = wanted_by(zone, record).into_iter().map(|key| {
            let agreed = seen.agreed.health.get(&key);
            let nodes = witnesses.iter().map(|(node, sights)| {
                let (health, why) = sights.get(&key).cloned().unwrap_or_default();
                json!({ "node": node, "health": health.to_string(), "reason": why })
            });
            json!({
                "of": key,
                "health": agreed.map_or(Health::Unknown, |agreed| agreed.health).to_string(),
                "since": agreed.map(|agreed| agreed.since.wall.to_string()),
                "reason": agreed.map(|agreed| agreed.why.clone()),
                "nodes": nodes.collect::<Vec<_>>(),
            })
        });
        let worst = of_record(&self.topology, record, AGREEMENT).map(|worst| {
            json!({
                "noticed_seconds": worst.detection.as_secs_f64(),
                "agreed_seconds": worst.agreement.as_secs_f64(),
                "forgotten_seconds": worst.memory.as_secs_f64(),
                "total_seconds": worst.total().as_secs_f64(),
            })
        });
        json!({
            "name": full,
            "zone": zone_name,
            "type": answers.kind.word(),
            "serial": seen.serials.get(zone_name),
            "ttl_seconds": answers.ttl.as_secs(),
            "ttl_lowered_until": lowered(zone_name, record, &seen.agreed).map(|until| until.to_string()),
            "health": answers.health.to_string(),
            "degraded": answers.degraded,
            "values": answers.choice.values().into_iter().map(ToString::to_string).collect::<Vec<_>>(),
            "why": tree(&explain(answers, from)),
            "things": things.collect::<Vec<_>>(),
            "wrong_at_most": worst,
        })
    }
}

fn tree(why: &Explained) -> Value {
    json!({ "line": why.line, "inner": why.inner.iter().map(tree).collect::<Vec<_>>() })
}
