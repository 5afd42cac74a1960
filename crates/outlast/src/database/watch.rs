//! Looks at this node's PostgreSQL again and again, and makes of it what decisions are founded on.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use outlast_core::agreed::{Confirm, Position};
use outlast_core::database::{Disk, Local, Server};
use outlast_postgres::{
    Control, Fault, LookError, Postgres, ProcessState, Role, Seen, State, Write,
};

use super::kept::Memory;

/// How long a look, and a write that is tried, may take.
const LOOK_MAX: Duration = Duration::from_secs(2);
const WRITE_MAX: Duration = Duration::from_secs(2);

/// Looks without an answer in a row until PostgreSQL counts as hung; one is enough if it is frozen.
const HANGS_AFTER: u32 = 2;

/// A write that went through counts for this long.
const WROTE_WITHIN: Duration = Duration::from_secs(4);

/// A rule for acknowledgements has been in force everywhere for this long before it is trusted.
const RULE_SETTLES: Duration = Duration::from_millis(300);

/// A disk on which less than this is free makes no primary.
const FREE_MIN: u64 = 64 << 20;

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
    system: Option<u64>,
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
        system: None,
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
    /// Looks without an answer in a row.
    silent: u32,
    wrote: Option<std::time::Instant>,
    /// The rule that was set, and since when.
    rule: Option<(Confirm, std::time::Instant)>,
    /// What has to be on enough others before the rule counts.
    mark: Option<u64>,
    /// Our roles were made since it became primary.
    pub(super) has_roles: bool,
}

impl Watch {
    /// The rule was set: what was acknowledged under the one before has to reach those of this one.
    pub(super) fn set_rule(&mut self, rule: Confirm) {
        self.rule = Some((rule.clone(), std::time::Instant::now()));
        self.mark = None;
        self.local.rule = Some(rule);
        self.local.confirmed = false;
    }

    /// PostgreSQL was stopped or killed: nothing of what it did still holds.
    pub(super) fn ended(&mut self) {
        self.silent = 0;
        self.wrote = None;
        self.rule = None;
        self.mark = None;
        self.has_roles = false;
        let local = &mut self.local;
        local.server = Server::Down;
        local.disk = Disk::Unknown;
        (local.writes, local.confirmed, local.receives, local.is_source) =
            (false, false, false, false);
        (local.rule, local.upstream, local.stopped, local.closed) = (None, None, None, None);
        local.streams_to = BTreeSet::new();
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
                if let Some(trouble) = glance.trouble {
                    self.local.trouble = trouble;
                }
                self.local.system = glance.system.or(self.local.system);
                if let Some(at) = glance.at {
                    self.local.reaches = at;
                }
            }
            (process, Some(Err(error))) => self.take_error(process, &error),
            (_, Some(Ok(seen))) => self.take_seen(&seen, glance.wrote),
            (_, None) => {}
        }
    }

    fn take_error(&mut self, process: ProcessState, error: &LookError) {
        self.local.trouble = error.to_string();
        match error.fault {
            Fault::TimedOut => {
                self.silent += 1;
                if process == ProcessState::Stopped || HANGS_AFTER <= self.silent {
                    self.local.server = Server::Hung;
                }
            }
            Fault::Refused | Fault::Starting => {
                self.silent = 0;
                self.local.server = Server::Starting;
            }
            // It answers, if not as it should.
            Fault::TooMany | Fault::Other => self.silent = 0,
        }
        self.judge_write(false);
    }

    fn judge_write(&mut self, wrote: bool) {
        if wrote {
            self.wrote = Some(std::time::Instant::now());
        }
        self.local.writes = self.wrote.is_some_and(|at| at.elapsed() <= WROTE_WITHIN);
    }

    fn take_seen(&mut self, seen: &Seen, wrote: bool) {
        self.silent = 0;
        self.judge_write(wrote);
        let local = &mut self.local;
        local.trouble = match seen.pending_restart.as_slice() {
            [] => String::new(),
            names => format!("needs a restart for {}", names.join(", ")),
        };
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
                // The end that was reported stays the end.
                if local.closed.is_none_or(|begun| begun == BEFORE) {
                    local.reaches = reaches;
                }
                self.judge_rule(seen);
            }
            Role::Standby { receiver, .. } => {
                local.server = Server::Standby;
                local.receives = receiver.as_ref().is_some_and(|r| r.status == "streaming");
                if local.stopped.is_none() {
                    local.reaches = reaches.max(local.reaches);
                }
            }
        }
    }

    /// Whether everything that was acknowledged under older rules would be acknowledged under this one.
    fn judge_rule(&mut self, seen: &Seen) {
        let Some((rule, since)) = &self.rule else { return };
        if rule.acks == 0 {
            self.local.confirmed = true;
            return;
        }
        // Every sender follows it: who is not named is not waited for.
        let follows =
            |name: &str, state: &str| rule.of.contains(name) == ["sync", "quorum"].contains(&state);
        let all_follow = seen
            .standbys
            .iter()
            .filter(|standby| standby.state == "streaming")
            .all(|standby| follows(&standby.name, &standby.sync_state));
        if !all_follow || since.elapsed() < RULE_SETTLES {
            return;
        }
        let mark = *self.mark.get_or_insert(seen.reach().0);
        let names: Vec<String> = rule.of.iter().cloned().collect();
        let count = usize::try_from(rule.acks).unwrap_or(usize::MAX);
        if seen.sync_caught_up(&names, count, outlast_postgres::Lsn(mark)) {
            self.local.confirmed = true;
        }
    }
}

/// Why this member must not be chosen as primary.
fn unfit(seen: &Seen, free_bytes: u64) -> Option<String> {
    if let Role::Standby { paused, apply_delay, .. } = &seen.role {
        if *paused {
            return Some("its replay is paused".to_owned());
        }
        if !apply_delay.is_zero() {
            return Some("it replays with a delay".to_owned());
        }
    }
    (0 < free_bytes && free_bytes < FREE_MIN)
        .then(|| format!("only {} MiB are free on its disk", free_bytes >> 20))
}
