use super::*;
use crate::dnssec::{Signatures, ZoneKey};
use crate::respond::HEAD;
use crate::wire::read_record;
use crate::zone::{Rdata, ZoneSpec};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// A zone whose records follow from its serial.
fn table(serial: u32, names: u32, signed: bool) -> Table {
    let mut text =
        format!("$TTL 60\n@ IN SOA ns1 host {serial} 300 60 604800 5\n@ NS ns1\nns1 A 127.0.0.1\n");
    for n in serial % 7..serial % 7 + names {
        text += &format!("www{n} A 192.0.2.{}\n", n % 250);
    }
    let mut spec = ZoneSpec::from_zone_file(&name("example.com"), &text).unwrap();
    spec.key = signed.then(|| ZoneKey::from_pkcs8(&ZoneKey::generate().unwrap()).unwrap().into());
    Table::build(&[spec], &mut Signatures::default(), 1_000_000).unwrap()
}

fn records(table: &Table) -> Vec<Record> {
    table.zone(name("example.com").wire()).unwrap().records.to_vec()
}

fn question(rtype: Rtype, serial: Option<u32>) -> Vec<u8> {
    let mut message = Message::new(7, [0, 0], &name("example.com"), rtype);
    let numbers = [serial.unwrap_or(0), 0, 0, 0, 0].map(u32::to_be_bytes);
    let data = Rdata([&[0, 0], numbers.as_flattened()].concat());
    let soa = Record { owner: name("example.com"), rtype: Rtype::SOA, ttl: 0, data };
    if serial.is_some() {
        message.push(2, &soa, IN, 512);
    }
    message.0
}

/// All records of all messages.
fn sent(mut transfer: Transfer) -> (Vec<Record>, usize) {
    let (mut all, mut messages) = (Vec::new(), 0);
    while let Some(message) = transfer.next() {
        messages += 1;
        assert!(message.len() <= TRANSFER_MESSAGE_MAX);
        let mut at = Question::read(&message).map_or(HEAD, |question| question.end());
        for _ in 0..count(&message, 1) {
            let read = read_record(&message, at).expect("a whole record");
            all.push(read.record);
            at = read.end;
        }
        assert_eq!(at, message.len());
    }
    (all, messages)
}

/// What a secondary makes of a transfer (RFC 1995 4): the whole zone, or changes to what it has.
fn follow(had: &[Record], sent: &[Record]) -> Vec<Record> {
    let is_soa = |record: &Record| record.rtype == Rtype::SOA;
    if sent.len() == 1 {
        return had.to_vec();
    }
    let (_, rest) = sent.split_last().unwrap();
    if !is_soa(&sent[1]) {
        return rest.to_vec();
    }
    let mut zone: BTreeSet<Record> = had.iter().cloned().collect();
    let mut removes = false;
    for record in &rest[1..] {
        removes ^= is_soa(record);
        if removes {
            assert!(zone.remove(record), "{record:?} is not there");
        } else {
            assert!(zone.insert(record.clone()), "{record:?} is there already");
        }
    }
    let (first, others): (Vec<Record>, Vec<Record>) = zone.into_iter().partition(is_soa);
    first.into_iter().chain(others).collect()
}

#[test]
fn a_secondary_that_has_any_serial_ends_with_the_zone() {
    let mut history = History::default();
    let mut tables = vec![table(u32::MAX - 3, 5, false)];
    history.note(&Table::default(), &tables[0]);
    for step in 1..100u32 {
        let next = table((u32::MAX - 3).wrapping_add(step), 5, false);
        let changed = history.note(tables.last().unwrap(), &next);
        assert_eq!(changed, [name("example.com")]);
        tables.push(next);
    }
    let latest = tables.last().unwrap();
    for (step, had) in tables.iter().enumerate() {
        let serial = (u32::MAX - 3).wrapping_add(u32::try_from(step).unwrap());
        let transfer =
            Transfer::begin(&question(Rtype::IXFR, Some(serial)), latest, &history).unwrap();
        let (sent, _) = sent(transfer);
        let is_incremental = sent.get(1).is_some_and(|second| second.rtype == Rtype::SOA);
        assert_eq!(is_incremental, step + CHANGES_MAX > 98 && step < 99, "{step}");
        assert_eq!(follow(&records(had), &sent), records(latest), "{step}");
    }
    assert!(history.note(latest, latest).is_empty());
}

#[test]
fn a_zone_begins_and_ends_with_its_soa_over_many_messages() {
    let table = table(1, 2_000, false);
    let transfer = Transfer::begin(&question(Rtype::AXFR, None), &table, &History::default());
    let (sent, messages) = sent(transfer.unwrap());
    let own = records(&table);
    assert!(messages > 3 && sent[..sent.len() - 1] == own && sent.last() == own.first());
}

#[test]
fn signed_zones_are_given_whole_and_unknown_ones_refused() {
    let (old, new) = (table(1, 3, true), table(2, 3, true));
    let mut history = History::default();
    history.note(&Table::default(), &old);
    history.note(&old, &new);
    let (all, _) = sent(Transfer::begin(&question(Rtype::IXFR, Some(1)), &new, &history).unwrap());
    assert_eq!(all[..all.len() - 1], records(&new));
    assert!(all.iter().filter(|record| record.rtype == Rtype::RRSIG).count() > 8);
    let begin = |message: &[u8], table: &Table| Transfer::begin(message, table, &history).map(drop);
    assert_eq!(begin(&question(Rtype::AXFR, None), &Table::default()), Err(Rcode::NOTAUTH));
    assert_eq!(begin(&question(Rtype::IXFR, None), &new), Err(Rcode::FORMERR));
}
