//! `outlast lab`: the cluster of a topology file on one machine, to try it and to break it.
//!
//! Three kinds of process. The *owner* is what the person started: it holds the lab, and when it ends, however, all ends.
//! The *keeper* is its child, the first process of the lab's namespaces: it builds the network, starts machines, obeys the
//! verbs and heals faults. A *machine* is the first process of one node: it sets the node up and runs its agent.

mod args;
mod faults;
mod keeper;
mod machine;
mod node;
mod owner;
mod place;
mod plan;
mod tell;
mod verbs;
mod wire;

pub(crate) use args::{AFTER_HELP, LabVerb};

use crate::Outcome;

pub(crate) fn run(verb: &LabVerb) -> anyhow::Result<Outcome> {
    match verb {
        LabVerb::Up(args) => owner::up(args),
        LabVerb::Down(which) => verbs::down(which),
        LabVerb::Status(args) => verbs::status(args),
        LabVerb::Exec(args) => verbs::exec(args),
        LabVerb::Logs(args) => verbs::logs(args),
        LabVerb::Cut(args) => verbs::cut(args),
        LabVerb::Loss(args) => verbs::loss(args),
        LabVerb::Delay(args) => verbs::delay(args),
        LabVerb::Heal(args) => verbs::heal(args),
        LabVerb::Kill(args) => verbs::kill(args),
        LabVerb::Stop(args) => verbs::stop(args),
        LabVerb::Start(args) => verbs::start(args),
        LabVerb::Pause(args) => verbs::pause(args),
        LabVerb::Resume(args) => verbs::resume(args),
        LabVerb::Keeper => keeper::run(),
        LabVerb::Machine => machine::run(),
    }
}
