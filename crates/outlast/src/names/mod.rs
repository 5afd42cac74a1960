//! The name servers of this node: they answer by the topology and by what is agreed on.
//!
//! ```text
//!   topology ─┐
//!   agreed ───┼─▶ spec ─▶ Table ─▶ published whole ─▶ the servers' threads
//!   secrets ──┘            └─▶ names.bin, which the first answer after a restart comes from
//! ```
//!
//! All of it runs on a thread of its own, beside those that answer. A node that is cut off goes on answering by what it knew.
//! Where there is only one node, it judges alone, and counts its own changes.

mod bring;
mod elsewhere;
pub(crate) mod keys;
mod serve;
mod spec;
mod store;
mod update;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use outlast_consensus::boottime;
use outlast_core::agreed::{AddedRecord, AgreedNames, NamesCommand, Reply, Stamp};
use outlast_core::event::Fact;
use outlast_core::names::{Known, Lead, Places, Sights};
use outlast_core::time::Instant;
use outlast_core::topology::Topology;
use outlast_dns::server::{Totals, UpdateRequest};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};

use crate::agent::shared::wall;
use crate::apart::Apart;
use crate::cluster::{NameSecrets, OfNames, Wanted, new_secret, secrets_of};
use bring::Brought;
pub(crate) use bring::founding;
use elsewhere::Elsewhere;
use serve::Servers;
use store::Kept;

/// How often it is looked whether the addresses of this machine, or files of keys, have changed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How soon after a look that came to something a node that is alone looks again.
const LOOK_SOON: Duration = Duration::from_millis(1);

/// How soon it is tried again to bring records along when nobody could be asked; twice as long each time.
const BRING_AGAIN: Duration = Duration::from_secs(1);

/// And how long at most.
const BRING_AGAIN_MAX: Duration = Duration::from_secs(60);

/// Requests to change zones that are worked on at the same time, and as many that wait.
const UPDATES_MAX: usize = 32;

/// Changes that wait where a node is alone.
const CHANGES_MAX: usize = 64;

/// What the name servers of this node need to know.
#[derive(Clone, Debug)]
pub struct Home {
    pub node: String,
    /// Relative paths of the file count from here.
    pub base: PathBuf,
    pub data_dir: PathBuf,
    pub topology: watch::Receiver<Arc<Topology>>,
    /// What this node sees.
    pub sights: watch::Receiver<Sighted>,
    pub facts: mpsc::Sender<Fact>,
}

/// What a node that is alone goes by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sighted {
    pub sights: Sights,
    pub places: Places,
}

/// The name servers as people see them.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub agreed: Arc<AgreedNames>,
    /// Where it is listened on.
    pub listens: BTreeSet<std::net::SocketAddr>,
    /// What is wrong, by zone.
    pub trouble: BTreeMap<String, String>,
    /// The serials that are answered with.
    pub serials: BTreeMap<String, u32>,
    /// What the parent of a signed zone has to be told: key tag, algorithm, digest type, digest.
    pub ds: BTreeMap<String, String>,
    /// What has come of each place where zones are kept elsewhere, while this node leads.
    pub elsewhere: crate::elsewhere::Standings,
    pub totals: Totals,
}

/// The name servers of this node. Dropped, they end.
#[derive(Debug)]
pub struct NameServers {
    seen: watch::Receiver<Arc<Seen>>,
    asks: mpsc::Sender<Ask>,
    stop: watch::Sender<bool>,
    _thread: Apart,
}

/// What a person asks of them.
#[derive(Debug)]
pub enum Ask {
    /// The records of a zone file are to be added to a zone.
    Import { zone: String, text: String, answer: oneshot::Sender<Result<String, String>> },
    /// One of a failover policy is to serve; without a label, none any more.
    Pin {
        name: String,
        label: Option<String>,
        until: Option<Duration>,
        answer: oneshot::Sender<Result<String, String>>,
    },
    /// The records of a name are to be remembered for less long; without a time, no more.
    LowerTtl {
        name: String,
        lasts: Option<Duration>,
        answer: oneshot::Sender<Result<String, String>>,
    },
}

impl NameServers {
    /// Starts them. Where several nodes agree, they answer by what was agreed on last until they are told of the others.
    pub fn start(
        home: Home,
        others: Option<oneshot::Receiver<OfNames>>,
    ) -> anyhow::Result<NameServers> {
        let (stop, stopping) = watch::channel(false);
        let (show, seen) = watch::channel(Arc::default());
        let (asks, asked) = mpsc::channel(UPDATES_MAX);
        let live = move || Desk::new(home, others, show).live(asked, stopping);
        let thread = Apart::start("names", live)?;
        Ok(NameServers { seen, asks, stop, _thread: thread })
    }

    pub fn seen(&self) -> Arc<Seen> {
        self.seen.borrow().clone()
    }

    /// Returns once something else is agreed on, or goes wrong.
    pub async fn changed(&mut self) {
        if self.seen.changed().await.is_err() {
            pending::<()>().await;
        }
    }

    /// Asks what only the name servers can do; whoever waits for the answer is told if it cannot be asked.
    pub fn ask(&self, ask: Ask) {
        if let Err(error) = self.asks.try_send(ask) {
            let (mpsc::error::TrySendError::Full(ask) | mpsc::error::TrySendError::Closed(ask)) =
                error;
            let (Ask::Import { answer, .. }
            | Ask::Pin { answer, .. }
            | Ask::LowerTtl { answer, .. }) = ask;
            answer.send(Err("the name servers of this node are busy".to_owned())).ok();
        }
    }
}

impl Drop for NameServers {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

/// What this node shared in secret when it answered last.
pub(crate) fn kept_secrets(data_dir: &std::path::Path) -> NameSecrets {
    store::load(data_dir).secrets
}

/// From where it is known what is agreed on.
enum Source {
    /// It is known once the agent's part of the cluster has started.
    Awaited(oneshot::Receiver<OfNames>),
    Cluster(OfNames),
    Alone {
        lead: Lead,
        look_at: Option<Instant>,
        changes: mpsc::Receiver<Wanted>,
    },
}

/// What those who change zones go by.
#[derive(Clone)]
struct View {
    topology: watch::Receiver<Arc<Topology>>,
    kept: watch::Receiver<Kept>,
    /// `None` until it is known who has to agree.
    changes: watch::Receiver<Option<mpsc::Sender<Wanted>>>,
}

struct Desk {
    home: Home,
    source: Source,
    view: View,
    kept: watch::Sender<Kept>,
    changes: watch::Sender<Option<mpsc::Sender<Wanted>>>,
    show: watch::Sender<Arc<Seen>>,
    servers: Servers,
    elsewhere: Elsewhere,
    updates: mpsc::Receiver<UpdateRequest>,
    open: JoinSet<()>,
    bringing: Bringing,
}

/// Brings along what was added while this node was alone, one zone after the other.
#[derive(Default)]
struct Bringing {
    open: JoinSet<Brought>,
    /// The zone that had its turn last.
    last: Option<String>,
    pause: Duration,
    not_before: Instant,
}

impl Bringing {
    /// Takes what came of the last try, by which the next one may have to wait.
    fn heard(&mut self, later: bool, now: Instant) {
        let longer = (self.pause * 2).clamp(BRING_AGAIN, BRING_AGAIN_MAX);
        self.pause = if later { longer } else { Duration::ZERO };
        self.not_before = now + self.pause;
    }
}

impl Desk {
    fn new(
        home: Home,
        others: Option<oneshot::Receiver<OfNames>>,
        show: watch::Sender<Arc<Seen>>,
    ) -> Desk {
        let (send_updates, updates) = mpsc::channel(UPDATES_MAX);
        let kept = store::load(&home.data_dir);
        let kept = match others {
            Some(_) => kept.in_company(),
            None => bring::alone_again(kept, &home.topology.borrow()),
        };
        let (kept, known) = watch::channel(kept);
        let (source, taken) = match others {
            Some(others) => (Source::Awaited(others), None),
            None => {
                let (changes, to_change) = mpsc::channel(CHANGES_MAX);
                let lead = Lead::default();
                (Source::Alone { lead, look_at: None, changes: to_change }, Some(changes))
            }
        };
        let (changes, to_others) = watch::channel(taken);
        let view = View { topology: home.topology.clone(), kept: known, changes: to_others };
        let servers = Servers::new(home.base.clone(), home.node.clone(), send_updates);
        Desk {
            home,
            source,
            view,
            kept,
            changes,
            show,
            servers,
            elsewhere: Elsewhere::default(),
            updates,
            open: JoinSet::new(),
            bringing: Bringing::default(),
        }
    }

    async fn live(mut self, mut asked: mpsc::Receiver<Ask>, mut stop: watch::Receiver<bool>) {
        let mut topology = self.home.topology.clone();
        let mut sights = self.home.sights.clone();
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let now = topology.borrow_and_update().clone();
            let seen = sights.borrow_and_update().clone();
            self.learn(&now, seen);
            self.bring_along();
            self.serve(&now);
            while self.open.try_join_next().is_some() {}
            let wake = self.wake();
            tokio::select! {
                news = heard(&mut self.source) => match news {
                    News::Others(of) => {
                        self.changes.send_replace(Some(of.changes.clone()));
                        self.source = Source::Cluster(of);
                    }
                    News::Agreed => {}
                    News::Wanted((command, answer)) => {
                        answer.send(Ok(self.change_alone(&command))).ok();
                    }
                },
                Ok(()) = topology.changed() => {}
                Ok(()) = sights.changed() => {}
                Some(brought) = self.bringing.open.join_next() => self.brought(brought),
                Some(request) = self.updates.recv() => self.update(request),
                Some(ask) = asked.recv() => self.asked(ask),
                () = tokio::time::sleep(wake) => {}
                _ = look.tick() => self.servers.look(&now),
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// When time alone has something to do.
    fn wake(&self) -> Duration {
        let look = match &self.source {
            Source::Alone { look_at, .. } => look_at.map(|at| at.since(boottime())),
            Source::Awaited(_) | Source::Cluster(_) => None,
        };
        look.unwrap_or(LOOK_EVERY).max(LOOK_SOON)
    }

    /// Takes what is agreed on, or judges where nobody else could.
    fn learn(&mut self, topology: &Arc<Topology>, Sighted { sights, places }: Sighted) {
        let before = self.kept.borrow().clone();
        let after = match &mut self.source {
            Source::Awaited(_) => return,
            Source::Cluster(of) => {
                // First: what was agreed on when it became true is then read.
                let caught_up = *of.caught_up.borrow_and_update();
                let agreed = of.agreement.borrow_and_update().names.clone();
                let secrets = of.secrets.borrow_and_update().clone();
                // A node that has just started hears old news again first; and before the first agreement it goes on by what
                // it knows.
                let newer = before.agreed.epoch <= agreed.epoch || caught_up;
                let newer = newer && (agreed.epoch != 0 || before.agreed.epoch == 0);
                let agreed = if newer { agreed } else { before.agreed.clone() };
                let mut all = before.secrets.0.clone();
                for (name, secret) in secrets.0 {
                    if all.insert(name.clone(), secret.clone()).is_some_and(|own| own != secret) {
                        tracing::warn!(
                            name,
                            "others have agreed on another secret than this node had; if it is a zone's key, tell its \
                             parent the new DS: `outlast status --format json`"
                        );
                    }
                }
                let to_bring = if caught_up && newer {
                    still_to_bring(&before.to_bring, topology, &agreed)
                } else {
                    before.to_bring.clone()
                };
                Kept { agreed, secrets: NameSecrets(all), alone: false, to_bring }
            }
            Source::Alone { lead, look_at, .. } => {
                lead.hear(&self.home.node, sights);
                let secrets = alone(topology, &before.secrets);
                let mut kept = Kept {
                    secrets,
                    alone: true,
                    to_bring: before.to_bring.clone(),
                    agreed: before.agreed.clone(),
                };
                let now = boottime();
                let known = Known { places, ..Known::default() };
                let look = lead.look(now, wall(), topology, &known, &kept.agreed);
                *look_at = look.again.filter(|at| now < *at);
                if let Some(command) = &look.command
                    && let Ok(agreed) = changed(&kept.agreed, command)
                {
                    *look_at = Some(now + LOOK_SOON);
                    kept.agreed = Arc::new(agreed);
                }
                kept
            }
        };
        self.keep(topology, before, after);
    }

    /// A node that was alone has its records agreed on, once the others have the zone.
    fn bring_along(&mut self) {
        let Source::Cluster(of) = &self.source else { return };
        let may = *of.caught_up.borrow() && self.bringing.not_before <= boottime();
        if !may || !self.bringing.open.is_empty() {
            return;
        }
        let kept = self.kept.borrow();
        // Until others have agreed on something, this node answers by what it agreed on alone: that has all of it.
        if kept.to_bring.is_empty() || of.agreement.borrow().names != kept.agreed {
            return;
        }
        let zones = kept.to_bring.keys().filter(|zone| kept.agreed.zones.contains_key(*zone));
        if let Some(zone) = bring::next(zones, self.bringing.last.as_ref()) {
            self.bringing.last = Some(zone.clone());
            self.bringing.open.spawn(bring::bring(self.view.clone(), zone.clone()));
        }
    }

    /// What is settled does not wait any more.
    fn brought(&mut self, brought: Result<Brought, JoinError>) {
        let Brought { zone, settled, later } = match brought {
            Ok(brought) => brought,
            Err(error) => {
                tracing::error!(%error, "bring records along");
                return self.bringing.heard(true, boottime());
            }
        };
        self.bringing.heard(later, boottime());
        let before = self.kept.borrow().clone();
        let mut after = before.clone();
        if let Entry::Occupied(mut waiting) = after.to_bring.entry(zone) {
            waiting.get_mut().retain(|record| !settled.contains(record));
            if waiting.get().is_empty() {
                waiting.remove();
            }
        }
        let topology = self.home.topology.borrow().clone();
        self.keep(&topology, before, after);
    }

    fn keep(&mut self, topology: &Arc<Topology>, before: Kept, after: Kept) {
        if before == after {
            return;
        }
        self.kept.send_replace(after.clone());
        // Who is asked meanwhile answers by the newest.
        self.serve(topology);
        let nothing = after == Kept { alone: after.alone, ..Kept::default() };
        if !nothing && let Err(error) = store::save(&self.home.data_dir, &after) {
            tracing::error!(%error, "remember what name servers answer");
        }
        // Where several nodes agree, their agents say so.
        if matches!(self.source, Source::Alone { .. }) {
            for fact in outlast_core::names::changes(&before.agreed, &after.agreed) {
                self.home.facts.try_send(fact).ok();
            }
        }
    }

    /// Makes a change where nobody else has to agree.
    fn change_alone(&mut self, command: &NamesCommand) -> Reply {
        let before = self.kept.borrow().clone();
        let agreed = match changed(&before.agreed, command) {
            Ok(agreed) => agreed,
            Err(why) => return Reply::Refused { why },
        };
        let after = Kept { agreed: Arc::new(agreed), ..before.clone() };
        let topology = self.home.topology.borrow().clone();
        self.keep(&topology, before, after);
        Reply::Done
    }

    /// Brings the servers to what is known.
    fn serve(&mut self, topology: &Arc<Topology>) {
        let kept = self.kept.borrow().clone();
        let knows = match &self.source {
            // Who has never heard of anything would answer as if all were well.
            Source::Awaited(_) => kept.agreed.epoch != 0,
            Source::Cluster(of) => kept.agreed.epoch != 0 || *of.caught_up.borrow(),
            Source::Alone { .. } => true,
        };
        if knows {
            for fact in self.servers.serve(topology, &kept) {
                self.home.facts.try_send(fact).ok();
            }
            let leads = match &self.source {
                Source::Awaited(_) => false,
                Source::Cluster(of) => of.agreement.borrow().leads && *of.caught_up.borrow(),
                Source::Alone { .. } => true,
            };
            self.elsewhere.follow(leads, topology, &kept.agreed, &self.home.base);
        }
        let seen = Seen { elsewhere: self.elsewhere.standings(), ..self.servers.seen(kept.agreed) };
        self.show.send_if_modified(|before| {
            let differs = before.agreed != seen.agreed
                || before.trouble != seen.trouble
                || before.listens != seen.listens
                || before.elsewhere != seen.elsewhere;
            *before = Arc::new(seen);
            differs
        });
    }

    /// Works on a change that somebody asks for, away from the desk: it may take a while to be agreed on.
    fn update(&mut self, request: UpdateRequest) {
        if self.open.len() >= UPDATES_MAX {
            // Dropped, it is answered with a failure.
            return;
        }
        self.open.spawn(update::carry_out(self.view.clone(), request));
    }

    fn asked(&mut self, ask: Ask) {
        let view = self.view.clone();
        match ask {
            Ask::Import { zone, text, answer } => {
                self.open.spawn(async move {
                    answer.send(update::import(view, &zone, &text).await).ok();
                });
            }
            Ask::Pin { name, label, until, answer } => {
                self.open.spawn(async move {
                    answer.send(update::pin(view, &name, label, until).await).ok();
                });
            }
            Ask::LowerTtl { name, lasts, answer } => {
                self.open.spawn(async move {
                    answer.send(update::lower_ttl(view, &name, lasts).await).ok();
                });
            }
        }
    }
}

/// What the others do not have yet of what this node has added alone.
fn still_to_bring(
    before: &BTreeMap<String, BTreeSet<AddedRecord>>,
    topology: &Topology,
    agreed: &AgreedNames,
) -> BTreeMap<String, BTreeSet<AddedRecord>> {
    let known = |zone: &String| agreed.zones.get(zone).map(|zone| &zone.records);
    let zones = before.iter().filter(|(zone, _)| topology.dns.contains_key(*zone));
    let left = zones.map(|(zone, records)| {
        let missing =
            records.iter().filter(|record| known(zone).is_none_or(|all| !all.contains(*record)));
        (zone.clone(), missing.cloned().collect::<BTreeSet<AddedRecord>>())
    });
    left.filter(|(_, records)| !records.is_empty()).collect()
}

/// What becomes of what is known where one node counts for all.
fn changed(
    agreed: &AgreedNames,
    command: &NamesCommand,
) -> Result<AgreedNames, outlast_core::agreed::Refusal> {
    agreed.changed(Stamp { index: agreed.epoch + 1, wall: wall() }, command)
}

/// The secrets of a node that shares them with nobody.
fn alone(topology: &Topology, before: &NameSecrets) -> NameSecrets {
    let mut secrets = before.clone();
    for name in secrets_of(topology) {
        if let Entry::Vacant(place) = secrets.0.entry(name) {
            match new_secret(place.key()) {
                Ok(secret) => drop(place.insert(secret)),
                Err(error) => tracing::error!(%error, "make a secret of name servers"),
            }
        }
    }
    secrets
}

/// What the desk hears of its source.
enum News {
    /// Who the others are is known now.
    Others(OfNames),
    /// Something else may be agreed on.
    Agreed,
    /// Nobody else has to agree on it.
    Wanted(Wanted),
}

async fn heard(source: &mut Source) -> News {
    match source {
        Source::Awaited(others) => match others.await {
            Ok(of) => News::Others(of),
            // The agent could not start, and ends.
            Err(_gone) => pending().await,
        },
        Source::Cluster(of) => {
            tokio::select! {
                Ok(()) = of.agreement.changed() => {}
                Ok(()) = of.secrets.changed() => {}
                Ok(()) = of.caught_up.changed() => {}
                else => pending::<()>().await,
            }
            News::Agreed
        }
        Source::Alone { changes, .. } => match changes.recv().await {
            Some(wanted) => News::Wanted(wanted),
            None => pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_cannot_be_asked_is_asked_less_and_less_often_until_it_answers() {
        let mut bringing = Bringing::default();
        let start = Instant::default();
        let mut pauses = Vec::new();
        for later in [true, true, true, true, true, true, true, true, false, true] {
            bringing.heard(later, start);
            pauses.push(bringing.not_before.since(start).as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 0, 1]);
    }
}
