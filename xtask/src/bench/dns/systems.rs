//! The name servers that follow health, three of each: as their own manuals set them up for a primary and a secondary, at
//! the shortest interval that they take.

use std::fs::{create_dir_all, write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use super::net::{Net, Place};
use super::report::Who;
use crate::children::Child;
use crate::tools;

pub(super) const SERVERS: [Place; 3] = [Place::new("a", 1), Place::new("b", 2), Place::new("c", 3)];
pub(super) const PRIMARY: Place = Place::new("p", 11);
pub(super) const SECONDARY: Place = Place::new("s", 12);
pub(super) const CLIENT: Place = Place::new("d", 20);
pub(super) const PLACES: [Place; 6] =
    [SERVERS[0], SERVERS[1], SERVERS[2], PRIMARY, SECONDARY, CLIENT];

pub(super) const ZONE: &str = "example.com";
/// The name that moves.
pub(super) const NAME: &str = "api.example.com";

const FACE_PORT: u16 = 8900;
const CONTROL_PORT: u16 = 81;

/// Who follows health.
pub(super) const FOLLOWERS: [Who; 4] = [Who::Outlast, Who::Gdnsd, Who::PdnsFast, Who::PdnsDefault];

pub(super) fn address(who: Who, place: Place) -> SocketAddr {
    SocketAddr::from((place.ip, port(who)))
}

fn port(who: Who) -> u16 {
    match who {
        Who::Outlast | Who::OutlastSigned => 5300,
        Who::Gdnsd => 5301,
        Who::PdnsFast => 5302,
        Who::PdnsDefault | Who::Pdns => 5303,
        Who::Knot | Who::KnotSigned => 5304,
        Who::Nsd => 5305,
    }
}

/// A name server on a machine.
pub(super) fn start(
    net: &Net,
    who: Who,
    place: Place,
    outlast: Option<&Path>,
    dir: &Path,
) -> Result<Child> {
    let name = format!("{}-{}", who.key(), place.name);
    let home = home(who, place, dir);
    create_dir_all(&home).with_context(|| format!("create {}", home.display()))?;
    let (program, args) = prepare(who, place, outlast, &home)?;
    net.start(place, &name, &program, &args, dir)
}

/// Writes what it reads; the program, and the words that it is started with.
fn prepare(
    who: Who,
    place: Place,
    outlast: Option<&Path>,
    home: &Path,
) -> Result<(PathBuf, Vec<String>)> {
    let here = home.to_str().context("the temporary directory's name is not text")?;
    Ok(match who {
        Who::Outlast | Who::OutlastSigned => {
            let file = home.join("outlast.toml");
            write(&file, topology()).context("write the topology")?;
            let words = vec!["run".to_owned(), file.display().to_string()];
            let words = [words, vec!["--node".to_owned(), place.name.to_owned()]].concat();
            (outlast.context("outlast takes no part")?.to_owned(), words)
        }
        Who::Gdnsd => {
            create_dir_all(home.join("zones")).context("create a directory")?;
            write(home.join("config"), gdnsd(who, place, here)).context("write a file")?;
            write(home.join("zones").join(ZONE), zone("DYNA simplefo!api"))
                .context("write a zone")?;
            let words = ["-c", here, "start"].map(str::to_owned).to_vec();
            (find("gdnsd")?, words)
        }
        Who::PdnsFast | Who::PdnsDefault | Who::Pdns | Who::Knot | Who::KnotSigned | Who::Nsd => {
            write(home.join("pdns.conf"), pdns(who, place, here)).context("write a file")?;
            write(home.join("named.conf"), bind(here)).context("write a file")?;
            write(home.join("zone"), zone(&lua())).context("write a zone")?;
            (find("pdns_server")?, vec![format!("--config-dir={here}")])
        }
    })
}

pub(super) fn find(program: &str) -> Result<PathBuf> {
    tools::which(program).with_context(|| format!("{program} is installed but not found"))
}

/// A server that the name leads to.
pub(super) fn endpoint(net: &Net, place: Place, dir: &Path) -> Result<Child> {
    let program = std::env::current_exe().context("find ourselves")?;
    let name = format!("endpoint-{}", place.name);
    let words = format!(
        "backend --port 80 --control {CONTROL_PORT} --name {} --ip {}",
        place.name, place.ip
    );
    let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
    net.start(place, &name, &program, &words, dir)
}

/// Makes what our agents know each other by, and brings it to their directories.
pub(super) async fn certify(outlast: &Path, dir: &Path) -> Result<()> {
    let (file, certs) = (dir.join("outlast.toml"), dir.join("certs"));
    write(&file, topology()).context("write the topology")?;
    let run = async |words: &[&str]| -> Result<()> {
        let mut command = tokio::process::Command::new(outlast);
        command.args(["certs", words[0], "--dir"]).arg(&certs).args(&words[1..]);
        command.stdin(Stdio::null()).kill_on_drop(true);
        let done = command.output().await.context("run outlast certs")?;
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "outlast certs {}: {}", words.join(" "), said.trim());
        Ok(())
    };
    let file = file.to_str().context("the temporary directory's name is not text")?;
    run(&["init", "--cluster", "names"]).await?;
    let nodes = SERVERS.map(|place| place.name);
    run(&[["issue", "--topology", file].as_slice(), &nodes].concat()).await?;
    for place in SERVERS {
        let home = home(Who::Outlast, place, dir);
        create_dir_all(&home).with_context(|| format!("create {}", home.display()))?;
        let name = place.name;
        for (from, to) in [
            ("ca.pem".to_owned(), "ca.pem"),
            (format!("{name}.pem"), "node.pem"),
            (format!("{name}.key"), "node.key"),
        ] {
            std::fs::copy(certs.join(from), home.join(to)).context("copy a certificate")?;
        }
    }
    Ok(())
}

fn home(who: Who, place: Place, dir: &Path) -> PathBuf {
    dir.join(format!("{}-{}", who.key(), place.name))
}

/// The same file on all nodes.
fn topology() -> String {
    let node = |place: &Place| format!("[node.{}]\naddress = \"{}\"\n", place.name, place.ip);
    let nodes: String = SERVERS.iter().map(node).collect();
    let voters = SERVERS.map(|place| format!("\"{}\"", place.name)).join(", ");
    format!(
        r#"[cluster]
name = "names"
data_dir = "data"
tls = {{ ca = "ca.pem", cert = "node.pem", key = "node.key" }}
face = "127.0.0.1:{FACE_PORT}"
proxy_threads = 1
{nodes}[consensus]
voters = [{voters}]
[dns."{ZONE}"]
listen = "0.0.0.0:{port}"
rate_limit = "off"
records = [
  {{ name = "api", type = "A", policy = "failover", primary = "{primary}", secondary = "{secondary}", ttl = "5s", failback = {{ after = "1s" }}, probe = {{ http = "/health", every = "200ms", timeout = "150ms", fall = 3, rise = 2 }} }},
]
"#,
        port = port(Who::Outlast),
        primary = PRIMARY.ip,
        secondary = SECONDARY.ip,
    )
}

fn zone(api: &str) -> String {
    format!(
        "$ORIGIN {ZONE}.\n$TTL 5\n@ SOA ns1 host 1 300 60 604800 5\n@ NS ns1\nns1 A {}\napi {api}\n",
        SERVERS[0].ip
    )
}

/// 2 s is the shortest interval: the timeout has to be shorter, and both are whole seconds.
fn gdnsd(who: Who, place: Place, here: &str) -> String {
    format!(
        r#"options => {{
  listen => [ "{listen}" ]
  run_dir => "{here}/run"
  state_dir => "{here}/state"
  udp_threads => 1
  tcp_threads => 1
}}
service_types => {{
  web => {{ plugin => http_status, port => 80, url_path => /health, interval => 2, timeout => 1, up_thresh => 1, ok_thresh => 1, down_thresh => 1 }}
}}
plugins => {{
  simplefo => {{ api => {{ service_types => web, primary => {primary}, secondary => {secondary} }} }}
}}
"#,
        listen = address(who, place),
        primary = PRIMARY.ip,
        secondary = SECONDARY.ip,
    )
}

fn lua() -> String {
    format!(
        "LUA A \"ifurlup('http://{}/health', {{{{'{}'}}, {{'{}'}}}})\"",
        ZONE, PRIMARY.ip, SECONDARY.ip
    )
}

fn pdns(who: Who, place: Place, here: &str) -> String {
    let interval = if who == Who::PdnsFast { 1 } else { 5 };
    format!(
        "launch=bind\nbind-config={here}/named.conf\nsocket-dir={here}\nlocal-address={ip}\nlocal-port={port}\n\
         enable-lua-records=yes\nlua-health-checks-interval={interval}\ndaemon=no\nguardian=no\n\
         receiver-threads=1\nsecurity-poll-suffix=\n",
        ip = place.ip,
        port = port(who),
    )
}

pub(super) fn bind(here: &str) -> String {
    format!("zone \"{ZONE}\" {{ type master; file \"{here}/zone\"; }};\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_server_has_an_address_of_its_own() {
        let all = FOLLOWERS.iter().flat_map(|who| SERVERS.map(|place| address(*who, place)));
        let all: std::collections::BTreeSet<_> = all.collect();
        assert_eq!(all.len(), FOLLOWERS.len() * SERVERS.len());
    }

    #[test]
    fn power_dns_differs_in_its_interval_alone() {
        let of = |who| pdns(who, SERVERS[0], "/x").replace("5302", "5303");
        let fast = of(Who::PdnsFast);
        assert_eq!(fast.replace("interval=1", "interval=5"), of(Who::PdnsDefault));
    }
}
