//! Runs the commands of a standby: start, activate, stop.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use outlast_core::pair::Epoch;
use outlast_core::topology::{Command, Pool, Standby, Topology};
use tokio::sync::mpsc;

use super::run::Said;

/// A stop command may take this long; nobody waits for it.
const STOP_MAX: Duration = Duration::from_secs(60);

/// An activate command may take this long.
const ACTIVATE_MAX: Duration = Duration::from_secs(60);

/// Bytes at the end of a log that are looked at for its last line.
const SHOWN_MAX: u64 = 4096;

/// Starts the standby's start or activate command; its end comes back as `Said::CommandDone`.
pub(super) fn begin(
    topology: &Topology,
    data_dir: &Path,
    service: &str,
    epoch: Epoch,
    inbox: mpsc::Sender<Said>,
) {
    let job = match topology.services.get(service).map(|s| &s.pool) {
        Some(Pool::Pair(pair)) => match &pair.standby {
            Standby::Cold { start, start_limit, .. } => Some((start.clone(), *start_limit)),
            Standby::Warm { activate: Some(activate) } => Some((activate.clone(), ACTIVATE_MAX)),
            Standby::Hot | Standby::Warm { activate: None } => None,
        },
        Some(Pool::Balanced { .. }) | None => None,
    };
    let (service, log) = (service.to_owned(), log_path(data_dir, service));
    // Bounded by its limit; reports its own end.
    drop(tokio::task::spawn(async move {
        let result = match job {
            Some((command, limit)) => run(&command, &service, epoch, limit, &log).await,
            None => Ok(()),
        };
        // An agent that is ending needs no answer.
        inbox.send(Said::CommandDone { service, epoch, result }).await.ok();
    }));
}

/// Starts the stop command of a cold standby.
pub(super) fn stop(topology: &Topology, data_dir: &Path, service: &str, epoch: Epoch) {
    let Some(Pool::Pair(pair)) = topology.services.get(service).map(|s| &s.pool) else { return };
    let Standby::Cold { stop: Some(stop), .. } = &pair.standby else { return };
    let (stop, service, log) = (stop.clone(), service.to_owned(), log_path(data_dir, service));
    // Bounded by STOP_MAX; logs its own end.
    drop(tokio::task::spawn(async move {
        if let Err(reason) = run(&stop, &service, epoch, STOP_MAX, &log).await {
            tracing::error!(service, reason, "stop the standby");
        }
    }));
}

/// Where the commands of a service's standby write their standard error. A file, not a pipe: what the command leaves running
/// may keep it, and neither waits for us to read nor ends when we go.
fn log_path(data_dir: &Path, service: &str) -> PathBuf {
    data_dir.join(format!("standby-{service}.log"))
}

/// Runs a command to its end. The epoch goes along, so that the command can refuse an order that is older than one it obeyed.
async fn run(
    command: &Command,
    service: &str,
    epoch: Epoch,
    limit: Duration,
    log: &Path,
) -> Result<(), String> {
    let Some((program, arguments)) = command.0.split_first() else {
        return Err("the command is empty".to_owned());
    };
    let shown = log.display();
    let file = File::options().create(true).append(true).open(log);
    let file = file.map_err(|e| format!("open {shown}: {e}"))?;
    let before = file.metadata().map_or(0, |m| m.len());
    let child = tokio::process::Command::new(program)
        .args(arguments)
        .env("OUTLAST_SERVICE", service)
        .env("OUTLAST_EPOCH", epoch.0.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file)
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    let mut child = child.map_err(|e| format!("start `{program}`: {e}"))?;
    match tokio::time::timeout(limit, child.wait()).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => {
            Err(format!("`{program}` ended with {status}: {}", last_line(log, before)))
        }
        Ok(Err(error)) => Err(format!("wait for `{program}`: {error}")),
        Err(_elapsed) => Err(format!("`{program}` took longer than {limit:?}")),
    }
}

/// The last line that was written behind the first `before` bytes, as far as it is worth showing.
fn last_line(log: &Path, before: u64) -> String {
    let mut said = Vec::new();
    let mut read = || -> std::io::Result<()> {
        let mut file = File::open(log)?;
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(before.max(end.saturating_sub(SHOWN_MAX))))?;
        file.take(SHOWN_MAX).read_to_end(&mut said).map(drop)
    };
    // Without it, the exit status is all that can be told.
    read().ok();
    let said = String::from_utf8_lossy(&said);
    said.lines().last().unwrap_or_default().chars().take(200).collect()
}
