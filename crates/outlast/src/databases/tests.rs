//! What the verbs say before they change anything.

use clap::Parser;

use super::*;

const EPOCH: u64 = 41;

fn database() -> Database {
    let reign = outlast_core::agreed::Reign {
        primary: "a".to_owned(),
        epoch: EPOCH,
        open: true,
        ..Default::default()
    };
    let rule = Confirm { since: 42, acks: 1, of: ["b".to_owned()].into() };
    Database { reign, confirms: [rule].into(), ..Database::default() }
}

fn member(state: &str, lsn: &str) -> MemberStatus {
    let follows = (state == "standby").then(|| "a".to_owned());
    MemberStatus { state: state.to_owned(), lsn: lsn.to_owned(), follows, ..Default::default() }
}

fn seen(members: &[(&str, MemberStatus)]) -> DatabaseStatus {
    let members = members.iter().map(|(node, member)| ((*node).to_owned(), member.clone()));
    let primary = Some("a".to_owned());
    DatabaseStatus { primary, acks_min: 1, members: members.collect(), ..Default::default() }
}

fn status_of(seen: &DatabaseStatus) -> Status {
    Status { postgres: [("orders".to_owned(), seen.clone())].into(), ..Status::default() }
}

#[test]
fn a_dry_run_says_what_the_leader_would_say() {
    let reasons = |b: MemberStatus| {
        let seen = seen(&[("a", member("primary", "0/300")), ("b", b)]);
        against(&status_of(&seen), "orders", &database(), "b")
    };
    assert_eq!(reasons(member("standby", "0/300")), Vec::<String>::new());
    for why in ["its priority is 0", "it is paused", "it is about to be made anew"] {
        let cannot_switch = Some(why.to_owned());
        let b = MemberStatus { cannot_switch, ..member("standby", "0/300") };
        assert_eq!(reasons(b), vec![format!("node `b`: {why}")]);
    }
}

#[test]
fn the_best_of_a_region_is_one_that_could_take_over() {
    let in_east = |lag, cannot: Option<&str>| MemberStatus {
        region: Some("east".to_owned()),
        lag_bytes: Some(lag),
        cannot_switch: cannot.map(str::to_owned),
        ..member("standby", "0/300")
    };
    let primary = MemberStatus { region: Some("east".to_owned()), ..member("primary", "0/300") };
    let best = |b, c| {
        let seen = seen(&[("a", primary.clone()), ("b", b), ("c", c)]);
        best_of(&status_of(&seen), "orders", "east").unwrap()
    };
    assert_eq!(best(in_east(0, Some("it is paused")), in_east(9, None)), "c");
    assert_eq!(best(in_east(8, None), in_east(9, None)), "b");
}

#[test]
fn who_may_not_be_primary_is_taken_only_where_nobody_else_is_left() {
    let unfit = |lsn| MemberStatus {
        cannot_lead: Some("its priority is 0".to_owned()),
        ..member("standby", lsn)
    };
    let taken = |b: MemberStatus, c: Option<MemberStatus>| {
        let members: Vec<(&str, MemberStatus)> =
            [("b", Some(b)), ("c", c)].into_iter().filter_map(|(n, m)| Some((n, m?))).collect();
        let recruits: Vec<Recruit> =
            members.iter().filter_map(|(node, member)| recruit(node, member)).collect();
        furthest(&seen(&members), &recruits, None).map(|recruit| recruit.node.clone())
    };
    let c = |lsn| Some(member("standby", lsn));
    assert_eq!(taken(unfit("0/400"), c("0/300")).as_deref(), Some("c"));
    assert_eq!(taken(member("standby", "0/400"), c("0/300")).as_deref(), Some("b"));
    assert_eq!(taken(unfit("0/400"), None).as_deref(), Some("b"));
}

#[derive(Debug, Parser)]
struct Words<A: Args> {
    #[command(flatten)]
    args: A,
}

fn parse<A: Args + std::fmt::Debug>(words: &[&str]) -> Result<A, String> {
    let words = ["verb"].iter().chain(words);
    Words::<A>::try_parse_from(words).map(|w| w.args).map_err(|error| error.to_string())
}

#[test]
fn the_defect_of_the_only_member_is_named_before_anybody_is_asked() {
    let args: FailoverArgs = parse(&["orders", "--allow-data-loss"]).unwrap();
    let unfit = MemberStatus {
        cannot_lead: Some("its replay is paused".to_owned()),
        ..member("standby", "0/200")
    };
    let defect = |others: &[(&str, MemberStatus)]| {
        let mut all = vec![("a", member("down", "0/300")), ("b", unfit.clone())];
        all.extend(others.iter().cloned());
        only_defective(&args, &database(), &seen(&all))
    };
    let (node, why) = defect(&[]).unwrap();
    assert_eq!(
        defect_words(&node, &why),
        "Only node `b` could be taken, and by itself it would not be: its replay is paused."
    );
    assert_eq!(defect(&[("c", member("standby", "0/100"))]), None);
}

#[test]
fn mistakes_in_a_switchover_are_answered_with_what_is_expected() {
    for (words, expected) in [
        (vec!["orders"], "<--to <NODE>|--region <REGION>|--cancel>"),
        (vec!["orders", "--to", "b", "--at", "02:00"], "like 2026-12-01T02:00:00Z or"),
        (vec!["orders", "--to", "b", "--at", "2026-12-01T02:00:00"], "like 2026-12-01T02:00:00Z"),
        (vec!["orders", "--to", "b", "--pause", "5"], "it has no unit: write for example 5s"),
        (vec!["orders", "--to", "b", "--region", "east"], "cannot be used with"),
        (vec!["orders", "--to", "b", "--cancel"], "cannot be used with"),
    ] {
        let said = parse::<SwitchoverArgs>(&words).unwrap_err();
        assert!(said.contains(expected), "{words:?}: {said}");
    }
    for words in [
        vec!["orders", "--to", "b", "--at", "2026-12-01T02:00:00+01:00"],
        vec!["orders", "--cancel", "--format", "table"],
        vec!["orders", "--region", "east", "--dry-run", "--format", "text"],
    ] {
        parse::<SwitchoverArgs>(&words).unwrap();
    }
}

#[test]
fn refusals_are_said_without_epochs_and_procedures() {
    for why in [
        Refusal::OtherEpoch { current: EPOCH },
        Refusal::Busy { id: 91 },
        Refusal::OutOfTurn,
        Refusal::NoProcedure,
        Refusal::AlreadyPaused { id: 123 },
        Refusal::Duration,
    ] {
        let words = refusal_words(why);
        for internal in ["epoch", "procedure", "turn", "41", "91", "123"] {
            assert!(!words.contains(internal), "{words}");
        }
    }
}

#[test]
fn the_only_standby_is_needed_unless_writes_may_go_on_without_it() {
    let pair = [("a", member("primary", "0/300")), ("b", member("standby", "0/300"))];
    let seen = seen(&pair);
    let why = would_wait(&database(), &seen, "b").unwrap();
    assert_eq!((why.acks, why.left), (1, 0));
    let said = upkeep::needed(&why, "orders");
    assert!(
        said.contains("set `acks_min = 0` in [postgres.orders] with `outlast apply`"),
        "{said}"
    );
    assert_eq!(would_wait(&database(), &DatabaseStatus { acks_min: 0, ..seen }, "b"), None);
}
