//! `cargo xtask fuzz`: every parser of bytes that is ours, fed by a machine that wants to break it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::args::Args;
use crate::{Verdict, out, workspace};

pub(crate) const HELP: &str = "\
fuzz [TARGET...] [--seconds N]  feeds every parser of bytes what a machine thinks will break it

Builds the fuzz targets with libFuzzer and the address sanitizer and runs each one for N seconds
(default 600, at most 3600). What was found before is kept and used again: corpora lie in target/fuzz.

  cargo xtask fuzz
  cargo xtask fuzz http_request chunked --seconds 60

A finding is printed with the file that repeats it; the exit status is then 1.";

const SECONDS: u64 = 600;
const SECONDS_MAX: u64 = 3600;

/// Bytes of one input.
const INPUT_MAX: u32 = 16 << 10;

/// Coverage as libFuzzer reads it, and the address sanitizer.
const RUSTFLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg=fuzzing -Clink-dead-code -Zsanitizer=address \
    -Ccodegen-units=1 -Cdebug-assertions";

const PLATFORM: &str = "x86_64-unknown-linux-gnu";

pub(crate) fn run(mut args: Args) -> Result<Verdict> {
    let seconds = args.option("--seconds")?.unwrap_or(SECONDS).min(SECONDS_MAX);
    let asked = args.rest()?;
    let all = targets()?;
    if let Some(unknown) = asked.iter().find(|name| !all.contains(name)) {
        bail!("there is no fuzz target {unknown}; there are {}", all.join(", "));
    }
    let chosen = if asked.is_empty() { all } else { asked };
    let built = build()?;
    let mut verdict = Verdict::Good;
    for name in &chosen {
        if !feed(&built, name, seconds)? {
            verdict = Verdict::Bad;
        }
    }
    Ok(verdict)
}

/// The names of the targets: one file each.
fn targets() -> Result<Vec<String>> {
    let dir = workspace::root().join("fuzz/fuzz_targets");
    let mut names: Vec<String> = std::fs::read_dir(&dir)
        .with_context(|| format!("list {}", dir.display()))?
        .filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

/// Builds all targets; returns where they are.
fn build() -> Result<PathBuf> {
    out::line("building the fuzz targets (the first time takes a few minutes)");
    let dir = workspace::target().join("fuzz/build");
    let status = workspace::cargo(&["build", "--release", "--locked", "--target", PLATFORM])
        .current_dir(workspace::root().join("fuzz"))
        .env("CARGO_TARGET_DIR", &dir)
        // The sanitizer's flags are unstable; this lets the pinned toolchain take them.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", RUSTFLAGS)
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .status()
        .context("start cargo build")?;
    if !status.success() {
        bail!("cargo build of the fuzz targets: {status}");
    }
    Ok(dir.join(PLATFORM).join("release"))
}

/// Runs one target. False: it found something.
fn feed(built: &Path, name: &str, seconds: u64) -> Result<bool> {
    let home = workspace::target().join("fuzz");
    let (corpus, findings) = (home.join("corpus").join(name), home.join("findings").join(name));
    let seeds = workspace::root().join("fuzz/seeds").join(name);
    for dir in [&corpus, &findings] {
        std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    let log = home.join(format!("{name}.log"));
    let output = std::fs::File::create(&log).with_context(|| format!("make {}", log.display()))?;
    let mut command = std::process::Command::new(built.join(name));
    command.arg(format!("-max_total_time={seconds}")).arg(format!("-max_len={INPUT_MAX}"));
    command.arg("-timeout=10").arg("-rss_limit_mb=2048").arg("-print_final_stats=1");
    command.arg(format!("-artifact_prefix={}/", findings.display())).arg(&corpus);
    if seeds.is_dir() {
        command.arg(&seeds);
    }
    let begun = Instant::now();
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(output)
        .status()
        .with_context(|| format!("start the fuzz target {name}"))?;
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    let runs = text.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    let took = Duration::from_secs(begun.elapsed().as_secs());
    let runs = runs.unwrap_or("?").trim();
    if status.success() {
        out::line(format!("{name:<18} {runs:>12} inputs in {took:?}, no finding"));
        return Ok(true);
    }
    let end: Vec<&str> = text.lines().rev().take(30).collect();
    out::line(format!(
        "{name:<18} {runs:>12} inputs in {took:?}, FINDING; inputs that repeat it: {}",
        findings.display()
    ));
    end.into_iter().rev().for_each(out::line);
    Ok(false)
}
