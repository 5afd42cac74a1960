//! The moves of the standard, the bytes, and a network of routers in which the laws are looked after.

use std::net::IpAddr;
use std::num::NonZeroU8;
use std::string::String;
use std::time::Duration;
use std::vec::Vec;

use super::wire::{Advert, Dialect, GROUP_V4, GROUP_V6, Malformed};
use super::*;
use crate::sim::{Bug, PLANTED, Rng};

const TENTH: u16 = 10;

fn at(millis: u64) -> Instant {
    Instant::from_start(Duration::from_millis(millis))
}

fn priority(of: u8) -> NonZeroU8 {
    NonZeroU8::new(of).unwrap()
}

fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn interval(centiseconds: u16) -> Interval {
    Interval::of_centiseconds(centiseconds).unwrap()
}

fn settings(of: u8) -> Settings {
    Settings {
        priority: priority(of),
        interval: interval(TENTH),
        preempt: true,
        preempt_delay: Duration::ZERO,
        refresh: Duration::from_secs(1),
    }
}

/// By the one that speaks from .2.
fn heard(of: u8, last: u8) -> Event {
    let (from, own) = (address(last), address(2));
    Event::Heard(Heard { from, own, priority: of, interval: interval(TENTH) })
}

/// One that speaks every 0.1 s and has come into this state at 0.
fn router(state: State, settings: Settings) -> Router {
    let mut router = Router::new(settings);
    router.step(at(0), Event::Start, &mut Vec::new());
    if state == State::Active {
        router.due = at(0);
        router.step(at(0), Event::Tick, &mut Vec::new());
    }
    assert_eq!(router.state(), state);
    router
}

fn step(router: &mut Router, millis: u64, event: Event) -> Vec<Action> {
    let mut out = Vec::new();
    router.step(at(millis), event, &mut out);
    out
}

fn says(priority: u8) -> Action {
    Action::Advertise { priority }
}

#[test]
fn a_backup_takes_over_after_three_intervals_and_its_skew() {
    // RFC 9568 6.1: 3 * 100 ms + (256 - 100) / 256 * 100 ms.
    let mut backup = router(State::Backup, settings(100));
    assert_eq!(
        backup.deadline(),
        Some(Instant::from_start(Duration::from_micros(360_937) + Duration::from_nanos(500)))
    );
    assert_eq!(step(&mut backup, 360, Event::Tick), []);
    assert_eq!(step(&mut backup, 361, Event::Tick), [says(100), Action::Take]);
    assert_eq!(step(&mut backup, 460, Event::Tick), []);
    assert_eq!(step(&mut backup, 461, Event::Tick), [says(100)]);
}

#[test]
fn the_owner_is_active_at_once() {
    let mut owner = Router::new(settings(255));
    assert_eq!(step(&mut owner, 0, Event::Start), [says(255), Action::Take]);
}

#[test]
fn a_backup_that_hears_of_an_end_waits_for_its_skew_alone() {
    let mut backup = router(State::Backup, settings(100));
    assert_eq!(step(&mut backup, 50, heard(LEAVES, 3)), []);
    assert_eq!(step(&mut backup, 111, Event::Tick), [says(100), Action::Take]);
}

#[test]
fn a_backup_waits_for_equal_and_higher_ones_and_for_lower_ones_if_it_does_not_preempt() {
    for (of, preempt, waits) in
        [(100, true, true), (101, true, true), (99, true, false), (99, false, true)]
    {
        let mut backup = router(State::Backup, Settings { preempt, ..settings(100) });
        assert_eq!(step(&mut backup, 300, heard(of, 3)), []);
        let takes = step(&mut backup, 400, Event::Tick).contains(&Action::Take);
        assert_eq!(takes, !waits, "{of} {preempt}");
    }
}

#[test]
fn a_backup_goes_by_the_interval_of_the_active_one() {
    let mut backup = router(State::Backup, settings(100));
    let slow = Heard { from: address(3), own: address(2), priority: 200, interval: interval(100) };
    step(&mut backup, 10, Event::Heard(slow));
    assert_eq!(step(&mut backup, 3_000, Event::Tick), []);
    assert_eq!(step(&mut backup, 3_620, Event::Tick), [says(100), Action::Take]);
}

#[test]
fn a_delayed_preemption_begins_later() {
    let delay = Duration::from_secs(1);
    let mut backup = router(State::Backup, Settings { preempt_delay: delay, ..settings(200) });
    for now in [300, 600, 900] {
        assert_eq!(step(&mut backup, now, heard(100, 3)), []);
    }
    assert_eq!(step(&mut backup, 1_200, heard(100, 3)), []);
    assert_eq!(step(&mut backup, 1_230, heard(100, 3)), [says(200), Action::Take]);
}

#[test]
fn an_active_one_yields_to_a_higher_priority_or_address_and_says_so_after_it_let_go() {
    let yields = [Action::Release, says(100)];
    for (of, last, out) in
        [(101, 1, &yields[..]), (100, 3, &yields), (100, 1, &[says(100), Action::Announce])]
    {
        let mut active = router(State::Active, settings(100));
        assert_eq!(step(&mut active, 150, heard(of, last)), out, "{of} .{last}");
    }
}

#[test]
fn an_active_one_answers_a_lower_one_once_per_interval() {
    let mut active = router(State::Active, settings(100));
    assert_eq!(step(&mut active, 20, heard(50, 1)), []);
    assert_eq!(step(&mut active, 100, heard(50, 1)), [says(100), Action::Announce]);
    assert_eq!(step(&mut active, 110, heard(50, 1)), []);
    // One that ends is answered by itself.
    assert_eq!(step(&mut active, 120, heard(LEAVES, 1)), [says(100)]);
}

#[test]
fn an_active_one_announces_again_and_again() {
    let mut active = router(State::Active, settings(100));
    let announces = (1..=30).map(|n| step(&mut active, 100 * n, Event::Tick));
    let announces = announces.filter(|out| out.contains(&Action::Announce)).count();
    assert_eq!(announces, 3);
}

#[test]
fn who_ends_lets_go_before_it_says_so() {
    let ends = [Action::Release, says(LEAVES)];
    for event in [Event::Stop, Event::Weigh(None)] {
        let mut active = router(State::Active, settings(100));
        assert_eq!(step(&mut active, 50, event), ends);
        assert_eq!((active.state(), active.deadline()), (State::Idle, None));
        assert_eq!(step(&mut active, 60, heard(1, 1)), []);
    }
}

#[test]
fn what_is_tracked_counts_at_once() {
    let mut active = router(State::Active, settings(100));
    assert_eq!(step(&mut active, 10, Event::Weigh(Some(priority(50)))), [says(50)]);
    assert_eq!(step(&mut active, 20, Event::Weigh(Some(priority(50)))), []);
    assert_eq!(step(&mut active, 30, heard(60, 1)), [Action::Release, says(50)]);
    assert_eq!(step(&mut active, 40, Event::Weigh(None)), []);
    assert_eq!(step(&mut active, 50, Event::Weigh(Some(priority(100)))), []);
    assert_eq!(active.state(), State::Backup);
}

fn advert(addresses: &[&str]) -> Advert {
    let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    Advert { router: priority(51), priority: 150, interval: interval(100), addresses }
}

#[test]
fn what_is_written_is_read_again_in_both_dialects() {
    let v4 = (advert(&["10.0.0.100", "10.0.0.101"]), address(1), IpAddr::from(GROUP_V4));
    let v6 =
        (advert(&["fe80::1", "2001:db8::1"]), "fe80::9".parse().unwrap(), IpAddr::from(GROUP_V6));
    for (advert, from, to) in [v4, v6] {
        for dialect in [Dialect::PseudoHeader, Dialect::MessageOnly] {
            let bytes = advert.to_bytes(from, to, dialect);
            let known = if from.is_ipv4() { dialect } else { Dialect::PseudoHeader };
            assert_eq!(Advert::read(&bytes, from, to), Ok((advert.clone(), known)));
            for end in 0..bytes.len() {
                assert!(Advert::read(&bytes[..end], from, to).is_err(), "{end}");
            }
            let wrong = |at: usize| {
                let mut bytes = bytes.clone();
                bytes[at] ^= 0x10;
                Advert::read(&bytes, from, to)
            };
            assert_eq!(wrong(0), Err(Malformed::Version(2)));
            assert_eq!(wrong(2), Err(Malformed::Checksum));
            assert_eq!(wrong(3), Err(Malformed::Length));
        }
    }
}

/// Router 51, priority 150, every second, for 10.0.0.100, from 10.0.0.1.
#[test]
fn the_bytes_are_those_of_the_standard() {
    let bytes =
        advert(&["10.0.0.100"]).to_bytes(address(1), GROUP_V4.into(), Dialect::PseudoHeader);
    assert_eq!(bytes[..6], [0x31, 51, 150, 1, 0, 100]);
    assert_eq!(bytes[8..], [10, 0, 0, 100]);
    // The sum over the pseudo-header and the message, by hand:
    // 0a00+0001+e000+0012+0070+000c + 3133+9601+0064+0a00+0064 = 1_bc8b; 1+bc8b = bc8c; its complement.
    assert_eq!(bytes[6..8], [0x43, 0x73]);
}

/// The address of a router of the world.
fn place(node: usize) -> IpAddr {
    address(u8::try_from(node + 1).unwrap())
}

/// Routers on one network, and a client that believes the last announcement.
struct World {
    rng: Rng,
    now: u64,
    routers: Vec<Router>,
    /// To be heard then, by whom, from whom.
    sent: Vec<(u64, usize, Heard)>,
    /// Which of them hear each other.
    side: Vec<u8>,
    holds: Vec<bool>,
    believed: Option<usize>,
    /// Routers only lose each other, and nothing is announced again because of the time.
    only_parts: bool,
}

impl World {
    fn new(seed: u64, only_parts: bool) -> World {
        let mut rng = Rng::new(seed);
        let count: usize = rng.pick(&[2, 3, 4]);
        let preempt = rng.per_mille(700);
        let router = |rng: &mut Rng| {
            let of = rng.pick(&[50, 100, 100, 200]);
            let refresh = Duration::from_secs(if only_parts { 3_600 } else { 1 });
            Router::new(Settings { preempt, refresh, ..settings(of) })
        };
        let routers = (0..count).map(|_| router(&mut rng)).collect();
        World {
            rng,
            now: 0,
            routers,
            sent: Vec::new(),
            side: std::vec![0; count],
            holds: std::vec![false; count],
            believed: None,
            only_parts,
        }
    }

    fn step(&mut self, node: usize, event: Event) {
        let mut out = Vec::new();
        self.routers[node].step(at(self.now), event, &mut out);
        for action in out {
            match action {
                Action::Advertise { priority } => self.send(node, priority),
                Action::Take => {
                    self.holds[node] = true;
                    self.believed = Some(node);
                }
                Action::Announce => self.believed = Some(node),
                Action::Release => self.holds[node] = false,
            }
        }
    }

    fn send(&mut self, node: usize, of: u8) {
        for other in (0..self.routers.len()).filter(|&other| other != node) {
            if self.side[node] == self.side[other] {
                let (from, own) = (place(node), place(other));
                let heard = Heard { from, own, priority: of, interval: interval(TENTH) };
                self.sent.push((self.now + self.rng.between(0, 4), other, heard));
            }
        }
    }

    fn run(&mut self, until: u64) {
        while self.now < until {
            self.now += 1;
            let now = self.now;
            let (due, later) = self.sent.drain(..).partition(|(at, ..)| *at <= now);
            let due: Vec<(u64, usize, Heard)> = due;
            self.sent = later;
            for (_, node, heard) in due {
                self.step(node, Event::Heard(heard));
            }
            for node in 0..self.routers.len() {
                self.step(node, Event::Tick);
            }
        }
    }

    fn fault(&mut self) {
        let all: Vec<usize> = (0..self.routers.len()).collect();
        let node = self.rng.pick(&all);
        match self.rng.between(if self.only_parts { 3 } else { 0 }, 5) {
            0 => self.step(node, Event::Stop),
            1 => self.step(node, Event::Weigh(None)),
            2 => {
                let of = self.rng.pick(&[1, 80, 254]);
                self.step(node, Event::Weigh(Some(priority(of))));
            }
            _ => {
                for side in &mut self.side {
                    *side = self.rng.pick(&[0, 1]);
                }
            }
        }
    }

    /// What is wrong once all hear each other and nothing has happened for a while.
    fn wrong(&self) -> Option<String> {
        let holders: Vec<usize> = (0..self.routers.len()).filter(|&n| self.holds[n]).collect();
        let [holder] = holders[..] else {
            return Some(std::format!("{holders:?} hold the addresses"));
        };
        let best = self.routers.iter().map(|router| router.priority).max();
        let holding = &self.routers[holder];
        if holding.settings.preempt && best != Some(holding.priority) {
            return Some(std::format!("{holder} holds the addresses, and a higher one is there"));
        }
        (self.believed != Some(holder)).then(|| {
            std::format!("{holder} holds the addresses, clients go to {:?}", self.believed)
        })
    }
}

fn broken(seed: u64, only_parts: bool) -> Option<String> {
    let mut world = World::new(seed, only_parts);
    (0..world.routers.len()).for_each(|node| world.step(node, Event::Start));
    for _ in 0..6 {
        let pause = world.rng.between(1, 900);
        world.run(world.now + pause);
        world.fault();
    }
    let lasts = world.rng.between(1, 900);
    world.run(world.now + lasts);
    world.side.fill(0);
    for node in 0..world.routers.len() {
        let own = world.routers[node].settings.priority;
        world.step(node, Event::Weigh(Some(own)));
        world.step(node, Event::Start);
    }
    world.run(world.now + 1_500);
    world.wrong()
}

#[test]
fn after_every_trouble_one_holds_the_addresses_and_clients_know_which() {
    for seed in 0..2_000 {
        assert_eq!(broken(seed, false), None, "seed {seed}");
    }
}

/// A last word can be lost, too: then clients wait for the next time that the addresses are announced.
#[test]
fn the_simulation_finds_who_steps_down_without_a_word() {
    let count = || (0..2_000).filter(|seed| broken(*seed, true).is_some()).count();
    let right = count();
    PLANTED.set(Some(Bug::SilentStepDown));
    let wrong = count();
    PLANTED.set(None);
    assert!(right < 10 && 20 * right.max(1) < wrong, "{right} and {wrong} of 2000");
}
