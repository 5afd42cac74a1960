use std::borrow::ToOwned as _;
use std::collections::BTreeMap;
use std::string::String;
use std::time::Duration;
use std::vec::Vec;

use crate::agreed::*;
use crate::database::*;
use crate::time::Instant;

const LATER: Duration = Duration::from_secs(1);

fn rule(acks: u32, of: &str) -> Confirm {
    let of = of.chars().map(String::from).collect();
    Confirm { since: 7, acks, of }
}

/// "b+120" is a sender whose standby counts and has flushed 120; "b-120" counts for nothing, "b?" has not caught up.
fn senders(text: &str) -> Vec<Sender> {
    let sender = |word: &str| {
        let (standby, rest) = word.split_at(1);
        let flushed = rest.trim_start_matches(['+', '-', '?']).parse().unwrap_or(0);
        let (streams, counts) = (!rest.starts_with('?'), rest.starts_with('+'));
        Sender { standby: standby.to_owned(), streams, counts, flushed }
    };
    text.split_whitespace().map(sender).collect()
}

/// Looks one after the other, each with the end of the log and the senders; says at which one the rule has come true.
fn check_proof(rule: &Confirm, looks: &[(u64, &str)], shown: Option<usize>) {
    let mut proof = Proof::default();
    let at = looks.iter().position(|(end, text)| proof.look(rule, LATER, *end, &senders(text)));
    assert_eq!(at, shown, "{looks:?}");
}

#[test]
fn a_rule_has_come_true_once_all_go_by_it_and_enough_hold_all_that_was_acknowledged() {
    let one = rule(1, "bc");
    let well = [(100, "b+100 c+100"), (110, "b+110 c+110"), (120, "b+120 c+0"), (130, "b+120 c+0")];
    check_proof(&one, &well, Some(3));
    // c counts under both rules, and may still go by the old one.
    let late = [(100, "b+100 c+100"), (110, "b+110 c+100"), (120, "b+120 c+100")];
    check_proof(&one, &late, None);
    // One of the old rule still counts.
    let old = [(100, "b+100 d+100"), (110, "b+110 d+110"), (120, "b+120 d+120")];
    check_proof(&one, &old, None);
    let gone = [(100, "b+100 d+100"), (110, "b+110 d-110"), (120, "b+120"), (130, "b+130")];
    check_proof(&one, &gone, Some(3));
    // One that has not caught up releases nothing.
    let behind = [(100, "b+100 c?"), (110, "b+110 c?"), (120, "b+120 c?"), (130, "b+130 c?")];
    check_proof(&one, &behind, Some(3));
    // What was acknowledged until all went by the new rule is on b only.
    let held = [(100, "b+100 c+100"), (110, "b+110 c+110"), (120, "b+120 c+110")];
    let more = [held.as_slice(), &[(130, "b+130 c+119"), (130, "b+130 c+120")]].concat();
    check_proof(&rule(2, "bc"), &more, Some(4));
    check_proof(&rule(0, "a"), &[(100, "b+0")], Some(0));
}

#[test]
fn the_checkpointer_gets_its_time() {
    let (mut proof, rule) = (Proof::default(), rule(1, "b"));
    for end in 0..9 {
        let early = Duration::from_millis(299);
        assert!(!proof.look(&rule, early, end, &senders("b+10")));
    }
}

#[test]
fn one_that_does_not_answer_hangs_after_two_looks_or_one_if_it_is_frozen() {
    assert!(Pulse::default().hangs(true));
    let mut pulse = Pulse::default();
    assert_eq!([pulse.hangs(false), pulse.hangs(false)], [false, true]);
    pulse.answers();
    assert_eq!([pulse.hangs(false), pulse.hangs(false)], [false, true]);
}

#[test]
fn a_write_counts_for_four_seconds() {
    let at = |seconds| Instant::from_start(Duration::from_secs(seconds));
    let mut pulse = Pulse::default();
    assert!(!pulse.writes(at(0), false));
    let writes = [(1, true), (5, false), (6, false), (7, true), (8, false)];
    let writes = writes.map(|(now, wrote)| pulse.writes(at(now), wrote));
    assert_eq!(writes, [true, true, false, true, true]);
    assert_eq!([15, 16].map(|now| pulse.may_write(at(now))), [true, false]);
}

#[test]
fn who_is_unfit_says_why() {
    let why = |paused, delay, free| why_unfit(paused, Duration::from_secs(delay), free);
    assert_eq!(why(false, 0, 0), None);
    assert_eq!(why(false, 0, 64 << 20), None);
    assert_eq!(why(true, 0, 1 << 40).as_deref(), Some("its replay is paused"));
    assert_eq!(why(false, 1, 1 << 40).as_deref(), Some("it replays with a delay"));
    assert_eq!(why(false, 0, 63 << 20).as_deref(), Some("only 63 MiB are free on its disk"));
}

#[test]
fn who_lags_gets_no_new_readers() {
    let reign = Reign { primary: "a".to_owned(), open: true, ..Reign::default() };
    let agreed = Database { reign, ..Database::default() };
    let sight = |state, timeline, lsn, follows: Option<&str>| MemberSight {
        state,
        reaches: Position { timeline, lsn },
        follows: follows.map(str::to_owned),
        ..MemberSight::default()
    };
    let check = |agreed: Option<&Database>, member, expected| {
        let primary = sight(MemberState::Primary, 2, 100, None);
        let members = BTreeMap::from([("a".to_owned(), primary), ("b".to_owned(), member)]);
        assert_eq!(readable(agreed, &members, "b", 10), expected);
    };
    let standby = |timeline, lsn, follows| sight(MemberState::Standby, timeline, lsn, follows);
    check(Some(&agreed), standby(2, 90, Some("a")), Readable::Yes);
    check(Some(&agreed), standby(2, 89, Some("a")), Readable::NoNew);
    check(Some(&agreed), standby(1, 100, Some("a")), Readable::NoNew);
    check(Some(&agreed), standby(2, 100, None), Readable::NoNew);
    check(None, standby(1, 0, None), Readable::Yes);
    check(Some(&agreed), sight(MemberState::Rewinding, 2, 100, None), Readable::No);
    let none = BTreeMap::new();
    assert_eq!(readable(Some(&agreed), &none, "b", 10), Readable::No);
    assert_eq!(readable(Some(&agreed), &none, "a", 10), Readable::Primary);
}
