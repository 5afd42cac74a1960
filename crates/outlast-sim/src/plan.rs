//! What a seed has in store: which faults there are, and how many of each.

use outlast_raft::Bug;

use crate::clock::Nanos;
use crate::random::Random;

pub(crate) const MICRO: Nanos = 1_000;
pub(crate) const MILLI: Nanos = 1_000_000;
pub(crate) const SECOND: Nanos = 1_000_000_000;

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
    pub bug: Option<Bug>,
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
        let mut random = Random::new(seed);
        let r = &mut random;
        let some = |r: &mut Random, most: u64| if r.chance(500_000) { r.within(0..most) } else { 0 };
        let fast = r.chance(400_000);
        let delay = if fast { (10 * MICRO, 60 * MICRO) } else { (100 * MICRO, r.within(1..20) * MILLI) };
        let sync = if fast { (10 * MICRO, 80 * MICRO) } else { (100 * MICRO, r.within(1..15) * MILLI) };
        let faults = Faults {
            loss_ppm: some(r, 200_000),
            twice_ppm: some(r, 100_000),
            delay,
            late_ppm: some(r, 50_000),
            late: r.within(MILLI..600 * MILLI),
            cut_ppm: some(r, 20_000),
            star_ppm: some(r, 5_000),
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
            bug: None,
            lying_disks: false,
            trace: false,
            faults,
        }
    }
}
