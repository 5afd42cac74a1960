//! As much HTTP/1.1 as our own backend, load and questions need: heads with a Content-Length.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// No head that we exchange with ourselves comes near it.
pub(crate) const HEAD_MAX: usize = 16 << 10;
const ANSWER_MAX: u64 = 1 << 20;

/// Where the head ends and the body begins, once all of it is there.
pub(crate) fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

/// The value of a header, spaces around it removed.
pub(crate) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    fields.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

pub(crate) fn content_length(head: &str) -> Option<usize> {
    header(head, "content-length")?.parse().ok()
}

pub(crate) fn closes(head: &str) -> bool {
    header(head, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
}

/// The status code of an answer's head.
pub(crate) fn status(head: &str) -> Option<u16> {
    let rest = head.strip_prefix("HTTP/1.")?;
    rest.get(2..5)?.parse().ok()
}

/// One request on a connection of its own; the answer's status and body.
pub(crate) async fn ask(
    to: SocketAddr,
    request_line: &str,
    body: &str,
    limit: Duration,
) -> Result<(u16, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(to).await.context("connect")?;
        let length = body.len();
        let request = format!(
            "{request_line} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.context("send")?;
        let mut answer = Vec::new();
        stream.take(ANSWER_MAX).read_to_end(&mut answer).await.context("receive")?;
        let Some(end) = head_end(&answer) else { bail!("no answer") };
        let head = String::from_utf8_lossy(&answer[..end]);
        let status = status(&head).context("no status")?;
        Ok((status, String::from_utf8_lossy(&answer[end..]).into_owned()))
    };
    let asked = tokio::time::timeout(limit, exchange).await;
    asked.context("timeout").flatten().with_context(|| format!("{request_line} at {to}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_whatever_their_case() {
        let head = "HTTP/1.1 503 Busy\r\nCONTENT-length: 12\r\nconnection: Close\r\n\r\n";
        assert_eq!(status(head), Some(503));
        assert_eq!(content_length(head), Some(12));
        assert!(closes(head));
        assert_eq!(head_end(head.as_bytes()), Some(head.len()));
        assert_eq!(head_end(&head.as_bytes()[..head.len() - 1]), None);
        assert_eq!(status("ICY 200 OK\r\n\r\n"), None);
    }
}
