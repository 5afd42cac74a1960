//! As much of etcd's protocol as a measurement needs: put, newest get, and who leads.
//!
//! gRPC over HTTP/2 with messages written by hand; fields by number as in etcd's `rpc.proto` (v3.4).

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, Version};
use tokio::net::TcpStream;

/// One connection; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    sender: SendRequest<Bytes>,
    address: SocketAddr,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> Result<Connection> {
        let stream = TcpStream::connect(address).await.context("connect to etcd")?;
        stream.set_nodelay(true)?;
        let (sender, connection) = h2::client::handshake(stream).await.context("greet etcd")?;
        // Ends with its last sender.
        drop(tokio::task::spawn(async move { connection.await.ok() }));
        Ok(Connection { sender, address })
    }

    pub(crate) async fn put(&self, key: &[u8], value: &[u8]) -> Result<()> {
        let mut message = Vec::new();
        field(1, key, &mut message);
        field(2, value, &mut message);
        self.call("/etcdserverpb.KV/Put", &message).await.map(drop)
    }

    /// Linearizable, as is etcd's default.
    pub(crate) async fn get(&self, key: &[u8]) -> Result<()> {
        let mut message = Vec::new();
        field(1, key, &mut message);
        self.call("/etcdserverpb.KV/Range", &message).await.map(drop)
    }

    /// Whether this member leads.
    pub(crate) async fn leads(&self) -> Result<bool> {
        let (member, leader) = self.status().await?;
        Ok(leader != 0 && leader == member)
    }

    /// The number of this member.
    pub(crate) async fn member(&self) -> Result<u64> {
        Ok(self.status().await?.0)
    }

    /// Hands over the lead; only the leader can.
    pub(crate) async fn move_leader(&self, to: u64) -> Result<()> {
        let mut message = vec![1 << 3];
        put_varint(to, &mut message);
        self.call("/etcdserverpb.Maintenance/MoveLeader", &message).await.map(drop)
    }

    /// The numbers of this member and of the leader.
    async fn status(&self) -> Result<(u64, u64)> {
        let answer = self.call("/etcdserverpb.Maintenance/Status", &[]).await?;
        let header = fields(&answer)?.into_iter().find(|(number, _)| *number == 1);
        let Some((_, Field::Bytes(header))) = header else { bail!("a status without a header") };
        let number = |bytes: &[u8], wanted| -> Result<u64> {
            let found = fields(bytes)?.into_iter().find(|(number, _)| *number == wanted);
            Ok(match found {
                Some((_, Field::Number(value))) => value,
                Some((_, Field::Bytes(_))) | None => 0,
            })
        };
        Ok((number(&header, 2)?, number(&answer, 4)?))
    }

    async fn call(&self, path: &str, message: &[u8]) -> Result<Vec<u8>> {
        let request = Request::builder()
            .method(Method::POST)
            .version(Version::HTTP_2)
            .uri(format!("http://{}{path}", self.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .context("make a request")?;
        let mut sender = self.sender.clone().ready().await.context("reach etcd")?;
        let (response, mut body) = sender.send_request(request, false).context("ask etcd")?;
        // Not compressed, then the length: the prefix of a gRPC message.
        let mut framed = vec![0];
        framed.extend(u32::try_from(message.len())?.to_be_bytes());
        framed.extend(message);
        body.send_data(Bytes::from(framed), true).context("ask etcd")?;
        let response = response.await.context("hear etcd")?;
        let early = response.headers().get("grpc-status").cloned();
        let mut stream = response.into_body();
        let mut answer = Vec::new();
        while let Some(chunk) = stream.data().await {
            let chunk = chunk.context("hear etcd")?;
            stream.flow_control().release_capacity(chunk.len()).context("hear etcd")?;
            answer.extend_from_slice(&chunk);
        }
        let trailers = stream.trailers().await.context("hear etcd")?;
        let status = early.or(trailers.and_then(|t| t.get("grpc-status").cloned()));
        let status = status.context("an answer without a status")?;
        ensure!(status.as_bytes() == b"0", "etcd answers with status {status:?}");
        Ok(answer.get(5..).unwrap_or_default().to_vec())
    }
}

/// A field of bytes.
fn field(number: u8, bytes: &[u8], to: &mut Vec<u8>) {
    to.push(number << 3 | 2);
    put_varint(bytes.len() as u64, to);
    to.extend(bytes);
}

fn put_varint(mut value: u64, to: &mut Vec<u8>) {
    while value >= 0x80 {
        to.push(u8::try_from(value & 0x7f).expect("seven bits") | 0x80);
        value >>= 7;
    }
    to.push(u8::try_from(value).expect("seven bits"));
}

enum Field {
    Number(u64),
    Bytes(Vec<u8>),
}

fn fields(mut bytes: &[u8]) -> Result<Vec<(u64, Field)>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let value = match key & 7 {
            0 => Field::Number(varint(&mut bytes)?),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?)?;
                ensure!(length <= bytes.len(), "a field beyond the end");
                let (value, rest) = bytes.split_at(length);
                bytes = rest;
                Field::Bytes(value.to_vec())
            }
            other => bail!("a field of kind {other}"),
        };
        found.push((key >> 3, value));
    }
    Ok(found)
}

fn varint(bytes: &mut &[u8]) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&first, rest) = bytes.split_first().context("a number beyond the end")?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first < 0x80 {
            return Ok(value);
        }
    }
    bail!("a number that does not end")
}
