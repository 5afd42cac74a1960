//! `reaper`: runs a program as the init of a machine of its own would: whoever below it loses its parent becomes the
//! reaper's child and is waited for at once, and it ends when nobody below it is left.
//!
//! Without it, a postmaster that outlives its agent and then ends would stay as a dead process that nobody waits for,
//! and those who watch it would take it for alive.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, WaitOptions};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::Args;
use crate::{Verdict, procs};

/// Between the polite signal that we pass on and SIGKILL for all that are left.
const STOP_LIMIT: Duration = Duration::from_secs(8);
/// A signal about an ended child can be missed when several end at once.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// `reaper --pid-file FILE [--user NAME] -- PROGRAM ARGS`
pub(crate) fn run(mut args: Args) -> Result<Verdict> {
    let pid_file: PathBuf = args.option("--pid-file")?.context("--pid-file is missing")?;
    let user: Option<String> = args.option("--user")?;
    let words = args.rest()?;
    let own = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(own)).context("adopt orphans")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut ended = signal(SignalKind::child()).context("listen for SIGCHLD")?;
        let mut stop = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let mut command = Command::new(std::env::current_exe().context("find ourselves")?);
        command.args(["leash", "--gently", "--parent", &own.to_string()]);
        if let Some(user) = &user {
            command.args(["--user", user]);
        }
        // Waited for below, as everybody is.
        let child = command.arg("--").args(&words).spawn().context("start the program")?;
        let pid = Pid::from_child(&child);
        let written = pid_file.with_extension("new");
        std::fs::write(&written, pid.to_string()).context("write the pid file")?;
        std::fs::rename(&written, &pid_file).context("write the pid file")?;
        let mut deadline = None;
        while reap() {
            tokio::select! {
                _ = ended.recv() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
                _ = stop.recv() => {
                    let _ended = rustix::process::kill_process(pid, Signal::TERM).is_err();
                    deadline.get_or_insert(Instant::now() + STOP_LIMIT);
                }
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                kill_all_below();
            }
        }
        Ok(Verdict::Good)
    })
}

/// Waits for those that have ended; false if there is nobody left to wait for.
fn reap() -> bool {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) => return true,
            Err(_nobody) => return false,
        }
    }
}

fn kill_all_below() {
    let own = rustix::process::getpid().as_raw_pid();
    let below = procs::tree(own).into_iter().filter(|stat| stat.pid != own);
    for pid in below.filter_map(|stat| Pid::from_raw(stat.pid)) {
        let _gone = rustix::process::kill_process(pid, Signal::KILL).is_err();
    }
}
