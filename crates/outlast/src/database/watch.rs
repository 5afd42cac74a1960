//! Looks at this node's PostgreSQL again and again, and makes of it what decisions are founded on.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use outlast_consensus::boottime;
use outlast_core::agreed::{Confirm, Position};
use outlast_core::database::{Disk, Local, Proof, Pulse, Sender, Server, why_unfit};
use outlast_postgres::{
    Control, Demands, Fault, LookError, Postgres, ProcessState, Role, Seen, Standby, State, Write,
};

use super::kept::Memory;
use super::lag::Track;

/// How long a look, and a write that is tried, may take.
const LOOK_MAX: Duration = Duration::from_secs(2);
const WRITE_MAX: Duration = Duration::from_secs(2);

/// To read the names of the log's files.
const LOG_MAX: Duration = Duration::from_millis(500);

/// Stands for the switchover for which an agent before this one has closed PostgreSQL.
pub(super) const BEFORE: u64 = 0;

/// What one look brought.
#[derive(Debug)]
pub(super) struct Glance {
    process: ProcessState,
    seen: Option<Result<Seen, LookError>>,
    wrote: bool,
    disk: Option<Disk>,
    at: Option<Position>,
    redo: Option<u64>,
    system: Option<u64>,
    /// Of a primary to which not all others are connected.
    keeps_from: Option<u64>,
    slots: BTreeSet<String>,
    trouble: Option<String>,
}

/// Looks once. It takes a few seconds at most. A primary that is closed is not written to: what the next one does not get any
/// more would have to be rewound here.
pub(super) async fn glance(postgres: &Postgres, memory: &Memory, closed: bool) -> Glance {
    let process = postgres.process_state();
    let mut glance = Glance {
        process,
        seen: None,
        wrote: false,
        disk: None,
        at: None,
        redo: None,
        system: None,
        keeps_from: None,
        slots: BTreeSet::new(),
        trouble: None,
    };
    match process {
        ProcessState::Running | ProcessState::Stopped => {
            let seen = postgres.look_within(LOOK_MAX).await;
            let primary = seen.as_ref().is_ok_and(|seen| !seen.in_recovery());
            if primary {
                glance.wrote =
                    closed || postgres.write_probe(Write::Local, WRITE_MAX).await.is_ok();
            }
            if let Ok(seen) = &seen {
                look_at_log(postgres, seen, &mut glance).await;
            }
            // It may have been frozen meanwhile.
            glance.process = postgres.process_state();
            glance.seen = Some(seen);
        }
        ProcessState::Zombie | ProcessState::Gone => {
            look_at_disk(postgres, memory, &mut glance).await;
        }
    }
    glance
}

/// What others get from here.
async fn look_at_log(postgres: &Postgres, seen: &Seen, glance: &mut Glance) {
    let peers = &postgres.settings().peers;
    glance.slots = seen.keeps_for(peers.keys());
    let connected = |node: &&String| seen.standbys.iter().any(|standby| standby.name == **node);
    if seen.in_recovery() || peers.keys().all(|node| connected(&node)) {
        return;
    }
    // A disk that hangs must not hold up a look.
    match tokio::time::timeout(LOG_MAX, postgres.keeps_from()).await {
        Ok(Ok(from)) => glance.keeps_from = Some(from.0),
        Ok(Err(error)) => tracing::warn!(%error, "look for the oldest log"),
        Err(_elapsed) => {}
    }
}

async fn look_at_disk(postgres: &Postgres, memory: &Memory, glance: &mut Glance) {
    glance.disk = match postgres.inspect().await {
        Ok(outlast_postgres::Disk::Missing | outlast_postgres::Disk::Empty) => Some(Disk::Empty),
        // Whatever it is, it is kept aside and not lost.
        Ok(outlast_postgres::Disk::Foreign(why) | outlast_postgres::Disk::Broken(why)) => {
            glance.trouble = Some(why);
            Some(Disk::Broken)
        }
        Ok(outlast_postgres::Disk::Cluster(control)) => {
            glance.at = Some(position(&control));
            // Where there is an archive, what the primary lacks comes from there.
            let parameters = &postgres.settings().parameters;
            let archived =
                parameters.keys().any(|name| name.eq_ignore_ascii_case("restore_command"));
            glance.redo = (!archived).then_some(control.redo.0);
            glance.system = Some(control.system);
            let signal: PathBuf = postgres.settings().data_dir.join("standby.signal");
            let signal = tokio::task::spawn_blocking(move || signal.exists()).await;
            let standby = memory.standby || signal.unwrap_or(false) || recovers(control.state);
            Some(Disk::Data { standby })
        }
        Err(error) => {
            tracing::warn!(%error, "look at the data directory");
            None
        }
    };
}

fn recovers(state: State) -> bool {
    matches!(state, State::ShutDownInRecovery | State::InArchiveRecovery)
}

/// Where the log reaches at least.
fn position(control: &Control) -> Position {
    let end = control.checkpoint.max(control.min_recovery_end);
    Position { timeline: control.timeline.max(control.min_recovery_timeline), lsn: end.0 }
}

/// What is remembered from look to look.
#[derive(Debug, Default)]
pub(super) struct Watch {
    pub(super) local: Local,
    pulse: Pulse,
    /// The rule that was set, since when, and what shows that it has come true.
    rule: Option<(Confirm, std::time::Instant, Proof)>,
    /// Where the log of this primary has reached when.
    track: Track,
    /// What people want of settings that a standby must not have lower than its primary.
    pub(super) wished: Demands,
    /// Why PostgreSQL has not taken what was written into its configuration last.
    pub(super) unread: Option<String>,
    /// Our roles were made since it became primary.
    pub(super) has_roles: bool,
}

impl Watch {
    /// The rule was set: what was acknowledged under the one before has to reach those of this one.
    pub(super) fn set_rule(&mut self, rule: Confirm) {
        self.rule = Some((rule.clone(), std::time::Instant::now(), Proof::default()));
        self.local.rule = Some(rule);
        self.local.confirmed = false;
    }

    /// PostgreSQL was stopped or killed: nothing of what it did still holds.
    pub(super) fn ended(&mut self) {
        self.pulse = Pulse::default();
        self.rule = None;
        self.has_roles = false;
        self.track = Track::default();
        let local = &mut self.local;
        local.server = Server::Down;
        local.disk = Disk::Unknown;
        (local.writes, local.confirmed, local.receives, local.is_source) =
            (false, false, false, false);
        (local.rule, local.upstream, local.stopped, local.closed) = (None, None, None, None);
        (local.streams_to, local.slots) = (BTreeSet::new(), BTreeSet::new());
        (local.keeps_from, local.redo, local.replayed) = (0, None, 0);
        (local.flushed, local.lowers) = (None, false);
        local.needs_restart.clear();
        local.lags.clear();
    }

    /// Data of another database is none of ours, whatever it looks like.
    pub(super) fn refuse_foreign(&mut self, system: Option<u64>) {
        let local = &mut self.local;
        if let (Some(ours), Some(here)) = (system, local.system)
            && ours != here
            && matches!(local.disk, Disk::Data { .. })
        {
            local.trouble = format!("there is another database here, whose identifier is {here}");
            local.disk = Disk::Broken;
        }
    }

    /// Takes in what was seen.
    pub(super) fn take(&mut self, glance: Glance) {
        match (glance.process, glance.seen) {
            (ProcessState::Gone | ProcessState::Zombie, _) => {
                if self.local.server != Server::Down {
                    self.ended();
                }
                self.local.server = Server::Down;
                self.local.disk = glance.disk.unwrap_or_default();
                self.local.redo = glance.redo;
                if let Some(trouble) = glance.trouble {
                    self.local.trouble = trouble;
                }
                self.local.system = glance.system.or(self.local.system);
                if let Some(at) = glance.at {
                    self.local.reaches = at;
                }
            }
            (process, Some(Err(error))) => self.take_error(process, &error),
            (_, Some(Ok(seen))) => {
                self.take_seen(&seen, glance.wrote);
                self.local.slots = glance.slots;
                self.local.keeps_from = glance.keeps_from.unwrap_or(self.local.keeps_from);
            }
            (_, None) => {}
        }
    }

    fn take_error(&mut self, process: ProcessState, error: &LookError) {
        self.local.trouble = error.to_string();
        match error.fault {
            Fault::TimedOut => {
                if self.pulse.hangs(process == ProcessState::Stopped) {
                    self.local.server = Server::Hung;
                }
            }
            Fault::Refused | Fault::Starting => {
                self.pulse.answers();
                self.local.server = Server::Starting;
            }
            // It answers, if not as it should.
            Fault::TooMany | Fault::Other => self.pulse.answers(),
        }
        self.judge_write(false);
    }

    /// A write that went through counts no more after some time, also if no look comes back.
    pub(super) fn expire(&mut self) {
        self.local.writes &= self.pulse.may_write(boottime());
    }

    fn judge_write(&mut self, wrote: bool) {
        self.local.writes = self.pulse.writes(boottime(), wrote);
    }

    fn take_seen(&mut self, seen: &Seen, wrote: bool) {
        self.pulse.answers();
        self.judge_write(wrote);
        let local = &mut self.local;
        let above = seen.demands.above(self.wished);
        local.lowers = !above.is_empty();
        local.needs_restart = seen.pending_restart.iter().cloned().collect();
        local.needs_restart.extend(above.into_iter().map(str::to_owned));
        local.trouble = trouble(self.unread.as_deref(), &local.needs_restart);
        local.system = Some(seen.system);
        local.disk = Disk::Unknown;
        local.unfit = unfit(seen, local.free_bytes);
        let streams = seen.standbys.iter().filter(|standby| standby.state == "streaming");
        local.streams_to = streams.map(|standby| standby.name.clone()).collect();
        let reaches = Position { timeline: seen.timeline, lsn: seen.reach().0 };
        match &seen.role {
            Role::Primary { .. } => {
                local.server = Server::Primary;
                local.receives = false;
                let now = std::time::Instant::now();
                self.track.note(now, reaches.lsn);
                local.lags = self.track.lags(now, &seen.standbys);
                // The end that was reported stays the end.
                if local.closed.is_none_or(|begun| begun == BEFORE) {
                    local.reaches = reaches;
                }
                self.judge_rule(seen);
            }
            Role::Standby { receiver, replayed, holds, .. } => {
                local.server = Server::Standby;
                local.holds = *holds;
                local.replayed = replayed.map_or(0, |lsn| lsn.0);
                local.receives = receiver.as_ref().is_some_and(|r| r.status == "streaming");
                if local.stopped.is_none() {
                    local.reaches = reaches.max(local.reaches);
                }
            }
        }
    }

    /// Whether everything that was acknowledged under older rules would be acknowledged under this one.
    fn judge_rule(&mut self, seen: &Seen) {
        let Some((rule, since, proof)) = &mut self.rule else { return };
        let senders: Vec<Sender> = seen.standbys.iter().map(sender).collect();
        self.local.confirmed = proof.look(rule, since.elapsed(), seen.reach().0, &senders);
    }
}

fn sender(standby: &Standby) -> Sender {
    Sender {
        standby: standby.name.clone(),
        // One that is told to stop still releases what waits.
        streams: ["streaming", "stopping"].contains(&standby.state.as_str()),
        counts: ["sync", "quorum"].contains(&standby.sync_state.as_str()),
        flushed: standby.flushed.map_or(0, |flushed| flushed.0),
    }
}

/// What is wrong with one that answers.
fn trouble(unread: Option<&str>, needs_restart: &BTreeSet<String>) -> String {
    let names: Vec<&str> = needs_restart.iter().map(String::as_str).collect();
    let restart = || format!("needs a restart for {}", names.join(", "));
    let restart = (!names.is_empty()).then(restart);
    let all: Vec<String> = unread.map(str::to_owned).into_iter().chain(restart).collect();
    all.join("; ")
}

/// Why this member must not be chosen as primary.
fn unfit(seen: &Seen, free_bytes: u64) -> Option<String> {
    match &seen.role {
        Role::Standby { paused, apply_delay, .. } => why_unfit(*paused, *apply_delay, free_bytes),
        Role::Primary { .. } => why_unfit(false, Duration::ZERO, free_bytes),
    }
}
