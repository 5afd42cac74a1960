//! What updates had added to zones of a node that was alone, or of a cluster that is founded anew: it goes along into company.
//!
//! Others may have added something else meanwhile, and the topology may have changed. So a zone is given only what it can take
//! beside what it has: a record that cannot be answered would take all that were added from everybody.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use outlast_core::agreed::{AddedRecord, AgreedNames, Limit, NameChange, NamesCommand, Reply};
use outlast_core::names::digest;
use outlast_core::topology::{Topology, Zone};
use outlast_dns::name::Name;
use outlast_dns::zone::{Rdata, Record, Rtype};

use super::store::{self, Kept};
use super::update::{BATCH, KNOWN_MAX, agree, builds, of_file, overtaken, plan, records};
use super::{View, changed, spec};

/// How often it is tried which of some records a zone cannot take.
const TRIALS_MAX: usize = 64;

/// Bytes of a record that people are told.
const SHOWN_MAX: usize = 512;

/// What came of bringing records along.
#[derive(Debug)]
pub(super) struct Brought {
    pub(super) zone: String,
    /// These are agreed on by now, or never will be.
    pub(super) settled: BTreeSet<AddedRecord>,
    /// Nobody could be asked: not at once again.
    pub(super) later: bool,
}

/// Has agreed on what this node added to a zone while it was alone; the desk asks again for what is left.
pub(super) async fn bring(view: View, zone: String) -> Brought {
    let topology = view.topology.borrow().clone();
    let kept = view.kept.borrow().clone();
    let all = kept.to_bring.get(&zone).cloned().unwrap_or_default();
    let batch: BTreeSet<AddedRecord> = all.iter().take(BATCH).cloned().collect();
    let come_to = |settled, later| Brought { zone: zone.clone(), settled, later };
    let put_off = |why: String| {
        tracing::info!(zone, why, "records that updates have added are not brought along yet");
        come_to(BTreeSet::new(), true)
    };
    let Some(of) = topology.dns.get(&zone).cloned() else {
        return put_off("this node's file does not have the zone".to_owned());
    };
    let (name, before, some) = (zone.clone(), kept.clone(), batch.clone());
    let fits = tokio::task::spawn_blocking(move || fit(&name, &of, &before, &some)).await;
    let Fit { changes, left } = match fits {
        Ok(Ok(fit)) => fit,
        Ok(Err(why)) => return put_off(why),
        Err(error) => return put_off(error.to_string()),
    };
    let from = kept.agreed.epoch;
    let mut settled = batch;
    if !changes.is_empty() {
        let command = NamesCommand::Change { from, changes, zones: BTreeSet::from([zone.clone()]) };
        match agree(&view, command).await {
            Ok(Reply::Done) => {}
            Ok(reply) if overtaken(&reply) => settled = BTreeSet::new(),
            Ok(reply) => {
                let why = reply.to_string();
                all.iter().for_each(|record| warn(&zone, record, &why));
                return come_to(all, false);
            }
            Err(why) => return put_off(why),
        }
        let mut known = view.kept.clone();
        let newer = known.wait_for(|now| from != now.agreed.epoch);
        tokio::time::timeout(KNOWN_MAX, newer).await.ok();
    }
    if !settled.is_empty() {
        left.iter().for_each(|(record, why)| warn(&zone, record, why));
    }
    come_to(settled, false)
}

/// The zone whose turn it is after the last one, if there is any.
pub(super) fn next<'z>(
    zones: impl Iterator<Item = &'z String> + Clone,
    last: Option<&String>,
) -> Option<&'z String> {
    zones.clone().find(|zone| last.is_none_or(|last| last < *zone)).or_else(|| zones.min())
}

/// The first change that all agree on, with what updates had added to the zones by what this node answered last.
pub(crate) fn founding(
    data_dir: &Path,
    topology: &Topology,
    agreed: &AgreedNames,
    command: NamesCommand,
) -> NamesCommand {
    found(store::load(data_dir).in_company(), topology, agreed, command)
}

fn found(
    kept: Kept,
    topology: &Topology,
    agreed: &AgreedNames,
    command: NamesCommand,
) -> NamesCommand {
    let Ok(after) = changed(agreed, &command) else { return command };
    let NamesCommand::Change { from, mut changes, zones } = command;
    let base = Kept { agreed: Arc::new(after), ..Kept::default() };
    let none = BTreeSet::new();
    let (mut later, mut lost) = (0, 0);
    for (name, zone) in
        topology.dns.iter().filter(|(name, _)| base.agreed.zones.contains_key(*name))
    {
        let alone = kept.to_bring.get(name).unwrap_or(&none);
        let agreed_on = kept.agreed.zones.get(name).map_or(&none, |zone| &zone.records);
        // What was added alone can be brought later as well: it comes last.
        let mut wanted: Vec<&AddedRecord> = agreed_on.difference(alone).chain(alone).collect();
        let room = Limit::NameChanges.most().saturating_sub(changes.len()).min(wanted.len());
        let over = wanted.split_off(room);
        let waits = over.iter().filter(|record| alone.contains(**record)).count();
        (later, lost) = (later + waits, lost + over.len() - waits);
        if wanted.is_empty() {
            continue;
        }
        match fit(name, zone, &base, wanted) {
            Ok(fit) => {
                fit.left.iter().for_each(|(record, why)| warn(name, record, why));
                changes.extend(fit.changes);
            }
            Err(why) => {
                tracing::warn!(
                    zone = name,
                    why,
                    "records that updates had added are not brought along"
                );
            }
        }
    }
    if 0 < later {
        tracing::info!(later, "records that updates had added are brought along once all agree");
    }
    if 0 < lost {
        tracing::warn!(
            lost,
            "records that updates had added are too many to be brought along; import them again"
        );
    }
    NamesCommand::Change { from, changes, zones }
}

/// Where a node is alone again, what others have not agreed on yet is its own once more. What is of a zone that cannot be
/// answered now waits for the next start.
pub(super) fn alone_again(mut kept: Kept, topology: &Topology) -> Kept {
    for (name, mut waiting) in std::mem::take(&mut kept.to_bring) {
        if let Some(zone) = topology.dns.get(&name) {
            let all: Vec<AddedRecord> = waiting.iter().cloned().collect();
            for some in all.chunks(BATCH) {
                match take_in(&name, zone, &kept, some) {
                    Ok(agreed) => {
                        kept.agreed = Arc::new(agreed);
                        waiting.retain(|record| !some.contains(record));
                    }
                    Err(why) => {
                        tracing::warn!(
                            zone = name,
                            why,
                            "records that updates had added are not answered"
                        );
                    }
                }
            }
        }
        if !waiting.is_empty() {
            kept.to_bring.insert(name, waiting);
        }
    }
    kept
}

/// What is known once a zone has taken what it can.
fn take_in(
    name: &str,
    zone: &Zone,
    kept: &Kept,
    records: &[AddedRecord],
) -> Result<AgreedNames, String> {
    let from = |agreed: &AgreedNames, changes| NamesCommand::Change {
        from: agreed.epoch,
        changes,
        zones: BTreeSet::from([name.to_owned()]),
    };
    let mut kept = kept.clone();
    if !kept.agreed.zones.contains_key(name) {
        let new = NameChange::Zone { zone: name.to_owned(), digest: Some(digest(zone)) };
        let with = changed(&kept.agreed, &from(&kept.agreed, vec![new]));
        kept.agreed = Arc::new(with.map_err(|why| why.to_string())?);
    }
    let Fit { changes, left } = fit(name, zone, &kept, records)?;
    left.iter().for_each(|(record, why)| warn(name, record, why));
    changed(&kept.agreed, &from(&kept.agreed, changes)).map_err(|why| why.to_string())
}

/// What a zone can take of some records, and what it cannot.
#[derive(Debug, Default)]
struct Fit {
    /// What has to be agreed on so that it has them.
    changes: Vec<NameChange>,
    /// What it cannot have, and why.
    left: Vec<(AddedRecord, &'static str)>,
}

/// Finds what a zone can take, as if an update added it; but nothing that is there gives way. There is an error where the zone
/// cannot be answered as it is: that has to be mended first.
fn fit<'r>(
    name: &str,
    zone: &Zone,
    kept: &Kept,
    wanted: impl IntoIterator<Item = &'r AddedRecord>,
) -> Result<Fit, String> {
    builds(name, zone, &kept.agreed, kept)?;
    let plain = Zone { dnssec: false, ..zone.clone() };
    let spec = spec::spec(name, &plain, &kept.agreed, &kept.secrets)?;
    let of_file = of_file(&spec.name, name, zone, &kept.agreed)?;
    let mut there: BTreeMap<Name, BTreeSet<(Rtype, Rdata)>> = BTreeMap::new();
    for record in records(&spec) {
        let data = (record.rtype, record.data.canonical(record.rtype));
        there.entry(record.owner).or_default().insert(data);
    }
    let (mut fit, mut new) = (Fit::default(), Vec::new());
    for added in wanted {
        let Some(record) = spec::read(added) else {
            fit.left.push((added.clone(), "it cannot be read"));
            continue;
        };
        // Whatever its time to live.
        let data = (record.rtype, record.data.canonical(record.rtype));
        let beside = there.entry(record.owner.clone()).or_default();
        if beside.contains(&data) {
            continue;
        }
        let mut filed = of_file.iter().filter(|(owner, _)| *owner == record.owner).map(|it| it.1);
        let alias = |rtype| rtype == Rtype::CNAME || record.rtype == Rtype::CNAME;
        if filed.any(|rtype| rtype == record.rtype || alias(rtype)) {
            fit.left.push((added.clone(), "the topology has what it would stand beside"));
        } else if beside.iter().any(|(rtype, _)| alias(*rtype)) {
            fit.left.push((added.clone(), "a name with a CNAME has nothing else"));
        } else {
            beside.insert(data);
            new.push((added.clone(), record));
        }
    }
    let (mut taken, mut open, mut trials): (Vec<Record>, _, _) = (Vec::new(), vec![new], 0);
    while let Some(mut some) = open.pop() {
        if some.is_empty() {
            continue;
        }
        let more = some.iter().map(|(_, record)| record.clone());
        let trial: Vec<Record> = taken.iter().cloned().chain(more).collect();
        trials += 1;
        match plan(name, zone, kept, |now| Ok([now, &trial[..]].concat())) {
            Ok(changes) => (fit.changes, taken) = (changes, trial),
            Err(_) if some.len() == 1 || TRIALS_MAX <= trials => {
                let why = "the zone cannot be answered with it, or would be too large";
                fit.left.extend(some.into_iter().map(|(added, _)| (added, why)));
            }
            // Which of them it is: by halves.
            Err(_) => {
                let second = some.split_off(some.len() / 2);
                open.extend([second, some]);
            }
        }
    }
    Ok(fit)
}

/// A record that no zone has any more, in the form that `nsupdate` takes for all types (RFC 3597 5): a person may want it.
fn warn(zone: &str, record: &AddedRecord, why: &str) {
    tracing::warn!(
        zone,
        why,
        "{} is not brought along; add it again if it is wanted",
        show(record)
    );
}

fn show(record: &AddedRecord) -> String {
    let owner = Name::from_wire(&record.owner).map_or_else(|| "?".to_owned(), |it| it.to_string());
    let AddedRecord { rtype, ttl, data, .. } = record;
    let mut shown = format!("{owner} {ttl} TYPE{rtype} \\# {} ", data.len());
    shown.extend(data.iter().take(SHOWN_MAX).map(|byte| format!("{byte:02X}")));
    if SHOWN_MAX < data.len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use outlast_core::agreed::{AgreedZone, Refusal};
    use tokio::sync::{mpsc, watch};

    use super::*;
    use crate::cluster::Wanted;

    const ZONE: &str = "example.com";

    fn topology() -> Topology {
        let text = "[cluster]\nname = \"t\"\n[dns.\"example.com\"]\nlisten = \"127.0.0.1:5353\"\nrecords = [\n  \
                    { name = \"www\", type = \"A\", values = [\"192.0.2.1\"] },\n  \
                    { name = \"alias\", type = \"CNAME\", values = [\"www.example.com\"] },\n]\n";
        crate::file::parse("t", text).map_err(|bad| bad.to_string()).unwrap()
    }

    fn record(name: &str, ttl: u32, kind: &str, data: &str) -> AddedRecord {
        let owner = format!("{name}.{ZONE}").parse().unwrap();
        let (rtype, data) = Rdata::parse(kind, data).unwrap();
        spec::write(&Record { owner, rtype, ttl, data })
    }

    fn agreed(epoch: u64, records: &[AddedRecord]) -> AgreedNames {
        let records = records.iter().cloned().collect();
        let zone = AgreedZone { records, ..AgreedZone::default() };
        let zones = BTreeMap::from([(ZONE.to_owned(), zone)]);
        AgreedNames { epoch, zones, ..AgreedNames::default() }
    }

    fn waiting(records: &[AddedRecord]) -> BTreeMap<String, BTreeSet<AddedRecord>> {
        BTreeMap::from([(ZONE.to_owned(), records.iter().cloned().collect())])
    }

    fn added(changes: &[NameChange]) -> BTreeSet<AddedRecord> {
        let one = |change: &NameChange| {
            let NameChange::Record { record, present: true, .. } = change else {
                panic!("{change:?}")
            };
            record.clone()
        };
        changes.iter().map(one).collect()
    }

    /// What is there, what is to come along, and whether it can.
    #[test]
    fn only_what_a_zone_can_have_beside_what_it_has_comes_along() {
        let there = [
            record("a", 60, "A", "192.0.2.7"),
            record("b", 60, "CNAME", "www.example.com."),
            record("m", 60, "MX", "10 mail.example.com."),
        ];
        let large = "x".repeat(200);
        let (topology, kept) =
            (topology(), Kept { agreed: agreed(7, &there).into(), ..Kept::default() });
        for (what, wanted, taken, left) in [
            ("another address", record("a", 60, "A", "192.0.2.8"), 1, 0),
            ("a new name", record("c", 60, "TXT", &large), 1, 0),
            ("the same with another ttl", record("a", 300, "A", "192.0.2.7"), 0, 0),
            ("the same in other letters", record("m", 60, "MX", "10 MAIL.example.com."), 0, 0),
            ("the same as in the file", record("www", 300, "A", "192.0.2.1"), 0, 0),
            ("an address beside an alias", record("b", 60, "A", "192.0.2.7"), 0, 1),
            ("an alias beside an address", record("a", 60, "CNAME", "www.example.com."), 0, 1),
            ("another alias", record("b", 60, "CNAME", "a.example.com."), 0, 1),
            ("what the file has", record("www", 60, "A", "192.0.2.9"), 0, 1),
            ("beside an alias of the file", record("alias", 60, "A", "192.0.2.9"), 0, 1),
            ("out of the zone", AddedRecord { owner: vec![0], ..there[0].clone() }, 0, 1),
            ("rubbish", AddedRecord { owner: vec![9], ..there[0].clone() }, 0, 1),
        ] {
            // Each with one that can come, so that none takes the others with it.
            let good = record("good", 60, "A", "192.0.2.99");
            let fit = fit(ZONE, &topology.dns[ZONE], &kept, [&wanted, &good]).unwrap();
            assert_eq!((fit.changes.len(), fit.left.len()), (taken + 1, left), "{what}: {fit:?}");
            assert!(added(&fit.changes).contains(&good), "{what}");
        }
    }

    #[test]
    fn a_set_that_would_be_too_large_is_taken_as_far_as_it_goes() {
        let text = |number: usize| format!("{number:0255}").into_bytes();
        let owner = record("a", 60, "TXT", "x").owner;
        let wanted: Vec<AddedRecord> = (0..200)
            .map(|number| AddedRecord {
                owner: owner.clone(),
                rtype: 16,
                ttl: 60,
                data: [vec![255], text(number)].concat(),
            })
            .collect();
        let kept = Kept { agreed: agreed(7, &[]).into(), ..Kept::default() };
        let fit = fit(ZONE, &topology().dns[ZONE], &kept, &wanted).unwrap();
        // 32 KiB of 268 bytes each.
        assert_eq!((fit.changes.len(), fit.left.len()), (122, 78));
    }

    /// What this node brings, what the others say to it, and what is left then.
    async fn brought(
        topology: Topology,
        kept: Kept,
        says: Result<Reply, String>,
    ) -> (Brought, Option<NamesCommand>) {
        let (_topology, topology) = watch::channel(Arc::new(topology));
        let (know, known) = watch::channel(kept);
        let (changes, mut asked) = mpsc::channel::<Wanted>(1);
        let (_changes, changes) = watch::channel(Some(changes));
        let view = View { topology, kept: known, changes };
        let others = async {
            let (command, answer) = asked.recv().await?;
            answer.send(says).ok();
            know.send_modify(|kept| Arc::make_mut(&mut kept.agreed).epoch += 1);
            Some(command)
        };
        let bringing = bring(view, ZONE.to_owned());
        tokio::pin!(bringing, others);
        tokio::select! {
            biased;
            brought = &mut bringing => (brought, None),
            command = &mut others => (bringing.await, command),
        }
    }

    #[tokio::test]
    async fn what_others_refuse_is_dropped_and_what_they_could_not_hear_waits() {
        let clash = record("b", 60, "A", "192.0.2.7");
        let good = record("good", 60, "A", "192.0.2.99");
        let both = [clash, good.clone()];
        let there = [record("b", 60, "CNAME", "www.example.com.")];
        let kept =
            Kept { agreed: agreed(7, &there).into(), to_bring: waiting(&both), ..Kept::default() };
        let refused = |why| Ok(Reply::Refused { why });
        for (what, says, settled, later) in [
            ("agreed on", Ok(Reply::Done), 2, false),
            ("overtaken", refused(Refusal::OtherEpoch { current: 8 }), 0, false),
            ("refused", refused(Refusal::Over { limit: Limit::ZoneRecords }), 2, false),
            ("nobody leads", Err("nobody leads".to_owned()), 0, true),
        ] {
            let (brought, command) = brought(topology(), kept.clone(), says).await;
            assert_eq!((brought.settled.len(), brought.later), (settled, later), "{what}");
            let Some(NamesCommand::Change { from: 7, changes, .. }) = command else {
                panic!("{what}: {command:?}")
            };
            assert_eq!(added(&changes), BTreeSet::from([good.clone()]), "{what}");
        }
        // Nothing is asked for what clashes alone, or is there.
        let to_bring = waiting(&[both[0].clone(), there[0].clone()]);
        let (brought, command) =
            brought(topology(), Kept { to_bring, ..kept }, Ok(Reply::Done)).await;
        assert_eq!((brought.settled.len(), brought.later, command), (2, false, None));
    }

    #[test]
    fn what_does_not_come_along_is_told_so_that_it_can_be_added_again() {
        let shown = show(&record("a", 60, "A", "192.0.2.7"));
        assert_eq!(shown, "a.example.com. 60 TYPE1 \\# 4 C0000207");
    }

    #[test]
    fn each_zone_has_its_turn() {
        let zones = ["a", "b", "c"].map(str::to_owned);
        for (last, wanted) in
            [(None, "a"), (Some("a"), "b"), (Some("bb"), "c"), (Some("c"), "a"), (Some("d"), "a")]
        {
            let last = last.map(str::to_owned);
            assert_eq!(next(zones.iter(), last.as_ref()).unwrap(), wanted, "after {last:?}");
        }
        assert_eq!(next([].iter(), None), None);
    }

    #[test]
    fn a_cluster_is_founded_with_what_was_agreed_on_before_and_what_was_added_alone_beside_it() {
        let before = [record("b", 60, "CNAME", "www.example.com.")];
        let alone = [record("b", 60, "A", "192.0.2.7"), record("c", 60, "A", "192.0.2.7")];
        let kept = Kept {
            agreed: agreed(9, &before).into(),
            to_bring: waiting(&alone),
            ..Kept::default()
        };
        let zone = NameChange::Zone { zone: ZONE.to_owned(), digest: Some(1) };
        let command = NamesCommand::Change { from: 0, changes: vec![zone], zones: BTreeSet::new() };
        let topology = topology();
        let NamesCommand::Change { changes, .. } =
            found(kept.clone(), &topology, &AgreedNames::default(), command);
        assert_eq!(added(&changes[1..]), BTreeSet::from([before[0].clone(), alone[1].clone()]));
        // A zone that the first change does not have cannot have records either.
        let other = NamesCommand::Change { from: 0, changes: vec![], zones: BTreeSet::new() };
        assert_eq!(found(kept, &topology, &AgreedNames::default(), other.clone()), other);
    }

    #[test]
    fn a_node_that_is_alone_again_answers_what_the_others_have_not_taken() {
        let alone = [record("b", 60, "A", "192.0.2.7"), record("c", 60, "A", "192.0.2.7")];
        for there in [AgreedNames::default(), agreed(9, &[])] {
            let kept = Kept {
                agreed: there.into(),
                to_bring: [
                    waiting(&alone),
                    [("example.org".to_owned(), alone.clone().into())].into(),
                ]
                .into_iter()
                .flatten()
                .collect(),
                ..Kept::default()
            };
            let after = alone_again(kept, &topology());
            let zone = &after.agreed.zones[ZONE];
            assert_eq!(zone.records, alone.clone().into());
            assert!(0 < zone.serial);
            // A zone that the file does not have now may come back.
            let others: Vec<&str> = after.to_bring.keys().map(String::as_str).collect();
            assert_eq!(others, ["example.org"]);
        }
    }
}
