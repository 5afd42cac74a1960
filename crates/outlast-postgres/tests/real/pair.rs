//! Two nodes and three.

use std::fs;
use std::time::Duration;

use outlast_postgres::{Disk, Fault, Mode, Quorum, Role, StopHow, Upstream, Write, slot_name};

use crate::rig::{LIMIT, Rig, each, speaks_tls, timed, until, versions};

fn quorum(count: usize, names: &[&str]) -> Option<Quorum> {
    Some(Quorum { count, names: names.iter().map(|name| (*name).to_owned()).collect() })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_follows_another_node_by_reload_after_a_promotion() {
    each(async |bin| {
        let rig = Rig::running(&bin, 3).await;
        let [one, two, three] = &rig.nodes[..] else { panic!("three nodes") };
        one.sql("CREATE TABLE t (n int)").unwrap();
        one.until_caught_up(two).await;
        one.until_caught_up(three).await;
        one.pg.kill().await.unwrap();
        let names = ["n-1", "n-3"].map(str::to_owned);
        two.pg.ensure_slots(&names).await.unwrap();
        assert_eq!(timed("promote", two.pg.promote(LIMIT)).await.unwrap(), 2);
        assert_eq!(timed("checkpoint", two.pg.checkpoint(LIMIT)).await.unwrap(), 2);
        let restarted = three.pg.pid();
        timed("follow", three.pg.follow(two.upstream())).await.unwrap();
        timed("follow until streaming", two.until_streams("n-3")).await;
        two.sql("INSERT INTO t VALUES (1)").unwrap();
        two.until_caught_up(three).await;
        assert_eq!(three.sql("SELECT count(*) FROM t").unwrap(), "1");
        assert_eq!(three.pg.pid(), restarted);
        let seen = three.pg.look().await.unwrap();
        assert_eq!(seen.timeline, 2);
        let Role::Standby { receiver: Some(receiver), .. } = seen.role else { panic!("{seen:?}") };
        assert_eq!(receiver.port, Some(two.pg.settings().port));
        // A standby keeps slots, too, and may move them.
        three.pg.ensure_slots(&names[..1]).await.unwrap();
        let advance = "SELECT pg_replication_slot_advance(slot_name, pg_last_wal_replay_lsn()) IS NOT NULL FROM pg_replication_slots";
        assert_eq!(three.sql(advance).unwrap(), "t");
        // Slots of nodes that are gone go, too; others stay.
        two.sql("SELECT pg_create_physical_replication_slot('theirs')").unwrap();
        two.pg.ensure_slots(&names[1..]).await.unwrap();
        let slots = two.pg.look().await.unwrap().slots;
        let left: Vec<&str> = slots.iter().map(|slot| slot.name.as_str()).collect();
        assert_eq!(left, [slot_name("n-3").as_str(), "theirs"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn traps_32_33_a_diverged_primary_is_rewound_and_follows() {
    each(async |bin| {
        let rig = Rig::running(&bin, 2).await;
        let [one, two] = &rig.nodes[..] else { panic!("two nodes") };
        one.sql("CREATE TABLE t (n int)").unwrap();
        one.until_caught_up(two).await;
        two.pg.stop_receiving().await.unwrap();
        // Only the old primary ever has it.
        one.sql("INSERT INTO t VALUES (1)").unwrap();
        one.pg.kill().await.unwrap();
        two.pg.promote(LIMIT).await.unwrap();
        two.pg.checkpoint(LIMIT).await.unwrap();
        two.sql("INSERT INTO t VALUES (2)").unwrap();
        two.pg.ensure_slots(&["n-1".to_owned()]).await.unwrap();

        timed("rewind", one.pg.rewind(&two.upstream(), &mut |_| {})).await.unwrap();
        one.start_standby(two).await;
        two.until_streams("n-1").await;
        two.until_caught_up(one).await;
        assert_eq!(one.sql("SELECT string_agg(n::text, ',') FROM t").unwrap(), "2");
        assert_eq!(one.pg.look().await.unwrap().timeline, 2);

        // What cannot reach its source changes nothing.
        one.pg.stop(StopHow::Fast { deadline: LIMIT }).await.unwrap();
        two.pg.kill().await.unwrap();
        assert!(one.pg.rewind(&two.upstream(), &mut |_| {}).await.is_err());
        assert!(matches!(one.pg.inspect().await.unwrap(), Disk::Cluster(_)));
        // What was interrupted is never started.
        let mut unfit = one.pg.settings().data_dir.clone().into_os_string();
        unfit.push(".unfit");
        fs::write(unfit, "a rewind was interrupted\n").unwrap();
        assert!(matches!(one.pg.inspect().await.unwrap(), Disk::Broken(_)));
        let start = one.pg.start(Mode::Standby { follow: None }, None, &mut |_| {}).await;
        assert!(start.unwrap_err().to_string().contains("a rewind was interrupted"));
        two.start_primary().await;
        one.pg.clone_from(&two.upstream(), &mut |_| {}).await.unwrap();
        one.start_standby(two).await;
        two.until_streams("n-1").await;
    })
    .await;
}

/// Its recovery would write into its log on the primary's timeline, where pg_rewind finds nothing to do.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_rewound_after_it_was_stopped_and_not_after_it_was_killed() {
    each(async |bin| {
        let rig = Rig::running(&bin, 2).await;
        let [one, two] = &rig.nodes[..] else { panic!("two nodes") };
        one.sql("CREATE TABLE t (n int)").unwrap();
        one.until_caught_up(two).await;
        two.pg.kill().await.unwrap();
        let before = two.pg.control().await.unwrap();
        let refused = two.pg.rewind(&one.upstream(), &mut |_| {}).await.unwrap_err();
        assert!(refused.to_string().contains("killed as a standby"), "{refused}");
        assert_eq!(two.pg.control().await.unwrap(), before, "nothing was changed");
        two.start_standby(one).await;
        one.until_streams("n-2").await;
        two.pg.stop(StopHow::Fast { deadline: LIMIT }).await.unwrap();
        two.pg.rewind(&one.upstream(), &mut |_| {}).await.unwrap();
        two.start_standby(one).await;
        one.sql("INSERT INTO t VALUES (1)").unwrap();
        one.until_caught_up(two).await;
        assert_eq!(two.sql("SELECT count(*) FROM t").unwrap(), "1");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_44_a_clone_keeps_the_old_directory_and_not_for_ever() {
    each(async |bin| {
        let rig = Rig::running(&bin, 2).await;
        let [one, two] = &rig.nodes[..] else { panic!("two nodes") };
        two.pg.stop(StopHow::Fast { deadline: LIMIT }).await.unwrap();
        fs::write(two.pg.settings().data_dir.join("mine"), "old").unwrap();
        let mut heard = Vec::new();
        let source = one.upstream();
        let mut hear = |bytes| heard.push(bytes);
        let cloned = timed("clone", two.pg.clone_from(&source, &mut hear)).await;
        let aside = cloned.unwrap().aside.unwrap();
        assert_eq!(fs::read_to_string(aside.join("mine")).unwrap(), "old");
        assert!(heard.iter().any(|bytes| bytes.done > 0 && bytes.total > 0), "{heard:?}");
        for _ in 0..2 {
            fs::create_dir_all(&two.pg.settings().data_dir).unwrap();
            two.pg.set_aside().await.unwrap();
        }
        assert!(!aside.exists());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn traps_13_30_who_has_stopped_receiving_acknowledges_nothing_more() {
    each(async |bin| {
        let rig = Rig::running(&bin, 2).await;
        let [one, two] = &rig.nodes[..] else { panic!("two nodes") };
        timed("set_sync", one.pg.set_sync(quorum(1, &["n-2"]))).await.unwrap();
        assert_eq!(one.pg.look().await.unwrap().sync, "ANY 1 (\"n-2\")");
        one.sql("CREATE TABLE t (n int)").unwrap();
        until("it is synchronous", async || {
            let standbys = one.pg.look().await.unwrap().standbys;
            standbys.iter().any(|standby| standby.name == "n-2" && standby.sync_state == "quorum")
        })
        .await;
        timed("probe, synchronous", one.pg.write_probe(Write::Synchronous, LIMIT)).await.unwrap();

        let stopped = timed("stop_receiving", two.pg.stop_receiving()).await.unwrap();
        assert_eq!(stopped.timeline, 1);
        let mut waiting = one.sql_in_background("INSERT INTO t VALUES (1)");
        until("a commit waits", async || one.pg.look().await.unwrap().oldest_wait.is_some()).await;
        let wait = Duration::from_millis(1500);
        let fault = one.pg.write_probe(Write::Synchronous, wait).await.unwrap_err().fault;
        assert_eq!(fault, Fault::TimedOut);
        assert!(waiting.0.try_wait().unwrap().is_none());
        assert_eq!(two.pg.look().await.unwrap().reach(), stopped.lsn);
        one.pg.write_probe(Write::Local, LIMIT).await.unwrap();

        two.pg.follow(one.upstream()).await.unwrap();
        until("the commit is done", async || one.sql("SELECT count(*) FROM t").unwrap() == "1")
            .await;
        assert!(waiting.0.wait().unwrap().success());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn traps_13_30_without_the_key_an_old_configuration_lets_nobody_in() {
    each(async |bin| {
        let rig = Rig::running(&bin, 2).await;
        let [one, two] = &rig.nodes[..] else { panic!("two nodes") };
        two.pg.stop_receiving().await.unwrap();
        // As if the server had not read the new configuration: it still knows whom to follow.
        let conf = two.pg.settings().data_dir.join("outlast.conf");
        let text = fs::read_to_string(&conf).unwrap();
        let passfile = two.pg.settings().run_dir.join("replication.pass");
        let old = format!(
            "primary_conninfo = 'host=127.0.0.1 port={} user=outlast_replication application_name=n-2 passfile={}'\n",
            one.pg.settings().port,
            passfile.display()
        );
        fs::write(&conf, text + &old).unwrap();
        two.sql("SELECT pg_reload_conf()").unwrap();
        until("it has tried", async || {
            let output = fs::read_to_string(two.pg.settings().output()).unwrap();
            output.contains("no password supplied")
        })
        .await;
        assert_eq!(one.pg.look().await.unwrap().standbys, []);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn traps_13_30_nothing_is_received_behind_a_stop_however_often_the_receiver_begins_anew() {
    const ROUNDS: usize = 4;
    each(async |bin| {
        let rig = Rig::running(&bin, 2).await;
        let [one, two] = &rig.nodes[..] else { panic!("two nodes") };
        let _again = one.sql_in_background(
            "DO $$ BEGIN LOOP PERFORM pg_terminate_backend(pid) FROM pg_stat_replication;
             PERFORM pg_sleep(0.02); PERFORM pg_stat_clear_snapshot(); END LOOP; END $$",
        );
        for round in 0..ROUNDS {
            two.pg.follow(one.upstream()).await.unwrap();
            one.pg.write_probe(Write::Local, LIMIT).await.unwrap();
            let reach = one.pg.look().await.unwrap().reach();
            until("it receives", async || two.pg.look().await.unwrap().reach() >= reach).await;
            let stopped = two.pg.stop_receiving().await.unwrap();
            for _ in 0..10 {
                one.pg.write_probe(Write::Local, LIMIT).await.unwrap();
                assert_eq!(two.pg.look().await.unwrap().reach(), stopped.lsn, "round {round}");
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_certificates_nodes_replicate_by_tls_and_by_no_other_name() {
    each(async |bin| {
        // What pip installs is built without it.
        if bin != versions()[0] && !speaks_tls(&bin) {
            return;
        }
        let rig = Rig::with_tls(&bin, 2).run().await;
        let [one, two] = &rig.nodes[..] else { panic!("two nodes") };
        let sql = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_replication USING (pid)";
        assert_eq!(one.sql(sql).unwrap(), "t");
        // At the right address, and not the one that is meant.
        let another = Upstream { node: "n-3".to_owned(), ..one.upstream() };
        two.pg.follow(another).await.unwrap();
        until("it is refused", async || {
            let output = fs::read_to_string(two.pg.settings().output()).unwrap();
            output.contains("does not match host name \"n-3.node.test\"")
        })
        .await;
        two.pg.follow(one.upstream()).await.unwrap();
        one.until_streams("n-2").await;
    })
    .await;
}
