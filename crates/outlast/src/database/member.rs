//! One member of a database on this node: what is seen and what is agreed go in, orders to PostgreSQL come out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use outlast_consensus::boottime;
use outlast_core::agreed::{Database, Position};
use outlast_core::database::{
    DatabaseSight, Descent, Member, MemberSight, Order, Part, SILENT_AFTER, Server,
};
use outlast_core::event::{DatabaseChange, Fact};
use outlast_core::time::Instant;
use outlast_core::topology::{Postgres as Spec, Topology};
use outlast_postgres::storage::{Health as Disk, Probe};
use outlast_postgres::{
    Adoption, Demands, Ended, Error, Followers, Lsn, Moment, Postgres, StopHow,
};
use tokio::sync::watch as watching;
use tokio::task::JoinSet;

use super::carry::{self, Done, Job};
use super::kept::Kept;
use super::watch::{BEFORE, Glance, Watch, glance};
use super::{Office, Stop, place};
use crate::cluster::PrimaryLease;

/// How often PostgreSQL is looked at while all is well, and while something is about to change.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOK_SOON: Duration = Duration::from_millis(100);

/// How often a decision is made although nothing was heard.
const DECIDE_EVERY: Duration = Duration::from_millis(250);

/// A look takes a few seconds at most; what runs beside the orders, a checkpoint for example, some minutes.
const LOOK_MAX: Duration = Duration::from_secs(6);
const ASIDE_MAX: Duration = Duration::from_secs(360);

/// How often slots are looked at.
const SLOTS_EVERY: Duration = Duration::from_secs(10);
/// While one is missing, without which nobody is made like this primary.
const SLOTS_AGAIN: Duration = Duration::from_secs(1);

/// After a keeper that did not answer, or was not there yet.
const FUSE_AGAIN: Duration = Duration::from_millis(250);

/// After a configuration that could not be read anew.
const RELOAD_AGAIN: Duration = Duration::from_secs(10);

/// After what could not be prepared.
const AGAIN: Duration = Duration::from_secs(1);

/// How long PostgreSQL may take to shut down with the agent.
const STOP_MAX: Duration = Duration::from_secs(30);

/// The same with everything around it.
pub(super) const END_MAX: Duration = Duration::from_secs(60);

/// How often the disk is tried, and from when on that counts as slow.
const DISK_EVERY: Duration = Duration::from_secs(2);
const DISK_SLOW: Duration = Duration::from_secs(1);

/// A write that hangs for this long: the disk does not answer.
const DISK_STUCK: Duration = Duration::from_secs(5);

/// Runs the member until the agent ends.
pub(super) async fn run(
    office: Arc<Office>,
    database: String,
    mut follow: watching::Receiver<Arc<Topology>>,
) {
    let mut told = String::new();
    let mut running = loop {
        let topology = follow.borrow_and_update().clone();
        let Some(spec) = topology.postgres.get(&database).cloned() else { return };
        match Running::open(&office, &database, &topology, &spec).await {
            Ok(running) => break running,
            Err(error) => {
                let error = format!("{error:#}");
                if told != error {
                    tracing::warn!(database, error, "prepare PostgreSQL");
                    told.clone_from(&error);
                }
                let sight = MemberSight { trouble: error, ..MemberSight::default() };
                office.say(&database, |said| said.member = Some(sight));
                let mut stop = office.stop.clone();
                let stopped = stop.wait_for(|stop| *stop != Stop::No);
                if tokio::time::timeout(AGAIN, stopped).await.is_ok() {
                    return;
                }
            }
        }
    };
    running.live(follow).await;
}

/// What happens to a member besides what others say.
#[derive(Debug)]
enum Event {
    /// `orders`: how many had been carried out when it began.
    Looked {
        glance: Box<Glance>,
        orders: u64,
    },
    Exited,
    Carried {
        order: Order,
        result: Result<Done, Error>,
    },
    /// What the roles' passwords are compared with.
    Verifiers(BTreeMap<String, String>),
    /// Something beside the orders has ended, well or not.
    Aside {
        what: &'static str,
        result: Result<(), Error>,
    },
}

/// A member that runs.
struct Running {
    office: Arc<Office>,
    database: String,
    topology: Arc<Topology>,
    spec: Spec,
    postgres: Postgres,
    kept: Kept,
    member: Member,
    watch: Watch,
    events: JoinSet<Event>,
    /// The order that is being carried out.
    carries: Option<(Order, tokio::task::AbortHandle)>,
    /// Orders that change nothing that others wait for, under way beside it.
    aside: BTreeMap<&'static str, Instant>,
    looking: bool,
    looked_at: Instant,
    /// Orders that were carried out, or begun: what was seen before says nothing any more.
    orders: u64,
    /// The end of PostgreSQL is waited for.
    awaits_exit: bool,
    disk: Option<Probe>,
    slots_at: Option<Instant>,
    /// Who follows this member as a relay, and under which reign, as the slots have it.
    relayed: (u64, Vec<String>),
    /// When PostgreSQL is to read its configuration anew.
    reload_at: Option<Instant>,
    fuse: Option<PrimaryLease>,
    fuse_failed: Option<Instant>,
    /// The right that the agent had before it was started anew, as its keeper still has it.
    inherited: Option<PrimaryLease>,
    /// What was known of the log before the last order.
    before: Descent,
    said_part: Option<Part>,
}

impl Running {
    async fn open(
        office: &Arc<Office>,
        database: &str,
        topology: &Arc<Topology>,
        spec: &Spec,
    ) -> anyhow::Result<Running> {
        let secret = office.cluster.secrets.borrow().get(database).cloned();
        let secret = secret.ok_or_else(|| anyhow::anyhow!("waits until the nodes agree"))?;
        let kept = Kept::open(&place::own_dir(&office.home, database)?)?;
        let settings = place::settings(&office.home, topology, database, spec, secret)?;
        let postgres = Postgres::new(settings).map_err(|error| anyhow::anyhow!("{error}"))?;
        let postgres = postgres.with_steady_fence(place::steady);
        let adopted = postgres.adopt().await.map_err(|error| anyhow::anyhow!("{error}"))?;
        if adopted == Adoption::Unkept {
            // Nobody would end it in time.
            tracing::warn!(database, "PostgreSQL runs without its keeper: it is ended");
            postgres.kill().await.map_err(|error| anyhow::anyhow!("{error}"))?;
        }
        let inherited = match adopted {
            Adoption::Kept { fuse: Some(fuse) } => kept.memory.promoted.map(|epoch| {
                let until = Instant::from_start(Duration::from_nanos(fuse.nanos));
                PrimaryLease { epoch, until }
            }),
            Adoption::Kept { fuse: None } | Adoption::Nothing | Adoption::Unkept => None,
        };
        let mut watch = Watch::default();
        (watch.local.promoted, watch.local.lineage) = (kept.memory.promoted, kept.memory.lineage);
        watch.local.turned = kept.memory.turned;
        watch.wished = Demands::wished(&spec.parameters);
        let runs = matches!(adopted, Adoption::Kept { .. });
        if runs && postgres.is_closed().await.map_err(|error| anyhow::anyhow!("{error}"))? {
            watch.local.closed = Some(BEFORE);
        }
        Ok(Running {
            office: office.clone(),
            database: database.to_owned(),
            topology: topology.clone(),
            spec: spec.clone(),
            postgres,
            kept,
            member: Member::new(office.home.node.clone()),
            watch,
            events: JoinSet::new(),
            carries: None,
            aside: BTreeMap::new(),
            looking: false,
            looked_at: boottime(),
            orders: 0,
            awaits_exit: adopted != Adoption::Nothing && adopted != Adoption::Unkept,
            disk: None,
            slots_at: None,
            relayed: (0, Vec::new()),
            // Whatever the last agent has written, the file may say something else by now.
            reload_at: Some(boottime()),
            fuse: None,
            fuse_failed: None,
            inherited,
            before: Descent::default(),
            said_part: None,
        })
    }

    async fn live(&mut self, mut follow: watching::Receiver<Arc<Topology>>) {
        let mut agreement = self.office.cluster.agreement.clone();
        let mut leases = self.office.cluster.leases.clone();
        let mut heard = self.office.cluster.heard.clone();
        let mut stop = self.office.stop.clone();
        if self.awaits_exit {
            self.await_exit();
        }
        self.look();
        let mut look_at = tokio::time::Instant::now() + LOOK_SOON;
        loop {
            self.decide();
            let now = tokio::time::Instant::now();
            let soon = self.changes_soon();
            if !self.looking {
                look_at = look_at.min(now + if soon { LOOK_SOON } else { LOOK_EVERY });
            }
            let wake =
                (now + DECIDE_EVERY).min(if self.looking { now + DECIDE_EVERY } else { look_at });
            tokio::select! {
                Some(event) = self.events.join_next(), if !self.events.is_empty() => {
                    // Other events do not put the next look off: there may always be one.
                    let looked = matches!(event, Ok(Event::Looked { .. }));
                    if let Ok(event) = event {
                        self.hear(event);
                    }
                    if looked && !self.looking {
                        look_at = tokio::time::Instant::now() + if self.changes_soon() { LOOK_SOON } else { LOOK_EVERY };
                    }
                }
                () = tokio::time::sleep_until(wake) => {
                    if look_at <= tokio::time::Instant::now() && !self.looking {
                        self.look();
                    }
                }
                Ok(()) = agreement.changed() => {}
                Ok(()) = follow.changed() => {
                    let topology = follow.borrow_and_update().clone();
                    self.follow_topology(topology);
                }
                Ok(()) = leases.changed() => {}
                Ok(()) = heard.changed() => {}
                Ok(how) = wait_stop(&mut stop) => {
                    if how == Stop::End {
                        self.end().await;
                    }
                    return;
                }
            }
        }
    }

    /// Goes on under another topology. An order that is being carried out ends under the one that it began under.
    fn follow_topology(&mut self, topology: Arc<Topology>) {
        let Some(spec) = topology.postgres.get(&self.database).cloned() else { return };
        let before = self.postgres.settings();
        let secret = before.replication_secret.clone();
        match place::settings(&self.office.home, &topology, &self.database, &spec, secret) {
            Ok(settings) if settings != *before => {
                self.watch.wished = Demands::wished(&spec.parameters);
                self.postgres = self.postgres.with_settings(settings);
                self.reload_at = Some(boottime());
                self.slots_at = None;
            }
            Ok(_) => {}
            Err(error) => {
                let (database, error) = (&self.database, format!("{error:#}"));
                tracing::error!(database, error, "take another topology");
            }
        }
        (self.topology, self.spec) = (topology, spec);
    }

    /// Has PostgreSQL read what the topology says now.
    fn reload(&mut self, now: Instant) {
        let due = self.reload_at.is_some_and(|at| at <= now);
        let up = matches!(self.watch.local.server, Server::Primary | Server::Standby);
        if !due || !up || self.carries.is_some() || self.aside.contains_key("reload") {
            return;
        }
        self.reload_at = None;
        let postgres = self.postgres.clone();
        self.beside("reload", async move { postgres.reload().await.map(drop) });
    }

    /// Whether something is under way that a look could bring forward.
    fn changes_soon(&self) -> bool {
        let Some(agreed) = self.agreed() else { return false };
        let local = &self.watch.local;
        !agreed.reign.open
            || agreed.election.is_some()
            || agreed.switchover.is_some()
            || agreed.confirms.len() > 1
            || matches!(local.server, Server::Unknown | Server::Starting | Server::Hung)
            || (local.server == Server::Primary && !local.confirmed)
            || (local.server == Server::Standby && !local.receives)
    }

    /// What is agreed, once this node has caught up.
    fn agreed(&self) -> Option<Database> {
        if !*self.office.cluster.caught_up.borrow() {
            return None;
        }
        let agreement = self.office.cluster.agreement.borrow();
        agreement.databases.get(&self.database).map(|held| held.database.clone())
    }

    /// This node's right to be primary, while it lasts.
    fn lease(&self) -> Option<PrimaryLease> {
        let own = self.office.cluster.leases.borrow().get(&self.database).copied();
        let lease = own.or(self.inherited)?;
        (boottime() < lease.until).then_some(lease)
    }

    /// What a member's node says of it.
    fn sight_of(&self, node: &str) -> Option<MemberSight> {
        let heard = self.office.cluster.heard.borrow();
        let said = heard.get(node)?;
        let fresh = boottime().since(said.at) <= SILENT_AFTER;
        said.sights.get(&self.database).filter(|_| fresh)?.member.clone()
    }

    fn decide(&mut self) {
        let now = boottime();
        self.look_again_if_stuck(now);
        self.watch.expire();
        self.look_at_disk();
        let agreed = self.agreed();
        self.watch.refuse_foreign(agreed.as_ref().and_then(|agreed| agreed.system));
        let reign = agreed.as_ref().map(|agreed| agreed.reign.epoch);
        let lease = self.lease().filter(|lease| Some(lease.epoch) == reign);
        self.stop_ruling(agreed.as_ref(), lease.is_some());
        self.pass_on_fuse(lease);
        let source = agreed.as_ref().and_then(|agreed| self.sight_of(&agreed.reign.primary));
        let relay = agreed.as_ref();
        let relay = relay.and_then(|agreed| self.sight_of(agreed.upstream(&self.office.home.node)));
        self.watch.local.rests =
            self.office.cluster.agreement.borrow().paused.contains_key(&self.office.home.node);
        self.watch.local.busy = self.carries.as_ref().map(|(order, _)| carry::doing(order));
        let local = &self.watch.local;
        let (leased, source, relay) = (lease.is_some(), source.as_ref(), relay.as_ref());
        let order = self.member.decide(now, agreed.as_ref(), leased, local, source, relay);
        if let (Some(order), Some(agreed)) = (order, &agreed) {
            self.begin(order, agreed, lease);
        }
        self.keep_slots(now, agreed.as_ref());
        self.reload(now);
        let sight = self.member.sight(now, agreed.as_ref(), lease.is_some(), &self.watch.local);
        let say = |said: &mut DatabaseSight| said.member = Some(sight);
        match agreed.is_some_and(|agreed| agreed.is_closed()) {
            true => self.office.say_each_step(&self.database, say),
            false => self.office.say(&self.database, say),
        }
    }

    /// What only a primary does is given up when this member is none any more.
    fn stop_ruling(&mut self, agreed: Option<&Database>, leased: bool) {
        let part = self.member.part(agreed, leased);
        if self.said_part != Some(part) {
            tracing::info!(database = self.database, ?part, "part");
            self.said_part = Some(part);
        }
        let rules = matches!(part, Part::Primary | Part::Maker);
        let ruling = self.carries.as_ref().is_some_and(|(order, _)| {
            matches!(
                order,
                Order::StartPrimary { .. }
                    | Order::Promote { .. }
                    | Order::SetRule { .. }
                    | Order::Close { .. }
                    | Order::Open
            )
        });
        if ruling
            && !rules
            && let Some((_, task)) = self.carries.take()
        {
            task.abort();
            self.watch.local.server = Server::Unknown;
            self.look();
        }
    }

    fn pass_on_fuse(&mut self, lease: Option<PrimaryLease>) {
        let Some(lease) = lease.filter(|lease| self.fuse != Some(*lease)) else { return };
        let rises = self.carries.as_ref().is_some_and(|(order, _)| {
            matches!(order, Order::StartPrimary { .. } | Order::Promote { .. })
        });
        if self.watch.local.server != Server::Primary && !rises {
            return;
        }
        // A keeper that does not answer does not hold up the other fence.
        self.postgres.set_fence(Some(moment(lease.until)));
        let waits = self.fuse_failed.is_some_and(|at| boottime().since(at) < FUSE_AGAIN);
        if !waits && !self.aside.contains_key("fuse") {
            self.fuse = Some(lease);
            let postgres = self.postgres.clone();
            self.beside("fuse", async move { postgres.set_fuse(Some(moment(lease.until))).await });
        }
    }

    /// Begins an order; its epoch is written down first.
    fn begin(&mut self, order: Order, agreed: &Database, lease: Option<PrimaryLease>) {
        let epoch = agreed.epoch();
        if epoch < self.kept.memory.obeyed {
            return;
        }
        self.before = self.kept.memory.descent();
        let descent = order.begins(self.before, agreed.reign.epoch);
        let standby = matches!(order, Order::StartStandby { .. });
        let primary = matches!(order, Order::StartPrimary { .. } | Order::Promote { .. });
        let written = self.kept.change(|memory| {
            memory.obeyed = epoch;
            memory.set_descent(descent);
            memory.standby = (memory.standby || standby) && !primary;
        });
        if let Err(error) = written {
            self.trouble(format!("{error:#}"));
            return;
        }
        self.remember();
        let job = self.job(&order, agreed, lease);
        let postgres = self.postgres.clone();
        if let Some(what) = carry::beside(&order) {
            self.beside_order(what, order, job);
            return;
        }
        tracing::info!(database = self.database, ?order, "order");
        let carried = order.clone();
        let task = self.events.spawn(async move {
            let result = carry::carry(postgres, job).await;
            Event::Carried { order: carried, result }
        });
        self.watch.local.busy = Some(carry::doing(&order));
        self.carries = Some((order, task));
        self.orders += 1;
    }

    fn remember(&mut self) {
        let memory = &self.kept.memory;
        (self.watch.local.promoted, self.watch.local.lineage) = (memory.promoted, memory.lineage);
    }

    fn job(&self, order: &Order, agreed: &Database, lease: Option<PrimaryLease>) -> Job {
        let node = carry::upstream(order);
        let reign = agreed.reign.epoch;
        let relays = node.is_some_and(|node| *node != agreed.reign.primary).then_some(reign);
        let at = |node| place::upstream(&self.topology, &self.spec, node, relays);
        Job {
            order: order.clone(),
            upstream: node.and_then(at),
            reign,
            fuse: lease.map(|lease| moment(lease.until)),
            waits: agreed.rule().acks > 0,
            takes_over: matches!(order, Order::StartPrimary { .. })
                && self.said_part == Some(Part::Maker),
        }
    }

    fn beside_order(&mut self, what: &'static str, order: Order, job: Job) {
        if self.aside.contains_key(what) {
            return;
        }
        self.aside.insert(what, boottime());
        let postgres = self.postgres.clone();
        self.events.spawn(async move {
            let result = carry::carry(postgres, job).await;
            Event::Carried { order, result }
        });
    }

    fn beside(
        &mut self,
        what: &'static str,
        work: impl Future<Output = Result<(), Error>> + Send + 'static,
    ) {
        self.aside.insert(what, boottime());
        self.events.spawn(async move { Event::Aside { what, result: work.await } });
    }

    /// A look that does not come back is not waited for for ever, nor is anything beside the orders.
    fn look_again_if_stuck(&mut self, now: Instant) {
        if self.looking && LOOK_MAX < now.since(self.looked_at) {
            tracing::warn!(database = self.database, "a look at PostgreSQL has not come back");
            self.orders += 1;
            self.looking = false;
            self.look();
        }
        self.aside.retain(|_, since| now.since(*since) < ASIDE_MAX);
    }

    fn look(&mut self) {
        if std::mem::replace(&mut self.looking, true) {
            return;
        }
        self.looked_at = boottime();
        let (postgres, memory) = (self.postgres.clone(), self.kept.memory.clone());
        let orders = self.orders;
        let closed = self.watch.local.closed.is_some_and(|begun| begun != BEFORE);
        self.events.spawn(async move {
            let glance = Box::new(glance(&postgres, &memory, closed).await);
            Event::Looked { glance, orders }
        });
    }

    fn await_exit(&mut self) {
        self.awaits_exit = true;
        let (postgres, database) = (self.postgres.clone(), self.database.clone());
        self.events.spawn(async move {
            if postgres.exited().await == Ended::KeeperGone {
                // What runs without a keeper would outlive its right.
                tracing::warn!(database, "the keeper of PostgreSQL is gone: PostgreSQL is ended");
                if let Err(error) = postgres.kill().await {
                    tracing::error!(database, %error, "end what runs without a keeper");
                }
            }
            Event::Exited
        });
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Looked { glance, orders } => {
                self.looking = false;
                if orders != self.orders {
                    self.look();
                    return;
                }
                // What was seen while an order changed it may be of before.
                if self.carries.is_none() {
                    let before = self.watch.local.server;
                    self.watch.take(*glance);
                    self.note(before);
                }
            }
            Event::Exited => {
                self.awaits_exit = false;
                if self.carries.is_none() {
                    self.watch.ended();
                    self.watch.local.trouble = "PostgreSQL has ended by itself".to_owned();
                    self.look();
                }
            }
            Event::Aside { what, result } => {
                self.aside.remove(what);
                if what == "reload" {
                    // People see it, until the configuration is taken: nothing else counts until then, and no start would succeed.
                    self.watch.unread = result.as_ref().err().map(ToString::to_string);
                }
                if what == "slots" && result.is_ok() && self.lacks_slots() {
                    // Others wait until they are seen.
                    self.look();
                }
                if let Err(error) = result {
                    tracing::warn!(database = self.database, what, %error, "beside the orders");
                    match what {
                        // It stands where it stood.
                        "fuse" => (self.fuse, self.fuse_failed) = (None, Some(boottime())),
                        "slots" => {
                            self.watch.has_roles = false;
                            self.relayed = (0, Vec::new());
                        }
                        "reload" => self.reload_at = Some(boottime() + RELOAD_AGAIN),
                        _ => {}
                    }
                }
            }
            Event::Verifiers(verifiers) => self.office.show_verifiers(&self.database, verifiers),
            Event::Carried { order, result } => self.carried(order, result),
        }
    }

    fn note(&self, before: Server) {
        let now = self.watch.local.server;
        if before != now {
            tracing::info!(database = self.database, ?before, ?now, "PostgreSQL");
        }
    }

    fn carried(&mut self, order: Order, result: Result<Done, Error>) {
        match carry::beside(&order) {
            Some(what) => drop(self.aside.remove(what)),
            None => {
                self.carries = None;
                self.orders += 1;
            }
        }
        match result {
            Ok(done) => {
                self.tell(&order, &done);
                self.take(done);
                self.ends(&order);
            }
            Err(error) => {
                tracing::warn!(database = self.database, ?order, %error, "carry out an order");
                self.trouble(error.to_string());
                if matches!(order, Order::Rewind { .. } | Order::Clone { .. }) {
                    self.restore_lineage();
                }
                // Whatever it is now has to be seen first.
                self.watch.local.server = Server::Unknown;
            }
        }
        self.look();
    }

    /// What becomes of data stands in the journal.
    fn tell(&self, order: &Order, done: &Done) {
        let me = &self.office.home.node;
        let from = carry::upstream(order).unwrap_or_default();
        let (change, text) = match done {
            Done::Rewound => {
                (DatabaseChange::Rewound, format!("node `{me}` was rewound to node `{from}`"))
            }
            Done::Cloned { aside: Some(aside), .. } => {
                let aside = aside.display();
                let text =
                    format!("node `{me}` was cloned from node `{from}`; what it had is in {aside}");
                (DatabaseChange::Cloned, text)
            }
            Done::Cloned { aside: None, .. } => {
                (DatabaseChange::Cloned, format!("node `{me}` was cloned from node `{from}`"))
            }
            Done::Nothing
            | Done::Made
            | Done::Started { .. }
            | Done::Stopped { .. }
            | Done::Follows { .. }
            | Done::Rule(_)
            | Done::Promoted { .. }
            | Done::Closed { .. }
            | Done::Opened
            | Done::Source
            | Done::Verified { .. }
            | Done::Flushed { .. }
            | Done::Ended { .. }
            | Done::Killed => return,
        };
        let (database, epoch) = (self.database.clone(), self.kept.memory.obeyed);
        self.office.record(Fact::Database { database, epoch, change, text });
    }

    /// Notes what an order that is done has made of the log. It was given under the reign that is obeyed: no other one is
    /// begun meanwhile.
    fn ends(&mut self, order: &Order) {
        let copied = matches!(order, Order::Rewind { .. } | Order::Clone { .. });
        let ended = self.kept.change(|memory| {
            memory.set_descent(order.ends(memory.descent(), memory.obeyed));
            memory.standby |= copied;
        });
        if let Err(error) = ended {
            self.trouble(format!("{error:#}"));
        }
        self.remember();
    }

    /// A rewind or a clone that changed nothing leaves a log that is what it was.
    fn restore_lineage(&mut self) {
        if self.postgres.is_unfit() {
            return;
        }
        let before = self.before;
        let restored = self.kept.change(|memory| memory.set_descent(before));
        if let Err(error) = restored {
            self.trouble(format!("{error:#}"));
        }
        self.remember();
    }

    fn take(&mut self, done: Done) {
        let local = &mut self.watch.local;
        match done {
            Done::Nothing => {}
            Done::Started { upstream } => {
                self.watch.ended();
                self.watch.local.upstream = upstream;
                self.watch.local.server = Server::Unknown;
                self.fuse = None;
                self.await_exit();
            }
            Done::Stopped { election, timeline, lsn } => {
                local.upstream = None;
                local.receives = false;
                local.stopped = Some(election);
                local.reaches = Position { timeline, lsn };
            }
            Done::Follows { node } => {
                local.upstream = Some(node);
                local.stopped = None;
            }
            Done::Rule(rule) => self.watch.set_rule(rule),
            Done::Promoted { rule } => {
                local.server = Server::Unknown;
                (local.upstream, local.stopped) = (None, None);
                self.watch.set_rule(rule);
            }
            Done::Closed { begun, lsn } => {
                local.closed = Some(begun);
                local.reaches.lsn = lsn;
            }
            Done::Opened => local.closed = None,
            Done::Source => local.is_source = true,
            Done::Verified { epoch } => local.verified = Some(epoch),
            Done::Flushed { turn } => local.flushed = Some(turn),
            Done::Ended { turn } => {
                self.watch.ended();
                self.turned(turn);
            }
            Done::Rewound => self.watch.ended(),
            Done::Cloned { turn, aside: _ } => {
                self.watch.ended();
                if let Some(turn) = turn {
                    self.turned(turn);
                }
            }
            Done::Made | Done::Killed => self.watch.ended(),
        }
    }

    /// What people have asked for is done here, and is not done a second time.
    fn turned(&mut self, turn: u64) {
        if let Err(error) = self.kept.change(|memory| memory.turned = Some(turn)) {
            self.trouble(format!("{error:#}"));
        }
        self.watch.local.turned = Some(turn);
    }

    fn trouble(&mut self, trouble: String) {
        self.watch.local.trouble = trouble;
    }

    fn look_at_disk(&mut self) {
        let local = &mut self.watch.local;
        if self.disk.is_none() && matches!(local.server, Server::Primary | Server::Standby) {
            let dir = &self.postgres.settings().data_dir;
            // Without it, what is known of the disk is what PostgreSQL says of it.
            self.disk = Probe::start(dir, DISK_EVERY, DISK_SLOW).ok();
        }
        let Some(disk) = &self.disk else { return };
        let storage = disk.storage();
        local.free_bytes = storage.free.unwrap_or_default();
        local.storage_stuck =
            matches!(storage.health, Disk::Stuck { since } if DISK_STUCK <= since);
    }

    /// Who needs a slot of this member.
    fn followers(&self, agreed: Option<&Database>) -> Followers {
        let peers = self.postgres.settings().peers.keys().cloned().collect();
        let mut followers = Followers { peers, ..Followers::default() };
        let Some(agreed) = agreed else { return followers };
        let reign = Some(agreed.reign.epoch);
        if self.watch.local.lineage == reign && self.watch.local.server == Server::Standby {
            let relayed = agreed.followers(&self.office.home.node);
            followers.relayed = relayed.map(str::to_owned).collect();
            followers.reign = agreed.reign.epoch;
        }
        for node in agreed.upstreams.keys() {
            let sight = self.sight_of(node).filter(|sight| sight.lineage == reign);
            let has = sight.map(|sight| (node.clone(), Lsn(sight.reaches.lsn)));
            followers.elsewhere.extend(has);
        }
        followers
    }

    /// Whether a primary does not keep log for all others yet.
    fn lacks_slots(&self) -> bool {
        let (local, peers) = (&self.watch.local, &self.postgres.settings().peers);
        local.server == Server::Primary && local.slots.len() < peers.len()
    }

    /// Slots for the others, on primary and standby.
    fn keep_slots(&mut self, now: Instant, agreed: Option<&Database>) {
        let followers = self.followers(agreed);
        let relayed = (followers.reign, followers.relayed.clone());
        let every = if self.lacks_slots() { SLOTS_AGAIN } else { SLOTS_EVERY };
        let ago = self.slots_at.map_or(Duration::MAX, |at| now.since(at));
        let due = every <= ago || self.relayed != relayed && SLOTS_AGAIN <= ago;
        let up = matches!(self.watch.local.server, Server::Primary | Server::Standby);
        if !due || !up || self.carries.is_some() || self.aside.contains_key("slots") {
            return;
        }
        self.slots_at = Some(now);
        self.relayed = relayed;
        let primary = self.watch.local.server == Server::Primary;
        // The next primary would lack what is written to one that is closed.
        let roles = primary && self.watch.local.closed.is_none() && !self.watch.has_roles;
        let postgres = self.postgres.clone();
        self.watch.has_roles |= roles;
        let asked = postgres.clone();
        self.events.spawn(async move {
            // Without them sessions with a password are not resumed; that is all.
            Event::Verifiers(asked.verifiers().await.unwrap_or_default())
        });
        self.beside("slots", async move {
            let rotated = postgres.clone();
            tokio::task::spawn_blocking(move || rotated.rotate_output().ok()).await.ok();
            if roles {
                postgres.ensure_roles().await?;
            }
            postgres.keep_slots(&followers).await
        });
    }

    /// The agent is told to stop: PostgreSQL ends with it.
    async fn end(&mut self) {
        self.events.abort_all();
        let ended = self.postgres.stop(StopHow::Fast { deadline: STOP_MAX }).await;
        if let Err(error) = ended {
            tracing::error!(database = self.database, %error, "stop PostgreSQL");
        }
    }
}

async fn wait_stop(
    stop: &mut watching::Receiver<Stop>,
) -> Result<Stop, watching::error::RecvError> {
    stop.wait_for(|stop| *stop != Stop::No).await.map(|stop| *stop)
}

fn moment(at: Instant) -> Moment {
    Moment { nanos: u64::try_from(at.since_start().as_nanos()).unwrap_or(u64::MAX) }
}
