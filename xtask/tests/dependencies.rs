//! What the workspace depends on, held against deny.toml: cargo-deny itself is not everywhere, its rules are.
//!
//! Advisories are the one part that is left to cargo-deny: they need a database that changes every day.

#[expect(dead_code, reason = "what the layering test reads besides")]
mod metadata;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use metadata::{list, metadata, read, text};

/// The target that the tests run on; the other targets differ from it in a few platform crates.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The one registry that `unknown-registry = "deny"` leaves.
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

#[test]
fn every_dependency_is_allowed_by_deny_toml() {
    let rules = Rules::read(&read("deny.toml"));
    let faults = rules.faults(&metadata(&["--filter-platform", TARGET]));
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

/// The rules of deny.toml.
#[derive(Debug)]
struct Rules {
    licences: BTreeSet<String>,
    banned: BTreeSet<String>,
    /// Name and version of duplicates that are known.
    skip: Vec<(String, String)>,
}

impl Rules {
    fn read(page: &str) -> Rules {
        let page: toml::Table = page.parse().expect("deny.toml is TOML");
        let page = serde_json::to_value(page).expect("TOML has nothing that JSON has not");
        // Whoever weakens a rule that this test takes for granted has to change the test, too.
        for (rule, word) in [
            ("/bans/multiple-versions", json!("deny")),
            ("/bans/wildcards", json!("deny")),
            ("/sources/unknown-registry", json!("deny")),
            ("/sources/unknown-git", json!("deny")),
        ] {
            assert_eq!(page.pointer(rule), Some(&word), "{rule} of deny.toml");
        }
        let names = |list: &Value| -> BTreeSet<String> {
            self::list(list).map(|item| text(item.get("name").unwrap_or(item)).to_owned()).collect()
        };
        let skip = list(&page["bans"]["skip"])
            .map(|item| (text(&item["name"]).to_owned(), text(&item["version"]).to_owned()));
        Rules {
            licences: names(&page["licenses"]["allow"]),
            banned: names(&page["bans"]["deny"]),
            skip: skip.collect(),
        }
    }

    fn faults(&self, metadata: &Value) -> Vec<String> {
        let resolved: BTreeSet<&str> =
            list(&metadata["resolve"]["nodes"]).map(|node| text(&node["id"])).collect();
        let packages: Vec<&Value> =
            list(&metadata["packages"]).filter(|p| resolved.contains(text(&p["id"]))).collect();
        let mut faults = Vec::new();
        let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let mut unused: BTreeSet<&(String, String)> = self.skip.iter().collect();
        for package in packages {
            let (name, version) = (text(&package["name"]), text(&package["version"]));
            let shown = format!("{name} {version}");
            if self.banned.contains(name) {
                faults.push(format!("{shown} is banned"));
            }
            let known = self.skip.iter().find(|(n, v)| n == name && fits(version, v));
            match known {
                Some(skip) => drop(unused.remove(skip)),
                None => drop(versions.entry(name).or_default().insert(version)),
            }
            let Some(source) = package["source"].as_str() else {
                faults.extend(wildcards(package));
                // Our own: private, under the workspace's licence.
                continue;
            };
            if source != CRATES_IO {
                faults.push(format!("{shown} comes from {source}"));
            }
            match package["license"].as_str() {
                Some(licence) if allows(licence, &self.licences) => {}
                Some(licence) => faults.push(format!("{shown} has the licence {licence}")),
                None => faults.push(format!("{shown} names no licence")),
            }
        }
        for (name, versions) in versions.iter().filter(|(_, versions)| versions.len() > 1) {
            let versions: Vec<&str> = versions.iter().copied().collect();
            faults.push(format!("{name} is there as {}", versions.join(" and ")));
        }
        for (name, version) in unused {
            faults.push(format!("{name} {version} is to be skipped and is not there"));
        }
        faults
    }
}

/// Dependencies on any version of what is not ours.
fn wildcards(package: &Value) -> Vec<String> {
    let any = list(&package["dependencies"])
        .filter(|dep| dep["req"] == "*" && dep.get("path").is_none_or(Value::is_null));
    any.map(|dep| format!("{} takes any version of {}", text(&package["name"]), text(&dep["name"])))
        .collect()
}

/// Whether a version begins as written: `0.2.16` fits `0.2`.
fn fits(version: &str, written: &str) -> bool {
    version.strip_prefix(written).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Whether a licence expression (SPDX, annex D; `/` is an old way to write `OR`) can be met with what is allowed.
fn allows(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    let met = any_of(&mut rest, allowed);
    met && rest.is_empty()
}

fn any_of(rest: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    let mut met = all_of(rest, allowed);
    while let ["OR", behind @ ..] = rest {
        *rest = behind;
        met |= all_of(rest, allowed);
    }
    met
}

fn all_of(rest: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    let mut met = one(rest, allowed);
    while let ["AND", behind @ ..] = rest {
        *rest = behind;
        met &= one(rest, allowed);
    }
    met
}

fn one(rest: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    match *rest {
        ["(", behind @ ..] => {
            *rest = behind;
            let met = any_of(rest, allowed);
            let [")", behind @ ..] = *rest else { return false };
            *rest = behind;
            met
        }
        [licence, "WITH", exception, behind @ ..] => {
            *rest = behind;
            allowed.contains(&format!("{licence} WITH {exception}"))
        }
        [licence, behind @ ..] => {
            *rest = behind;
            allowed.contains(*licence)
        }
        [] => false,
    }
}

#[test]
fn a_licence_expression_is_met_or_not() {
    let allowed: BTreeSet<String> = ["MIT", "Apache-2.0", "Unicode-3.0"].map(str::to_owned).into();
    for (expression, met) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("MIT OR Apache-2.0", true),
        ("GPL-3.0 OR MIT", true),
        ("MIT/GPL-3.0", true),
        ("MIT AND GPL-3.0", false),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
        ("(MIT OR GPL-3.0) AND GPL-3.0", false),
        ("MIT OR GPL-3.0 AND GPL-2.0", true),
        ("Apache-2.0 WITH LLVM-exception", false),
        ("Apache-2.0 WITH LLVM-exception OR MIT", true),
        ("(MIT", false),
        ("", false),
    ] {
        assert_eq!(allows(expression, &allowed), met, "{expression}");
    }
}

/// A guard that cannot fail guards nothing.
#[test]
fn planted_faults_are_found() {
    let rules = Rules::read(
        r#"
        licenses = { allow = ["MIT"] }
        sources = { unknown-registry = "deny", unknown-git = "deny" }
        [bans]
        multiple-versions = "deny"
        wildcards = "deny"
        deny = [{ name = "bincode" }]
        skip = [{ name = "syn", version = "2" }, { name = "old", version = "1" }]
        "#,
    );
    let package = |name: &str, version: &str, licence: Value, source: Value| {
        json!({
            "id": format!("{name} {version}"), "name": name, "version": version,
            "license": licence, "source": source, "dependencies": [],
        })
    };
    let mut ours = package("ours", "0.1.0", Value::Null, Value::Null);
    ours["dependencies"] = json!([
        { "name": "rand", "req": "*" }, { "name": "other-of-ours", "req": "*", "path": "/x" },
    ]);
    let mit = |name, version| package(name, version, json!("MIT"), json!(CRATES_IO));
    let packages = [
        ours,
        mit("syn", "2.0.1"),
        mit("syn", "3.0.0"),
        mit("rand", "0.8.1"),
        mit("rand", "0.9.0"),
        mit("bincode", "1.0.0"),
        package("gnu", "1.0.0", json!("GPL-3.0"), json!(CRATES_IO)),
        package("nobodys", "1.0.0", Value::Null, json!(CRATES_IO)),
        package("git", "1.0.0", json!("MIT"), json!("git+https://example.com/git")),
        mit("windows-sys", "1.0.0"),
        mit("windows-sys", "2.0.0"),
    ];
    // What is not resolved for the target does not count.
    let nodes: Vec<Value> = packages[..packages.len() - 1]
        .iter()
        .map(|package| json!({ "id": package["id"] }))
        .collect();
    let faults = rules.faults(&json!({ "packages": packages, "resolve": { "nodes": nodes } }));
    assert_eq!(
        faults,
        [
            "ours takes any version of rand",
            "bincode 1.0.0 is banned",
            "gnu 1.0.0 has the licence GPL-3.0",
            "nobodys 1.0.0 names no licence",
            "git 1.0.0 comes from git+https://example.com/git",
            "rand is there as 0.8.1 and 0.9.0",
            "old 1 is to be skipped and is not there",
        ]
    );
}
