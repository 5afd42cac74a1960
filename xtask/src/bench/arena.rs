//! One round's place: a backend, a sink, and every proxy in front of them, on free ports of loopback.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::peers::{self, Peer, Places, Running};
use super::stream::Sink;
use crate::children::{Child, TempDir, wait_until};
use crate::http;

const START_LIMIT: Duration = Duration::from_secs(20);
const ASK_LIMIT: Duration = Duration::from_secs(2);

/// How many threads a proxy may use, and which core it and the rest are tied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) threads: usize,
    pub(super) proxy_core: Option<usize>,
    pub(super) load_core: Option<usize>,
}

#[derive(Debug)]
pub(super) struct Arena {
    pub(super) running: Vec<Running>,
    backend: Child,
    pub(super) sink: Sink,
    _dir: TempDir,
}

impl Arena {
    pub(super) async fn open(
        setting: Setting,
        peers: &[Peer],
        outlast: Option<&Path>,
    ) -> Result<Arena> {
        let dir = TempDir::new("bench")?;
        let sink = Sink::start(setting.load_core)?;
        let mut ports = free_ports(1 + 3 * peers.len())?.into_iter();
        let mut port = || ports.next().context("too few ports");
        let backend = port()?;
        let child = peers::start_backend(backend, setting.load_core, dir.path())?;
        let mut running = Vec::new();
        for &peer in peers {
            let places =
                Places { http: port()?, tcp: port()?, face: port()?, backend, sink: sink.address };
            running.push(Running::start(
                peer,
                places,
                setting.threads,
                setting.proxy_core,
                outlast,
                dir.path(),
            )?);
        }
        let mut arena = Arena { running, backend: child, sink, _dir: dir };
        arena.wait_until_all_answer().await?;
        Ok(arena)
    }

    async fn wait_until_all_answer(&mut self) -> Result<()> {
        for running in &mut self.running {
            let Running { peer, places, child } = running;
            let answers = wait_until(START_LIMIT, async || {
                let ended = !child.is_running() || !self.backend.is_running();
                ended
                    || matches!(
                        http::ask(places.http, "GET /1k", "", ASK_LIMIT).await,
                        Ok((200, _))
                    )
            });
            let answered = answers.await;
            self.backend.check_running()?;
            child.check_running()?;
            if !answered {
                bail!("{} does not answer within {START_LIMIT:?}{}", peer.name(), child.log_tail());
            }
        }
        Ok(())
    }

    pub(super) async fn close(self) {
        for running in self.running {
            running.child.stop().await;
        }
        self.backend.stop().await;
    }
}

/// All held at once, so that they differ.
pub(super) fn free_ports(count: usize) -> Result<Vec<SocketAddr>> {
    let listeners = (0..count).map(|_| TcpListener::bind("127.0.0.1:0"));
    let listeners = listeners.collect::<Result<Vec<_>, _>>().context("find free ports")?;
    listeners.iter().map(|listener| listener.local_addr().context("find free ports")).collect()
}
