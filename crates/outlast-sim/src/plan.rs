//! What a seed has in store: which faults there are, and how many of each.

use outlast_core::agreed::CLOCK_RATE_ERROR;
use outlast_raft::Bug;

use crate::clock::Nanos;
use crate::holders::Slip;
use crate::random::Random;

pub(crate) const MICRO: Nanos = 1_000;
pub(crate) const MILLI: Nanos = 1_000_000;
pub(crate) const SECOND: Nanos = 1_000_000_000;

/// Of a million: always.
const MILLION: u64 = 1_000_000;

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub voters: u64,
    /// Nodes that may be added later.
    pub spares: u64,
    pub clients: u64,
    /// How long faults go on.
    pub storm: Nanos,
    /// How soon everything must work again after that.
    pub calm: Nanos,
    /// So small that what belongs together comes in pieces.
    pub append_bytes_max: usize,
    /// Entries that nodes keep before a snapshot.
    pub tail_entries: u64,
    pub bug: Option<Bug>,
    /// The log is fed to everything that nodes agree on, and there are users and holders of a role.
    pub agreed: bool,
    /// How long a lease lasts.
    pub ttl: Nanos,
    pub slip: Option<Slip>,
    /// Disks say done before anything is on them.
    pub lying_disks: bool,
    /// Keep the log as text.
    pub trace: bool,
    pub faults: Faults,
}

/// Chances are in millionths, per message or per look (one every 5 ms).
#[derive(Clone, Debug, Default)]
pub struct Faults {
    pub loss_ppm: u64,
    pub twice_ppm: u64,
    pub delay: (Nanos, Nanos),
    /// A message that takes the long way.
    pub late_ppm: u64,
    pub late: Nanos,
    pub cut_ppm: u64,
    pub star_ppm: u64,
    /// Whoever leads is cut off from everybody.
    pub topple_ppm: u64,
    pub heal_ppm: u64,
    pub crash_ppm: u64,
    pub crash_all_ppm: u64,
    pub restart_ppm: u64,
    pub pause_ppm: u64,
    pub sync: (Nanos, Nanos),
    pub slow_sync_ppm: u64,
    pub slow_sync: Nanos,
    pub failed_sync_ppm: u64,
    pub drift_ppm: i64,
    pub change_ppm: u64,
    pub transfer_ppm: u64,
    pub compact_ppm: u64,
}

impl Plan {
    /// Each seed has some of the faults and none of the others: bugs hide where one fault is rare and another is not.
    pub fn of(seed: u64) -> Plan {
        match seed % 16 {
            7 => Plan::harsh(seed),
            15 => Plan::votes(seed),
            3 | 11 => Plan::agreed(seed),
            _ => Plan::mixed(seed),
        }
    }

    /// What makes the absence of one guard show soonest.
    pub fn aimed(seed: u64, bug: Bug) -> Plan {
        let mut random = Random::new(seed);
        let r = &mut random;
        let quick = (10 * MICRO, 60 * MICRO);
        let cuts = Faults {
            delay: quick,
            sync: quick,
            cut_ppm: 40_000,
            heal_ppm: 15_000,
            drift_ppm: 500,
            ..Faults::default()
        };
        let (voters, faults) = match bug {
            // Leaders fall silent at once; who has forgotten its vote then hears of another candidate of the same term.
            Bug::VoteBeforeDisk => {
                let plan = Plan::votes(seed);
                let faults = Faults { topple_ppm: 60_000, heal_ppm: 20_000, ..plan.faults };
                let faults = Faults { restart_ppm: MILLION, ..faults };
                let (voters, spares, clients) = (3, 0, 0);
                let storm = 6 * SECOND;
                return Plan { voters, spares, clients, faults, storm, bug: Some(bug), ..plan };
            }
            // Somebody who answers a leader hears late of another's term, and then of its candidate.
            Bug::NoStickinessInTerm => {
                let delay = (MILLI, r.within(2..20) * MILLI);
                let (late_ppm, late) = (r.within(100_000..500_000), r.within(100..400) * MILLI);
                let late = Faults { delay, late_ppm, late, ..cuts };
                return Plan {
                    voters: 3,
                    spares: 0,
                    clients: 0,
                    storm: 10 * SECOND,
                    faults: Faults {
                        cut_ppm: 30_000,
                        topple_ppm: 20_000,
                        heal_ppm: 60_000,
                        ..late
                    },
                    bug: Some(bug),
                    ..Plan::mixed(seed)
                };
            }
            // Whoever leads has just begun its log with a snapshot.
            Bug::SnapshotTakesAll => {
                let delay = (MILLI, r.within(2..40) * MILLI);
                let loss_ppm = r.within(0..300_000);
                let cuts = Faults { delay, loss_ppm, compact_ppm: 100_000, ..cuts };
                return Plan {
                    voters: 5,
                    spares: 0,
                    tail_entries: 0,
                    append_bytes_max: 1,
                    storm: 6 * SECOND,
                    faults: Faults { topple_ppm: 30_000, heal_ppm: 30_000, ..cuts },
                    bug: Some(bug),
                    ..Plan::mixed(seed)
                };
            }
            Bug::NoQuorumGate | Bug::ReadWithoutRound => (3, cuts),
            // Somebody who misses writes would be refused for that.
            Bug::NoStickiness => {
                return Plan {
                    voters: 3,
                    clients: 0,
                    faults: cuts,
                    bug: Some(bug),
                    ..Plan::mixed(seed)
                };
            }
            Bug::LeaseFromAnswer => (3, Faults { late_ppm: 100_000, late: 200 * MILLI, ..cuts }),
            Bug::NoDriftMargin => (5, Faults { drift_ppm: 50_000, ..cuts }),
            Bug::AckBeforeDisk => {
                let sync = (20 * MICRO, 30 * MILLI);
                (3, Faults { sync, crash_ppm: 30_000, restart_ppm: 300_000, ..cuts })
            }
            Bug::VoteForShorterLog => (3, cuts),
            // Half of everything comes when others lead already.
            Bug::NoTermCheck => {
                let late = Faults { late_ppm: 300_000, late: 400 * MILLI, ..cuts };
                let delay = (MILLI, r.within(2..20) * MILLI);
                (3, Faults { delay, cut_ppm: 0, topple_ppm: 40_000, heal_ppm: 60_000, ..late })
            }
            // Every leader begins with an entry of its own; few get as far as to bring it to anybody.
            Bug::CommitOldTerm => {
                let delay = (MILLI, r.within(5..60) * MILLI);
                let loss_ppm = r.within(0..300_000);
                let heal_ppm = r.within(8_000..60_000);
                let cuts = Faults { delay, cut_ppm: 0, topple_ppm: 60_000, loss_ppm, ..cuts };
                return Plan {
                    voters: 3,
                    spares: 0,
                    clients: 0,
                    append_bytes_max: 1,
                    faults: Faults { heal_ppm, ..cuts },
                    bug: Some(bug),
                    storm: 10 * SECOND,
                    ..Plan::mixed(seed)
                };
            }
            Bug::ChangeTooEarly => (4, Faults { change_ppm: 300_000, ..cuts }),
        };
        let spares = r.within(0..3);
        let append_bytes_max = 1;
        let storm = 1_500 * MILLI;
        Plan {
            voters,
            spares,
            append_bytes_max,
            faults,
            storm,
            bug: Some(bug),
            ..Plan::mixed(seed)
        }
    }

    /// Users and holders of a role, on clocks that are as good as leases need them.
    pub fn agreed(seed: u64) -> Plan {
        let mut random = Random::new(!seed);
        let plan = Plan::mixed(seed);
        let drift = i64::from(CLOCK_RATE_ERROR) - 1;
        let drift_ppm = plan.faults.drift_ppm.min(drift);
        Plan {
            agreed: true,
            clients: 3,
            ttl: random.within(400..1_500) * MILLI,
            faults: Faults { drift_ppm, ..plan.faults },
            ..plan
        }
    }

    /// What makes the absence of a guard of leases show soonest.
    pub fn slipping(seed: u64, slip: Slip) -> Plan {
        let plan = Plan { slip: Some(slip), ..Plan::agreed(seed) };
        match slip {
            Slip::HeldFromAnswer | Slip::AnyEpoch | Slip::RepeatsAsNew => plan,
            // One millionth more of a lease has to be longer than everything else that is taken off.
            Slip::HeldWithoutMargin => Plan {
                voters: 3,
                spares: 0,
                clients: 0,
                ttl: 40 * SECOND,
                storm: 200 * SECOND,
                faults: Faults {
                    delay: (10 * MICRO, 60 * MICRO),
                    sync: (10 * MICRO, 60 * MICRO),
                    drift_ppm: i64::from(CLOCK_RATE_ERROR) - 1,
                    ..Faults::default()
                },
                ..plan
            },
        }
    }

    /// Elections without end: voters crash between a vote and its sync, and hear late of other candidates.
    pub fn votes(seed: u64) -> Plan {
        let mut random = Random::new(seed);
        let r = &mut random;
        let faults = Faults {
            delay: (20 * MICRO, r.within(100..2_000) * MICRO),
            late_ppm: r.within(200_000..600_000),
            late: r.within(250 * MILLI..500 * MILLI),
            heal_ppm: 40_000,
            crash_ppm: r.within(20_000..60_000),
            restart_ppm: 600_000,
            sync: (20 * MICRO, r.within(10..100) * MILLI),
            drift_ppm: 500,
            ..Faults::default()
        };
        Plan { voters: [3, 3, 4, 5][r.index(4)], faults, ..Plan::mixed(seed) }
    }

    /// Messages and syncs as slow as elections, and crashes in the middle of everything: what takes years elsewhere.
    pub fn harsh(seed: u64) -> Plan {
        let mut random = Random::new(seed);
        let r = &mut random;
        let faults = Faults {
            loss_ppm: r.within(0..100_000),
            delay: (50 * MICRO, r.within(1..60) * MILLI),
            late_ppm: r.within(100_000..500_000),
            late: r.within(100 * MILLI..500 * MILLI),
            heal_ppm: 40_000,
            crash_ppm: r.within(5_000..40_000),
            restart_ppm: 300_000,
            sync: (50 * MICRO, r.within(1..250) * MILLI),
            drift_ppm: 500,
            ..Faults::default()
        };
        Plan { voters: [3, 4, 5, 5][r.index(4)], faults, ..Plan::mixed(seed) }
    }

    fn mixed(seed: u64) -> Plan {
        let mut random = Random::new(seed);
        let r = &mut random;
        let some =
            |r: &mut Random, most: u64| if r.chance(500_000) { r.within(0..most) } else { 0 };
        let fast = r.chance(400_000);
        let delay =
            if fast { (10 * MICRO, 60 * MICRO) } else { (100 * MICRO, r.within(1..20) * MILLI) };
        let sync =
            if fast { (10 * MICRO, 80 * MICRO) } else { (100 * MICRO, r.within(1..15) * MILLI) };
        let faults = Faults {
            loss_ppm: some(r, 200_000),
            twice_ppm: some(r, 100_000),
            delay,
            late_ppm: some(r, 50_000),
            late: r.within(MILLI..600 * MILLI),
            cut_ppm: some(r, 20_000),
            star_ppm: some(r, 5_000),
            topple_ppm: some(r, 8_000),
            heal_ppm: r.within(5_000..40_000),
            crash_ppm: some(r, 15_000),
            crash_all_ppm: some(r, 2_000),
            restart_ppm: r.within(10_000..60_000),
            pause_ppm: some(r, 10_000),
            sync,
            slow_sync_ppm: some(r, 20_000),
            slow_sync: r.within(10 * MILLI..900 * MILLI),
            failed_sync_ppm: some(r, 500),
            drift_ppm: i64::try_from(some(r, 50_000)).expect("small"),
            change_ppm: some(r, 15_000),
            transfer_ppm: some(r, 8_000),
            compact_ppm: some(r, 30_000),
        };
        Plan {
            seed,
            voters: [1, 3, 3, 3, 3, 4, 5, 5][r.index(8)],
            spares: r.within(0..3),
            clients: r.within(1..5),
            storm: 3 * SECOND,
            calm: 6 * SECOND,
            append_bytes_max: [1, 200, 200, 100_000][r.index(4)],
            tail_entries: [0, 0, 10, 4096][r.index(4)],
            bug: None,
            agreed: false,
            ttl: SECOND,
            slip: None,
            lying_disks: false,
            trace: false,
            faults,
        }
    }
}
