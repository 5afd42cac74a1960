//! What all nodes agree on, as one machine that each of them feeds the same entries in the same order.
//!
//! Who belongs to the cluster, which topology is in force, who holds which role, what people paused or silenced, which
//! procedures are under way, a small key-value space, and what happened. `docs/agreed.md` says what each command does.
//!
//! The machine has no clock and no randomness: the same entries give the same answers and the same bytes on every node.
//! What costs time (a lease that runs out, a pause that ends) happens by a command that whoever leads proposes; ids, epochs
//! and tokens are indices of the log, which never go back.

mod address;
#[cfg(test)]
pub(crate) mod bugs;
mod changes;
mod clients;
mod clock;
mod database;
pub(crate) mod form;
mod history;
mod kv;
mod lease;
mod limits;
mod lock;
mod names;
mod notice;
mod procedure;
mod registry;
mod reply;
mod session;
mod sha256;
mod side;
mod space;
#[cfg(test)]
mod tests;
mod topology;

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

pub use address::{AddressCommand, Addresses, AgreedAddress};
pub use changes::{Change, Changed, Changes, Watched};
pub use clients::ClientId;
pub(crate) use clock::rate_error;
pub use clock::{
    ACTION_LIMIT, CLOCK_RATE_ERROR, Ended, Held, LeaseClock, Moment, READING_ERROR, STOP_LIMIT,
    Timed,
};
pub(crate) use database::TURNS_MAX;
pub use database::{
    Ancestor, Confirm, DATABASE_LEASE, Database, DatabaseCommand, Databases, Election, Position,
    Recruit, Reign, Scheduled, Step as SwitchoverStep, StepDone, Switchover, SwitchoverEnd, Turn,
    TurnDone, Unscheduled, Upkeep, UpkeepEnd, UpkeepKind, UpkeepPlan, database_of_role,
    database_role,
};
pub use history::{Fact, History};
pub use kv::{Expected, Item, Items, KvCommand, Page};
pub use lease::{Lease, LeaseCommand, Leases};
pub use limits::{
    ANSWERS_KEPT, CHANGES_KEPT, CLIENTS_KEPT, ENDED_KEPT, HISTORY_KEPT, LOWERED_MAX, Limit,
    NOTICE_MAX, PAGE_BYTES_MAX, PAGE_KEYS_MAX, PROPOSAL_MAX, REMOVED_KEPT, TTL_MAX, TTL_MIN,
};
pub use lock::{Lock, LockCommand, Locks};
pub(crate) use names::lowered_words;
pub use names::{
    AddedRecord, AgreedHealth, AgreedNames, AgreedPin, AgreedZone, NameChange, Names, NamesCommand,
};
pub use notice::{Notice, NoticeCommand, NoticeKind, Notices, node_of_subject, node_subject};
pub use procedure::{
    End, How, Plan, Procedure, ProcedureCommand, Procedures, Progress, Step, StepState, What, next,
};
pub use registry::{Node, NodeCommand, NodeRole, Registry};
pub use reply::{Refusal, Reply};
pub use session::{Session, SessionCommand};
pub use sha256::Hash;
pub use side::{AgreedSide, SideCommand, Sides};
pub use space::Space;
pub use topology::{AgreedTopology, Proposal, REASONS_WAIT, TopologyCommand, Verdict, Vote};

#[cfg(test)]
use bugs::{Bug, instead};
use clients::{Clients, Seen};
use form::coded_struct;

use crate::codec::{Code, Malformed, Reader};
use crate::time::Timestamp;

/// When something was agreed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    /// The log index, which is the fencing token of what was given there.
    pub index: u64,
    /// The leader's wall clock, for people only.
    pub wall: Timestamp,
}

coded_struct!(Stamp { index, wall });

impl Code for ClientId {
    fn encode(&self, to: &mut Vec<u8>) {
        self.0.encode(to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<ClientId, Malformed> {
        u64::decode(from).map(ClientId)
    }
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub origin: ClientId,
    /// Counts the commands of a client from 1; an entry with the same origin and number is the same entry.
    pub sequence: u64,
    pub wall: Timestamp,
    pub command: Command,
}

coded_struct!(Entry version 1 { origin, sequence, wall, command });

/// Everything that can happen to what is agreed. There is no other way in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Gives a client its id. It is sent by [`ClientId::NOBODY`].
    Introduce,
    Node(NodeCommand),
    Topology(TopologyCommand),
    Lease(LeaseCommand),
    Notice(NoticeCommand),
    Procedure(ProcedureCommand),
    Kv(KvCommand),
    Session(SessionCommand),
    Lock(LockCommand),
    Side(SideCommand),
    Database(DatabaseCommand),
    Address(AddressCommand),
    Names(NamesCommand),
    /// A node adds a line to the history.
    Record {
        node: u64,
        text: String,
    },
}

macro_rules! coded_command {
    ($($number:literal = $case:ident),*) => {
        impl Code for Command {
            fn encode(&self, to: &mut Vec<u8>) {
                match self {
                    Command::Introduce => to.push(1),
                    Command::Record { node, text } => {
                        to.push(2);
                        node.encode(to);
                        text.encode(to);
                    }
                    $(Command::$case(command) => {
                        to.push($number);
                        command.encode(to);
                    })*
                }
            }

            fn decode(from: &mut Reader<'_>) -> Result<Command, Malformed> {
                match from.byte()? {
                    1 => Ok(Command::Introduce),
                    2 => Ok(Command::Record { node: Code::decode(from)?, text: Code::decode(from)? }),
                    $($number => Code::decode(from).map(Command::$case),)*
                    _ => Err(Malformed("a command that is not known here")),
                }
            }
        }
    };
}

coded_command!(
    3 = Node,
    4 = Topology,
    5 = Lease,
    6 = Notice,
    7 = Procedure,
    8 = Kv,
    9 = Session,
    10 = Lock,
    11 = Side,
    12 = Database,
    13 = Address,
    14 = Names
);

impl Command {
    /// Refuses what is too long or not well-formed. Ask before proposing; it is asked again when it is applied.
    pub fn check(&self) -> Result<(), Refusal> {
        match self {
            Command::Introduce => Ok(()),
            Command::Node(command) => command.check(),
            Command::Topology(command) => command.check(),
            Command::Lease(command) => command.check(),
            Command::Notice(command) => command.check(),
            Command::Procedure(command) => command.check(),
            Command::Kv(command) => command.check(),
            Command::Session(command) => command.check(),
            Command::Lock(command) => command.check(),
            Command::Side(command) => command.check(),
            Command::Database(command) => command.check(),
            Command::Address(command) => command.check(),
            Command::Names(command) => command.check(),
            Command::Record { text, .. } => Limit::FactBytes.name(text),
        }
    }

    /// Applied a second time, even later, it does no harm: it names what it was meant for, and that does not come back.
    /// Only such commands are taken from [`ClientId::NOBODY`].
    pub fn repeatable(&self) -> bool {
        match self {
            Command::Introduce => true,
            Command::Node(command) => command.repeatable(),
            Command::Topology(command) => command.repeatable(),
            Command::Lease(command) => command.repeatable(),
            Command::Notice(command) => command.repeatable(),
            Command::Procedure(command) => command.repeatable(),
            Command::Session(command) => command.repeatable(),
            Command::Side(command) => command.repeatable(),
            Command::Database(command) => command.repeatable(),
            Command::Address(command) => command.repeatable(),
            Command::Names(command) => command.repeatable(),
            Command::Kv(_) | Command::Lock(_) | Command::Record { .. } => false,
        }
    }
}

/// What is agreed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// The index of the last entry that was applied.
    index: u64,
    clients: Clients,
    registry: Registry,
    topology: AgreedTopology,
    leases: Leases,
    notices: Notices,
    procedures: Procedures,
    space: Space,
    history: History,
    sides: Sides,
    databases: Databases,
    addresses: Addresses,
    names: Names,
}

/// The version of a snapshot's form. Version 1 had no sides, version 2 no databases; version 3 was never released;
/// version 4 had no addresses, version 5 no names.
const FORM: u8 = 6;

impl Code for Agreed {
    fn encode(&self, to: &mut Vec<u8>) {
        to.push(FORM);
        let Agreed {
            index,
            clients,
            registry,
            topology,
            leases,
            notices,
            procedures,
            space,
            history,
            sides,
            databases,
            addresses,
            names,
        } = self;
        index.encode(to);
        clients.encode(to);
        registry.encode(to);
        topology.encode(to);
        leases.encode(to);
        notices.encode(to);
        procedures.encode(to);
        space.encode(to);
        history.encode(to);
        sides.encode(to);
        databases.encode(to);
        addresses.encode(to);
        names.encode(to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Agreed, Malformed> {
        let form = from.byte()?;
        if !matches!(form, 1 | 2 | 4 | 5 | FORM) {
            return Err(Malformed("a version that is not known here"));
        }
        Ok(Agreed {
            index: Code::decode(from)?,
            clients: Code::decode(from)?,
            registry: Code::decode(from)?,
            topology: Code::decode(from)?,
            leases: Code::decode(from)?,
            notices: Code::decode(from)?,
            procedures: Code::decode(from)?,
            space: Code::decode(from)?,
            history: Code::decode(from)?,
            sides: if form == 1 { Sides::default() } else { Code::decode(from)? },
            databases: if form < 3 { Databases::default() } else { Code::decode(from)? },
            addresses: if form < 5 { Addresses::default() } else { Code::decode(from)? },
            names: if form < 6 { Names::default() } else { Code::decode(from)? },
        })
    }
}

impl Agreed {
    /// Applies the entry of this index; indices rise, and may leave out entries of the log that are not ours. An entry that
    /// cannot be read must stop the node: to skip it would be to disagree.
    pub fn apply(&mut self, index: u64, entry: &Entry) -> Reply {
        if index <= self.index {
            return Refusal::Outdated { applied: self.index }.into();
        }
        self.index = index;
        let at = Stamp { index, wall: entry.wall };
        if entry.origin == ClientId::NOBODY {
            let may = entry.command.repeatable();
            return if may { self.run(at, &entry.command) } else { Refusal::NotIntroduced.into() };
        }
        let seen = self.clients.seen(entry.origin, entry.sequence);
        #[cfg(test)]
        let seen = instead(Bug::AppliedTwice, seen, Seen::Never);
        match seen {
            Seen::Before(reply) => reply,
            Seen::Never => {
                let reply = self.run(at, &entry.command);
                self.clients.answered(index, entry.origin, entry.sequence, reply);
                reply
            }
        }
    }

    fn run(&mut self, at: Stamp, command: &Command) -> Reply {
        if let Err(why) = command.check() {
            return why.into();
        }
        let history = &mut self.history;
        let result = match command {
            Command::Introduce => {
                Ok(Reply::Introduced { client: self.clients.introduce(at.index) })
            }
            Command::Node(command) => self.registry.apply(at, command, history),
            Command::Topology(command) => self.topology.apply(at, command, &self.registry, history),
            Command::Lease(command) => self.run_lease(at, command),
            Command::Notice(command) => self.notices.apply(at, command, history),
            Command::Procedure(command) => {
                self.procedures.apply(at, command, &self.leases, history)
            }
            Command::Kv(command) => self.space.apply_kv(at, command),
            Command::Session(command) => self.space.apply_session(at, command),
            Command::Lock(command) => self.space.apply_lock(at, command),
            Command::Side(command) => self.sides.apply(at, command, history),
            Command::Database(command) => {
                self.databases.apply(at, command, &mut self.leases, &self.registry, history)
            }
            Command::Address(command) => self.addresses.apply(at, command, history),
            Command::Names(command) => self.names.apply(at, command, history),
            Command::Record { node, text } => {
                history.add(at, *node, text);
                Ok(Reply::Done)
            }
        };
        result.into()
    }

    /// The lease of a database ends with the reign.
    fn run_lease(&mut self, at: Stamp, command: &LeaseCommand) -> Result<Reply, Refusal> {
        match command {
            LeaseCommand::Grant { role, .. } => self.databases.admits_renewal(role, None)?,
            LeaseCommand::Renew { role, epoch, .. } => {
                self.databases.admits_renewal(role, Some(*epoch))?;
            }
            LeaseCommand::Release { .. } | LeaseCommand::Expire { .. } => {}
        }
        self.leases.apply(at, command, &self.registry, &mut self.history)
    }

    /// Everything, as bytes from which [`restore`](Agreed::restore) makes a machine that answers the same.
    pub fn snapshot(&self) -> Vec<u8> {
        self.to_bytes()
    }

    pub fn restore(bytes: &[u8]) -> Result<Agreed, Malformed> {
        Agreed::from_bytes(bytes)
    }

    /// The index of the last entry that was applied.
    pub fn index(&self) -> u64 {
        self.index
    }

    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    pub fn topology(&self) -> &AgreedTopology {
        &self.topology
    }

    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    pub fn notices(&self) -> &Notices {
        &self.notices
    }

    pub fn procedures(&self) -> &Procedures {
        &self.procedures
    }

    pub fn sides(&self) -> &Sides {
        &self.sides
    }

    pub fn databases(&self) -> &Databases {
        &self.databases
    }

    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    pub fn names(&self) -> &Names {
        &self.names
    }

    pub fn space(&self) -> &Space {
        &self.space
    }

    pub fn history(&self) -> &History {
        &self.history
    }

    /// What changed in the key-value space from this index on, under keys that begin with `prefix`; about `limit` of it at
    /// a time. What the last entry changed is `changes(agreed.index(), b"", limit)`.
    pub fn changes(&self, from: u64, prefix: &[u8], limit: usize) -> Watched {
        self.space.changes.since(from, prefix, limit, self.index)
    }

    /// Everything that ends by time: what it is, when it was last renewed, and how long that lasts.
    pub fn timed(&self) -> impl Iterator<Item = (Timed, u64, Duration)> {
        let leases = self.leases.held().iter().map(|(role, lease)| {
            let timed = Timed::Lease { role: role.clone(), epoch: lease.epoch };
            (timed, lease.renewed_index, lease.ttl)
        });
        let sessions = self
            .space
            .sessions()
            .iter()
            .map(|(&id, session)| (Timed::Session { id }, session.renewed_index, session.ttl));
        let notices = self.notices.up().iter();
        let notices = notices.map(|(&id, notice)| (Timed::Notice { id }, id, notice.lasts));
        leases.chain(sessions).chain(notices)
    }
}
