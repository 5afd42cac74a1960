//! `outlast proxy`: the data plane's own process. Started by the agent, not by people.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use outlast_core::time::Instant as Moment;
use outlast_host::steady;
use outlast_proxy::{Applying, Guard, Notice, Proxy, Refused};

use super::wire::{self, FromProxy, Hello, ToProxy};
use crate::rights;

/// How often a draining proxy looks whether it is done.
const DRAIN_LOOK: Duration = Duration::from_millis(100);

/// An agent that does not read its notices for this long is dropped.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a table may take until every worker uses it and fenced work has ended.
const SETTLE_MAX: Duration = Duration::from_secs(2);

/// What the guard's stack may take: it is locked in memory.
const GUARD_STACK: usize = 256 << 10;

/// How often somebody who waits for a table looks whether the agent has said something else.
const LISTEN_EVERY: Duration = Duration::from_millis(5);

/// The name of a proxy's control socket.
pub fn socket_path(data_dir: &Path, pid: u32) -> PathBuf {
    data_dir.join(format!("proxy-{pid}.sock"))
}

/// Runs the data plane until it has been drained.
pub fn run(data_dir: &Path, threads: usize) -> anyhow::Result<()> {
    let path = socket_path(data_dir, std::process::id());
    raise_descriptor_limit();
    let mut roots = rustls::RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(native.certs);
    // Whatever it opens by name is open now: it gives up the rights to more, before there is a second thread.
    let control = UnixListener::bind(&path).with_context(|| format!("bind {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .context("protect the control socket")?;
    let dir = std::fs::metadata(data_dir).context("look at the data directory")?;
    rights::give_up_as_data_plane(dir.uid() == rustix::process::geteuid().as_raw());
    let (proxy, mut notices) = Proxy::start(threads, roots).context("start the workers")?;
    let guard = proxy.guard();
    std::thread::Builder::new()
        .name("guard".to_owned())
        .stack_size(GUARD_STACK)
        .spawn(move || keep_watch(guard))
        .context("start the guard of the lease")?;
    let room = Arc::new(Room {
        proxy: Mutex::new(Some(proxy)),
        agent: Mutex::new(None),
        drain: Mutex::new(None),
        told: Condvar::new(),
    });

    let teller = room.clone();
    spawn("notices", move || {
        while let Some(notice) = notices.blocking_recv() {
            log(&notice);
            teller.tell(notice);
        }
    })?;
    let doorman = room.clone();
    spawn("control", move || {
        for agent in control.incoming().flatten() {
            let room = doorman.clone();
            if let Err(error) = spawn("agent", move || room.serve(agent)) {
                tracing::error!(%error, "serve an agent");
            }
        }
    })?;
    room.wait_for_drain();
    // Whoever looks for proxies from now on does not find this one.
    std::fs::remove_file(&path).ok();
    Ok(())
}

/// As many connections as the system allows this process: the default of 1024 is for programs that use select(2).
pub(crate) fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "raise the limit of open files");
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(body).context("start a thread")?;
    Ok(())
}

/// Whoever watches over the lease runs even when the machine is short of memory or of time, as far as it allows that.
fn keep_watch(guard: Guard) {
    if let Err(error) = steady::stay_in_memory() {
        tracing::warn!(
            %error,
            "keep the guard of the lease in memory; it may be late on a machine that is short of memory"
        );
    }
    if let Err(error) = steady::go_first() {
        tracing::info!(%error, "put the guard of the lease before other threads; it goes on without that");
    }
    guard.watch();
}

/// What a person should find here even if there is no agent.
fn log(notice: &Notice) {
    match notice {
        Notice::LeaseBegun => {
            tracing::info!("this node has a lease: what needs it is served");
        }
        Notice::LeaseEnded { open } => {
            tracing::warn!(
                open,
                "this node's lease has ended: what needs it is cut and not served"
            );
        }
        Notice::NotCut { reason } => tracing::error!(reason, "cut what the lease no longer covers"),
        Notice::Ejected { .. } | Notice::Returned { .. } | Notice::Suspect { .. } => {}
    }
}

/// What the process's threads share.
struct Room {
    proxy: Mutex<Option<Proxy>>,
    /// The agent that is told what happens: the latest one.
    agent: Mutex<Option<Arc<UnixStream>>>,
    drain: Mutex<Option<Instant>>,
    told: Condvar,
}

/// A table on its way into force.
struct Settling {
    generation: u64,
    applying: Applying,
    until: Instant,
    /// It has taken too long, and the agent was told so.
    late: bool,
}

/// Whether a read would not wait: for a message, or for the end.
fn has_message(stream: &UnixStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(stream, PollFlags::IN)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    // Whatever is wrong with it, the read will say.
    poll(&mut fds, Some(&at_once)) != Ok(0)
}

impl Room {
    fn with_proxy<R>(&self, body: impl FnOnce(&Proxy) -> R) -> Option<R> {
        self.proxy.lock().expect("no panic while held").as_ref().map(body)
    }

    fn tell(&self, notice: Notice) {
        let agent = self.agent.lock().expect("no panic while held");
        if let Some(stream) = agent.as_ref() {
            // An agent that has gone learns it from the next table's stats.
            wire::send(stream, &FromProxy::Notice(notice), &[]).ok();
        }
    }

    fn draining(&self) -> bool {
        self.drain.lock().expect("no panic while held").is_some()
    }

    /// Serves one agent until it goes.
    fn serve(&self, stream: UnixStream) {
        stream.set_write_timeout(Some(SEND_TIMEOUT)).ok();
        let stream = Arc::new(stream);
        let table = self
            .with_proxy(Proxy::table)
            .and_then(|t| serde_json::to_value(t).ok())
            .unwrap_or_default();
        let hello = Hello {
            pid: std::process::id(),
            build: crate::build_id().to_owned(),
            draining: self.draining(),
            table,
        };
        {
            // Held over the greeting, so that no notice comes before it.
            let mut agent = self.agent.lock().expect("no panic while held");
            if wire::send(&stream, &FromProxy::Hello(hello), &[]).is_err() {
                return;
            }
            *agent = Some(stream.clone());
        }
        let mut settling: Option<Settling> = None;
        loop {
            self.settle(&stream, &mut settling);
            match wire::receive::<ToProxy>(&stream) {
                Ok(Some((message, fds))) => self.obey(&stream, message, fds, &mut settling),
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "read from the agent");
                    break;
                }
            }
        }
        let mut agent = self.agent.lock().expect("no panic while held");
        if agent.as_ref().is_some_and(|a| Arc::ptr_eq(a, &stream)) {
            *agent = None;
        }
    }

    /// Says when a table is in force, and once if that takes too long; then it may still come, and the agent asks for
    /// counters again and again. Returns as soon as there is a message: a lease, above all, does not wait for a table.
    fn settle(&self, stream: &UnixStream, settling: &mut Option<Settling>) {
        while let Some(table) = settling {
            let generation = table.generation;
            let left = table.until.saturating_duration_since(Instant::now());
            match table.applying.wait(left.min(LISTEN_EVERY)) {
                Ok(()) => {
                    *settling = None;
                    self.answer(stream, &FromProxy::Applied { generation }, &[]);
                }
                Err(unsettled) if left.is_zero() && !table.late => {
                    table.late = true;
                    let reason = format!("not in force after {SETTLE_MAX:?}: {unsettled}");
                    self.answer(stream, &FromProxy::NotApplied { generation, reason }, &[]);
                }
                Err(_unsettled) if table.late || has_message(stream) => return,
                Err(_unsettled) => {}
            }
        }
    }

    fn obey(
        &self,
        stream: &UnixStream,
        message: ToProxy,
        fds: Vec<OwnedFd>,
        settling: &mut Option<Settling>,
    ) {
        let answer = match message {
            ToProxy::Apply { table, sockets } => {
                *settling = None;
                let generation = table.generation;
                let sockets: BTreeMap<SocketAddr, TcpListener> =
                    sockets.into_iter().zip(fds.into_iter().map(TcpListener::from)).collect();
                match self.with_proxy(|proxy| proxy.apply(*table, sockets)) {
                    Some(Ok(applying)) => {
                        let until = Instant::now() + SETTLE_MAX;
                        *settling = Some(Settling { generation, applying, until, late: false });
                        return;
                    }
                    Some(Err(Refused::NoSocket(missing))) => FromProxy::NotApplied {
                        generation,
                        reason: format!("no socket for {missing:?}"),
                    },
                    Some(Err(Refused::Tls(reason))) => FromProxy::NotApplied { generation, reason },
                    None => FromProxy::NotApplied {
                        generation,
                        reason: "the proxy is stopping".to_owned(),
                    },
                }
            }
            ToProxy::Vouch { until } => {
                self.with_proxy(|proxy| proxy.vouch(Moment::from_start(until)));
                return;
            }
            ToProxy::GiveSockets => {
                let sockets = self.with_proxy(Proxy::sockets).unwrap_or_default();
                let fds: Vec<BorrowedFd<'_>> = sockets.values().map(|s| s.as_fd()).collect();
                let message = FromProxy::Sockets { addresses: sockets.keys().copied().collect() };
                self.answer(stream, &message, &fds);
                return;
            }
            ToProxy::GiveStats => {
                FromProxy::Stats(self.with_proxy(Proxy::stats).unwrap_or_default())
            }
            ToProxy::Drain { deadline } => {
                let connections = self.with_proxy(|proxy| {
                    proxy.drain();
                    proxy.connections()
                });
                let mut drain = self.drain.lock().expect("no panic while held");
                let until = Instant::now() + deadline;
                *drain = Some(drain.map_or(until, |before| before.min(until)));
                self.told.notify_all();
                FromProxy::Draining { connections: connections.unwrap_or(0) }
            }
        };
        self.answer(stream, &answer, &[]);
    }

    /// Answers under the same lock as notices, so that two messages never mix.
    fn answer(&self, stream: &UnixStream, message: &FromProxy, fds: &[BorrowedFd<'_>]) {
        let agent = self.agent.lock().expect("no panic while held");
        if let Err(error) = wire::send(stream, message, fds) {
            tracing::warn!(%error, "answer the agent");
        }
        drop(agent);
    }

    /// Returns when a drain was asked for and is over.
    fn wait_for_drain(&self) {
        let mut drain = self.drain.lock().expect("no panic while held");
        loop {
            let wait = match *drain {
                None => Duration::from_secs(3600),
                Some(until) => {
                    let drained = self.with_proxy(Proxy::is_drained).unwrap_or(true);
                    if drained || until <= Instant::now() {
                        let open = self.with_proxy(Proxy::connections).unwrap_or(0);
                        tracing::info!(forced = open, "drained");
                        return;
                    }
                    DRAIN_LOOK
                }
            };
            drain = self.told.wait_timeout(drain, wait).expect("no panic while held").0;
        }
    }
}
