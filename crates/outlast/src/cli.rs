//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::lab::{self, LabVerb};

/// Keeps a service and its data up when parts of it fail: one binary per node, one topology file.
#[derive(Debug, Parser)]
#[command(name = "outlast", version, after_help = AFTER_HELP, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

const AFTER_HELP: &str = "\
Examples:
  outlast check outlast.toml            what is wrong with the file, and what it promises
  outlast check --format json | jq .    the same for programs
  outlast certs init --cluster shop     the certificates by which nodes know each other
  outlast schema > outlast.schema.json  what an editor needs to complete and check the file
  outlast apply shop.toml               the changed file on all nodes of the cluster, or on none
  outlast lab up shop.toml              the whole cluster on this machine, to try and to break

`outlast VERB --help` says more about a verb.";

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Says everything that is wrong with a topology file, or what can be expected of it.
    #[command(after_help = AFTER_HELP_OF_CHECK)]
    Check(CheckArgs),
    /// Prints the JSON Schema of the topology file: its sections, keys, defaults and what they mean.
    #[command(after_help = AFTER_HELP_OF_SCHEMA)]
    Schema,
    /// Prints what other systems read.
    #[command(subcommand)]
    Export(Export),
    /// Makes and renews the certificates by which the nodes of a cluster know each other.
    #[command(subcommand, after_help = AFTER_HELP_OF_CERTS)]
    Certs(Certs),
    /// Runs this node: probes, decides, routes, records. Ends on Ctrl-C or SIGTERM after open work is done.
    #[command(after_help = AFTER_HELP_OF_RUN)]
    Run(RunArgs),
    /// Shows what is up, what is not, since when, why, and what comes next.
    #[command(after_help = AFTER_HELP_OF_STATUS)]
    Status(StatusArgs),
    /// Shows what happened on this node: the journal.
    #[command(after_help = AFTER_HELP_OF_EVENTS)]
    Events(EventsArgs),
    /// Takes the changed topology file without dropping a connection; a bad one is refused and the old one stays.
    /// Where several nodes have agreed on a topology, use `outlast apply`.
    Reload(AtArgs),
    /// Brings a changed topology file into force on all nodes of the cluster, or on none.
    #[command(after_help = crate::apply::AFTER_HELP)]
    Apply(crate::apply::ApplyArgs),
    /// Takes a backend out of traffic: what it has is finished, nothing new comes.
    #[command(after_help = AFTER_HELP_OF_DRAIN)]
    Drain(BackendArgs),
    /// Puts a drained backend back into traffic.
    Undrain(BackendArgs),
    /// Returns a pair to its primary as soon as that is up.
    Failback(ServiceArgs),
    /// Moves the primary of a database to another node, as planned: no write is lost, no client sees an error.
    #[command(after_help = crate::databases::AFTER_HELP_OF_SWITCHOVER)]
    Switchover(crate::databases::SwitchoverArgs),
    /// Ends the reign of a database's primary: another member takes over.
    #[command(after_help = crate::databases::AFTER_HELP_OF_FAILOVER)]
    Failover(crate::databases::FailoverArgs),
    /// Restarts PostgreSQL of a database's members: standbys one after the other, then the primary.
    #[command(after_help = crate::databases::AFTER_HELP_OF_RESTART)]
    Restart(crate::databases::RestartArgs),
    /// Makes a standby anew from the primary; its old data is kept aside.
    #[command(after_help = crate::databases::AFTER_HELP_OF_REINIT)]
    Reinit(crate::databases::ReinitArgs),
    /// Keeps databases from failing over by themselves for a while, or members on a node from being counted on.
    #[command(after_help = crate::databases::AFTER_HELP_OF_PAUSE)]
    Pause(crate::databases::PauseArgs),
    /// Ends a pause.
    Resume(crate::databases::ResumeArgs),
    /// Shows what the nodes have agreed on, in its order: who became primary when, and why.
    History(crate::databases::HistoryArgs),
    /// Says why a name is answered as it is, who is to serve it, and takes in zone files.
    #[command(subcommand, after_help = crate::dns::AFTER_HELP)]
    Dns(crate::dns::DnsVerb),
    /// Makes the running agent become the binary that is on disk now; clients notice nothing, unless an address moves.
    Upgrade(AtArgs),
    /// Stops the running agent: not ready first, then drained, then ended. Waits until it has ended.
    #[command(after_help = AFTER_HELP_OF_STOP)]
    Stop(StopArgs),
    /// Reads and writes the small key-value space that all nodes agree on.
    #[command(subcommand, after_help = crate::agreed::AFTER_HELP_OF_KV)]
    Kv(crate::agreed::Kv),
    /// Says who takes part in the agreement, and changes it.
    #[command(subcommand, after_help = crate::agreed::AFTER_HELP_OF_NODE)]
    Node(crate::agreed::NodeVerb),
    /// Does what is seldom done by hand in AWS.
    #[cfg(feature = "aws")]
    #[command(subcommand, after_help = crate::aws::AFTER_HELP)]
    Aws(crate::aws::AwsVerb),
    /// Tries the file's whole cluster on this machine: real nodes and a network between them that can be broken.
    #[command(subcommand, after_help = lab::AFTER_HELP)]
    Lab(LabVerb),
    /// The data plane's process; started by the agent.
    #[command(hide = true)]
    Proxy(ProxyArgs),
    /// The process that keeps a PostgreSQL; started by the agent.
    #[command(hide = true, name = outlast::database::KEEP)]
    PostgresKeeper { run_dir: PathBuf },
    /// Lets go of addresses when the agent dies; started by the agent.
    #[command(hide = true, name = outlast::addresses::GUARDIAN)]
    AddressGuardian,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Export {
    /// A Kubernetes Deployment of a process, with the same probes and limits.
    #[command(after_help = AFTER_HELP_OF_KUBERNETES)]
    Kubernetes(KubernetesArgs),
}

const AFTER_HELP_OF_CERTS: &str = "\
Nodes speak to each other by TLS, with certificates of a CA that belongs to the cluster alone. It is a directory of files:
keep it where you keep other secrets, not on a node; docs/certificates.md has all steps.

Examples:
  outlast certs init --cluster shop     makes certs/ca.pem and certs/ca.key
  outlast certs issue a b c             makes certs/a.pem, certs/a.key and so on
  outlast certs show                    what there is, and for how many days it is good
  outlast certs rotate a                a new certificate for a, in place of the old one
  outlast certs revoke b                shuts out whoever has b's certificate

Each node gets ca.pem, ca.crl if there is one, and its own two files. In outlast.toml:
  [cluster]
  tls = { ca = \"ca.pem\", cert = \"node.pem\", key = \"node.key\", crl = \"ca.crl\" }

A running agent takes changed files by itself.";

#[derive(Debug, Subcommand)]
pub(crate) enum Certs {
    /// Makes the cluster's CA; refuses to overwrite one.
    Init(CertsInitArgs),
    /// Makes the first certificates of nodes.
    Issue(CertsIssueArgs),
    /// Makes new certificates of nodes in place of those that are there.
    Rotate(CertsIssueArgs),
    /// Shuts out whoever has this certificate, by the list ca.crl that nodes are given.
    #[command(after_help = AFTER_HELP_OF_REVOKE)]
    Revoke(CertsRevokeArgs),
    /// Lists CAs and certificates, with the days that they are still good for.
    #[command(after_help = AFTER_HELP_OF_SHOW)]
    Show(CertsShowArgs),
}

const AFTER_HELP_OF_REVOKE: &str = "\
Bring the changed ca.crl to every node: agents take it by themselves and end connections with that certificate.

Examples:
  outlast certs revoke b                the certificate in certs/b.pem
  outlast certs revoke 5e0c4d1f9a3b7c2215f60a8841d3e97b";

const AFTER_HELP_OF_SHOW: &str = "\
Examples:
  outlast certs show
  outlast certs show --dir /etc/outlast
  outlast certs show --format json | jq '.certificates[] | select(.days_left < 30) | .node'

Exit status:
  0  all that there is can be used
  1  something has expired, was revoked, is not valid yet or is of another CA
  2  nothing can be read";

#[derive(Debug, Args)]
pub(crate) struct CertsAtArgs {
    /// The CA's directory.
    #[arg(long, default_value = "certs", value_name = "DIR")]
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct CertsInitArgs {
    /// The cluster's name, as in [cluster].
    #[arg(long, value_name = "NAME")]
    pub(crate) cluster: String,
    #[command(flatten)]
    pub(crate) at: CertsAtArgs,
    /// For how many days the CA is good.
    #[arg(long, value_name = "N", default_value_t = outlast::authority::CA_DAYS,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(outlast::authority::DAYS_MAX)))]
    pub(crate) days: u32,
}

#[derive(Debug, Args)]
pub(crate) struct CertsIssueArgs {
    /// The nodes' names in the topology file.
    #[arg(required = true, value_name = "NODE")]
    pub(crate) nodes: Vec<String>,
    #[command(flatten)]
    pub(crate) at: CertsAtArgs,
    /// The topology file: it knows the nodes and their addresses. Without it outlast.toml is read if there is one.
    #[arg(long, value_name = "FILE")]
    pub(crate) topology: Option<PathBuf>,
    /// For how many days a certificate is good.
    #[arg(long, value_name = "N", default_value_t = outlast::authority::NODE_DAYS,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(outlast::authority::DAYS_MAX)))]
    pub(crate) days: u32,
}

#[derive(Debug, Args)]
pub(crate) struct CertsRevokeArgs {
    /// A node's name, or the serial of a certificate.
    #[arg(value_name = "NODE|SERIAL")]
    pub(crate) which: String,
    #[command(flatten)]
    pub(crate) at: CertsAtArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CertsShowArgs {
    #[command(flatten)]
    pub(crate) at: CertsAtArgs,
    /// How to print.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
}

const AFTER_HELP_OF_KUBERNETES: &str = "\
Examples:
  outlast export kubernetes api | kubectl apply -f -
  outlast export kubernetes api --file shop.toml --format json";

#[derive(Debug, Args)]
pub(crate) struct KubernetesArgs {
    /// The process's name in the file.
    pub(crate) process: String,
    /// The topology file.
    #[arg(long, short, default_value = "outlast.toml", value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// YAML for people and kubectl, or JSON.
    #[arg(long, value_enum, default_value_t = ManifestFormat::Yaml)]
    pub(crate) format: ManifestFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ManifestFormat {
    Yaml,
    Json,
}

const AFTER_HELP_OF_RUN: &str = "\
Examples:
  outlast run                           runs outlast.toml on the node whose address is ours
  outlast run shop.toml --node a        says which node this is
  outlast run shop.toml --log-format json

Signals:
  SIGTERM, SIGINT  not ready, drain, end; open work has `timeouts.drain`,
                   30 seconds at most
  SIGHUP           take the changed file (`outlast reload`)
  SIGUSR2          become the new binary (`outlast upgrade`)

Rights:
  The agent needs not be root. It says at its start which capabilities
  it keeps, gives all others up, and names what the file needs besides:
  CAP_NET_ADMIN and CAP_NET_RAW for [address], CAP_NET_BIND_SERVICE for
  ports below 1024. Root is needed for programs and databases of other
  users. docs/rights.md has a table, and a unit for systemd.

Exit status:
  0  stopped, all work was finished
  1  stopped, open work had to be cut off
  2  could not run";

const AFTER_HELP_OF_STATUS: &str = "\
Examples:
  outlast status                        the agent that runs outlast.toml
  outlast status --watch                again every second, until Ctrl-C
  outlast status --format json | jq '.services[] | select(.state != \"up\")'

Exit status:
  0  the agent answered, whatever it said
  2  no agent answers";

const AFTER_HELP_OF_EVENTS: &str = "\
The journal is read from the data directory; no agent need run.

Examples:
  outlast events                        the last 20
  outlast events --follow               and those to come, until Ctrl-C
  outlast events --last 1000 --subject service.web
  outlast events --subject service      of all services
  outlast events --format json --follow | jq 'select(.severity == \"error\")'";

const AFTER_HELP_OF_DRAIN: &str = "\
Examples:
  outlast drain web http://10.0.0.1:3000
  outlast undrain web http://10.0.0.1:3000";

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The topology file.
    #[arg(default_value = "outlast.toml", value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Which node of the file this machine is; found by its address if left out.
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// How to log.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct AtArgs {
    /// The topology file that the agent runs: it says where its data directory is.
    #[arg(
        long,
        short,
        default_value = "outlast.toml",
        value_name = "FILE",
        env = crate::AGENT_FILE,
        hide_env_values = true
    )]
    pub(crate) file: PathBuf,
    /// The agent's data directory, instead of the file.
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

const AFTER_HELP_OF_STOP: &str = "\
Examples:
  outlast stop                          returns when nothing of it runs any more
  outlast stop --no-wait                returns when the agent has heard it

Exit status:
  0  the agent has ended, or with --no-wait has heard it
  2  no agent answers, or it has not ended within two minutes";

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    #[command(flatten)]
    pub(crate) at: AtArgs,
    /// Do not wait until the agent has ended.
    #[arg(long)]
    pub(crate) no_wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) at: AtArgs,
    /// How to print.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
    /// Print again every second, until Ctrl-C.
    #[arg(long, short)]
    pub(crate) watch: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    #[command(flatten)]
    pub(crate) at: AtArgs,
    /// How many of the newest to show.
    #[arg(long, short = 'n', value_name = "N", default_value_t = 20)]
    pub(crate) last: usize,
    /// Wait for more, until Ctrl-C.
    #[arg(long)]
    pub(crate) follow: bool,
    /// Only of this part (`service.web`) or of this kind of part (`service`).
    #[arg(long, value_name = "PART")]
    pub(crate) subject: Option<String>,
    /// How to print.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct BackendArgs {
    /// The service's name in the file.
    pub(crate) service: String,
    /// The backend as the file writes it.
    pub(crate) backend: String,
    #[command(flatten)]
    pub(crate) at: AtArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ServiceArgs {
    /// The service's name in the file.
    pub(crate) service: String,
    #[command(flatten)]
    pub(crate) at: AtArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ProxyArgs {
    #[arg(long)]
    pub(crate) data_dir: PathBuf,
    #[arg(long)]
    pub(crate) threads: usize,
}

const AFTER_HELP_OF_CHECK: &str = "\
Every mistake is named at once, with its line and what to write instead.

Examples:
  outlast check                         reads outlast.toml
  outlast check cluster/shop.toml
  outlast check - < shop.toml           reads standard input
  outlast check --format json           mistakes as {\"line\", \"column\", \"message\", \"help\"}

Exit status:
  0  the file makes sense
  1  it has mistakes
  2  it cannot be read";

const AFTER_HELP_OF_SCHEMA: &str = "\
Examples:
  outlast schema > outlast.schema.json
  outlast schema | jq '.[\"$defs\"][\"service.NAME\"].properties | keys'

For an editor with a TOML language server, write as the first line of outlast.toml:
  #:schema ./outlast.schema.json";

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// The topology file; - is standard input.
    #[arg(default_value = "outlast.toml", value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// How to print.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
    /// Print the table of nines (what an availability means in downtime) and read no file.
    #[arg(long)]
    pub(crate) table: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    // Other verbs print lines of text for people.
    #[value(alias = "text")]
    Table,
    /// For programs.
    Json,
}
