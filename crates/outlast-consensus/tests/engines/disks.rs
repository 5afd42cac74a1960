//! Disks that tear, fail and hang.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::time::Duration;

use outlast_consensus::{DiskError, Home};

use crate::harness::{LIMIT, Nodes, now, texts, until};

/// Leaves a part of a frame behind the last whole one, as a crash in the middle of a write does: nobody was told of it.
fn tear(nodes: &Nodes, id: u64) {
    let segments = std::fs::read_dir(nodes.home(id)).unwrap();
    let paths = segments.map(|entry| entry.unwrap().path());
    let is_log = |path: &std::path::PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("log-"))
    };
    let newest = paths.filter(is_log).max().unwrap();
    let content = std::fs::read(&newest).unwrap();
    let end = content.iter().rposition(|&byte| byte != 0).unwrap() + 1;
    let file = OpenOptions::new().write(true).open(&newest).unwrap();
    file.write_all_at(&[40, 0, 0, 0, 7, 7, 7, 7], end.next_multiple_of(8) as u64).unwrap();
}

#[test]
fn a_torn_end_is_cut_off_and_the_node_goes_on() {
    let mut nodes = Nodes::start_all("torn", 3);
    for text in texts(0..10) {
        nodes.propose(&text);
    }
    nodes.all_say(&texts(0..10));
    let torn = nodes.ids().into_iter().find(|&id| id != nodes.leader()).unwrap();
    nodes.stop(torn);
    tear(&nodes, torn);
    let home = Home::open(&nodes.home(torn)).unwrap().unwrap();
    assert_eq!(home.torn, 5);
    drop(home);
    nodes.start(torn);
    nodes.propose("entry 10");
    nodes.all_say(&texts(0..11));
}

#[test]
fn a_snapshot_that_is_damaged_is_said_to_be() {
    let nodes = Nodes::start_all("damaged", 1);
    nodes.propose("entry 0");
    nodes.stop(1);
    let snapshot = nodes.home(1).join(format!("snapshot-{:016x}", 0));
    let mut bytes = std::fs::read(&snapshot).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&snapshot, bytes).unwrap();
    let error = Home::open(&nodes.home(1)).unwrap_err();
    assert!(matches!(error, DiskError::Snapshot { .. }), "{error}");
    assert!(error.to_string().contains("join it anew"), "{error}");
}

/// A directory stands where the next segment is to be made.
#[test]
fn a_node_whose_disk_fails_takes_no_part_any_more_and_the_others_go_on() {
    let mut nodes = Nodes::found("failing", 3);
    std::fs::create_dir(nodes.home(3).join("spare.new")).unwrap();
    (1..=3).for_each(|id| nodes.start(id));
    nodes.propose("entry 0");
    until("the node says why", || nodes.standing(3).failed.is_some());
    let failed = nodes.standing(3);
    assert!(failed.failed.unwrap().starts_with("begin "), "it names what failed");
    assert!(!failed.may_act && failed.leader.is_none());
    now(nodes.node(3).propose(b"never".to_vec())).unwrap_err();
    nodes.propose("entry 1");
    nodes.stop(3);
    nodes.all_say(&texts(0..2));
}

/// A pipe stands where the next segment is to be made: to open it waits for somebody who reads.
#[test]
fn a_disk_that_hangs_holds_up_neither_the_others_nor_the_end() {
    let mut nodes = Nodes::found("hanging", 3);
    let pipe = nodes.home(3).join("spare.new");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    (1..=3).for_each(|id| nodes.start(id));
    for text in texts(0..5) {
        nodes.propose(&text);
    }
    assert_eq!(nodes.standing(3).durable, 0);
    let took = nodes.stop(3);
    assert!((Duration::from_secs(2)..LIMIT).contains(&took), "{took:?}");
    nodes.propose("entry 5");
    nodes.all_say(&texts(0..6));
    // Lets the thread that was left go: whoever it writes to is gone at once.
    drop(OpenOptions::new().read(true).custom_flags(0o4000).open(&pipe).unwrap());
}
