//! Broken topology files and every word that is said of them.
//!
//! Beside each `NAME.toml` lies `NAME.txt`. `UPDATE_EXPECT=1 cargo test -p outlast` writes what is said now.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use expect_test::expect_file;
use outlast::file::parse;

fn files(extension: &str) -> BTreeSet<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broken_files");
    std::fs::read_dir(directory)
        .expect("the directory is there")
        .map(|entry| entry.expect("it can be listed").path())
        .filter(|path| path.extension().is_some_and(|it| it == extension))
        .collect()
}

#[test]
fn each_broken_file_is_refused_in_these_words() {
    let files = files("toml");
    assert!(files.len() >= 60, "{}", files.len());
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        let complaints = parse("outlast.toml", &text).expect_err(&path.display().to_string());
        expect_file![path.with_extension("txt")].assert_eq(&complaints.to_string());
    }
}

#[test]
fn no_expectation_has_lost_its_file() {
    for path in files("txt") {
        assert!(path.with_extension("toml").exists(), "{}", path.display());
    }
}

#[test]
fn every_complaint_has_a_place_and_says_what_to_write() {
    for path in files("toml") {
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.split('\n').collect();
        for complaint in parse("outlast.toml", &text).unwrap_err().list() {
            let name = path.display();
            let line = lines.get(complaint.line - 1).expect("the line exists");
            assert!(complaint.column <= line.chars().count() + 1, "{name}: {complaint:?}");
            assert!(
                !complaint.message.is_empty() && !complaint.help.is_empty(),
                "{name}: {complaint:?}"
            );
            for said in [&complaint.message, &complaint.help] {
                assert!(!said.contains(char::is_control), "{name}: {complaint:?}");
                assert!(!said.ends_with('.'), "{name}: {complaint:?}");
            }
        }
    }
}
