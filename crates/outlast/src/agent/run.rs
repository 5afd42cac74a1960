//! `outlast run`: the loop that reads what happens, asks the core, and does what it says.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use outlast_core::agent::{Action, Agent, Input, Now, Resume};
use outlast_core::event::{Fact, Severity, Target};
use outlast_core::pair::Epoch;
use outlast_core::topology::Topology;
use outlast_host::journal::{self, Journal};
use outlast_host::probe::{Answer, Code};
use outlast_host::process::{News, Report};
use outlast_proxy::Notice;
use outlast_proxy::stats::Stats;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

use super::probes::Probes;
use super::processes::Processes;
use super::proxy::DataPlane;
use super::shared::{self, Picture, Recent, Shared, StatsAt, Vitals, wall};
use super::start::{self, Options};
use super::table::{self, Certificates, Resolved};
use super::{admin, face, standby, state};
use crate::dataplane::link::FromLink;
use crate::dataplane::wire::FromProxy;

/// What may wait for the loop.
const INBOX_MAX: usize = 4096;

/// How often counters are read and the picture is refreshed.
const TICK: Duration = Duration::from_secs(1);

/// How often backend host names are resolved again.
const RESOLVE_EVERY: Duration = Duration::from_secs(10);

/// After SIGTERM, /health/ready says no for this long before the listeners close, so that whoever asks it stops sending.
const NOT_READY_FIRST: Duration = Duration::from_secs(5);

/// Open work has this long before it is closed by force.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// A new binary may take this long to read the topology file before it is trusted.
const TRIAL_MAX: Duration = Duration::from_secs(10);

/// Everything that reaches the loop.
#[derive(Debug)]
pub(super) enum Said {
    Probed { target: Target, answer: Answer },
    CommandDone { service: String, epoch: Epoch, result: Result<(), String> },
    Resolved(Resolved),
    Asked(Request),
}

/// What a person asks through the admin socket.
#[derive(Debug)]
pub(super) enum Request {
    Reload {
        answer: oneshot::Sender<Result<String, String>>,
    },
    Drain {
        service: String,
        backend: String,
        on: bool,
        answer: oneshot::Sender<Result<String, String>>,
    },
    Failback {
        service: String,
        answer: oneshot::Sender<Result<String, String>>,
    },
    Upgrade {
        answer: oneshot::Sender<Result<String, String>>,
    },
    Stop {
        answer: oneshot::Sender<Result<String, String>>,
    },
}

/// How the loop ended.
enum End {
    Stopped { forced: bool },
    Upgrade,
}

/// Runs an agent until it is told to stop. False: open work had to be cut off.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    let (topology, base) = read_file(&options.file)
        .map_err(|text| anyhow::anyhow!("the topology file cannot be run\n{text}"))?;
    let node = start::who_am_i(&topology, options.node.as_deref())?;
    let data_dir = base.join(&topology.cluster.data_dir);
    let lock = start::claim(&data_dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    let end = runtime.block_on(async {
        // First: a signal that comes while the agent starts must not kill it.
        let mut signals = Signals::listen()?;
        let mut agent = Loop::open(options.clone(), topology, base, node, data_dir)?;
        agent.live(&mut signals).await
    })?;
    // A name that is being resolved may take its time; nobody waits for it.
    runtime.shutdown_background();
    drop(lock);
    match end {
        End::Stopped { forced } => Ok(!forced),
        End::Upgrade => Err(become_new_binary()),
    }
}

/// Where our own binary lies, or the one that has replaced it.
fn own_binary() -> anyhow::Result<PathBuf> {
    let exe = std::env::current_exe().context("find our own binary")?;
    // Linux marks the path of a binary that was replaced.
    let path = exe.to_string_lossy();
    Ok(PathBuf::from(path.strip_suffix(" (deleted)").unwrap_or(&path)))
}

/// Replaces this process's image by the binary that is on disk now. Returns only if that failed.
fn become_new_binary() -> anyhow::Error {
    use std::os::unix::process::CommandExt as _;
    let path = match own_binary() {
        Ok(path) => path,
        Err(error) => return error,
    };
    let error = std::process::Command::new(&path).args(std::env::args_os().skip(1)).exec();
    anyhow::Error::new(error).context(format!("become {}", path.display()))
}

/// Reads and parses the file; the error is what a person should see.
fn read_file(path: &Path) -> Result<(Topology, PathBuf), String> {
    let text =
        std::fs::read_to_string(path).map_err(|e| format!("read {}: {e}", path.display()))?;
    let topology =
        crate::file::parse(&path.display().to_string(), &text).map_err(|c| c.to_string())?;
    let absolute = std::path::absolute(path).map_err(|e| e.to_string())?;
    let base = absolute.parent().map(Path::to_path_buf).unwrap_or_default();
    Ok((topology, base))
}

/// The agent's outside.
struct Loop {
    options: Options,
    base: PathBuf,
    data_dir: PathBuf,
    node: String,
    started: Instant,
    core: Agent,
    journal: Journal,
    probes: Probes,
    processes: Processes,
    plane: DataPlane,
    certificates: Certificates,
    resolved: Resolved,
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
    /// Held for as long as the agent answers.
    _admin: admin::Admin,
}

impl Loop {
    fn open(
        options: Options,
        topology: Topology,
        base: PathBuf,
        node: String,
        data_dir: PathBuf,
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
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = topology.cluster.proxy_threads.map_or_else(cores, |n| usize::from(n.get()));
        let (mut plane, inherited) = DataPlane::find(data_dir.clone(), threads, from_links)?;
        let opened = start::open_missing(&topology, &plane.sockets)?;
        plane.sockets.extend(opened);
        let inherited = inherited.unwrap_or_default();
        let resume = Resume {
            beliefs: table::beliefs(&inherited),
            draining: table::draining(&inherited),
            pairs: state::load(&data_dir)?,
        };
        let resolved = table::resolved(&topology, &inherited);
        let now = Now { instant: outlast_core::time::Instant::default(), wall: wall() };
        let core = Agent::new(topology, &resume, now);
        let topology = Arc::new(core.topology().clone());
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
        let face = face::Face::open(topology.cluster.face, shared)?;
        let vitals = Vitals::read(&data_dir);
        facts.push(Fact::AgentStarted {
            version: crate::VERSION.to_owned(),
            resumed: !resume.beliefs.is_empty(),
        });
        // Last of all that can fail: an agent that cannot run leaves no proxy behind.
        plane.begin(&mut facts)?;
        let mut agent = Loop {
            probes: Probes::new(sender.clone()),
            processes: Processes::new(node.clone(), data_dir.clone(), reporter),
            options,
            base,
            data_dir,
            node,
            started,
            core,
            journal,
            plane,
            certificates,
            resolved,
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
            _admin: admin,
        };
        for fact in facts {
            agent.record(fact);
        }
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
        let mut resolve = tokio::time::interval(RESOLVE_EVERY);
        tracing::info!(node = self.node, file = %self.options.file.display(), "running");
        loop {
            let now = self.now().instant;
            let wake =
                self.core.deadline(now).map_or(Duration::from_secs(3600), |at| at.since(now));
            let wake = self.plane.restart_in().map_or(wake, |restart| restart.min(wake));
            tokio::select! {
                Some(said) = self.inbox.recv() => match said {
                    Said::Asked(Request::Upgrade { answer }) => {
                        let checked = self.check_new_binary().await;
                        let fits = checked.is_ok();
                        answer.send(checked).ok();
                        if fits {
                            return Ok(self.leave().await);
                        }
                    }
                    Said::Asked(Request::Stop { answer }) => {
                        answer.send(Ok("stopping".to_owned())).ok();
                        return Ok(self.stop("asked to", NOT_READY_FIRST, signals).await);
                    }
                    said @ (Said::Probed { .. } | Said::CommandDone { .. } | Said::Resolved(_) | Said::Asked(_)) => {
                        self.hear(said);
                    }
                },
                Some(said) = self.links.recv() => self.hear_proxy(said),
                Some(report) = self.reports.recv() => self.hear_process(report),
                () = tokio::time::sleep(wake) => {
                    self.revive_proxy();
                    self.step(Input::Tick);
                }
                _ = tick.tick() => {
                    self.plane.ask_stats();
                    self.vitals = Vitals::read(&self.data_dir);
                    self.plane.reap();
                    self.revive_proxy();
                    self.publish();
                    self.confirm_routes();
                }
                _ = resolve.tick() => self.resolve(),
                _ = signals.hangup.recv() => {
                    // The answer is in the journal and in the log.
                    self.reload().ok();
                }
                _ = signals.upgrade.recv() => match self.check_new_binary().await {
                    Ok(_) => return Ok(self.leave().await),
                    Err(reason) => tracing::error!(reason, "go on with the present binary"),
                },
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
            Said::Resolved(resolved) => {
                if self.resolved != resolved {
                    self.resolved = resolved;
                    self.publish();
                }
            }
            Said::Asked(request) => self.answer(request),
        }
    }

    fn answer(&mut self, request: Request) {
        match request {
            Request::Reload { answer } => {
                let result = self.reload();
                answer.send(result).ok();
            }
            Request::Drain { service, backend, on, answer } => {
                let known = self
                    .topology
                    .services
                    .get(&service)
                    .is_some_and(|s| s.pool.backends().iter().any(|b| b.url == backend));
                if !known {
                    let backends: Vec<String> =
                        self.topology.services.get(&service).map_or_else(Vec::new, |s| {
                            s.pool.backends().iter().map(|b| b.url.clone()).collect()
                        });
                    let have = if backends.is_empty() {
                        format!("there is no service `{service}`")
                    } else {
                        format!(
                            "service `{service}` has no backend `{backend}`; it has {}",
                            backends.join(", ")
                        )
                    };
                    answer.send(Err(have)).ok();
                    return;
                }
                self.step(Input::Drain { service, backend: backend.clone(), on });
                answer
                    .send(Ok(if on {
                        format!("{backend} drains")
                    } else {
                        format!("{backend} serves again")
                    }))
                    .ok();
            }
            Request::Failback { service, answer } => {
                let pair = self.core.pairs().contains_key(&service);
                if !pair {
                    answer
                        .send(Err(format!(
                            "service `{service}` is not a pair of primary and backup"
                        )))
                        .ok();
                    return;
                }
                self.step(Input::Failback { service: service.clone() });
                answer
                    .send(Ok(format!("service.{service} returns to its primary once that is up")))
                    .ok();
            }
            // Handled by the loop, because they end it.
            Request::Upgrade { answer } | Request::Stop { answer } => {
                answer.send(Err("not now".to_owned())).ok();
            }
        }
    }

    fn hear_proxy(&mut self, from: FromLink) {
        let mut facts = Vec::new();
        match from {
            FromLink::Said { pid, message } => match message {
                FromProxy::Applied { generation } => {
                    self.plane.succeed(pid, generation, &mut facts);
                }
                FromProxy::NotApplied { reason, .. } => {
                    tracing::error!(pid, reason, "the proxy refused a table");
                    self.plane.refuse(reason);
                }
                FromProxy::Stats(stats) => self.count(pid, stats),
                FromProxy::Notice(notice) => self.hear_notice(notice),
                FromProxy::Draining { connections } => {
                    tracing::info!(pid, connections, "proxy drains");
                }
                FromProxy::Hello(_) | FromProxy::Sockets { .. } => {}
            },
            FromLink::Gone { pid, reason } => {
                if let Some(last) = self.last_stats.remove(&pid) {
                    add_stats(&mut self.ended_stats, &last);
                }
                if self.plane.gone(pid) {
                    facts.push(Fact::ProxyLost { pid, reason });
                }
            }
        }
        for fact in facts {
            self.record(fact);
        }
        self.revive_proxy();
        self.publish();
        self.confirm_routes();
    }

    /// Tells the core which routes the data plane has in force.
    fn confirm_routes(&mut self) {
        if self.plane.settled() {
            for (service, epoch) in self.core.switching() {
                self.step(Input::Routed { service, epoch });
            }
        }
    }

    fn hear_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Ejected { service, backend, reason, time } => {
                self.probes.suspect(&service, &backend);
                self.step(Input::Ejected { service, backend, reason, time });
            }
            Notice::Returned { service, backend } => {
                self.step(Input::Returned { service, backend });
            }
            Notice::Suspect { service, backend } => self.probes.suspect(&service, &backend),
        }
    }

    fn hear_process(&mut self, report: Report) {
        match report.news {
            News::View(view) => self.step(Input::Process { process: report.process, view }),
            News::Fact(fact) => self.record(fact),
        }
    }

    /// Sums the counters of every proxy, living and ended, so that an upgrade loses none.
    fn count(&mut self, pid: u32, stats: Stats) {
        self.last_stats.insert(pid, stats);
        let mut all = self.ended_stats.clone();
        let serving = self.plane.view().pid;
        for (pid, stats) in &self.last_stats {
            add_stats(&mut all, stats);
            if Some(*pid) == serving {
                take_gauges(&mut all, stats);
            }
        }
        self.stats.lock().expect("no panic while held").take(all, Instant::now());
    }

    fn revive_proxy(&mut self) {
        let mut facts = Vec::new();
        if let Err(error) = self.plane.restart(&mut facts) {
            tracing::error!(error = format!("{error:#}"), "start the proxy again");
        }
        let started = !facts.is_empty();
        for fact in facts {
            self.record(fact);
        }
        if started {
            self.publish();
        }
    }

    /// Resolves the host names of backends in the background.
    fn resolve(&self) {
        let hosts: std::collections::BTreeSet<String> = self
            .topology
            .services
            .values()
            .flat_map(|s| s.pool.backends())
            .filter(|b| b.host.parse::<std::net::IpAddr>().is_err())
            .map(|b| b.host.clone())
            .collect();
        if hosts.is_empty() {
            return;
        }
        let (sender, mut resolved) = (self.sender.clone(), self.resolved.clone());
        // Bounded by the resolver's own timeouts; one at a time per tick.
        drop(tokio::task::spawn(async move {
            resolved.retain(|host, _| hosts.contains(host));
            for host in hosts {
                let found = tokio::net::lookup_host((host.as_str(), 0)).await.map(|found| {
                    let all: Vec<std::net::IpAddr> = found.map(|a| a.ip()).collect();
                    all
                });
                match found {
                    Ok(all) => {
                        // The same answer in another order is no change.
                        let keeps = resolved.get(&host).is_some_and(|ip| all.contains(ip));
                        if let (false, Some(&first)) = (keeps, all.first()) {
                            resolved.insert(host, first);
                        }
                    }
                    // The last known address stays in force.
                    Err(error) => tracing::warn!(%error, host, "resolve a backend"),
                }
            }
            sender.send(Said::Resolved(resolved)).await.ok();
        }));
    }

    /// Takes the changed file, or keeps the old topology and says why.
    fn reload(&mut self) -> Result<String, String> {
        let result = self.try_reload();
        if let Err(reason) = &result {
            let first =
                reason.lines().find(|l| !l.trim().is_empty()).unwrap_or_default().to_owned();
            self.record(Fact::TopologyRefused { reason: first });
        }
        result
    }

    fn try_reload(&mut self) -> Result<String, String> {
        let (topology, _) = read_file(&self.options.file)?;
        if !topology.nodes.is_empty() && !topology.nodes.contains_key(&self.node) {
            return Err(format!(
                "the file no longer has this node, `{}`; to leave, stop the agent",
                self.node
            ));
        }
        if self.base.join(&topology.cluster.data_dir) != self.data_dir {
            return Err("`data_dir` cannot change while the agent runs; restart it".to_owned());
        }
        let certificates =
            table::certificates(&topology, &self.base).map_err(|e| format!("{e:#}"))?;
        let trial = table::table(
            0,
            &topology,
            &outlast_core::view::View::default(),
            &self.resolved,
            &certificates,
        );
        outlast_proxy::check(&trial)?;
        let opened =
            start::open_missing(&topology, &self.plane.sockets).map_err(|e| format!("{e:#}"))?;
        if topology.cluster.face != self.topology.cluster.face {
            self.face.listen(topology.cluster.face).map_err(|e| format!("{e:#}"))?;
        }
        self.plane.sockets.extend(opened);
        self.certificates = certificates;
        let mut actions = Vec::new();
        let now = self.now();
        self.core.reload(topology, now, &mut actions);
        self.topology = Arc::new(self.core.topology().clone());
        self.probes.follow(&self.topology);
        self.processes.follow(&self.topology);
        self.resolve();
        let said = actions.iter().find_map(|a| match a {
            Action::Record(fact @ Fact::TopologyApplied { .. }) => Some(fact.to_string()),
            Action::Record(_)
            | Action::SavePairs
            | Action::Publish
            | Action::StandbyCommand { .. }
            | Action::StandbyStop { .. } => None,
        });
        self.act(actions);
        Ok(said.unwrap_or_default())
    }

    fn step(&mut self, input: Input) {
        let mut actions = Vec::new();
        let now = self.now();
        self.core.step(now, input, &mut actions);
        self.act(actions);
    }

    /// Does what the core says, in its order.
    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Record(fact) => self.record(fact),
                Action::SavePairs => {
                    if let Err(error) = state::save(&self.data_dir, &self.core.pairs()) {
                        tracing::error!(
                            error = format!("{error:#}"),
                            "remember who serves each pair"
                        );
                    }
                }
                Action::Publish => self.publish(),
                Action::StandbyCommand { service, epoch } => {
                    standby::begin(
                        &self.topology,
                        &self.data_dir,
                        &service,
                        epoch,
                        self.sender.clone(),
                    );
                }
                Action::StandbyStop { service, epoch } => {
                    standby::stop(&self.topology, &self.data_dir, &service, epoch);
                }
            }
        }
    }

    /// Writes an event to the journal and to the log.
    fn record(&mut self, fact: Fact) {
        let subject = fact.subject();
        match fact.severity() {
            Severity::Info => tracing::info!(subject, event = fact.name(), "{fact}"),
            Severity::Warn => tracing::warn!(subject, event = fact.name(), "{fact}"),
            Severity::Error => tracing::error!(subject, event = fact.name(), "{fact}"),
        }
        match self.journal.record(wall(), fact) {
            Ok(event) => self.recent.push(journal::Line::of(&event)),
            Err(error) => tracing::error!(%error, "write to the journal"),
        }
    }

    /// Gives every reader the new picture: first the data plane, then people.
    fn publish(&mut self) {
        let view = self.core.view(self.now().instant);
        let table = table::table(0, &self.topology, &view, &self.resolved, &self.certificates);
        self.plane.apply(table);
        let picture = Picture {
            view,
            topology: self.topology.clone(),
            proxy: self.plane.view(),
            probes: self.counts.clone(),
            vitals: self.vitals,
            at: wall(),
        };
        self.picture.send_replace(Arc::new(picture));
    }

    /// Has the binary on disk read the topology file, so that this agent does not end in favour of one that cannot run.
    async fn check_new_binary(&self) -> Result<String, String> {
        let path = own_binary().map_err(|error| format!("{error:#}"))?;
        let shown = path.display();
        let trial = tokio::process::Command::new(&path)
            .arg("check")
            .arg(&self.options.file)
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true)
            .output();
        match tokio::time::timeout(TRIAL_MAX, trial).await {
            Ok(Ok(output)) if output.status.success() => Ok(format!("becoming {shown}")),
            Ok(Ok(output)) => Err(format!(
                "{shown} cannot run this topology file, {}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            )),
            Ok(Err(error)) => Err(format!("{shown} does not start: {error}")),
            Err(_elapsed) => {
                Err(format!("{shown} has not read the topology file within {TRIAL_MAX:?}"))
            }
        }
    }

    /// Lets go of everything that goes on without an agent.
    async fn leave(&mut self) -> End {
        self.processes.leave().await;
        // The answer to who asked for it must be out before this image is gone.
        tokio::time::sleep(Duration::from_millis(50)).await;
        End::Upgrade
    }

    /// Not ready first, then drain, then the end by force.
    async fn stop(&mut self, reason: &str, lead: Duration, signals: &mut Signals) -> End {
        self.record(Fact::AgentStopping { reason: reason.to_owned() });
        self.stopping.send_replace(true);
        // Until the listeners close, clients still come: probes and failover go on.
        let lead_ends = tokio::time::Instant::now() + lead;
        while tokio::time::Instant::now() < lead_ends {
            tokio::select! {
                () = tokio::time::sleep_until(lead_ends) => {}
                Some(said) = self.inbox.recv() => self.hear(said),
                Some(said) = self.links.recv() => self.hear_proxy(said),
                Some(report) = self.reports.recv() => self.hear_process(report),
                // A second signal cuts the pause.
                _ = signals.terminate.recv() => break,
                _ = signals.interrupt.recv() => break,
            }
        }
        self.plane.drain(DRAIN_MAX);
        let begun = tokio::time::Instant::now();
        let until = begun + DRAIN_MAX + Duration::from_secs(2);
        let mut forced = false;
        while !self.plane.all_gone() {
            tokio::select! {
                Some(from) = self.links.recv() => if let FromLink::Gone { pid, .. } = from {
                    self.plane.gone(pid);
                },
                () = tokio::time::sleep_until(until) => {
                    forced = true;
                    break;
                }
                _ = signals.interrupt.recv() => {
                    forced = true;
                    self.plane.drain_now();
                }
                else => break,
            }
        }
        // A proxy that used its whole time had something left to cut off.
        forced |= DRAIN_MAX <= begun.elapsed();
        self.stop_processes().await;
        tracing::info!(forced, "stopped");
        End::Stopped { forced }
    }
}

impl Loop {
    /// Stops the programs, and goes on writing down what they report.
    async fn stop_processes(&mut self) {
        let mut processes = std::mem::replace(
            &mut self.processes,
            Processes::new(self.node.clone(), self.data_dir.clone(), mpsc::channel(1).0),
        );
        let stopping = processes.stop();
        tokio::pin!(stopping);
        loop {
            tokio::select! {
                () = &mut stopping => break,
                Some(report) = self.reports.recv() => self.hear_process(report),
            }
        }
        while let Ok(report) = self.reports.try_recv() {
            self.hear_process(report);
        }
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

/// Adds counters; gauges are left as they are.
fn add_stats(to: &mut Stats, from: &Stats) {
    for service in &from.services {
        let at = to.services.iter().position(|s| s.name == service.name).unwrap_or_else(|| {
            to.services.push(outlast_proxy::stats::ServiceStats {
                name: service.name.clone(),
                ..Default::default()
            });
            to.services.len() - 1
        });
        let sum = &mut to.services[at];
        sum.own.add(&service.own);
        sum.retries += service.retries;
        sum.retries_denied += service.retries_denied;
        for backend in &service.backends {
            let at =
                sum.backends.iter().position(|b| b.name == backend.name).unwrap_or_else(|| {
                    sum.backends.push(outlast_proxy::stats::BackendStats {
                        name: backend.name.clone(),
                        ..Default::default()
                    });
                    sum.backends.len() - 1
                });
            sum.backends[at].counts.add(&backend.counts);
        }
    }
}

/// Takes what is true only now from the serving proxy.
fn take_gauges(to: &mut Stats, from: &Stats) {
    to.connections = from.connections;
    for service in &from.services {
        let Some(sum) = to.services.iter_mut().find(|s| s.name == service.name) else { continue };
        sum.connections = service.connections;
        sum.in_flight = service.in_flight;
        for backend in &service.backends {
            if let Some(sum) = sum.backends.iter_mut().find(|b| b.name == backend.name) {
                sum.in_flight = backend.in_flight;
                sum.ejected = backend.ejected;
            }
        }
    }
}
