//! `outlast check` and `outlast schema` as a shell sees them.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

const BROKEN: &str = "[cluster]\nnam = \"shop\"\n";

fn outlast(args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_outlast"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("outlast starts");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(input.as_bytes()).expect("outlast reads its input");
    drop(stdin);
    child.wait_with_output().expect("outlast ends")
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).expect("outlast prints UTF-8")
}

#[test]
fn a_file_that_makes_sense_ends_in_0() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/shop.toml");
    let output = outlast(&["check", example], "");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(output.stderr.is_empty());
}

#[test]
fn a_face_that_others_can_reach_is_warned_of_and_no_mistake() {
    let check = |face: &str, arguments: &[&str]| {
        let file = format!("[cluster]\nname = \"shop\"\nface = \"{face}\"\n");
        let output = outlast(&[&["check", "-"], arguments].concat(), &file);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        text(&output.stdout).to_owned()
    };
    let said = "`face` at 0.0.0.0:9400 shows the names and addresses of all parts";
    assert!(check("0.0.0.0:9400", &[]).contains(&format!("warning: {said}")));
    for harmless in ["127.0.0.1:9400", "[::1]:9400", "off"] {
        assert!(!check(harmless, &[]).contains("warning"), "{harmless}");
    }
    let printed: Value =
        serde_json::from_str(&check("0.0.0.0:9400", &["--format", "json"])).expect("it is JSON");
    assert!(printed["warnings"][0].as_str().is_some_and(|w| w.starts_with(said)), "{printed}");
    assert_eq!(printed["mistakes"], json!([]));
}

/// What `outlast check` warns of.
fn warnings(file: &str) -> Vec<String> {
    let output = outlast(&["check", "-"], file);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let lines = text(&output.stdout).lines();
    lines.filter_map(|line| line.strip_prefix("warning: ").map(str::to_owned)).collect()
}

/// Nodes with these addresses, and a database on all of them with these lines.
fn with_database(addresses: &[&str], lines: &str) -> String {
    let nodes = addresses.iter().zip('a'..);
    let nodes = nodes.map(|(address, name)| format!("[node.{name}]\naddress = \"{address}\"\n"));
    let database = format!("[postgres.orders]\nversion = 16\n{lines}\n");
    nodes.collect::<String>() + &database
}

#[test]
fn layouts_that_never_run_or_never_fail_over_are_warned_of() {
    let three = ["127.0.0.1", "127.0.0.2", "127.0.0.3"];
    let parameter = |value: &str| format!("parameters = {{ recovery_min_apply_delay = {value} }}");
    for (file, said) in [
        (with_database(&[], ""), "postgres.orders: never started, because"),
        (with_database(&three[..1], ""), "postgres.orders: never started, because"),
        (with_database(&three[..2], ""), "postgres.orders: no failover, because two of two"),
        (
            with_database(&three, "[consensus]\nvoters = [\"a\", \"b\"]"),
            "postgres.orders: no failover where a voter is lost, because [consensus] has 2",
        ),
        (
            with_database(&["10.0.0.1", "10.0.0.2", "10.0.0.3"], ""),
            "node.a is at 10.0.0.1, and [cluster] has no `tls`",
        ),
        (
            with_database(&three, "priorities = { a = 0, b = 0, c = 0 }"),
            "postgres.orders: nobody takes over by itself, because all of its members have",
        ),
        (
            with_database(&three, "priorities = { b = 0, c = 0 }"),
            "postgres.orders: nobody takes over from node `a` by itself",
        ),
        (
            with_database(&three, &parameter("\"5min\"")),
            "postgres.orders: nobody takes over by itself, because `recovery_min_apply_delay`",
        ),
    ] {
        let warnings = warnings(&file);
        assert!(warnings.len() == 1 && warnings[0].starts_with(said), "{file}: {warnings:?}");
    }
    let etcd = "[consensus]\nkind = \"etcd\"\nendpoints = [\"http://127.0.0.9:2379\"]";
    for file in [
        with_database(&three, ""),
        with_database(&three, "nodes = [\"a\"]"),
        with_database(&three, "priorities = { c = 0 }"),
        with_database(&three, &parameter("0")),
        with_database(&three, &parameter("\"0 s\"")),
        with_database(&three[..2], etcd),
        "[node.a]\naddress = \"10.0.0.1\"\n".to_owned(),
    ] {
        assert_eq!(warnings(&file), [""; 0], "{file}");
    }
}

#[test]
fn mistakes_end_in_1_and_go_to_standard_error() {
    let output = outlast(&["check", "-"], BROKEN);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let expected = "\
error: [cluster] has no key `nam`
 --> standard input:2:1
  |
2 | nam = \"shop\"
  | ^^^ write `name`

standard input: 1 mistake
";
    assert_eq!(text(&output.stderr), expected);
}

#[test]
fn every_verb_knows_both_words_for_what_people_read() {
    for word in ["text", "table"] {
        let output = outlast(&["check", "--format", word, "-"], BROKEN);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("write `name`"));
        let history = ["history", "--data-dir", "/nonexistent", "--format", word];
        let output = outlast(&history, "");
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains("is `outlast run` running with this file"));
    }
}

#[test]
fn mistakes_can_be_read_by_programs() {
    let output = outlast(&["check", "--format", "json", "-"], BROKEN);
    assert_eq!(output.status.code(), Some(1));
    let printed: Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    let expected = json!({
        "file": "standard input",
        "count": 1,
        "mistakes": [{
            "line": 2,
            "column": 1,
            "message": "[cluster] has no key `nam`",
            "help": "write `name`",
        }],
    });
    assert_eq!(printed, expected);
}

#[test]
fn a_file_that_cannot_be_read_ends_in_2_and_says_what_to_do() {
    let output = outlast(&["check", "/no/such/file.toml"], "");
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr);
    assert!(said.contains("/no/such/file.toml"), "{said}");
    assert!(said.contains("outlast check shop.toml"), "{said}");
}

#[test]
fn the_schema_is_json() {
    let output = outlast(&["schema"], "");
    assert_eq!(output.status.code(), Some(0));
    let schema: Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_outlast"))
        .arg("schema")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("outlast starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("outlast ends");
    assert_eq!(text(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn help_teaches_by_example() {
    for args in [["--help"].as_slice(), &["check", "--help"], &["schema", "--help"]] {
        let output = outlast(args, "");
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains("Examples:\n  outlast "), "{args:?}");
    }
}

/// Three nodes, and whatever else is given.
fn three(parts: &str) -> String {
    let nodes: String = ["a", "b", "c"]
        .iter()
        .zip(1..)
        .map(|(node, number)| format!("[node.{node}]\naddress = \"127.0.0.{number}\"\n"))
        .collect();
    format!("{nodes}{parts}")
}

#[test]
fn how_long_clients_can_be_wrong_is_told_for_each_address_and_name() {
    let file = three(
        "[address.edge]\nip = \"10.0.0.100/24\"\ninterface = \"eth0\"\nnodes = [\"a\", \"b\"]\n\
         [dns.\"example.com\"]\nrecords = [\n\
         { name = \"api\", type = \"A\", ttl = \"60s\", policy = \"failover\", primary = \"192.0.2.1\", secondary = \"192.0.2.2\",\n\
           probe = { http = \"/health\", every = \"10s\", timeout = \"2s\", fall = 3 } },\n\
         { name = \"www\", type = \"A\", ttl = \"60s\", values = [\"192.0.2.1\"] },\n]\n",
    );
    let output = outlast(&["check", "-"], &file);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let (_, table) = said.split_once("clients are wrong for").expect("there is a table of it");
    let row = |part: &str| -> Vec<&str> {
        let row = table.lines().find_map(|line| line.strip_prefix(part));
        row.unwrap_or_else(|| panic!("no {part} in {table}")).split_whitespace().collect()
    };
    // An election, what the leader before may have granted, and an agreement.
    assert_eq!(row("address.edge"), ["600ms", "500ms", "100ms", "0s"]);
    // Three failures 10 s apart and the last one's timeout, an agreement, and the TTL.
    assert_eq!(row("api.example.com A"), ["1m32s", "32s", "100ms", "1m"]);
    assert!(!said.contains("www.example.com"), "it never changes: {said}");
    let output = outlast(&["check", "-", "--format", "json"], &file);
    let printed: Value = serde_json::from_str(text(&output.stdout)).expect("it is JSON");
    assert_eq!(printed["stale"][0]["part"], "address.edge");
    assert_eq!(printed["stale"][1]["at_most_seconds"], 92.1);
}

#[test]
fn an_address_that_will_not_move_is_warned_of() {
    let address = |more: &str| {
        format!("[address.edge]\nip = \"10.0.0.100/24\"\ninterface = \"eth0\"\n{more}\n")
    };
    let alone = three(&address("nodes = [\"a\"]"));
    assert!(warnings(&alone)[0].starts_with("address.edge: it cannot move"));
    let one = format!("[node.a]\naddress = \"127.0.0.1\"\n{}", address("nodes = [\"a\"]"));
    assert!(warnings(&one)[0].starts_with("address.edge: never held"));
    let two = "[node.a]\naddress = \"127.0.0.1\"\n[node.b]\naddress = \"127.0.0.2\"\n";
    let two = format!("{two}{}", address("nodes = [\"a\", \"b\"]"));
    assert!(warnings(&two).iter().any(|said| said.starts_with("address.edge: it goes dark")));
    assert!(warnings(&two).iter().any(|said| said.contains("split_brain = \"accept\"")));
    let accepting = format!("{two}split_brain = \"accept\"\n");
    let said = warnings(&accepting);
    let said = said.iter().find(|said| said.starts_with("address.edge")).expect("it is warned of");
    assert!(said.contains("both nodes answer on it while they do not hear each other"), "{said}");
    assert!(said.contains("400ms after the last heartbeat"), "{said}");
    assert!(said.contains("A third [node.NAME]"), "{said}");
    let slow = format!("{accepting}heartbeat = {{ every = \"3s\", timeout = \"10s\" }}\n");
    let output = outlast(&["check", "-"], &slow);
    let said = text(&output.stdout);
    // Silence, three questions, and an agreement if the holder only cannot hold it any more.
    let row = said.lines().rfind(|line| line.starts_with("address.edge")).expect("there is a row");
    let row: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(row, ["address.edge", "13.1s", "13s", "100ms", "0s"]);
    let vrrp = three(&address("nodes = [\"a\", \"b\"]\nmode = \"vrrp\"\nvrrp_id = 5"));
    assert!(warnings(&vrrp)[0].contains("is not safe against a parted network"));
    assert_eq!(warnings(&three(&address("nodes = [\"a\", \"b\"]"))), [""; 0]);
}
