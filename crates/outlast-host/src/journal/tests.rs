//! Journals on a real disk: torn, rotated, followed.

use std::time::{Duration, Instant};

use outlast_core::event::Severity;
use outlast_core::event::Target;
use outlast_core::health::Health;

use super::*;
use crate::scratch::Scratch;

fn fact(n: u64) -> Fact {
    let process = format!("p{n}");
    Fact::ProcessStarted { process, pid: 7, adopted: false }
}

fn open(dir: &Path) -> Journal {
    Journal::open(dir, "a").unwrap().0
}

fn write(journal: &mut Journal, lines: u64) {
    for n in 0..lines {
        journal.record(Timestamp(0), fact(n)).unwrap();
    }
}

fn seqs(lines: &[Line]) -> Vec<u64> {
    lines.iter().map(|line| line.seq).collect()
}

#[test]
fn a_line_says_what_happened_to_people_and_programs() {
    let target = Target::Backend { service: "web".to_owned(), backend: "http://b:80".to_owned() };
    let reason = "connect b:80: \"refused\"\n".to_owned();
    let began_ago = Duration::from_micros(12_345_678);
    let (from, to) = (Health::Up, Health::Down);
    let fact = Fact::HealthChanged { target, from, to, reason, began_ago };
    let at = Timestamp(1_795_359_845_678);
    let event = Event { seq: 7, at, node: "a".to_owned(), fact };
    let line = Line::of(&event);
    let json = line.to_json();
    assert_eq!(
        json,
        concat!(
            r#"{"v":1,"seq":7,"at":"2026-11-22T15:04:05.678Z","node":"a","event":"health_changed","#,
            r#""subject":"service.web","severity":"warn","#,
            r#""message":"http://b:80 up -> down: connect b:80: \"refused\"\n (began 12.345s ago)","#,
            r#""backend":"http://b:80","began_ago":12.346,"from":"up","#,
            r#""reason":"connect b:80: \"refused\"\n","to":"down"}"#
        )
    );
    assert_eq!(Line::parse(json.as_bytes()), Ok(line.clone()));
    assert_eq!(Line::parse(format!("{json}\n").as_bytes()), Ok(line.clone()));
    assert_eq!(line.severity, Severity::Warn);
}

#[test]
fn a_line_that_is_none_says_why() {
    let good =
        Line::of(&Event { seq: 1, at: Timestamp(0), node: String::new(), fact: fact(1) }).to_json();
    for (text, why) in [
        (String::new(), Malformed::NotJson),
        ("[]".to_owned(), Malformed::NotJson),
        (good.replace("\"v\":1", "\"v\":2"), Malformed::Version(2)),
        (good.replace("\"v\":1,", ""), Malformed::Member("v")),
        (good.replace("\"seq\":1", "\"seq\":-1"), Malformed::Member("seq")),
        (good.replace("\"node\":\"\"", "\"node\":0"), Malformed::Member("node")),
        (good.replace("\"info\"", "\"loud\""), Malformed::Member("severity")),
        ("x".repeat(LINE_MAX + 1), Malformed::TooLong),
    ] {
        assert_eq!(Line::parse(text.as_bytes()), Err(why), "{}", &text[..text.len().min(80)]);
    }
}

#[test]
fn numbers_go_on_after_a_restart() {
    let scratch = Scratch::new();
    write(&mut open(scratch.dir()), 3);
    let mut journal = open(scratch.dir());
    assert_eq!(journal.next_seq(), 4);
    write(&mut journal, 2);
    assert_eq!(seqs(&read_last(scratch.dir(), 100).unwrap()), [1, 2, 3, 4, 5]);
    assert_eq!(seqs(&read_last(scratch.dir(), 2).unwrap()), [4, 5]);
    assert_eq!(read_last(scratch.dir(), 0).unwrap(), []);
    assert_eq!(read_last(&scratch.path("none"), 9).unwrap(), []);
}

#[test]
fn an_event_out_of_order_is_refused_and_a_gap_is_kept() {
    let scratch = Scratch::new();
    let mut journal = open(scratch.dir());
    let event = |seq| Event { seq, at: Timestamp(0), node: "a".to_owned(), fact: fact(seq) };
    journal.append(&event(5)).unwrap();
    assert_eq!(journal.append(&event(5)).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    journal.append(&event(9)).unwrap();
    drop(journal);
    assert_eq!(open(scratch.dir()).next_seq(), 10);
    assert_eq!(seqs(&read_last(scratch.dir(), 9).unwrap()), [5, 9]);
}

#[test]
fn a_journal_has_one_writer() {
    let scratch = Scratch::new();
    let _held = open(scratch.dir());
    let error = Journal::open(scratch.dir(), "a").unwrap_err().to_string();
    assert!(error.ends_with("journal.jsonl is in use by another process"), "{error}");
}

#[test]
fn a_last_line_torn_at_any_byte_is_cut_off_and_the_rest_is_kept() {
    let scratch = Scratch::new();
    let path = scratch.path(NEWEST);
    write(&mut open(scratch.dir()), 3);
    let whole = fs::read(&path).unwrap();
    let last = whole[..whole.len() - 1].iter().rposition(|&b| b == b'\n').unwrap() + 1;
    for len in last..=whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        let (mut journal, recovery) = Journal::open(scratch.dir(), "a").unwrap();
        let torn = if len == whole.len() { 0 } else { (len - last) as u64 };
        assert_eq!(recovery, Recovery { cut: torn }, "{len}");
        write(&mut journal, 1);
        let expected = if len == whole.len() { vec![1, 2, 3, 4] } else { vec![1, 2, 3] };
        assert_eq!(seqs(&read_last(scratch.dir(), 9).unwrap()), expected, "{len}");
    }
}

#[test]
fn a_torn_line_longer_than_a_block_is_cut_off() {
    let scratch = Scratch::new();
    write(&mut open(scratch.dir()), 2);
    let mut file = OpenOptions::new().append(true).open(scratch.path(NEWEST)).unwrap();
    file.write_all(&[b'x'; 10_000]).unwrap();
    let (journal, recovery) = Journal::open(scratch.dir(), "a").unwrap();
    assert_eq!((journal.next_seq(), recovery.cut), (3, 10_000));
}

#[test]
fn a_file_of_nothing_but_a_torn_line_starts_anew() {
    let scratch = Scratch::new();
    fs::write(scratch.path(NEWEST), b"{\"v\":1,").unwrap();
    let (journal, recovery) = Journal::open(scratch.dir(), "a").unwrap();
    assert_eq!((journal.next_seq(), recovery.cut), (1, 7));
}

/// A journal whose files hold a few lines each.
fn small(dir: &Path) -> Journal {
    Journal { file_max: 600, ..open(dir) }
}

#[test]
fn full_files_are_kept_up_to_a_limit_and_numbers_go_on_across_them() {
    let scratch = Scratch::new();
    let mut journal = small(scratch.dir());
    write(&mut journal, 500);
    let kept = files(scratch.dir()).unwrap();
    assert_eq!(kept.len(), FILES_MAX);
    assert!(kept.iter().all(|path| fs::metadata(path).unwrap().len() <= 600));
    let lines = read_last(scratch.dir(), 1000).unwrap();
    let first = lines[0].seq;
    assert!(first > 1);
    assert_eq!(seqs(&lines), (first..=500).collect::<Vec<_>>());
    drop(journal);

    // Killed between the rename and the first line of the new file.
    let newest = scratch.path(NEWEST);
    let begins = first_line(&newest).unwrap().unwrap().seq;
    fs::rename(&newest, scratch.path(&full_name(begins))).unwrap();
    assert_eq!(open(scratch.dir()).next_seq(), 501);
}

#[test]
fn a_follower_sees_every_line_once_across_rotations() {
    let scratch = Scratch::new();
    let mut follow = Follow::after(scratch.dir(), 0);
    assert_eq!(follow.poll().unwrap(), []);
    let mut journal = small(scratch.dir());
    let mut seen = Vec::new();
    for burst in [1, 2, 5, 1, 20, 3] {
        write(&mut journal, burst);
        loop {
            let lines = follow.poll().unwrap();
            if lines.is_empty() {
                break;
            }
            seen.extend(seqs(&lines));
        }
    }
    assert_eq!(seen, (1..=32).collect::<Vec<_>>());

    let mut late = Follow::after(scratch.dir(), 25);
    let mut seen = Vec::new();
    while seen.last() != Some(&32) {
        seen.extend(seqs(&late.poll().unwrap()));
    }
    assert_eq!(seen, (26..=32).collect::<Vec<_>>());
}

#[test]
fn a_follower_waits_for_the_end_of_a_line_and_forgets_a_torn_one() {
    let scratch = Scratch::new();
    write(&mut open(scratch.dir()), 1);
    let mut follow = Follow::after(scratch.dir(), 0);
    assert_eq!(seqs(&follow.poll().unwrap()), [1]);
    let mut file = OpenOptions::new().append(true).open(scratch.path(NEWEST)).unwrap();
    file.write_all(b"{\"v\":1,\"seq\":7777,\"at\"").unwrap();
    assert_eq!(follow.poll().unwrap(), []);
    write(&mut open(scratch.dir()), 1);
    assert_eq!(seqs(&follow.poll().unwrap()), [2]);
}

#[test]
fn a_follower_that_is_far_behind_goes_on_with_the_oldest() {
    let scratch = Scratch::new();
    let mut journal = small(scratch.dir());
    write(&mut journal, 1);
    let mut follow = Follow::after(scratch.dir(), 0);
    assert_eq!(seqs(&follow.poll().unwrap()), [1]);
    write(&mut journal, 500);
    let oldest = read_last(scratch.dir(), 1000).unwrap()[0].seq;
    let mut seen = Vec::new();
    while seen.last() != Some(&501) {
        seen.extend(seqs(&follow.poll().unwrap()));
    }
    assert!(seen.ends_with(&(oldest..=501).collect::<Vec<_>>()));
    assert!(seen.is_sorted());
}

#[test]
fn a_follower_reads_lines_of_any_length_and_steps_over_what_is_none() {
    let scratch = Scratch::new();
    let mut journal = open(scratch.dir());
    let long = |len: usize| Fact::AgentStopping { reason: "x".repeat(len) };
    let mut file = OpenOptions::new().append(true).open(scratch.path(NEWEST)).unwrap();
    for len in [10, 200_000, LINE_MAX / 2 - 200, 10] {
        journal.record(Timestamp(0), long(len)).unwrap();
        file.write_all(b"not a line\n").unwrap();
    }
    file.write_all(&vec![b'x'; 3 * LINE_MAX]).unwrap();
    file.write_all(b"\n").unwrap();
    journal.record(Timestamp(0), long(10)).unwrap();
    let refused = journal.record(Timestamp(0), long(LINE_MAX)).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    let mut follow = Follow::after(scratch.dir(), 0);
    let mut seen = Vec::new();
    while seen.len() < 5 {
        seen.extend(seqs(&follow.poll().unwrap()));
    }
    assert_eq!(seen, [1, 2, 3, 4, 5]);
    assert_eq!(seqs(&read_last(scratch.dir(), 3).unwrap()), [3, 4, 5]);
}

#[tokio::test]
async fn a_follower_wakes_for_a_new_line() {
    let scratch = Scratch::new();
    let mut follow = Follow::after(scratch.dir(), 0);
    let dir = scratch.dir().to_owned();
    let begun = Instant::now();
    let (lines, ()) = tokio::join!(follow.next(), async { write(&mut open(&dir), 1) });
    assert_eq!(seqs(&lines.unwrap()), [1]);
    assert!(begun.elapsed() < Duration::from_secs(5));
}
