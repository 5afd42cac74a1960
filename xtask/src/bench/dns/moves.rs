//! What befalls a name that moves, and what its name servers say meanwhile: all kinds of them at once, of the same faults.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::net::Place;
use super::report::{Measure, Part, Report, Who};
use super::stage::{Cut, Stage, nanos};
use super::systems::{PRIMARY, SECONDARY, SERVERS};
use super::watch::Seen;
use super::wire::Answer;
use crate::out;
use crate::postgres::{monotonic, sample_for, span};
use crate::random::Random;

/// Faults come at any moment of the longest interval between two checks.
const PHASE_MS: usize = 5_000;
/// The secondary is answered by then, whoever answers.
const MOVE_LIMIT: Duration = Duration::from_secs(20);
/// Once all have moved, nobody may go back for so long.
const AFTERMATH: Duration = Duration::from_millis(300);
/// How long a name server is cut off, and for how long it is watched afterwards.
const CUT: Duration = Duration::from_secs(4);
const AFTER_CUT: Duration = Duration::from_secs(1);
/// Who is started answers within this.
const START_LIMIT: Duration = Duration::from_secs(30);
/// One restart of so many happens while the other agents stand still.
const ALONE_EVERY: usize = 4;

/// When the servers of one kind have moved.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Moved {
    first: Duration,
    all: Duration,
    spread: Duration,
}

fn is(seen: &Seen, ip: Ipv4Addr) -> bool {
    seen.answer == Answer::Address(ip)
}

/// Since when a server has said nothing else any more.
fn settled(seen: &[Seen], target: usize, ip: Ipv4Addr) -> Option<u64> {
    let mut own = seen.iter().rev().filter(|seen| seen.target == target).peekable();
    let mut since = None;
    while let Some(last) = own.next_if(|seen| is(seen, ip)) {
        since = Some(last.at);
    }
    since
}

/// How long after `from` the first of them said it, and since when all of them have said nothing else.
fn moved(seen: &[Seen], targets: &[usize], from: u64, ip: Ipv4Addr) -> Option<Moved> {
    let of_us = |seen: &&Seen| targets.contains(&seen.target) && is(seen, ip);
    let first = seen.iter().find(of_us)?.at;
    let all = targets.iter().map(|target| settled(seen, *target, ip));
    let all = all.collect::<Option<Vec<u64>>>()?.into_iter().max()?;
    Some(Moved { first: span(from, first), all: span(from, all), spread: span(first, all) })
}

fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}

#[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
fn count(number: usize) -> f64 {
    number as f64
}

impl Stage {
    fn targets(&self, who: Who) -> Vec<usize> {
        (0..self.servers.len()).filter(|at| self.servers[*at].who == who).collect()
    }

    fn place(&self, who: Who, place: Place) -> Option<usize> {
        self.servers.iter().position(|server| server.who == who && server.place == place)
    }
}

/// Part A: the primary is killed.
pub(super) async fn failovers(
    stage: &mut Stage,
    who: &[Who],
    rounds: usize,
    random: &mut Random,
    report: &mut Report,
) -> Result<()> {
    let targets: Vec<Vec<usize>> = who.iter().map(|who| stage.targets(*who)).collect();
    for round in 1..=rounds {
        stage.whole().await?;
        let wait = u64::try_from(random.index(PHASE_MS))?;
        sample_for(Duration::from_millis(wait)).await;
        stage.forget();
        let from = stage.kill_primary()?;
        let everybody: Vec<usize> = targets.concat();
        let over = |seen: &[Seen]| moved(seen, &everybody, from, SECONDARY.ip).is_some();
        let done = stage.see(MOVE_LIMIT, over).await;
        sample_for(AFTERMATH).await;
        let noise = stage.noise();
        let mut told = Vec::new();
        for (who, targets) in who.iter().zip(&targets) {
            let Some(found) = moved(stage.seen(), targets, from, SECONDARY.ip) else {
                report.fault(format!("A round {round}: {} has not moved", who.name()));
                continue;
            };
            report.record(Measure::FirstMoved, *who, ms(found.first));
            report.record(Measure::AllMoved, *who, ms(found.all));
            report.record(Measure::Spread, *who, ms(found.spread));
            told.push(format!("{} {:.0}-{:.0} ms", who.name(), ms(found.first), ms(found.all)));
        }
        told.extend(noise);
        if !done {
            told.push("not all have moved".to_owned());
        }
        out::line(format!("A round {round} of {rounds}: {}", told.join(", ")));
    }
    Ok(())
}

/// Part B: one machine after the other is cut off, and one in each round from the primary alone.
pub(super) async fn cuts(
    stage: &mut Stage,
    rounds: usize,
    random: &mut Random,
    report: &mut Report,
) -> Result<()> {
    let mut led = 0;
    for round in 1..=rounds {
        let parted = (SERVERS[round % SERVERS.len()], Cut::FromPrimary);
        for (place, cut) in SERVERS.map(|place| (place, Cut::Off)).into_iter().chain([parted]) {
            stage.whole().await?;
            let wait = u64::try_from(random.index(PHASE_MS))?;
            sample_for(Duration::from_millis(wait)).await;
            let leads = stage.leader().is_some_and(|leader| leader == place.name);
            led += usize::from(leads && cut == Cut::Off);
            let mut told = vec![match cut {
                Cut::Off => format!("{} cut off", place.name),
                Cut::FromPrimary => format!("{} cut off from the primary", place.name),
            }];
            told.extend(leads.then(|| "our leader".to_owned()));
            told.extend(be_cut(stage, place, cut, report).await?);
            out::line(format!("B round {round} of {rounds}: {}", told.join(", ")));
        }
    }
    let cuts = rounds * SERVERS.len();
    report.note(Part::Cut, format!("in {led} of {cuts} cuts the leader of our agents was cut off"));
    Ok(())
}

/// One cut; what came of it in words.
async fn be_cut(
    stage: &mut Stage,
    place: Place,
    cut: Cut,
    report: &mut Report,
) -> Result<Vec<String>> {
    let (who, inside) = stage.watch_inside(place)?;
    stage.forget();
    stage.cut(place, cut, true).await?;
    sample_for(CUT).await;
    stage.cut(place, cut, false).await?;
    sample_for(AFTER_CUT).await;
    let here = inside.take();
    drop(inside);
    let mut told = Vec::new();
    for (at, who) in who.iter().enumerate() {
        let mut others = stage.targets(*who);
        others.retain(|at| stage.servers[*at].place != place);
        let elsewhere = answers(stage.seen().iter().filter(|seen| others.contains(&seen.target)));
        let own = answers(here.iter().filter(|seen| seen.target == at));
        if elsewhere.all == 0 || own.all == 0 {
            report.fault(format!("B: {} has not answered while {}", who.name(), place.name));
        }
        report.record(Measure::WrongElsewhere, *who, count(elsewhere.wrong));
        let of_own = match cut {
            Cut::Off => Measure::WrongCutOff,
            Cut::FromPrimary => Measure::WrongParted,
        };
        report.record(of_own, *who, count(own.wrong));
        let (Answers { all, wrong }, name) = (elsewhere, who.name());
        told.push(format!("{name} {wrong} of {all} elsewhere, {} of {} there", own.wrong, own.all));
    }
    told.extend(stage.noise());
    Ok(told)
}

/// Answers, and those of them that are not the primary.
struct Answers {
    all: usize,
    wrong: usize,
}

fn answers<'s>(seen: impl Iterator<Item = &'s Seen>) -> Answers {
    let mut found = Answers { all: 0, wrong: 0 };
    for seen in seen {
        found.all += 1;
        found.wrong += usize::from(!is(seen, PRIMARY.ip));
    }
    found
}

/// Part C: one server after the other is killed and started while the secondary serves.
pub(super) async fn restarts(
    stage: &mut Stage,
    who: &[Who],
    restarts: usize,
    report: &mut Report,
) -> Result<()> {
    stage.whole().await?;
    stage.kill_primary()?;
    stage.all_say(SECONDARY).await?;
    let mut alone = 0;
    for number in 1..=restarts {
        let place = SERVERS[number % SERVERS.len()];
        let killed: Vec<usize> = who.iter().filter_map(|who| stage.place(*who, place)).collect();
        let is_alone = number.is_multiple_of(ALONE_EVERY) && who.contains(&Who::Outlast);
        let others: Vec<usize> = stage.targets(Who::Outlast);
        let others: Vec<usize> = others.into_iter().filter(|at| !killed.contains(at)).collect();
        if is_alone {
            alone += 1;
            stage.signal(&others, Signal::STOP)?;
        }
        for at in &killed {
            stage.kill(*at).await?;
        }
        stage.forget();
        let from = monotonic();
        for at in &killed {
            stage.start(*at)?;
        }
        let answered =
            |seen: &[Seen]| killed.iter().all(|at| seen.iter().any(|seen| seen.target == *at));
        let done = stage.see(START_LIMIT, answered).await;
        // Also where it went wrong: they must not stand still for ever.
        if is_alone {
            stage.signal(&others, Signal::CONT)?;
        }
        ensure!(
            done,
            "C restart {number} on {}: not all answer within {START_LIMIT:?}",
            place.name
        );
        for at in &killed {
            let who = stage.servers[*at].who;
            let first = stage.seen().iter().find(|seen| seen.target == *at).copied();
            let first = first.context("it has answered")?;
            let wrong = !is(&first, SECONDARY.ip);
            report.record(Measure::WrongFirst, who, count(usize::from(wrong)));
            report.record(Measure::UntilAnswer, who, ms(span(from, first.at)));
            if wrong && who.is_ours() {
                let how = if is_alone { ", alone" } else { "" };
                out::line(format!(
                    "C restart {number}{how}: the first answer is {:?}",
                    first.answer
                ));
            }
        }
        stage.all_say(SECONDARY).await?;
        if number.is_multiple_of(10) || number == restarts {
            out::line(format!("C restart {number} of {restarts}"));
        }
    }
    if who.contains(&Who::Outlast) {
        let note = format!("in {alone} of {restarts} restarts our other two agents stood still");
        report.note(Part::Restart, note);
    }
    Ok(())
}

/// How long the machine has waited for a core, as part of the time since.
pub(super) struct Stall(Option<Duration>, u64);

impl Stall {
    pub(super) fn begin() -> Stall {
        Stall(crate::procs::cpu_stall(), monotonic())
    }

    pub(super) fn says(&self) -> Option<String> {
        let waited = crate::procs::cpu_stall()?.saturating_sub(self.0?);
        let time = monotonic().saturating_sub(self.1).max(1);
        let percent = nanos(waited).saturating_mul(100) / time;
        Some(format!("a core was waited for {percent} % of the time"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn seen(lines: &[(u64, usize, Place)]) -> Vec<Seen> {
        let one = |(at, target, place): &(u64, usize, Place)| Seen {
            at: at * MS,
            target: *target,
            answer: Answer::Address(place.ip),
        };
        lines.iter().map(one).collect()
    }

    #[test]
    fn who_goes_back_has_not_moved_for_good() {
        let (p, s) = (PRIMARY, SECONDARY);
        let mut all = seen(&[(10, 0, p), (10, 1, p), (20, 0, s), (20, 1, p), (25, 1, s)]);
        let of = |all: &[Seen]| moved(all, &[0, 1], 5 * MS, s.ip);
        let time = Duration::from_millis;
        assert_eq!(of(&all), Some(Moved { first: time(15), all: time(20), spread: time(5) }));
        all.extend(seen(&[(30, 0, p)]));
        assert_eq!(of(&all), None);
        all.extend(seen(&[(35, 0, s)]));
        assert_eq!(of(&all), Some(Moved { first: time(15), all: time(30), spread: time(15) }));
    }

    #[test]
    fn all_that_is_not_the_primary_is_wrong() {
        let mut all = seen(&[(1, 0, PRIMARY), (2, 0, SECONDARY)]);
        all.push(Seen { at: 3, target: 0, answer: Answer::Code(2) });
        let found = answers(all.iter());
        assert_eq!((found.all, found.wrong), (3, 2));
    }
}
