//! Whether this node reaches the PostgreSQL of each other member, by a new connection every time.
//!
//! The question is whether it would speak TLS: a PostgreSQL that takes connections answers it with one byte before anybody
//! has said who they are. One whose processes are frozen does not, although the kernel still opens the connection.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use outlast_core::health::{Belief, Health, Thresholds};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Office;

const EVERY: Duration = Duration::from_millis(500);

const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

const RISE: u16 = 1;
const FALL: u16 = 2;

/// Length 8, then the number that stands for "would you speak TLS".
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Asks one member again and again. Never ends.
pub(super) async fn watch(
    office: Arc<Office>,
    database: String,
    node: String,
    address: SocketAddr,
) {
    let often = |n| NonZeroU16::new(n).expect("it is not zero");
    let mut belief = Belief::new(Thresholds { rise: often(RISE), fall: often(FALL) });
    loop {
        let answered = tokio::time::timeout(ANSWERS_WITHIN, ask(address)).await;
        belief.observe(answered.is_ok_and(|answered| answered.is_ok()));
        let health = belief.health();
        if health != Health::Unknown {
            office.say(&database, |sight| {
                sight.ports.insert(node.clone(), health);
            });
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn ask(address: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(&SSL_REQUEST).await?;
    match stream.read_u8().await? {
        b'S' | b'N' => Ok(()),
        _ => Err(std::io::ErrorKind::InvalidData.into()),
    }
}
