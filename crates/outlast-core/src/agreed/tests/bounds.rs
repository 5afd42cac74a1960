//! Everything that is kept has an end: what is dropped, what is refused, and what those say who come too late.

use std::borrow::ToOwned as _;
use std::format;
use std::string::String;
use std::time::Duration;
use std::vec::Vec;

use crate::agreed::*;

/// A machine and one client that goes on for ever.
struct Stand {
    agreed: Agreed,
    client: u64,
    sequence: u64,
}

impl Stand {
    fn new() -> Stand {
        let mut stand = Stand { agreed: Agreed::default(), client: 0, sequence: 0 };
        stand.client = stand.introduce();
        stand
    }

    fn introduce(&mut self) -> u64 {
        let reply = self.send(0, 0, Command::Introduce);
        let Reply::Introduced { client } = reply else { panic!("{reply}") };
        client
    }

    fn send(&mut self, client: u64, sequence: u64, command: Command) -> Reply {
        let (origin, wall) = (ClientId(client), Timestamp(0));
        let entry = Entry { origin, sequence, wall, command };
        self.agreed.apply(self.agreed.index() + 1, &entry)
    }

    fn apply(&mut self, command: Command) -> Reply {
        self.sequence += 1;
        self.send(self.client, self.sequence, command)
    }

    fn put(&mut self, key: &str, length: usize) -> Reply {
        self.apply(put(key, length, None))
    }

    fn join(&mut self, name: &str, replaces: Option<u64>) -> Reply {
        let (name, address) = (name.to_owned(), "10.0.0.1".to_owned());
        let role = NodeRole::Voter;
        self.apply(Command::Node(NodeCommand::Join { name, role, address, replaces }))
    }

    fn open(&mut self) -> Reply {
        self.apply(Command::Session(SessionCommand::Open { ttl: Duration::from_secs(5) }))
    }

    fn lock(&mut self, key: &str, session: u64) -> Reply {
        let key = key.as_bytes().to_vec();
        self.apply(Command::Lock(LockCommand::Lock { key, session }))
    }

    fn restored(&self) -> Agreed {
        let restored = Agreed::restore(&self.agreed.snapshot()).unwrap();
        assert!(restored == self.agreed);
        restored
    }
}

fn put(key: &str, length: usize, session: Option<u64>) -> Command {
    let (key, value) = (key.as_bytes().to_vec(), std::vec![b'x'; length]);
    Command::Kv(KvCommand::Put { key, value, session })
}

fn over(limit: Limit) -> Reply {
    Refusal::Over { limit }.into()
}

#[test]
fn a_client_that_was_silent_for_long_is_forgotten_and_told_so() {
    let mut stand = Stand::new();
    let quiet = stand.introduce();
    assert_eq!(stand.send(quiet, 1, put("a", 1, None)), Reply::Written { version: 1 });
    for _ in 0..CLIENTS_KEPT - 2 {
        stand.introduce();
    }
    assert_eq!(stand.send(quiet, 1, put("a", 1, None)), Reply::Written { version: 1 });
    // Only what is new counts as word of a client; the next two make the oldest two go.
    assert_eq!(stand.put("b", 1), Reply::Written { version: 1 });
    let last = stand.introduce();
    assert_eq!(stand.send(quiet, 1, put("a", 1, None)), Refusal::Forgotten.into());
    assert_eq!(stand.send(quiet, 2, put("a", 1, None)), Refusal::Forgotten.into());
    assert_eq!(stand.put("b", 1), Reply::Written { version: 2 });
    assert_eq!(stand.send(last, 1, put("b", 1, None)), Reply::Written { version: 3 });
    stand.restored();
}

#[test]
fn only_the_last_answers_of_a_client_are_kept() {
    let mut stand = Stand::new();
    for _ in 0..=ANSWERS_KEPT {
        stand.put("a", 1);
    }
    assert_eq!(stand.send(1, 1, put("a", 1, None)), Refusal::Superseded.into());
    assert_eq!(stand.send(1, 2, put("a", 1, None)), Reply::Written { version: 2 });
    assert_eq!(stand.send(1, 0, put("a", 1, None)), Refusal::Superseded.into());
}

#[test]
fn a_watcher_that_is_too_far_behind_is_told_where_to_go_on() {
    let mut stand = Stand::new();
    assert_eq!(stand.open(), Reply::SessionOpened { id: 2 });
    for key in 0..3 {
        stand.apply(put(&format!("s{key}"), 1, Some(2)));
    }
    stand.apply(Command::Session(SessionCommand::Close { id: 2 }));
    assert_eq!(stand.agreed.index(), 6);
    for _ in 0..CHANGES_KEPT - 3 {
        stand.put("a", 1);
    }
    let changes = |stand: &Stand, from| stand.agreed.changes(from, b"", 1);
    assert_eq!(changes(&stand, 5), Watched::Compacted { first: 6 });
    let Watched::Changes { changes: last, next } = changes(&stand, 6) else { panic!("compacted") };
    assert_eq!((last.len(), next), (3, 7));
    // One more and all that the closing changed goes together.
    stand.put("a", 1);
    assert_eq!(changes(&stand, 6), Watched::Compacted { first: 7 });
    assert!(matches!(changes(&stand, 7), Watched::Changes { next: 8, .. }));
    stand.restored();
}

#[test]
fn history_keeps_its_last_lines() {
    let mut stand = Stand::new();
    for number in 0..HISTORY_KEPT + 5 {
        stand.apply(Command::Record { node: 1, text: format!("line {number}") });
    }
    let lines: Vec<&Fact> = stand.agreed.history().lines().collect();
    assert_eq!((lines.len(), lines[0].text.as_str()), (HISTORY_KEPT, "line 5"));
    let last = stand.agreed.index();
    assert_eq!(stand.agreed.history().since(last - 1).count(), 2);
    stand.restored();
}

#[test]
fn ids_of_removed_nodes_are_remembered_for_ever() {
    let mut stand = Stand::new();
    stand.join("db0", None);
    let Reply::Joined { id: first } = stand.join("db1", None) else { panic!("not joined") };
    let mut id = first;
    for _ in 0..REMOVED_KEPT + 10 {
        let Reply::Joined { id: next } = stand.join("db1", Some(id)) else { panic!("not joined") };
        id = next;
    }
    let registry = stand.agreed.registry();
    assert_eq!(registry.nodes().len(), 2);
    assert!((first..id).all(|id| registry.was_removed(id)) && !registry.was_removed(id));
    assert!(!registry.was_removed(registry.id_of("db0").unwrap()));
    assert!(stand.agreed.snapshot().len() < 2 << 20);
    stand.restored();
}

#[test]
fn what_is_too_long_or_too_many_is_refused() {
    let mut stand = Stand::new();
    assert_eq!(stand.put(&"k".repeat(512), 64 << 10), Reply::Written { version: 1 });
    assert_eq!(stand.put(&"k".repeat(513), 1), over(Limit::KeyBytes));
    assert_eq!(stand.put("a", (64 << 10) + 1), over(Limit::ValueBytes));
    assert_eq!(stand.put("", 1), Refusal::Unfit { limit: Limit::KeyBytes }.into());
    assert_eq!(stand.join("db\u{1b}[2J", None), Refusal::Unfit { limit: Limit::NameBytes }.into());
    let propose = super::script::propose("x".repeat((256 << 10) + 1), 0);
    let propose = Command::Topology(propose);
    assert_eq!(propose.check(), Err(Refusal::Over { limit: Limit::TopologyBytes }));
    assert_eq!(stand.apply(propose), over(Limit::TopologyBytes));
    for number in 0..Limit::Nodes.most() {
        assert!(matches!(stand.join(&format!("n{number}"), None), Reply::Joined { .. }));
    }
    assert_eq!(stand.join("one more", None), over(Limit::Nodes));
}

#[test]
fn the_space_is_full_at_its_last_byte_and_free_again_after_a_deletion() {
    let mut stand = Stand::new();
    let length = Limit::ValueBytes.most();
    let each = length + 4;
    let whole = Limit::SpaceBytes.most() / each;
    for number in 0..whole {
        assert_eq!(stand.put(&format!("{number:04}"), length), Reply::Written { version: 1 });
    }
    let left = Limit::SpaceBytes.most() - whole * each;
    assert_eq!(stand.put("last", left - 3), over(Limit::SpaceBytes));
    assert_eq!(stand.put("last", left - 4), Reply::Written { version: 1 });
    assert_eq!(stand.agreed.space().items().bytes(), Limit::SpaceBytes.most());
    assert_eq!(stand.put("0000", length), Reply::Written { version: 2 });
    let delete = |key: &str| KvCommand::Delete { key: key.as_bytes().to_vec(), expected: None };
    assert_eq!(stand.put("more", 0), over(Limit::SpaceBytes));
    assert_eq!(stand.apply(Command::Kv(delete("0001"))), Reply::Deleted { existed: true });
    assert_eq!(stand.put("more", 0), Reply::Written { version: 1 });
}

/// A node takes a copy of it for each snapshot, between two messages.
#[test]
fn a_copy_shares_what_is_under_the_keys() {
    let mut stand = Stand::new();
    stand.put("kept", Limit::ValueBytes.most());
    stand.put("changed", 1);
    let copy = stand.agreed.clone();
    stand.put("changed", 2);
    let [now, then] = [&stand.agreed, &copy].map(|agreed| agreed.space().items());
    assert!(std::ptr::eq(now.get(b"kept").unwrap(), then.get(b"kept").unwrap()));
    assert_eq!(now.get(b"changed").unwrap().value.len(), 2);
    assert_eq!(then.get(b"changed").unwrap().value.len(), 1);
}

#[test]
fn the_number_of_keys_has_an_end() {
    let mut stand = Stand::new();
    for number in 0..Limit::Keys.most() {
        stand.put(&format!("{number}"), 0);
    }
    assert_eq!(stand.put("more", 0), over(Limit::Keys));
    assert_eq!(stand.put("0", 0), Reply::Written { version: 2 });
}

#[test]
fn a_session_has_a_limited_number_of_keys() {
    let mut stand = Stand::new();
    assert_eq!(stand.open(), Reply::SessionOpened { id: 2 });
    for number in 0..Limit::SessionKeys.most() {
        stand.apply(put(&format!("{number}"), 0, Some(2)));
    }
    assert_eq!(stand.apply(put("more", 0, Some(2))), over(Limit::SessionKeys));
    assert_eq!(stand.apply(put("0", 1, Some(2))), Reply::Written { version: 2 });
    assert_eq!(stand.apply(put("0", 1, None)), Reply::Written { version: 3 });
    assert_eq!(stand.apply(put("more", 0, Some(2))), Reply::Written { version: 1 });
}

#[test]
fn sessions_locks_and_queues_have_an_end() {
    let mut stand = Stand::new();
    let mut ids = Vec::new();
    for _ in 0..Limit::Sessions.most() {
        let Reply::SessionOpened { id } = stand.open() else { panic!("not opened") };
        ids.push(id);
    }
    assert_eq!(stand.open(), over(Limit::Sessions));
    for key in ["a", "b", "c"] {
        for &id in &ids {
            if stand.lock(key, id) == over(Limit::Waiting) {
                assert_eq!(stand.lock(key, ids[0]), stand.lock(key, ids[0]));
                let waiting = stand.agreed.space().locks().held().values();
                let waiting: usize = waiting.map(|lock| lock.queue.len()).sum();
                assert_eq!(waiting, Limit::Waiting.most());
                return;
            }
        }
    }
    panic!("the queues have no end");
}

#[test]
fn procedures_that_ended_are_shown_for_a_while() {
    let mut stand = Stand::new();
    let Reply::Joined { id: node } = stand.join("db1", None) else { panic!("not joined") };
    let (role, ttl) = ("coordinator".to_owned(), Duration::from_secs(5));
    let grant = Command::Lease(LeaseCommand::Grant { role, node, ttl });
    let Reply::Granted { epoch } = stand.apply(grant) else { panic!("not granted") };
    let begin = |subject: usize| {
        Command::Procedure(ProcedureCommand::Begin {
            kind: "switchover".to_owned(),
            subject: format!("{subject}"),
            coordinator: "coordinator".to_owned(),
            epoch,
            pivot: 0,
            plan: [Plan { name: "promote".to_owned(), undo: false }].into(),
        })
    };
    let most = Limit::Procedures.most();
    let begun: Vec<u64> = (0..most)
        .map(|subject| {
            let Reply::Begun { id } = stand.apply(begin(subject)) else { panic!("not begun") };
            id
        })
        .collect();
    assert_eq!(stand.apply(begin(most)), over(Limit::Procedures));
    for &id in &begun {
        let (who, why) = ("ann".to_owned(), String::new());
        stand.apply(Command::Procedure(ProcedureCommand::Abandon { id, who, why }));
    }
    let known: Vec<u64> = stand.agreed.procedures().known().keys().copied().collect();
    assert_eq!(known, begun[most - ENDED_KEPT..]);
}

#[test]
fn databases_and_their_rules_have_an_end() {
    let mut stand = Stand::new();
    stand.join("db1", None);
    let create = |number: usize| {
        let (database, node) = (format!("{number}"), "db1".to_owned());
        Command::Database(DatabaseCommand::Create { database, node })
    };
    let mut epochs = Vec::new();
    for number in 0..Limit::Databases.most() {
        let Reply::Granted { epoch } = stand.apply(create(number)) else { panic!("not made") };
        epochs.push(epoch);
    }
    assert_eq!(stand.apply(create(epochs.len())), over(Limit::Databases));
    let mut widen = |acks| {
        let to = Confirm { acks, of: ["db2".to_owned()].into(), ..Confirm::default() };
        let (database, epoch) = ("0".to_owned(), epochs[0]);
        stand.apply(Command::Database(DatabaseCommand::Widen { database, epoch, to }))
    };
    for acks in 1..=u32::try_from(Limit::Confirms.most()).unwrap() {
        assert_eq!(widen(acks), Reply::Done);
    }
    assert_eq!(widen(9), over(Limit::Confirms));
    stand.restored();
}

#[test]
fn a_reading_comes_in_pages() {
    let mut stand = Stand::new();
    for (key, length) in [("a", 1), ("b/1", 1), ("b/2", 1), ("b/3", 1), ("b0", 1), ("c", 1)] {
        stand.put(key, length);
    }
    let items = stand.agreed.space().items();
    let page = |prefix: &str, after: Option<&str>, limit| {
        let page = items.page(prefix.as_bytes(), after.map(str::as_bytes), limit);
        let keys: Vec<_> = page.items.iter().map(|(k, _)| String::from_utf8_lossy(k)).collect();
        format!("{} {}", keys.join(" "), if page.more { "…" } else { "." })
    };
    assert_eq!(page("b/", None, 2), "b/1 b/2 …");
    assert_eq!(page("b/", Some("b/2"), 2), "b/3 .");
    assert_eq!(page("b/", Some("b/3"), 2), " .");
    assert_eq!(page("b/", Some("a"), 9), "b/1 b/2 b/3 .");
    assert_eq!(page("b/", Some("c"), 9), " .");
    assert_eq!(page("", None, 0), "a …");
    assert_eq!(page("", None, 99), "a b/1 b/2 b/3 b0 c .");
    for number in 0..40 {
        stand.put(&format!("z{number:02}"), 64 << 10);
    }
    let page = stand.agreed.space().items().page(b"z", None, 99);
    assert_eq!((page.items.len(), page.more), (15, true));
}
