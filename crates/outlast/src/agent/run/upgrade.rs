//! Becomes the binary that is on disk now, once that has shown that it can run the file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::oneshot;

use super::{End, Loop, Said};

/// A new binary may take this long to read the topology file before it is trusted.
const TRIAL_MAX: Duration = Duration::from_secs(10);

/// Whoever asked for the upgrade; nobody, if it was a signal.
pub(super) type Asker = Option<oneshot::Sender<Result<String, String>>>;

/// Where our own binary lies, or the one that has replaced it.
fn own_binary() -> anyhow::Result<PathBuf> {
    let exe = std::env::current_exe().context("find our own binary")?;
    // Linux marks the path of a binary that was replaced.
    let path = exe.to_string_lossy();
    Ok(PathBuf::from(path.strip_suffix(" (deleted)").unwrap_or(&path)))
}

/// Replaces this process's image by the binary that is on disk now. Returns only if that failed.
pub(super) fn become_new_binary() -> anyhow::Error {
    use std::os::unix::process::CommandExt as _;
    let path = match own_binary() {
        Ok(path) => path,
        Err(error) => return error,
    };
    let error = std::process::Command::new(&path).args(std::env::args_os().skip(1)).exec();
    anyhow::Error::new(error).context(format!("become {}", path.display()))
}

/// Has the binary on disk read the topology file, so that this agent does not end in favour of one that cannot run.
async fn check_new_binary(file: &Path, agreed: Option<String>) -> Result<String, String> {
    let path = own_binary().map_err(|error| format!("{error:#}"))?;
    let shown = path.display();
    let mut trial = tokio::process::Command::new(&path);
    trial.arg("check").kill_on_drop(true);
    let trial = async {
        let Some(agreed) = agreed else {
            return trial.arg(file).stdin(std::process::Stdio::null()).output().await;
        };
        let piped = std::process::Stdio::piped;
        let trial = trial.arg("-").stdin(piped()).stdout(piped()).stderr(piped());
        let mut trial = trial.spawn()?;
        if let Some(mut input) = trial.stdin.take() {
            // One that does not read it says why by its status.
            input.write_all(agreed.as_bytes()).await.ok();
        }
        trial.wait_with_output().await
    };
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

impl Loop {
    /// Tries the binary on disk while everything goes on; `Said::Tried` comes back.
    pub(super) fn try_new_binary(&mut self, asker: Asker) {
        if self.trying {
            if let Some(asker) = asker {
                asker.send(Err("an upgrade is under way already".to_owned())).ok();
            }
            return;
        }
        let agreed = self.accord.agreed_text();
        let finds_data = || {
            let place = super::accord::place(&self.options.file);
            place.is_some_and(|(_, data_dir)| data_dir == self.data_dir)
        };
        if agreed.is_some() && !finds_data() {
            let reason = format!(
                "{} no longer says that the data is in {}; a new binary would not find what is in force",
                self.options.file.display(),
                self.data_dir.display()
            );
            match asker {
                Some(asker) => drop(asker.send(Err(reason))),
                None => tracing::error!(reason, "go on with the present binary"),
            }
            return;
        }
        self.trying = true;
        let (file, inbox) = (self.options.file.clone(), self.sender.clone());
        // Bounded by TRIAL_MAX; one at a time.
        drop(tokio::task::spawn(async move {
            let result = check_new_binary(&file, agreed).await;
            inbox.send(Said::Tried { result, asker }).await.ok();
        }));
    }

    /// Whether the agent is to become the binary that was tried.
    pub(super) fn hear_trial(&mut self, result: Result<String, String>, asker: Asker) -> bool {
        self.trying = false;
        let fits = result.is_ok();
        match (asker, result) {
            (Some(asker), result) => drop(asker.send(result)),
            (None, Err(reason)) => tracing::error!(reason, "go on with the present binary"),
            (None, Ok(_)) => {}
        }
        fits
    }

    /// Lets go of everything that goes on without an agent.
    pub(super) async fn leave(&mut self) -> End {
        // A proxy that has not greeted yet would not be found. Ends: a start is given up after its own limit.
        while self.plane.is_starting() {
            match self.links.recv().await {
                Some(from) => self.hear_proxy(from),
                None => break,
            }
        }
        self.processes.leave().await;
        // The answer to who asked for it must be out before this image is gone.
        tokio::time::sleep(Duration::from_millis(50)).await;
        End::Upgrade
    }
}
