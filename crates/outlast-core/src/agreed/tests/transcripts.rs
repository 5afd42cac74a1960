//! Transcripts of each part. `UPDATE_EXPECT=1` writes the answers; read them before they are committed.

use expect_test::expect;

use super::script::check;

#[test]
fn a_node_without_its_disk_gets_a_fresh_id() {
    check(expect![[r#"
        join db1 voter => 2: joined as node 2
        join db1 voter => 3: refused: a node of this name has joined as 2: if its disk is lost, replace 2 by a fresh id
        again join db1 voter => 4: refused: a node of this name has joined as 2: if its disk is lost, replace 2 by a fresh id
        return 2 db1 1 => 5: refused: node 2 has joined with a disk that this one is not: it needs a fresh id
        return 2 db1 9 => 6: joined as node 2
        return 2 db2 9 => 7: refused: node 2 has another name
        return 77 db1 99 => 8: refused: no node has the id 77
        restart
        join db1 voter replaces 2 => 9: joined as node 9
        return 2 db1 9 => 10: refused: node 2 was removed; its id never comes back
        join db9 voter replaces 2 => 11: refused: node 2 was removed; its id never comes back
        join db9 voter replaces 77 => 12: refused: no node has the id 77
        ? nodes
            9 db1 voter db1:7000
        ? history
            2 db1 joined as a voter
            9 db1 joined anew, 2 and its disk are lost
    "#]]);
}

#[test]
fn the_last_voter_stays() {
    check(expect![[r#"
        join db1 voter => 2: joined as node 2
        join db2 learner => 3: joined as node 3
        remove 2 => 4: refused: it is the last voter
        role 2 learner => 5: refused: it is the last voter
        role 3 witness => 6: done
        remove 2 => 7: done
        remove 2 => 8: refused: node 2 was removed; its id never comes back
        nobody remove 2 => 9: refused: node 2 was removed; its id never comes back
        remove 3 => 10: refused: it is the last voter
        ? nodes
            3 db2 witness db2:7000
    "#]]);
}

#[test]
fn a_topology_takes_effect_everywhere_or_nowhere() {
    check(expect![[r#"
        propose first on 0 => 2: proposed as version 1
        commit 1 => 3: refused: no node has joined that could say yes
        join db1 voter => 4: joined as node 4
        join db2 learner => 5: joined as node 5
        vote 1 4 yes => 6: done
        commit 1 => 7: refused: not every node said yes: 1 silent, 0 against it
        vote 1 5 no => 8: done
        commit 1 => 9: refused: not every node said yes: 0 silent, 1 against it
        vote 1 99 yes => 10: refused: no node has the id 99
        abort 1 nobody_answers => 11: done
        abort 1 nobody_answers => 12: refused: this version is not being voted on
        propose second on 1 => 13: refused: the topology in force is version 0: start from that one
        propose second on 0 => 14: proposed as version 2
        propose third on 0 => 15: refused: version 2 is being voted on
        vote 1 4 yes => 16: refused: this version is not being voted on
        vote 2 4 yes => 17: done
        vote 2 5 no => 18: done
        vote 2 5 yes => 19: done
        restart
        nobody commit 2 => 20: version 2 is in force
        nobody commit 2 => 21: version 2 is in force
        ? topology
            2 second 16367aac
        propose third on 0 => 22: refused: the topology in force is version 2: start from that one
        propose third on 2 => 23: proposed as version 3
        ? history
            2 topology version 1 is proposed
            4 db1 joined as a voter
            5 db2 joined as a learner
            8 is against topology version 1: no room
            11 topology version 1 is given up: nobody_answers
            14 topology version 2 is proposed
            18 is against topology version 2: no room
            20 topology version 2 is in force
            23 topology version 3 is proposed
    "#]]);
}

#[test]
fn a_lease_has_one_holder_and_a_new_epoch_each_time() {
    check(expect![[r#"
        join db1 voter => 2: joined as node 2
        join db2 voter => 3: joined as node 3
        grant postgres.orders 2 5s => 4: granted under epoch 4
        grant postgres.orders 3 5s => 5: refused: node 2 holds it under epoch 4
        renew postgres.orders 2 4 => 6: done
        renew postgres.orders 3 4 => 7: refused: node 2 holds it
        renew postgres.orders 2 3 => 8: refused: it is held under epoch 4
        expire postgres.orders 4 4 => 9: refused: it was renewed at 6, after that was judged
        expire postgres.orders 4 6 => 10: done
        expire postgres.orders 4 6 => 11: refused: nobody holds it
        ? leases
        grant postgres.orders 3 5s => 12: granted under epoch 12
        ? leases
            postgres.orders node=3 epoch=12 ttl=5s renewed=12
        grant postgres.orders 3 5s => 13: granted under epoch 13
        renew postgres.orders 3 12 => 14: refused: it is held under epoch 13
        release postgres.orders 3 12 => 15: refused: it is held under epoch 13
        release postgres.orders 3 13 => 16: done
        restart
        release postgres.orders 3 13 => 17: refused: nobody holds it
        grant postgres.orders 3 5s => 18: granted under epoch 18
        release postgres.orders 3 18 => 19: done
        grant postgres.orders 99 5s => 20: refused: no node has the id 99
        grant postgres.orders 2 1ms => 21: refused: the duration is too short or too long
        ? leases
        ? history
            2 db1 joined as a voter
            3 db2 joined as a voter
            4 holds postgres.orders under epoch 4
            10 lost postgres.orders, epoch 4 ran out
            12 holds postgres.orders under epoch 12
            13 holds postgres.orders under epoch 13
            16 gave postgres.orders back, epoch 13 is over
            18 holds postgres.orders under epoch 18
            19 gave postgres.orders back, epoch 18 is over
    "#]]);
}

#[test]
fn the_lease_of_a_removed_node_cannot_be_renewed() {
    check(expect![[r#"
        join db1 voter => 2: joined as node 2
        join db2 voter => 3: joined as node 3
        grant vip 2 5s => 4: granted under epoch 4
        remove 2 => 5: done
        renew vip 2 4 => 6: refused: node 2 was removed; its id never comes back
        grant vip 3 5s => 7: refused: node 2 holds it under epoch 4
        nobody expire vip 4 4 => 8: done
        grant vip 3 5s => 9: granted under epoch 9
    "#]]);
}

#[test]
fn people_pause_and_silence_for_a_while() {
    check(expect![[r#"
        pause ann => 2: posted as 2
        pause bob => 3: refused: 2 pauses the cluster already
        maintain node.db1 bob => 4: posted as 4
        silence severity=warn bob => 5: posted as 5
        ? notices
            2 pause  ann
            4 maintenance node.db1 bob
            5 silence severity=warn bob
        restart
        lift 2 bob => 6: done
        nobody lift 2 its_time => 7: refused: there is no such notice, or it was lifted
        ? notices
            4 maintenance node.db1 bob
            5 silence severity=warn bob
        pause bob => 8: posted as 8
        ? history
            2 pause by ann: work
            4 maintenance of node.db1 by bob: work
            5 silence of severity=warn by bob: work
            6 pause ended by bob
            8 pause by bob: work
    "#]]);
}

#[test]
fn a_switchover_that_works() {
    check(expect![[r#"
        join db1 voter => 2: joined as node 2
        grant coordinator 2 5s => 3: granted under epoch 3
        begin orders coordinator 3 3 check!,freeze,wait!,promote!,repoint! => 4: begun as procedure 4
        begin orders coordinator 3 0 check! => 5: refused: procedure 4 is at work on the same subject
        step 4 3 1 start => 6: refused: it is not this step's turn
        step 4 3 0 done => 7: refused: it is not this step's turn
        step 4 3 0 start => 8: started, attempt 1
        step 4 3 0 done => 9: done
        step 4 3 1 start => 10: started, attempt 1
        step 4 3 1 done => 11: done
        step 4 3 2 start => 12: started, attempt 1
        step 4 3 2 done => 13: done
        step 4 3 3 start => 14: started, attempt 1
        ? procedure 4
            check Done { evidence: "seen" }
            freeze Done { evidence: "seen" }
            wait Done { evidence: "seen" }
            promote Started { attempt: 1 }
            repoint Pending
            next: Do { step: 3 }, epoch 3
        unwind 4 3 => 15: refused: the point of no return is passed: only forward from here
        step 4 3 3 failed => 16: done
        step 4 3 3 start => 17: started, attempt 2
        step 4 3 3 done => 18: done
        step 4 3 4 start => 19: started, attempt 1
        step 4 3 4 done => 20: done
        ? procedure 4
            check Done { evidence: "seen" }
            freeze Done { evidence: "seen" }
            wait Done { evidence: "seen" }
            promote Done { evidence: "seen" }
            repoint Done { evidence: "seen" }
            next: Ended { how: Finished }, epoch 3
        step 4 3 4 done => 21: refused: the procedure has ended
        ? history
            2 db1 joined as a voter
            3 holds coordinator under epoch 3
            4 switchover of orders begins
            20 switchover of orders is finished
    "#]]);
}

#[test]
fn a_failure_before_the_pivot_unwinds() {
    check(expect![[r#"
        join db1 voter => 2: joined as node 2
        join db2 voter => 3: joined as node 3
        grant coordinator 2 5s => 4: granted under epoch 4
        begin orders coordinator 4 3 check!,freeze,move,promote! => 5: begun as procedure 5
        step 5 4 0 start => 6: started, attempt 1
        step 5 4 0 done => 7: done
        step 5 4 1 start => 8: started, attempt 1
        step 5 4 1 done => 9: done
        step 5 4 2 start => 10: started, attempt 1
        nobody expire coordinator 4 4 => 11: done
        step 5 4 2 done => 12: refused: nobody holds it
        grant coordinator 3 5s => 13: granted under epoch 13
        step 5 4 2 failed => 14: refused: it is held under epoch 13
        restart
        step 5 13 2 start => 15: started, attempt 2
        step 5 13 2 failed => 16: done
        ? procedure 5
            check Done { evidence: "seen" }
            freeze Done { evidence: "seen" }
            move Failed { attempt: 2, why: "refused" }
            promote Pending
            next: Undo { step: 2 }, epoch 13
        step 5 13 1 undo => 17: refused: it is not this step's turn
        step 5 13 2 undo => 18: done
        step 5 13 2 undofailed => 19: done
        ? procedure 5
            check Done { evidence: "seen" }
            freeze Done { evidence: "seen" }
            move UndoFailed { why: "refused" }
            promote Pending
            next: Stuck { step: 2 }, epoch 13
        step 5 13 2 undo => 20: done
        step 5 13 2 undone => 21: done
        step 5 13 1 undo => 22: done
        step 5 13 1 undone => 23: done
        ? procedure 5
            check Done { evidence: "seen" }
            freeze Undone
            move Undone
            promote Pending
            next: Ended { how: Unwound }, epoch 13
        step 5 13 1 undo => 24: refused: the procedure has ended
        abandon 5 => 25: refused: the procedure has ended
        ? history
            2 db1 joined as a voter
            3 db2 joined as a voter
            4 holds coordinator under epoch 4
            5 switchover of orders begins
            11 lost coordinator, epoch 4 ran out
            13 holds coordinator under epoch 13
            19 switchover of orders is stuck, a person must look: refused
            23 switchover of orders is unwound: refused
    "#]]);
}

#[test]
fn a_procedure_can_be_unwound_or_left_to_a_person() {
    check(expect![[r#"
        join db1 voter => 2: joined as node 2
        grant coordinator 2 5s => 3: granted under epoch 3
        begin orders coordinator 3 1 freeze,promote! => 4: begun as procedure 4
        unwind 4 3 => 5: done
        ? procedure 4
            freeze Pending
            promote Pending
            next: Ended { how: Unwound }, epoch 3
        begin orders coordinator 3 0 promote! => 6: begun as procedure 6
        step 6 3 0 start => 7: started, attempt 1
        unwind 6 3 => 8: refused: the point of no return is passed: only forward from here
        nobody abandon 6 => 9: done
        ? procedure 6
            promote Started { attempt: 1 }
            next: Ended { how: Abandoned }, epoch 3
        begin orders coordinator 3 2 promote! => 10: refused: the pivot is no step, or there is no step at all
        begin orders coordinator 3 0 , => 11: refused: the pivot is no step, or there is no step at all
    "#]]);
}

#[test]
fn a_key_has_versions_and_a_cas_sees_the_one_it_expects() {
    check(expect![[r#"
        put a one => 2: written as version 1
        put a two => 3: written as version 2
        cas a absent three => 4: refused: the key has version 2, written at 3
        cas a v1 three => 5: refused: the key has version 2, written at 3
        cas a v2 three => 6: written as version 3
        cas a m5 four => 7: refused: the key has version 3, written at 6
        cas a m6 four => 8: written as version 4
        delete a if v1 => 9: refused: the key has version 4, written at 8
        delete a if m8 => 10: deleted
        delete a => 11: there was nothing to delete
        delete b if absent => 12: there was nothing to delete
        cas a absent five => 13: written as version 1
        cas a v0 six => 14: refused: the key has version 1, written at 13
        ? keys
            a=five v1 created=13 modified=13
        ? watch 0
            2 a Written { version: 1 }
            3 a Written { version: 2 }
            next=4
        ? watch 4
            6 a Written { version: 3 }
            8 a Written { version: 4 }
            next=9
        ? watch 7
            8 a Written { version: 4 }
            10 a Deleted
            next=11
        ? watch 99
            next=99
    "#]]);
}

#[test]
fn a_session_takes_its_keys_and_locks_with_it() {
    check(expect![[r#"
        open 5s => 2: opened as session 2
        open 5s => 3: opened as session 3
        put a one in 2 => 4: written as version 1
        put b two in 2 => 5: written as version 1
        put b three in 3 => 6: written as version 2
        put c four in 77 => 7: refused: session 77 is over or never was
        lock l 2 => 8: locked under token 8
        lock l 3 => 9: queued at position 1
        lock l 3 => 10: queued at position 1
        lock l 2 => 11: locked under token 8
        lock m 3 => 12: locked under token 12
        lock m 2 => 13: queued at position 1
        put l one => 14: written as version 1
        restart
        keep 2 => 15: done
        over 2 2 => 16: refused: it was renewed at 15, after that was judged
        nobody over 2 15 => 17: done
        ? keys
            b=three v2 created=5 modified=6 session=3
            l=one v1 created=14 modified=14
        ? locks
            l session=3 token=17 queue=[]
            m session=3 token=12 queue=[]
        ? sessions
            3 renewed=3
        ? watch 17
            17 a Deleted
            17 l Locked { session: 3 }
            next=18
        ? watch 17 l
            17 l Locked { session: 3 }
            next=18
        keep 2 => 18: refused: session 2 is over or never was
        lock l 2 => 19: refused: session 2 is over or never was
    "#]]);
}

#[test]
fn a_queue_is_served_in_the_order_of_asking() {
    check(expect![[r#"
        open 5s => 2: opened as session 2
        open 5s => 3: opened as session 3
        open 5s => 4: opened as session 4
        lock l 2 => 5: locked under token 5
        lock l 3 => 6: queued at position 1
        lock l 4 => 7: queued at position 2
        unlock l 4 => 8: done
        unlock l 4 => 9: refused: the session neither holds nor awaits this lock
        lock l 4 => 10: queued at position 2
        unlock l 2 => 11: done
        ? locks
            l session=3 token=11 queue=[4]
        unlock l 3 => 12: done
        unlock l 4 => 13: done
        unlock l 4 => 14: refused: the session neither holds nor awaits this lock
        ? locks
        open 1ms => 15: refused: the duration is too short or too long
    "#]]);
}

#[test]
fn an_entry_is_applied_once() {
    check(expect![[r#"
        put a one => 2: written as version 1
        again put a one => 3: written as version 1
        again put a two => 4: written as version 1
        c1#5 put a two => 5: written as version 2
        c1#4 put a three => 6: written as version 3
        c1#5 put a four => 7: written as version 2
        c77#1 put a five => 8: refused: the client is not known or was forgotten after a long silence: introduce it anew, and look before repeating what had no answer
        nobody put a six => 9: refused: this command must not be applied twice: its client has to be introduced first
        nobody introduce => 10: introduced as client 10
        c10#1 put a seven => 11: written as version 4
        c10#1 put a seven => 12: written as version 4
        restart
        c10#1 put a seven => 13: written as version 4
        ? keys
            a=seven v4 created=2 modified=11
    "#]]);
}

#[test]
fn history_has_what_nodes_tell() {
    check(expect![[r#"
        record 7 started => 2: done
        ? history
            2 started
    "#]]);
}

/// A refused step of a new coordinator once left its epoch behind.
#[test]
fn a_step_out_of_turn_leaves_nothing_behind() {
    check(expect![[r#"
        join db1 voter => 2: joined as node 2
        grant coordinator 2 5s => 3: granted under epoch 3
        begin orders coordinator 3 1 freeze,promote! => 4: begun as procedure 4
        grant coordinator 2 5s => 5: granted under epoch 5
        step 4 5 0 done => 6: refused: it is not this step's turn
        ? procedure 4
            freeze Pending
            promote Pending
            next: Do { step: 0 }, epoch 3
        step 4 5 1 start => 7: refused: it is not this step's turn
        ? procedure 4
            freeze Pending
            promote Pending
            next: Do { step: 0 }, epoch 3
        step 4 5 0 start => 8: started, attempt 1
        step 4 5 1 start => 9: refused: it is not this step's turn
        ? procedure 4
            freeze Started { attempt: 1 }
            promote Pending
            next: Do { step: 0 }, epoch 5
    "#]]);
}
