//! The one command that checks everything: tools, format, lints, layers, tests, documentation.

use std::ffi::OsString;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::args::Args;
use crate::{Verdict, out, tools, workspace};

pub(crate) const HELP: &str = "\
test [FILTER...]        check everything: format, lints, layering, tests, documentation

Installs what the tests need first (Debian or Ubuntu, as root): packages with apt-get, Python packages into
target/test-tools/venv, PostgreSQL 16 and 18 into target/test-tools/postgres (or outlast-test-tools in the temporary
directory where other users cannot read the workspace). Each step runs even if one before it failed; the summary at the end lists all of them,
and the exit status is 1 if any failed.

With FILTERs, only the tests whose names contain one of them are run, and the other steps are left out.";

/// A check that is one run of cargo.
struct Step {
    name: &'static str,
    args: &'static [&'static str],
    env: &'static [(&'static str, &'static str)],
}

/// The layering test builds with the features of the whole workspace, so that the tests find the same artifacts.
const STEPS: &[Step] = &[
    Step { name: "format", args: &["fmt", "--all", "--check"], env: &[] },
    Step {
        name: "lints",
        args: &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"],
        env: &[],
    },
    Step {
        name: "layering",
        args: &["test", "--workspace", "--locked", "--test", "layering"],
        env: &[],
    },
    Step { name: "tests", args: &["test", "--workspace", "--locked", "--no-fail-fast"], env: &[] },
    // Twenty thousand seeds, and every guard taken away once: they need the optimizer.
    Step {
        name: "storms",
        args: &["test", "--release", "--locked", "-p", "outlast-sim", "--", "--show-output"],
        env: &[],
    },
    // More than twenty thousand changes of primary.
    Step {
        name: "failovers",
        args: &[
            "test",
            "--release",
            "--locked",
            "-p",
            "outlast-core",
            "--",
            "--show-output",
            "sim::database",
        ],
        env: &[("OUTLAST_SEEDS", "10000")],
    },
    Step {
        name: "documentation",
        args: &["doc", "--workspace", "--no-deps", "--document-private-items", "--locked"],
        env: &[("RUSTDOCFLAGS", "-Dwarnings")],
    },
];

struct Done {
    name: &'static str,
    took: Duration,
    fault: Option<anyhow::Error>,
}

pub(crate) fn run(args: Args) -> Result<Verdict> {
    let filters = args.rest()?;
    let mut done = vec![timed("tools", tools::install_all)];
    if filters.is_empty() {
        done.extend(STEPS.iter().map(|step| timed(step.name, || run_cargo(step, &[]))));
    } else {
        let step = STEPS.iter().find(|step| step.name == "tests").expect("it stands in the table");
        done.push(timed(step.name, || run_cargo(step, &filters)));
    }
    Ok(summary(&done))
}

fn timed(name: &'static str, work: impl FnOnce() -> Result<()>) -> Done {
    out::line(format!("==> {name}"));
    let start = Instant::now();
    let fault = work().err();
    let took = start.elapsed();
    match &fault {
        None => out::line(format!("==> {name}: ok, {:.1} s", took.as_secs_f64())),
        Some(error) => {
            out::line(format!("==> {name}: FAILED, {:.1} s: {error:#}", took.as_secs_f64()));
        }
    }
    Done { name, took, fault }
}

fn run_cargo(step: &Step, filters: &[String]) -> Result<()> {
    let mut command = workspace::cargo(step.args);
    if !filters.is_empty() {
        command.arg("--").args(filters);
    }
    command.envs(step.env.iter().copied());
    command.envs(tools::postgres_env()).env("OUTLAST_REAL", "1");
    // The driver is tested with these beside 15, and whole nodes in short.
    command.env("OUTLAST_PG_VERSIONS", "16,18");
    put_venv_on_path(&mut command)?;
    let status = command.status().context("start cargo")?;
    if !status.success() {
        bail!("cargo {}: {status}", step.args.join(" "));
    }
    Ok(())
}

/// Tests find the Python tools by name, like the Debian ones; daemons lie in sbin.
fn put_venv_on_path(command: &mut Command) -> Result<()> {
    let old = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(tools::venv_bin())
        .chain(std::env::split_paths(&old))
        .chain([std::path::PathBuf::from("/usr/sbin")]);
    let path: OsString = std::env::join_paths(dirs).context("extend PATH")?;
    command.env("PATH", path);
    Ok(())
}

fn summary(done: &[Done]) -> Verdict {
    let row = |step: &Done| {
        let result = if step.fault.is_none() { "ok" } else { "FAILED" };
        vec![step.name.to_owned(), format!("{:.1} s", step.took.as_secs_f64()), result.to_owned()]
    };
    out::line("");
    out::line(out::table(&["step", "time", "result"], &done.iter().map(row).collect::<Vec<_>>()));
    let failed = done.iter().filter(|step| step.fault.is_some()).count();
    if failed == 0 {
        out::line("everything holds");
        return Verdict::Good;
    }
    out::line(format!("{failed} of {} steps failed", done.len()));
    Verdict::Bad
}
