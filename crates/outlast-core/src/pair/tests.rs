//! Transcripts: each line is something that happened, `=>` and what the pair did about it.

use std::string::String;
use std::vec::Vec;

use super::*;
use crate::topology::Command;
use crate::units::parse_duration;

fn command(name: &str) -> Command {
    Command(std::vec![name.to_owned()])
}

fn duration(text: &str) -> Duration {
    parse_duration(text).unwrap_or_else(|_| panic!("`{text}` is no duration"))
}

/// `hot`, `warm`, `warm activate`, `cold 60s`, `cold 60s stop`; then `after 30s` or `manual`.
fn settings(text: &str) -> (Standby, Failback) {
    let words: Vec<&str> = text.split_whitespace().collect();
    let stop = words.contains(&"stop").then(|| command("stop"));
    let standby = match words[0] {
        "hot" => Standby::Hot,
        "warm" if words.contains(&"activate") => {
            Standby::Warm { activate: Some(command("activate")) }
        }
        "warm" => Standby::Warm { activate: None },
        "cold" => Standby::Cold { start: command("start"), stop, start_limit: duration(words[1]) },
        other => panic!("`{other}` is no standby"),
    };
    let after = words.iter().position(|w| *w == "after").map(|i| duration(words[i + 1]));
    (standby, after.map_or(Failback::Manual, Failback::After))
}

fn show(action: &Action) -> String {
    use crate::units::show_duration as d;
    match action {
        Action::Route { epoch, to } => std::format!("route {to} e{}", epoch.0),
        Action::Command { epoch } => std::format!("command e{}", epoch.0),
        Action::Stop { epoch } => std::format!("stop e{}", epoch.0),
        Action::Started { epoch, reason } => std::format!("started e{} ({reason})", epoch.0),
        Action::Stage { stage, took, .. } => std::format!("{stage} {}", d(*took)),
        Action::Finished { epoch, took } => std::format!("finished e{} {}", epoch.0, d(*took)),
        Action::Failed { epoch, reason } => std::format!("failed e{} ({reason})", epoch.0),
        Action::FailedBack { epoch, reason } => {
            std::format!("failed back e{} ({reason})", epoch.0)
        }
        Action::BothDown => "both down".to_owned(),
        Action::BothDownEnded => "both down ended".to_owned(),
    }
}

/// What a script has made of a pair so far.
struct Stand {
    pair: Pair,
    seen: Seen,
    now: Instant,
    out: Vec<Action>,
}

impl Stand {
    fn step(&mut self, input: Input) {
        self.pair.step(self.now, input, &mut self.out);
        let deadline = self.pair.deadline(self.now);
        assert!(deadline.is_none_or(|at| self.now < at), "would be woken at once, for ever");
    }

    /// Lets time pass and wakes the pair whenever it asked for that; what it then does is a line of its own.
    fn pass(&mut self, until: Instant, got: &mut String) {
        while let Some(at) = self.pair.deadline(self.now).filter(|&at| at < until) {
            self.now = at;
            self.step(Input::Look(self.seen));
            let at = crate::units::show_duration(at.since_start());
            got.push_str(&std::format!("{at} woken{}\n", self.did()));
        }
        self.now = until;
    }

    fn did(&mut self) -> String {
        let did: Vec<String> = self.out.drain(..).map(|action| show(&action)).collect();
        if did.is_empty() { String::new() } else { std::format!(" => {}", did.join(", ")) }
    }

    fn word(&mut self, word: &str) {
        match word {
            "P+" => (self.seen.primary, self.seen.primary_failing_since) = (Health::Up, None),
            "P-" => {
                // Believed down at the third failed probe, a second apart.
                self.seen.primary = Health::Down;
                self.seen.primary_failing_since = Some(self.now - Duration::from_secs(2));
            }
            "P?" => self.seen.primary = Health::Unknown,
            "B+" => self.seen.backup = Health::Up,
            "B-" => self.seen.backup = Health::Down,
            "B?" => self.seen.backup = Health::Unknown,
            "P~" => self.seen.primary_drained = true,
            "P=" => self.seen.primary_drained = false,
            "B~" => self.seen.backup_drained = true,
            "B=" => self.seen.backup_drained = false,
            _ => return self.order(word),
        }
        self.step(Input::Look(self.seen));
    }

    fn order(&mut self, word: &str) {
        let (name, epoch) = word.split_once("/e").unwrap_or((word, ""));
        let epoch = || Epoch(epoch.parse().unwrap_or_else(|_| panic!("`{word}` has no epoch")));
        let input = match name {
            "done" => Input::CommandDone { epoch: epoch(), result: Ok(()) },
            "refused" => Input::CommandDone { epoch: epoch(), result: Err("exit 1".to_owned()) },
            "routed" => Input::Routed { epoch: epoch() },
            "failback" => Input::Failback,
            "look" => Input::Look(self.seen),
            other => panic!("`{other}` is no word of the script"),
        };
        self.step(input);
    }
}

/// A script has one line per moment: its time, what happened, `=>` and what the pair did, in order.
///
/// `P+ P- P?` and `B+ B- B?` are beliefs, `P~ P=` and `B~ B=` drain a side and put it back, `done/e1`, `refused/e1` and
/// `routed/e1` are answers, `failback` is asked for, `look` is time alone, `retune: …` gives new settings,
/// `reseat: backup` other servers. Between two lines the pair is woken when it asked to be: such a line says `woken`.
#[track_caller]
fn check_pair(spec: &str, script: &str) {
    let (standby, failback) = settings(spec);
    check(Pair::new(standby, failback, Side::Primary, Epoch(0)), script);
}

#[track_caller]
fn check(pair: Pair, script: &str) {
    let (seen, now) = (Seen::default(), Instant::default());
    let mut stage = Stand { pair, seen, now, out: Vec::new() };
    let mut got = String::new();
    let lines = script.lines().map(str::trim).filter(|line| !line.is_empty());
    let expected: String = lines.clone().map(|line| std::format!("{line}\n")).collect();
    for line in lines {
        let said = line.split("=>").next().unwrap_or(line).trim_end();
        let (time, words) = said.split_once(' ').unwrap_or((said, ""));
        let at = Instant::from_start(duration(time));
        assert!(stage.now <= at, "{line}: time runs forward");
        if words == "woken" {
            // Put there by `pass`; here it must not come true twice.
            continue;
        }
        stage.pass(at, &mut got);
        if let Some(spec) = words.trim().strip_prefix("retune: ") {
            let (standby, failback) = settings(spec);
            stage.pair.retune(standby, failback);
            stage.word("look");
        } else if let Some(side) = words.trim().strip_prefix("reseat: ") {
            let side = if side == "backup" { Side::Backup } else { Side::Primary };
            stage.pair.reseat(side, &mut stage.out);
            stage.seen = Seen::default();
        } else if let Some(text) = words.trim().strip_prefix("next: ") {
            let next = stage.pair.next(at).unwrap_or_else(|| "-".to_owned());
            got.push_str(&std::format!("{}\n", said.replace(text, &next)));
            continue;
        } else {
            words.split_whitespace().for_each(|word| stage.word(word));
        }
        got.push_str(&std::format!("{said}{}\n", stage.did()));
    }
    assert_eq!(got, expected, "\n--- got\n{got}");
}

#[test]
fn a_hot_backup_takes_over_at_once_and_readers_confirm() {
    check_pair(
        "hot after 30s",
        "1s P+ B+
         9s P- => started e1 (the primary is down), detect 2s, route backup e1
         9.01s routed/e1 => switch 10ms, finished e1 2.01s
         9.02s routed/e1",
    );
}

#[test]
fn a_failover_whose_readers_say_nothing_ends_with_what_is_known() {
    check_pair(
        "hot after 30s",
        "1s P+ B+
         9s P- => started e1 (the primary is down), detect 2s, route backup e1
         10s woken => finished e1 2s
         11s routed/e1",
    );
}

#[test]
fn nobody_acts_on_unknown() {
    for spec in ["hot manual", "warm manual", "warm activate manual", "cold 60s manual"] {
        check_pair(
            spec,
            "1s P? B+
             2s P? B-
             3s P? B?
             4s P+ B?
             5s P- B?
             99s look",
        );
    }
}

#[test]
fn no_failover_to_a_backup_that_is_not_up_and_both_down_is_said_once() {
    check_pair(
        "hot after 30s",
        "1s P+ B+
         2s B-
         5s P- => both down
         6s look
         7s B?
         8s B-
         60s B+ => started e1 (the primary is down), detect 2s, route backup e1, both down ended
         61s look => finished e1 57s
         70s B- => both down
         80s P+ => route primary e2, failed back e2 (the backup is down), both down ended
         81s P- => both down
         82s P+ => both down ended",
    );
}

#[test]
fn the_time_of_an_outage_counts_from_its_first_failed_probe() {
    // One answer in between starts a new run of failures, but not a new outage.
    check_pair(
        "hot after 30s",
        "1s P+ B-
         5s P- => both down
         65s P-
         70s B+ => started e1 (the primary is down), detect 2s, route backup e1, both down ended
         70.5s routed/e1 => switch 500ms, finished e1 1m7s",
    );
}

#[test]
fn a_cold_backup_is_started_and_serves_once_it_is_ready() {
    check_pair(
        "cold 60s stop after 30s",
        "1s P+ B-
         5s P- => started e1 (the primary is down), detect 2s, command e1
         6s next: the backup is being started
         9s done/e1 => start 4s
         10s next: waiting until the backup is ready
         20s B+ => ready 11s, route backup e1
         20.5s routed/e1 => switch 500ms, finished e1 17.5s
         100s P+
         110s next: failback to the primary in 20s
         130s look => route primary e2, failed back e2 (primary has been up for 30s), stop e2
         140s B?
         150s P-
         151s B- => started e3 (the primary is down), detect 2s, command e3",
    );
}

#[test]
fn a_cold_backup_that_already_runs_needs_no_start() {
    check_pair(
        "cold 60s stop after 30s",
        "1s P+ B+
         5s P- => started e1 (the primary is down), detect 2s, route backup e1
         5s routed/e1 => switch 0s, finished e1 2s
         9s P+
         39s look => route primary e2, failed back e2 (primary has been up for 30s)",
    );
}

#[test]
fn a_start_that_fails_is_tried_again_after_a_pause() {
    check_pair(
        "cold 60s stop after 30s",
        "1s P+ B-
         5s P- => started e1 (the primary is down), detect 2s, command e1
         6s refused/e1 => failed e1 (exit 1), both down
         16s next: tries to start the backup again in 20s
         35.9s look
         36s look => started e2 (the primary is down), detect 2s, command e2
         37s done/e2 => start 1s
         38s B+ => ready 1s, route backup e2, both down ended
         39s look => finished e2 35s",
    );
}

#[test]
fn a_cold_pair_is_not_both_down_while_its_start_is_ahead_in_a_later_outage_either() {
    check_pair(
        "cold 60s after 30s",
        "1s P+ B-
         5s P- => started e1 (the primary is down), detect 2s, command e1
         6s refused/e1 => failed e1 (exit 1), both down
         9s P+ => both down ended
         100s P- => started e2 (the primary is down), detect 2s, command e2
         101s P+
         102s refused/e2 => failed e2 (exit 1)",
    );
}

#[test]
fn a_backup_that_is_not_ready_in_time_is_given_up_but_still_used_when_it_comes() {
    check_pair(
        "cold 60s stop after 30s",
        "1s P+ B-
         5s P- => started e1 (the primary is down), detect 2s, command e1
         6s done/e1 => start 1s
         65s look => failed e1 (the backup was not ready in time), both down
         70s B+ => started e2 (the primary is down), detect 2s, route backup e2, both down ended
         70s routed/e2 => switch 0s, finished e2 1m7s",
    );
}

#[test]
fn a_standby_that_was_started_in_vain_is_stopped_when_the_primary_is_up() {
    check_pair(
        "cold 60s stop after 30s",
        "1s P+ B-
         5s P- => started e1 (the primary is down), detect 2s, command e1
         6s done/e1 => start 1s
         65s look => failed e1 (the backup was not ready in time), both down
         70s P+ => stop e1, both down ended
         71s B+
         72s P- => started e2 (the primary is down), detect 2s, route backup e2",
    );
}

#[test]
fn no_second_command_and_no_stop_while_the_first_command_runs() {
    check_pair(
        "cold 60s stop after 30s",
        "1s P+ B-
         5s P- => started e1 (the primary is down), detect 2s, command e1
         65s look => failed e1 (the backup was not ready in time), both down
         96s look
         97s P+ => both down ended
         98s P-
         100s done/e1 => started e2 (the primary is down), detect 2s, command e2
         101s done/e2 => start 1s
         102s P+ => failed e2 (the primary is up again), stop e2",
    );
    // An answer that never comes is given up too: its command was ended at its limit.
    check_pair(
        "cold 60s stop after 30s",
        "1s P+ B-
         5s P- => started e1 (the primary is down), detect 2s, command e1
         65s look => failed e1 (the backup was not ready in time), both down
         124s look
         125s look => started e2 (the primary is down), detect 2s, command e2
         126s done/e1
         127s done/e2 => start 2s",
    );
}

#[test]
fn the_primary_that_returns_while_the_backup_starts_goes_on() {
    check_pair(
        "cold 60s stop after 30s",
        "1s P+ B-
         5s P- => started e1 (the primary is down), detect 2s, command e1
         9s P+
         12s done/e1 => start 7s, failed e1 (the primary is up again), stop e1
         13s P-
         41s look
         42s look => started e2 (the primary is down), detect 2s, command e2
         43s done/e2 => start 1s
         44s P+ => failed e2 (the primary is up again), stop e2",
    );
}

#[test]
fn a_primary_that_only_flickers_while_the_backup_starts_does_not_stop_the_failover() {
    check_pair(
        "cold 60s stop after 30s",
        "1s P+ B-
         5s P- => started e1 (the primary is down), detect 2s, command e1
         9s P+
         10s P-
         12s done/e1 => start 7s
         13s B+ => ready 1s, route backup e1",
    );
}

#[test]
fn a_warm_backup_is_activated_first_if_it_has_a_command() {
    check_pair(
        "warm after 30s",
        "1s P+ B+
         5s P- => started e1 (the primary is down), detect 2s, route backup e1",
    );
    check_pair(
        "warm activate after 30s",
        "1s P+ B+
         5s P- => started e1 (the primary is down), detect 2s, command e1
         8s done/e1 => start 3s, ready 0s, route backup e1
         8s routed/e1 => switch 0s, finished e1 5s",
    );
    check_pair(
        "warm activate after 30s",
        "1s P+ B-
         5s P- => both down
         9s B+ => started e1 (the primary is down), detect 2s, command e1, both down ended
         10s B- => both down
         11s done/e1 => start 2s
         69s look => failed e1 (the backup was not ready in time)
         70s B+ => both down ended
         98s look
         99s look => started e2 (the primary is down), detect 2s, command e2",
    );
}

#[test]
fn failback_needs_the_whole_time_without_a_break() {
    check_pair(
        "hot after 30s",
        "1s P+ B+
         9s P- => started e1 (the primary is down), detect 2s, route backup e1
         9s routed/e1 => switch 0s, finished e1 2s
         20s P+
         49s P-
         50s P+
         79s P?
         80s P+
         109s look
         110s look => route primary e2, failed back e2 (primary has been up for 30s)",
    );
}

#[test]
fn a_manual_failback_waits_for_a_person() {
    check_pair(
        "hot manual",
        "1s P+ B+
         9s P- => started e1 (the primary is down), detect 2s, route backup e1
         9s routed/e1 => switch 0s, finished e1 2s
         20s P+
         900s next: stays on the backup until `outlast failback` (failback is manual)
         901s failback => route primary e2, failed back e2 (asked for)
         910s P- => started e3 (the primary is down), detect 2s, route backup e3",
    );
}

#[test]
fn a_failback_that_was_asked_for_waits_only_for_the_primary() {
    check_pair(
        "hot after 30s",
        "1s P+ B+
         2s failback
         9s P- => started e1 (the primary is down), detect 2s, route backup e1
         9s routed/e1 => switch 0s, finished e1 2s
         10s P+
         11s P-
         12s failback
         13s next: failback to the primary as soon as it is up
         60s P+ => route primary e2, failed back e2 (asked for)",
    );
}

#[test]
fn failback_asked_for_before_the_backup_serves_changes_nothing() {
    check_pair(
        "cold 60s manual",
        "1s P+ B-
         5s P- => started e1 (the primary is down), detect 2s, command e1
         6s failback
         9s done/e1 => start 4s
         10s B+ => ready 1s, route backup e1
         11s P+ => finished e1 7s
         12s look",
    );
}

#[test]
fn the_primary_serves_at_once_when_the_backup_dies() {
    check_pair(
        "hot manual",
        "1s P+ B+
         9s P- => started e1 (the primary is down), detect 2s, route backup e1
         9s routed/e1 => switch 0s, finished e1 2s
         20s P+
         25s B? 
         26s B- => route primary e2, failed back e2 (the backup is down)",
    );
}

#[test]
fn a_failover_that_is_overtaken_by_its_failback_still_ends() {
    check_pair(
        "hot manual",
        "1s P+ B+
         9s P- => started e1 (the primary is down), detect 2s, route backup e1
         9.1s P+
         9.2s B- => finished e1 2s, route primary e2, failed back e2 (the backup is down)
         9.3s routed/e1",
    );
}

#[test]
fn answers_to_older_orders_are_ignored() {
    check_pair(
        "cold 60s stop after 30s",
        "1s P+ B-
         5s P- => started e1 (the primary is down), detect 2s, command e1
         6s refused/e1 => failed e1 (exit 1), both down
         36s look => started e2 (the primary is down), detect 2s, command e2
         37s done/e1
         38s refused/e1
         39s done/e2 => start 3s
         40s refused/e2 done/e2
         41s B+ => ready 2s, route backup e2, both down ended
         41s refused/e2 routed/e1
         42s look => finished e2 38s",
    );
}

#[test]
fn new_settings_hold_from_now_on() {
    check_pair(
        "hot after 30s",
        "1s P+ B+
         9s P- => started e1 (the primary is down), detect 2s, route backup e1
         9s routed/e1 => switch 0s, finished e1 2s
         20s P+
         30s retune: hot after 60s
         50s look
         60s retune: hot manual
         200s retune: hot after 60s => route primary e2, failed back e2 (primary has been up for 1m)",
    );
    check_pair(
        "cold 60s stop after 30s",
        "1s P+ B-
         5s P- => started e1 (the primary is down), detect 2s, command e1
         6s retune: hot after 5s => both down
         9s done/e1 => start 4s
         10s B+ => ready 1s, route backup e1, both down ended",
    );
    check_pair(
        "hot after 30s",
        "1s P+ B-
         5s P- => both down
         6s retune: cold 60s after 30s => started e1 (the primary is down), detect 2s, command e1",
    );
}

#[test]
fn other_servers_end_what_was_under_way_under_a_new_epoch() {
    check_pair(
        "cold 60s stop after 30s",
        "1s P+ B-
         5s P- => started e1 (the primary is down), detect 2s, command e1
         6s reseat: primary => failed e1 (the pair was given other servers), route primary e2
         7s done/e1
         8s P+ B-
         9s P- => started e3 (the primary is down), detect 2s, command e3",
    );
    check_pair(
        "hot after 30s",
        "1s P+ B+
         2s reseat: backup => route backup e1
         3s P+ B+
         33s look => route primary e2, failed back e2 (primary has been up for 30s)",
    );
}

#[test]
fn a_drained_primary_is_replaced_and_returns_like_one_that_was_down() {
    check_pair(
        "hot after 30s",
        "1s P+ B+
         9s P~ => started e1 (the primary is drained), detect 0s, route backup e1
         9s routed/e1 => switch 0s, finished e1 0s
         99s P=
         128s look
         129s look => route primary e2, failed back e2 (primary has been up for 30s)",
    );
}

// Seed 10250 of the simulation.
#[test]
fn a_primary_that_is_drained_no_longer_and_not_known_yet_is_waited_for() {
    check_pair(
        "cold 60s after 30s",
        "1s B-
         2s P~ => started e1 (the primary is drained), detect 0s, command e1
         3s done/e1 => start 1s
         4s P=
         5s B+
         6s P- => ready 3s, route backup e1",
    );
}

#[test]
fn a_drained_backup_takes_no_traffic_and_is_not_started() {
    check_pair(
        "hot after 30s",
        "1s P+ B+ B~
         9s P- => both down
         12s B= => started e1 (the primary is down), detect 2s, route backup e1, both down ended
         12s routed/e1 => switch 0s, finished e1 5s
         20s P+
         21s B~ => route primary e2, failed back e2 (the backup is drained)",
    );
    check_pair(
        "cold 60s after 30s",
        "1s P+ B- B~
         9s P- => both down
         99s look
         100s B= => started e1 (the primary is down), detect 2s, command e1",
    );
}

#[test]
fn a_pair_carries_on_with_the_side_and_epoch_that_were_agreed() {
    let (standby, failback) = settings("cold 60s stop after 30s");
    check(
        Pair::new(standby, failback, Side::Backup, Epoch(7)),
        "1s B+
         2s P+
         31s look
         32s look => route primary e8, failed back e8 (primary has been up for 30s), stop e8",
    );
}
