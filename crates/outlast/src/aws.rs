//! `outlast aws promote-replica`: a read replica in another region becomes the database, and the name leads to it.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use outlast::elsewhere::places;
use outlast_aws::Client;
use outlast_aws::rds::{Instance, Limits, Progress};
use outlast_core::topology::{RecordValue, Topology};
use outlast_dns::elsewhere::{Elsewhere, Route53, Wanted};

use crate::output::{self, plain};
use crate::{Outcome, dns_elsewhere, verbs};

/// How often RDS is asked how far it is.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// It is said at least so often that it still takes time.
const SAY_EVERY: Duration = Duration::from_secs(30);

/// The longest wait that can be asked for.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);

pub(crate) const AFTER_HELP: &str = "\
Credentials come from where AWS's own tools look for them: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the profile
AWS_PROFILE in ~/.aws, a container, or the metadata of the instance. They are never shown.

Examples:
  outlast aws promote-replica myapp-standby --region us-west-2 --point db.example.com
                                        the replica becomes the database, then the name leads to it
  outlast aws promote-replica myapp-standby --region us-west-2 --dry-run
                                        how far behind it is, and what would be done";

const AFTER_HELP_OF_PROMOTE: &str = "\
What the replica has not received is lost, and it never follows its old source again. So it is refused if it is not a
replica, if RDS says that it does not replicate, or if CloudWatch says that it is farther behind than --max-lag, or does
not say. See to it that the old primary takes no more writes: nothing here can, where its region is not reached.

--point makes a CNAME, where the file's [dns] zone of that name is kept `elsewhere`, or in --hosted-zone. It is looked
there before anything is done.

If it is interrupted, RDS goes on by itself; --already-promoted waits for it and points the name.

Exit status:
  0  it is the database, and the name leads to it
  1  it was not promoted: it may not be, or you said no
  2  it is not known what became of it, or AWS was not reached";

#[derive(Debug, Subcommand)]
pub(crate) enum AwsVerb {
    /// Makes a read replica of RDS a database of its own, and a name lead to it.
    #[command(after_help = AFTER_HELP_OF_PROMOTE)]
    PromoteReplica(PromoteArgs),
}

#[derive(Debug, Args)]
pub(crate) struct PromoteArgs {
    /// The replica, as RDS calls it.
    #[arg(value_name = "INSTANCE")]
    instance: String,
    /// The region that it is in, before what the environment says.
    #[arg(long)]
    region: Option<String>,
    /// How far behind it may be, or any.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = lag)]
    max_lag: MaxLag,
    /// How long to wait until it is available.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = wait)]
    wait: Duration,
    /// The name that is to lead to it.
    #[arg(long, value_name = "NAME")]
    point: Option<String>,
    /// How long others may remember that.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = crate::agreed::duration)]
    ttl: Duration,
    /// The hosted zone of Route 53 that the name lies in, instead of a zone of the file.
    #[arg(long, value_name = "ID", requires = "point")]
    hosted_zone: Option<String>,
    /// The topology file, for the zone that the name lies in.
    #[arg(long, short, default_value = "outlast.toml", value_name = "FILE")]
    file: PathBuf,
    /// It was told already: wait for it, and point the name.
    #[arg(long, conflicts_with = "dry_run")]
    already_promoted: bool,
    /// Show how it is and what would be done.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
}

#[derive(Clone, Copy, Debug)]
struct MaxLag(Option<Duration>);

fn lag(text: &str) -> Result<MaxLag, String> {
    match text {
        "any" => Ok(MaxLag(None)),
        text => crate::agreed::duration(text).map(|lag| MaxLag(Some(lag))),
    }
}

fn wait(text: &str) -> Result<Duration, String> {
    let wait = crate::agreed::duration(text)?;
    if WAIT_MAX < wait { Err("write at most 24h".to_owned()) } else { Ok(wait) }
}

pub(crate) fn run(verb: &AwsVerb) -> anyhow::Result<Outcome> {
    let AwsVerb::PromoteReplica(args) = verb;
    let topology = match (&args.point, &args.hosted_zone) {
        (Some(_), None) => match dns_elsewhere::topology(&args.file)? {
            Some(topology) => Some(topology),
            None => return Ok(Outcome::Mistakes),
        },
        (_, _) => None,
    };
    verbs::block_on(promote(args, topology.as_ref()))
}

async fn promote(args: &PromoteArgs, topology: Option<&Topology>) -> anyhow::Result<Outcome> {
    let client = Client::of_process(args.region.as_deref())?;
    let before = client.instance(&args.instance).await?;
    let pointer = Box::pin(Pointer::find(args, topology)).await?;
    if let Some(pointer) = &pointer {
        // That it could be pointed is found out before anything is done.
        let endpoint = before.endpoint.as_ref().context("RDS says no endpoint of the instance")?;
        let outline = pointer.look(&endpoint.0).await?;
        let now = if outline.is_empty() { "as wanted already\n".to_owned() } else { outline };
        say(&format!("afterwards, {}:\n{now}", pointer.place));
    }
    if args.dry_run {
        return look(args, &client, &before).await;
    }
    let limits = Limits { lag: args.max_lag.0, wait: args.wait, look: LOOK_EVERY };
    let mut progress = Teller::default();
    let mut tell = |news: Progress| progress.tell(&news);
    let result = if args.already_promoted {
        client.until_promoted(&args.instance, limits, &mut tell).await
    } else {
        if !args.yes && !confirmed(&args.instance)? {
            return Ok(Outcome::Mistakes);
        }
        client.promote_replica(&args.instance, limits, &mut tell).await
    };
    use outlast_aws::rds::PromoteError as Error;
    let instance = match result {
        Ok(instance) => instance,
        Err(
            error @ (Error::NotAReplica(_)
            | Error::NotReplicating(_)
            | Error::TooFarBehind { .. }
            | Error::UnknownLag
            | Error::NotAvailable(_)),
        ) => {
            output::complain(&format!("error: {}: {error}\n", args.instance));
            return Ok(Outcome::Mistakes);
        }
        Err(error @ (Error::Aws(_) | Error::NotDone { .. })) => {
            return Err(error).with_context(|| args.instance.clone());
        }
    };
    if let Some(pointer) = &pointer {
        let endpoint =
            instance.endpoint.as_ref().context("RDS says no endpoint of the instance")?;
        pointer.point(&endpoint.0).await.with_context(|| {
            format!(
                "{} is promoted, but the name does not lead to it; go on with --already-promoted",
                args.instance
            )
        })?;
    }
    Ok(Outcome::Fine)
}

/// How a replica is, without a change.
async fn look(args: &PromoteArgs, client: &Client, instance: &Instance) -> anyhow::Result<Outcome> {
    let Some(source) = &instance.replica_of else {
        say(&format!("{} is `{}` and no replica\n", instance.id, instance.status));
        return Ok(Outcome::Mistakes);
    };
    let behind = match client.replica_lag(&args.instance).await? {
        Some(lag) => {
            format!("{:.1} s behind {:.0} s ago", lag.behind.as_secs_f64(), lag.age.as_secs_f64())
        }
        None => "nobody knows how far behind".to_owned(),
    };
    say(&format!(
        "{} is `{}`, a replica of {source}, {behind}; nothing was changed\n",
        instance.id, instance.status
    ));
    Ok(Outcome::Fine)
}

fn say(text: &str) {
    let lines: String = text.lines().map(|line| plain(line) + "\n").collect();
    // Whoever reads no more has what there is in the exit status.
    output::print(&lines).unwrap_or_default();
}

fn confirmed(instance: &str) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        bail!("there is no terminal to ask on; add --yes, or look first with --dry-run");
    }
    output::complain(&format!(
        "\nPromote {}? It will never follow its source again. [y/N] ",
        plain(instance)
    ));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("read the answer")?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// Says what changes, and that it goes on.
#[derive(Debug, Default)]
struct Teller {
    said: Option<(String, bool, Duration)>,
}

impl Teller {
    fn tell(&mut self, news: &Progress) {
        match news {
            Progress::Found { instance, lag } => {
                let of = instance.replica_of.clone().unwrap_or_default();
                let lag = lag.map(|lag| format!(", {:.1} s behind", lag.behind.as_secs_f64()));
                say(&format!("{}: a replica of {of}{}", instance.id, lag.unwrap_or_default()));
            }
            Progress::Told => say("RDS was told to promote it"),
            Progress::Waiting { status, still_replica, after } => {
                let is_news = self.said.as_ref().is_none_or(|(word, replica, at)| {
                    word != status || replica != still_replica || *at + SAY_EVERY <= *after
                });
                if is_news {
                    let kind =
                        if *still_replica { "still a replica" } else { "no replica any more" };
                    say(&format!("after {:.0} s: {status}, {kind}", after.as_secs_f64()));
                    self.said = Some((status.clone(), *still_replica, *after));
                }
            }
            Progress::Done { instance, after } => {
                say(&format!(
                    "{}: a database of its own after {:.0} s",
                    instance.id,
                    after.as_secs_f64()
                ));
            }
        }
    }
}

/// Where a name is made to lead somewhere.
struct Pointer<'a> {
    zone: String,
    name: &'a str,
    ttl: Duration,
    servers: Vec<Elsewhere>,
    place: String,
}

impl<'a> Pointer<'a> {
    async fn find(
        args: &'a PromoteArgs,
        topology: Option<&Topology>,
    ) -> anyhow::Result<Option<Pointer<'a>>> {
        let Some(name) = &args.point else { return Ok(None) };
        let name = name.trim_end_matches('.');
        let ttl = args.ttl;
        let Some(topology) = topology else {
            let id = args.hosted_zone.as_deref().unwrap_or_default();
            let client = Client::of_process(None)?;
            let zone = client.hosted_zone_name(id).await?;
            let route53 = Route53 { client, zone_id: id.to_owned(), cluster: "by hand".to_owned() };
            let place = format!("{zone} at {route53}");
            let servers = vec![Elsewhere::Route53(route53)];
            return Ok(Some(Pointer { zone, name, ttl, servers, place }));
        };
        let holds = |zone: &str| {
            let (name, zone) = (name.to_ascii_lowercase(), zone.to_ascii_lowercase());
            name == zone || name.ends_with(&format!(".{zone}"))
        };
        let zones = topology.dns.iter().filter(|(zone, _)| holds(zone));
        let (zone, part) = zones
            .max_by_key(|(zone, _)| zone.len())
            .with_context(|| format!("no zone of the file holds {name}; name its --hosted-zone"))?;
        let within = name.get(..name.len() - zone.len()).unwrap_or_default().trim_end_matches('.');
        let within = if within.is_empty() { "@" } else { within };
        ensure!(
            !part.records.iter().any(|record| record.name.eq_ignore_ascii_case(within)),
            "the file has {name} itself, and would point it back; change the record there, or take it out"
        );
        ensure!(
            !part.elsewhere.is_empty(),
            "the zone {zone} has no `elsewhere`; name its --hosted-zone"
        );
        let mut servers = Vec::new();
        let mut names = Vec::new();
        let base = dns_elsewhere::base(&args.file)?;
        for place in places(&topology.cluster.name, zone, part, &base) {
            let server = place.server.map_err(|why| anyhow::anyhow!("{}: {why}", place.name))?;
            servers.push(server);
            names.push(place.name);
        }
        Ok(Some(Pointer { zone: zone.clone(), name, ttl, servers, place: names.join(" and ") }))
    }

    fn wanted(&self, endpoint: &str) -> anyhow::Result<Wanted> {
        let value = RecordValue::Cname(endpoint.to_owned());
        Ok(Wanted::one(&self.zone, self.name, value, self.ttl)?)
    }

    async fn look(&self, endpoint: &str) -> anyhow::Result<String> {
        let wanted = self.wanted(endpoint)?;
        let mut text = String::new();
        for server in &self.servers {
            text.push_str(&Box::pin(server.outline(&wanted)).await?.to_string());
        }
        Ok(text)
    }

    async fn point(&self, endpoint: &str) -> anyhow::Result<()> {
        let wanted = self.wanted(endpoint)?;
        for server in &self.servers {
            let outline = Box::pin(server.push(&wanted)).await?;
            ensure!(outline.refused.is_empty(), "{}", outline.refused.join("; "));
        }
        say(&format!("{} leads to {endpoint}", self.name));
        Ok(())
    }
}
