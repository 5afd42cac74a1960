//! Becomes the binary that is on disk now, once that has shown that it can run the file.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;

use super::{End, Loop};

/// A new binary may take this long to read the topology file before it is trusted.
const TRIAL_MAX: Duration = Duration::from_secs(10);

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

impl Loop {
    /// Has the binary on disk read the topology file, so that this agent does not end in favour of one that cannot run.
    pub(super) async fn check_new_binary(&self) -> Result<String, String> {
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
    pub(super) async fn leave(&mut self) -> End {
        self.processes.leave().await;
        // The answer to who asked for it must be out before this image is gone.
        tokio::time::sleep(Duration::from_millis(50)).await;
        End::Upgrade
    }
}
