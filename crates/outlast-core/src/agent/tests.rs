use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::string::String;
use std::vec::Vec;

use super::*;
use crate::sim::topologies::{balanced, external, pair, part, probe, service};
use crate::topology::{Command, Failback, PartKind, Standby};
use crate::view::ProcessState;

fn at(seconds: u64) -> Now {
    let wall = Timestamp(i64::try_from(seconds).unwrap() * 1000);
    Now { instant: Instant::from_start(Duration::from_secs(seconds)), wall }
}

fn backend(service: &str, backend: &str) -> Target {
    Target::Backend { service: service.to_owned(), backend: backend.to_owned() }
}

/// One service of two backends, one pair, one external part: `web` needs `db` and may use `mail`.
fn topology() -> Topology {
    let mut web = service(balanced(&["a", "b", "c"]), probe(5, 1, 1));
    web.at_least = NonZeroU16::new(2).unwrap();
    let db = service(pair("p", "q", Standby::Hot, Failback::Manual), probe(5, 1, 1));
    Topology {
        services: BTreeMap::from([("web".to_owned(), web), ("db".to_owned(), db)]),
        externals: BTreeMap::from([
            ("mail".to_owned(), external(Some(probe(5, 1, 1)))),
            ("power".to_owned(), external(None)),
        ]),
        ..Topology::default()
    }
}

/// The disk takes whatever it is given.
fn step(agent: &mut Agent, now: Now, input: Input) -> Vec<Action> {
    let mut out = Vec::new();
    agent.step(now, input, &mut out);
    if agent.awaits_save() {
        assert_eq!(out.last(), Some(&Action::SavePairs));
        agent.saved(now, &mut out);
    }
    out
}

fn probed(agent: &mut Agent, now: Now, target: Target, ok: bool) -> Vec<Action> {
    step(agent, now, Input::Probed { target, ok, reason: "it said so".to_owned() })
}

fn facts(actions: Vec<Action>) -> Vec<String> {
    actions
        .into_iter()
        .filter_map(|action| match action {
            Action::Record(fact) => Some(std::format!("{} {fact}", fact.subject())),
            Action::SavePairs
            | Action::Publish
            | Action::StandbyCommand { .. }
            | Action::StandbyStop { .. }
            | Action::Agree(_) => None,
        })
        .collect()
}

/// Leads an agent to these beliefs: `a+` up, `a-` down, `a~` drained, `a!` ejected; what is not named is unknown.
fn lead(topology: Topology, words: &str) -> Agent {
    let mut agent = Agent::new(topology.clone(), &Resume::default(), at(0));
    let all = targets(&topology);
    for (i, word) in words.split_whitespace().enumerate() {
        let now = at(i as u64);
        let (name, sign) = word.split_at(word.len() - 1);
        let target = all.iter().map(|(target, _)| target).find(|target| match target {
            Target::Backend { backend, .. } => backend == name,
            Target::External { name: external } | Target::Value { id: external } => {
                external == name
            }
        });
        let target = target.unwrap_or_else(|| panic!("there is no `{name}`")).clone();
        if sign == "+" || sign == "-" {
            probed(&mut agent, now, target, sign == "+");
            continue;
        }
        let Target::Backend { service, backend } = target else { panic!("`{name}` is outside") };
        let (reason, time) = ("5 failures in a row".to_owned(), Duration::from_secs(1000));
        let input = match sign {
            "~" => Input::Drain { service, backend, on: true },
            "!" => Input::Ejected { service, backend, reason, time },
            other => panic!("`{other}` is no sign"),
        };
        step(&mut agent, now, input);
    }
    agent
}

#[track_caller]
fn check_state(topology: &Topology, words: &str, service: &str, expected: &str) {
    let agent = lead(topology.clone(), words);
    let view = agent.view(at(100).instant);
    let seen = &view.services[service];
    assert_eq!(std::format!("{}: {}", seen.state, seen.why), expected, "{words}");
}

#[test]
fn a_balanced_service_is_judged_by_how_many_are_up() {
    let t = topology();
    for (words, expected) in [
        ("", "unknown: 0 of 3 backends up, 3 not probed yet"),
        ("a+", "unknown: 1 of 3 backends up, 2 not probed yet"),
        ("a+ b+", "up: 2 of 3 backends up, 1 not probed yet"),
        ("a+ b+ c+", "up: 3 of 3 backends up"),
        ("a+ b+ c-", "degraded: 2 of 3 backends up"),
        ("a+ b-", "unknown: 1 of 3 backends up, 1 not probed yet"),
        ("a- b-", "down: 0 of 3 backends up, 2 needed"),
        ("a+ b- c-", "down: 1 of 3 backends up, 2 needed"),
        ("a+ b+ c+ c~", "degraded: 2 of 3 backends up"),
        ("a+ b+ c+ c!", "degraded: 2 of 3 backends up"),
        ("a+ b+ c+ c! c~", "degraded: 2 of 3 backends up"),
        ("a+ b+ c+ b! c~", "down: 1 of 3 backends up, 2 needed"),
        ("a+ b+ c- c~", "degraded: 2 of 3 backends up"),
    ] {
        check_state(&t, words, "web", expected);
    }
}

#[test]
fn a_pair_is_judged_by_the_side_that_serves() {
    let t = topology();
    for (words, expected) in [
        ("", "unknown: not probed yet"),
        ("q+", "unknown: not probed yet"),
        ("p+", "up: the primary serves"),
        ("p+ q-", "up: the primary serves"),
        ("p-", "down: the primary is down"),
        ("p- q-", "down: primary and backup are both down"),
        ("p- q+", "degraded: the backup serves"),
        ("q+ p- p+", "degraded: the backup serves"),
        ("q+ p- q-", "down: primary and backup are both down"),
        ("p+ p~", "down: the primary is drained"),
        ("p+ q+ p~", "degraded: the backup serves"),
        ("p- q+ q~", "down: the backup is drained"),
        ("p+ q+ q~", "up: the primary serves"),
    ] {
        check_state(&t, words, "db", expected);
    }
}

#[test]
fn needs_decide_between_up_and_down_and_may_use_between_up_and_degraded() {
    let mut t = topology();
    let web = t.services.get_mut("web").unwrap();
    web.needs =
        std::vec![part(PartKind::Service, "db"), part(PartKind::Postgres, "watched-by-nobody")];
    web.may_use = std::vec![part(PartKind::External, "mail"), part(PartKind::External, "power")];
    for (words, expected) in [
        ("a+ b+ c+", "unknown: needs service.db, which is not known yet"),
        ("a- b- c-", "down: 0 of 3 backends up, 2 needed"),
        ("a+ b+ c+ p+", "up: 3 of 3 backends up"),
        ("a+ b+ c+ p-", "down: needs service.db, which is down"),
        ("a+ b+ c+ p- q+", "up: 3 of 3 backends up"),
        ("a+ b+ c+ p+ mail-", "degraded: goes on without external.mail"),
        ("a+ b+ c+ p+ mail+", "up: 3 of 3 backends up"),
        ("a+ b- c- p+ mail-", "down: 1 of 3 backends up, 2 needed"),
    ] {
        check_state(&t, words, "web", expected);
    }
}

#[test]
fn services_that_may_use_each_other_are_judged_all_the_same() {
    let mut t = topology();
    t.services.get_mut("web").unwrap().may_use = std::vec![part(PartKind::Service, "db")];
    t.services.get_mut("db").unwrap().may_use = std::vec![part(PartKind::Service, "web")];
    check_state(&t, "a+ b+ c+ p-", "web", "degraded: goes on without service.db");
    check_state(&t, "a- b- p+", "db", "degraded: goes on without service.web");
    check_state(&t, "a- b- p-", "web", "down: 0 of 3 backends up, 2 needed");
}

#[test]
fn a_process_that_is_needed_must_be_ready() {
    let mut t = topology();
    t.services.get_mut("web").unwrap().needs = std::vec![part(PartKind::Process, "worker")];
    t.processes.insert("worker".to_owned(), process());
    let mut agent = lead(t, "a+ b+ c+");
    let state = |agent: &Agent| agent.view(at(9).instant).services["web"].state;
    assert_eq!(state(&agent), ServiceState::Up);
    let process = "worker".to_owned();
    step(&mut agent, at(9), Input::Process { process: process.clone(), view: worker(false) });
    assert_eq!(state(&agent), ServiceState::Down);
    step(&mut agent, at(9), Input::Process { process, view: worker(true) });
    assert_eq!(state(&agent), ServiceState::Up);
}

fn process() -> topology::Process {
    topology::Process {
        nodes: Vec::new(),
        command: Command(std::vec!["worker".to_owned()]),
        directory: None,
        environment: BTreeMap::new(),
        user: None,
        image: None,
        startup: None,
        liveness: None,
        readiness: None,
        stop_timeout: Duration::from_secs(10),
        memory_limit: None,
        cpu_limit: None,
        needs: Vec::new(),
    }
}

fn worker(ready: bool) -> ProcessView {
    ProcessView {
        state: ProcessState::Running,
        since: Timestamp(0),
        ready,
        restarts: 0,
        pid: Some(7),
        reason: String::new(),
    }
}

fn reload(agent: &mut Agent, topology: Topology, now: Now) -> Vec<Action> {
    let mut out = Vec::new();
    agent.reload(topology, now, &mut out);
    if agent.awaits_save() {
        agent.saved(now, &mut out);
    }
    out
}

#[test]
fn a_reload_keeps_what_is_believed_of_what_stays() {
    let mut agent = lead(topology(), "a+ b+ c- p- q+ a~ mail+");
    let mut t = topology();
    t.services.get_mut("web").unwrap().probe = probe(9, 3, 3);
    t.services.get_mut("web").unwrap().pool = balanced(&["a", "b", "d"]);
    let said = facts(reload(&mut agent, t, at(50)));
    assert_eq!(
        said,
        [
            "topology applied: service.web changed",
            "service.web down -> unknown: 1 of 3 backends up, 1 not probed yet"
        ]
    );
    let view = agent.view(at(50).instant);
    assert_eq!(view.generation, 2);
    let healths = |service: &str| {
        let backends = view.services[service].backends.iter();
        backends.map(|b| (b.health, b.draining)).collect::<Vec<_>>()
    };
    let (up, down, unknown) = (Health::Up, Health::Down, Health::Unknown);
    assert_eq!(healths("web"), [(up, true), (up, false), (unknown, false)]);
    assert_eq!(healths("db"), [(down, false), (up, false)]);
    assert_eq!(view.services["db"].active, Some((Side::Backup, Epoch(1))));
    assert_eq!(view.externals["mail"].health, up);
    // The new thresholds hold from the next answer on.
    assert_eq!(facts(probed(&mut agent, at(51), backend("web", "b"), false)), [""; 0]);
}

#[test]
fn what_comes_late_about_what_has_left_is_dropped() {
    let mut t = topology();
    t.processes.insert("worker".to_owned(), process());
    let mut agent = lead(t, "a+ b+ c+ p+ q+ a! b~");
    let mut rest = topology();
    rest.services.remove("web");
    rest.externals.clear();
    reload(&mut agent, rest, at(50));
    let before = agent.view(at(60).instant);
    assert_eq!(before.services.keys().collect::<Vec<_>>(), ["db"]);
    assert!(before.externals.is_empty() && before.processes.is_empty());
    let (web, a, reason) = ("web".to_owned(), "a".to_owned(), "late".to_owned());
    let mail = Target::External { name: "mail".to_owned() };
    for late in [
        Input::Probed { target: backend("web", "a"), ok: false, reason: reason.clone() },
        Input::Probed { target: mail, ok: false, reason: reason.clone() },
        Input::Ejected {
            service: web.clone(),
            backend: a.clone(),
            reason,
            time: Duration::from_secs(9),
        },
        Input::Returned { service: web.clone(), backend: a.clone() },
        Input::Drain { service: web.clone(), backend: a, on: true },
        Input::CommandDone { service: web.clone(), epoch: Epoch(1), result: Ok(()) },
        Input::Routed { service: web.clone(), epoch: Epoch(1) },
        Input::Failback { service: web },
        Input::Process { process: "worker".to_owned(), view: worker(true) },
    ] {
        assert_eq!(step(&mut agent, at(60), late), [Action::Publish]);
        assert_eq!(agent.view(at(60).instant), before);
    }
    // What returns knows nothing of its former life.
    reload(&mut agent, topology(), at(70));
    let web = &agent.view(at(70).instant).services["web"];
    assert!(web.backends.iter().all(|b| {
        (b.health, b.draining, b.ejected, b.streak) == (Health::Unknown, false, false, 0)
    }));
    assert_eq!((web.state, web.since), (ServiceState::Unknown, at(70).wall));
}

#[test]
fn a_server_that_changes_its_role_goes_on_serving_under_a_new_epoch() {
    let serving = |agent: &Agent| {
        let db = agent.view(at(60).instant).services["db"].clone();
        let (side, epoch) = db.active.expect("it is a pair");
        let serves = db.backends.iter().find(|b| b.role == Some(side)).expect("it has the side");
        (serves.name.clone(), epoch)
    };
    let with = |primary: &str, backup: &str| {
        let mut t = topology();
        t.services.get_mut("db").unwrap().pool =
            pair(primary, backup, Standby::Hot, Failback::Manual);
        t
    };
    for (before, primary, backup, serves, epoch) in [
        ("p+ q+", "q", "p", "p", 1),
        ("p+ q+ p-", "q", "p", "q", 2),
        ("p+ q+", "p", "r", "p", 1),
        ("p+ q+", "r", "q", "r", 1),
        ("p+ q+ p-", "r", "q", "q", 2),
        ("p+ q+ p-", "p", "r", "p", 2),
    ] {
        let mut agent = lead(topology(), before);
        let actions = reload(&mut agent, with(primary, backup), at(50));
        assert!(actions.contains(&Action::SavePairs));
        let expected = (serves.to_owned(), Epoch(epoch));
        assert_eq!(serving(&agent), expected, "{before}, then {primary} {backup}");
        assert_eq!(agent.pairs()["db"].1, Epoch(epoch));
    }
}

#[test]
fn the_epochs_of_a_pair_go_on_when_it_comes_back() {
    let mut agent = lead(topology(), "p+ q+ p-");
    assert_eq!(agent.pairs()["db"], (Side::Backup, Epoch(1)));
    let mut without = topology();
    without.services.remove("db");
    assert!(reload(&mut agent, without.clone(), at(50)).contains(&Action::SavePairs));
    assert_eq!(agent.pairs()["db"], (Side::Primary, Epoch(2)));
    // Even if the agent restarts in between.
    let resume = Resume { pairs: agent.pairs(), ..Resume::default() };
    let mut agent = Agent::new(without, &resume, at(60));
    assert_eq!(agent.pairs(), resume.pairs);
    reload(&mut agent, topology(), at(70));
    let db = &agent.view(at(70).instant).services["db"];
    assert_eq!(db.active, Some((Side::Primary, Epoch(2))));
}

#[test]
fn a_pair_is_saved_before_its_epoch_is_told_and_published_last() {
    let mut agent = lead(topology(), "p+ q+");
    let actions = probed(&mut agent, at(9), backend("db", "p"), false);
    let words: Vec<String> = actions
        .iter()
        .map(|action| match action {
            Action::Record(fact) => fact.name().to_owned(),
            Action::SavePairs => "save".to_owned(),
            Action::Publish => "publish".to_owned(),
            Action::StandbyCommand { .. } | Action::StandbyStop { .. } | Action::Agree(_) => {
                "order".to_owned()
            }
        })
        .collect();
    let expected =
        "health_changed save failover_started failover_stage service_changed publish".to_owned();
    assert_eq!(words.join(" "), expected);
    assert_eq!(agent.switching(), [("db".to_owned(), Epoch(1))]);
    let routed = Input::Routed { service: "db".to_owned(), epoch: Epoch(1) };
    let said = facts(step(&mut agent, at(9), routed));
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(agent.switching().is_empty());
}

#[test]
fn a_standby_that_is_being_stopped_is_unknown_until_its_probe_speaks_again() {
    let command = |name: &str| Command(std::vec![name.to_owned()]);
    let standby = Standby::Cold {
        start: command("start"),
        stop: Some(command("stop")),
        start_limit: Duration::from_secs(60),
    };
    let mut t = topology();
    t.services.get_mut("db").unwrap().pool =
        pair("p", "q", standby, Failback::After(Duration::ZERO));
    let resume = Resume {
        pairs: BTreeMap::from([("db".to_owned(), (Side::Backup, Epoch(4)))]),
        beliefs: BTreeMap::from([(backend("db", "q"), Health::Up)]),
        ..Resume::default()
    };
    let mut agent = Agent::new(t, &resume, at(0));
    let actions = probed(&mut agent, at(1), backend("db", "p"), true);
    assert!(actions.contains(&Action::StandbyStop { service: "db".to_owned(), epoch: Epoch(5) }));
    assert!(
        facts(actions)
            .contains(&"service.db q up -> unknown: the standby is being stopped".to_owned())
    );
    // The primary is lost again before the stop has ended: the start waits until the standby is known to be down.
    assert!(!probed(&mut agent, at(2), backend("db", "p"), false).contains(&Action::SavePairs));
    let actions = probed(&mut agent, at(3), backend("db", "q"), false);
    let start = Action::StandbyCommand { service: "db".to_owned(), epoch: Epoch(6) };
    assert!(actions.contains(&start), "{actions:?}");
}

/// A step whose decision the disk refuses.
fn refused(agent: &mut Agent, now: Now, input: Input) -> Vec<Action> {
    let mut out = Vec::new();
    agent.step(now, input, &mut out);
    assert!(agent.awaits_save(), "{out:?}");
    assert_eq!(out.pop(), Some(Action::SavePairs));
    agent.not_saved(now, "no space left".to_owned(), &mut out);
    out
}

#[test]
fn what_the_disk_refuses_is_not_decided_and_is_tried_again() {
    let mut agent = lead(topology(), "a+ b+ c+ p+ q+");
    let down =
        Input::Probed { target: backend("db", "p"), ok: false, reason: "refused".to_owned() };
    let actions = refused(&mut agent, at(9), down);
    assert_eq!(
        facts(actions),
        [
            "service.db p up -> down: refused",
            "agent no pair changes sides until it can be written down: no space left",
            "service.db up -> down: the primary is down",
        ]
        .map(str::to_owned)
    );
    let view = agent.view(at(9).instant);
    assert_eq!(view.services["db"].active, Some((Side::Primary, Epoch(0))));
    assert_eq!(view.not_saved.as_deref(), Some("no space left"));
    assert_eq!(agent.pairs()["db"], (Side::Primary, Epoch(0)));
    // What concerns no pair goes on meanwhile; a person's wish is not forgotten.
    let after = |ms| {
        let wall = Timestamp(9_000 + i64::try_from(ms).unwrap());
        Now { instant: at(9).instant + Duration::from_millis(ms), wall }
    };
    let words = facts(probed(&mut agent, after(100), backend("web", "a"), false));
    assert_eq!(
        words,
        ["service.web a up -> down: it said so", "service.web up -> degraded: 2 of 3 backends up",]
            .map(str::to_owned)
    );
    assert_eq!(step(&mut agent, after(200), Input::Tick), [Action::Publish]);
    // Again after a second, then after two.
    assert_eq!(agent.deadline(after(200).instant), Some(at(10).instant));
    let again = refused(&mut agent, at(10), Input::Tick);
    assert_eq!(again, [Action::Publish], "it is said once");
    assert_eq!(agent.deadline(at(10).instant), Some(at(12).instant));
    let words = facts(step(&mut agent, at(12), Input::Tick));
    assert_eq!(
        words,
        [
            "agent who serves each pair can be written down again",
            "service.db failover primary -> backup, epoch 1: the primary is down",
            "service.db failover stage `detect` took 0s",
            "service.db down -> degraded: the backup serves",
        ]
        .map(str::to_owned)
    );
    let view = agent.view(at(12).instant);
    assert_eq!(view.services["db"].active, Some((Side::Backup, Epoch(1))));
    assert_eq!(view.not_saved, None);
}

#[test]
fn a_disk_that_takes_it_again_is_noticed_although_nothing_is_to_be_decided() {
    let mut agent = lead(topology(), "p+ q+");
    let probe =
        |ok| Input::Probed { target: backend("db", "p"), ok, reason: "it said so".to_owned() };
    refused(&mut agent, at(9), probe(false));
    step(&mut agent, at(9), probe(true));
    let words = facts(step(&mut agent, at(10), Input::Tick));
    assert_eq!(words, ["agent who serves each pair can be written down again".to_owned()]);
    assert_eq!(agent.deadline(at(10).instant), None);
}

#[test]
fn an_ejection_whose_end_nobody_tells_ends_by_itself() {
    let mut agent = lead(topology(), "a+ b+ c+");
    let ejected = Input::Ejected {
        service: "web".to_owned(),
        backend: "c".to_owned(),
        reason: "5 failures in a row".to_owned(),
        time: Duration::from_secs(10),
    };
    assert_eq!(facts(step(&mut agent, at(20), ejected)).len(), 2);
    let until = at(30).instant + EJECT_GRACE;
    assert_eq!(agent.deadline(at(21).instant), Some(until));
    let said = facts(step(&mut agent, Now { instant: until, wall: at(35).wall }, Input::Tick));
    assert_eq!(
        said,
        ["service.web c returned after ejection", "service.web degraded -> up: 3 of 3 backends up"]
    );
    assert_eq!(agent.deadline(at(36).instant), None);
}

#[test]
fn a_service_that_nobody_has_looked_at_is_unknown_since_the_start() {
    let agent = Agent::new(topology(), &Resume::default(), at(5));
    let web = &agent.view(at(5).instant).services["web"];
    assert_eq!((web.state, web.since), (ServiceState::Unknown, at(5).wall));
}

#[test]
fn a_reload_says_what_changed() {
    type Edit<'a> = &'a dyn Fn(&mut Topology);
    let change = |edit: Edit<'_>| {
        let (mut old, mut new) = (topology(), topology());
        old.processes.insert("old".to_owned(), process());
        new.processes.insert("old".to_owned(), process());
        edit(&mut new);
        changes(&old, &new)
    };
    let cases: [(Edit<'_>, &str); 8] = [
        (&|_| {}, "nothing that runs changed"),
        (&|t| drop(t.services.remove("db")), "service.db removed"),
        (
            &|t| {
                let web = t.services["web"].clone();
                t.services.insert("api".to_owned(), web);
                t.services.get_mut("web").unwrap().critical = false;
            },
            "service.api added, service.web changed",
        ),
        (&|t| drop(t.processes.insert("new".to_owned(), process())), "process.new added"),
        (&|t| drop(t.processes.remove("old")), "process.old removed"),
        (&|t| t.processes.get_mut("old").unwrap().memory_limit = Some(1), "process.old changed"),
        (&|t| drop(t.externals.remove("mail")), "external.mail removed"),
        (&|t| t.cluster.name = "other".to_owned(), "cluster changed"),
    ];
    for (edit, expected) in cases {
        assert_eq!(change(edit), expected);
    }
}
