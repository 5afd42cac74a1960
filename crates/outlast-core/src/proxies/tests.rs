//! Transcripts: what happens to the proxies of a node, second by second, and what is done about it.

use super::*;

/// A node with proxy 1 serving since second 0.
struct Node {
    proxies: Proxies,
    second: f64,
    said: Vec<String>,
}

impl Node {
    fn new() -> Node {
        let mut node = Node { proxies: Proxies::default(), second: 0.0, said: Vec::new() };
        node.tell(Input::Adopted { pid: 1 });
        node.said.clear();
        node
    }

    fn now(&self) -> Instant {
        Instant::from_start(Duration::from_secs_f64(100.0 + self.second))
    }

    fn tell(&mut self, input: Input) {
        let mut out = Out::default();
        let now = self.now();
        self.proxies.step(now, input, &mut out);
        for fact in out.facts {
            self.said.push(alloc::format!("{}: {} {fact}", self.second, fact.name()));
        }
        for action in out.actions {
            self.said.push(alloc::format!("{}: {action:?}", self.second));
        }
        assert!(self.proxies.deadline(now).is_none_or(|at| now <= at));
    }

    /// Asks every second, `count` times; `answers` after each.
    fn ask(&mut self, count: u32, answers: bool) {
        for _ in 0..count {
            self.second += 1.0;
            self.tell(Input::Asked);
            if answers && let Some(pid) = self.proxies.serving() {
                self.tell(Input::Heard { pid });
            }
        }
    }

    /// Lets time pass, waking when something is due.
    fn pass(&mut self, seconds: f64) {
        let until = self.second + seconds;
        while let Some(at) = self.proxies.deadline(self.now()) {
            let at = at.since_start().as_secs_f64() - 100.0;
            if at > until {
                break;
            }
            self.second = at;
            self.tell(Input::Tick);
        }
        self.second = until;
    }

    fn said(&mut self) -> String {
        core::mem::take(&mut self.said).join("\n")
    }
}

#[test]
fn a_silent_proxy_is_replaced_and_killed_at_its_deadline() {
    let mut node = Node::new();
    node.ask(30, true);
    node.ask(10, false);
    assert_eq!(node.said(), "", "it may be slow");
    assert_eq!(node.proxies.silent_since(), Some(Instant::from_start(Duration::from_secs(131))));
    node.ask(1, false);
    assert_eq!(
        node.said(),
        "41: proxy_silent pid 1 lives and does not answer, it is replaced: it has left 10 questions unanswered, for 10s\n41: Start"
    );
    node.ask(3, false);
    assert_eq!(node.said(), "", "one successor is enough");
    node.tell(Input::Started { pid: 2 });
    assert_eq!(node.proxies.serving(), Some(2));
    assert!(node.proxies.may_feed(node.now(), false), "a silent predecessor is not waited for");
    node.proxies.fed();
    node.tell(Input::InForce { pid: 2 });
    node.pass(60.0);
    assert_eq!(
        node.said(),
        "44: proxy_started started, pid 2\n\
         44: proxy_replaced pid 2 took over from pid 1, which ends\n\
         44: Drain { pid: 1, deadline: 5s }\n\
         49: proxy_killed killed pid 1: it had not ended at its deadline\n\
         49: Kill { pid: 1 }"
    );
    node.tell(Input::Gone { pid: 1, reason: String::new() });
    assert_eq!(node.said(), "");
    assert_eq!(node.proxies.leaving().count(), 0);
}

#[test]
fn time_in_which_the_agent_slept_is_not_held_against_the_proxy() {
    let mut node = Node::new();
    for _ in 0..5 {
        node.ask(9, false);
        node.second += 60.0;
    }
    node.ask(10, false);
    // Ticks that come all at once after a sleep are one question.
    for _ in 0..50 {
        node.second += 0.001;
        node.tell(Input::Asked);
    }
    node.tell(Input::Heard { pid: 1 });
    node.ask(10, false);
    assert_eq!(node.said(), "");
    node.ask(1, false);
    assert!(node.said().contains("proxy_silent"));
}

#[test]
fn a_proxy_that_answers_again_before_its_successor_has_come_is_drained_in_good_order() {
    let mut node = Node::new();
    node.ask(11, false);
    node.tell(Input::Heard { pid: 1 });
    node.tell(Input::NotStarted);
    node.pass(10.0);
    assert_eq!(node.said().matches("Start").count(), 1, "it stays");
    node.ask(11, false);
    node.tell(Input::Started { pid: 2 });
    node.tell(Input::Heard { pid: 1 });
    node.said();
    node.tell(Input::InForce { pid: 2 });
    assert!(node.said().contains("Drain { pid: 1, deadline: 30s }"));
}

#[test]
fn a_lost_connection_is_no_death() {
    let mut node = Node::new();
    node.tell(Input::Lost { pid: 1 });
    node.pass(60.0);
    assert_eq!(node.said(), "");
    node.tell(Input::Regained { pid: 1 });
    assert_eq!(node.said(), "60: proxy_adopted found running, pid 1");
    node.tell(Input::Lost { pid: 1 });
    node.tell(Input::Unreachable { pid: 1, reason: "no socket".to_owned() });
    node.tell(Input::Started { pid: 2 });
    node.tell(Input::InForce { pid: 2 });
    node.pass(60.0);
    assert_eq!(
        node.said(),
        "60: proxy_silent pid 1 lives and does not answer, it is replaced: no socket\n\
         60: Start\n\
         60: proxy_started started, pid 2\n\
         60: proxy_replaced pid 2 took over from pid 1, which ends\n\
         60: Terminate { pid: 1 }\n\
         65: proxy_killed killed pid 1: it had not ended at its deadline\n\
         65: Kill { pid: 1 }"
    );
}

#[test]
fn a_dead_proxy_is_started_again_after_a_pause() {
    let mut node = Node::new();
    for pid in [2, 3] {
        let gone = node.proxies.serving().unwrap();
        node.tell(Input::Gone { pid: gone, reason: "it closed".to_owned() });
        node.pass(0.5);
        node.tell(Input::Started { pid });
    }
    node.tell(Input::Gone { pid: 3, reason: "it closed".to_owned() });
    node.pass(0.25);
    node.tell(Input::NotStarted);
    node.pass(5.0);
    assert_eq!(
        node.said(),
        "0: proxy_lost pid 1 is gone: it closed\n\
         0: Start\n\
         0.5: proxy_started started, pid 2\n\
         0.5: proxy_lost pid 2 is gone: it closed\n\
         0.5: Start\n\
         1: proxy_started started, pid 3\n\
         1: proxy_lost pid 3 is gone: it closed\n\
         1: Start\n\
         1.75: Start"
    );
}

#[test]
fn a_successor_that_knows_nothing_waits_while_its_predecessor_serves_well() {
    let mut node = Node::new();
    node.tell(Input::Replace);
    node.second = 1.0;
    node.tell(Input::Started { pid: 2 });
    assert!(!node.proxies.may_feed(node.now(), false));
    assert!(node.proxies.may_feed(node.now(), true));
    node.second += HANDOVER_MAX.as_secs_f64();
    assert!(node.proxies.may_feed(node.now(), false));
    node.second = 2.0;
    node.proxies.fed();
    assert!(node.proxies.may_feed(node.now(), false), "once fed, always");

    let mut node = Node::new();
    node.tell(Input::Replace);
    node.tell(Input::Started { pid: 2 });
    node.tell(Input::Gone { pid: 1, reason: String::new() });
    assert!(node.proxies.may_feed(node.now(), false), "nobody serves meanwhile");
}

#[test]
fn every_proxy_ends_when_the_agent_stops() {
    let mut node = Node::new();
    node.tell(Input::Found { pid: 7, draining: true });
    node.tell(Input::Found { pid: 8, draining: false });
    node.tell(Input::Lost { pid: 8 });
    node.tell(Input::Replace);
    node.said();
    node.tell(Input::Stop { deadline: DRAIN_MAX });
    node.tell(Input::Started { pid: 2 });
    assert_eq!(node.proxies.serving(), None);
    node.tell(Input::Gone { pid: 7, reason: String::new() });
    node.pass(100.0);
    for pid in [1, 2, 8] {
        assert!(!node.proxies.all_gone());
        node.tell(Input::Gone { pid, reason: String::new() });
    }
    assert!(node.proxies.all_gone());
    assert_eq!(
        node.said(),
        "0: Drain { pid: 1, deadline: 30s }\n\
         0: Drain { pid: 7, deadline: 30s }\n\
         0: Terminate { pid: 8 }\n\
         0: proxy_started started, pid 2\n\
         0: Drain { pid: 2, deadline: 0ns }\n\
         5: proxy_killed killed pid 2: it had not ended at its deadline\n\
         5: proxy_killed killed pid 8: it had not ended at its deadline\n\
         5: Kill { pid: 2 }\n\
         5: Kill { pid: 8 }\n\
         35: proxy_killed killed pid 1: it had not ended at its deadline\n\
         35: Kill { pid: 1 }"
    );
}
