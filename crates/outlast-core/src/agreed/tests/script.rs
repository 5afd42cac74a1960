//! Scripts: each line is a command or a question, `=>` and the answer. `UPDATE_EXPECT=1` writes the answers.

use std::borrow::ToOwned as _;
use std::format;
use std::string::{String, ToString as _};
use std::time::Duration;
use std::vec::Vec;

use expect_test::Expect;

use crate::agreed::*;
use crate::units::{parse_duration, show_duration};

/// What a script has made so far. The script's own client is introduced by the first entry.
struct Stand {
    agreed: Agreed,
    index: u64,
    sequence: u64,
}

/// Runs a script and compares each line with what it says. Entries have the indices 2, 3, 4, …; a command may be told to
/// come `again` (same number), from `nobody`, or from another client as `c7#3`.
#[track_caller]
pub(crate) fn check(script: Expect) {
    let mut stand = Stand { agreed: Agreed::default(), index: 0, sequence: 0 };
    let introduced = stand.apply(ClientId::NOBODY, 0, Command::Introduce);
    assert_eq!(introduced, Reply::Introduced { client: 1 });
    let mut got = String::new();
    let lines = script.data().lines().map(str::trim_end);
    let least = lines.clone().filter(|line| !line.is_empty());
    let least = least.map(|line| line.len() - line.trim_start().len()).min().unwrap_or(0);
    for line in lines.filter_map(|line| line.get(least..)) {
        // Deeper lines are answers.
        if line.is_empty() || line.starts_with(' ') {
            continue;
        }
        let said = line.split("=>").next().unwrap_or(line).trim_end();
        if let Some(question) = said.strip_prefix("? ") {
            got.push_str(&format!("{said}\n"));
            for line in stand.ask(question) {
                got.push_str(&format!("    {line}\n"));
            }
        } else if said == "restart" {
            stand.restart();
            got.push_str("restart\n");
        } else {
            let answer = stand.command(said);
            got.push_str(&format!("{said} => {}: {answer}\n", stand.index));
        }
    }
    script.assert_eq(&got);
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("`{word}` is no number"))
}

fn duration(word: &str) -> Duration {
    parse_duration(word).unwrap_or_else(|_| panic!("`{word}` is no duration"))
}

fn show_key(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}

impl Stand {
    fn apply(&mut self, origin: ClientId, sequence: u64, command: Command) -> Reply {
        self.index += 1;
        let wall = Timestamp(i64::try_from(self.index).unwrap() * 1000);
        let entry = Entry { origin, sequence, wall, command };
        let bytes = entry.to_bytes();
        assert_eq!(Entry::from_bytes(&bytes).as_ref(), Ok(&entry));
        self.agreed.apply(self.index, &entry)
    }

    fn restart(&mut self) {
        let snapshot = self.agreed.snapshot();
        self.agreed = Agreed::restore(&snapshot).unwrap();
        assert_eq!(self.agreed.snapshot(), snapshot);
    }

    fn command(&mut self, said: &str) -> String {
        let (first, rest) = said.split_once(' ').unwrap_or((said, ""));
        let (origin, sequence, said) = match (first, first.split_once('#')) {
            ("again", _) => (ClientId(1), self.sequence, rest),
            ("nobody", _) => (ClientId::NOBODY, 0, rest),
            (_, Some((client, sequence))) => {
                (ClientId(number(&client[1..])), number(sequence), rest)
            }
            (_, None) => {
                self.sequence += 1;
                (ClientId(1), self.sequence, said)
            }
        };
        self.apply(origin, sequence, command(said)).to_string()
    }

    fn ask(&self, question: &str) -> Vec<String> {
        let agreed = &self.agreed;
        match question.split(' ').collect::<Vec<_>>()[..] {
            ["nodes"] => {
                let nodes = agreed.registry().nodes().iter();
                nodes.map(|(id, n)| format!("{id} {} {} {}", n.name, n.role, n.address)).collect()
            }
            ["topology"] => {
                let topology = agreed.topology();
                let hash = topology.hash().to_string();
                std::vec![format!("{} {} {}", topology.version(), topology.text(), &hash[..8])]
            }
            ["leases"] => {
                let show = |(role, lease): (&String, &Lease)| {
                    let Lease { holder, epoch, ttl, renewed_index, .. } = lease;
                    let ttl = show_duration(*ttl);
                    format!("{role} node={holder} epoch={epoch} ttl={ttl} renewed={renewed_index}")
                };
                agreed.leases().held().iter().map(show).collect()
            }
            ["notices"] => {
                let up = agreed.notices().up().iter();
                up.map(|(id, n)| format!("{id} {} {} {}", n.kind, n.subject, n.who)).collect()
            }
            ["procedure", id] => match agreed.procedures().known().get(&number(id)) {
                None => std::vec!["gone".to_owned()],
                Some(procedure) => {
                    let steps = procedure.steps.iter();
                    let steps = steps.map(|step| format!("{} {:?}", step.name, step.state));
                    let next = format!("next: {:?}, epoch {}", next(procedure), procedure.epoch);
                    steps.chain([next]).collect()
                }
            },
            ["keys"] => keys(agreed),
            ["sessions"] => {
                let sessions = agreed.space().sessions().iter();
                sessions.map(|(id, s)| format!("{id} renewed={}", s.renewed_index)).collect()
            }
            ["locks"] => {
                let show = |(key, lock): (&Vec<u8>, &Lock)| {
                    let Lock { session, token, queue } = lock;
                    format!("{} session={session} token={token} queue={queue:?}", show_key(key))
                };
                agreed.space().locks().held().iter().map(show).collect()
            }
            ["watch", from] => watch(agreed, number(from), ""),
            ["watch", from, prefix] => watch(agreed, number(from), prefix),
            ["history"] => {
                let lines = agreed.history().lines();
                lines.map(|fact| format!("{} {}", fact.at.index, fact.text)).collect()
            }
            _ => panic!("`{question}` is no question"),
        }
    }
}

fn keys(agreed: &Agreed) -> Vec<String> {
    let page = agreed.space().items().page(b"", None, 100);
    let show = |(key, item): &(&[u8], &Item)| {
        let Item { value, version, created_index, modified_index, session } = item;
        let session = session.map(|session| format!(" session={session}")).unwrap_or_default();
        format!(
            "{}={} v{version} created={created_index} modified={modified_index}{session}",
            show_key(key),
            show_key(value)
        )
    };
    page.items.iter().map(show).collect()
}

fn watch(agreed: &Agreed, from: u64, prefix: &str) -> Vec<String> {
    match agreed.changes(from, prefix.as_bytes(), 2) {
        Watched::Compacted { first } => std::vec![format!("compacted, first={first}")],
        Watched::Changes { changes, next } => {
            let show = |c: &Change| format!("{} {} {:?}", c.index, show_key(&c.key), c.what);
            changes.iter().map(show).chain([format!("next={next}")]).collect()
        }
    }
}

fn node_role(word: &str) -> NodeRole {
    match word {
        "voter" => NodeRole::Voter,
        "learner" => NodeRole::Learner,
        "witness" => NodeRole::Witness,
        _ => panic!("`{word}` is no role of a node"),
    }
}

fn expectation(word: &str) -> Expected {
    match word.split_at(1) {
        ("a", "bsent") => Expected::Absent,
        ("v", version) => Expected::Version { version: number(version) },
        ("m", index) => Expected::Modified { index: number(index) },
        _ => panic!("`{word}` is no expectation"),
    }
}

fn command(said: &str) -> Command {
    let words: Vec<&str> = said.split(' ').collect();
    match words[0] {
        "introduce" => Command::Introduce,
        "record" => Command::Record { node: number(words[1]), text: words[2].to_owned() },
        "join" | "return" | "role" | "remove" => Command::Node(node(&words)),
        "propose" | "vote" | "commit" | "abort" => Command::Topology(topology(&words)),
        "grant" | "renew" | "release" | "expire" => Command::Lease(lease(&words)),
        "pause" | "maintain" | "silence" | "lift" => Command::Notice(notice(&words)),
        "begin" | "step" | "unwind" | "abandon" => Command::Procedure(procedure(&words)),
        "put" | "delete" | "cas" => Command::Kv(kv(&words)),
        "open" | "keep" | "close" | "over" => Command::Session(session(&words)),
        "lock" | "unlock" => Command::Lock(lock(&words)),
        _ => panic!("`{said}` is no command"),
    }
}

fn node(words: &[&str]) -> NodeCommand {
    match *words {
        ["join", name, role] | ["join", name, role, "replaces", _] => NodeCommand::Join {
            name: name.to_owned(),
            role: node_role(role),
            address: format!("{name}:7000"),
            replaces: words.get(4).map(|id| number(id)),
        },
        ["return", id, name, disk] => NodeCommand::Return {
            id: number(id),
            name: name.to_owned(),
            address: format!("{name}:7001"),
            disk_index: number(disk),
        },
        ["role", id, role] => NodeCommand::SetRole { id: number(id), role: node_role(role) },
        ["remove", id] => NodeCommand::Remove { id: number(id) },
        _ => panic!("`{words:?}` is no command"),
    }
}

/// A proposal of node `a`.
pub(super) fn propose(text: String, base_version: u64) -> TopologyCommand {
    let (by, limit) = ("a".to_owned(), Duration::from_secs(10));
    TopologyCommand::Propose { text, base_version, by, limit }
}

fn topology(words: &[&str]) -> TopologyCommand {
    match *words {
        ["propose", text, "on", base] => propose(text.to_owned(), number(base)),
        ["vote", version, node, ok] => TopologyCommand::Vote {
            version: number(version),
            node: number(node),
            ok: ok == "yes",
            reason: if ok == "yes" { String::new() } else { "no room".to_owned() },
        },
        ["commit", version] => TopologyCommand::Commit { version: number(version) },
        ["abort", version, reason] => {
            TopologyCommand::Abort { version: number(version), reason: reason.to_owned() }
        }
        _ => panic!("`{words:?}` is no command"),
    }
}

fn lease(words: &[&str]) -> LeaseCommand {
    let role = words[1].to_owned();
    match *words {
        ["grant", _, node, ttl] => {
            LeaseCommand::Grant { role, node: number(node), ttl: duration(ttl) }
        }
        ["renew", _, node, epoch] => {
            LeaseCommand::Renew { role, node: number(node), epoch: number(epoch) }
        }
        ["release", _, node, epoch] => {
            LeaseCommand::Release { role, node: number(node), epoch: number(epoch) }
        }
        ["expire", _, epoch, renewed] => {
            let renewed_index = number(renewed);
            LeaseCommand::Expire { role, epoch: number(epoch), renewed_index }
        }
        _ => panic!("`{words:?}` is no command"),
    }
}

fn notice(words: &[&str]) -> NoticeCommand {
    let (kind, subject, who) = match *words {
        ["pause", who] => (NoticeKind::Pause, "", who),
        ["maintain", part, who] => (NoticeKind::Maintenance, part, who),
        ["silence", matcher, who] => (NoticeKind::Silence, matcher, who),
        ["lift", id, who] => {
            return NoticeCommand::Lift { id: number(id), who: who.to_owned() };
        }
        _ => panic!("`{words:?}` is no command"),
    };
    let (subject, who, why) = (subject.to_owned(), who.to_owned(), "work".to_owned());
    NoticeCommand::Post { kind, subject, who, why, lasts: duration("1h") }
}

/// Steps of a plan are separated by commas; `!` after a name says that there is nothing to undo.
fn procedure(words: &[&str]) -> ProcedureCommand {
    match *words {
        ["begin", subject, coordinator, epoch, pivot, plan] => ProcedureCommand::Begin {
            kind: "switchover".to_owned(),
            subject: subject.to_owned(),
            coordinator: coordinator.to_owned(),
            epoch: number(epoch),
            pivot: pivot.parse().unwrap(),
            plan: plan
                .split(',')
                .filter(|name| !name.is_empty())
                .map(|name| Plan {
                    name: name.trim_end_matches('!').to_owned(),
                    undo: !name.ends_with('!'),
                })
                .collect(),
        },
        ["step", id, epoch, step, what] => ProcedureCommand::Step {
            id: number(id),
            epoch: number(epoch),
            step: step.parse().unwrap(),
            progress: match what {
                "start" => Progress::Start,
                "done" => Progress::Done { evidence: "seen".to_owned() },
                "failed" => Progress::Failed { why: "refused".to_owned() },
                "undo" => Progress::UndoStart,
                "undone" => Progress::Undone,
                "undofailed" => Progress::UndoFailed { why: "refused".to_owned() },
                _ => panic!("`{what}` is no progress"),
            },
        },
        ["unwind", id, epoch] => {
            let (id, epoch, why) = (number(id), number(epoch), "too late".to_owned());
            ProcedureCommand::Unwind { id, epoch, why }
        }
        ["abandon", id] => {
            let (who, why) = ("ann".to_owned(), "done by hand".to_owned());
            ProcedureCommand::Abandon { id: number(id), who, why }
        }
        _ => panic!("`{words:?}` is no command"),
    }
}

fn kv(words: &[&str]) -> KvCommand {
    let key = words[1].as_bytes().to_vec();
    match *words {
        ["put", _, value] | ["put", _, value, "in", _] => {
            let (value, session) = (value.into(), words.get(4).map(|id| number(id)));
            KvCommand::Put { key, value, session }
        }
        ["delete", _] => KvCommand::Delete { key, expected: None },
        ["delete", _, "if", is] => KvCommand::Delete { key, expected: Some(expectation(is)) },
        ["cas", _, is, value] => {
            KvCommand::Cas { key, expected: expectation(is), value: value.into(), session: None }
        }
        _ => panic!("`{words:?}` is no command"),
    }
}

fn session(words: &[&str]) -> SessionCommand {
    match *words {
        ["open", ttl] => SessionCommand::Open { ttl: duration(ttl) },
        ["keep", id] => SessionCommand::Renew { id: number(id) },
        ["close", id] => SessionCommand::Close { id: number(id) },
        ["over", id, renewed] => {
            SessionCommand::Expire { id: number(id), renewed_index: number(renewed) }
        }
        _ => panic!("`{words:?}` is no command"),
    }
}

fn lock(words: &[&str]) -> LockCommand {
    let key = words[1].as_bytes().to_vec();
    match *words {
        ["lock", _, session] => LockCommand::Lock { key, session: number(session) },
        ["unlock", _, session] => LockCommand::Unlock { key, session: number(session) },
        _ => panic!("`{words:?}` is no command"),
    }
}
