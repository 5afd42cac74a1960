//! The two sides of a lease, each by its own clock.

use std::string::String;
use std::vec::Vec;

use super::*;
use crate::agreed::{ClientId, Entry, NodeCommand, NodeRole};

fn at(ms: u64) -> Instant {
    Instant::from_start(Duration::from_millis(ms))
}

fn moment(ms: u64, wall_ms: i64) -> Moment {
    Moment { now: at(ms), wall: Timestamp(wall_ms) }
}

fn lease(command: LeaseCommand) -> Command {
    Command::Lease(command)
}

/// A machine with one node and what it is fed.
struct Stand {
    agreed: Agreed,
    clock: LeaseClock,
    index: u64,
    client: u64,
}

impl Stand {
    fn new() -> Stand {
        let (agreed, clock) = (Agreed::default(), LeaseClock::default());
        let mut stand = Stand { agreed, clock, index: 0, client: 0 };
        stand.apply(at(0), Command::Introduce);
        stand.client = 1;
        let (name, address) = (String::from("db1"), String::from("10.0.0.1"));
        let join = NodeCommand::Join { name, role: NodeRole::Voter, address, replaces: None };
        stand.apply(at(0), Command::Node(join));
        stand
    }

    fn apply(&mut self, now: Instant, command: Command) {
        self.index += 1;
        let (origin, wall) = (ClientId(self.client), Timestamp(0));
        let entry = Entry { origin, sequence: self.index, wall, command };
        self.agreed.apply(self.index, &entry);
        self.clock.observe(now, &self.agreed);
    }

    fn grant(&mut self, now: Instant, ms: u64) {
        let (role, ttl) = (String::from("vip"), Duration::from_millis(ms));
        self.apply(now, lease(LeaseCommand::Grant { role, node: 2, ttl }));
    }
}

fn expire(epoch: u64, renewed_index: u64) -> Vec<Command> {
    std::vec![lease(LeaseCommand::Expire { role: String::from("vip"), epoch, renewed_index })]
}

#[test]
fn a_watcher_waits_for_the_whole_lease_and_its_margin() {
    let mut stand = Stand::new();
    stand.grant(at(1000), 2000);
    assert_eq!(stand.clock.deadline(), Some(at(3002)));
    assert_eq!(stand.clock.over(at(3001)), []);
    assert_eq!(stand.clock.over(at(3002)), expire(3, 3));

    let (role, epoch) = (String::from("vip"), 3);
    stand.apply(at(2500), lease(LeaseCommand::Renew { role, node: 2, epoch }));
    assert_eq!(stand.clock.over(at(4501)), []);
    assert_eq!(stand.clock.over(at(4502)), expire(3, 4));
    // Nothing new is seen by looking again.
    stand.clock.observe(at(4502), &stand.agreed);
    assert_eq!(stand.clock.over(at(4502)), expire(3, 4));

    for command in stand.clock.over(at(4502)) {
        stand.apply(at(4502), command);
    }
    assert_eq!(stand.clock.deadline(), None);
    assert!(stand.agreed.leases().held().is_empty());
}

#[test]
fn after_a_change_of_leader_every_lease_counts_as_renewed() {
    let mut stand = Stand::new();
    stand.grant(at(1000), 2000);
    stand.clock.took_over(at(2900), &stand.agreed);
    assert_eq!(stand.clock.over(at(3002)), []);
    assert_eq!(stand.clock.over(at(4902)), expire(3, 3));
}

#[test]
fn sessions_and_notices_end_by_the_same_clock() {
    let mut stand = Stand::new();
    let ttl = Duration::from_secs(1);
    stand.apply(at(0), Command::Session(SessionCommand::Open { ttl }));
    let (subject, who, why) = (String::new(), String::from("ann"), String::new());
    let kind = super::super::NoticeKind::Pause;
    let lasts = Duration::from_secs(2);
    stand.apply(at(0), Command::Notice(NoticeCommand::Post { kind, subject, who, why, lasts }));
    for command in stand.clock.over(at(5000)) {
        stand.apply(at(5000), command);
    }
    assert_eq!(stand.agreed.timed().count(), 0);
}

/// `ends`: when a holder of a lease of this length, asked for at 1000 ms, has to stop.
#[track_caller]
fn check_end(ttl_ms: u64, ends: u64) {
    let held = Held::granted(7, Duration::from_millis(ttl_ms), moment(1000, 0));
    assert_eq!(held.ends(), at(ends));
}

#[test]
fn a_holder_stops_before_the_lease_ends() {
    check_end(5000, 5685);
    check_end(2000, 2688);
    check_end(310, 1000);
    check_end(100, 1000);
}

#[test]
fn a_holder_acts_until_its_end_and_never_again() {
    let mut held = Held::granted(7, Duration::from_secs(2), moment(1000, 50_000));
    assert_eq!(held.check(moment(2687, 51_687)), Ok(7));
    held.renewed(moment(2000, 51_000), moment(2600, 51_600));
    assert_eq!(held.check(moment(3687, 52_687)), Ok(7));
    assert_eq!(held.check(moment(3688, 52_688)), Err(Ended::TimeIsUp));
    held.renewed(moment(3600, 52_600), moment(3700, 52_700));
    assert_eq!(held.check(moment(3700, 52_700)), Err(Ended::TimeIsUp));
}

#[test]
fn a_renewal_that_is_answered_too_late_does_not_count() {
    let mut held = Held::granted(7, Duration::from_secs(2), moment(1000, 0));
    held.renewed(moment(2600, 1600), moment(2700, 1700));
    assert_eq!(held.check(moment(2700, 1700)), Err(Ended::TimeIsUp));
}

#[test]
fn an_older_renewal_does_not_shorten_the_lease() {
    let mut held = Held::granted(7, Duration::from_secs(2), moment(1000, 0));
    held.renewed(moment(1800, 800), moment(1900, 900));
    held.renewed(moment(1400, 400), moment(1950, 950));
    assert_eq!(held.ends(), at(3488));
}

#[test]
fn clocks_that_disagree_end_the_lease() {
    // The machine slept for five seconds; the monotonic clock did not notice.
    for (wall, result) in [
        (50_012, Ok(7)),
        (49_988, Ok(7)),
        (50_013, Err(Ended::ClocksDisagree)),
        (49_987, Err(Ended::ClocksDisagree)),
        (55_000, Err(Ended::ClocksDisagree)),
        (0, Err(Ended::ClocksDisagree)),
        (i64::MIN, Err(Ended::ClocksDisagree)),
        (i64::MAX, Err(Ended::ClocksDisagree)),
    ] {
        let mut held = Held::granted(7, Duration::from_secs(2), moment(1000, 49_000));
        assert_eq!(held.check(moment(2000, wall)), result, "{wall}");
        // It does not come back when the clocks agree again.
        assert_eq!(held.check(moment(2000, 50_000)), result, "{wall}");
    }
}

/// With clocks that are as wrong as is allowed, a holder has stopped before anyone else may begin.
#[test]
fn nobody_begins_before_the_holder_has_stopped() {
    for ttl_ms in [500, 1200, 2000, 60_000, 24 * 3_600_000] {
        for (holder, watcher) in [(999, 1001), (1001, 999), (999, 999), (1001, 1001)] {
            // True milliseconds of a clock that goes at so many thousandths of true time.
            let truly =
                |on_clock: Instant, rate: u128| on_clock.since_start().as_nanos() * 1000 / rate;
            let mut stand = Stand::new();
            stand.grant(at(0), ttl_ms);
            let held = Held::granted(3, Duration::from_millis(ttl_ms), moment(0, 0));
            let stopped = held.ends() + ACTION_LIMIT + STOP_LIMIT;
            let over = stand.clock.deadline().unwrap();
            assert!(truly(stopped, holder) <= truly(over, watcher), "{ttl_ms} {holder} {watcher}");
        }
    }
}
