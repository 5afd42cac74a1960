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
