//! The workspace that these commands belong to, and cargo as they call it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::out;

/// The directory of the workspace's Cargo.toml.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_owned()
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// `cargo ARGS` at the root; whoever runs us runs cargo, so it is the right one.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    // What cargo tells us about our own package would make it build others anew that look at it.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command
}

/// The binary that was given, or a release build of this workspace.
pub(crate) fn outlast(given: Option<PathBuf>) -> Result<PathBuf> {
    let Some(given) = given else { return build_outlast() };
    given.canonicalize().with_context(|| format!("find {}", given.display()))
}

/// Builds the release binary, with cargo's own progress, and says where it is.
pub(crate) fn build_outlast() -> Result<PathBuf> {
    out::line("building outlast (release; the first time takes a few minutes)");
    let status = cargo(&["build", "--release", "--locked", "-p", "outlast"])
        .status()
        .context("start cargo build")?;
    if !status.success() {
        bail!("cargo build of outlast: {status}");
    }
    Ok(target().join("release/outlast"))
}
