//! `cargo xtask history`: nodes in a lab, a storm over them, and one order that must explain what clients saw.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};

use crate::args::Args;
use crate::{Verdict, out, tools, workspace};

pub(crate) const HELP: &str = "\
history [--seconds N] [--seed N] [--nodes 3|5]   kill, freeze and cut nodes at random; is what clients saw linearizable?

Starts a lab and gives its nodes over to a plan that is drawn from the seed: power losses, freezes, cuts both ways and one
way, losses and delays, now and then of a majority or of all. Two clients at each node put, get, compare and set, and delete
meanwhile. Then everything is healed, all nodes must agree again, and every key is read at each node. One order must
explain all that was seen: nothing acknowledged lost, nothing stale.

  --seconds N        how long (default 600, at most 3600)
  --seed N           what the plan is drawn from; printed, and another one each time if left out
  --nodes N          3 (default) or 5
  --engine NAME      embedded (default), or etcd with a member on each node
  --plan FILE        this plan instead: plan.txt of a run before, or one made by hand
  --stale            clients ask for what a node has instead of what is newest: a violation must be found
  --debug            the debug build, whose assertions look at more
  --check FILE       no storm; judges a history that was written down
  --format json      the report as one JSON object

Plan, history, report, and the journals and logs of the nodes are kept in target/history/SEED. The exit status is 1 if
no order explains the history, if the checker cannot tell, or if the nodes do not agree again.";

const SECONDS: u64 = 600;
const SECONDS_MAX: u64 = 3600;

const STORM: &str =
    "storm::one_order_explains_what_clients_saw_while_machines_died_and_the_network_broke";
const RECORDED: &str = "storm::one_order_explains_a_history_that_was_written_down";

pub(crate) fn run(mut args: Args) -> Result<Verdict> {
    let seconds = args.option("--seconds")?.unwrap_or(SECONDS).min(SECONDS_MAX);
    let seed = args.option("--seed")?.unwrap_or_else(any_seed);
    let nodes: u8 = args.option("--nodes")?.unwrap_or(3);
    if ![3, 5].contains(&nodes) {
        bail!("a storm is over 3 or 5 nodes");
    }
    let engine: String = args.option("--engine")?.unwrap_or_else(|| "embedded".to_owned());
    if !["embedded", "etcd"].contains(&engine.as_str()) {
        bail!("--engine is embedded or etcd");
    }
    let plan: Option<PathBuf> = args.option("--plan")?;
    let recorded: Option<PathBuf> = args.option("--check")?;
    let format: String = args.option("--format")?.unwrap_or_else(|| "text".to_owned());
    if !["text", "json"].contains(&format.as_str()) {
        bail!("--format is text or json");
    }
    let (stale, debug) = (args.flag("--stale"), args.flag("--debug"));
    args.finish()?;
    let mut environment = vec![("OUTLAST_HISTORY_SECONDS", seconds.to_string())];
    let mut words = vec!["test", "--locked", "-p", "outlast", "--test", "lab"];
    if !debug {
        words.push("--release");
    }
    if let Some(file) = recorded {
        environment.push(("OUTLAST_HISTORY_FILE", absolute(&file)?));
        words.extend(["--", "--exact", RECORDED, "--include-ignored", "--nocapture"]);
        return test(&words, &environment, false);
    }
    let dir = workspace::target().join("history").join(seed.to_string());
    environment.push(("OUTLAST_HISTORY_SEED", seed.to_string()));
    environment.push(("OUTLAST_HISTORY_NODES", nodes.to_string()));
    if engine == "etcd" {
        tools::install_some(&["etcd-server"])?;
    }
    environment.push(("OUTLAST_HISTORY_ENGINE", engine));
    environment.push(("OUTLAST_HISTORY_FRESH", (!stale).to_string()));
    environment.push(("OUTLAST_HISTORY_DIR", dir.display().to_string()));
    if let Some(file) = plan {
        environment.push(("OUTLAST_HISTORY_PLAN", absolute(&file)?));
    }
    words.extend(["--", "--exact", STORM, "--nocapture"]);
    let is_json = format == "json";
    let report = dir.join("report.json");
    // One of a run before must not be taken for this one's.
    drop(std::fs::remove_file(&report));
    let verdict = test(&words, &environment, is_json)?;
    if is_json {
        let text = std::fs::read_to_string(&report)
            .with_context(|| format!("there is no report: read {}", report.display()))?;
        out::line(text.trim_end());
    }
    Ok(verdict)
}

fn absolute(file: &Path) -> Result<String> {
    let file = file.canonicalize().with_context(|| format!("find {}", file.display()))?;
    Ok(file.display().to_string())
}

/// Different from run to run; it is printed.
fn any_seed() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

fn test(words: &[&str], environment: &[(&str, String)], quiet: bool) -> Result<Verdict> {
    let mut command = workspace::cargo(words);
    // What no order explains says more than where it was found.
    command.env("RUST_BACKTRACE", "0");
    command.envs(environment.iter().map(|(name, value)| (*name, value.as_str())));
    if quiet {
        command.stdout(Stdio::null());
    }
    let status = command.status().context("start cargo")?;
    Ok(if status.success() { Verdict::Good } else { Verdict::Bad })
}
