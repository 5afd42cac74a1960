//! What is done to the running system, one deed after the other, each checked for having really happened.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::process::{Pid, Signal};
use serde_json::Value;

use super::Kind;
use super::load::Load;
use super::stage::{self, START_LIMIT, Stage, Version};
use crate::children::wait_until;

/// A backend leaves within this time.
const LEAVE_LIMIT: Duration = Duration::from_secs(15);
/// The agent notices within this time what became of a backend.
const NOTICE_LIMIT: Duration = Duration::from_secs(10);
/// A proxy that drains ends within this time: the product's own limit, and a little.
const DRAIN_LIMIT: Duration = Duration::from_secs(35);
/// How long nobody steers the proxy, at least.
const WITHOUT_AGENT: Duration = Duration::from_millis(300);
/// New connections that arrive while there is no proxy, or no agent.
const NEWCOMERS: usize = 10;
/// POSTs that are under way end within this time.
const SETTLE: Duration = Duration::from_millis(200);
pub(super) const POSTS_PERCENT: u32 = 20;

/// How long the deed took until everything was as before, by the deed's own measure.
pub(super) async fn doing(
    kind: Kind,
    turn: usize,
    stage: &mut Stage,
    load: &Load,
) -> Result<Duration> {
    match kind {
        Kind::Restart => restart(stage, turn).await,
        Kind::KillBackend => {
            // A POST whose backend is killed in the middle cannot be repeated, whoever stands in between.
            load.posts_percent.store(0, Ordering::Relaxed);
            tokio::time::sleep(SETTLE).await;
            let took = kill_backend(stage, turn).await;
            load.posts_percent.store(POSTS_PERCENT, Ordering::Relaxed);
            took
        }
        Kind::Reload => reload(stage, turn).await,
        Kind::BadFile => bad_file(stage).await,
        Kind::Upgrade => upgrade(stage).await,
        Kind::KillAgent => kill_agent(stage).await,
        Kind::KillProxy => kill_proxy(stage).await,
    }
}

/// From the signal until the agent believes again that the backend is up.
async fn restart(stage: &mut Stage, turn: usize) -> Result<Duration> {
    let at = turn % stage.backends.len();
    let (mark, begun) = (stage.journal.mark(), Instant::now());
    let backend = &mut stage.backends[at];
    backend.child.signal(Signal::TERM)?;
    let ended = wait_until(LEAVE_LIMIT, async || !backend.child.is_running()).await;
    ensure!(ended, "{} does not leave", backend.name);
    back_up(stage, at, mark, begun).await
}

async fn kill_backend(stage: &mut Stage, turn: usize) -> Result<Duration> {
    let at = turn % stage.backends.len();
    let (mark, begun) = (stage.journal.mark(), Instant::now());
    stage.backends[at].child.kill()?;
    back_up(stage, at, mark, begun).await
}

async fn back_up(stage: &mut Stage, at: usize, mark: usize, begun: Instant) -> Result<Duration> {
    let url = stage.backends[at].url.clone();
    stage.journal.wait_health(mark, &url, "down", NOTICE_LIMIT).await?;
    let mark = stage.journal.mark();
    stage.restart_backend(at)?;
    let up = stage.journal.wait_health(mark, &url, "up", NOTICE_LIMIT).await;
    stage.backends[at].child.check_running()?;
    up?;
    Ok(begun.elapsed())
}

/// Every other reload adds the second service, and the next takes it away again.
async fn reload(stage: &mut Stage, turn: usize) -> Result<Duration> {
    let version = if turn.is_multiple_of(2) { Version::Extended } else { Version::Plain };
    stage.write(version)?;
    let (mark, begun) = (stage.journal.mark(), Instant::now());
    let (obeyed, said) = stage.verb("reload").await?;
    ensure!(obeyed, "the reload was refused: {said}");
    let took = begun.elapsed();
    stage.journal.wait(mark, "topology_applied", NOTICE_LIMIT, |_any| true).await?;
    let second = stage.second;
    let follows = wait_until(NOTICE_LIMIT, async || match version {
        Version::Extended => matches!(stage::ask(second).await, Ok((200, _))),
        Version::Plain | Version::Bad => stage::ask(second).await.is_err(),
    });
    ensure!(follows.await, "the second listener is not as {version:?} says");
    Ok(took)
}

async fn bad_file(stage: &mut Stage) -> Result<Duration> {
    stage.write(Version::Bad)?;
    let (mark, begun) = (stage.journal.mark(), Instant::now());
    let (obeyed, said) = stage.verb("reload").await?;
    ensure!(!obeyed, "the bad file was taken: {said}");
    ensure!(said.contains("soon"), "the refusal does not say what is wrong: {said}");
    stage.journal.wait(mark, "topology_refused", NOTICE_LIMIT, |_any| true).await?;
    let applied = stage.journal.since(mark, "topology_applied").len();
    ensure!(applied == 0, "the bad file was taken");
    let took = begun.elapsed();
    ensure!(stage::ask(stage.service).await?.0 == 200, "the old file is no longer in force");
    stage.write(Version::Plain)?;
    Ok(took)
}

/// Until another proxy serves, the old one has ended, and the agent answers again.
async fn upgrade(stage: &mut Stage) -> Result<Duration> {
    stage.replace_binary()?;
    let (old, agent, mark) = (stage.journal.proxy()?, stage.agent.pid(), stage.journal.mark());
    let begun = Instant::now();
    let (obeyed, said) = stage.verb("upgrade").await?;
    ensure!(obeyed, "the upgrade was refused: {said}");
    let fits = |event: &Value| event["old"] == old;
    let event = stage.journal.wait(mark, "proxy_replaced", START_LIMIT, fits).await?;
    let status = stage.status().await?;
    let took = begun.elapsed();
    ensure!(event["new"] != old, "the proxy was not replaced");
    ensure!(stage.agent.is_running() && stage.agent.pid() == agent, "the agent's process changed");
    knows_its_backends(stage, mark, &status)?;
    let ended = wait_until(DRAIN_LIMIT, async || stage::is_gone(old)).await;
    ensure!(ended, "the old proxy, {old}, has not ended");
    Ok(took)
}

/// Until the next agent answers.
async fn kill_agent(stage: &mut Stage) -> Result<Duration> {
    let (proxy, mark, begun) = (stage.journal.proxy()?, stage.journal.mark(), Instant::now());
    stage.agent.kill()?;
    while begun.elapsed() < WITHOUT_AGENT {
        let (status, _) = stage::ask(stage.service).await?;
        ensure!(status == 200, "without an agent, the proxy answers {status}");
    }
    ensure!(!stage::is_gone(proxy), "the proxy ended with its agent");
    stage.start_agent()?;
    let status = stage.status().await?;
    let took = begun.elapsed();
    let fits = |event: &Value| event["pid"] == proxy;
    stage.journal.wait(mark, "proxy_adopted", START_LIMIT, fits).await?;
    knows_its_backends(stage, mark, &status)?;
    Ok(took)
}

/// An agent that carries on must not begin again with beliefs of its own.
fn knows_its_backends(stage: &mut Stage, mark: usize, status: &str) -> Result<()> {
    let plain: String =
        status.to_lowercase().chars().filter(|c| !c.is_whitespace() && *c != '"').collect();
    ensure!(!plain.contains("health:unknown"), "a backend's health is unknown again: {status}");
    let started = stage.journal.since(mark, "agent_started");
    ensure!(started.iter().all(|event| event["resumed"] == true), "the agent began anew");
    let changes = stage.journal.since(mark, "health_changed");
    ensure!(
        changes.iter().all(|event| event["from"] != "unknown"),
        "a backend's health was unknown again: {changes:?}"
    );
    Ok(())
}

/// Until the first of the connections that arrived without a proxy was served.
async fn kill_proxy(stage: &mut Stage) -> Result<Duration> {
    let (proxy, mark) = (stage.journal.proxy()?, stage.journal.mark());
    let pid = Pid::from_raw(proxy);
    let begun = Instant::now();
    if let Some(pid) = pid {
        rustix::process::kill_process(pid, Signal::KILL)?;
    }
    let service = stage.service;
    let mut newcomers = tokio::task::JoinSet::new();
    for _ in 0..NEWCOMERS {
        newcomers.spawn(async move { (stage::ask(service).await, begun.elapsed()) });
    }
    let mut first = None;
    while let Some(served) = newcomers.join_next().await {
        let (answer, took) = served?;
        let (status, _) = answer?;
        ensure!(status == 200, "a connection that waited for the new proxy got {status}");
        first.get_or_insert(took);
    }
    let fits = |event: &Value| event["pid"] == proxy;
    stage.journal.wait(mark, "proxy_lost", NOTICE_LIMIT, fits).await?;
    stage.journal.wait(mark, "proxy_started", START_LIMIT, |_any| true).await?;
    Ok(first.unwrap_or_default())
}
