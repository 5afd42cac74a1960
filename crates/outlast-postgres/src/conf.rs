//! The configuration that we write: a file of our own, included last, and a part of our own at the top of two others.
//!
//! What the file is made of at the moment ([`Shape`]) stands in its first line, so that the agent's next life goes on
//! from what the server really has.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::account::Account;
use crate::error::{Doing, Error};
use crate::files;
use crate::parameters::{Demands, is_kept_from_users, lasting};
use crate::settings::{CONTROL_ROLE, REPLICATION_ROLE, Settings, Upstream};
use crate::slots::slot_at;
use crate::sql::identifier;

/// Our file in the data directory.
const FILE: &str = "outlast.conf";
/// Its form.
const VERSION: u32 = 1;
const SHAPE_MARK: &str = "# outlast: ";
const INCLUDE: &str = "include = 'outlast.conf'";
const BEGIN: &str = "# outlast begin: this part is rewritten; put your own lines below it";
const END: &str = "# outlast end";
/// Standbys that one primary may be told to wait for.
const SYNC_NAMES_MAX: usize = 64;

/// What an instance is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It takes writes. The caller holds the agreed right to it.
    Primary,
    /// It replays; without an upstream only what it has.
    Standby { follow: Option<Upstream> },
}

/// Which standbys a commit waits for: any `count` of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quorum {
    pub count: usize,
    pub names: Vec<String>,
}

impl Quorum {
    /// The value of `synchronous_standby_names`: every name quoted, never `*` (trap 24).
    pub(crate) fn value(&self) -> Result<String, Error> {
        let names = &self.names;
        if self.count == 0 || self.count > names.len() || names.len() > SYNC_NAMES_MAX {
            let what = format!("{} of {} standbys cannot be waited for", self.count, names.len());
            return Err(Error::new(what));
        }
        // Quoted or not, PostgreSQL takes the name for every standby.
        if names.iter().any(|name| name == "*") {
            return Err(Error::new("a standby's name cannot be `*`"));
        }
        let names: Vec<String> = names.iter().map(|name| identifier(name)).collect();
        Ok(format!("ANY {} ({})", self.count, names.join(",")))
    }
}

/// What our configuration says beyond what never changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shape {
    pub(crate) v: u32,
    pub(crate) upstream: Option<Upstream>,
    pub(crate) sync: Option<Quorum>,
    /// Nobody but the agent and the standbys is let in, and nothing is written.
    pub(crate) closed: bool,
    pub(crate) primary: bool,
}

impl Shape {
    /// What our file in this directory was made of; the default if there is none. Blocks.
    pub(crate) fn read(data_dir: &Path) -> Result<Shape, Error> {
        let text = files::read_or_empty(&data_dir.join(FILE))?;
        let Some(line) = text.lines().next().and_then(|line| line.strip_prefix(SHAPE_MARK)) else {
            return Ok(Shape::default());
        };
        let shape: Shape = serde_json::from_str(line).doing(format!("read {FILE}"))?;
        match shape.v {
            VERSION => Ok(shape),
            other => {
                Err(Error::new(format!("{FILE} has version {other}, which is not known here")))
            }
        }
    }
}

/// Writes all of our configuration. The server is not told. Blocks.
pub(crate) fn write(
    settings: &Settings,
    account: &Account,
    shape: &Shape,
    control: Option<Demands>,
) -> Result<(), Error> {
    let dir = &settings.data_dir;
    // Closed first: the file with the rules must never be more open than the one that names them.
    let hba = dir.join("pg_hba.conf");
    files::replace(
        &hba,
        &with_part(&files::read_or_empty(&hba)?, &hba_part(settings, shape)),
        account,
    )?;
    let ident = dir.join("pg_ident.conf");
    files::replace(
        &ident,
        &with_part(&files::read_or_empty(&ident)?, &ident_part(account)),
        account,
    )?;
    files::replace(&dir.join(FILE), &text(settings, shape, control)?, account)?;
    // ALTER SYSTEM writes a file that is read after all others.
    let system = dir.join("postgresql.auto.conf");
    if let Some(text) = without_ours(&files::read_or_empty(&system)?) {
        files::replace(&system, &text, account)?;
    }
    let main = dir.join("postgresql.conf");
    let user = files::read_or_empty(&main)?;
    match included_last(&user) {
        Some(text) => files::replace(&main, &text, account),
        None => Ok(()),
    }
}

/// What ALTER SYSTEM has set, less what it may not set; `None` if nothing of it is.
fn without_ours(text: &str) -> Option<String> {
    let is_ours = |line: &&str| {
        let name = line.split(|c: char| c == '=' || c.is_whitespace()).next().unwrap_or_default();
        is_kept_from_users(name)
    };
    let (ours, users): (Vec<&str>, Vec<&str>) = text.lines().partition(is_ours);
    (!ours.is_empty()).then(|| users.iter().map(|line| format!("{line}\n")).collect())
}

/// The user's file with our line at its end; `None` if it is so already.
fn included_last(text: &str) -> Option<String> {
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    if last.is_some_and(|line| line.trim() == INCLUDE) {
        return None;
    }
    let mut lines: Vec<&str> = text.lines().filter(|line| line.trim() != INCLUDE).collect();
    lines.push(INCLUDE);
    Some(lines.join("\n") + "\n")
}

/// Our file.
fn text(settings: &Settings, shape: &Shape, control: Option<Demands>) -> Result<String, Error> {
    let shape = Shape { v: VERSION, ..shape.clone() };
    let json = serde_json::to_string(&shape).doing("write the shape")?;
    let demands = Demands::to_use(Demands::wished(&settings.parameters), control, shape.primary);
    let mut all = lasting(&settings.parameters, demands, shape.sync.is_some());
    all.extend(of_node(settings));
    all.extend(of_shape(settings, &shape)?);
    let mut text = format!(
        "{SHAPE_MARK}{json}\n# Written anew at every change; your own settings stand in postgresql.conf.\n"
    );
    for (name, value) in all {
        writeln!(text, "{name} = {}", quoted(&value)).doing("write the configuration")?;
    }
    Ok(text)
}

/// What follows from the node.
fn of_node(settings: &Settings) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut set = |name: &str, value: String| drop(all.insert(name.to_owned(), value));
    set("listen_addresses", settings.listen.map_or_else(|| "*".to_owned(), |ip| ip.to_string()));
    set("port", settings.port.to_string());
    set("unix_socket_directories", settings.socket_dir().display().to_string());
    set("unix_socket_permissions", "0777".to_owned());
    set("cluster_name", settings.database.clone());
    set("hba_file", settings.data_dir.join("pg_hba.conf").display().to_string());
    set("ident_file", settings.data_dir.join("pg_ident.conf").display().to_string());
    set("ssl", if settings.tls.is_some() { "on" } else { "off" }.to_owned());
    if let Some(tls) = &settings.tls {
        for ((_, copy), name) in
            tls.copies().iter().zip(["ssl_ca_file", "ssl_cert_file", "ssl_key_file"])
        {
            set(name, settings.run_dir.join(copy).display().to_string());
        }
    }
    all
}

/// What follows from the moment.
fn of_shape(settings: &Settings, shape: &Shape) -> Result<BTreeMap<String, String>, Error> {
    let sync = shape.sync.as_ref().map(Quorum::value).transpose()?;
    let conninfo = shape
        .upstream
        .as_ref()
        .map(|upstream| conninfo(settings, upstream, &[("application_name", &settings.node)]));
    let slot = shape.upstream.as_ref().map(|upstream| slot_at(upstream, &settings.node));
    let closed = if shape.closed { "on" } else { "off" };
    Ok([
        ("synchronous_standby_names", sync.unwrap_or_default()),
        ("primary_conninfo", conninfo.unwrap_or_default()),
        ("primary_slot_name", slot.unwrap_or_default()),
        ("default_transaction_read_only", closed.to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into())
}

/// How a node's programs reach another node. The password is in the key file.
pub(crate) fn conninfo(settings: &Settings, upstream: &Upstream, more: &[(&str, &str)]) -> String {
    let address = &upstream.address;
    let port = address.port.to_string();
    let passfile = settings.passfile().display().to_string();
    let suffix = settings.tls.as_ref().and_then(|tls| tls.node_suffix.as_deref());
    let named = suffix.map(|suffix| format!("{}{suffix}", upstream.node));
    let mut pairs: Vec<(&str, &str)> = match (&named, address.host.parse::<IpAddr>()) {
        // The name is held against the certificate, the address is where it goes.
        (Some(name), Ok(_)) => vec![("host", name.as_str()), ("hostaddr", address.host.as_str())],
        _ => vec![("host", address.host.as_str())],
    };
    pairs.extend([
        ("port", port.as_str()),
        ("user", REPLICATION_ROLE),
        ("passfile", passfile.as_str()),
        ("connect_timeout", "3"),
        ("keepalives", "1"),
        ("keepalives_idle", "5"),
        ("keepalives_interval", "2"),
        ("keepalives_count", "3"),
        ("tcp_user_timeout", "8000"),
    ]);
    let ca = settings.tls.as_ref().map(|_| settings.run_dir.join("ca.pem").display().to_string());
    match &ca {
        Some(ca) => pairs.extend([("sslmode", "verify-full"), ("sslrootcert", ca)]),
        None => pairs.push(("sslmode", "disable")),
    }
    pairs.extend_from_slice(more);
    let value = |text: &str| text.replace('\\', r"\\").replace('\'', r"\'");
    let pairs: Vec<String> =
        pairs.iter().map(|(name, text)| format!("{name}='{}'", value(text))).collect();
    pairs.join(" ")
}

/// Our part of `pg_hba.conf`. The first line that fits decides, so that nothing below it opens what it closes.
fn hba_part(settings: &Settings, shape: &Shape) -> String {
    let host = if settings.tls.is_some() { "hostssl" } else { "host" };
    let mut part =
        format!("local all {CONTROL_ROLE} peer map=outlast\nhost all {CONTROL_ROLE} all reject\n");
    for address in settings.peers.values() {
        let from = match address.host.parse::<IpAddr>() {
            // Whatever address of this machine a node has, its connections come from the first of them.
            Ok(IpAddr::V4(ip)) if ip.is_loopback() => "127.0.0.0/8".to_owned(),
            Ok(IpAddr::V4(ip)) => format!("{ip}/32"),
            Ok(IpAddr::V6(ip)) => format!("{ip}/128"),
            Err(_name) => format!("\"{}\"", address.host.replace(['"', '\n', '\r'], "")),
        };
        let line = format!("{host} postgres,replication {REPLICATION_ROLE} {from} scram-sha-256\n");
        if !part.contains(&line) {
            part += &line;
        }
    }
    part += &format!(
        "local all,replication {REPLICATION_ROLE} reject\nhost all,replication {REPLICATION_ROLE} all reject\n"
    );
    if shape.closed {
        part += "local all,replication all reject\nhost all,replication all all reject\n";
    }
    for line in &settings.hba {
        part += &line.replace(['\n', '\r'], " ");
        part.push('\n');
    }
    part
}

/// Our part of `pg_ident.conf`: root and PostgreSQL's own account may control it.
fn ident_part(account: &Account) -> String {
    let name = identifier(&account.name);
    format!("outlast root {CONTROL_ROLE}\noutlast {name} {CONTROL_ROLE}\n")
}

/// The text with our part at its top, in place of an older one.
fn with_part(text: &str, part: &str) -> String {
    let mut users = String::new();
    let mut ours = false;
    for line in text.lines() {
        match line {
            BEGIN => ours = true,
            END if ours => ours = false,
            _ if ours => {}
            _ => {
                users += line;
                users.push('\n');
            }
        }
    }
    format!("{BEGIN}\n{part}{END}\n{users}")
}

/// A value as `postgresql.conf` takes it.
pub(crate) fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', r"\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests;
