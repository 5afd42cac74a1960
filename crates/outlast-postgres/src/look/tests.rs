use super::*;
use crate::wire::Complaint;

/// Rows as the server sends them: columns behind `|`, `-` for nothing.
fn rows(text: &str) -> Vec<Row> {
    let column = |text: &str| (text != "-").then(|| text.to_owned());
    text.lines().map(|line| line.trim().split('|').map(column).collect()).collect()
}

fn seen(text: &str) -> Seen {
    Answer::read(&rows(text)).unwrap().seen().unwrap()
}

const PRIMARY: &str = "self|7|f|00000002|0/5000|0/4000|-|-|-|0|ANY 1 (\"a\",\"b\")|off|3|1500
    standby|11|a|streaming|quorum|0/4000|0/3000
    standby|12|b|streaming|async|0/4000|-
    standby|13|c|catchup|quorum|0/4000|-
    standby|14|d|streaming|sync|0/3000|-
    slot|outlast_a|t|reserved|0/1000
    slot|outlast_b|f|-|-
    pending|max_connections";

#[test]
fn a_primary_is_read_from_its_rows() {
    let seen = seen(PRIMARY);
    assert_eq!(seen.role, Role::Primary { written: Lsn(0x5000), flushed: Lsn(0x4000) });
    assert_eq!((seen.system, seen.timeline, seen.clients), (7, 2, 3));
    assert_eq!((seen.reach(), seen.in_recovery(), seen.read_only), (Lsn(0x4000), false, false));
    assert_eq!(seen.oldest_wait, Some(Duration::from_millis(1500)));
    assert_eq!(seen.pending_restart, ["max_connections"]);
    let slots: Vec<_> = seen.slots.iter().map(|slot| (slot.active, slot.wal_status)).collect();
    assert_eq!(slots, [(true, Some(WalStatus::Reserved)), (false, None)]);
}

/// Trap 30.
#[test]
fn a_standby_reaches_as_far_as_it_has_received_or_replayed() {
    let own = |received: &str, replayed: &str| {
        format!("self|7|t|-|-|-|{received}|{replayed}|t|5000|-|on|0|-")
    };
    let receiver = "receiver|9|streaming|10.0.0.1|5432|0/6000|3";
    let standby = seen(&format!("{}\n{receiver}", own("0/5000", "0/4000")));
    assert_eq!((standby.reach(), standby.timeline), (Lsn(0x5000), 3));
    let Role::Standby { paused, apply_delay, receiver: Some(receiver), .. } = standby.role else {
        panic!("{standby:?}")
    };
    assert!(paused && apply_delay == Duration::from_secs(5) && receiver.port == Some(5432));
    for (received, replayed, reach) in [("-", "0/4000", 0x4000), ("0/1", "0/2", 2), ("-", "-", 0)] {
        let mut answer = Answer::read(&rows(&own(received, replayed))).unwrap();
        // Nobody has said on which it is.
        assert_eq!(answer.timeline, None);
        answer.timeline = Some(1);
        assert_eq!(answer.seen().unwrap().reach(), Lsn(reach));
    }
}

#[test]
fn what_is_missing_or_odd_is_no_answer() {
    for text in ["", "odd|1", "receiver|-|streaming|-|-|-|1", "self|-|f|00000001|0/1|0/1"] {
        let answer = Answer::read(&rows(text)).and_then(Answer::seen);
        assert_eq!(answer.unwrap_err().fault, Fault::Other, "{text}");
    }
}

#[test]
fn faults_are_told_apart() {
    let server = |sqlstate: &str| {
        let (sqlstate, message) = (sqlstate.to_owned(), "no".to_owned());
        SqlError::Server(Complaint { sqlstate, message })
    };
    for (error, fault) in [
        (server("57P03"), Fault::Starting),
        (server("53300"), Fault::TooMany),
        (server("28000"), Fault::Other),
        (SqlError::Io(ErrorKind::ConnectionRefused.into()), Fault::Refused),
        (SqlError::Io(ErrorKind::PermissionDenied.into()), Fault::Other),
        (SqlError::TimedOut(LOOK_LIMIT), Fault::TimedOut),
    ] {
        assert_eq!(LookError::from(error).fault, fault);
    }
}
