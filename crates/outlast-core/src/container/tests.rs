//! Transcripts of a program's life, and a simulation of many.

use core::num::NonZeroU16;
use std::collections::BTreeMap;
use std::string::String;
use std::vec::Vec;
use std::{format, vec};

use proptest::prelude::*;

use super::*;
use crate::health::Thresholds;
use crate::topology::{Check, Command};
use crate::units::parse_duration;

/// A bug that the simulation must be able to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bug {
    KeepCounters,
}

const SECOND: Duration = Duration::from_secs(1);

/// A probe every `every` seconds, from `delay` seconds after the start.
fn probe(every: u64, delay: u64, rise: u16, fall: u16) -> Option<Probe> {
    let count = |n| NonZeroU16::new(n).unwrap();
    Some(Probe {
        check: Check::Tcp { address: None },
        every: SECOND * u32::try_from(every).unwrap(),
        timeout: SECOND,
        thresholds: Thresholds { rise: count(rise), fall: count(fall) },
        delay: SECOND * u32::try_from(delay).unwrap(),
    })
}

fn process() -> Process {
    Process {
        nodes: Vec::new(),
        command: Command(vec!["/usr/bin/api".to_owned()]),
        directory: None,
        environment: BTreeMap::new(),
        user: None,
        image: None,
        startup: None,
        liveness: None,
        readiness: None,
        stop_timeout: SECOND * 30,
        memory_limit: None,
        cpu_limit: None,
        needs: Vec::new(),
    }
}

fn at(time: Duration) -> Now {
    let millis = i64::try_from(time.as_millis()).unwrap();
    Now { instant: Instant::from_start(time), wall: Timestamp(millis) }
}

/// Replays a transcript: lines of `time input -> actions`. What is written must be what happens.
///
/// Inputs: `started PID`, `cannot start`, `adopted PID ready|starting`, `exited`, `startup|liveness|readiness + - E`,
/// `stop`, `tick`. A changed view is shown as `(state, ready)`.
fn check_life(process: &Process, transcript: &str) {
    let mut container = Container::new("api", process, at(Duration::ZERO));
    let mut said = String::new();
    for line in transcript.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let line = line.split("->").next().unwrap().trim();
        let (time, input) = line.split_once(' ').unwrap();
        let now = at(parse_duration(time).unwrap());
        let mut out = Vec::new();
        container.step(now, parse_input(input, container.instance), &mut out);
        let shown: Vec<String> = out.iter().map(|action| show_action(action, &container)).collect();
        said += format!("{line} -> {}", shown.join(", ")).trim_end();
        said += "\n";
    }
    let expected: Vec<&str> =
        transcript.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    pretty_compare(&said, &(expected.join("\n") + "\n"));
}

fn pretty_compare(said: &str, expected: &str) {
    assert!(said == expected, "happened:\n{said}\nexpected:\n{expected}");
}

fn parse_input(text: &str, instance: u64) -> Input {
    let words: Vec<&str> = text.split_whitespace().collect();
    let probed = |kind, sign| {
        let outcome = match sign {
            "+" => Outcome::Success,
            "-" => Outcome::Failure("refused".to_owned()),
            "E" => Outcome::Error("no descriptors".to_owned()),
            other => panic!("no outcome {other}"),
        };
        Input::Probed { instance, kind, outcome }
    };
    match words.as_slice() {
        ["tick"] => Input::Tick,
        ["stop"] => Input::Stop,
        ["started", pid] => Input::Started { pid: pid.parse().unwrap() },
        ["cannot", "start"] => Input::StartFailed { reason: "no such file".to_owned() },
        ["adopted", pid, state] => Input::Adopted(Adopted {
            pid: pid.parse().unwrap(),
            ran: SECOND * 100,
            started: *state == "ready",
            ready: *state == "ready",
            restarts: 3,
        }),
        ["exited"] => Input::Exited { status: "exit status 1".to_owned() },
        ["startup", sign] => probed(Kind::Startup, sign),
        ["liveness", sign] => probed(Kind::Liveness, sign),
        ["readiness", sign] => probed(Kind::Readiness, sign),
        other => panic!("no input {other:?}"),
    }
}

fn show_action(action: &Action, container: &Container) -> String {
    match action {
        Action::Spawn => "spawn".to_owned(),
        Action::Probe { kind, .. } => format!("probe {kind}"),
        Action::Terminate { grace } => format!("terminate {}", show_duration(*grace)),
        Action::Kill => "kill".to_owned(),
        Action::Record(fact) => format!("\"{fact}\""),
        Action::Changed => {
            let view = container.view();
            format!("({}{})", view.state, if view.ready { ", ready" } else { "" })
        }
    }
}

#[test]
fn a_program_without_probes_is_ready_while_it_runs_and_is_restarted() {
    check_life(
        &process(),
        r#"
        0s tick -> spawn, (starting)
        0s started 7 -> "started, pid 7", "ready: the program runs", (running, ready)
        5s tick ->
        9s exited -> "pid 7 exited: exit status 1", spawn, (starting)
        9s started 8 -> "started, pid 8", "ready: the program runs", (running, ready)
        "#,
    );
}

#[test]
fn startup_gates_the_other_probes() {
    let process = Process {
        startup: probe(2, 0, 1, 30),
        liveness: probe(10, 0, 1, 3),
        readiness: probe(5, 0, 1, 2),
        ..process()
    };
    check_life(
        &process,
        r#"
        0s tick -> spawn, (starting)
        0s started 7 -> "started, pid 7", probe startup, (starting)
        1s startup - -> (starting)
        1s tick ->
        2s tick -> probe startup
        2s liveness - ->
        3s startup + -> probe liveness, probe readiness, (running)
        3s liveness + ->
        3s readiness + -> "ready: readiness probe succeeded", (running, ready)
        7s tick ->
        8s tick -> probe readiness
        13s tick -> probe liveness
        "#,
    );
}

#[test]
fn startup_failing_too_often_kills() {
    let process = Process { startup: probe(2, 0, 1, 2), ..process() };
    check_life(
        &process,
        r#"
        0s tick -> spawn, (starting)
        0s started 7 -> "started, pid 7", probe startup, (starting)
        0s startup - -> (starting)
        2s tick -> probe startup
        2s startup - -> "killed pid 7: startup probe failed: refused (2 times in a row)", terminate 30s, (stopping)
        3s exited -> "pid 7 exited: exit status 1", spawn, (starting)
        "#,
    );
}

#[test]
fn liveness_failing_three_times_kills_and_the_next_instance_needs_three_again() {
    let process = Process { liveness: probe(10, 0, 1, 3), ..process() };
    check_life(
        &process,
        r#"
        0s tick -> spawn, (starting)
        0s started 7 -> "started, pid 7", "ready: the program runs", probe liveness, (running, ready)
        0s liveness - ->
        10s tick -> probe liveness
        10s liveness - ->
        20s tick -> probe liveness
        20s liveness - -> "killed pid 7: liveness probe failed: refused (3 times in a row)", terminate 30s, (stopping, ready)
        21s exited -> "pid 7 exited: exit status 1", spawn, (starting)
        21s started 8 -> "started, pid 8", "ready: the program runs", probe liveness, (running, ready)
        21s liveness - ->
        31s tick -> probe liveness
        31s liveness - ->
        41s tick -> probe liveness
        41s liveness + ->
        51s tick -> probe liveness
        51s liveness - ->
        "#,
    );
}

#[test]
fn a_late_answer_about_an_earlier_instance_counts_for_nothing() {
    let process = Process { liveness: probe(10, 0, 1, 1), ..process() };
    let mut container = Container::new("api", &process, at(Duration::ZERO));
    let mut out = Vec::new();
    for input in [
        Input::Tick,
        Input::Started { pid: 7 },
        Input::Exited { status: "exit status 1".to_owned() },
        Input::Started { pid: 8 },
    ] {
        container.step(at(SECOND), input, &mut out);
    }
    let outcome = Outcome::Failure("refused".to_owned());
    out.clear();
    container.step(
        at(SECOND),
        Input::Probed { instance: 1, kind: Kind::Liveness, outcome },
        &mut out,
    );
    assert_eq!(out, []);
}

/// Feeds `P`, `F` and `E`; `+` or `-` behind one shows that it made the program ready or not ready.
fn check_readiness(expected: &str) {
    let process = Process { readiness: probe(1, 0, 2, 3), ..process() };
    let mut container = Container::new("api", &process, at(Duration::ZERO));
    let mut time = Duration::ZERO;
    let mut feed = |container: &mut Container, input: Input| {
        time += SECOND;
        container.step(at(time), input, &mut Vec::new());
        container.view().ready
    };
    feed(&mut container, Input::Tick);
    feed(&mut container, Input::Started { pid: 7 });
    let mut ready = false;
    let mut said = Vec::new();
    for word in expected.split_whitespace() {
        let letter = word.trim_end_matches(['+', '-']);
        let sign = match letter {
            "P" => "+",
            "F" => "-",
            other => other,
        };
        let input = parse_input(&format!("readiness {sign}"), container.instance);
        let after = feed(&mut container, input);
        let change = match (ready, after) {
            (false, true) => "+",
            (true, false) => "-",
            (true, true) | (false, false) => "",
        };
        said.push(format!("{letter}{change}"));
        ready = after;
    }
    assert_eq!(said.join(" "), expected);
}

#[test]
fn kubernetes_readiness_vectors_hold() {
    check_readiness("P P+ F F P F F F- P F P P+");
    check_readiness("F F F F P P+");
    // An error anywhere changes nothing.
    check_readiness("E P E P+ F E F P E F F E F- E P F P E P+ E E E");
}

#[test]
fn the_delay_counts_from_the_start_of_the_program() {
    let process = Process {
        startup: probe(2, 3, 1, 30),
        liveness: probe(10, 30, 1, 3),
        readiness: probe(5, 4, 1, 2),
        ..process()
    };
    check_life(
        &process,
        r#"
        0s tick -> spawn, (starting)
        0s started 7 -> "started, pid 7", (starting)
        2s tick ->
        3s tick -> probe startup
        3s startup + -> (running)
        4s tick -> probe readiness
        29s tick ->
        30s tick -> probe liveness
        "#,
    );
}

#[test]
fn the_first_restart_is_immediate_and_the_next_wait_longer_and_longer() {
    let mut container = Container::new("api", &process(), at(Duration::ZERO));
    let mut now = Duration::ZERO;
    // Starts, runs for a while, exits; returns how long it then waits.
    let mut wait_after = |run: Duration| {
        let mut out = Vec::new();
        container.step(at(now), Input::Tick, &mut out);
        container.step(at(now), Input::Started { pid: 7 }, &mut out);
        now += run;
        container.step(at(now), Input::Exited { status: String::new() }, &mut out);
        let until = container.deadline();
        let wait = until.map_or(Duration::ZERO, |until| until.since(Instant::from_start(now)));
        now += wait;
        wait.as_secs()
    };
    let waits = [0, 10, 20, 40, 80, 160, 300, 300, 300];
    assert_eq!(waits.map(|_| wait_after(SECOND)), waits);
    assert_eq!(wait_after(HEALTHY_RUN - SECOND), 300);
    assert_eq!([HEALTHY_RUN, SECOND, SECOND].map(wait_after), [0, 10, 20]);
}

#[test]
fn a_program_that_cannot_be_started_is_tried_again() {
    check_life(
        &process(),
        r#"
        0s tick -> spawn, (starting)
        0s cannot start -> spawn, (starting)
        0s cannot start -> "restarts in 10s", (waiting)
        10s tick -> spawn, (starting)
        10s started 7 -> "started, pid 7", "ready: the program runs", (running, ready)
        "#,
    );
}

#[test]
fn a_stop_asks_then_kills_and_readiness_goes_on() {
    let process = Process {
        liveness: probe(10, 0, 1, 1),
        readiness: probe(5, 0, 1, 1),
        stop_timeout: SECOND * 8,
        ..process()
    };
    check_life(
        &process,
        r#"
        0s tick -> spawn, (starting)
        0s started 7 -> "started, pid 7", probe liveness, probe readiness, (running)
        0s readiness + -> "ready: readiness probe succeeded", (running, ready)
        1s stop -> terminate 8s, (stopping, ready)
        2s liveness - ->
        2s stop ->
        5s tick -> probe readiness
        6s readiness - -> "not ready: readiness probe failed: refused", (stopping)
        9s tick -> kill
        10s tick -> probe readiness
        11s exited -> "pid 7 exited: exit status 1", (stopped)
        12s tick ->
        "#,
    );
}

#[test]
fn a_stop_is_heard_at_any_moment() {
    check_life(&process(), "0s stop -> (stopped)\n0s tick ->");
    check_life(
        &process(),
        r#"
        0s tick -> spawn, (starting)
        0s stop ->
        1s started 7 -> "started, pid 7", "ready: the program runs", terminate 30s, (stopping, ready)
        2s exited -> "pid 7 exited: exit status 1", (stopped)
        "#,
    );
    check_life(
        &process(),
        r#"
        0s tick -> spawn, (starting)
        0s cannot start -> spawn, (starting)
        0s cannot start -> "restarts in 10s", (waiting)
        5s stop -> (stopped)
        10s tick ->
        "#,
    );
}

#[test]
fn an_adopted_program_keeps_what_was_believed_of_it() {
    let process = Process {
        startup: probe(2, 0, 1, 30),
        liveness: probe(10, 0, 1, 3),
        readiness: probe(5, 0, 2, 3),
        ..process()
    };
    check_life(
        &process,
        r#"
        0s adopted 7 ready -> "found running, pid 7", probe liveness, probe readiness, (running, ready)
        0s readiness - -> (running, ready)
        5s tick -> probe readiness
        5s readiness - -> (running, ready)
        "#,
    );
    check_life(
        &process,
        r#"
        0s adopted 7 starting -> "found running, pid 7", probe startup, (starting)
        0s startup + -> probe liveness, probe readiness, (running)
        "#,
    );
}

/// A small generator (xorshift64*, Vigna 2014), so that a seed is the whole story.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What the world knows of the instance that lives.
#[derive(Default)]
struct Instance {
    pid: u32,
    startup_ok: bool,
    liveness_failures: u16,
    kill_due: bool,
    terminated: Option<u64>,
    killed: bool,
    deaf: bool,
}

/// Runs a program with random probes, exits and deafness to SIGTERM; says which law was broken.
fn simulate(seed: u64, planted: Option<Bug>) -> Result<(), String> {
    const FALL: u16 = 3;
    const GRACE: u64 = 8_000;
    const STEP_MS: u64 = 250;
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let gated = random.chance(50);
    let process = Process {
        startup: if gated { probe(1, random.below(3), 1, 5) } else { None },
        liveness: probe(1 + random.below(3), random.below(3), 1, FALL),
        readiness: probe(2, 0, 2, 2),
        stop_timeout: Duration::from_millis(GRACE),
        ..process()
    };
    let mut container = Container::new("api", &process, at(Duration::ZERO));
    container.planted = planted;
    let mut inputs: Vec<(u64, Input)> = vec![(0, Input::Tick)];
    let mut alive: Option<Instance> = None;
    let mut spawning = false;
    let mut pids = 0;
    let stop_at = 200_000 + random.below(200_000);
    let mut stopping = false;
    let fail = |time: u64, law: &str| Err(format!("{time} ms: {law}"));

    let mut time = 0;
    while time < stop_at + GRACE + 20_000 {
        if time >= stop_at && !stopping {
            stopping = true;
            inputs.push((time, Input::Stop));
        }
        if alive.is_some() && random.below(400) == 0 {
            inputs.push((time, Input::Exited { status: "crash".to_owned() }));
        }
        inputs.push((time, Input::Tick));
        // Answers that are due, in the order of their moments.
        inputs.sort_by_key(|(due, _)| *due);
        let due = inputs.iter().take_while(|(due, _)| *due <= time).count();
        for (_, input) in inputs.drain(..due).collect::<Vec<_>>() {
            match (&input, &mut alive) {
                (Input::Exited { .. }, None) => continue,
                (Input::Exited { .. }, Some(_)) => alive = None,
                (Input::Started { pid }, _) => {
                    spawning = false;
                    let deaf = random.chance(30);
                    let (pid, startup_ok) = (*pid, !gated);
                    alive = Some(Instance { pid, startup_ok, deaf, ..Instance::default() });
                }
                (Input::StartFailed { .. }, _) => spawning = false,
                (Input::Probed { instance, kind, outcome }, Some(life))
                    if *instance == container.instance =>
                {
                    match (kind, outcome) {
                        (Kind::Startup, Outcome::Success) => life.startup_ok = true,
                        (Kind::Liveness, Outcome::Success) => life.liveness_failures = 0,
                        (Kind::Liveness, Outcome::Failure(_)) => life.liveness_failures += 1,
                        (Kind::Startup, Outcome::Failure(_) | Outcome::Error(_))
                        | (Kind::Liveness, Outcome::Error(_))
                        | (Kind::Readiness, _) => {}
                    }
                    if life.liveness_failures == FALL {
                        life.kill_due = true;
                    }
                }
                (Input::Probed { .. } | Input::Adopted(_) | Input::Stop | Input::Tick, _) => {}
            }
            let mut out = Vec::new();
            container.step(at(Duration::from_millis(time)), input, &mut out);
            for action in out {
                match (action, &mut alive) {
                    (Action::Spawn, Some(_)) => return fail(time, "two live instances"),
                    (Action::Spawn, None) => {
                        if spawning || stopping {
                            return fail(time, "a spawn too many");
                        }
                        spawning = true;
                        let answered = time + random.below(500);
                        pids += 1;
                        inputs.push(if random.chance(10) {
                            (answered, Input::StartFailed { reason: String::new() })
                        } else {
                            (answered, Input::Started { pid: pids })
                        });
                    }
                    (Action::Probe { instance, kind }, Some(life)) => {
                        if kind != Kind::Startup && !life.startup_ok {
                            return fail(time, "asked before the startup probe succeeded");
                        }
                        let outcome = match random.below(10) {
                            0 => Outcome::Error("no descriptors".to_owned()),
                            1..=4 => Outcome::Failure("refused".to_owned()),
                            _ => Outcome::Success,
                        };
                        inputs.push((
                            time + random.below(900),
                            Input::Probed { instance, kind, outcome },
                        ));
                    }
                    (Action::Terminate { .. }, Some(life)) => {
                        if life.terminated.is_some() {
                            return fail(time, "terminated twice");
                        }
                        let startup = gated && !life.startup_ok;
                        if !life.kill_due && !startup && !stopping {
                            return fail(time, "terminated without a reason");
                        }
                        life.terminated = Some(time);
                        if !life.deaf {
                            inputs.push((
                                time + random.below(GRACE),
                                Input::Exited { status: "15".to_owned() },
                            ));
                        }
                    }
                    (Action::Kill, Some(life)) => {
                        if life.terminated.is_none() || life.killed {
                            return fail(time, "killed without a warning, or twice");
                        }
                        life.killed = true;
                        inputs.push((
                            time + random.below(100),
                            Input::Exited { status: "9".to_owned() },
                        ));
                    }
                    (Action::Probe { .. } | Action::Terminate { .. } | Action::Kill, None) => {
                        return fail(time, "an order to nobody");
                    }
                    (Action::Record(_) | Action::Changed, _) => {}
                }
            }
            if let Some(life) = &alive {
                if life.kill_due && life.terminated.is_none() {
                    return fail(time, "not killed after three failures in a row");
                }
                if container.view().pid != Some(life.pid) {
                    return fail(time, "the view shows another pid");
                }
                if container.view().ready && !life.startup_ok {
                    return fail(time, "ready before started");
                }
                if life.terminated.is_some_and(|since| since + GRACE < time) && !life.killed {
                    return fail(time, "the grace is over and nobody killed");
                }
            } else if container.view().ready {
                return fail(time, "ready without an instance");
            }
        }
        time += STEP_MS;
    }
    if container.is_stopped() { Ok(()) } else { fail(time, "never stopped") }
}

#[test]
fn no_law_is_broken_in_any_seed() {
    for seed in 0..300 {
        assert_eq!(simulate(seed, None), Ok(()), "replay with seed {seed}");
    }
}

#[test]
fn the_simulation_finds_counters_that_survive_a_restart() {
    let found = (0..300).find_map(|seed| simulate(seed, Some(Bug::KeepCounters)).err());
    assert!(
        found
            .is_some_and(|law| law.contains("terminated without a reason")
                || law.contains("not killed after")),
        "not found"
    );
}

proptest! {
    /// Inputs in any order, sensible or not, never break what must hold.
    #[test]
    fn no_input_at_all_makes_a_second_instance(words in prop::collection::vec(0usize..12, 0..200)) {
        const INPUTS: [&str; 12] = [
            "tick", "started 7", "cannot start", "exited", "startup +", "startup -", "liveness +", "liveness -",
            "readiness +", "readiness E", "adopted 9 ready", "tick",
        ];
        let process = Process {
            startup: probe(2, 0, 1, 2), liveness: probe(2, 0, 1, 2), readiness: probe(2, 0, 1, 2), ..process()
        };
        let mut container = Container::new("api", &process, at(Duration::ZERO));
        let mut time = Duration::ZERO;
        for word in words {
            time += SECOND * 3;
            let ran = container.view().pid;
            let mut out = Vec::new();
            container.step(at(time), parse_input(INPUTS[word], container.instance), &mut out);
            let spawns = out.iter().filter(|action| **action == Action::Spawn).count();
            prop_assert!(spawns <= 1);
            if INPUTS[word] != "exited" {
                prop_assert!(ran.is_none() || (spawns == 0 && container.view().pid == ran));
            }
            let overdue = container.deadline().is_some_and(|due| due <= Instant::from_start(time));
            prop_assert!(!overdue, "a deadline is left in the past");
        }
        // Whatever state that led to: a stop comes to its end, with SIGKILL if need be.
        container.step(at(time), Input::Stop, &mut Vec::new());
        if let Phase::Alive(life) = &container.phase {
            if let Ending::Terminating { kill_at } = life.ending {
                let mut out = Vec::new();
                container.step(at(kill_at.since_start()), Input::Tick, &mut out);
                prop_assert!(out.contains(&Action::Kill));
            }
            container.step(at(time), Input::Exited { status: "9".to_owned() }, &mut Vec::new());
        }
        prop_assert!(container.is_stopped() || matches!(container.phase, Phase::Spawning));
    }
}
