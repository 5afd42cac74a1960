//! Passes a CancelRequest on. Which server its key belongs to is not kept, so every one is asked that could have it: a key is a
//! secret of one server, and the others ignore it. Only of sessions that have changed their server both keys are known.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::http1::Door;
use crate::io::Io;
use crate::live::{LiveBackend, LiveService, ServiceState};
use crate::table::BackendState;
use crate::worker;

/// Servers that one request is passed on to.
const SERVERS_MAX: usize = 16;

/// How long a server may take to close the connection, which says that it has done what it could.
const DONE_LIMIT: Duration = Duration::from_secs(2);

/// Length and code come before the key.
const HEAD: usize = 8;

/// Passes the packet on, one server after another.
pub(crate) async fn pass_on(packet: &[u8], door: &Door) {
    let Some(service) = worker::service(&door.service) else { return };
    if service.unvouched() {
        return;
    }
    let known =
        service.state.keys.lock().expect("no panic while held").get(&packet[HEAD..]).cloned();
    let (only, packet) = match known {
        Some((backend, key)) => (Some(backend), repacked(packet, &key)),
        None => (None, packet.to_vec()),
    };
    let meant = |b: &&LiveBackend| only.is_none_or(|id| id == b.state.id) && serves(b);
    for backend in service.backends.iter().filter(meant).take(SERVERS_MAX) {
        // Nobody can be told that it failed: the protocol has no answer.
        drop(tokio::time::timeout(DONE_LIMIT, ask(&service, backend, door, &packet)).await);
    }
}

fn serves(backend: &LiveBackend) -> bool {
    match backend.spec.state {
        BackendState::Up | BackendState::Draining => true,
        BackendState::Unknown | BackendState::Down | BackendState::Passive => false,
    }
}

async fn ask(
    service: &LiveService,
    backend: &LiveBackend,
    door: &Door,
    packet: &[u8],
) -> std::io::Result<()> {
    let Io::Tcp(mut stream) = worker::connect(service, backend, door.client, door.local).await?
    else {
        return Ok(());
    };
    stream.write_all(packet).await?;
    // It says nothing, and closes.
    stream.read(&mut [0]).await.map(drop)
}

fn repacked(packet: &[u8], key: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEAD + key.len()).expect("a key is short").to_be_bytes();
    [&length, &packet[4..HEAD], key].concat()
}

/// The key of a session that has changed its server, for as long as it is there.
pub(crate) struct Renamed {
    state: Arc<ServiceState>,
    key: Vec<u8>,
}

impl Renamed {
    /// The client's key means that key at this backend from now on.
    pub(crate) fn begin(service: &LiveService, key: &[u8], backend: u64, new: Vec<u8>) -> Renamed {
        let state = service.state.clone();
        state.keys.lock().expect("no panic while held").insert(key.to_vec(), (backend, new));
        Renamed { state, key: key.to_vec() }
    }
}

impl Drop for Renamed {
    fn drop(&mut self) {
        self.state.keys.lock().expect("no panic while held").remove(&self.key);
    }
}
