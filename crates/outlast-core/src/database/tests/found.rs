//! One test for each mistake that the simulation, or reading for it, has found.

use std::borrow::ToOwned as _;
use std::collections::{BTreeMap, BTreeSet};
use std::string::String;
use std::time::Duration;
use std::vec::Vec;

use crate::agreed::*;
use crate::database::*;
use crate::time::{Instant, Timestamp};

fn at(millis: u64) -> Instant {
    Instant::from_start(Duration::from_millis(millis))
}

fn position(timeline: u32, lsn: u64) -> Position {
    Position { timeline, lsn }
}

/// "a" reigns under epoch 30; its log has grown from that of epoch 10 at 100.
fn database() -> Database {
    let reign = Reign {
        primary: "a".to_owned(),
        epoch: 30,
        open: true,
        timeline: 2,
        from: position(1, 100),
        ..Reign::default()
    };
    let (until, timeline) = (position(1, 100), Some(1));
    let ancestors = [Ancestor { epoch: 10, until, timeline }].into();
    Database { system: Some(7), reign, ancestors, ..Database::default() }
}

fn standby(lineage: u64, reaches: Position) -> Local {
    let disk = Disk::Data { standby: true };
    let (server, stopped) = (Server::Standby, Some(25));
    Local { disk, server, stopped, lineage: Some(lineage), reaches, ..Local::default() }
}

fn source() -> MemberSight {
    let slots = ["b".to_owned()].into();
    MemberSight { is_source: true, slots, serves: Some(30), ..MemberSight::default() }
}

fn order(agreed: &Database, leased: bool, local: &Local) -> Option<Order> {
    Member::new("b".to_owned()).decide(at(1000), Some(agreed), leased, local, Some(&source()), None)
}

#[test]
fn a_log_of_another_reign_is_not_followed_although_its_timeline_has_the_same_number() {
    let (agreed, from) = (database(), "a".to_owned());
    let follow = Some(Order::Follow { node: "a".to_owned() });
    assert_eq!(order(&agreed, false, &standby(10, position(1, 100))), follow);
    let rewind = Some(Order::Rewind { from: from.clone() });
    assert_eq!(order(&agreed, false, &standby(10, position(1, 101))), rewind);
    // It was primary under a reign that never served: timeline 2, too, and a rewind would find nothing to do.
    let clone = Some(Order::Clone { from, turn: None });
    assert_eq!(order(&agreed, false, &standby(20, position(2, 90))), clone);
    // The server that it followed under epoch 10 had begun to follow such a one.
    assert_eq!(order(&agreed, false, &standby(10, position(2, 90))), clone);
}

/// "b" follows "a" and receives nothing. `keeps_from` and `slots` are those of "a".
fn starving(local: impl Fn(u64) -> Local, keeps_from: u64, slots: &[&str]) -> Vec<Order> {
    let slots = slots.iter().map(|node| (*node).to_owned()).collect();
    let source = MemberSight { keeps_from, slots, ..source() };
    let mut member = Member::new("b".to_owned());
    let looks = 0..40;
    let order = |look| {
        let local = local(look);
        member.decide(at(500 * look), Some(&database()), false, &local, Some(&source), None)
    };
    looks.filter_map(order).collect()
}

#[test]
fn what_the_primary_no_longer_has_is_not_waited_for() {
    let from = || "a".to_owned();
    let clone = [Order::Clone { from: from(), turn: None }];
    let upstream = Some(from());
    let local = Local { upstream, stopped: None, ..standby(30, position(2, 150)) };
    assert_eq!(starving(|_| local.clone(), 151, &["b"])[..1], clone);
    assert_eq!(starving(|_| local.clone(), 150, &["b"])[..1], [Order::Rewind { from: from() }]);
    // What it still reads it need not receive; and who is told to wait with it, waits.
    let reads = |look| Local { replayed: 1 + look, ..local.clone() };
    assert_eq!(starving(reads, 1000, &["b"]), []);
    let holds = |_| Local { holds: true, ..local.clone() };
    assert_eq!(starving(holds, 151, &["b"]), []);
    // A copy would lack what is written meanwhile.
    assert_eq!(starving(|_| local.clone(), 151, &["c"]), []);

    let disk = Disk::Data { standby: false };
    let reaches = position(1, 120);
    let old = |redo| Local { disk, reaches, redo, lineage: Some(10), ..Local::default() };
    let old = |redo| Local { server: Server::Down, ..old(redo) };
    assert_eq!(starving(|_| old(Some(99)), 100, &["b"])[..1], clone);
    assert_eq!(starving(|_| old(Some(100)), 100, &["b"])[..1], [Order::Rewind { from: from() }]);
}

#[test]
fn a_standby_stops_before_its_log_is_compared() {
    let stop = Some(Order::StopReceiving { election: 30 });
    let unstopped = Local { stopped: None, ..standby(10, position(1, 100)) };
    let local = Local { upstream: Some("c".to_owned()), ..unstopped.clone() };
    assert_eq!(order(&database(), false, &local), stop);
    // An agent that has just started does not know whom it follows, nor how much of its log is read.
    assert_eq!(order(&database(), false, &unstopped), stop);
}

#[test]
fn a_standby_of_the_same_primary_under_an_earlier_reign_is_looked_at_again() {
    let earlier = Local { stopped: None, ..standby(10, position(2, 120)) };
    let local = Local { upstream: Some("a".to_owned()), receives: true, ..earlier };
    assert_eq!(order(&database(), false, &local), Some(Order::StopReceiving { election: 30 }));
    assert_eq!(order(&database(), false, &Local { lineage: Some(30), ..local }), None);
}

#[test]
fn a_log_that_is_not_read_to_its_end_is_not_shorter_than_it_was() {
    let mut agreed = database();
    agreed.reign.primary = "b".to_owned();
    let local = Local { stopped: None, ..standby(10, position(1, 40)) };
    assert_eq!(order(&agreed, true, &local), Some(Order::StopReceiving { election: 30 }));
}

#[test]
fn a_source_of_an_earlier_reign_is_none() {
    let old = MemberSight { is_source: true, serves: Some(10), ..MemberSight::default() };
    let local = standby(20, position(2, 90));
    let mut member = Member::new("b".to_owned());
    assert_eq!(member.decide(at(0), Some(&database()), false, &local, Some(&old), None), None);
}

#[test]
fn a_member_that_is_down_is_no_recruit() {
    let member = Member::new("b".to_owned());
    let down = Local { server: Server::Down, stopped: Some(40), ..standby(30, position(2, 0)) };
    assert_eq!(member.sight(at(0), Some(&database()), false, &down).stopped, None);
    let up = Local { server: Server::Standby, ..down };
    assert_eq!(member.sight(at(0), Some(&database()), false, &up).stopped, Some(40));
}

#[test]
fn what_starts_as_primary_without_a_lease_is_killed() {
    let disk = Disk::Data { standby: false };
    let local = Local { disk, server: Server::Starting, ..Local::default() };
    assert!(matches!(order(&database(), false, &local), Some(Order::Kill { .. })));
}

#[test]
fn a_primary_that_is_closed_is_not_started_open() {
    let mut agreed = database();
    agreed.reign.primary = "b".to_owned();
    let disk = Disk::Data { standby: false };
    let local = Local { disk, server: Server::Down, promoted: Some(30), ..Local::default() };
    assert!(matches!(order(&agreed, true, &local), Some(Order::StartPrimary { .. })));
    agreed.switchover = Some(Switchover {
        from: "b".to_owned(),
        to: "a".to_owned(),
        who: "ann".to_owned(),
        pause_max: Duration::from_secs(5),
        begun: Stamp::default(),
        step: SwitchoverStep::LastLog,
        done: [].into(),
    });
    assert_eq!(order(&agreed, true, &local), None);
}

#[test]
fn an_old_word_does_not_settle_a_rule_that_has_come_back() {
    let like = |since| Confirm { since, acks: 1, of: ["b".to_owned()].into() };
    assert!(like(5).is_like(&like(9)) && like(5) != like(9));
}

#[test]
fn an_appointed_member_whose_log_was_lost_gives_up() {
    let mut agreed = database();
    agreed.reign.primary = "b".to_owned();
    let mut member = Member::new("b".to_owned());
    let local = standby(10, position(1, 40));
    assert_eq!(member.decide(at(0), Some(&agreed), true, &local, None, None), None);
    assert!(member.sight(at(0), Some(&agreed), true, &local).gives_up.is_some());
}

#[test]
fn a_database_whose_first_rule_is_not_settled_promises_what_it_acknowledges() {
    let mut agreed = Agreed::default();
    let mut index = 0;
    let mut enter = |origin, sequence, command| {
        index += 1;
        let entry = Entry { origin: ClientId(origin), sequence, wall: Timestamp(0), command };
        (agreed.apply(index, &entry), agreed.databases().get("orders").cloned())
    };
    enter(0, 0, Command::Introduce);
    let (name, address) = ("a".to_owned(), "a".to_owned());
    let join = NodeCommand::Join { name, role: NodeRole::Voter, address, replaces: None };
    enter(1, 1, Command::Node(join));
    let (database, node) = ("orders".to_owned(), "a".to_owned());
    let create = DatabaseCommand::Create { database: database.clone(), node };
    let (reply, _) = enter(0, 0, Command::Database(create));
    let Reply::Granted { epoch } = reply else { panic!("{reply}") };
    let to = Confirm { acks: 1, of: ["b".to_owned()].into(), ..Confirm::default() };
    let widen = DatabaseCommand::Widen { database, epoch, to };
    let (reply, known) = enter(0, 0, Command::Database(widen));
    assert_eq!(reply, Reply::Done);
    assert!(!known.unwrap().is_async(), "it serves under this rule from its first write on");
}

#[test]
fn an_old_primary_that_does_not_come_back_blocks_no_other_switchover() {
    let wish = Wish { members: ["a", "b"].map(str::to_owned).into(), ..Wish::default() };
    let mut agreed = database();
    agreed.reign.primary = "b".to_owned();
    agreed.switchover = Some(Switchover {
        from: "a".to_owned(),
        to: "b".to_owned(),
        who: "ann".to_owned(),
        pause_max: Duration::from_secs(5),
        begun: Stamp { index: 25, ..Stamp::default() },
        step: SwitchoverStep::Demote,
        done: Vec::new(),
    });
    let serves = Some(agreed.reign.epoch);
    let (state, system) = (MemberState::Primary, Some(7));
    let sight = MemberSight { state, system, serves, ..MemberSight::default() };
    let mut lead = Lead::default();
    let mut decide = |millis| {
        let b = Seen { sight: Some(sight.clone()), ..Seen::default() };
        let members = BTreeMap::from([("a".to_owned(), Seen::default()), ("b".to_owned(), b)]);
        let (agreed, resting, wall) = (Some(&agreed), BTreeSet::new(), Timestamp::default());
        let (name, wish, leased, paused) = ("orders", &wish, true, false);
        let scene = Scene { name, wish, agreed, leased, members, paused, resting, wall };
        lead.decide(at(millis), &scene)
    };
    let ended = (0..).step_by(500).find_map(|millis| Some((millis, decide(millis)?))).unwrap();
    let (millis, DatabaseCommand::Step { begun: 25, step: SwitchoverStep::Demote, evidence, .. }) =
        ended
    else {
        panic!("{ended:?}");
    };
    assert!((60_000..62_000).contains(&millis), "{millis}");
    assert_eq!(evidence, "not waited for any longer than 60 s: node `a` is silent");
}

#[test]
fn how_long_an_earlier_reign_was_not_open_does_not_count_for_the_next() {
    let wish = Wish {
        members: ["a", "b"].map(str::to_owned).into(),
        acks: 0,
        acks_min: 0,
        lag_max: 1 << 24,
        priorities: BTreeMap::new(),
        ..Wish::default()
    };
    let sight = |primary: &str, name: &str| MemberSight {
        state: MemberState::Standby,
        system: Some(7),
        lineage: Some(10),
        reaches: position(1, 100),
        follows: Some(primary.to_owned()).filter(|primary| *primary != name),
        ..MemberSight::default()
    };
    let mut lead = Lead::default();
    let mut decide = |millis, agreed: &Database| {
        let seen = |name: &str| {
            let sight = Some(sight(&agreed.reign.primary, name));
            (name.to_owned(), Seen { sight, ..Seen::default() })
        };
        let members = ["a", "b"].map(seen).into();
        let agreed = Some(agreed);
        let (resting, wall) = (BTreeSet::new(), Timestamp::default());
        let (name, wish, leased, paused) = ("orders", &wish, true, false);
        let scene = Scene { name, wish, agreed, leased, members, paused, resting, wall };
        lead.decide(at(millis), &scene)
    };
    let mut agreed = database();
    agreed.reign.open = false;
    let ended = (0..).step_by(500).find(|millis| decide(*millis, &agreed).is_some()).unwrap();
    assert!((30_000..32_000).contains(&ended), "{ended}");
    agreed.reign = Reign { primary: "b".to_owned(), epoch: 40, ..agreed.reign };
    assert_eq!(decide(ended + 500, &agreed), None);
    assert_eq!(decide(ended + 1_000, &agreed), None);
}

/// What the leader says of a database that was never made, whose two members are like this.
fn why_not_made(members: [MemberSight; 2]) -> Option<String> {
    let nodes = ["a", "b"].map(str::to_owned);
    let wish = Wish { members: nodes.clone().into(), ..Wish::default() };
    let seen = members.map(|sight| Seen { sight: Some(sight), ..Seen::default() });
    let scene = Scene {
        name: "orders",
        wish: &wish,
        agreed: None,
        leased: false,
        members: nodes.into_iter().zip(seen).collect(),
        paused: false,
        resting: BTreeSet::new(),
        wall: Timestamp(0),
    };
    let mut lead = Lead::default();
    let command = lead.decide(at(1000), &scene);
    assert_eq!(command.is_none(), lead.stuck.is_some(), "{command:?}");
    lead.stuck
}

#[test]
fn a_database_that_no_member_can_begin_says_why() {
    let member = |state, trouble: &str| MemberSight {
        state,
        trouble: trouble.to_owned(),
        ..MemberSight::default()
    };
    let broken = || member(MemberState::Broken, "/srv/orders holds no cluster");
    let unreadable = member(MemberState::Broken, "");
    let why = "no member has an empty directory, or data of PostgreSQL, to make the database from: \
               node `a`: /srv/orders holds no cluster; node `b`: it is broken";
    assert_eq!(why_not_made([broken(), unreadable]).as_deref(), Some(why));
    let unknown = member(MemberState::Unknown, "find PostgreSQL 16: install it");
    let why = "waits for node `b` before the database is made: find PostgreSQL 16: install it";
    assert_eq!(why_not_made([broken(), unknown]).as_deref(), Some(why));
    let silent = member(MemberState::Unknown, "");
    let why = "waits for node `b` before the database is made";
    assert_eq!(why_not_made([broken(), silent]).as_deref(), Some(why));
    assert_eq!(why_not_made([broken(), member(MemberState::Empty, "")]), None);
}
