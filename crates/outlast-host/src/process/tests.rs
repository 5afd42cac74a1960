//! Real programs: started, probed, killed, adopted.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::time::Instant;

use outlast_core::event::Fact;
use outlast_core::health::Thresholds;
use outlast_core::topology::{Check, Command, Probe};
use outlast_core::view::{ProcessState, ProcessView};
use tokio::sync::mpsc;

use super::*;
use crate::probe::Prober;
use crate::scratch::Scratch;

const LIMIT: Duration = Duration::from_secs(20);

fn process(script: &str) -> Process {
    Process {
        nodes: Vec::new(),
        command: Command(["sh", "-c", script].map(str::to_owned).to_vec()),
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

/// A probe that asks often, by a command.
fn probe(script: &str, fall: u16) -> Option<Probe> {
    let count = |n| NonZeroU16::new(n).unwrap();
    Some(Probe {
        check: Check::Command(Command(["sh", "-c", script].map(str::to_owned).to_vec())),
        every: Duration::from_millis(50),
        timeout: Duration::from_secs(5),
        thresholds: Thresholds { rise: count(1), fall: count(fall) },
        delay: Duration::ZERO,
    })
}

/// A supervisor under test, and what it has said.
struct Stage {
    scratch: Scratch,
    setting: Setting,
    reports: mpsc::Receiver<Report>,
    facts: Vec<String>,
    view: Option<ProcessView>,
}

impl Stage {
    fn new() -> Stage {
        Stage::with_room(64)
    }

    fn with_room(reports: usize) -> Stage {
        let scratch = Scratch::new();
        let (sender, reports) = mpsc::channel(reports);
        let setting = Setting {
            data_dir: scratch.dir().to_owned(),
            prober: Prober::new(),
            cgroups: Cgroups::none("a test"),
            reports: sender,
        };
        Stage { scratch, setting, reports, facts: Vec::new(), view: None }
    }

    fn start(&self, process: &Process) -> Supervisor {
        Supervisor::start("api", process.clone(), self.setting.clone())
    }

    /// Reads reports until one of them makes it true.
    async fn until(&mut self, what: &str, holds: impl Fn(&Stage) -> bool) {
        let begun = Instant::now();
        while !holds(self) {
            let left = LIMIT.saturating_sub(begun.elapsed());
            let report = tokio::time::timeout(left, self.reports.recv()).await;
            let Ok(Some(report)) = report else {
                panic!("never {what}: {:?}, {:?}", self.facts, self.view)
            };
            assert_eq!(report.process, "api");
            match report.news {
                News::View(view) => self.view = Some(view),
                News::Fact(fact) => self.facts.push(show(&fact)),
            }
        }
    }

    async fn until_state(&mut self, state: ProcessState, ready: bool) -> ProcessView {
        let holds = |stage: &Stage| {
            stage.view.as_ref().is_some_and(|v| (v.state, v.ready) == (state, ready))
        };
        self.until(&format!("{state}, ready {ready}"), holds).await;
        self.view.clone().unwrap()
    }

    /// Reads what has been said and not been read.
    fn rest(&mut self) -> &[String] {
        while let Ok(report) = self.reports.try_recv() {
            if let News::Fact(fact) = report.news {
                self.facts.push(show(&fact));
            }
        }
        &self.facts
    }

    fn output(&self) -> String {
        fs::read_to_string(self.scratch.path("processes/api/output.log")).unwrap_or_default()
    }

    /// Waits until the program has written this.
    async fn until_output(&self, text: &str) {
        until(&format!("the output has {text:?}"), || self.output().contains(text)).await;
    }
}

/// The name of an event, and what tells it from another of its kind.
fn show(fact: &Fact) -> String {
    let pid = |text: String| {
        text.split(' ')
            .map(|w| if w.parse::<u32>().is_ok_and(|n| n > 99) { "PID" } else { w })
            .collect::<Vec<_>>()
            .join(" ")
    };
    pid(fact.to_string().replace(':', " :"))
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < LIMIT, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn alive(pid: u32) -> bool {
    Stat::read(pid).is_some_and(Stat::is_alive)
}

#[tokio::test]
async fn a_program_runs_writes_its_output_and_stops_with_all_it_started() {
    let mut stage = Stage::new();
    let mut process = process(
        "echo $GREETING from $(pwd); setsid sleep 100 & echo away $!; sleep 100 & echo near $!; wait",
    );
    process.environment.insert("GREETING".to_owned(), "hello".to_owned());
    process.directory = Some(stage.scratch.dir().display().to_string());
    let supervisor = stage.start(&process);
    let view = stage.until_state(ProcessState::Running, true).await;
    stage.until_output("near").await;
    let output = stage.output();
    assert!(
        output.starts_with(&format!("hello from {}\n", stage.scratch.dir().display())),
        "{output}"
    );
    let pids: Vec<u32> = output.lines().filter_map(|l| l.split(' ').nth(1)?.parse().ok()).collect();
    assert_eq!(pids.len(), 2);
    assert!(pids.iter().all(|&pid| alive(pid)));

    supervisor.stop().await;
    assert!(!alive(view.pid.unwrap()));
    until("the children are gone", || !pids.iter().any(|&pid| alive(pid))).await;
    let facts =
        ["started, pid PID", "ready : the program runs", "pid PID exited : killed by SIGTERM"];
    assert_eq!(stage.rest(), facts);
}

#[tokio::test]
async fn a_program_deaf_to_sigterm_is_killed() {
    let mut stage = Stage::new();
    let mut process = process("trap '' TERM; echo deaf; while :; do sleep 0.1; done");
    process.stop_timeout = Duration::from_millis(300);
    let supervisor = stage.start(&process);
    stage.until_output("deaf").await;
    let begun = Instant::now();
    supervisor.stop().await;
    assert!(begun.elapsed() >= Duration::from_millis(300));
    assert!(stage.rest().last().unwrap().ends_with("exited : killed by SIGKILL"));
}

#[tokio::test]
async fn an_owner_that_reads_nothing_can_still_stop_a_program() {
    let stage = Stage::with_room(1);
    let supervisor = stage.start(&process("sleep 100"));
    let record = files(&stage).record;
    let pid = || Record::read(&record).ok()??.pid;
    until("it runs", || pid().is_some()).await;
    let pid = pid().unwrap();
    supervisor.stop().await;
    assert!(!alive(pid));
}

#[tokio::test]
async fn an_exit_is_followed_by_a_start_and_then_by_a_wait() {
    let mut stage = Stage::new();
    let supervisor = stage.start(&process("exit 3"));
    let view = stage.until_state(ProcessState::Waiting, false).await;
    let view = if view.restarts == 0 {
        stage.view = None;
        stage.until_state(ProcessState::Waiting, false).await
    } else {
        view
    };
    assert_eq!(view.reason, "exited: exit status 3, restarts in 10s");
    assert_eq!((view.restarts, view.pid), (2, None));
    supervisor.stop().await;
    let exited = "pid PID exited : exit status 3";
    let once = ["started, pid PID", "ready : the program runs", exited];
    let expected: Vec<&str> = once.into_iter().chain(once).chain(["restarts in 10s"]).collect();
    assert_eq!(stage.rest(), expected);
}

#[tokio::test]
async fn a_program_that_cannot_run_says_why() {
    let base = process("exit 0");
    for (process, says) in [
        (
            Process { command: Command(vec!["/nowhere/api".to_owned()]), ..base.clone() },
            "run /nowhere/api: no such file or directory",
        ),
        (
            Process { directory: Some("/nowhere".to_owned()), ..base.clone() },
            "there is no directory /nowhere",
        ),
        (
            Process { user: Some("no-such-user".to_owned()), ..base.clone() },
            "there is no user `no-such-user` on this machine",
        ),
        (Process { command: Command(Vec::new()), ..base.clone() }, "the command is empty"),
    ] {
        let mut stage = Stage::new();
        let supervisor = stage.start(&process);
        stage.until("waiting", |stage| stage.facts.len() == 1).await;
        stage.until("seen", |stage| stage.view.as_ref().is_some_and(|v| v.restarts == 2)).await;
        let reason = stage.view.clone().unwrap().reason;
        assert_eq!(reason, format!("cannot start: {says}, restarts in 10s"));
        supervisor.stop().await;
    }
}

#[tokio::test]
async fn probes_gate_kill_and_tell_readiness() {
    let mut stage = Stage::new();
    let (up, ok, ready) =
        (stage.scratch.path("up"), stage.scratch.path("ok"), stage.scratch.path("ready"));
    let exists = |path: &Path| format!("test -e {}", path.display());
    let process = Process {
        startup: probe(&exists(&up), 1000),
        liveness: probe(&exists(&ok), 3),
        readiness: probe(&exists(&ready), 2),
        ..process("sleep 100")
    };
    let supervisor = stage.start(&process);
    stage
        .until("asked", |stage| stage.view.as_ref().is_some_and(|v| v.reason.contains("failed")))
        .await;
    assert_eq!(stage.view.as_ref().unwrap().state, ProcessState::Starting);

    fs::write(&ok, "").unwrap();
    fs::write(&up, "").unwrap();
    let first = stage.until_state(ProcessState::Running, false).await;
    fs::write(&ready, "").unwrap();
    stage.until_state(ProcessState::Running, true).await;
    fs::remove_file(&ready).unwrap();
    stage.until_state(ProcessState::Running, false).await;

    fs::remove_file(&ok).unwrap();
    let killed = "killed pid PID : liveness probe failed : exit status 1 (3 times in a row)";
    stage.until("killed", |stage| stage.facts.iter().any(|fact| fact == killed)).await;
    stage
        .until("another", |s| {
            s.view.as_ref().is_some_and(|v| v.pid.is_some() && v.pid != first.pid)
        })
        .await;
    assert!(!alive(first.pid.unwrap()));
    supervisor.stop().await;
}

#[tokio::test]
async fn a_program_outlives_the_agent_and_is_adopted_as_it_was() {
    let mut stage = Stage::new();
    // Ready once, and never again: only an adoption that keeps what was believed finds it ready.
    let flag = stage.scratch.path("flag");
    fs::write(&flag, "").unwrap();
    let mut process = process("while :; do echo tick; sleep 0.02; done");
    process.readiness = probe(&format!("test -e {}", flag.display()), 1000);
    let supervisor = stage.start(&process);
    let before = stage.until_state(ProcessState::Running, true).await;
    supervisor.leave().await;
    fs::remove_file(&flag).unwrap();
    assert!(alive(before.pid.unwrap()));
    let written = stage.output().len();
    until("it still writes", || stage.output().len() > written).await;

    stage.view = None;
    let supervisor = stage.start(&process);
    let after = stage.until_state(ProcessState::Running, true).await;
    assert_eq!(after.pid, before.pid);
    stage
        .until("asked", |stage| stage.view.as_ref().is_some_and(|v| v.reason.contains("failed")))
        .await;
    assert!(stage.view.as_ref().unwrap().ready);
    supervisor.stop().await;
    assert!(!alive(before.pid.unwrap()));
    let found = stage.rest().iter().filter(|fact| *fact == "found running, pid PID").count();
    assert_eq!(found, 1);
}

/// Where the agent below works; without it there is nothing to do.
const AGENT_DIR: &str = "OUTLAST_TEST_AGENT_DIR";

#[tokio::test]
#[ignore = "an agent for the next test to kill"]
async fn an_agent_that_will_be_killed() {
    let Ok(dir) = std::env::var(AGENT_DIR) else { return };
    let (reports, _unread) = mpsc::channel(64);
    let (prober, cgroups) = (Prober::new(), Cgroups::none("a test"));
    let setting = Setting { data_dir: PathBuf::from(dir), prober, cgroups, reports };
    let _supervisor = Supervisor::start("api", process("sleep 100"), setting);
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_program_survives_sigkill_of_the_agent() {
    let mut stage = Stage::new();
    let mut agent = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "process::tests::an_agent_that_will_be_killed"])
        .env(AGENT_DIR, stage.scratch.dir())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let files = files(&stage);
    let pid = || {
        let record = Record::read(&files.record).ok()??;
        record.pid.filter(|_| record.ready)
    };
    until("the agent has started it", || pid().is_some()).await;
    let pid = pid().unwrap();
    agent.kill().unwrap();
    agent.wait().unwrap();
    assert!(alive(pid));

    let supervisor = stage.start(&process("sleep 100"));
    let view = stage.until_state(ProcessState::Running, true).await;
    assert_eq!(view.pid, Some(pid));
    supervisor.stop().await;
    assert!(!alive(pid));
    let status = "exited : status unknown, because an earlier agent started it";
    assert!(stage.rest().last().unwrap().ends_with(status), "{:?}", stage.facts);
}

#[tokio::test]
async fn a_program_that_is_now_started_otherwise_is_replaced() {
    let mut stage = Stage::new();
    let supervisor = stage.start(&process("sleep 100"));
    let before = stage.until_state(ProcessState::Running, true).await;
    drop(supervisor);
    stage.view = None;
    let supervisor = stage.start(&process("sleep 101"));
    let after = stage.until_state(ProcessState::Running, true).await;
    assert_ne!(after.pid, before.pid);
    assert!(!alive(before.pid.unwrap()));
    supervisor.stop().await;
    let facts = stage.rest().join("\n");
    assert!(facts.contains("killed pid PID : the topology starts it differently now"), "{facts}");
}

fn files(stage: &Stage) -> Files {
    Files::of(stage.scratch.dir(), "api").unwrap()
}

#[tokio::test]
async fn an_instance_whose_number_was_never_written_down_is_found() {
    let stage = Stage::new();
    let (process, files) = (process("sleep 100"), files(&stage));
    let started = Instance::start("api", &process, &files, &stage.setting.cgroups, 4).unwrap();
    // As an agent leaves it that dies right after the start.
    let intent = Record { pid: None, began_ticks: None, ..started.record.clone() };
    intent.write(&files.record).unwrap();
    let pid = started.pid();
    drop(started);
    let found = Instance::adopt("api", &process, &files, &stage.setting.cgroups).unwrap();
    assert_eq!((found.pid(), found.adopted().restarts), (pid, 4));
    found.kill().unwrap();
    found.exited().await;
    assert_eq!(found.reap(), "killed by SIGKILL");
    assert!(Instance::adopt("api", &process, &files, &stage.setting.cgroups).is_none());
}

#[tokio::test]
async fn another_process_of_the_same_number_is_not_adopted() {
    let stage = Stage::new();
    let (process, files) = (process("sleep 100"), files(&stage));
    let started = Instance::start("api", &process, &files, &stage.setting.cgroups, 0).unwrap();
    let ours = started.record.clone();
    let cgroups = &stage.setting.cgroups;
    let token = "another".to_owned();
    let later = Record {
        began_ticks: ours.began_ticks.map(|t| t + 1),
        token: token.clone(),
        ..ours.clone()
    };
    let boot = Record { boot: "another".to_owned(), token, ..ours };
    for record in [later, boot] {
        record.write(&files.record).unwrap();
        assert!(Instance::adopt("api", &process, &files, cgroups).is_none());
        assert!(alive(started.pid()), "a stranger was killed");
    }
    started.kill().unwrap();
    started.exited().await;
    started.reap();
}

#[tokio::test]
async fn what_a_dead_leader_left_behind_is_killed_at_adoption() {
    let stage = Stage::new();
    let (process, files) = (process("sleep 100 & echo $!; exit 0"), files(&stage));
    let mut started = Instance::start("api", &process, &files, &stage.setting.cgroups, 0).unwrap();
    started.exited().await;
    started.child.take().unwrap().wait().unwrap();
    let orphan: u32 = stage.output().trim().parse().unwrap();
    assert!(alive(orphan));
    drop(started);
    assert!(Instance::adopt("api", &process, &files, &stage.setting.cgroups).is_none());
    until("the orphan is gone", || !alive(orphan)).await;
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_as_good_as_none() {
    let stage = Stage::new();
    let (process, files) = (process("sleep 100"), files(&stage));
    for text in ["", "{", "{\"v\":2}", "[]"] {
        fs::write(&files.record, text).unwrap();
        assert!(Instance::adopt("api", &process, &files, &stage.setting.cgroups).is_none());
    }
}

#[tokio::test]
async fn a_program_of_another_user_runs_as_that_user() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let stage = Stage::new();
    fs::create_dir_all(stage.scratch.dir()).unwrap();
    let process = Process {
        user: Some("nobody".to_owned()),
        ..process("id -un; id -G; echo $USER; sleep 100")
    };
    let supervisor = stage.start(&process);
    stage.until_output("nobody\n65534\nnobody\n").await;
    supervisor.stop().await;
}
