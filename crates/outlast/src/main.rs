//! `outlast`: one binary, one topology file.

mod agreed;
mod apply;
#[cfg(feature = "aws")]
mod aws;
mod certs;
mod check;
mod cli;
mod databases;
mod dns;
mod dns_elsewhere;
mod events;
mod lab;
mod output;
mod status;
mod verbs;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Export, Verb};

/// What a run came to, as the shell sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Fine,
    /// The file has mistakes.
    Mistakes,
    /// It could not even be tried.
    Unable,
    /// What a command that was run for the user came to.
    Code(u8),
}

/// The environment variable that names the topology file of the agent that verbs speak to.
const AGENT_FILE: &str = "OUTLAST_FILE";

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.verb {
        Verb::Check(args) => check::run(&args),
        Verb::Schema => schema(),
        Verb::Export(Export::Kubernetes(args)) => check::export_kubernetes(&args),
        Verb::Certs(certs) => certs::run(&certs),
        Verb::Run(args) => verbs::run(&args),
        Verb::Status(args) => status::run(&args),
        Verb::Events(args) => events::run(&args),
        Verb::Apply(args) => apply::run(&args),
        Verb::Reload(at) => verbs::order(&at, "/v1/reload", None, None),
        Verb::Drain(args) => {
            verbs::order(&args.at, "/v1/drain", Some(args.service), Some(args.backend))
        }
        Verb::Undrain(args) => {
            verbs::order(&args.at, "/v1/undrain", Some(args.service), Some(args.backend))
        }
        Verb::Failback(args) => verbs::order(&args.at, "/v1/failback", Some(args.service), None),
        Verb::Upgrade(at) => verbs::order(&at, "/v1/upgrade", None, None),
        Verb::Kv(kv) => agreed::kv(kv),
        Verb::Node(verb) => agreed::node(verb),
        Verb::Switchover(args) => databases::switchover(&args),
        Verb::Failover(args) => databases::failover(&args),
        Verb::Pause(args) => databases::pause(&args),
        Verb::Resume(args) => databases::resume(&args),
        Verb::Restart(args) => databases::restart(&args),
        Verb::Reinit(args) => databases::reinit(&args),
        Verb::History(args) => databases::history(&args),
        Verb::Dns(verb) => dns::run(&verb),
        Verb::Stop(args) => verbs::stop(&args),
        #[cfg(feature = "aws")]
        Verb::Aws(verb) => aws::run(&verb),
        Verb::Lab(verb) => lab::run(&verb),
        Verb::Proxy(args) => verbs::proxy(&args),
        Verb::PostgresKeeper { run_dir } => verbs::keep_postgres(&run_dir),
        Verb::AddressGuardian => verbs::guard_addresses(),
    };
    let outcome = outcome.unwrap_or_else(|error| {
        output::complain(&format!("error: {error:#}\n"));
        Outcome::Unable
    });
    ExitCode::from(match outcome {
        Outcome::Fine => 0,
        Outcome::Mistakes => 1,
        Outcome::Unable => 2,
        Outcome::Code(code) => code,
    })
}

fn schema() -> anyhow::Result<Outcome> {
    output::print(&format!("{:#}\n", outlast::file::schema()))?;
    Ok(Outcome::Fine)
}
