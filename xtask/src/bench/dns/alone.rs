//! One name server of each kind, with one thread, on loopback: all have the same zone.

use std::fmt::Write as _;
use std::fs::{create_dir_all, write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::report::Who;
use super::systems::{ZONE, bind, find};
use super::wire::{self, Answer};
use crate::children::{Child, Spec, wait_until};

/// Names of the zone, and of the questions: of each ten of those the last is not there.
pub(super) const NAMES: usize = 1000;

/// A server answers by then; for ours, a zone file has been taken in, too.
const START_LIMIT: Duration = Duration::from_secs(60);
const ASK_LIMIT: Duration = Duration::from_millis(500);

/// A name server that runs.
#[derive(Debug)]
pub(super) struct Alone {
    pub(super) who: Who,
    pub(super) at: SocketAddr,
    pub(super) child: Child,
}

impl Alone {
    /// `face` is where our agent shows its metrics.
    pub(super) async fn start(
        who: Who,
        at: SocketAddr,
        face: Option<SocketAddr>,
        outlast: Option<&Path>,
        core: Option<usize>,
        dir: &Path,
    ) -> Result<Alone> {
        let home = dir.join(who.key());
        create_dir_all(home.join("zones")).context("create a directory")?;
        let here = home.to_str().context("the temporary directory's name is not text")?;
        write(home.join("zone"), zone_file()).context("write a zone")?;
        let (program, args) = prepare(who, at, face, outlast, here)?;
        let name = who.key();
        let child = Child::start(&Spec {
            name: &name,
            program: &program,
            args: &args,
            dir,
            core,
            has_children: true,
        })?;
        let mut alone = Alone { who, at, child };
        let first = format!("any.{ZONE}");
        alone
            .wait_for(&first, |answer| matches!(answer, Answer::Nothing | Answer::Address(_)))
            .await?;
        if who.is_ours() {
            import(outlast.context("outlast takes no part")?, &home).await?;
        }
        let last = format!("www{}.{ZONE}", NAMES - 2);
        alone.wait_for(&last, |answer| matches!(answer, Answer::Address(_))).await?;
        Ok(alone)
    }

    async fn wait_for(&mut self, name: &str, wanted: impl Fn(Answer) -> bool) -> Result<()> {
        let at = self.at;
        let up = wait_until(START_LIMIT, async || {
            !self.child.is_running() || ask(at, name).await.is_ok_and(&wanted)
        });
        let up = up.await;
        self.child.check_running()?;
        if !up {
            let (who, log) = (self.who.name(), self.child.log_tail());
            bail!("{who} does not answer for {name} within {START_LIMIT:?}{log}");
        }
        Ok(())
    }
}

/// One question, one answer.
async fn ask(at: SocketAddr, name: &str) -> Result<Answer> {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(at).await?;
    socket.send(&wire::question(1, name)).await?;
    let mut buffer = [0; wire::DATAGRAM_MAX];
    let length = tokio::time::timeout(ASK_LIMIT, socket.recv(&mut buffer)).await??;
    Ok(wire::read(&buffer[..length]).context("no answer that can be read")?.1)
}

fn prepare(
    who: Who,
    at: SocketAddr,
    face: Option<SocketAddr>,
    outlast: Option<&Path>,
    here: &str,
) -> Result<(PathBuf, Vec<String>)> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let file = |name: &str, text: String| {
        let path = format!("{here}/{name}");
        write(&path, text).with_context(|| format!("write {path}"))?;
        Ok::<_, anyhow::Error>(path)
    };
    Ok(match who {
        Who::Outlast | Who::OutlastSigned => {
            let file = file("outlast.toml", topology(at, face, who == Who::OutlastSigned))?;
            (outlast.context("outlast takes no part")?.to_owned(), words(&["run", &file]))
        }
        Who::Gdnsd => {
            file("config", gdnsd(at, here))?;
            file(&format!("zones/{ZONE}"), zone_file())?;
            (find("gdnsd")?, words(&["-c", here, "start"]))
        }
        Who::Knot | Who::KnotSigned => {
            let file = file("knot.conf", knot(at, here, who == Who::KnotSigned))?;
            (find("knotd")?, words(&["-c", &file]))
        }
        Who::Nsd => {
            let file = file("nsd.conf", nsd(at, here))?;
            (find("nsd")?, words(&["-d", "-c", &file]))
        }
        Who::Pdns | Who::PdnsFast | Who::PdnsDefault => {
            file("named.conf", bind(here))?;
            file("pdns.conf", pdns(at, here))?;
            (find("pdns_server")?, words(&[&format!("--config-dir={here}")]))
        }
    })
}

fn zone_file() -> String {
    let mut text = format!(
        "$ORIGIN {ZONE}.\n$TTL 60\n@ IN SOA ns1 host 1 300 60 604800 5\n@ IN NS ns1\nns1 IN A 127.0.0.1\nany IN TXT \"x\"\n"
    );
    for n in 0..NAMES {
        writeln!(text, "www{n} IN A 192.0.2.{}", n % 250).expect("a text takes all");
    }
    text
}

/// What dnsperf asks, again and again.
pub(super) fn questions() -> String {
    let name = |n| if n % 10 == 9 { format!("no{n}") } else { format!("www{n}") };
    (0..NAMES).map(|n| format!("{}.{ZONE} A\n", name(n))).collect()
}

/// The zone has one record in the file; the others come by import.
fn topology(at: SocketAddr, face: Option<SocketAddr>, signed: bool) -> String {
    let face = face.map_or("off".to_owned(), |face| face.to_string());
    format!(
        r#"[cluster]
name = "cost"
data_dir = "data"
face = "{face}"
proxy_threads = 1
[dns."{ZONE}"]
listen = "{at}"
rate_limit = "off"
dnssec = {signed}
records = [ {{ name = "any", type = "TXT", values = ["x"] }} ]
"#
    )
}

async fn import(outlast: &Path, home: &Path) -> Result<()> {
    let mut command = tokio::process::Command::new(outlast);
    command.args(["dns", "import", "--file"]).arg(home.join("outlast.toml"));
    command.arg(ZONE).arg(home.join("zone")).stdin(Stdio::null()).kill_on_drop(true);
    let done = tokio::time::timeout(START_LIMIT, command.output()).await;
    let done = done.context("outlast dns import does not end")?.context("run outlast")?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "outlast dns import: {}", said.trim());
    Ok(())
}

fn gdnsd(at: SocketAddr, here: &str) -> String {
    format!(
        "options => {{\n  listen => [ \"{at}\" ]\n  run_dir => \"{here}/run\"\n  state_dir => \"{here}/state\"\n  \
         udp_threads => 1\n  tcp_threads => 1\n}}\n"
    )
}

fn knot(at: SocketAddr, here: &str, signed: bool) -> String {
    let (ip, port) = (at.ip(), at.port());
    let signing = if signed { "    dnssec-signing: on\n    zonefile-sync: -1\n" } else { "" };
    format!(
        "server:\n  listen: {ip}@{port}\n  rundir: {here}\n  udp-workers: 1\n  tcp-workers: 1\n  \
         background-workers: 1\nlog:\n  - target: stderr\n    any: warning\ndatabase:\n  storage: {here}\n\
         zone:\n  - domain: {ZONE}\n    file: {here}/zone\n{signing}"
    )
}

/// Its limit on the rate of answers is off, as that of all others.
fn nsd(at: SocketAddr, here: &str) -> String {
    let (ip, port) = (at.ip(), at.port());
    format!(
        "server:\n  ip-address: {ip}@{port}\n  server-count: 1\n  username: \"\"\n  zonesdir: {here}\n  \
         pidfile: {here}/nsd.pid\n  xfrdfile: {here}/xfrd\n  xfrdir: {here}\n  zonelistfile: {here}/list\n  \
         database: \"\"\n  rrl-ratelimit: 0\n  rrl-whitelist-ratelimit: 0\n\
         remote-control:\n  control-enable: no\nzone:\n  name: {ZONE}\n  zonefile: zone\n"
    )
}

fn pdns(at: SocketAddr, here: &str) -> String {
    format!(
        "launch=bind\nbind-config={here}/named.conf\nsocket-dir={here}\nlocal-address={}\nlocal-port={}\n\
         daemon=no\nguardian=no\nreceiver-threads=1\nsecurity-poll-suffix=\n",
        at.ip(),
        at.port()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_question_in_ten_is_for_what_is_not_there() {
        let (questions, zone) = (questions(), zone_file());
        let missing = questions.lines().filter(|line| {
            let name = line.split('.').next().unwrap_or_default();
            !zone.contains(&format!("\n{name} IN A "))
        });
        assert_eq!((missing.count(), questions.lines().count()), (NAMES / 10, NAMES));
    }
}
