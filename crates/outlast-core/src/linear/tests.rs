//! The checker against every order that there is, on thousands of small histories, and against anomalies by name.

use std::borrow::ToOwned as _;
use std::collections::BTreeMap;
use std::format;
use std::string::{String, ToString as _};
use std::vec::Vec;

use expect_test::{Expect, expect};

use super::*;
use crate::sim::Rng;

fn value(word: &str) -> Option<Vec<u8>> {
    (word != "-").then(|| word.as_bytes().to_vec())
}

/// `10-20 put a`, `10-? put a`, `10-20 get a` (`-` is nothing), `10-20 delete`, `10-20 cas a b` and `10-20 cas a b !` for
/// one that found something else. The line's number is the client; `k2:` before the word names another key.
fn read(history: &str) -> Vec<Call> {
    let lines = history.lines().map(str::trim).filter(|line| !line.is_empty());
    (1..).zip(lines).map(|(client, line)| call(client, line)).collect()
}

fn call(client: u64, line: &str) -> Call {
    let words: Vec<&str> = line.split(' ').collect();
    let (invoked, returned) = words[0].split_once('-').unwrap();
    let (key, word) = words[1].split_once(':').unwrap_or(("k", words[1]));
    let some = |word: &str| value(word).expect("a value");
    let operation = match (word, &words[2..]) {
        ("put", [value]) => Operation::Put { value: some(value) },
        ("get", [seen]) => Operation::Get { seen: value(seen) },
        ("delete", []) => Operation::Delete,
        ("cas", [expected, to]) => {
            Operation::Cas { expected: value(expected), value: some(to), done: true }
        }
        ("cas", [expected, to, "!"]) => {
            Operation::Cas { expected: value(expected), value: some(to), done: false }
        }
        _ => panic!("`{line}` is no call"),
    };
    let (key, invoked) = (key.as_bytes().to_vec(), invoked.parse().unwrap());
    Call { client, key, operation, invoked, returned: returned.parse().ok() }
}

#[track_caller]
fn check_history(history: &str, says: Expect) {
    let verdict = check(&read(history), Start::Empty, TRIES_MAX);
    says.assert_eq(&match verdict {
        Verdict::Linearizable => "linearizable".to_owned(),
        Verdict::Violated(violation) => violation.to_string(),
        Verdict::Undecided { key } => format!("undecided: {}", show(&key)),
    });
}

#[test]
fn calls_that_overlap_may_come_in_any_order() {
    check_history("0-10 put a \n 5-15 put b \n 20-30 get a", expect!["linearizable"]);
    check_history("0-10 put a \n 5-15 put b \n 20-30 get b", expect!["linearizable"]);
    check_history("0-10 put a \n 10-15 get -", expect!["linearizable"]);
}

#[test]
fn a_stale_read_is_found() {
    check_history(
        "0-10 put a \n 11-12 get a \n 20-30 put b \n 31-40 get b \n 41-50 get a \n 60-70 get b",
        expect![[r#"
            no order explains these calls of key `k`, which held anything before:
              31..40 client 4: get saw `b`
              41..50 client 5: get saw `a`"#]],
    );
    check_history(
        "0-10 put a \n 20-90 put b \n 30-40 get b \n 50-60 get a",
        expect![[r#"
        no order explains these calls of key `k`, which held anything before:
          20..? client 2: put `b`
          30..40 client 3: get saw `b`
          50..60 client 4: get saw `a`"#]],
    );
}

#[test]
fn a_lost_update_is_found() {
    check_history(
        "0-10 put a \n 20-30 get a \n 21-31 get a \n 40-50 cas a b \n 45-55 cas a c \n 60-70 get c",
        expect![[r#"
            no order explains these calls of key `k`, which held anything before:
              40..50 client 4: cas from `a` to `b` was done
              45..55 client 5: cas from `a` to `c` was done"#]],
    );
    check_history(
        "0-10 put a \n 20-30 put b \n 40-50 cas a c !\n 60-70 get a",
        expect![[r#"
        no order explains these calls of key `k`, which held anything before:
          20..30 client 2: put `b`
          60..70 client 4: get saw `a`"#]],
    );
}

#[test]
fn a_value_that_comes_back_after_its_deletion_is_found() {
    check_history(
        "0-10 put a \n 20-30 delete \n 31-35 get - \n 40-50 get a",
        expect![[r#"
        no order explains these calls of key `k`, which held anything before:
          31..35 client 3: get saw nothing
          40..50 client 4: get saw `a`"#]],
    );
}

#[test]
fn a_value_that_nobody_wrote_is_found() {
    check_history(
        "0-10 k1:put a \n 20-30 k2:get a",
        expect![[r#"
        no order explains these calls of key `k2`, which held nothing before:
          20..30 client 2: get saw `a`
        nobody ever wrote `a`"#]],
    );
}

#[test]
fn a_call_without_an_answer_takes_effect_once_later_or_never() {
    check_history("0-? put a \n 5-10 get - \n 90-95 get a \n 96-97 get a", expect!["linearizable"]);
    check_history("0-? put a \n 5-10 get - \n 90-95 get -", expect!["linearizable"]);
    check_history(
        "0-? put a \n 5-10 get a \n 20-30 delete \n 31-32 get - \n 40-50 get a",
        expect![[r#"
            no order explains these calls of key `k`, which held nothing before:
              0..? client 1: put `a`
              5..10 client 2: get saw `a`
              20..30 client 3: delete
              40..50 client 5: get saw `a`"#]],
    );
    check_history("0-? cas - a \n 0-? cas a b \n 50-60 get b", expect!["linearizable"]);
    check_history(
        "0-? cas a b \n 50-60 get b",
        expect![[r#"
        no order explains these calls of key `k`, which held nothing before:
          0..? client 1: cas from `a` to `b` has no answer that counts
          50..60 client 2: get saw `b`"#]],
    );
    check_history(
        "40-? put a \n 5-10 get a",
        expect![[r#"
        no order explains these calls of key `k`, which held nothing before:
          5..10 client 2: get saw `a`"#]],
    );
}

#[test]
fn a_search_that_is_too_long_is_given_up() {
    let puts = (0..20).map(|n| format!("0-100 put v{n} \n 0-100 cas v{n} w{n} \n"));
    let history: String = puts.chain(["200-300 get x".to_owned()]).collect();
    let key = b"k".to_vec();
    assert_eq!(check(&read(&history), Start::Empty, 10_000), Verdict::Undecided { key });
    // A violation of another key is said all the same.
    let history = format!("{history} \n 0-10 z:get a");
    assert!(matches!(check(&read(&history), Start::Empty, 10_000), Verdict::Violated(_)));
}

/// Tries every order. Slow, and written without looking at the search above.
fn explained(open: &[&Call], held: Option<Option<&Vec<u8>>>) -> bool {
    if open.iter().all(|call| call.returned.is_none()) {
        return true;
    }
    (0..open.len()).any(|at| {
        let call = open[at];
        if open.iter().any(|other| other.returned.is_some_and(|end| end < call.invoked)) {
            return false;
        }
        let rest: Vec<&Call> = [&open[..at], &open[at + 1..]].concat();
        if call.returned.is_none() && explained(&rest, held) {
            return true;
        }
        let answered = call.returned.is_some();
        match &call.operation {
            Operation::Put { value } => explained(&rest, Some(Some(value))),
            Operation::Delete => explained(&rest, Some(None)),
            Operation::Get { seen } => {
                let seen = seen.as_ref();
                let fits = held.is_none_or(|held| held == seen) || !answered;
                fits && explained(&rest, if answered { Some(seen) } else { held })
            }
            Operation::Cas { expected, value, done } => {
                let expected = expected.as_ref();
                let may_be = held.is_none_or(|held| held == expected);
                let may_differ = held != Some(expected);
                let done_then = || may_be && explained(&rest, Some(Some(value)));
                let failed_then = || may_differ && explained(&rest, held);
                match (answered, done) {
                    (true, true) => done_then(),
                    (true, false) => failed_then(),
                    (false, _) => done_then() || failed_then(),
                }
            }
        }
    })
}

fn random_value(rng: &mut Rng) -> Vec<u8> {
    rng.pick(&["a", "b", "c"]).as_bytes().to_vec()
}

/// A history of a true register, with answers as of a moment within each call; some answers are then changed or lost.
fn random_history(rng: &mut Rng, count: u64, lies: u64) -> Vec<Call> {
    let mut moments = BTreeMap::new();
    for client in 0..count {
        let invoked = rng.between(0, 40);
        let effect = invoked + rng.between(0, 15);
        let returned = effect + rng.between(0, 15);
        moments.insert((effect, client), (invoked, returned));
    }
    let mut held: Option<Vec<u8>> = None;
    let mut calls = Vec::new();
    for ((_, client), (invoked, returned)) in moments {
        let lost = rng.per_mille(150);
        let never = lost && rng.per_mille(500);
        let before = held.clone();
        let operation = match rng.between(0, 6) {
            0 | 1 => {
                let seen = if rng.per_mille(lies) {
                    rng.per_mille(800).then(|| random_value(rng))
                } else {
                    held.clone()
                };
                Operation::Get { seen }
            }
            2 | 3 => {
                let value = random_value(rng);
                held = Some(value.clone());
                Operation::Put { value }
            }
            4 => {
                held = None;
                Operation::Delete
            }
            _ => {
                let expected = rng.per_mille(700).then(|| random_value(rng));
                let (value, done) = (random_value(rng), expected == held);
                if done {
                    held = Some(value.clone());
                }
                Operation::Cas { expected, value, done: done ^ rng.per_mille(lies) }
            }
        };
        if never {
            held = before;
        }
        let returned = (!lost).then_some(returned);
        calls.push(Call { client, key: b"k".to_vec(), operation, invoked, returned });
    }
    calls
}

#[test]
fn the_checker_says_what_trying_every_order_says() {
    let (mut good, mut bad) = (0, 0);
    for seed in 0..6000 {
        let mut rng = Rng::new(seed);
        let count = rng.between(1, 8);
        let lies = rng.pick(&[0, 200, 600]);
        let calls = random_history(&mut rng, count, lies);
        let all: Vec<&Call> = calls.iter().collect();
        for (start, held) in [(Start::Empty, Some(None)), (Start::Anything, None)] {
            let expected = explained(&all, held);
            match check(&calls, start, TRIES_MAX) {
                Verdict::Linearizable => {
                    assert!(expected, "seed {seed}: not found to be violated: {calls:#?}");
                    good += 1;
                }
                Verdict::Violated(violation) => {
                    assert!(!expected, "seed {seed}: an order there is: {calls:#?}");
                    bad += 1;
                    check_violation(seed, &violation);
                }
                Verdict::Undecided { .. } => panic!("seed {seed} is undecided"),
            }
            assert!(lies > 0 || expected, "seed {seed}: a true register");
        }
    }
    assert!(good > 4000 && bad > 1500, "{good} {bad}");
}

/// What is shown is by itself not to be explained, and nothing that only looks is shown in vain.
fn check_violation(seed: u64, violation: &Violation) {
    let held = match violation.start {
        Start::Empty => Some(None),
        Start::Anything => None,
    };
    let all: Vec<&Call> = violation.calls.iter().collect();
    assert!(!explained(&all, held), "seed {seed}: {violation}");
    for at in 0..all.len() {
        if matches!(all[at].operation, Operation::Get { .. }) {
            let fewer: Vec<&Call> = [&all[..at], &all[at + 1..]].concat();
            assert!(explained(&fewer, held), "seed {seed}: call {at} is not needed: {violation}");
        }
    }
}

/// Some clients call one after the other, for long, on a few keys; one read in the middle may be stale.
fn long_history(rng: &mut Rng, clients: u64, count: u64, stale: bool) -> Vec<Call> {
    let mut held = BTreeMap::<u64, Vec<Vec<u8>>>::new();
    let mut free: BTreeMap<u64, u64> = (0..clients).map(|client| (client, client)).collect();
    let mut moments = BTreeMap::new();
    for _ in 0..count {
        let (&client, &at) = free.iter().min_by_key(|(_, at)| **at).unwrap();
        let invoked = at + rng.between(1, 20);
        let effect = invoked + rng.between(1, 100);
        let returned = effect + rng.between(1, 100);
        free.insert(client, returned);
        moments.insert((effect, client), (invoked, returned));
    }
    let mut calls = Vec::new();
    for (number, ((_, client), (invoked, returned))) in moments.into_iter().enumerate() {
        let key = rng.between(0, 3);
        let values = held.entry(key).or_default();
        let late = stale && number as u64 > count / 2 && values.len() > 60;
        let operation = if rng.per_mille(500) {
            let behind = if late { 50 } else { 1 };
            Operation::Get { seen: values.iter().rev().nth(behind - 1).cloned() }
        } else {
            let value = format!("{number}").into_bytes();
            values.push(value.clone());
            Operation::Put { value }
        };
        let returned = (!rng.per_mille(5)).then_some(returned);
        calls.push(Call { client, key: format!("k{key}").into(), operation, invoked, returned });
    }
    calls
}

#[test]
fn a_long_history_of_many_clients_is_decided() {
    for clients in [2, 8, 16] {
        let mut rng = Rng::new(clients);
        let calls = long_history(&mut rng, clients, 6000, false);
        assert_eq!(check(&calls, Start::Empty, TRIES_MAX), Verdict::Linearizable, "{clients}");
        let calls = long_history(&mut rng, clients, 6000, true);
        let verdict = check(&calls, Start::Empty, TRIES_MAX);
        let Verdict::Violated(violation) = verdict else { panic!("{clients}: {verdict:?}") };
        assert!(violation.calls.len() < 200, "{clients}: {}", violation.calls.len());
    }
}
