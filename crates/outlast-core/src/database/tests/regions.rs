//! Members in several regions: who follows whom, and who takes over from where.

use std::borrow::ToOwned as _;
use std::collections::{BTreeMap, BTreeSet};
use std::string::String;
use std::time::Duration;

use crate::agreed::*;
use crate::database::*;
use crate::health::Health;
use crate::time::{Instant, Timestamp};
use crate::topology::RegionFailover;

const EPOCH: u64 = 30;

fn at(millis: u64) -> Instant {
    Instant::from_start(Duration::from_millis(millis))
}

/// "a" reigns in the east with "b"; "d" and "e" are in the west, and "e" follows "d".
fn database() -> Database {
    let reign = Reign {
        primary: "a".to_owned(),
        epoch: EPOCH,
        open: true,
        timeline: 2,
        ..Reign::default()
    };
    let rule = Confirm { since: 31, acks: 1, of: ["b".to_owned()].into() };
    Database {
        system: Some(7),
        reign,
        confirms: [rule].into(),
        upstreams: [("e".to_owned(), "d".to_owned())].into(),
        ..Database::default()
    }
}

fn wish(region_failover: RegionFailover) -> Wish {
    let east = ["a", "b"].map(|node| (node.to_owned(), "east".to_owned()));
    let west = ["d", "e"].map(|node| (node.to_owned(), "west".to_owned()));
    Wish {
        members: ["a", "b", "d", "e"].map(str::to_owned).into(),
        acks: 1,
        acks_min: 1,
        lag_max: 1 << 24,
        home: Some("east".to_owned()),
        regions: east.into_iter().chain(west).collect(),
        region_failover,
        ..Wish::default()
    }
}

fn standby(lsn: u64, follows: &str) -> MemberSight {
    MemberSight {
        state: MemberState::Standby,
        system: Some(7),
        lineage: Some(EPOCH),
        reaches: Position { timeline: 2, lsn },
        follows: Some(follows.to_owned()),
        ..MemberSight::default()
    }
}

fn seen(sight: MemberSight, heard_ago: u64) -> Seen {
    let port = if heard_ago == 0 { Health::Up } else { Health::Down };
    Seen { sight: Some(sight), heard_ago: Duration::from_secs(heard_ago), port }
}

/// The whole east is silent.
fn east_is_lost() -> BTreeMap<String, Seen> {
    let primary = MemberSight {
        state: MemberState::Primary,
        reaches: Position { timeline: 2, lsn: 1_000 },
        ..standby(0, "")
    };
    [
        ("a", seen(primary, 9)),
        ("b", seen(standby(1_000, "a"), 9)),
        ("d", seen(standby(900, "a"), 0)),
        ("e", seen(standby(900, "d"), 0)),
    ]
    .map(|(name, seen)| (name.to_owned(), seen))
    .into()
}

/// What the leader wants, and why it does nothing.
fn decides(
    wish: &Wish,
    leased: bool,
    members: BTreeMap<String, Seen>,
) -> (Option<DatabaseCommand>, Option<String>) {
    let (mut lead, agreed) = (Lead::default(), database());
    let agreed = Some(&agreed);
    let (resting, wall) = (BTreeSet::new(), Timestamp(0));
    let scene =
        Scene { name: "orders", wish, agreed, leased, members, paused: false, resting, wall };
    let command = lead.decide(at(9_000), &scene);
    (command, lead.stuck)
}

#[test]
fn a_lost_region_is_not_taken_over_by_itself_unless_that_is_wanted_and_its_lease_is_over() {
    let (nothing, why) = decides(&wish(RegionFailover::Manual), false, east_is_lost());
    assert_eq!(nothing, None);
    assert!(why.is_some_and(|why| why.contains("no other member in region `east`")));

    let automatic = wish(RegionFailover::Automatic);
    assert_eq!(decides(&automatic, true, east_is_lost()).0, None, "it may still serve");
    let (command, _) = decides(&automatic, false, east_is_lost());
    let Some(DatabaseCommand::Elect { why, region: None, .. }) = command else {
        panic!("{command:?}")
    };
    assert!(why.contains("region `east` is silent") && why.contains("100 bytes"), "{why}");

    let heard = |name: &str| {
        let mut members = east_is_lost();
        members.insert(name.to_owned(), seen(standby(1, "a"), 0));
        members
    };
    // It speaks: whoever cut the others off could have cut off this side.
    assert!(decides(&automatic, false, heard("a")).0.is_none());
    let near = decides(&automatic, false, heard("b")).0;
    let Some(DatabaseCommand::Elect { why, .. }) = near else { panic!("{near:?}") };
    assert!(!why.contains("is lost"), "{why}");
}

#[test]
fn who_lacks_more_than_may_be_lost_does_not_take_over_a_region() {
    let wish = Wish { lag_max: 99, ..wish(RegionFailover::Automatic) };
    let (nothing, why) = decides(&wish, false, east_is_lost());
    assert_eq!(nothing, None);
    assert!(why.is_some_and(|why| why.contains("lacks at least 100 bytes, more than lag_limit")));
}

/// What "e" is told, by what it hears of "d".
fn follows(relay: Option<&MemberSight>) -> Option<Order> {
    let disk = Disk::Data { standby: true };
    let local = Local { disk, server: Server::Standby, lineage: Some(EPOCH), ..Local::default() };
    let source = MemberSight { serves: Some(EPOCH), is_source: true, ..MemberSight::default() };
    let mut member = Member::new("e".to_owned());
    member.decide(at(1_000), Some(&database()), false, &local, Some(&source), relay)
}

#[test]
fn a_relay_is_followed_once_its_log_is_known_to_be_a_part() {
    let follow = |node: &str| Some(Order::Follow { node: node.to_owned() });
    assert_eq!(follows(Some(&standby(900, "a"))), follow("d"));
    assert_eq!(follows(None), follow("a"), "it is silent");
    assert_eq!(follows(Some(&standby(900, "b"))), follow("a"), "it follows somebody else");
    let other = MemberSight { lineage: Some(20), ..standby(900, "a") };
    assert_eq!(follows(Some(&other)), follow("a"), "its log may be another one");
    let unknown = MemberSight { lineage: None, ..standby(900, "a") };
    assert_eq!(follows(Some(&unknown)), follow("a"), "it is made anew");
}

#[test]
fn a_relay_from_which_nothing_comes_is_left_for_a_while() {
    let disk = Disk::Data { standby: true };
    let local = Local {
        disk,
        server: Server::Standby,
        lineage: Some(EPOCH),
        upstream: Some("d".to_owned()),
        ..Local::default()
    };
    let source = MemberSight { serves: Some(EPOCH), is_source: true, ..MemberSight::default() };
    let relay = standby(900, "a");
    let mut member = Member::new("e".to_owned());
    let mut decide = |millis| {
        let (agreed, source) = (database(), Some(&source));
        member.decide(at(millis), Some(&agreed), false, &local, source, Some(&relay))
    };
    assert_eq!(decide(0), None);
    assert_eq!(decide(5_000), None);
    assert_eq!(decide(5_001), Some(Order::Follow { node: "a".to_owned() }));
    assert_eq!(decide(60_000), Some(Order::Follow { node: "a".to_owned() }));
}

#[test]
fn a_relay_that_would_follow_another_member_is_refused() {
    let mut agreed = Agreed::default();
    let mut send = |command: Command| {
        let origin = if command.repeatable() { ClientId::NOBODY } else { ClientId(1) };
        let index = agreed.index() + 1;
        agreed.apply(index, &Entry { origin, sequence: index, wall: Timestamp(0), command })
    };
    send(Command::Introduce);
    let (name, address, role) = ("a".to_owned(), "a".to_owned(), NodeRole::Voter);
    send(Command::Node(NodeCommand::Join { name, role, address, replaces: None }));
    let create = DatabaseCommand::Create { database: "orders".to_owned(), node: "a".to_owned() };
    let Reply::Granted { epoch } = send(Command::Database(create)) else { panic!("it is made") };
    let mut relay = |pairs: &[(&str, &str)]| {
        let pairs = pairs.iter().map(|(node, relay)| ((*node).to_owned(), (*relay).to_owned()));
        let database = "orders".to_owned();
        let upstreams = pairs.collect();
        send(Command::Database(DatabaseCommand::Relay { database, epoch, upstreams }))
    };
    assert_eq!(relay(&[("e", "d"), ("f", "d")]), Reply::Done);
    let refused = Reply::from(Refusal::OutOfTurn);
    assert_eq!(relay(&[("e", "d"), ("d", "e")]), refused, "a circle");
    assert_eq!(relay(&[("e", "e")]), refused, "itself");
    assert_eq!(relay(&[("f", "e"), ("e", "d")]), refused, "a chain");
    assert_eq!(relay(&[("e", "a")]), refused, "the primary is no relay");
    assert_eq!(relay(&[("a", "d")]), refused, "the primary follows nobody");
}
