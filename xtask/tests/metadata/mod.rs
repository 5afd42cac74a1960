//! The workspace as cargo resolves it, for tests of its structure and of what it depends on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

pub(crate) fn package_names(metadata: &Value) -> BTreeMap<&str, &str> {
    list(&metadata["packages"]).map(|p| (text(&p["id"]), text(&p["name"]))).collect()
}

pub(crate) fn member_ids(metadata: &Value) -> BTreeSet<&str> {
    list(&metadata["workspace_members"]).map(text).collect()
}

/// Package id to the ids that it needs to be built or run; what only its tests need is left out.
pub(crate) fn dependencies(metadata: &Value) -> BTreeMap<&str, BTreeSet<&str>> {
    let counts = |dep: &&Value| list(&dep["dep_kinds"]).any(|kind| kind["kind"] != "dev");
    list(&metadata["resolve"]["nodes"])
        .map(|node| {
            let uses = list(&node["deps"]).filter(counts).map(|dep| text(&dep["pkg"])).collect();
            (text(&node["id"]), uses)
        })
        .collect()
}

/// What `cargo metadata` says of the locked dependencies, with these arguments beside.
pub(crate) fn metadata(arguments: &[&str]) -> Value {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked"])
        .args(arguments)
        .current_dir(root())
        .output()
        .expect("cargo runs this test, so it is there");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON")
}

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_owned()
}

pub(crate) fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("read {path}: {e}"))
}

pub(crate) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().expect("a list in cargo metadata").iter()
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().expect("a text in cargo metadata")
}
