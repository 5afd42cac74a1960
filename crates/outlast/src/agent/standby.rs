//! Runs the commands of a standby: start, activate, stop.

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

/// Starts the standby's start or activate command; its end comes back as `Said::CommandDone`.
pub(super) fn begin(topology: &Topology, service: &str, epoch: Epoch, inbox: mpsc::Sender<Said>) {
    let job = match topology.services.get(service).map(|s| &s.pool) {
        Some(Pool::Pair(pair)) => match &pair.standby {
            Standby::Cold { start, start_limit, .. } => Some((start.clone(), *start_limit)),
            Standby::Warm { activate: Some(activate) } => Some((activate.clone(), ACTIVATE_MAX)),
            Standby::Hot | Standby::Warm { activate: None } => None,
        },
        Some(Pool::Balanced { .. }) | None => None,
    };
    let service = service.to_owned();
    // Bounded by its limit; reports its own end.
    drop(tokio::task::spawn(async move {
        let result = match job {
            Some((command, limit)) => run(&command, &service, epoch, limit).await,
            None => Ok(()),
        };
        // An agent that is ending needs no answer.
        inbox.send(Said::CommandDone { service, epoch, result }).await.ok();
    }));
}

/// Starts the stop command of a cold standby.
pub(super) fn stop(topology: &Topology, service: &str, epoch: Epoch) {
    let Some(Pool::Pair(pair)) = topology.services.get(service).map(|s| &s.pool) else { return };
    let Standby::Cold { stop: Some(stop), .. } = &pair.standby else { return };
    let (stop, service) = (stop.clone(), service.to_owned());
    // Bounded by STOP_MAX; logs its own end.
    drop(tokio::task::spawn(async move {
        if let Err(reason) = run(&stop, &service, epoch, STOP_MAX).await {
            tracing::error!(service, reason, "stop the standby");
        }
    }));
}

/// Runs a command to its end. The epoch goes along, so that the command can refuse an order that is older than one it obeyed.
async fn run(
    command: &Command,
    service: &str,
    epoch: Epoch,
    limit: Duration,
) -> Result<(), String> {
    let Some((program, arguments)) = command.0.split_first() else {
        return Err("the command is empty".to_owned());
    };
    let child = tokio::process::Command::new(program)
        .args(arguments)
        .env("OUTLAST_SERVICE", service)
        .env("OUTLAST_EPOCH", epoch.0.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    let child = child.map_err(|e| format!("start `{program}`: {e}"))?;
    match tokio::time::timeout(limit, child.wait_with_output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.lines().last().unwrap_or_default();
            Err(format!(
                "`{program}` ended with {}: {}",
                output.status,
                last.chars().take(200).collect::<String>()
            ))
        }
        Ok(Err(error)) => Err(format!("wait for `{program}`: {error}")),
        Err(_elapsed) => Err(format!("`{program}` took longer than {limit:?}")),
    }
}
