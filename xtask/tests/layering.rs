//! Who may use whom: the workspace as cargo resolves it, held against the table in ARCHITECTURE.md.

mod metadata;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use metadata::{dependencies, member_ids, metadata, package_names, read, root};

/// Crates whose whole dependency tree stays inside the workspace.
const PURE: [&str; 3] = ["outlast-core", "outlast-model", "outlast-raft"];
/// Crates that the compiler keeps from clock, files, sockets and threads.
const NO_STD: [&str; 2] = ["outlast-core", "outlast-raft"];
/// What a crate without I/O must be kept from where `no_std` does not already do it.
const BANNED_IN_MODEL: [&str; 4] = ["Instant::now", "SystemTime::now", "std::fs", "std::net"];

/// Crate to what it may use or does use.
type Edges = BTreeMap<String, BTreeSet<String>>;

#[test]
fn every_crate_uses_only_what_architecture_md_allows() {
    let allowed = table(&read("ARCHITECTURE.md"));
    let metadata = metadata(&[]);
    let faults =
        [layer_faults(&allowed, &workspace_edges(&metadata)), purity_faults(&metadata)].concat();
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn core_and_raft_cannot_reach_the_standard_library() {
    for name in NO_STD {
        let source = read(&format!("crates/{name}/src/lib.rs"));
        assert_eq!(no_std_fault(&source), None, "{name}");
    }
}

#[test]
fn model_bans_clock_files_and_sockets() {
    let path = root().join("crates/outlast-model/clippy.toml");
    let Ok(bans) = std::fs::read_to_string(&path) else {
        println!("no {} yet", path.display());
        return;
    };
    let missing: Vec<_> = BANNED_IN_MODEL.iter().filter(|ban| !bans.contains(**ban)).collect();
    assert!(missing.is_empty(), "{} does not ban {missing:?}", path.display());
}

/// A guard that cannot fail guards nothing.
#[test]
fn planted_faults_are_found() {
    let page = "| crate | what it is | may use |\n| --- | --- | --- |\n| `a` | x | `b` |\n| `b` | y | – |\n| `old` | z | – |\n\n| `c` | another table | `a` |\n";
    let allowed = table(page);
    let edges = |list: &[(&str, &[&str])]| -> Edges {
        list.iter()
            .map(|(from, to)| ((*from).to_owned(), to.iter().map(|t| (*t).to_owned()).collect()))
            .collect()
    };
    assert_eq!(allowed, edges(&[("a", &["b"]), ("b", &[]), ("old", &[])]));
    let faults = layer_faults(&allowed, &edges(&[("a", &["b"]), ("b", &["a"]), ("c", &[])]));
    assert_eq!(
        faults,
        [
            "`b` must not use `a`: its row in ARCHITECTURE.md does not allow it",
            "`c` has no row in the table of ARCHITECTURE.md",
            "ARCHITECTURE.md has a row for `old`, which is not in the workspace",
        ]
    );

    let resolved = serde_json::json!({
        "workspace_members": ["core 1", "model 1", "raft 1"],
        "packages": [
            { "id": "core 1", "name": "outlast-core" },
            { "id": "model 1", "name": "outlast-model" },
            { "id": "raft 1", "name": "outlast-raft" },
            { "id": "serde 1", "name": "serde" },
            { "id": "proptest 1", "name": "proptest" },
        ],
        "resolve": { "nodes": [
            { "id": "core 1", "deps": [
                { "pkg": "serde 1", "dep_kinds": [{ "kind": null }] },
                { "pkg": "proptest 1", "dep_kinds": [{ "kind": "dev" }] },
            ] },
            { "id": "model 1", "deps": [{ "pkg": "core 1", "dep_kinds": [{ "kind": null }] }] },
            { "id": "raft 1", "deps": [] },
            { "id": "serde 1", "deps": [] },
        ] },
    });
    assert_eq!(
        purity_faults(&resolved),
        ["`outlast-core` must not depend on `serde`", "`outlast-model` must not depend on `serde`"]
    );

    assert_eq!(no_std_fault("#![no_std]\n#[cfg(test)]\nextern crate std;\n"), None);
    assert!(no_std_fault("#![no_std]\nextern crate std;\n").is_some());
    assert!(no_std_fault("// #![no_std]\n").is_some());
}

/// The rows of the table that starts with `| crate | what it is | may use |`.
fn table(page: &str) -> Edges {
    let names = |cell: &str| -> BTreeSet<String> {
        cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    let mut lines = page.lines().skip_while(|line| !is_head(line));
    assert!(
        lines.next().is_some(),
        "ARCHITECTURE.md has no table `| crate | what it is | may use |`"
    );
    lines
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells: Vec<_> = line.trim_matches('|').split('|').collect();
            let [name, _, uses] = cells[..] else { panic!("three cells expected: {line}") };
            let name = names(name).pop_first().unwrap_or_else(|| panic!("no crate name: {line}"));
            (name, names(uses))
        })
        .collect()
}

fn is_head(line: &str) -> bool {
    let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
    cells == ["crate", "what it is", "may use"]
}

fn layer_faults(allowed: &Edges, used: &Edges) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, uses) in used {
        let Some(may_use) = allowed.get(name) else {
            faults.push(format!("`{name}` has no row in the table of ARCHITECTURE.md"));
            continue;
        };
        for used in uses.difference(may_use) {
            faults.push(format!(
                "`{name}` must not use `{used}`: its row in ARCHITECTURE.md does not allow it"
            ));
        }
    }
    for name in allowed.keys().filter(|name| !used.contains_key(*name)) {
        faults
            .push(format!("ARCHITECTURE.md has a row for `{name}`, which is not in the workspace"));
    }
    faults
}

/// Each member's dependencies on other members, tests' own left out.
fn workspace_edges(metadata: &Value) -> Edges {
    let names = package_names(metadata);
    let members = member_ids(metadata);
    let uses = dependencies(metadata);
    members
        .iter()
        .map(|id| {
            let ours = uses[id].iter().filter(|used| members.contains(*used));
            (names[id].to_owned(), ours.map(|used| names[used].to_owned()).collect())
        })
        .collect()
}

/// Everything outside the workspace that a pure crate would bring along.
fn purity_faults(metadata: &Value) -> Vec<String> {
    let names = package_names(metadata);
    let members = member_ids(metadata);
    let uses = dependencies(metadata);
    let mut faults = Vec::new();
    for pure in PURE {
        let start = members.iter().find(|id| names[*id] == pure);
        let start = *start.unwrap_or_else(|| panic!("`{pure}` is not in the workspace"));
        let mut seen = BTreeSet::from([start]);
        let mut open = vec![start];
        while let Some(id) = open.pop() {
            open.extend(uses.get(id).into_iter().flatten().filter(|used| seen.insert(used)));
        }
        for id in seen.iter().filter(|id| !members.contains(*id)) {
            faults.push(format!("`{pure}` must not depend on `{}`", names[id]));
        }
    }
    faults
}

fn no_std_fault(source: &str) -> Option<String> {
    let lines: Vec<_> = source.lines().map(str::trim).collect();
    if !lines.contains(&"#![no_std]") {
        return Some("it must be `#![no_std]`".to_owned());
    }
    let bare = lines.iter().enumerate().find(|(at, line)| {
        **line == "extern crate std;" && (*at == 0 || lines[at - 1] != "#[cfg(test)]")
    });
    bare.map(|(at, _)| format!("line {}: `extern crate std` belongs under `#[cfg(test)]`", at + 1))
}
