//! Three machines with every kind of name server on each, two servers that a name may lead to, and a client.

use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use super::net::{Net, Place};
use super::report::Who;
use super::systems::{self, CLIENT, NAME, PLACES, PRIMARY, SECONDARY, SERVERS};
use super::watch::{Seen, Watch};
use super::wire::Answer;
use crate::bench::addresses;
use crate::children::{Child, TempDir};
use crate::postgres::{monotonic, sample_for};

/// All servers answer as they should within this, or something is broken.
const WHOLE_LIMIT: Duration = Duration::from_secs(60);
/// All is well once all have answered alike for so long.
const CALM: Duration = Duration::from_millis(500);
/// Between two looks of a wait.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What was on its way when a server was killed has come by then.
const ON_ITS_WAY: Duration = Duration::from_millis(50);
/// An endpoint that is started listens by then.
const NOISE_MIN: Duration = Duration::from_millis(1);

/// What a name server does not reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    Off,
    FromPrimary,
}

/// One name server.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) who: Who,
    pub(super) place: Place,
    child: Option<Child>,
}

#[derive(Debug)]
pub(super) struct Stage {
    net: Net,
    outlast: Option<PathBuf>,
    /// In the order of the sockets that ask them.
    pub(super) servers: Vec<Server>,
    primary: Option<Child>,
    _secondary: Child,
    watch: Watch,
    /// What was seen since the last step began.
    seen: Vec<Seen>,
    dir: TempDir,
}

/// The longest that the asker was late, in words.
fn late(time: Duration) -> Option<String> {
    (NOISE_MIN < time).then(|| format!("the asker itself was late by {} ms", time.as_millis()))
}

impl Stage {
    pub(super) async fn up(who: &[Who], outlast: Option<&Path>) -> Result<Stage> {
        let dir = TempDir::new("dns-moves")?;
        if let Some(outlast) = outlast {
            systems::certify(outlast, dir.path()).await?;
        }
        let net = Net::up(&PLACES, dir.path()).await?;
        let primary = systems::endpoint(&net, PRIMARY, dir.path())?;
        let secondary = systems::endpoint(&net, SECONDARY, dir.path())?;
        let mut servers = Vec::new();
        for place in SERVERS {
            for who in who {
                servers.push(Server { who: *who, place, child: None });
            }
        }
        let targets: Vec<(Place, SocketAddr)> = servers
            .iter()
            .map(|server| (CLIENT, systems::address(server.who, server.place)))
            .collect();
        let watch = Watch::start(sockets(&net, &targets)?, NAME)?;
        let mut stage = Stage {
            net,
            outlast: outlast.map(Path::to_owned),
            servers,
            primary: Some(primary),
            _secondary: secondary,
            watch,
            seen: Vec::new(),
            dir,
        };
        for at in 0..stage.servers.len() {
            stage.start(at)?;
        }
        stage.whole().await?;
        Ok(stage)
    }

    /// Ends what has children of its own before it is ended by force.
    pub(super) async fn down(self) {
        for server in self.servers {
            if let Some(child) = server.child {
                child.stop().await;
            }
        }
    }

    pub(super) fn start(&mut self, at: usize) -> Result<()> {
        let (who, place) = (self.servers[at].who, self.servers[at].place);
        let outlast = self.outlast.as_deref();
        let child = systems::start(&self.net, who, place, outlast, self.dir.path())?;
        self.servers[at].child = Some(child);
        Ok(())
    }

    /// SIGKILL; once this is over, nothing that it has said is on its way any more.
    pub(super) async fn kill(&mut self, at: usize) -> Result<()> {
        let child = self.servers[at].child.take();
        child.context("it does not run")?.kill()?;
        sample_for(ON_ITS_WAY).await;
        Ok(())
    }

    /// Has servers stand still, or go on.
    pub(super) fn signal(&self, which: &[usize], signal: Signal) -> Result<()> {
        let mut children = which.iter().filter_map(|at| self.servers[*at].child.as_ref());
        children.try_for_each(|child| child.signal(signal))
    }

    /// SIGKILL for the primary; when that was.
    pub(super) fn kill_primary(&mut self) -> Result<u64> {
        let mut child = self.primary.take().context("the primary does not run")?;
        let at = monotonic();
        child.kill()?;
        Ok(at)
    }

    /// The primary runs, all ports are plugged, and every server says so.
    pub(super) async fn whole(&mut self) -> Result<()> {
        for place in SERVERS {
            self.net.plug(place, true).await?;
            self.net.way(place, PRIMARY, true).await?;
        }
        if self.primary.is_none() {
            self.primary = Some(systems::endpoint(&self.net, PRIMARY, self.dir.path())?);
        }
        self.all_say(PRIMARY).await
    }

    /// Waits until every server has said nothing else for a while.
    pub(super) async fn all_say(&mut self, place: Place) -> Result<()> {
        let wanted = Answer::Address(place.ip);
        let limit = monotonic() + nanos(WHOLE_LIMIT);
        loop {
            let from = monotonic();
            self.seen.clear();
            self.watch.take();
            sample_for(CALM).await;
            let now = monotonic();
            let seen = self.watch.take();
            let says = |target| {
                let mut all = seen.iter().filter(|s| s.target == target && from <= s.at).peekable();
                all.peek().is_some() && all.all(|seen| seen.answer == wanted)
            };
            let others: Vec<usize> = (0..self.servers.len()).filter(|at| !says(*at)).collect();
            if others.is_empty() {
                return Ok(());
            }
            if limit < now {
                bail!(
                    "not all say {} within {WHOLE_LIMIT:?}:{}",
                    place.ip,
                    self.about(&others, &seen)
                );
            }
            for server in self.servers.iter_mut() {
                if let Some(child) = &mut server.child {
                    child.check_running()?;
                }
            }
        }
    }

    fn about(&self, which: &[usize], seen: &[Seen]) -> String {
        let told = which.iter().map(|at| {
            let Server { who, place, child } = &self.servers[*at];
            let last = seen.iter().rev().find(|seen| seen.target == *at).map(|seen| seen.answer);
            let log = child.as_ref().map(Child::log_tail).unwrap_or_default();
            format!("\n{} on {} says {last:?}{log}", who.name(), place.name)
        });
        told.collect()
    }

    /// Forgets what was seen so far.
    pub(super) fn forget(&mut self) {
        self.watch.take();
        self.watch.late();
        self.seen.clear();
    }

    /// All that was seen since the last time that it was forgotten.
    pub(super) fn seen(&mut self) -> &[Seen] {
        self.seen.extend(self.watch.take());
        &self.seen
    }

    /// Looks again and again until what was seen is enough; false if it is not within the limit.
    pub(super) async fn see(&mut self, limit: Duration, enough: impl Fn(&[Seen]) -> bool) -> bool {
        let end = monotonic() + nanos(limit);
        while !enough(self.seen()) {
            if end < monotonic() {
                return false;
            }
            sample_for(LOOK_EVERY).await;
        }
        true
    }

    /// In words, if whoever asks was too late to measure by.
    pub(super) fn noise(&self) -> Option<String> {
        late(self.watch.late())
    }

    /// Asks the servers of one machine on that machine itself.
    pub(super) fn watch_inside(&self, place: Place) -> Result<(Vec<Who>, Watch)> {
        let here = self.servers.iter().filter(|server| server.place == place);
        let who: Vec<Who> = here.map(|server| server.who).collect();
        let targets: Vec<(Place, SocketAddr)> =
            who.iter().map(|who| (place, systems::address(*who, place))).collect();
        Ok((who, Watch::start(sockets(&self.net, &targets)?, NAME)?))
    }

    /// Cuts a machine off, from all or from the primary alone, or takes it back.
    pub(super) async fn cut(&self, place: Place, cut: Cut, is_cut: bool) -> Result<()> {
        match cut {
            Cut::Off => self.net.plug(place, !is_cut).await,
            Cut::FromPrimary => self.net.way(place, PRIMARY, !is_cut).await,
        }
    }

    /// Who of our agents leads the agreement, by the newest term that any has logged.
    pub(super) fn leader(&self) -> Option<String> {
        let logs = SERVERS.map(|place| {
            let name = format!("{}-{}.log", Who::Outlast.key(), place.name);
            let bytes = std::fs::read(self.dir.path().join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        });
        let all = logs.iter().flat_map(|log| log.lines().filter_map(addresses::led));
        all.max().map(|(_, name)| name)
    }
}

/// One for each server, where it is asked from.
fn sockets(net: &Net, targets: &[(Place, SocketAddr)]) -> Result<Vec<UdpSocket>> {
    ensure!(!targets.is_empty(), "nobody is there to ask");
    let open = |(from, server): &(Place, SocketAddr)| {
        net.inside(*from, || {
            let socket = UdpSocket::bind((from.ip, 0)).context("open a socket")?;
            socket.connect(server).with_context(|| format!("connect to {server}"))?;
            Ok(socket)
        })
    };
    targets.iter().map(open).collect()
}

pub(super) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
