//! The verbs that run an agent, and those that speak to a running one.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use outlast::agent::admin::{self, Order};
use outlast::agent::{self, Options};
use tracing_subscriber::EnvFilter;

use crate::cli::{AtArgs, LogFormat, ProxyArgs, RunArgs, StopArgs};
use crate::{Outcome, output};

pub(crate) fn run(args: &RunArgs) -> anyhow::Result<Outcome> {
    log_to_stderr(args.log_format);
    let options = Options { file: args.file.clone(), node: args.node.clone() };
    Ok(if agent::run(&options)? { Outcome::Fine } else { Outcome::Mistakes })
}

pub(crate) fn proxy(args: &ProxyArgs) -> anyhow::Result<Outcome> {
    log_to_stderr(LogFormat::Json);
    outlast::dataplane::process::run(&args.data_dir, args.threads)?;
    Ok(Outcome::Fine)
}

pub(crate) fn keep_postgres(run_dir: &std::path::Path) -> anyhow::Result<Outcome> {
    outlast::database::keep(run_dir)?;
    Ok(Outcome::Fine)
}

pub(crate) fn guard_addresses() -> anyhow::Result<Outcome> {
    outlast::addresses::guard()?;
    Ok(Outcome::Fine)
}

/// `RUST_LOG` says how much; `info` if it is silent.
fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_unset| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => {
            builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).init();
        }
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}

/// Where the agent of these arguments has its data.
pub(crate) fn data_dir(at: &AtArgs) -> anyhow::Result<PathBuf> {
    if let Some(dir) = &at.data_dir {
        return Ok(dir.clone());
    }
    let name = at.file.display().to_string();
    let text = std::fs::read_to_string(&at.file).with_context(|| {
        format!("read {name} to find the agent's data directory; name the file with --file, or the directory with --data-dir")
    })?;
    // A file that is being edited may have mistakes; the place of the data is all that is asked of it.
    let topology = outlast::file::parse(&name, &text).map_err(|complaints| {
        anyhow::anyhow!("{complaints}\nname the data directory with --data-dir, or mend the file")
    })?;
    let file = std::path::absolute(&at.file)?;
    Ok(file.parent().unwrap_or(&file).join(&topology.cluster.data_dir))
}

/// Gives the running agent an order and prints what it says.
pub(crate) fn order(
    at: &AtArgs,
    path: &str,
    service: Option<String>,
    backend: Option<String>,
) -> anyhow::Result<Outcome> {
    give(at, path, &Order { service, backend, ..Order::default() })
}

/// Gives the agent an order, and prints what it says.
pub(crate) fn give(at: &AtArgs, path: &str, order: &Order) -> anyhow::Result<Outcome> {
    let body = serde_json::to_string(order)?;
    let dir = data_dir(at)?;
    let (status, said) = block_on(admin::ask(&dir, http::Method::POST, path, body))?;
    if status.is_success() {
        output::print(&format!("{}\n", said.trim_end()))?;
        Ok(Outcome::Fine)
    } else {
        output::complain(&format!("{}\n", said.trim_end()));
        Ok(Outcome::Mistakes)
    }
}

/// An agent may take this long to stop: it is not ready first, then proxies drain, then programs end.
const STOP_MAX: Duration = Duration::from_secs(120);

/// How often `outlast stop` says that it still waits.
const STILL_WAITING: Duration = Duration::from_secs(5);

/// Stops the running agent, and returns when it has ended.
pub(crate) fn stop(args: &StopArgs) -> anyhow::Result<Outcome> {
    let dir = data_dir(&args.at)?;
    // Held before it is told: its number may be another's soon after.
    let agent = admin::process(&dir)?;
    let outcome = order(&args.at, "/v1/stop", None, None)?;
    if args.no_wait || outcome != Outcome::Fine {
        return Ok(outcome);
    }
    let (pid, begun) = (agent.pid(), Instant::now());
    while !agent.exits_within(STILL_WAITING) {
        let waited = begun.elapsed();
        anyhow::ensure!(
            waited < STOP_MAX,
            "the agent, pid {pid}, has not ended within {STOP_MAX:?}; `outlast status` shows what it waits for, its log says why"
        );
        output::complain(&format!(
            "waiting for pid {pid} for {} s: it finishes what is open, then stops its programs\n",
            waited.as_secs()
        ));
    }
    output::print("stopped\n")?;
    Ok(Outcome::Fine)
}

pub(crate) fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(future)
}
