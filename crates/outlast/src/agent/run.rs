//! `outlast run`: the loop that reads what happens, asks the core, and does what it says.

mod accord;
mod counters;
mod explain;
mod names;
mod reload;
mod requests;
mod stop;
mod together;
mod traffic;
mod trails;
mod upgrade;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use outlast_core::agent::{Action, Agent, Agreement, Input, Now, Resume};
use outlast_core::event::{Fact, Severity, Target};
use outlast_core::pair::Epoch;
use outlast_core::topology::Topology;
use outlast_host::journal::{self, Journal};
use outlast_host::probe::{Answer, Code};
use outlast_host::process::{News, Report};
use outlast_proxy::stats::Stats;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

use super::probes::Probes;
use super::processes::Processes;
use super::proxy::DataPlane;
use super::shared::{self, Picture, Recent, Shared, StatsAt, Vitals, wall};
use super::standby::Fence;
use super::start::{self, Options};
use super::table::{self, Certificates};
use super::{admin, face, ports, state};
use crate::addresses::vrrp::Routers;
use crate::addresses::{self, Addresses};
use crate::cluster::{self, Cluster};
use crate::database::{Databases, Home};
use crate::dataplane::link::FromLink;
use crate::names::{self as name_servers, NameServers};
use crate::rights::Rights;

pub(super) use requests::Request;

/// What may wait for the loop.
const INBOX_MAX: usize = 4096;

/// What has become of members and is not in the journal yet.
const FACTS_MAX: usize = 64;

/// How often counters are read and the picture is refreshed.
const TICK: Duration = Duration::from_secs(1);

/// How often it is read how full the machine is: a disk fills in minutes.
const VITALS_EVERY: Duration = Duration::from_secs(5);

/// How often backend host names are resolved again.
const RESOLVE_EVERY: Duration = Duration::from_secs(10);

/// How often the size of the proxies' log is looked at.
const LOG_CHECK: Duration = Duration::from_secs(5);

/// After SIGTERM, /health/ready says no for this long before the listeners close, so that whoever asks it stops sending.
const NOT_READY_FIRST: Duration = Duration::from_secs(5);

/// Everything that reaches the loop.
#[derive(Debug)]
pub(super) enum Said {
    Probed {
        target: Target,
        answer: Answer,
    },
    CommandDone {
        service: String,
        epoch: Epoch,
        result: Result<(), String>,
    },
    /// A standby's command was not run: a newer one was.
    OrderRefused {
        service: String,
        epoch: Epoch,
        obeyed: Epoch,
    },
    Resolved {
        host: String,
        found: Result<Vec<IpAddr>, String>,
    },
    /// The binary on disk was tried.
    Tried {
        result: Result<String, String>,
        asker: upgrade::Asker,
    },
    Asked(Request),
}

/// How the loop ended.
enum End {
    Stopped { forced: bool },
    Upgrade,
}

/// Runs an agent until it is told to stop. False: open work had to be cut off.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    let start = accord::start(&options.file)?;
    let node = start::who_am_i(&start.topology, options.node.as_deref())?;
    // Before there is a second thread, or anything is open.
    let rights = Rights::of_agent(&start.topology, &node);
    let lock = start::claim(&start.data_dir)?;
    // The agent holds every listening socket, too, and a connection for each probe.
    crate::dataplane::process::raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    let end = runtime.block_on(async {
        // First: a signal that comes while the agent starts must not kill it.
        let mut signals = Signals::listen()?;
        let mut agent = Loop::open(options.clone(), start, node, rights)?;
        agent.live(&mut signals).await
    })?;
    // A name that is being resolved may take its time; nobody waits for it.
    runtime.shutdown_background();
    drop(lock);
    match end {
        End::Stopped { forced } => Ok(!forced),
        End::Upgrade => Err(upgrade::become_new_binary()),
    }
}

/// How many threads the proxy has: what the file says, or one a core.
fn proxy_threads(topology: &Topology) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    topology.cluster.proxy_threads.map_or_else(cores, |n| usize::from(n.get()))
}

/// The agent's outside.
struct Loop {
    options: Options,
    base: PathBuf,
    data_dir: PathBuf,
    node: String,
    rights: Rights,
    /// What was said to be missing of them, last.
    rights_missing: Vec<String>,
    started: Instant,
    core: Agent,
    journal: Journal,
    probes: Probes,
    processes: Processes,
    plane: DataPlane,
    certificates: Certificates,
    names: names::Names,
    /// The binary on disk is being tried.
    trying: bool,
    topology: Arc<Topology>,
    picture: watch::Sender<Arc<Picture>>,
    counts: std::collections::BTreeMap<(Target, Code), u64>,
    stopping: watch::Sender<bool>,
    stats: Arc<Mutex<StatsAt>>,
    recent: Recent,
    vitals: Vitals,
    /// Counters of proxies that have ended: what was counted stays counted.
    ended_stats: Stats,
    last_stats: std::collections::BTreeMap<u32, Stats>,
    inbox: mpsc::Receiver<Said>,
    sender: mpsc::Sender<Said>,
    links: mpsc::Receiver<FromLink>,
    reports: mpsc::Receiver<Report>,
    face: face::Face,
    /// `None` where there is only one node.
    /// Before the cluster, because the leader is told of their end.
    addresses: Option<Addresses>,
    name_servers: NameServers,
    /// Tells them what this node sees.
    say_sights: watch::Sender<name_servers::Sighted>,
    /// Failovers that addresses and names still have to follow.
    trails: trails::Trails,
    routers: Routers,
    cluster: Option<Cluster>,
    databases: Option<Databases>,
    /// Tells others of the topology that this node runs.
    in_force: watch::Sender<Arc<Topology>>,
    /// What is agreed on databases has changed, and the data plane does not have it yet.
    databases_changed: bool,
    /// Until when this node may route to pairs, if it holds its lease; told to the data plane once that is up to date.
    lease: Option<outlast_core::time::Instant>,
    /// What was agreed on last, and whether anything was heard of it.
    agreement: Agreement,
    agreed: bool,
    /// What this node says of databases.
    says_databases: watch::Receiver<cluster::Databases>,
    /// What has become of members here.
    facts_told: mpsc::Receiver<Fact>,
    /// What was agreed on could not be written to disk: this node could go back to an older side when it is restarted.
    pairs_unsaved: bool,
    /// Data planes that drain, and since when: they know the lease that was told before.
    leaving: std::collections::BTreeMap<u32, outlast_core::time::Instant>,
    /// The data plane has been told of a lease that lasts.
    vouches: bool,
    /// Since when the data plane lacks a route that was agreed on.
    behind_since: Option<outlast_core::time::Instant>,
    accord: accord::Accord,
    /// Held for as long as the agent answers.
    _admin: admin::Admin,
}

impl Loop {
    fn open(
        options: Options,
        accord::Start { running, topology, consensus, base, data_dir }: accord::Start,
        node: String,
        rights: Rights,
    ) -> anyhow::Result<Loop> {
        let started = Instant::now();
        let (sender, inbox) = mpsc::channel(INBOX_MAX);
        let (from_links, links) = mpsc::channel(INBOX_MAX);
        let (reporter, reports) = mpsc::channel(INBOX_MAX);
        let certificates = table::certificates(&topology, &base)?;
        let (journal, recovery) =
            Journal::open(&data_dir.join("journal"), &node).context("open the journal")?;
        if recovery.cut > 0 {
            tracing::warn!(bytes = recovery.cut, "cut a torn last line off the journal");
        }
        let mut facts = Vec::new();
        let topology = Arc::new(topology);
        let (in_force, follow) = watch::channel(topology.clone());
        let (tell_facts, facts_told) = mpsc::channel(FACTS_MAX);
        let (say_sights, sights) = watch::channel(name_servers::Sighted::default());
        let home = name_servers::Home {
            node: node.clone(),
            base: base.clone(),
            data_dir: data_dir.clone(),
            topology: follow.clone(),
            sights,
            facts: tell_facts.clone(),
        };
        let joint = cluster::wanted(&topology);
        let (introduce, others) = tokio::sync::oneshot::channel();
        // Before all that takes its time: what they answer by is on the disk, and nobody answers meanwhile.
        let name_servers = NameServers::start(home, joint.then_some(others))?;
        let (mut plane, inherited) =
            DataPlane::find(data_dir.clone(), proxy_threads(&topology), from_links)?;
        let opened = start::open_missing(&topology, &plane.sockets)?;
        plane.sockets.extend(opened);
        let inherited = inherited.unwrap_or_default();
        let (pairs, moving) = state::load(&data_dir)?;
        let resume = Resume {
            beliefs: inherited.beliefs(),
            draining: inherited.draining(),
            // An order under an epoch that was obeyed before would be refused: epochs go on behind those too.
            pairs: state::with_obeyed(pairs, Fence::at(&data_dir).all()?),
            moving,
            joint: joint.then(|| node.clone()),
        };
        let names = names::Names::new(inherited.resolved(&topology));
        let now = Now { instant: outlast_core::time::Instant::default(), wall: wall() };
        let core = Agent::new(topology.as_ref().clone(), &resume, now);
        let (picture, picture_reader) = watch::channel(Arc::default());
        let (stopping, stopping_reader) = watch::channel(false);
        let stats = Arc::new(Mutex::new(StatsAt::new(Instant::now())));
        let recent = Recent::default();
        match journal::read_last(&data_dir.join("journal"), shared::RECENT_MAX) {
            Ok(lines) => lines.into_iter().for_each(|line| recent.push(line)),
            Err(error) => tracing::warn!(%error, "read the journal's end for the status page"),
        }
        let shared = Shared {
            node: node.clone(),
            version: crate::VERSION,
            started,
            started_at: wall(),
            picture: picture_reader,
            stats: stats.clone(),
            stopping: stopping_reader,
            recent: recent.clone(),
        };
        let admin = admin::Admin::open(&data_dir, shared.clone(), sender.clone())?;
        let face = face::Face::open(topology.cluster.face, shared.clone())?;
        let (say_databases, says_databases) = watch::channel(cluster::Databases::default());
        let (accord, running, errands) = accord::lines(running, options.file.clone());
        let cluster = if joint {
            let mut topology = topology.as_ref().clone();
            topology.consensus.kind = consensus;
            Some(Cluster::start(cluster::Settings {
                topology,
                base: base.clone(),
                node: node.clone(),
                data_dir: data_dir.clone(),
                running,
                errands,
                databases: says_databases.clone(),
                in_force: follow.clone(),
            })?)
        } else {
            None
        };
        let home = addresses::Home {
            node: node.clone(),
            base: base.clone(),
            topology: follow,
            picture: shared.picture,
            facts: tell_facts.clone(),
            rights,
        };
        let routers = Routers::start(home.clone())?;
        let addresses = cluster.as_ref();
        let addresses = addresses.map(|cluster| Addresses::start(home, cluster.of_addresses()));
        let addresses = addresses.transpose()?;
        if let Some(cluster) = &cluster {
            // If they have ended, there is nobody to tell.
            introduce.send(cluster.of_names()).ok();
        }
        let databases = cluster.as_ref().map(|cluster| {
            let home = Home { node: node.clone(), data_dir: data_dir.clone(), base: base.clone() };
            let of = cluster.of_databases();
            Databases::start(home, topology.clone(), of, say_databases, tell_facts)
        });
        let databases = databases.transpose()?;
        let vitals = Vitals::read(&data_dir);
        facts.push(Fact::AgentStarted {
            version: crate::VERSION.to_owned(),
            resumed: !resume.beliefs.is_empty(),
        });
        // Last of all that can fail: an agent that cannot run leaves no proxy behind.
        plane.begin(now.instant, &mut facts)?;
        let mut agent = Loop {
            probes: Probes::new(sender.clone()),
            processes: Processes::new(node.clone(), data_dir.clone(), reporter),
            options,
            base,
            data_dir,
            node,
            rights,
            rights_missing: Vec::new(),
            started,
            core,
            journal,
            plane,
            certificates,
            names,
            trying: false,
            topology,
            picture,
            counts: std::collections::BTreeMap::new(),
            stopping,
            stats,
            recent,
            vitals,
            ended_stats: Stats::default(),
            last_stats: std::collections::BTreeMap::new(),
            inbox,
            sender,
            links,
            reports,
            face,
            cluster,
            databases,
            addresses,
            name_servers,
            say_sights,
            trails: trails::Trails::default(),
            routers,
            in_force,
            databases_changed: false,
            lease: None,
            agreement: Agreement::default(),
            agreed: false,
            says_databases,
            facts_told,
            pairs_unsaved: false,
            leaving: std::collections::BTreeMap::new(),
            vouches: false,
            behind_since: None,
            accord,
            _admin: admin,
        };
        agent.record_all(facts);
        agent.say_that_file_differs();
        agent.say_what_is_missing();
        agent.probes.follow(&agent.topology);
        agent.processes.follow(&agent.topology);
        agent.publish();
        Ok(agent)
    }

    fn now(&self) -> Now {
        let instant = outlast_core::time::Instant::from_start(self.started.elapsed());
        Now { instant, wall: wall() }
    }

    /// Handles one thing after another until the end.
    async fn live(&mut self, signals: &mut Signals) -> anyhow::Result<End> {
        let mut tick = tokio::time::interval(TICK);
        // An agent that was held up does not make good for what it missed.
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut resolve = tokio::time::interval(RESOLVE_EVERY);
        let mut log_check = tokio::time::interval(LOG_CHECK);
        let mut vitals = tokio::time::interval(VITALS_EVERY);
        vitals.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (file, capabilities) = (self.options.file.display(), self.rights.shown());
        tracing::info!(node = self.node, %file, capabilities, "running");
        loop {
            let now = self.now().instant;
            let wake =
                self.core.deadline(now).map_or(Duration::from_secs(3600), |at| at.since(now));
            let wake = self.plane.wake_in(now).map_or(wake, |plane| plane.min(wake));
            tokio::select! {
                Some(said) = self.inbox.recv() => match said {
                    Said::Asked(Request::Upgrade { answer }) => self.try_new_binary(Some(answer)),
                    Said::Tried { result, asker } => {
                        if self.hear_trial(result, asker) {
                            return Ok(self.leave().await);
                        }
                    }
                    Said::Asked(Request::Stop { answer }) => {
                        answer.send(Ok("stopping".to_owned())).ok();
                        return Ok(self.stop("asked to", NOT_READY_FIRST, signals).await);
                    }
                    said @ (Said::Probed { .. } | Said::CommandDone { .. } | Said::OrderRefused { .. } | Said::Resolved { .. } | Said::Asked(_)) => {
                        self.hear(said);
                    }
                },
                Some(said) = self.links.recv() => self.hear_proxy(said),
                Some(report) = self.reports.recv() => self.hear_process(report),
                news = together::next_news(&mut self.cluster) => self.hear_cluster(news),
                Some(fact) = self.facts_told.recv() => self.record(fact),
                () = together::address_news(&mut self.addresses) => self.publish(),
                () = self.name_servers.changed() => {
                    self.publish();
                    self.follow_trails();
                }
                () = self.routers.changed() => self.publish(),
                errand = self.accord.errand() => self.hear_errand(errand),
                () = tokio::time::sleep(wake) => {
                    self.look_after_proxies();
                    self.step(Input::Tick);
                }
                _ = tick.tick() => {
                    self.ask_proxies();
                    self.save_again();
                    self.publish();
                    self.confirm_routes();
                }
                _ = resolve.tick() => {
                    self.resolve();
                    self.look_at_file();
                }
                _ = vitals.tick() => self.vitals = Vitals::read(&self.data_dir),
                _ = log_check.tick() => self.rotate_log(),
                _ = signals.hangup.recv() => {
                    // The answer is in the journal and in the log.
                    self.reload().ok();
                }
                _ = signals.upgrade.recv() => self.try_new_binary(None),
                _ = signals.terminate.recv() => {
                    return Ok(self.stop("SIGTERM", NOT_READY_FIRST, signals).await);
                }
                _ = signals.interrupt.recv() => {
                    return Ok(self.stop("SIGINT", Duration::ZERO, signals).await);
                }
            }
        }
    }

    fn hear(&mut self, said: Said) {
        match said {
            Said::Probed { target, answer } => {
                *self.counts.entry((target.clone(), answer.code)).or_default() += 1;
                let reason = if answer.ok {
                    format!(
                        "{} in {}",
                        answer.reason,
                        outlast_core::units::show_duration(answer.took)
                    )
                } else {
                    answer.reason
                };
                self.step(Input::Probed { target, ok: answer.ok, reason });
            }
            Said::CommandDone { service, epoch, result } => {
                self.step(Input::CommandDone { service, epoch, result });
            }
            Said::OrderRefused { service, epoch, obeyed } => {
                self.record(Fact::OrderRefused { service, epoch, obeyed });
            }
            Said::Resolved { host, found } => self.hear_address(&host, found),
            // Handled by the loop, because it may end it; here it comes too late.
            Said::Tried { asker, .. } => {
                if let Some(asker) = asker {
                    asker.send(Err("the agent is stopping".to_owned())).ok();
                }
            }
            Said::Asked(request) => self.answer(request),
        }
    }

    fn hear_process(&mut self, report: Report) {
        match report.news {
            News::View(view) => self.step(Input::Process { process: report.process, view }),
            News::Fact(fact) => self.record(fact),
        }
    }

    fn step(&mut self, input: Input) {
        let mut actions = Vec::new();
        let now = self.now();
        self.core.step(now, input, &mut actions);
        self.act(actions);
        self.follow_trails();
    }

    /// Does what the core says, in its order; what must be on disk first is done once it is.
    fn act(&mut self, mut actions: Vec<Action>) {
        loop {
            let mut saved = Ok(());
            for action in actions {
                match action {
                    Action::Record(fact) => self.record(fact),
                    Action::SavePairs => {
                        let (pairs, moving) = (self.core.pairs(), self.core.moving());
                        saved = state::save(&self.data_dir, &pairs, moving);
                    }
                    Action::Publish => self.publish(),
                    Action::StandbyCommand { service, epoch } => {
                        self.order_standby(service, epoch, false);
                    }
                    Action::StandbyStop { service, epoch } => {
                        self.order_standby(service, epoch, true);
                    }
                    Action::Agree(command) => self.agree(command),
                }
            }
            if !self.core.awaits_save() {
                // What others have agreed on holds, whatever this disk says.
                if let Err(error) = saved {
                    tracing::error!(error = format!("{error:#}"), "remember who serves each pair");
                    self.pairs_unsaved = true;
                }
                return;
            }
            actions = Vec::new();
            let now = self.now();
            match saved {
                Ok(()) => self.core.saved(now, &mut actions),
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "remember who serves each pair");
                    self.core.not_saved(now, format!("{error:#}"), &mut actions);
                }
            }
        }
    }

    /// Keeps the proxies' log small, away from the loop: a disk may be slow.
    fn rotate_log(&self) {
        let log = crate::dataplane::link::log(&self.data_dir);
        // Ends with the disk's answer.
        drop(tokio::task::spawn_blocking(move || {
            if let Err(error) = log.rotate() {
                tracing::warn!(%error, "rotate proxy.log");
            }
        }));
    }

    fn record_all(&mut self, facts: Vec<Fact>) {
        facts.into_iter().for_each(|fact| self.record(fact));
    }

    /// Writes down what this agent may not do although the topology needs it here; of what was written down before, nothing.
    /// What is new of it.
    fn say_what_is_missing(&mut self) -> Vec<String> {
        let missing = self.rights.missing(&self.topology, &self.node);
        let before = std::mem::replace(&mut self.rights_missing, missing.clone());
        let new: Vec<String> =
            missing.into_iter().filter(|reason| !before.contains(reason)).collect();
        for reason in &new {
            self.record(Fact::CapabilitiesMissing { reason: reason.clone() });
        }
        new
    }

    /// Writes an event to the journal and to the log.
    fn record(&mut self, fact: Fact) {
        let subject = fact.subject();
        match fact.severity() {
            Severity::Info => tracing::info!(subject, event = fact.name(), "{fact}"),
            Severity::Warn => tracing::warn!(subject, event = fact.name(), "{fact}"),
            Severity::Error => tracing::error!(subject, event = fact.name(), "{fact}"),
        }
        self.trails.note(&fact);
        match self.journal.record(wall(), fact) {
            Ok(event) => self.recent.push(journal::Line::of(&event)),
            Err(error) => tracing::error!(%error, "write to the journal"),
        }
    }

    /// Gives every reader the new picture: first the data plane, then people.
    fn publish(&mut self) {
        let now = self.now().instant;
        let view = self.core.view(now);
        let (names, certificates) = (&self.names.known, &self.certificates);
        let leased = self.core.is_joint();
        let mut table = table::table(0, &self.topology, &view, names, certificates, leased);
        let known = self.known_databases();
        table.services.extend(ports::services(&self.topology, &known));
        // A change of sides waits for nobody.
        let urgent = !self.core.switching().is_empty() || self.databases_changed;
        self.plane.apply(now, table, urgent);
        self.databases_changed = false;
        let picture = Picture {
            view,
            topology: self.topology.clone(),
            proxy: self.plane.view(now),
            probes: self.counts.clone(),
            vitals: self.vitals,
            cluster: self.cluster.as_ref().map(|cluster| cluster.view().borrow().clone()),
            databases: self.databases_view(),
            addresses: self.addresses_view(),
            names: self.name_servers.seen(),
            routers: self.routers.seen(),
            at: wall(),
        };
        self.picture.send_replace(Arc::new(picture));
        self.tell_others();
        self.tell_name_servers(now);
    }
}

/// What the outside may send.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    upgrade: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Signals> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
            upgrade: listen(SignalKind::user_defined2())?,
        })
    }
}
