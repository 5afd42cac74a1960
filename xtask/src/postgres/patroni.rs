//! The stack that people run today: Patroni beside each PostgreSQL, three members of etcd, HAProxy in front.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::USER;
use super::machine::{Machine, Part, Program};
use super::stack::{ASK_LIMIT, Addresses, NODES, SERVER_PORT, Stack, State};
use crate::children::{Child, Household, Spec, TempDir, User, wait_until};
use crate::etcd::Connection;
use crate::{http, tools};

const REST_PORT: u16 = 8008;
const STORE_PORT: u16 = 2379;
const STORE_PEER_PORT: u16 = 2380;
const ENTRY_PORT: u16 = 5000;
const START_LIMIT: Duration = Duration::from_secs(60);
const SWITCHOVER_LIMIT: Duration = Duration::from_secs(120);

/// How patient the stack is: seconds for Patroni, words for HAProxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Profile {
    pub(crate) name: &'static str,
    ttl: u64,
    loop_wait: u64,
    retry_timeout: u64,
    haproxy: &'static str,
    haproxy_check: &'static str,
}

pub(crate) const DEFAULT: Profile = Profile {
    name: "default",
    ttl: 30,
    loop_wait: 10,
    retry_timeout: 10,
    haproxy: "inter 3s fall 3 rise 2",
    haproxy_check: "5s",
};

/// The lowest values that Patroni takes.
pub(crate) const TIGHTEST: Profile = Profile {
    name: "tightest",
    ttl: 20,
    loop_wait: 1,
    retry_timeout: 3,
    haproxy: "inter 1s fall 2 rise 1",
    haproxy_check: "1s",
};

/// Three nodes under Patroni.
#[derive(Debug)]
pub(crate) struct Patroni {
    profile: Profile,
    synchronous: bool,
    addresses: Addresses,
    machines: Vec<Machine>,
    stores: Vec<Child>,
    balancer: Option<Child>,
    /// Ends whatever is left, before the directory goes.
    _household: Household,
    dir: TempDir,
}

impl Patroni {
    pub(crate) async fn start(profile: Profile, synchronous: bool) -> Result<Patroni> {
        let household = Household::found()?;
        let dir = TempDir::new("patroni")?;
        tools::open_to_all(dir.path())?;
        let user = User::find(USER)?;
        let mut stack = Patroni {
            profile,
            synchronous,
            addresses: Addresses::choose(),
            machines: Vec::new(),
            stores: Vec::new(),
            balancer: None,
            _household: household,
            dir,
        };
        for at in 0..NODES {
            let store = stack.start_store(at)?;
            stack.stores.push(store);
        }
        stack.store_leader().await?;
        for at in 0..NODES {
            let home = stack.home(at);
            std::fs::create_dir(&home).context("create a node's directory")?;
            user.give(&home)?;
            std::fs::write(stack.file(at), stack.configuration(at)).context("write patroni.yml")?;
            let program = Program {
                path: tools::bench_venv_bin().join("patroni"),
                args: vec![text(&stack.file(at))?],
                user: Some(USER),
            };
            let name = format!("patroni-{}", name_of(at));
            let machine =
                Machine::start(&name, program, home.join("data"), stack.dir.path()).await?;
            stack.machines.push(machine);
            // The first makes the database that the others copy.
            let mut running = false;
            let began = wait_until(START_LIMIT, async || {
                running = stack.says_running(at).await;
                running || at > 0 || stack.machines[at].check().is_err()
            });
            began.await;
            ensure!(running || at > 0, "{name} does not start{}", stack.machines[at].log_tail());
        }
        let file = stack.dir.path().join("haproxy.cfg");
        std::fs::write(&file, stack.balancer_configuration()).context("write haproxy.cfg")?;
        let args = ["-db".to_owned(), "-f".to_owned(), text(&file)?];
        stack.balancer = Some(stack.child("haproxy", "haproxy", &args)?);
        Ok(stack)
    }

    fn child(&self, name: &str, program: &str, args: &[String]) -> Result<Child> {
        let program =
            tools::which(program).with_context(|| format!("{program} is not installed"))?;
        let dir = self.dir.path();
        Child::start(&Spec { name, program: &program, args, dir, core: None, has_children: true })
    }

    fn start_store(&self, at: usize) -> Result<Child> {
        let url = |at: usize, port: u16| format!("http://{}:{port}", self.addresses.node(at));
        let members: Vec<String> =
            (0..NODES).map(|at| format!("{}={}", name_of(at), url(at, STORE_PEER_PORT))).collect();
        let data = text(&self.dir.path().join(format!("etcd-{}", name_of(at))))?;
        let mut args = Vec::new();
        for (name, value) in [
            ("name", name_of(at)),
            ("data-dir", data),
            ("listen-client-urls", url(at, STORE_PORT)),
            ("advertise-client-urls", url(at, STORE_PORT)),
            ("listen-peer-urls", url(at, STORE_PEER_PORT)),
            ("initial-advertise-peer-urls", url(at, STORE_PEER_PORT)),
            ("initial-cluster", members.join(",")),
            ("initial-cluster-state", "new".to_owned()),
        ] {
            args.extend([format!("--{name}"), value]);
        }
        self.child(&format!("etcd-log-{}", name_of(at)), "etcd", &args)
    }

    fn store(&self, at: usize) -> SocketAddr {
        SocketAddr::new(self.addresses.node(at), STORE_PORT)
    }

    async fn store_leader(&self) -> Result<usize> {
        let mut leader = None;
        let found = wait_until(START_LIMIT, async || {
            leader = None;
            for at in 0..NODES {
                let asked = async { Connection::open(self.store(at)).await?.leads().await };
                match tokio::time::timeout(ASK_LIMIT, asked).await {
                    Ok(Ok(true)) => leader = Some(at),
                    Ok(Ok(false)) => {}
                    // Not all are there.
                    Ok(Err(_)) | Err(_) => return false,
                }
            }
            leader.is_some()
        });
        let found = found.await;
        leader
            .filter(|_| found)
            .with_context(|| format!("etcd has no leader{}", self.stores[0].log_tail()))
    }

    fn home(&self, at: usize) -> PathBuf {
        self.dir.path().join(name_of(at))
    }

    fn file(&self, at: usize) -> PathBuf {
        self.dir.path().join(format!("{}.yml", name_of(at)))
    }

    fn rest(&self, at: usize) -> SocketAddr {
        SocketAddr::new(self.addresses.node(at), REST_PORT)
    }

    async fn says_running(&self, at: usize) -> bool {
        let answer = http::ask(self.rest(at), "GET /patroni", "", ASK_LIMIT).await;
        let said = answer.ok().and_then(|(_, body)| serde_json::from_str::<Value>(&body).ok());
        said.is_some_and(|said| said["state"] == "running")
    }

    /// What the first node says that answers.
    async fn members(&self) -> Result<Vec<Value>> {
        let mut fault = None;
        for at in 0..NODES {
            match http::ask(self.rest(at), "GET /cluster", "", ASK_LIMIT).await {
                Ok((_, body)) => {
                    let said: Value = serde_json::from_str(&body).context("read the cluster")?;
                    return Ok(said["members"].as_array().cloned().unwrap_or_default());
                }
                Err(error) => fault = Some(error),
            }
        }
        Err(fault.context("three nodes")?)
    }

    fn configuration(&self, at: usize) -> String {
        let Profile { ttl, loop_wait, retry_timeout, .. } = self.profile;
        let (address, home) = (self.addresses.node(at), self.home(at));
        let hosts: Vec<String> = (0..NODES).map(|at| self.store(at).to_string()).collect();
        format!(
            "scope: bench
name: {name}
restapi: {{ listen: '{address}:{REST_PORT}', connect_address: '{address}:{REST_PORT}' }}
etcd3: {{ hosts: '{hosts}' }}
bootstrap:
  dcs:
    ttl: {ttl}
    loop_wait: {loop_wait}
    retry_timeout: {retry_timeout}
    maximum_lag_on_failover: 1048576
    synchronous_mode: {synchronous}
    postgresql:
      use_pg_rewind: true
      use_slots: true
      parameters: {{ max_connections: 300, shared_buffers: 128MB, wal_log_hints: 'on' }}
  initdb: [ {{ encoding: UTF8 }}, {{ locale: C.UTF-8 }}, data-checksums ]
postgresql:
  listen: {address}:{SERVER_PORT}
  connect_address: {address}:{SERVER_PORT}
  data_dir: {home}/data
  bin_dir: {bin}
  pgpass: {home}/pgpass
  pg_hba:
  - local all all trust
  - host all all 127.0.0.0/8 trust
  - host replication all 127.0.0.0/8 trust
  authentication:
    superuser: {{ username: {USER}, password: x }}
    replication: {{ username: replicator, password: x }}
    rewind: {{ username: rewind, password: x }}
  parameters: {{ unix_socket_directories: '{home}' }}
",
            name = name_of(at),
            hosts = hosts.join(","),
            synchronous = self.synchronous,
            home = home.display(),
            bin = tools::PG15_BIN,
        )
    }

    fn balancer_configuration(&self) -> String {
        let Profile { haproxy, haproxy_check, .. } = self.profile;
        let server = |at: usize| {
            let (name, address) = (name_of(at), self.addresses.server(at));
            format!("    server {name} {address} maxconn 300 check port {REST_PORT}\n")
        };
        let servers: String = (0..NODES).map(server).collect();
        format!(
            "global
    maxconn 1000
defaults
    mode tcp
    retries 2
    timeout client 30m
    timeout connect 4s
    timeout server 30m
    timeout check {haproxy_check}
listen primary
    bind {entry}
    option httpchk OPTIONS /primary
    http-check expect status 200
    default-server {haproxy} on-marked-down shutdown-sessions
{servers}",
            entry = self.entry(),
        )
    }

    fn entry(&self) -> SocketAddr {
        SocketAddr::new(self.addresses.outside(), ENTRY_PORT)
    }
}

impl Stack for Patroni {
    fn machines(&mut self) -> &mut [Machine] {
        &mut self.machines
    }

    fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// HAProxy stands outside of the three nodes.
    fn entries(&self, _primary: usize) -> Vec<SocketAddr> {
        vec![self.entry()]
    }

    fn all_entries(&self) -> Vec<SocketAddr> {
        vec![self.entry()]
    }

    fn node(&self, at: usize) -> String {
        name_of(at)
    }

    async fn state(&mut self) -> Result<State> {
        Ok(state(&self.members().await?, self.synchronous))
    }

    async fn lead_from_primary(&mut self) -> Result<()> {
        let primary = self.state().await?.primary.context("there is no primary")?;
        let leader = self.store_leader().await?;
        if leader != primary {
            let member = Connection::open(self.store(primary)).await?.member().await?;
            Connection::open(self.store(leader)).await?.move_leader(member).await?;
        }
        let moved = self.store_leader().await?;
        ensure!(moved == primary, "etcd is led by {}, not by {}", name_of(moved), name_of(primary));
        Ok(())
    }

    async fn switchover(&mut self, from: usize, to: usize) -> Result<()> {
        let order = json!({ "leader": name_of(from), "candidate": name_of(to) }).to_string();
        let answer = http::ask(self.rest(from), "POST /switchover", &order, SWITCHOVER_LIMIT).await;
        let (status, said) = answer?;
        ensure!(status == 200, "Patroni refuses to switch over: {status} {said}");
        Ok(())
    }

    fn kill_beside(&mut self, at: usize) -> Result<()> {
        self.stores[at].kill()
    }

    async fn revive(&mut self, at: usize) -> Result<()> {
        if !self.stores[at].is_running() {
            self.stores[at] = self.start_store(at)?;
        }
        if self.machines[at].pids(Part::Agent).is_empty() {
            self.machines[at].start_again().await?;
        }
        Ok(())
    }

    fn period(&self) -> Duration {
        Duration::from_secs(self.profile.loop_wait)
    }

    fn keepers(&mut self, at: usize) -> Vec<i32> {
        let beside = [Some(&self.stores[at]), self.balancer.as_ref()];
        let beside = beside.into_iter().flatten().map(Child::pid);
        self.machines[at].keepers().into_iter().chain(beside).collect()
    }

    async fn stop(self) {
        for machine in self.machines {
            machine.stop().await;
        }
        for child in self.balancer.into_iter().chain(self.stores) {
            child.stop().await;
        }
    }
}

fn state(members: &[Value], synchronous: bool) -> State {
    let at = |member: &Value| {
        (0..NODES).find(|&at| member["name"].as_str() == Some(name_of(at).as_str()))
    };
    let role = |member: &Value| member["role"].as_str().unwrap_or_default().to_owned();
    let leads = |member: &&Value| role(member) == "leader";
    let wanted = if synchronous { "sync_standby" } else { "replica" };
    let stands_by = |member: &&Value| role(member) == wanted;
    let primary = members.iter().find(leads).and_then(at);
    let candidate = members.iter().find(stands_by).and_then(at);
    let good = |member: &Value| matches!(member["state"].as_str(), Some("running" | "streaming"));
    let timeline = members.iter().find(leads).map(|leader| &leader["timeline"]);
    let lacks = if members.len() != NODES {
        Some(format!("{} nodes are there", members.len()))
    } else if primary.is_none() {
        Some("there is no primary".to_owned())
    } else if let Some(bad) = members.iter().find(|member| !good(member)) {
        Some(format!("{} is {}", bad["name"], bad["state"]))
    } else if let Some(bad) = members.iter().find(|member| Some(&member["timeline"]) != timeline) {
        Some(format!("{} is on timeline {}", bad["name"], bad["timeline"]))
    } else if candidate.is_none() {
        Some(format!("there is no {wanted}"))
    } else {
        None
    };
    State { primary, candidate, lacks }
}

fn name_of(at: usize) -> String {
    format!("n{}", at + 1)
}

fn text(path: &Path) -> Result<String> {
    Ok(path.to_str().context("the temporary directory's name is not text")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, role: &str, state: &str, timeline: u64) -> Value {
        json!({ "name": name, "role": role, "state": state, "timeline": timeline })
    }

    #[test]
    fn nodes_are_whole_when_all_stream_from_one_primary() {
        let leader = member("n2", "leader", "running", 4);
        let synchronous = member("n3", "sync_standby", "streaming", 4);
        let good = [leader.clone(), synchronous.clone(), member("n1", "replica", "streaming", 4)];
        let expected = State { primary: Some(1), candidate: Some(2), lacks: None };
        assert_eq!(state(&good, true), expected);
        assert_eq!(state(&good, false).candidate, Some(0));
        for (third, lacks) in [
            (member("n1", "replica", "starting", 4), "\"n1\" is \"starting\""),
            (member("n1", "replica", "streaming", 3), "\"n1\" is on timeline 3"),
        ] {
            let members = [leader.clone(), synchronous.clone(), third];
            assert_eq!(state(&members, true).lacks.as_deref(), Some(lacks));
        }
        assert_eq!(state(&good[..2], true).lacks.as_deref(), Some("2 nodes are there"));
        assert_eq!(state(&good[1..], false).primary, None);
    }
}
