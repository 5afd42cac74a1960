//! Why a member does not become primary, and that people are told the same as the leader goes by.

use std::borrow::ToOwned as _;
use std::string::String;
use std::time::Duration;

use crate::agreed::*;
use crate::database::*;
use crate::time::{Instant, Timestamp};

const EPOCH: u64 = 30;

/// "a" reigns, and "b" follows it.
fn database() -> Database {
    let (primary, rule) = ("a".to_owned(), ["b".to_owned()].into());
    let reign = Reign { primary, epoch: EPOCH, open: true, timeline: 2, ..Reign::default() };
    let confirms = [Confirm { since: 31, acks: 1, of: rule }].into();
    Database { system: Some(7), reign, confirms, ..Database::default() }
}

fn wish() -> Wish {
    let members = ["a", "b"].map(str::to_owned).into();
    Wish { members, acks: 1, acks_min: 1, lag_max: 1 << 24, ..Wish::default() }
}

fn sight(state: MemberState) -> MemberSight {
    let standby = state == MemberState::Standby;
    MemberSight {
        state,
        system: Some(7),
        lineage: Some(EPOCH),
        reaches: Position { timeline: 2, lsn: 100 },
        follows: standby.then(|| "a".to_owned()),
        serves: (!standby).then_some(EPOCH),
        ..MemberSight::default()
    }
}

fn seen(sight: MemberSight) -> Seen {
    Seen { sight: Some(sight), ..Seen::default() }
}

fn scene<'a>(wish: &'a Wish, agreed: &'a Database) -> Scene<'a> {
    let members = [("a", MemberState::Primary), ("b", MemberState::Standby)];
    Scene {
        name: "orders",
        wish,
        agreed: Some(agreed),
        leased: true,
        members: members.map(|(node, state)| (node.to_owned(), seen(sight(state)))).into(),
        paused: false,
        resting: [].into(),
        wall: Timestamp(0),
    }
}

/// What the leader gives the switchover up with, if it does.
fn given_up(scene: &Scene<'_>, agreed: &Database) -> Option<String> {
    let mut lead = Lead::default();
    // It waits for what may change.
    for millis in (0..70_000).step_by(500) {
        let now = Instant::from_start(Duration::from_millis(millis));
        match lead.decide(now, &Scene { agreed: Some(agreed), ..scene.clone() }) {
            Some(DatabaseCommand::Unwind { why, .. }) => return Some(why),
            Some(DatabaseCommand::Step { step: SwitchoverStep::CatchUp, .. }) => return None,
            _ => {}
        }
    }
    panic!("it neither begins nor is given up")
}

/// Both say the same: the sentence, or nothing.
fn check(
    change: impl Fn(&mut Wish, &mut Database, &mut Scene<'_>),
    cannot_take_over: Option<&str>,
    cannot_be_chosen: Option<&str>,
) {
    let (mut wish, mut agreed) = (wish(), database());
    let (old_wish, old_agreed) = (wish.clone(), agreed.clone());
    let mut scene = scene(&old_wish, &old_agreed);
    change(&mut wish, &mut agreed, &mut scene);
    let scene = Scene { wish: &wish, agreed: Some(&agreed), ..scene };
    assert_eq!(cannot_switch(&scene, "b").as_deref(), cannot_take_over);
    assert_eq!(cannot_lead(&scene, "b").as_deref(), cannot_be_chosen);
    assert_eq!(cannot_switch(&scene, "a"), None, "it is primary already");
    let switching = Database {
        switchover: Some(Switchover {
            from: "a".to_owned(),
            to: "b".to_owned(),
            who: "ann".to_owned(),
            pause_max: Duration::from_secs(5),
            begun: Stamp { index: 40, wall: Timestamp(0) },
            step: SwitchoverStep::CatchUp,
            done: [].into(),
        }),
        ..agreed.clone()
    };
    let given_up = given_up(&scene, &switching);
    assert_eq!(given_up.is_some(), cannot_take_over.is_some(), "{given_up:?}");
    // Whoever is silent is called so with its name.
    if let Some(why) = cannot_take_over.filter(|why| *why != "it is silent") {
        let given_up: String = given_up.expect("it was compared");
        assert!(given_up.ends_with(&std::format!("node `b`: {why}")), "{given_up}");
    }
}

fn of_b<'a>(scene: &'a mut Scene<'_>) -> &'a mut Seen {
    scene.members.get_mut("b").expect("it is a member")
}

#[test]
fn people_are_told_why_nobody_takes_over_as_the_leader_decides_it() {
    check(|_, _, _| {}, None, None);
    let zero = Some("its priority is 0");
    let lower = |wish: &mut Wish, _: &mut Database, _: &mut Scene<'_>| {
        wish.priorities.insert("b".to_owned(), 0);
    };
    check(lower, zero, zero);
    let paused = Some("it is paused");
    let pause = |_: &mut Wish, _: &mut Database, scene: &mut Scene<'_>| {
        scene.resting.insert("b".to_owned());
    };
    check(pause, paused, paused);
    let silent = Some("it is silent");
    check(|_, _, scene| of_b(scene).heard_ago = Duration::from_secs(9), silent, silent);
    let full = "its disk is full";
    let change = |_: &mut Wish, _: &mut Database, scene: &mut Scene<'_>| {
        of_b(scene).sight.as_mut().expect("it was said").unfit = Some(full.to_owned());
    };
    check(change, Some(full), Some(full));
    let broken = |_: &mut Wish, _: &mut Database, scene: &mut Scene<'_>| {
        of_b(scene).sight = Some(sight(MemberState::Broken));
    };
    check(broken, Some("it is broken"), None);
    let alone = |_: &mut Wish, _: &mut Database, scene: &mut Scene<'_>| {
        of_b(scene).sight.as_mut().expect("it was said").follows = None;
    };
    check(alone, Some("it does not receive from `a`"), None);
}

/// A standby that is to be made anew, as `outlast reinit` has it agreed on.
fn remade(agreed: Database) -> Database {
    let plan = UpkeepPlan {
        kind: UpkeepKind::Remake,
        nodes: ["b".to_owned()].into(),
        pending: false,
        in_place: false,
        who: "ann".to_owned(),
    };
    let begun = Stamp { index: 50, wall: Timestamp(0) };
    Database { upkeep: Some(Upkeep { plan, begun, turn: None, done: [].into() }), ..agreed }
}

#[test]
fn who_is_about_to_be_made_anew_does_not_take_over() {
    let (wish, agreed) = (wish(), remade(database()));
    let why = cannot_switch(&scene(&wish, &agreed), "b");
    assert_eq!(why.as_deref(), Some("it is about to be made anew"));
}

#[test]
fn without_a_primary_nobody_hands_over() {
    let (wish, agreed) = (wish(), database());
    let (why, begun) = ("it is gone".to_owned(), Stamp::default());
    let election = Election { epoch: 60, why, region: None, begun };
    let agreed = Database { election: Some(election), ..agreed };
    let scene = scene(&wish, &agreed);
    assert_eq!(cannot_lead(&scene, "b"), None);
    assert!(cannot_switch(&scene, "b").is_some());
}

#[test]
fn the_only_standby_is_made_anew_once_writes_may_go_on_without_it() {
    let agreed = remade(database());
    let decides = |acks_min, agreed: &Database| {
        let wish = Wish { acks_min, ..wish() };
        let mut scene = scene(&wish, agreed);
        let primary = scene.members.get_mut("a").and_then(|seen| seen.sight.as_mut());
        let primary = primary.expect("it was said");
        primary.is_source = true;
        primary.streams_to = ["b".to_owned()].into();
        primary.confirmed = Some(agreed.rule());
        // It waits no longer than 30 s for its turn.
        (0..20_000)
            .step_by(500)
            .scan(Lead::default(), |lead, millis| {
                Some(lead.decide(Instant::from_start(Duration::from_millis(millis)), &scene))
            })
            .flatten()
            .next()
    };
    assert_eq!(decides(1, &agreed), None, "writes would have to wait");
    let Some(DatabaseCommand::Widen { to, .. }) = decides(0, &agreed) else {
        panic!("{:?}", decides(0, &agreed))
    };
    assert_eq!(to, Confirm::alone("a"));
    let alone = Database { confirms: [Confirm { since: 51, ..to }].into(), ..agreed };
    let turn = decides(0, &alone);
    assert!(matches!(&turn, Some(DatabaseCommand::Turn { node, .. }) if node == "b"), "{turn:?}");
}
