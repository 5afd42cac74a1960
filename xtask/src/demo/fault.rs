//! What can befall a backend: how it is done, how we know that it was done, and how it is undone.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::Signal;

use super::stage::{Backend, Stage};
use crate::backend::{Behaviour, SLOWNESS};
use crate::children::wait_until;
use crate::{http, procs};

/// A signal needs a moment to take effect.
const EFFECT_LIMIT: Duration = Duration::from_secs(2);
/// A slow answer must be seen to be slow, with a little allowance for the clock.
const SLOW_ENOUGH: Duration = SLOWNESS.saturating_sub(Duration::from_millis(50));

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Kill,
    Freeze,
    Error500,
    Error500All,
    Slow,
}

impl Fault {
    pub(super) const ALL: [Fault; 5] =
        [Fault::Kill, Fault::Freeze, Fault::Error500, Fault::Error500All, Fault::Slow];

    pub(super) fn name(self) -> &'static str {
        match self {
            Fault::Kill => "kill",
            Fault::Freeze => "freeze",
            Fault::Error500 => "error 500",
            Fault::Error500All => "error 500 + health",
            Fault::Slow => "slow",
        }
    }

    /// What is done, for people.
    pub(super) fn deed(self) -> &'static str {
        match self {
            Fault::Kill => "is killed (SIGKILL)",
            Fault::Freeze => "is frozen (SIGSTOP)",
            Fault::Error500 => "answers 500 to requests; its /health still says ok",
            Fault::Error500All => "answers 500 to requests and to health probes",
            Fault::Slow => "answers after 3 s",
        }
    }

    pub(super) fn undeed(self) -> &'static str {
        match self {
            Fault::Kill => "is started again",
            Fault::Freeze => "goes on (SIGCONT)",
            Fault::Error500 | Fault::Error500All => "answers 200 again",
            Fault::Slow => "is fast again",
        }
    }

    pub(super) async fn inject(self, backend: &mut Backend) -> Result<()> {
        match self {
            Fault::Kill => backend.child.kill(),
            Fault::Freeze => backend.child.signal(Signal::STOP),
            Fault::Error500 => backend.behave(Behaviour::Error500).await,
            Fault::Error500All => backend.behave(Behaviour::Error500All).await,
            Fault::Slow => backend.behave(Behaviour::Slow).await,
        }
    }

    /// Looks at the backend itself, not at the proxy: an error says why the fault is not there.
    pub(super) async fn verify(self, backend: &Backend) -> Result<()> {
        let pid = backend.child.pid();
        match self {
            Fault::Kill => {
                anyhow::ensure!(procs::stat(pid).is_none(), "process {pid} is still there");
            }
            Fault::Freeze => {
                let stopped = wait_until(EFFECT_LIMIT, async || {
                    procs::stat(pid).is_some_and(|stat| stat.state == 'T')
                });
                anyhow::ensure!(stopped.await, "process {pid} is not stopped");
            }
            Fault::Error500 => verify_answers(backend, 500, 200).await?,
            Fault::Error500All => verify_answers(backend, 500, 500).await?,
            Fault::Slow => verify_slowness(backend).await?,
        }
        Ok(())
    }

    pub(super) async fn undo(self, stage: &mut Stage, at: usize) -> Result<()> {
        match self {
            Fault::Kill => stage.restart(at).await,
            Fault::Freeze => stage.backends[at].child.signal(Signal::CONT),
            Fault::Error500 | Fault::Error500All | Fault::Slow => {
                stage.backends[at].behave(Behaviour::Ok).await
            }
        }
    }
}

async fn verify_answers(backend: &Backend, work: u16, health: u16) -> Result<()> {
    for (path, expected) in [("GET /", work), ("GET /health", health)] {
        let (status, _) = http::ask(backend.work, path, "", super::stage::ASK_LIMIT).await?;
        anyhow::ensure!(status == expected, "{path} answers {status}, not {expected}");
    }
    Ok(())
}

async fn verify_slowness(backend: &Backend) -> Result<()> {
    let ask = async |path| {
        let start = Instant::now();
        let limit = SLOWNESS + EFFECT_LIMIT;
        http::ask(backend.work, path, "", limit).await.context("no answer at all")?;
        let took = start.elapsed();
        anyhow::ensure!(took >= SLOW_ENOUGH, "{path} answers after {took:.1?} already");
        Ok(())
    };
    tokio::try_join!(ask("GET /"), ask("GET /health"))?;
    Ok(())
}
