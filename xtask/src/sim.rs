//! Every simulation with as many seeds as one has time for.

use anyhow::{Context, Result};

use crate::args::Args;
use crate::{Verdict, out, workspace};

pub(crate) const HELP: &str = "\
sim [--seeds N]         run every simulation with N seeds (default 20000), optimized

Pairs, agents that decide together, members of a database, and the storms of the consensus. A seed that breaks a law is
printed with what led there; OUTLAST_SEED=<seed> replays it.";

/// What is simulated: a crate, which of its tests, and how they are told the first of their seeds.
const SIMULATIONS: &[[&str; 3]] = &[["outlast-core", "sim::", ""], ["outlast-sim", "", "0.."]];

pub(crate) fn run(mut args: Args) -> Result<Verdict> {
    let seeds = args.option::<u64>("--seeds")?.unwrap_or(20_000);
    args.finish()?;
    let mut verdict = Verdict::Good;
    for [name, filter, from] in SIMULATIONS {
        out::line(format!("==> {name}, {seeds} seeds"));
        let test = ["test", "--release", "--locked", "-p", name, "--", "--show-output", filter];
        let mut command = workspace::cargo(&test);
        let status = command.env("OUTLAST_SEEDS", format!("{from}{seeds}")).status();
        if !status.context("start cargo")?.success() {
            verdict = Verdict::Bad;
        }
    }
    Ok(verdict)
}
