//! Changes that others ask for: RFC 2136 updates, zone files that are taken in, and people who say who is to serve
//! or that an answer is soon another one.
//!
//! They go through the agreement, so that all name servers have them or none. What the file says is the file's: it is
//! changed there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use outlast_core::agreed::{
    AgreedNames, AgreedPin, LOWERED_MAX, Limit, NameChange, NamesCommand, Refusal, Reply,
};
use outlast_core::names::{FailoverId, policy_key};
use outlast_core::time::Timestamp;
use outlast_core::topology::{Policy, Record as TopologyRecord, Topology, Zone};
use outlast_core::units::show_duration;
use outlast_dns::dnssec::Signatures;
use outlast_dns::name::Name;
use outlast_dns::server::UpdateRequest;
use outlast_dns::table::Table;
use outlast_dns::update::UpdateAnswer;
use outlast_dns::zone::{Choice, Record, Rtype, ZoneSpec};
use tokio::sync::oneshot;

use super::store::Kept;
use super::{View, spec};
use crate::agent::shared::wall;

/// How often a change is made anew because something else has changed meanwhile.
const TRIES: u32 = 5;

/// How long it may take until this node knows what it has had agreed on.
pub(super) const KNOWN_MAX: Duration = Duration::from_secs(2);

/// Bytes of all records of one name and type that updates make; signed, they still fit into a message.
const SET_MAX: usize = 32 << 10;

/// Bytes of a record beside its data, at most, with its name written as a pointer.
const SET_OVERHEAD: usize = 12;

/// Records that one entry takes out of a zone file.
pub(super) const BATCH: usize = 500;

/// Does what an update asks for, and answers it.
pub(super) async fn carry_out(view: View, request: UpdateRequest) {
    let UpdateRequest { update, source, answer } = request;
    let result = change(&view, &update.zone, |zone, now| {
        let may = zone.update.iter().any(|key| spec::parse(key).as_ref() == Ok(&update.key));
        if !may {
            return Err(UpdateAnswer::Refused);
        }
        update.apply(now)
    });
    let result = result.await;
    tracing::info!(%source, zone = %update.zone, key = %update.key, ?result, "a zone was to be updated");
    answer.send(result).ok();
}

/// Changes the records of a zone. `make` may be called again: it sees what is there now.
async fn change(
    view: &View,
    zone: &Name,
    make: impl Fn(&Zone, &[Record]) -> Result<Vec<Record>, UpdateAnswer>,
) -> UpdateAnswer {
    for _ in 0..TRIES {
        let topology = view.topology.borrow().clone();
        let kept = view.kept.borrow().clone();
        let known = topology.dns.iter().find(|(name, _)| spec::parse(name).as_ref() == Ok(zone));
        let Some((name, of)) = known else { return UpdateAnswer::Refused };
        let changes = match plan(name, of, &kept, |now| make(of, now)) {
            Ok(changes) if changes.is_empty() => return UpdateAnswer::Done,
            Ok(changes) => changes,
            Err(answer) => return answer,
        };
        if Limit::NameChanges.most() < changes.len() {
            return UpdateAnswer::Refused;
        }
        let zones = BTreeSet::from([name.clone()]);
        let command = NamesCommand::Change { from: kept.agreed.epoch, changes, zones };
        match agree(view, command).await {
            Ok(Reply::Done) => {
                let mut known = view.kept.clone();
                let newer = known.wait_for(|now| kept.agreed.epoch < now.agreed.epoch);
                let known = tokio::time::timeout(KNOWN_MAX, newer).await;
                return if known.is_ok() { UpdateAnswer::Done } else { UpdateAnswer::Failed };
            }
            // It may have been done: asked again, it would find its own doing.
            Err(why) => {
                tracing::info!(why, "it is not known whether a zone was changed");
                return UpdateAnswer::Failed;
            }
            Ok(why) if !overtaken(&why) => {
                tracing::info!(zone = name, %why, "a change of a zone is refused");
                return UpdateAnswer::Refused;
            }
            Ok(why) => {
                tracing::debug!(%why, "a zone has changed meanwhile");
                let mut known = view.kept.clone();
                let newer = known.wait_for(|now| kept.agreed.epoch != now.agreed.epoch);
                if tokio::time::timeout(KNOWN_MAX, newer).await.is_err() {
                    return UpdateAnswer::Failed;
                }
            }
        }
    }
    UpdateAnswer::Failed
}

/// Something else was agreed on first: judged by that, it may still be.
pub(super) fn overtaken(reply: &Reply) -> bool {
    matches!(reply, Reply::Refused { why: Refusal::OtherEpoch { .. } })
}

pub(super) async fn agree(view: &View, command: NamesCommand) -> Result<Reply, String> {
    let (answer, answered) = oneshot::channel();
    let busy = || "too many changes of names wait already".to_owned();
    let mut known = view.changes.clone();
    let others = tokio::time::timeout(KNOWN_MAX, known.wait_for(Option::is_some)).await;
    let changes = others.ok().and_then(|others| others.ok()?.clone());
    let changes = changes.ok_or("this agent is still starting; ask again")?;
    changes.try_send((command, answer)).map_err(|_full| busy())?;
    answered.await.map_err(|_gone| "the agent is stopping".to_owned())?
}

/// What has to be agreed on so that a zone's records become what `make` makes of them.
pub(super) fn plan(
    name: &str,
    zone: &Zone,
    kept: &Kept,
    make: impl FnOnce(&[Record]) -> Result<Vec<Record>, UpdateAnswer>,
) -> Result<Vec<NameChange>, UpdateAnswer> {
    let spec =
        spec::spec(name, &Zone { dnssec: false, ..zone.clone() }, &kept.agreed, &kept.secrets);
    let spec = spec.map_err(|_bad| UpdateAnswer::Failed)?;
    let before = records(&spec);
    let of_file = of_file(&spec.name, name, zone, &kept.agreed);
    let of_file = of_file.map_err(|_bad| UpdateAnswer::Failed)?;
    let after = make(&before)?;
    let difference = |a: &[Record], b: &[Record]| -> Vec<Record> {
        a.iter().filter(|record| !b.contains(record)).cloned().collect()
    };
    let (gone, come) = (difference(&before, &after), difference(&after, &before));
    if gone
        .iter()
        .chain(&come)
        .any(|record| of_file.contains(&(record.owner.clone(), record.rtype)))
    {
        return Err(UpdateAnswer::Refused);
    }
    let change = |record: &Record, present| NameChange::Record {
        zone: name.to_owned(),
        record: spec::write(record),
        present,
    };
    let gone = gone.iter().flat_map(|record| known_as(kept, name, record));
    let gone =
        gone.map(|record| NameChange::Record { zone: name.to_owned(), record, present: false });
    let come = come.iter().map(|record| change(record, true));
    let changes: Vec<NameChange> = gone.chain(come).collect();
    let mut sizes: BTreeMap<(&Name, Rtype), usize> = BTreeMap::new();
    let touched: BTreeSet<(&Name, Rtype)> = after
        .iter()
        .filter(|record| !before.contains(record))
        .map(|it| (&it.owner, it.rtype))
        .collect();
    for record in after.iter().filter(|record| touched.contains(&(&record.owner, record.rtype))) {
        let size = sizes.entry((&record.owner, record.rtype)).or_default();
        *size += SET_OVERHEAD + record.data.0.len();
        if SET_MAX < *size {
            return Err(UpdateAnswer::Refused);
        }
    }
    // What could not be answered with is refused, not agreed on.
    let trial = NamesCommand::Change {
        from: kept.agreed.epoch,
        changes: changes.clone(),
        zones: BTreeSet::new(),
    };
    let agreed = super::changed(&kept.agreed, &trial).map_err(|_over| UpdateAnswer::Refused)?;
    builds(name, zone, &agreed, kept).map_err(|why| {
        tracing::info!(zone = name, why, "a change of a zone is refused");
        UpdateAnswer::Refused
    })?;
    Ok(changes)
}

/// Whether a zone has a record, whatever its time to live and the case of the names in it.
fn has(records: &[Record], wanted: &Record) -> bool {
    let data = wanted.data.canonical(wanted.rtype);
    let same = |of: &Record| (&of.owner, of.rtype) == (&wanted.owner, wanted.rtype);
    records.iter().any(|of| same(of) && of.data.canonical(of.rtype) == data)
}

/// What the file has of a zone: that is changed there.
pub(super) fn of_file(
    own: &Name,
    name: &str,
    zone: &Zone,
    agreed: &AgreedNames,
) -> Result<BTreeSet<(Name, Rtype)>, String> {
    let sets = spec::file_sets(own, name, zone, agreed)?;
    let soa = (own.clone(), Rtype::SOA);
    Ok(sets.into_iter().map(|set| (set.owner, set.rtype)).chain([soa]).collect())
}

/// A record as it was added: its time to live may have been another one than that of its whole set.
fn known_as(kept: &Kept, zone: &str, record: &Record) -> Vec<outlast_core::agreed::AddedRecord> {
    let added = kept.agreed.zones.get(zone).map(|zone| &zone.records);
    let same = |known: &&outlast_core::agreed::AddedRecord| {
        spec::read(known).is_some_and(|known| {
            (&known.owner, known.rtype, &known.data) == (&record.owner, record.rtype, &record.data)
        })
    };
    added.into_iter().flatten().filter(same).cloned().collect()
}

pub(super) fn builds(
    name: &str,
    zone: &Zone,
    agreed: &AgreedNames,
    kept: &Kept,
) -> Result<(), String> {
    let spec = spec::spec(name, &Zone { dnssec: false, ..zone.clone() }, agreed, &kept.secrets)?;
    Table::build(&[spec], &mut Signatures::default(), 0)
        .map(drop)
        .map_err(|error| error.to_string())
}

/// All records of a zone as a secondary would see them, the SOA among them.
pub(super) fn records(spec: &ZoneSpec) -> Vec<Record> {
    let mut records = vec![spec.soa_record()];
    for set in &spec.sets {
        records.extend(set.choice.default_records().iter().map(|data| Record {
            owner: set.owner.clone(),
            rtype: set.rtype,
            ttl: set.ttl,
            data: data.clone(),
        }));
    }
    records
}

/// Adds the records of a zone file to a zone.
pub(super) async fn import(view: View, zone: &str, text: &str) -> Result<String, String> {
    let name = spec::parse(zone)?;
    let parsed = ZoneSpec::from_zone_file(&name, text).map_err(|error| error.to_string())?;
    let topology = view.topology.borrow().clone();
    let known = topology.dns.iter().find(|(known, _)| spec::parse(known).as_ref() == Ok(&name));
    let (own, of) = known.ok_or_else(|| no_zone(&topology, zone))?;
    let kept = view.kept.borrow().clone();
    let of_file = of_file(&name, own, of, &kept.agreed)?;
    let (mut wanted, mut left) = (Vec::new(), BTreeMap::new());
    for set in &parsed.sets {
        let Choice::One(data) = &set.choice else { continue };
        if of_file.contains(&(set.owner.clone(), set.rtype)) {
            *left.entry(set.owner.clone()).or_insert(0) += data.len();
            continue;
        }
        wanted.extend(data.iter().map(|data| Record {
            owner: set.owner.clone(),
            rtype: set.rtype,
            ttl: set.ttl,
            data: data.clone(),
        }));
    }
    for batch in wanted.chunks(BATCH) {
        let answer = change(&view, &name, |_, now| {
            let mut after = now.to_vec();
            after.extend(batch.iter().filter(|record| !has(now, record)).cloned());
            Ok(after)
        });
        match answer.await {
            UpdateAnswer::Done => {}
            UpdateAnswer::Failed => {
                return Err(
                    "no majority has agreed on it in time; what was taken in stays, ask again"
                        .to_owned(),
                );
            }
            other @ (UpdateAnswer::NameExists
            | UpdateAnswer::NoSuchName
            | UpdateAnswer::SetExists
            | UpdateAnswer::NoSuchSet
            | UpdateAnswer::Refused) => {
                return Err(format!(
                    "the zone cannot take these records: {other:?}; see the agent's log"
                ));
            }
        }
    }
    let mut told = format!("{zone} has {} records of the file", wanted.len());
    if !left.is_empty() {
        let names: Vec<String> = left.keys().take(10).map(ToString::to_string).collect();
        told.push_str(&format!(
            "; left out, because the topology has them: {} of {}",
            left.values().sum::<usize>(),
            names.join(", ")
        ));
    }
    Ok(told)
}

fn no_zone(topology: &Topology, zone: &str) -> String {
    let zones: Vec<&str> = topology.dns.keys().map(String::as_str).collect();
    match zones.as_slice() {
        [] => "the topology has no zone".to_owned(),
        zones => format!("the topology has no zone `{zone}`; it has {}", zones.join(", ")),
    }
}

/// What a person wants to be agreed on, and what is told once it is.
struct Wish {
    changes: Vec<NameChange>,
    /// Those whose answers become other ones by that.
    zones: BTreeSet<String>,
    told: String,
}

/// Has agreed on what a person wants. `make` may be called again: it sees what is agreed on by then.
async fn grant(
    view: &View,
    name: &str,
    make: impl Fn(&Topology, &AgreedNames) -> Result<Wish, String>,
) -> Result<String, String> {
    for _ in 0..TRIES {
        let topology: Arc<Topology> = view.topology.borrow().clone();
        let agreed = view.kept.borrow().agreed.clone();
        let Wish { changes, zones, told } = make(&topology, &agreed)?;
        if changes.is_empty() {
            return Ok(format!("{name} is as it was"));
        }
        let command = NamesCommand::Change { from: agreed.epoch, changes, zones };
        match agree(view, command).await {
            Ok(Reply::Done) => return Ok(told),
            Err(why) => return Err(format!("{why}; it may still come to it")),
            Ok(reply) if !overtaken(&reply) => {
                return Err(format!("{name} stays as it is, the nodes have {reply}"));
            }
            Ok(_overtaken) => {}
        }
        let mut known = view.kept.clone();
        let newer = known.wait_for(|now| agreed.epoch != now.agreed.epoch);
        if tokio::time::timeout(KNOWN_MAX, newer).await.is_err() {
            break;
        }
    }
    Err("other changes keep coming first; ask again".to_owned())
}

/// So much later than now, by this node's wall clock.
fn from_now(lasts: Duration) -> Timestamp {
    Timestamp(wall().0.saturating_add(i64::try_from(lasts.as_millis()).unwrap_or(i64::MAX)))
}

/// Says who of a failover policy is to serve.
pub(super) async fn pin(
    view: View,
    name: &str,
    label: Option<String>,
    lasts: Option<Duration>,
) -> Result<String, String> {
    let wish = |topology: &Topology, agreed: &AgreedNames| {
        let all = failovers_of(topology, name)?;
        let meant: Vec<&(String, Vec<String>)> = match &label {
            Some(label) => all.iter().filter(|(_, labels)| labels.contains(label)).collect(),
            None => all.iter().collect(),
        };
        if let (Some(label), true) = (&label, meant.is_empty()) {
            let labels: Vec<&str> = all.iter().flat_map(|(_, of)| of).map(String::as_str).collect();
            return Err(format!("`{label}` is none of {}", labels.join(", ")));
        }
        let pin = label.clone().map(|label| AgreedPin { label, until: lasts.map(from_now) });
        let changes =
            meant.into_iter().filter(|(policy, _)| agreed.pins.get(policy) != pin.as_ref());
        let changes = changes
            .map(|(policy, _)| NameChange::Pinned { policy: policy.clone(), pin: pin.clone() });
        let told = match &label {
            Some(label) => format!("{label} is to serve {name}, as long as it is not down"),
            None => format!("{name} is answered by health alone again"),
        };
        // Whoever leads finds out what becomes of the answers.
        Ok(Wish { changes: changes.collect(), zones: BTreeSet::new(), told })
    };
    grant(&view, name, wish).await
}

/// Has all records of a name remembered for less long, so that a move that nobody but people knows of is soon noticed.
pub(super) async fn lower_ttl(
    view: View,
    name: &str,
    lasts: Option<Duration>,
) -> Result<String, String> {
    if lasts.is_some_and(|lasts| lasts.is_zero() || LOWERED_MAX < lasts) {
        return Err(format!(
            "it cannot be lower for this long: write {} or less, and say it again if it has to last",
            show_duration(LOWERED_MAX)
        ));
    }
    let wish = |topology: &Topology, agreed: &AgreedNames| {
        let records = records_of(topology, name)?;
        if records.is_empty() {
            return Err(format!(
                "no record of the topology has the name {name}; what updates have added has the ttl that they gave it"
            ));
        }
        let until = lasts.map(from_now);
        let (lowers, stays) = by_use(&records);
        if until.is_some() && lowers.is_empty() {
            return Err(format!(
                "{name} is remembered for {} anyway: give it a `ttl_degraded` below its `ttl` in the topology",
                longest(&stays, |record| record.ttl)
            ));
        }
        let (mut changes, mut zones) = (Vec::new(), BTreeSet::new());
        // What an earlier file let be lowered ends with `--end`, too.
        let meant = if until.is_some() { &lowers } else { &records };
        for (zone, record) in meant {
            let key = policy_key(zone, &FailoverId::of(record));
            let before = agreed.lowered.get(&key).copied();
            if before.is_some() != until.is_some() {
                zones.insert((*zone).clone());
            }
            if before != until {
                changes.push(NameChange::Lowered { record: key, until });
            }
        }
        let told = told_lowered(name, until, &lowers, &stays);
        Ok(Wish { changes, zones, told })
    };
    grant(&view, name, wish).await
}

/// A record of the topology with its zone.
type Of<'t> = (&'t String, &'t TopologyRecord);

/// Those of a name's records that can be remembered for less long, and those that cannot.
fn by_use<'t>(records: &[Of<'t>]) -> (Vec<Of<'t>>, Vec<Of<'t>>) {
    records.iter().copied().partition(|(_, record)| record.ttl_degraded < record.ttl)
}

fn longest(records: &[Of<'_>], ttl: fn(&TopologyRecord) -> Duration) -> String {
    show_duration(records.iter().map(|(_, record)| ttl(record)).max().unwrap_or_default())
}

/// What people are told once records are remembered for less long, or no more.
fn told_lowered(
    name: &str,
    until: Option<Timestamp>,
    lowers: &[Of<'_>],
    stays: &[Of<'_>],
) -> String {
    let lower = longest(lowers, |record| record.ttl_degraded);
    let ttl = longest(if lowers.is_empty() { stays } else { lowers }, |record| record.ttl);
    let Some(until) = until else { return format!("{name} is remembered for {ttl} again") };
    let mut told = format!(
        "{name} is remembered for {lower} until {until}; caches still have it for up to {ttl} from now"
    );
    if !stays.is_empty() {
        let kinds: BTreeSet<&str> = stays.iter().map(|(_, record)| record.kind.word()).collect();
        let kinds: Vec<&str> = kinds.into_iter().collect();
        told.push_str(&format!(
            "; its {} stays remembered for {}, without a lower `ttl_degraded`",
            kinds.join(", "),
            longest(stays, |record| record.ttl)
        ));
    }
    told
}

/// The records of a name, each with its zone.
fn records_of<'t>(topology: &'t Topology, name: &str) -> Result<Vec<Of<'t>>, String> {
    let wanted = spec::parse(name)?;
    let mut found = Vec::new();
    for (zone, of) in &topology.dns {
        for record in &of.records {
            let own = match record.name.as_str() {
                "@" => zone.clone(),
                own => format!("{own}.{zone}"),
            };
            if spec::parse(&own)? == wanted {
                found.push((zone, record));
            }
        }
    }
    Ok(found)
}

/// The failover policies of a name that go by health, and what each chooses among.
fn failovers_of(topology: &Topology, name: &str) -> Result<Vec<(String, Vec<String>)>, String> {
    let mut found = Vec::new();
    for (zone, record) in records_of(topology, name)? {
        if let Policy::Failover { entries, follows: None, .. } = &record.policy {
            let labels = entries.iter().map(outlast_core::topology::Entry::label).collect();
            found.push((policy_key(zone, &FailoverId::of(record)), labels));
        }
    }
    if found.is_empty() {
        return Err(format!(
            "no record of the topology has the name {name} and the policy \"failover\" that goes by health"
        ));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use tokio::sync::{mpsc, watch};

    use super::*;
    use crate::cluster::Wanted;

    fn topology(records: &str) -> Topology {
        let text = format!(
            "[cluster]\nname = \"t\"\n[dns.\"example.com\"]\nlisten = \"127.0.0.1:5353\"\nrecords = [\n{records}]\n"
        );
        crate::file::parse("t", &text).map_err(|bad| bad.to_string()).unwrap()
    }

    /// What a person is told whose wish is answered like this, and what was to be agreed on.
    async fn told(topology: Topology, says: Reply) -> (Result<String, String>, Vec<NameChange>) {
        let (_topology, topology) = watch::channel(Arc::new(topology));
        let (know, known) = watch::channel(Kept::default());
        let (changes, mut asked) = mpsc::channel::<Wanted>(1);
        let (to_others, changes) = watch::channel(Some(changes));
        let view = View { topology, kept: known, changes };
        let others = async {
            let mut wanted = Vec::new();
            while let Some((NamesCommand::Change { changes, .. }, answer)) = asked.recv().await {
                wanted.push(changes);
                know.send_modify(|kept| Arc::make_mut(&mut kept.agreed).epoch += 1);
                answer.send(Ok(says)).ok();
            }
            wanted
        };
        let person = async {
            let told = lower_ttl(view, "api.example.com", Some(Duration::from_secs(60))).await;
            drop(to_others);
            told
        };
        let (told, wanted) = tokio::join!(person, others);
        (told, wanted.into_iter().flatten().collect())
    }

    const API: &str = "  { name = \"api\", type = \"A\", values = [\"192.0.2.1\"], ttl = \"60s\", ttl_degraded = \"30s\" },\n";
    const LONG: &str = "  { name = \"api\", type = \"TXT\", values = [\"x\"], ttl = \"5m\", ttl_degraded = \"5m\" },\n";

    #[test]
    fn a_record_is_there_whatever_its_ttl_and_the_case_of_its_names() {
        let record = |ttl, kind: &str, data: &str| {
            let (rtype, data) = outlast_dns::zone::Rdata::parse(kind, data).unwrap();
            Record { owner: "m.example.com".parse().unwrap(), rtype, ttl, data }
        };
        let there = [record(60, "MX", "10 mail.example.com."), record(60, "A", "192.0.2.1")];
        assert!(has(&there, &record(300, "MX", "10 MAIL.example.com.")));
        assert!(has(&there, &record(300, "A", "192.0.2.1")));
        assert!(!has(&there, &record(60, "A", "192.0.2.2")));
        assert!(!has(&there, &record(60, "MX", "20 mail.example.com.")));
    }

    #[tokio::test]
    async fn a_name_is_remembered_for_less_long_if_any_of_its_records_can_be() {
        let (said, changes) = told(topology(&format!("{API}{LONG}")), Reply::Done).await;
        let said = said.unwrap();
        assert!(said.contains("remembered for 30s until"), "{said}");
        assert!(said.contains("up to 1m from now; its TXT stays remembered for 5m"), "{said}");
        assert_eq!(changes.len(), 1, "{changes:?}");
        let (said, changes) = told(topology(LONG), Reply::Done).await;
        let said = said.unwrap_err();
        assert!(said.contains("remembered for 5m anyway"), "{said}");
        assert_eq!(changes, []);
    }

    #[tokio::test]
    async fn only_what_was_overtaken_is_tried_again_and_other_refusals_are_told() {
        let over = Reply::Refused { why: Refusal::Over { limit: Limit::NamedThings } };
        let (said, changes) = told(topology(API), over).await;
        let said = said.unwrap_err();
        assert!(said.contains("refused: more than"), "{said}");
        assert_eq!(changes.len(), 1);
        let other = Reply::Refused { why: Refusal::OtherEpoch { current: 8 } };
        let (said, changes) = told(topology(API), other).await;
        assert_eq!(said.unwrap_err(), "other changes keep coming first; ask again");
        assert_eq!(changes.len(), TRIES as usize);
    }
}
