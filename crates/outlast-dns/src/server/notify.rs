//! Tells secondaries that a zone has changed (RFC 1996), until they say that they have heard it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Secondary, World};
use crate::name::Name;
use crate::respond::{AA, NOTIFY, QR};
use crate::tsig::Asked;
use crate::wire::{IN, Message};
use crate::zone::Rtype;

/// How often a secondary is told of one serial.
const NOTIFY_TRIES: u32 = 5;

/// For how long the first answer is waited for; each time twice as long.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// Bytes of an answer.
const ANSWER_MAX: usize = 1_232;

/// Follows the changes; a newer serial of a zone takes the place of what is still being told of an older one.
pub(super) async fn run(world: Arc<World>, mut changes: watch::Receiver<Vec<Name>>) {
    let mut told: BTreeMap<Name, u32> = BTreeMap::new();
    let mut telling: BTreeMap<Name, JoinSet<()>> = BTreeMap::new();
    while changes.changed().await.is_ok() {
        // All zones are looked at: a change of one may have been overtaken by that of another.
        let serials = world.table().serials();
        telling.retain(|name, _| serials.contains_key(name));
        let is_new = |(name, serial): &(&Name, &u32)| told.get(*name) != Some(*serial);
        for (name, _) in serials.iter().filter(is_new) {
            let mut tasks = JoinSet::new();
            for secondary in world.config.secondaries.clone() {
                tasks.spawn_local(tell(world.clone(), name.clone(), secondary));
            }
            // The tasks for an older serial end with their set.
            telling.insert(name.clone(), tasks);
        }
        told = serials;
    }
}

/// Tells one secondary.
async fn tell(world: Arc<World>, zone: Name, secondary: Secondary) {
    for attempt in 0..NOTIFY_TRIES {
        let wait = FIRST_WAIT * 2u32.pow(attempt);
        if let Ok(Some(())) = timeout(wait, ask(&world, &zone, &secondary)).await {
            return;
        }
    }
    tracing::warn!(%zone, secondary = %secondary.address, "the secondary does not answer a NOTIFY");
}

/// Sends a NOTIFY and waits for its answer. What cannot be sent waits as if it had been.
async fn ask(world: &World, zone: &Name, secondary: &Secondary) -> Option<()> {
    let any = match secondary.address {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let id = u16::try_from(super::seed() & 0xffff).unwrap_or_default();
    let mut message = Message::new(id, [NOTIFY << 3 | AA, 0], zone, Rtype::SOA);
    if let Some(soa) = world.table().zone(zone.wire()).and_then(|zone| zone.records.first()) {
        message.push(1, soa, IN, ANSWER_MAX);
    }
    let (message, asked) = match &secondary.key {
        Some(key) => {
            let (message, asked) = Asked::sign(key.clone(), &message.0)?;
            (message, Some(asked))
        }
        None => (message.0, None),
    };
    let socket = UdpSocket::bind(any).await.ok()?;
    socket.connect(secondary.address).await.ok()?;
    if socket.send(&message).await.is_err() {
        std::future::pending::<()>().await;
    }
    let mut answer = [0; ANSWER_MAX];
    loop {
        let Ok(length) = socket.recv(&mut answer).await else {
            // Refused; it may start soon.
            std::future::pending::<()>().await;
            continue;
        };
        let answer = &answer[..length];
        let is_ours = length >= 12 && answer[..2] == id.to_be_bytes() && answer[2] & QR != 0;
        if is_ours && asked.as_ref().is_none_or(|asked| asked.is_answer(answer)) {
            return Some(());
        }
    }
}
