//! A stream of bytes through a TCP proxy, from a sender to a sink, both ours.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::children;

const CHUNK: usize = 256 << 10;
/// No single read or write takes longer unless something hangs.
const STALL_LIMIT: Duration = Duration::from_secs(20);

/// Swallows what connections send; tells how much each one sent.
#[derive(Debug)]
pub(super) struct Sink {
    pub(super) address: SocketAddr,
    /// Both are there until the sink is dropped.
    swallowed: Option<Receiver<u64>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Sink {
    /// Health checks that connect and leave count as zero bytes.
    pub(super) fn start(core: Option<usize>) -> Result<Sink> {
        let listener = TcpListener::bind("127.0.0.1:0").context("listen for the stream")?;
        let address = listener.local_addr()?;
        let (sender, swallowed) = channel();
        let thread = std::thread::spawn(move || -> Result<()> {
            core.map_or(Ok(()), children::pin_to)?;
            let mut buffer = vec![0; CHUNK];
            for stream in listener.incoming() {
                let count = swallow(stream?, &mut buffer);
                if sender.send(count).is_err() {
                    break;
                }
            }
            Ok(())
        });
        Ok(Sink { address, swallowed: Some(swallowed), thread: Some(thread) })
    }

    /// Sends so many bytes through the proxy; an error unless every one of them arrives.
    pub(super) async fn receive_through(
        &self,
        proxy: SocketAddr,
        bytes: u64,
        core: Option<usize>,
    ) -> Result<()> {
        let (done, sent) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let result = core.map_or(Ok(()), children::pin_to).and_then(|()| send(proxy, bytes));
            // Whoever does not listen any more does not want to know.
            let _unheard = done.send(result).is_err();
        });
        sent.await.context("the sender panicked")??;
        let swallowed = self.swallowed.as_ref().context("the sink is gone")?;
        let mut arrived = 0;
        while arrived == 0 {
            arrived = swallowed.recv_timeout(STALL_LIMIT).context("nothing arrived")?;
        }
        anyhow::ensure!(arrived == bytes, "{arrived} of {bytes} bytes arrived");
        Ok(())
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.swallowed = None;
        // A last connection, so that the thread sees that nobody listens any more.
        let _woken = TcpStream::connect(self.address).is_ok();
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join().is_ok();
        }
    }
}

/// Until the other side closes or breaks off.
fn swallow(mut stream: TcpStream, buffer: &mut [u8]) -> u64 {
    let mut total = 0;
    if stream.set_read_timeout(Some(STALL_LIMIT)).is_err() {
        return total;
    }
    loop {
        match stream.read(buffer) {
            Ok(0) | Err(_) => return total,
            Ok(count) => total += count as u64,
        }
    }
}

fn send(proxy: SocketAddr, bytes: u64) -> Result<()> {
    let mut stream = TcpStream::connect(proxy).context("connect to the proxy")?;
    stream.set_write_timeout(Some(STALL_LIMIT))?;
    stream.set_read_timeout(Some(STALL_LIMIT))?;
    let chunk = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let now = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        stream.write_all(&chunk[..now]).context("send into the proxy")?;
        left -= now as u64;
    }
    stream.shutdown(Shutdown::Write).context("end the stream")?;
    // The sink closes when it has seen the end, and the proxy passes that on.
    let closed = stream.read(&mut [0; 1]).context("wait for the other end to close")?;
    anyhow::ensure!(closed == 0, "the sink never answers");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_byte_is_counted() {
        let sink = Sink::start(None).unwrap();
        sink.receive_through(sink.address, 1_000_003, None).await.unwrap();
    }
}
