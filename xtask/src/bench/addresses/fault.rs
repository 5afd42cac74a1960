//! What befalls the machine that holds the address, and what the client sees of it.

use std::time::Duration;

use anyhow::{Context, Result};
use rustix::thread::sched_getaffinity;

use super::report::Column;
use super::sight::Silence;
use super::stage::{NODES, Stage};
use crate::children::{Child, Spec, TempDir};
use crate::postgres::{monotonic, sample_for, span};
use crate::procs;
use crate::random::Random;

/// Ends by itself when nobody ends it.
const LASTS: &str = "60s";
/// Faults come at any moment of what goes on every so often.
const CALM_MS: usize = 1000;
/// Once whole again, for so long nobody else may claim the address either.
const AFTERMATH: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    KillAgent,
    Freeze,
    PowerOff,
    Cut,
    Part,
    Move,
    Heal,
    Busy,
}

impl Fault {
    pub(super) const ALL: [Fault; 8] = [
        Fault::KillAgent,
        Fault::Freeze,
        Fault::PowerOff,
        Fault::Cut,
        Fault::Part,
        Fault::Move,
        Fault::Heal,
        Fault::Busy,
    ];

    pub(super) fn letter(self) -> char {
        match self {
            Fault::KillAgent => 'A',
            Fault::Freeze => 'B',
            Fault::PowerOff => 'C',
            Fault::Cut => 'D',
            Fault::Part => 'E',
            Fault::Move => 'F',
            Fault::Heal => 'H',
            Fault::Busy => 'L',
        }
    }

    pub(super) fn says(self) -> &'static str {
        match self {
            Fault::KillAgent => "agent and service killed",
            Fault::Freeze => "machine frozen",
            Fault::PowerOff => "power off",
            Fault::Cut => "holder cut off",
            Fault::Part => "candidates parted",
            Fault::Move => "planned move",
            Fault::Heal => "dark after heal",
            Fault::Busy => "all cores busy",
        }
    }

    pub(super) fn find(letter: char) -> Option<Fault> {
        Fault::ALL.into_iter().find(|fault| fault.letter() == letter.to_ascii_uppercase())
    }
}

/// What one round has shown.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    /// The holder was also the leader of the agreement.
    pub(super) led: bool,
    pub(super) silence: Silence,
    /// For a heal: when the lab said that it was healed, counted in the same way.
    pub(super) since_healed: Option<Duration>,
    /// Samples in which two machines claimed the address, and samples in which any did.
    pub(super) dual: usize,
    pub(super) samples: usize,
    /// Looks at the kernels that saw the address on two machines' interfaces.
    pub(super) on_two: usize,
    /// How often it was given to somebody else.
    pub(super) moves: Option<usize>,
    pub(super) stalled_percent: Option<f64>,
    /// How late the client itself was.
    pub(super) late: Duration,
}

/// The time in which a fault must have been overcome, before it is taken back.
fn hold(column: Column) -> Duration {
    match column {
        Column::Outlast | Column::KeepalivedFast => Duration::from_secs(2),
        // Three adverts of a second, and a part of one.
        Column::KeepalivedDefault => Duration::from_secs(6),
    }
}

/// One fault, from whole to whole.
pub(super) async fn befall(
    stage: &mut Stage,
    fault: Fault,
    busy: Duration,
    random: &mut Random,
) -> Result<Outcome> {
    let holder = stage.whole().await?;
    let wait = u64::try_from(random.index(CALM_MS))?;
    sample_for(Duration::from_millis(wait)).await;
    // The agents that run beside keepalived have nothing to do with the address.
    let led = stage.column == Column::Outlast && stage.leader().is_some_and(|l| l == holder);
    let moves = stage.moves().await?;
    let stalled = procs::cpu_stall();
    let begun = monotonic();
    let (silence, since_healed) = match fault {
        Fault::Busy => {
            be_busy(busy).await?;
            let end = stage.catch_up().await?;
            (stage.sight.silence(begun, end), None)
        }
        Fault::Heal => {
            strike(stage, fault, &holder).await?;
            sample_for(hold(stage.column)).await;
            let before = monotonic();
            stage.verb(&["heal"]).await?;
            let after = monotonic();
            sample_for(hold(stage.column)).await;
            let end = stage.catch_up().await?;
            let late = stage.sight.silence_within(after, end).at_least();
            (stage.sight.silence_within(before, end), Some(late))
        }
        Fault::KillAgent
        | Fault::Freeze
        | Fault::PowerOff
        | Fault::Cut
        | Fault::Part
        | Fault::Move => {
            strike(stage, fault, &holder).await?;
            sample_for(hold(stage.column).saturating_sub(span(begun, monotonic()))).await;
            let end = stage.catch_up().await?;
            (stage.sight.silence(begun, end), None)
        }
    };
    let over = monotonic();
    let stalled_percent = stalled.zip(procs::cpu_stall()).map(|(before, now)| {
        100.0 * now.saturating_sub(before).as_secs_f64() / span(begun, over).as_secs_f64()
    });
    let moves = match fault {
        // What its keepers have noted, or the client has seen.
        Fault::Busy => {
            let noted = stage.moves().await?.saturating_sub(moves);
            Some(noted.max(stage.sight.changes(begun, over)))
        }
        Fault::KillAgent
        | Fault::Freeze
        | Fault::PowerOff
        | Fault::Cut
        | Fault::Part
        | Fault::Move
        | Fault::Heal => None,
    };
    let late = stage.sight.late(begun, over);
    // Who wakes up, or is reached again, must not claim what is another's by now.
    stage.whole().await.context("it is not whole again")?;
    sample_for(AFTERMATH).await;
    let end = stage.catch_up().await?;
    let (samples, dual) = stage.sight.claims(begun, end);
    let (on_two, _) = stage.kernels(begun, end);
    Ok(Outcome { led, silence, since_healed, dual, samples, on_two, moves, stalled_percent, late })
}

async fn strike(stage: &Stage, fault: Fault, holder: &str) -> Result<()> {
    let others: Vec<&str> = NODES.into_iter().filter(|node| *node != holder).collect();
    // They stay together; the client reaches all.
    let others = others.join(",");
    let is_ours = stage.column == Column::Outlast;
    let with_client = format!("{holder},d");
    let words = match fault {
        Fault::KillAgent => {
            // The brackets keep the shell that says it from being hit itself.
            let keeper = if is_ours { "[o]utlast run" } else { "[k]eepalived --dont-fork" };
            return stage.kill(holder, &format!("{keeper}|[v]ipecho")).await;
        }
        Fault::Move if !is_ours => {
            // The oldest is the one that the others belong to.
            return stage.terminate(holder, "keepalived --dont-fork").await;
        }
        Fault::Move => vec!["stop", holder],
        Fault::Freeze => vec!["pause", holder, "--for", LASTS],
        Fault::PowerOff => vec!["kill", holder],
        Fault::Cut => vec!["cut", holder, "--for", LASTS],
        Fault::Part => vec!["cut", holder, &others, "--for", LASTS],
        Fault::Heal => vec!["cut", &with_client, "--for", LASTS],
        Fault::Busy => return Ok(()),
    };
    stage.verb(&words).await.map(drop)
}

/// A loop that does nothing on each core.
async fn be_busy(time: Duration) -> Result<()> {
    let dir = TempDir::new("busy")?;
    let cores = sched_getaffinity(None).context("count the cores")?.count();
    let words = ["-c", "while :; do :; done"].map(str::to_owned);
    let program = std::path::Path::new("/bin/sh");
    let loops = (0..cores).map(|core| {
        let name = format!("loop-{core}");
        let (name, args, dir) = (name.as_str(), words.as_slice(), dir.path());
        Child::start(&Spec { name, program, args, dir, core: None, has_children: false })
    });
    let loops: Vec<Child> = loops.collect::<Result<_>>()?;
    sample_for(time).await;
    drop(loops);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_found_by_its_letter() {
        for fault in Fault::ALL {
            assert_eq!(Fault::find(fault.letter().to_ascii_lowercase()), Some(fault));
        }
        assert_eq!(Fault::find('x'), None);
    }
}
