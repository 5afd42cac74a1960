//! `outlast certs`, as a person uses it, and what it makes, as links use it.

#![expect(clippy::unwrap_used, reason = "helpers of tests, outside the test functions themselves")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use outlast_link::{Identity, IdentityFiles};
use serde_json::Value;

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let dir = std::env::temp_dir().join(format!("outlast-certs-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }

    /// Exit status, standard output and standard error.
    fn run(&self, line: &str) -> (i32, String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_outlast"))
            .args(line.split(' '))
            .current_dir(&self.0)
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    fn good(&self, line: &str) -> String {
        let (status, out, err) = self.run(line);
        assert_eq!((status, err.as_str()), (0, ""), "{line}");
        out
    }

    fn bad(&self, line: &str) -> String {
        let (status, out, err) = self.run(line);
        assert_eq!((status, out.as_str()), (2, ""), "{line}: {err}");
        err
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn identity(&self, node: &str) -> Identity {
        let file = |name: &str| self.path("certs").join(name);
        let files = IdentityFiles {
            ca: file("ca.pem"),
            cert: file(&format!("{node}.pem")),
            key: file(&format!("{node}.key")),
            crl: Some(file("ca.crl")),
        };
        Identity::from_pem(&files.read().unwrap()).unwrap()
    }

    fn shown(&self) -> Vec<Value> {
        let (_, out, _) = self.run("certs show --format json");
        let shown: Value = serde_json::from_str(&out).unwrap();
        shown["certificates"].as_array().unwrap().clone()
    }

    fn serial(&self, node: &str) -> String {
        let shown = self.shown();
        let one = shown.iter().find(|one| one["node"] == node).unwrap();
        one["serial"].as_str().unwrap().to_owned()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

const TOPOLOGY: &str = "\
[node.a]
address = \"10.0.0.1\"
[node.b]
address = \"fd00::2\"
";

#[test]
fn a_ca_and_certificates_are_made_and_can_be_used() {
    let dir = Dir::new("made");
    std::fs::write(dir.path("outlast.toml"), TOPOLOGY).unwrap();
    let out = dir.good("certs init --cluster shop");
    assert!(
        out.contains("outlast CA of shop ") && out.contains("Next: outlast certs issue"),
        "{out}"
    );
    let out = dir.good("certs issue a b");
    assert!(out.contains("certs/a.pem, certs/a.key  node `a`, serial "), "{out}");
    for (name, expected) in
        [("ca.key", 0o600), ("a.key", 0o600), ("ca.pem", 0o644), ("a.pem", 0o644)]
    {
        assert_eq!(mode(&dir.path("certs").join(name)), expected, "{name}");
    }
    for node in ["a", "b"] {
        let identity = dir.identity(node);
        assert_eq!((identity.nodes(), identity.fault()), (&[node.to_owned()][..], None));
    }
    let shown = dir.shown();
    assert_eq!(shown.len(), 3);
    assert_eq!((&shown[0]["ca"], &shown[0]["state"]), (&true.into(), &"good".into()));
    assert!((3648..=3650).contains(&shown[0]["days_left"].as_i64().unwrap()));
    assert_eq!(shown[1]["addresses"], serde_json::json!(["10.0.0.1"]));
    assert_eq!(shown[2]["addresses"], serde_json::json!(["fd00::2"]));
    assert!((363..=365).contains(&shown[2]["days_left"].as_i64().unwrap()));
    let table = dir.good("certs show");
    assert_eq!(table.lines().count(), 3);
    assert!(table.contains("a.pem   node `a`") && table.contains("364 days left"), "{table}");
}

#[test]
fn nothing_is_overwritten_and_mistakes_say_what_to_do() {
    let dir = Dir::new("mistakes");
    let err = dir.bad("certs issue a");
    assert!(
        err.contains("there is no certs/ca.pem") && err.contains("outlast certs init"),
        "{err}"
    );
    dir.good("certs init --cluster shop");
    let before = std::fs::read(dir.path("certs/ca.key")).unwrap();
    let err = dir.bad("certs init --cluster shop");
    assert!(err.contains("certs/ca.pem exists already") && err.contains("--dir"), "{err}");
    assert_eq!(std::fs::read(dir.path("certs/ca.key")).unwrap(), before);

    dir.good("certs issue a");
    let err = dir.bad("certs issue b a");
    assert!(err.contains("outlast certs rotate a"), "{err}");
    assert!(!dir.path("certs/b.pem").exists(), "all or none");
    let err = dir.bad("certs rotate b");
    assert!(err.contains("there is no certs/b.pem: `outlast certs issue b`"), "{err}");
    for name in ["ca", "a-", "a.b", "é"] {
        let err = dir.bad(&format!("certs issue {name}"));
        assert!(err.contains("name"), "{err}");
    }
    let err = dir.bad("certs revoke nobody");
    assert!(err.contains("neither a node `nobody`") && err.contains("outlast certs show"), "{err}");

    std::fs::write(dir.path("shop.toml"), TOPOLOGY).unwrap();
    let err = dir.bad("certs issue c --topology shop.toml");
    assert!(err.contains("shop.toml has no node `c`; its nodes are a, b"), "{err}");
    let err = dir.bad("certs issue a --topology none.toml");
    assert!(err.contains("read none.toml"), "{err}");
    let err = dir.bad("certs issue b --days 10000");
    assert!(err.contains("the CA itself is good until "), "{err}");
    let (status, _, err) = dir.run("certs issue b --days 0");
    assert_eq!(status, 2, "{err}");
    let err = dir.bad("certs show --dir nowhere");
    assert!(err.contains("there is no nowhere/ca.pem"), "{err}");

    std::fs::write(dir.path("certs/ca.key"), rcgen_key()).unwrap();
    let err = dir.bad("certs issue b");
    assert!(err.contains("certs/ca.key is the key of no CA in certs/ca.pem"), "{err}");
}

fn rcgen_key() -> String {
    rcgen::KeyPair::generate().unwrap().serialize_pem()
}

#[test]
fn a_rotated_certificate_is_another_one_and_the_old_one_can_be_revoked() {
    let dir = Dir::new("rotated");
    std::fs::write(dir.path("outlast.toml"), TOPOLOGY).unwrap();
    dir.good("certs init --cluster shop");
    dir.good("certs issue a b");
    std::fs::remove_file(dir.path("outlast.toml")).unwrap();
    let (old, key) = (dir.serial("a"), std::fs::read(dir.path("certs/a.key")).unwrap());
    let out = dir.good("certs rotate a --days 10");
    assert!(out.contains(&format!("outlast certs revoke {old}")), "{out}");
    let new = dir.serial("a");
    assert_ne!(old, new);
    assert_ne!(std::fs::read(dir.path("certs/a.key")).unwrap(), key);
    assert_eq!(mode(&dir.path("certs/a.key")), 0o600);
    let shown = dir.shown();
    assert_eq!(shown[1]["addresses"], serde_json::json!(["10.0.0.1"]), "taken over");
    dir.good(&format!("certs revoke {old}"));
    assert_eq!(dir.identity("a").fault(), None, "the new one is good");

    let out = dir.good("certs revoke b");
    assert!(out.contains("is revoked in certs/ca.crl"), "{out}");
    let out = dir.good("certs revoke b");
    assert!(out.contains("was revoked before"), "{out}");
    let fault = dir.identity("b").fault().map(str::to_owned);
    assert_eq!(fault.as_deref(), Some("this node's own certificate: it was revoked"));
    assert_eq!(dir.identity("a").fault(), None);
    let (status, out, _) = dir.run("certs show");
    assert_eq!(status, 1);
    assert!(
        out.lines().any(|line| line.contains("node `b`") && line.ends_with("revoked")),
        "{out}"
    );
    // The first revocation is still there after the second.
    dir.good("certs issue c");
    let out = dir.good(&format!("certs revoke {old}"));
    assert!(out.contains("was revoked before"), "{out}");
    dir.good("certs rotate b");
    assert_eq!(dir.identity("b").fault(), None);
}

#[test]
fn one_ca_takes_the_place_of_another_by_the_steps_of_the_manual() {
    let dir = Dir::new("ca");
    dir.good("certs init --cluster shop");
    dir.good("certs issue a b");
    dir.good("certs revoke b");
    let at = |name: &str| dir.path(name);
    let old = std::fs::read_to_string(at("certs/ca.pem")).unwrap();
    // A new CA beside the old one; both are trusted.
    dir.good("certs init --cluster shop --dir new");
    let new = std::fs::read_to_string(at("new/ca.pem")).unwrap();
    std::fs::write(at("certs/ca.pem"), format!("{new}{old}")).unwrap();
    assert_eq!(dir.identity("a").fault(), None, "the old one is still good");
    // The new one signs from now on.
    std::fs::copy(at("new/ca.key"), at("certs/ca.key")).unwrap();
    let err = dir.bad("certs revoke a");
    assert!(err.contains("is of another CA than ca.key"), "{err}");
    dir.good("certs rotate a b");
    assert_eq!((dir.identity("a").fault(), dir.identity("b").fault()), (None, None));
    // Revocations of both CAs stand side by side.
    let serial = dir.serial("b");
    dir.good(&format!("certs revoke {serial}"));
    let lists = std::fs::read_to_string(at("certs/ca.crl")).unwrap();
    assert_eq!(lists.matches("BEGIN X509 CRL").count(), 2);
    assert!(dir.identity("b").fault().is_some());
    dir.good("certs rotate b");
    // The old one goes.
    std::fs::write(at("certs/ca.pem"), &new).unwrap();
    assert_eq!((dir.identity("a").fault(), dir.identity("b").fault()), (None, None));
    assert_eq!(dir.shown().len(), 3);
}

#[test]
fn help_teaches() {
    let dir = Dir::new("help");
    let out = dir.good("certs --help");
    for word in
        ["init", "issue", "rotate", "revoke", "show", "docs/certificates.md", "crl = \"ca.crl\""]
    {
        assert!(out.contains(word), "{word}");
    }
}
