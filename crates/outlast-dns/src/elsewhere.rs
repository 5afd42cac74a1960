//! The same records kept in other people's name servers: over RFC 2136 ([`Rfc2136`]) or in Route 53 ([`Route53`]).
//!
//! ```text
//!   Wanted ──plan──▶ what is there now, held against it: lines for people, steps ──apply──▶ all of it, or nothing
//! ```
//!
//! Only names and types that the topology has are touched. What is as wanted already is not written again. If somebody
//! changes a record between the look and the change, nothing is done and it is looked at again.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use outlast_core::health::Health;
use outlast_core::names::{self, FailoverId, Sight, Sticky};
use outlast_core::topology::{
    Endpoint, HealthCheck, Policy, Record, RecordKind, RecordValue, WhenAllDown, Zone,
};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use crate::name::Name;
use crate::zone::{Rdata, Rtype};

mod rfc2136;
#[cfg(feature = "aws")]
mod route53;

pub use rfc2136::{Rfc2136, Rfc2136Steps};
#[cfg(feature = "aws")]
pub use route53::{Route53, Route53Steps};

/// How often it is looked again because somebody else has changed something meanwhile.
const ROUNDS_MAX: u32 = 3;

/// How long one look and its changes may take.
pub const PUSH_MAX: Duration = Duration::from_secs(180);

/// How often it is looked whether somebody else has changed a record of ours.
pub const LOOK_EVERY: Duration = Duration::from_secs(300);

/// How long it takes after a failure to the next try; twice as long after each further one.
const BACK_OFF: Duration = Duration::from_secs(2);

/// How long it takes to the next try at most.
pub const BACK_OFF_MAX: Duration = Duration::from_secs(300);

/// What is wanted elsewhere of one zone.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    pub zone: Name,
    pub records: Vec<WantedRecord>,
    /// What was ours once and is to be there no more.
    pub gone: BTreeSet<(Name, RecordKind)>,
    /// What is agreed on of each check.
    checks: Vec<(HealthCheck, Health)>,
}

/// One name and type that is ours.
#[derive(Clone, Debug, PartialEq)]
pub struct WantedRecord {
    pub owner: Name,
    /// What decides the answer, for who can do that.
    pub record: Record,
    /// What is answered now, for who cannot.
    pub now: names::Choice,
    /// Seconds, now.
    pub ttl: u32,
}

impl Wanted {
    /// What a zone of the topology is to be elsewhere, given what is agreed on.
    pub fn new(
        name: &str,
        zone: &Zone,
        sight: &Sight<'_>,
        sticky: &Sticky,
    ) -> Result<Wanted, Trouble> {
        let zone_name: Name = parse(name)?;
        let answers = names::answers(zone, sight, sticky);
        let records = zone.records.iter().zip(answers).map(|(record, now)| {
            // Who judges health by itself knows nothing of what people say.
            let lowered = sticky.lowered.contains_key(&FailoverId::of(record));
            let ttl = if lowered { record.ttl_degraded } else { record.ttl };
            Ok(WantedRecord {
                owner: owner(&record.name, name)?,
                record: Record { ttl, ..record.clone() },
                now: now.choice,
                ttl: seconds(now.ttl),
            })
        });
        let checks = names::checked(zone, sight);
        Ok(Wanted {
            zone: zone_name,
            records: records.collect::<Result<_, Trouble>>()?,
            gone: BTreeSet::new(),
            checks: checks.into_iter().map(|(check, health)| (check.clone(), health)).collect(),
        })
    }

    /// One name that leads to one value, and nothing else.
    pub fn one(
        zone: &str,
        name: &str,
        value: RecordValue,
        ttl: Duration,
    ) -> Result<Wanted, Trouble> {
        let kind = match &value {
            RecordValue::A(_) => RecordKind::A,
            RecordValue::Aaaa(_) => RecordKind::Aaaa,
            RecordValue::Cname(_) => RecordKind::Cname,
            RecordValue::Txt(_) => RecordKind::Txt,
        };
        let zone = parse(zone)?;
        let owner = parse(name)?;
        if !owner.is_in(&zone) {
            return Err(Trouble::Never(format!("{owner} does not lie in the zone {zone}")));
        }
        let record = Record {
            name: name.to_owned(),
            kind,
            policy: Policy::Simple(vec![Endpoint { value: value.clone(), check: None }]),
            check: None,
            ttl,
            ttl_degraded: ttl,
            when_all_down: WhenAllDown::Open,
        };
        let now = names::Choice::One(vec![value]);
        let record = WantedRecord { owner, record, now, ttl: seconds(ttl) };
        Ok(Wanted { zone, records: vec![record], gone: BTreeSet::new(), checks: Vec::new() })
    }

    /// The same, and what an earlier state had is to go unless this one has it, too.
    pub fn after(mut self, earlier: &Wanted) -> Wanted {
        let key = |record: &WantedRecord| (record.owner.clone(), record.record.kind);
        let ours: BTreeSet<_> = self.records.iter().map(key).collect();
        let theirs = earlier.records.iter().map(key).chain(earlier.gone.iter().cloned());
        self.gone.extend(theirs.filter(|key| !ours.contains(key)));
        self
    }

    /// What is agreed on of a check; what was never judged is not taken for down.
    #[cfg(feature = "aws")]
    fn is_healthy(&self, check: &HealthCheck) -> bool {
        let found = self.checks.iter().find(|(known, _)| known == check);
        !matches!(found, Some((_, Health::Down)))
    }
}

fn parse(name: &str) -> Result<Name, Trouble> {
    name.parse().map_err(|_bad| Trouble::Never(format!("`{name}` is no name")))
}

fn owner(name: &str, zone: &str) -> Result<Name, Trouble> {
    if name == "@" { parse(zone) } else { parse(&format!("{name}.{}", zone.trim_end_matches('.'))) }
}

fn seconds(ttl: Duration) -> u32 {
    u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX >> 1)
}

pub(crate) fn rtype(kind: RecordKind) -> Rtype {
    match kind {
        RecordKind::A => Rtype::A,
        RecordKind::Aaaa => Rtype::AAAA,
        RecordKind::Cname => Rtype::CNAME,
        RecordKind::Txt => Rtype::TXT,
    }
}

/// A value as bytes; none if it is a name that is none.
pub(crate) fn rdata(value: &RecordValue) -> Option<Rdata> {
    Some(match value {
        RecordValue::A(ip) => Rdata::a(*ip),
        RecordValue::Aaaa(ip) => Rdata::aaaa(*ip),
        RecordValue::Cname(name) => Rdata::name(&name.parse().ok()?),
        RecordValue::Txt(text) => Rdata::txt(text.as_bytes()),
    })
}

/// Why records elsewhere are not known to be as wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Somebody has changed something between the look and the change; nothing was done.
    Changed(String),
    /// It may be better later.
    Later(String),
    /// Something has to be changed first, here or there.
    Never(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Changed(what) | Trouble::Later(what) | Trouble::Never(what) => {
                f.write_str(what)
            }
        }
    }
}

impl std::error::Error for Trouble {}

/// What is to be done elsewhere, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// What goes (`-`), what comes (`+`) and what is changed (`~`).
    pub lines: Vec<String>,
    /// What is said there in another way than here.
    pub warnings: Vec<String>,
    /// Records that cannot be said there and are left as they are.
    pub refused: Vec<String>,
}

impl fmt::Display for Outline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        self.warnings.iter().try_for_each(|warning| writeln!(f, "warning: {warning}"))?;
        self.refused.iter().try_for_each(|refused| writeln!(f, "left alone: {refused}"))
    }
}

/// What is to be done, and how.
#[derive(Clone, Debug)]
pub struct Plan<S> {
    pub outline: Outline,
    pub(crate) steps: S,
}

impl<S> Plan<S> {
    /// Whether all is as wanted already, but for what is refused.
    pub fn is_done(&self) -> bool {
        self.outline.lines.is_empty()
    }
}

/// Another name server that records are kept in.
pub trait Provider: fmt::Display + Send + Sync {
    /// How a plan is carried out.
    type Steps: Send + Sync;

    /// Looks at what is there and says what would have to be done. Changes nothing.
    fn plan(
        &self,
        wanted: &Wanted,
    ) -> impl Future<Output = Result<Plan<Self::Steps>, Trouble>> + Send;

    /// Does it, all or nothing. Done a second time it does no harm.
    fn apply(&self, plan: &Plan<Self::Steps>) -> impl Future<Output = Result<(), Trouble>> + Send;
}

/// Looks, and says what would be done.
pub async fn outline(provider: &impl Provider, wanted: &Wanted) -> Result<Outline, Trouble> {
    within(async { Ok(provider.plan(wanted).await?.outline) }).await
}

/// Makes it as wanted; what was done.
pub async fn push(provider: &impl Provider, wanted: &Wanted) -> Result<Outline, Trouble> {
    within(async {
        let mut rounds = 0;
        loop {
            rounds += 1;
            let plan = provider.plan(wanted).await?;
            if plan.is_done() {
                return Ok(plan.outline);
            }
            match provider.apply(&plan).await {
                Ok(()) => return Ok(plan.outline),
                Err(Trouble::Changed(what)) if rounds < ROUNDS_MAX => {
                    tracing::info!(at = %provider, what, "records were changed meanwhile; looking again");
                }
                Err(trouble) => return Err(trouble),
            }
        }
    })
    .await
}

async fn within<T>(work: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
    let late = || Trouble::Later(format!("it takes more than {} s", PUSH_MAX.as_secs()));
    timeout(PUSH_MAX, work).await.unwrap_or_else(|_elapsed| Err(late()))
}

/// What has come of keeping records elsewhere, for the journal and for who looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Done, if there are lines; else it was as wanted already.
    AsWanted(Outline),
    /// Not known to be as wanted. It is tried again after so long, and earlier if something else is wanted.
    Failed { trouble: Trouble, again_in: Duration },
}

/// What has gone already: whoever puts it there again may keep it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled(BTreeSet<(Name, RecordKind)>);

/// Keeps records elsewhere as they are wanted: at each change and every [`LOOK_EVERY`], with patience after failures. Ends when
/// nobody can want anything any more; may be dropped at any time and begun anew with the same `settled`, since each round looks.
pub async fn reconcile(
    provider: &impl Provider,
    mut wanted: watch::Receiver<Option<Wanted>>,
    settled: &mut Settled,
    mut say: impl FnMut(News) + Send,
) {
    let mut failures = 0;
    loop {
        let now = wanted.borrow_and_update().clone();
        let mut next = None;
        if let Some(mut now) = now {
            let gone = now.gone.clone();
            now.gone.retain(|key| !settled.0.contains(key));
            let wait = match push(provider, &now).await {
                Ok(outline) => {
                    failures = 0;
                    settled.0 = gone;
                    say(News::AsWanted(outline));
                    LOOK_EVERY
                }
                Err(trouble) => {
                    let again_in = back_off(failures, &trouble);
                    failures += 1;
                    say(News::Failed { trouble, again_in });
                    again_in
                }
            };
            next = Some(Instant::now() + wait);
        }
        // What changes again and again is not sent faster than that.
        let soonest = Instant::now() + back_off_of_change(failures);
        let time_is_up = async {
            match next {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
                sleep_until(soonest).await;
            }
            () = time_is_up => {}
        }
    }
}

fn back_off(failures: u32, trouble: &Trouble) -> Duration {
    match trouble {
        // Only a person can help.
        Trouble::Never(_) => BACK_OFF_MAX,
        Trouble::Changed(_) | Trouble::Later(_) => {
            BACK_OFF.saturating_mul(1 << failures.min(10)).min(BACK_OFF_MAX)
        }
    }
}

/// A change is sent at once after a success, and soon after a failure.
fn back_off_of_change(failures: u32) -> Duration {
    if failures == 0 { Duration::ZERO } else { BACK_OFF }
}

/// Whichever server it is.
#[derive(Debug)]
pub enum Elsewhere {
    Rfc2136(Rfc2136),
    #[cfg(feature = "aws")]
    Route53(Route53),
}

impl fmt::Display for Elsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Elsewhere::Rfc2136(server) => server.fmt(f),
            #[cfg(feature = "aws")]
            Elsewhere::Route53(zone) => zone.fmt(f),
        }
    }
}

impl Elsewhere {
    /// As [`outline`].
    pub async fn outline(&self, wanted: &Wanted) -> Result<Outline, Trouble> {
        match self {
            Elsewhere::Rfc2136(server) => outline(server, wanted).await,
            #[cfg(feature = "aws")]
            Elsewhere::Route53(zone) => Box::pin(outline(zone, wanted)).await,
        }
    }

    /// As [`push`].
    pub async fn push(&self, wanted: &Wanted) -> Result<Outline, Trouble> {
        match self {
            Elsewhere::Rfc2136(server) => push(server, wanted).await,
            #[cfg(feature = "aws")]
            Elsewhere::Route53(zone) => Box::pin(push(zone, wanted)).await,
        }
    }

    /// As [`reconcile`].
    pub async fn reconcile(
        &self,
        wanted: watch::Receiver<Option<Wanted>>,
        settled: &mut Settled,
        say: impl FnMut(News) + Send,
    ) {
        match self {
            Elsewhere::Rfc2136(server) => reconcile(server, wanted, settled, say).await,
            #[cfg(feature = "aws")]
            Elsewhere::Route53(zone) => Box::pin(reconcile(zone, wanted, settled, say)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_met_with_more_and_more_patience() {
        let later = Trouble::Later(String::new());
        let waits: Vec<u64> = (0..9).map(|n| back_off(n, &later).as_secs()).collect();
        assert_eq!(waits, [2, 4, 8, 16, 32, 64, 128, 256, 300]);
        assert_eq!(back_off(0, &Trouble::Never(String::new())), BACK_OFF_MAX);
    }

    #[test]
    fn what_was_ours_goes_unless_it_is_wanted_again() {
        let wanted = |name: &str| {
            let value = RecordValue::A([192, 0, 2, 1].into());
            Wanted::one("example.com", name, value, Duration::from_secs(60)).unwrap()
        };
        let (a, b) = (wanted("a.example.com"), wanted("b.example.com"));
        let names = |wanted: &Wanted| -> Vec<String> {
            wanted.gone.iter().map(|(name, kind)| format!("{name} {kind}")).collect()
        };
        let second = b.clone().after(&a);
        assert_eq!(names(&second), ["a.example.com. A"]);
        assert_eq!(names(&b.after(&second)), ["a.example.com. A"]);
        assert_eq!(names(&a.after(&second)), ["b.example.com. A"]);
    }
}
