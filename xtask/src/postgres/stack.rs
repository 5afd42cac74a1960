//! Three nodes that keep one PostgreSQL primary writable, whoever looks after them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::machine::Machine;
use super::session;

pub(crate) const NODES: usize = 3;
/// PostgreSQL's own port, on an address of each node's own.
pub(crate) const SERVER_PORT: u16 = 5432;
/// For one question to a node that may be slow.
pub(crate) const ASK_LIMIT: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What the nodes say of themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) primary: Option<usize>,
    /// The standby that should be promoted in a planned switchover.
    pub(crate) candidate: Option<usize>,
    /// Why they are not all there and as good as new.
    pub(crate) lacks: Option<String>,
}

pub(crate) trait Stack {
    fn machines(&mut self) -> &mut [Machine];
    /// Receives logs of those that watch.
    fn dir(&self) -> &Path;
    /// The address of each node's PostgreSQL.
    fn addresses(&self) -> &Addresses;
    /// Where clients write while a node is the primary: places that outlive it.
    fn entries(&self, primary: usize) -> Vec<SocketAddr>;
    /// All places where clients may write.
    fn all_entries(&self) -> Vec<SocketAddr>;
    fn node(&self, at: usize) -> String;
    async fn state(&mut self) -> Result<State>;
    /// Puts what agrees for all nodes onto the primary's node; the primary may be another one afterwards.
    async fn lead_from_primary(&mut self) -> Result<()>;
    async fn switchover(&mut self, from: usize, to: usize) -> Result<()>;
    /// What shares the host with a node and dies with it, besides what its machine runs.
    fn kill_beside(&mut self, at: usize) -> Result<()>;
    /// Starts everything of a node again that was killed.
    async fn revive(&mut self, at: usize) -> Result<()>;
    /// The time within which its agents look again.
    fn period(&self) -> Duration;
    /// Processes for which a node's host pays, PostgreSQL aside.
    fn keepers(&mut self, at: usize) -> Vec<i32>;
    async fn stop(self);
}

/// An address of its own for each node, and one for what stands outside of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addresses {
    net: [u8; 3],
}

impl Addresses {
    /// Two runs at the same time do not meet.
    pub(crate) fn choose() -> Addresses {
        let [_, _, high, low] = std::process::id().to_be_bytes();
        Addresses { net: [127, 64 + high % 64, low] }
    }

    pub(crate) fn node(&self, at: usize) -> IpAddr {
        self.host(u8::try_from(at + 1).expect("three nodes"))
    }

    pub(crate) fn outside(&self) -> IpAddr {
        self.host(10)
    }

    pub(crate) fn server(&self, at: usize) -> SocketAddr {
        SocketAddr::new(self.node(at), SERVER_PORT)
    }

    fn host(&self, last: u8) -> IpAddr {
        let [a, b, c] = self.net;
        IpAddr::V4(Ipv4Addr::new(a, b, c, last))
    }
}

/// Waits until all nodes are there, replicate, and can be written through every entry; the primary.
pub(crate) async fn whole(stack: &mut impl Stack, limit: Duration) -> Result<usize> {
    let end = Instant::now() + limit;
    loop {
        let lacks = match look(stack).await {
            Ok(primary) => return Ok(primary),
            Err(error) => error,
        };
        if end <= Instant::now() {
            return Err(lacks).context(format!("the nodes are not whole within {limit:?}"));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The same for nodes that have just been started; what they last wrote tells why they do not come up.
pub(crate) async fn begun(stack: &mut impl Stack, limit: Duration) -> Result<usize> {
    match whole(stack, limit).await {
        Ok(primary) => Ok(primary),
        Err(error) => {
            let logs = stack.machines().iter().map(|machine| machine.log_tail());
            bail!("{error:#}{}", logs.collect::<Vec<_>>().join("\n"));
        }
    }
}

async fn look(stack: &mut impl Stack) -> Result<usize> {
    let state = stack.state().await?;
    if let Some(lacks) = state.lacks {
        bail!("{lacks}");
    }
    let primary = state.primary.context("there is no primary")?;
    let sql = "select count(*) from pg_stat_replication where state = 'streaming'";
    let streaming = one(stack.addresses().server(primary), sql).await?;
    if streaming != (NODES - 1).to_string() {
        bail!("{streaming} standbys stream");
    }
    for entry in stack.entries(primary) {
        if one(entry, "select pg_is_in_recovery()").await? != "f" {
            bail!("{entry} leads to a standby");
        }
    }
    Ok(primary)
}

/// Waits until there is a primary, whatever the others do.
pub(crate) async fn primary(stack: &mut impl Stack, limit: Duration) -> Result<usize> {
    let end = Instant::now() + limit;
    loop {
        let primary = stack.state().await.ok().and_then(|state| state.primary);
        if let Some(primary) = primary {
            return Ok(primary);
        }
        if end <= Instant::now() {
            bail!("there is no primary within {limit:?}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn one(at: SocketAddr, sql: &str) -> Result<String> {
    let rows = session::ask(at, sql, ASK_LIMIT).await?;
    let value = rows.into_iter().next().and_then(|row| row.into_iter().next().flatten());
    value.with_context(|| format!("{at} answers without a row"))
}

/// A table with one row for each id.
pub(crate) async fn create_table(stack: &impl Stack, primary: usize, table: &str) -> Result<()> {
    const CREATE_LIMIT: Duration = Duration::from_secs(10);
    let sql = format!(
        "create table {table}(id bigint primary key, at timestamptz default clock_timestamp())"
    );
    let entry = *stack.entries(primary).first().context("an entry")?;
    session::ask(entry, &sql, CREATE_LIMIT).await.map(drop)
}

/// The ids that a node holds.
pub(crate) async fn present_rows(
    stack: &impl Stack,
    at: usize,
    table: &str,
) -> Result<std::collections::BTreeSet<i64>> {
    const READ_LIMIT: Duration = Duration::from_secs(60);
    let sql = format!("select id from {table}");
    let rows = session::ask(stack.addresses().server(at), &sql, READ_LIMIT).await?;
    let ids = rows.into_iter().flatten().flatten();
    ids.map(|id| id.parse().with_context(|| format!("read the id {id}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_has_an_address_of_its_own_on_loopback() {
        let addresses = Addresses::choose();
        let all: std::collections::BTreeSet<IpAddr> =
            (0..NODES).map(|at| addresses.node(at)).chain([addresses.outside()]).collect();
        assert_eq!(all.len(), NODES + 1);
        assert!(all.iter().all(IpAddr::is_loopback));
    }
}
