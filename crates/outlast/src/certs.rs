//! `outlast certs`: the certificates by which the nodes of a cluster know each other.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, bail};
use outlast::authority::{Authority, Issued, Listed, State, Subject};
use serde_json::json;

use crate::cli::{
    Certs, CertsAtArgs, CertsInitArgs, CertsIssueArgs, CertsRevokeArgs, CertsShowArgs, Format,
};
use crate::output::{Ink, Paint};
use crate::{Outcome, output};

/// Fewer days than this are shown in yellow.
const SOON_DAYS: i64 = 30;

pub(crate) fn run(certs: &Certs) -> anyhow::Result<Outcome> {
    match certs {
        Certs::Init(args) => init(args),
        Certs::Issue(args) => issue(args, Authority::issue),
        Certs::Rotate(args) => issue(args, Authority::rotate),
        Certs::Revoke(args) => revoke(args),
        Certs::Show(args) => show(args),
    }
}

fn authority(at: &CertsAtArgs) -> Authority {
    Authority { dir: at.dir.clone() }
}

fn init(args: &CertsInitArgs) -> anyhow::Result<Outcome> {
    let dir = args.at.dir.display();
    let ca = authority(&args.at).init(&args.cluster, args.days)?;
    output::print(&format!(
        "{dir}/ca.pem  the CA `{}`, good until {}\n{dir}/ca.key  its key: whoever has it can make a node; keep it off \
         the nodes\n\nNext: outlast certs issue NODE...{}\n",
        ca.common_name,
        date(ca.not_after),
        with_dir(&args.at.dir),
    ))?;
    Ok(Outcome::Fine)
}

/// What has to be written behind a command for this directory.
fn with_dir(dir: &Path) -> String {
    if dir == Path::new("certs") { String::new() } else { format!(" --dir {}", dir.display()) }
}

type Make = fn(&Authority, &[Subject], u32) -> anyhow::Result<Vec<Issued>>;

fn issue(args: &CertsIssueArgs, make: Make) -> anyhow::Result<Outcome> {
    let subjects = subjects(args)?;
    let made = make(&authority(&args.at), &subjects, args.days)?;
    let mut text = String::new();
    for issued in &made {
        let until = date(issued.certificate.not_after);
        writeln!(
            text,
            "{}, {}  node `{}`, serial {}, good until {until}",
            issued.cert.display(),
            issued.key.display(),
            issued.node,
            issued.certificate.serial,
        )?;
        if let Some(before) = &issued.before {
            writeln!(
                text,
                "  the one before, serial {}, stays good until {}; `outlast certs revoke {}{}` ends that",
                before.serial,
                date(before.not_after),
                before.serial,
                with_dir(&args.at.dir),
            )?;
        }
    }
    let dir = args.at.dir.display();
    write!(
        text,
        "\nNext: bring {dir}/ca.pem and its own two files to each node, as `tls` in [cluster] names them:\n  tls = {{ ca \
         = \"ca.pem\", cert = \"node.pem\", key = \"node.key\", crl = \"ca.crl\" }}\nA running agent takes changed files \
         by itself.\n"
    )?;
    output::print(&text)?;
    Ok(Outcome::Fine)
}

/// The nodes that are named, each once, with their addresses.
fn subjects(args: &CertsIssueArgs) -> anyhow::Result<Vec<Subject>> {
    let addresses = addresses(args.topology.as_deref())?;
    let mut subjects: Vec<Subject> = Vec::new();
    for node in &args.nodes {
        let address = match &addresses {
            None => None,
            Some((file, known)) => match known.get(node) {
                Some(address) => Some(*address),
                None => {
                    let names: Vec<&str> = known.keys().map(String::as_str).collect();
                    bail!("{file} has no node `{node}`; its nodes are {}", names.join(", "));
                }
            },
        };
        if subjects.iter().all(|subject| subject.node != *node) {
            subjects.push(Subject { node: node.clone(), address });
        }
    }
    Ok(subjects)
}

/// The nodes of the topology file, if there is one.
fn addresses(file: Option<&Path>) -> anyhow::Result<Option<(String, BTreeMap<String, IpAddr>)>> {
    let usual = Path::new("outlast.toml");
    let path = match file {
        Some(path) => path,
        None if usual.exists() => usual,
        None => return Ok(None),
    };
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(|| format!("read {name}"))?;
    let topology = outlast::file::parse(&name, &text)
        .map_err(|complaints| anyhow::anyhow!("{complaints}\nmend the file first"))?;
    let addresses = topology.nodes.iter().map(|(node, n)| (node.clone(), n.address)).collect();
    Ok(Some((name, addresses)))
}

fn revoke(args: &CertsRevokeArgs) -> anyhow::Result<Outcome> {
    let (serial, is_news) = authority(&args.at).revoke(&args.which)?;
    let dir = args.at.dir.display();
    output::print(&if is_news {
        format!(
            "serial {serial} is revoked in {dir}/ca.crl\n\nNext: bring {dir}/ca.crl to every node, where `crl` in the \
             `tls` of [cluster] names it; agents take it by themselves\n"
        )
    } else {
        format!("serial {serial} was revoked before; {dir}/ca.crl stays as it is\n")
    })?;
    Ok(Outcome::Fine)
}

fn show(args: &CertsShowArgs) -> anyhow::Result<Outcome> {
    let listed = authority(&args.at).list()?;
    let now = jiff::Timestamp::now();
    let days_left = |one: &Listed| {
        one.certificate.not_after.duration_since(now).as_secs().div_euclid(24 * 60 * 60)
    };
    let is_good = listed.iter().all(|one| one.state == State::Good);
    output::print(&match args.format {
        Format::Table => table(&listed, days_left)?,
        Format::Json => {
            let rows: Vec<_> = listed
                .iter()
                .map(|one| {
                    json!({
                        "file": one.file,
                        "node": one.node,
                        "ca": one.node.is_none(),
                        "name": one.certificate.common_name,
                        "serial": one.certificate.serial,
                        "not_before": one.certificate.not_before.to_string(),
                        "not_after": one.certificate.not_after.to_string(),
                        "days_left": days_left(one),
                        "addresses": one.certificate.addresses,
                        "state": word(one.state),
                    })
                })
                .collect();
            format!("{:#}\n", json!({ "dir": args.at.dir, "certificates": rows }))
        }
    })?;
    Ok(if is_good { Outcome::Fine } else { Outcome::Mistakes })
}

fn table(listed: &[Listed], days_left: impl Fn(&Listed) -> i64) -> anyhow::Result<String> {
    let ink = Ink { colour: output::output_may_have_colour() };
    let who = |one: &Listed| match &one.node {
        None => format!("CA `{}`", output::plain(&one.certificate.common_name)),
        Some(node) => format!("node `{}`", output::plain(node)),
    };
    let width = |cells: &dyn Fn(&Listed) -> String| {
        listed.iter().map(|one| cells(one).chars().count()).max().unwrap_or(0)
    };
    let (files, whose) = (width(&|one| one.file.clone()), width(&who));
    let mut text = String::new();
    for one in listed {
        let days = days_left(one);
        let (paint, state) = match one.state {
            State::Good if days < SOON_DAYS => (Paint::Yellow, format!("{days} days left")),
            State::Good => (Paint::Green, format!("{days} days left")),
            State::NotYet | State::Expired | State::Revoked | State::OtherCa => {
                (Paint::Red, word(one.state).replace('_', " "))
            }
        };
        writeln!(
            text,
            "{:files$}  {:whose$}  until {}  {}  {}",
            one.file,
            who(one),
            date(one.certificate.not_after),
            one.certificate.serial,
            ink.on(paint, &state),
        )?;
    }
    Ok(text)
}

fn word(state: State) -> &'static str {
    match state {
        State::Good => "good",
        State::NotYet => "not_valid_yet",
        State::Expired => "expired",
        State::Revoked => "revoked",
        State::OtherCa => "of_another_ca",
    }
}

fn date(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%d").to_string()
}
