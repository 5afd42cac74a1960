//! One node.

use std::fs;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use outlast_postgres::{
    Adoption, Demands, Disk, Ended, Fault, Mode, Moment, ProcessState, Quorum, Role, State,
    StopHow, Trial, Write, try_parameters,
};

use crate::rig::{LIMIT, Rig, each, timed, until};

const SHORT: Duration = Duration::from_secs(1);

fn signal(name: &str, pid: u32) {
    let status = Command::new("kill").args([name, &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_cluster_is_made_started_seen_and_stopped() {
    each(async |bin| {
        let rig = Rig::new(&bin, 1);
        let node = &rig.nodes[0];
        assert_eq!(node.pg.inspect().await.unwrap(), Disk::Missing);
        timed("create", node.pg.create()).await.unwrap();
        let Disk::Cluster(control) = node.pg.inspect().await.unwrap() else { panic!("no cluster") };
        assert!(control.data_checksums && control.state == State::ShutDown);
        timed("start", node.start_primary()).await;
        let seen = timed("look", node.pg.look()).await.unwrap();
        assert!(matches!(seen.role, Role::Primary { flushed, written } if flushed <= written));
        assert_eq!((seen.timeline, seen.system, seen.clients), (1, control.system, 0));
        assert_eq!((seen.sync.as_str(), seen.read_only, seen.oldest_wait), ("", false, None));
        timed("write probe", node.pg.write_probe(Write::Local, LIMIT)).await.unwrap();
        node.pg.ensure_roles().await.unwrap();
        assert_eq!(node.sql("SHOW restart_after_crash").unwrap(), "off");
        let ended = timed("stop", node.pg.stop(StopHow::Fast { deadline: LIMIT })).await.unwrap();
        assert_eq!(ended, Ended::Clean);
        assert_eq!(node.pg.stopped_at().await.unwrap().state, State::ShutDown);
        assert_eq!(node.pg.look().await.unwrap_err().fault, Fault::Refused);
        // Trap 44: the directory is gone, and the node knows that there was one.
        fs::remove_dir_all(&node.pg.settings().data_dir).unwrap();
        assert!(matches!(node.pg.inspect().await.unwrap(), Disk::Foreign(_)));
        node.pg.forget().unwrap();
        assert_eq!(node.pg.inspect().await.unwrap(), Disk::Missing);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_4_after_a_kill_no_session_commits_any_more() {
    each(async |bin| {
        let rig = Rig::new(&bin, 1);
        let node = &rig.nodes[0];
        node.create().await;
        node.start_primary().await;
        let _load = node.load();
        until("rows come", async || node.sql("SELECT count(*) > 20 FROM t").unwrap() == "t").await;
        timed("kill under load", node.pg.kill()).await.unwrap();
        assert_eq!(node.processes(), Vec::<u32>::new());
        assert_eq!(node.pg.process_state(), ProcessState::Gone);

        // The postmaster alone: the keeper ends what it leaves behind.
        node.start_primary().await;
        let _load = node.load();
        until("sessions", async || node.pg.look().await.unwrap().clients >= 3).await;
        signal("-KILL", node.pg.pid().unwrap());
        let Ended::Exited(exit) = node.pg.exited().await else { panic!("no exit") };
        assert_eq!((exit.signal, exit.burnt), (Some(9), false));
        assert_eq!(node.processes(), Vec::<u32>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_5_a_frozen_postmaster_is_seen_as_such_and_can_be_killed() {
    each(async |bin| {
        let rig = Rig::new(&bin, 1);
        let node = &rig.nodes[0];
        node.create().await;
        node.start_primary().await;
        let _load = node.load();
        until("sessions", async || node.pg.look().await.unwrap().clients >= 3).await;
        signal("-STOP", node.pg.pid().unwrap());
        until("it is stopped", async || node.pg.process_state() == ProcessState::Stopped).await;
        let fault = node.pg.look_within(SHORT).await.unwrap_err().fault;
        assert_eq!(fault, Fault::TimedOut);
        let how = StopHow::Fast { deadline: Duration::from_millis(50) };
        assert_eq!(timed("stop frozen", node.pg.stop(how)).await.unwrap(), Ended::Killed);
        assert_eq!(node.processes(), Vec::<u32>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_8_the_fuse_burns_down_unless_it_is_moved() {
    each(async |bin| {
        let rig = Rig::new(&bin, 1);
        let node = &rig.nodes[0];
        node.create().await;
        let first = Moment::after(Duration::from_secs(60));
        node.pg.start(Mode::Primary, Some(first), &mut |_| {}).await.unwrap();
        let soon = Moment::after(Duration::from_millis(700));
        node.pg.set_fuse(Some(soon)).await.unwrap();
        // A moved fuse does not burn when the old moment comes.
        let later = Moment::after(Duration::from_secs(60));
        node.pg.set_fuse(Some(later)).await.unwrap();
        until("the moment is over", async || soon.left() == Duration::ZERO).await;
        assert!(node.pg.look().await.is_ok());

        // The agent is gone: nobody moves it. Another life finds it where it stands.
        let other = node.another_life();
        assert_eq!(other.adopt().await.unwrap(), Adoption::Kept { fuse: Some(later) });
        let now = Moment::after(Duration::from_millis(300));
        other.set_fuse(Some(now)).await.unwrap();
        let Ended::Exited(exit) = other.exited().await else { panic!("no exit") };
        let late = Moment::now().nanos - now.nanos;
        println!("TIMED fuse, after its moment: {} ms", late / 1_000_000);
        assert!(exit.burnt && late < 2_000_000_000, "{exit:?} {late}");
        assert_eq!(node.processes(), Vec::<u32>::new());
        assert!(other.set_fuse(None).await.is_err());
        node.start_primary().await;
    })
    .await;
}

/// The first of the three fences alone: the keeper is frozen, there is no proxy, and nobody asks the driver for anything.
#[tokio::test(flavor = "multi_thread")]
async fn trap_8_a_thread_of_the_agent_kills_at_the_deadline_if_the_keeper_cannot() {
    each(async |bin| {
        let rig = Rig::new(&bin, 1);
        let node = &rig.nodes[0];
        node.create().await;
        let right = Some(Moment::after(Duration::from_secs(60)));
        node.pg.start(Mode::Primary, right, &mut |_| {}).await.unwrap();
        let _load = node.load();
        until("sessions", async || node.pg.look().await.unwrap().clients >= 3).await;
        let keeper = crate::rig::Node::parent_of(node.pg.pid().unwrap());
        signal("-STOP", keeper);
        // A signal is sent before it is obeyed: until then it would answer.
        let stands =
            || fs::read_to_string(format!("/proc/{keeper}/stat")).unwrap().contains(") T ");
        until("the keeper stands still", async || stands()).await;
        let at = Moment::after(Duration::from_millis(700));
        // The keeper does not hear of it.
        let told = node.pg.set_fuse(Some(at)).await.unwrap_err();
        assert!(told.to_string().contains("does not answer"), "{told}");
        until("all of it is dead", async || node.alive().is_empty()).await;
        let late = Moment::now().nanos.saturating_sub(at.nanos);
        println!("TIMED fence, after its moment: {} ms", late / 1_000_000);
        signal("-CONT", keeper);
        let Ended::Exited(exit) = node.pg.exited().await else { panic!("no exit") };
        assert_eq!((exit.signal, exit.burnt), (Some(9), false));
        // What has no deadline is left alone by that of before.
        node.start_primary().await;
        assert!(at.left().is_zero() && node.pg.look().await.is_ok());
    })
    .await;
}

/// A program that has left its parents and the data directory is found by its control group alone, and by it by a later life.
#[tokio::test(flavor = "multi_thread")]
async fn trap_4_a_kill_reaches_what_has_wandered_off_where_there_are_control_groups() {
    each(async |bin| {
        let rig = Rig::new(&bin, 1);
        let node = &rig.nodes[0];
        node.create().await;
        node.start_primary().await;
        let run_dir = node.pg.settings().run_dir.clone();
        let group = fs::read_to_string(run_dir.join("cgroup")).unwrap();
        if group.is_empty() {
            println!("NOT RUN: this account may make no control groups here");
            return;
        }
        let sleep = format!(
            "cat > /dev/null; cd / && (exec setsid sleep {}) > /dev/null 2>&1 &",
            7_000_000 + std::process::id()
        );
        node.sql(&format!("COPY (SELECT 1) TO PROGRAM '{sleep}'")).unwrap();
        let words = format!("sleep\0{}", 7_000_000 + std::process::id());
        until("it runs", async || !crate::rig::with_words(&words).is_empty()).await;
        let members = || fs::read_to_string(format!("{}/cgroup.procs", group.trim()));
        let wanderer = crate::rig::with_words(&words)[0];
        let listed = members().unwrap();
        let keeper = crate::rig::Node::parent_of(node.pg.pid().unwrap());
        let is_in = |pid: u32| listed.lines().any(|line| line == pid.to_string());
        assert!(is_in(wanderer) && is_in(node.pg.pid().unwrap()) && !is_in(keeper), "{listed}");
        signal("-KILL", keeper);
        assert_eq!(node.pg.exited().await, Ended::KeeperGone);
        let other = node.another_life();
        assert_eq!(other.adopt().await.unwrap(), Adoption::Unkept);
        other.kill().await.unwrap();
        until("it is dead", async || crate::rig::with_words(&words).is_empty()).await;
        assert!(members().is_err(), "the group is gone with them");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_43_another_life_adopts_what_runs_and_nothing_else() {
    each(async |bin| {
        let rig = Rig::new(&bin, 1);
        let node = &rig.nodes[0];
        node.create().await;
        node.start_primary().await;
        let other = node.another_life();
        assert_eq!(other.pid(), None);
        assert_eq!(other.adopt().await.unwrap(), Adoption::Kept { fuse: None });
        assert_eq!(other.pid(), node.pg.pid());
        // A second one is not started, neither by the agent nor by the keeper; nonsense does not upset it.
        assert!(other.start(Mode::Primary, None, &mut |_| {}).await.is_err());
        let start = r#"{"start":{"program":{"Unix":[47]},"arguments":[],"environment":[],
            "account":{"name":"x","uid":0,"gid":0,"home":"/"},"data_dir":"/","fuse":null}}"#;
        let answer = node.ask_keeper(&start.replace('\n', " "));
        assert!(answer.contains("a keeper starts one postmaster"), "{answer}");
        assert!(node.ask_keeper("{}").contains("not a question"));
        assert_eq!(node.ask_keeper(&"x".repeat(100_000)), "");
        assert!(node.ask_keeper("\"how\"").contains("\"standing\""));
        other.kill().await.unwrap();
        // Killed, it leaves its file behind; this process's number in it is not a postmaster's.
        let file = node.pg.settings().data_dir.join("postmaster.pid");
        let text = fs::read_to_string(&file).unwrap();
        let (_, rest) = text.split_once('\n').unwrap();
        fs::write(&file, format!("{}\n{rest}", std::process::id())).unwrap();
        assert_eq!(node.pg.adopt().await.unwrap(), Adoption::Nothing);
        assert!(file.exists());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_8_a_server_whose_keeper_is_gone_is_found_and_ended() {
    each(async |bin| {
        let rig = Rig::new(&bin, 1);
        let node = &rig.nodes[0];
        node.create().await;
        node.start_primary().await;
        let keeper = crate::rig::Node::parent_of(node.pg.pid().unwrap());
        signal("-KILL", keeper);
        assert_eq!(node.pg.exited().await, Ended::KeeperGone);
        assert_eq!(node.pg.process_state(), ProcessState::Running);
        let other = node.another_life();
        assert_eq!(other.adopt().await.unwrap(), Adoption::Unkept);
        assert!(other.start(Mode::Primary, None, &mut |_| {}).await.is_err());
        other.kill().await.unwrap();
        assert_eq!(node.processes(), Vec::<u32>::new());
        node.start_primary().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_user_changes_is_reloaded_and_what_alter_system_sets_does_not_win() {
    each(async |bin| {
        let rig = Rig::new(&bin, 1);
        let node = &rig.nodes[0];
        node.create().await;
        node.start_primary().await;
        for (name, value) in [
            ("synchronous_standby_names", "*"),
            ("synchronous_commit", "off"),
            ("wal_level", "minimal"),
        ] {
            node.sql(&format!("ALTER SYSTEM SET {name} = '{value}'")).unwrap();
        }
        let own = node.pg.settings().data_dir.join("postgresql.conf");
        let lines = fs::read_to_string(&own).unwrap();
        fs::write(&own, format!("synchronous_commit = off\n{lines}")).unwrap();
        let mut settings = node.pg.settings().clone();
        for (name, value) in [("work_mem", "5MB"), ("max_connections", "120"), ("fsync", "off")] {
            settings.parameters.insert(name.to_owned(), value.to_owned());
        }
        let changed = outlast_postgres::Postgres::new(settings).unwrap();
        changed.adopt().await.unwrap();
        assert_eq!(changed.reload().await.unwrap(), ["max_connections"]);
        let now = |name: &str| node.sql(&format!("SHOW {name}")).unwrap();
        assert_eq!((now("work_mem"), now("fsync")), ("5MB".to_owned(), "on".to_owned()));
        assert_eq!(now("synchronous_standby_names"), "");
        assert_eq!(
            (now("synchronous_commit"), now("wal_level")),
            ("on".to_owned(), "replica".to_owned())
        );
        let system = node.pg.settings().data_dir.join("postgresql.auto.conf");
        let system = fs::read_to_string(system).unwrap();
        assert!(!system.contains("wal_level") && !system.contains("synchronous"), "{system}");

        // Where nobody is waited for, it is the user's; and no more as soon as somebody is.
        let mut settings = changed.settings().clone();
        settings.parameters.insert("synchronous_commit".to_owned(), "off".to_owned());
        let changed = changed.with_settings(settings);
        changed.reload().await.unwrap();
        assert_eq!(now("synchronous_commit"), "off");
        let quorum = Quorum { count: 1, names: vec!["n-2".to_owned()] };
        changed.set_sync(Some(quorum)).await.unwrap();
        assert_eq!(now("synchronous_commit"), "on");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_postgresql_does_not_take_are_named_before_and_after() {
    each(async |bin| {
        let rig = Rig::new(&bin, 1);
        let node = &rig.nodes[0];
        let with = |list: &[(&str, &str)], hba: &[&str]| {
            let mut settings = node.pg.settings().clone();
            let own = list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            settings.parameters.extend(own);
            settings.hba = hba.iter().map(|line| (*line).to_owned()).collect();
            settings
        };
        let fine = with(&[("work_mem", "5MB"), ("a_module.setting", "x")], &[]);
        let misspelt = with(&[("max_conections", "300"), ("work_mem", "lots")], &[]);
        let wrong = with(&[("work_mem", "lots"), ("log_statement", "none of them")], &[]);
        let rules = with(&[], &["hots all all all trust"]);

        // Before there is anything.
        let new = |settings| outlast_postgres::Postgres::new(settings).unwrap();
        assert_eq!(new(fine.clone()).try_settings().await, Trial::Taken);
        let says = async |settings, words: &[&str]| {
            let trial = new(settings).try_settings().await;
            let Trial::Refused(why) = trial else { panic!("{trial:?}") };
            assert!(words.iter().all(|word| why.contains(word)) && !why.contains('/'), "{why}");
        };
        says(misspelt.clone(), &["\"max_conections\""]).await;
        says(wrong.clone(), &["\"work_mem\": \"lots\"", "(Available values: none, ddl"]).await;
        let nowhere = try_parameters("/nowhere".into(), None, misspelt.parameters.clone()).await;
        assert!(matches!(nowhere, Trial::Untried(_)), "{nowhere:?}");
        let error = new(misspelt.clone()).create().await.unwrap_err().to_string();
        assert!(error.contains("\"max_conections\""), "{error}");
        assert!(!node.pg.settings().data_dir.exists(), "nothing has to be cleared away");

        // And of one that runs.
        node.create().await;
        node.start_primary().await;
        for (settings, word) in
            [(misspelt, "\"max_conections\""), (wrong, "work_mem"), (rules, "pg_hba.conf")]
        {
            let error = node.pg.with_settings(settings).reload().await.unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        node.pg.with_settings(fine).reload().await.unwrap();
        let more = with(&[("max_connections", "120")], &[]);
        assert_eq!(node.pg.with_settings(more).reload().await.unwrap(), ["max_connections"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_7_only_the_mode_makes_a_primary_and_trap_42_a_standby_has_what_it_needs() {
    each(async |bin| {
        let rig = Rig::with(&bin, 1, &[("max_connections", "150")]);
        let node = &rig.nodes[0];
        node.create().await;
        node.start_primary().await;
        node.pg.stop(StopHow::Fast { deadline: LIMIT }).await.unwrap();

        // Even a directory of a primary's, whose owner forgot the signal, starts as a standby.
        let mut settings = node.pg.settings().clone();
        settings.parameters.insert("max_connections".to_owned(), "30".to_owned());
        let lower = outlast_postgres::Postgres::new(settings).unwrap();
        lower.start(Mode::Standby { follow: None }, None, &mut |_| {}).await.unwrap();
        let seen = lower.look().await.unwrap();
        assert!(seen.in_recovery() && node.pg.settings().data_dir.join("standby.signal").exists());
        assert_eq!(node.sql("SHOW max_connections").unwrap(), "150");
        assert_eq!(lower.control().await.unwrap().demands.max_connections, 150);
        assert_ne!(Demands::DEFAULT.max_connections, 150);
        lower.kill().await.unwrap();
        // Trap 15: two nodes must never write on one timeline.
        let started = node.pg.start(Mode::Primary, None, &mut |_| {}).await.unwrap_err();
        assert!(started.to_string().contains("promote it"), "{started}");
        lower.start(Mode::Standby { follow: None }, None, &mut |_| {}).await.unwrap();
        assert_eq!(lower.promote(LIMIT).await.unwrap(), 2);
        lower.kill().await.unwrap();
        // The primary that it is now may be started as one again.
        node.start_primary().await;
        assert_eq!(node.pg.look().await.unwrap().timeline, 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_45_clients_that_take_all_connections_do_not_look_like_death() {
    each(async |bin| {
        let rig = Rig::with(&bin, 1, &[("max_connections", "8")]);
        let node = &rig.nodes[0];
        node.create().await;
        node.start_primary().await;
        // Three are for everybody, five for superusers.
        let _clients = [(); 3].map(|()| node.sql_in_background("SELECT pg_sleep(60)"));
        until("all are taken", async || node.pg.look().await.unwrap().clients == 3).await;
        node.pg.write_probe(Write::Local, LIMIT).await.unwrap();
        // Then even the reserved ones. The agent's last session is a way in, for what must go on.
        let more = Mutex::new(Vec::new());
        until("superusers are refused", async || {
            more.lock().unwrap().push(node.sql_in_background("SELECT pg_sleep(60)"));
            node.sql("SELECT 1").is_err_and(|error| error.contains("too many clients"))
        })
        .await;
        for _ in 0..3 {
            let seen = node.pg.look().await.unwrap();
            assert!(seen.clients >= 7 && !seen.in_recovery(), "{seen:?}");
            node.pg.write_probe(Write::Local, LIMIT).await.unwrap();
        }
        let names = ["n-2".to_owned()].into();
        node.pg.set_sync(Some(Quorum { count: 1, names })).await.unwrap();
        assert_eq!(node.pg.look().await.unwrap().sync, "ANY 1 (\"n-2\")");
        // A new session has to be let in to show that others are not.
        let closed = node.pg.close(SHORT).await.unwrap_err();
        assert!(closed.to_string().contains("too many clients"), "{closed}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_server_lets_nobody_in_until_it_is_opened() {
    each(async |bin| {
        let rig = Rig::new(&bin, 1);
        let node = &rig.nodes[0];
        node.create().await;
        node.start_primary().await;
        let _load = node.load();
        until("sessions", async || node.pg.look().await.unwrap().clients >= 3).await;
        let lsn = timed("close", node.pg.close(Duration::from_millis(50))).await.unwrap();
        let seen = node.pg.look().await.unwrap();
        assert!(seen.read_only && seen.clients == 0 && seen.reach() >= lsn);
        assert!(node.sql("SELECT 1").unwrap_err().contains("pg_hba.conf rejects"));
        node.pg.close(SHORT).await.unwrap();
        timed("open", node.pg.open()).await.unwrap();
        node.pg.open().await.unwrap();
        node.sql("INSERT INTO t DEFAULT VALUES").unwrap();
    })
    .await;
}
