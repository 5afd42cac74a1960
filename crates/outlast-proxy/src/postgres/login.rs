//! How a session begins at a server: what both sides say until the server is ready, passed on and watched.

use std::collections::BTreeMap;
use std::io;

use super::params::Parameters;
use super::refusal::Refusal;
use super::scram::{ClientKey, Exchange, Verifier};
use super::wire::{Wire, sqlstate};

/// A session that has begun.
pub(crate) struct Begun {
    pub(crate) known: Parameters,
    pub(crate) means: Means,
    /// BackendKeyData: what the client would cancel a statement with.
    pub(crate) cancel_key: Vec<u8>,
}

/// How the session could begin once more at another server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Means {
    /// The server asks for nothing.
    Trust,
    Scram(ClientKey),
    /// Only the client knows.
    Client,
}

/// A session that has not begun.
pub(crate) enum NotBegun {
    /// The server cannot take it yet, and the client has heard nothing of that.
    Elsewhere,
    /// Both sides know why.
    Over,
    Refused(Refusal),
}

/// AuthenticationRequest codes (protocol documentation, message formats).
const OK: u32 = 0;
const SASL: u32 = 10;
const SASL_CONTINUE: u32 = 11;
const SASL_FINAL: u32 = 12;

/// Plays the beginning between both sides until the server is ready; `heard`: the client has been told something.
pub(crate) async fn begin(
    client: &mut Wire,
    server: &mut Wire,
    packet: &[u8],
    verifier: Option<&Verifier>,
    heard: &mut bool,
) -> Result<Begun, NotBegun> {
    if server.send(packet).await.is_err() {
        return Err(NotBegun::Elsewhere);
    }
    let mut watch = Watch::default();
    loop {
        while from_client(client, server, &mut watch).await.map_err(|_gone| NotBegun::Over)? {}
        loop {
            match from_server(client, server, &mut watch, heard).await {
                Ok(Step::Wait) => break,
                Ok(Step::On) => {}
                Ok(Step::Ready) => return Ok(watch.begun(verifier)),
                Ok(Step::NotYet) => return Err(NotBegun::Elsewhere),
                Ok(Step::Refused) | Err(_) => return Err(NotBegun::Over),
            }
        }
        let listens = client.buffer.first().is_none_or(|&tag| tag == b'p');
        let (alive, of_server) = tokio::select! {
            filled = server.fill() => (filled.unwrap_or(false), true),
            filled = client.fill(), if listens => (filled.unwrap_or(false), false),
        };
        match (alive, of_server) {
            (true, _) => {}
            (false, false) => return Err(NotBegun::Over),
            (false, true) if !*heard => return Err(NotBegun::Elsewhere),
            (false, true) => return Err(NotBegun::Refused(Refusal::lost_login())),
        }
    }
}

enum Step {
    Wait,
    On,
    Ready,
    NotYet,
    Refused,
}

/// Passes one message of the server on.
async fn from_server(
    client: &mut Wire,
    server: &mut Wire,
    watch: &mut Watch,
    heard: &mut bool,
) -> io::Result<Step> {
    let Some(message) = server.message()? else { return Ok(Step::Wait) };
    let step = match message.tag {
        b'E' if !*heard && sqlstate(message.body) == b"57P03" => return Ok(Step::NotYet),
        b'E' => Step::Refused,
        b'Z' => Step::Ready,
        b'R' => {
            watch.request(message.body);
            Step::On
        }
        b'S' => {
            watch.known.set(message.body);
            Step::On
        }
        b'K' => {
            watch.cancel_key = message.body.to_vec();
            Step::On
        }
        _ => Step::On,
    };
    *heard = true;
    client.send(message.bytes).await?;
    let count = message.bytes.len();
    server.consume(count);
    Ok(step)
}

/// Passes one answer of the client on; false: there is none yet.
async fn from_client(client: &mut Wire, server: &mut Wire, watch: &mut Watch) -> io::Result<bool> {
    // Whatever else a client says before the server is ready waits until it is.
    if client.buffer.first() != Some(&b'p') {
        return Ok(false);
    }
    let Some(message) = client.message()? else { return Ok(false) };
    watch.response(message.body);
    server.send(message.bytes).await?;
    let count = message.bytes.len();
    client.consume(count);
    Ok(true)
}

/// What is remembered of a beginning.
#[derive(Debug, Default)]
struct Watch {
    known: Parameters,
    cancel_key: Vec<u8>,
    asked: Asked,
    exchange: Exchange,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Asked {
    #[default]
    Nothing,
    Sasl,
    SaslContinue,
    SaslFinal,
    Other,
}

impl Watch {
    fn request(&mut self, body: &[u8]) {
        let Some((code, data)) = body.split_first_chunk::<4>() else { return };
        match (u32::from_be_bytes(*code), self.asked) {
            (OK, _) => {}
            (SASL, _) => self.asked = Asked::Sasl,
            (SASL_CONTINUE, Asked::Sasl) => {
                self.asked = Asked::SaslContinue;
                self.exchange.server_first(data);
            }
            (SASL_FINAL, Asked::SaslContinue) => self.asked = Asked::SaslFinal,
            (_, _) => self.asked = Asked::Other,
        }
    }

    fn response(&mut self, body: &[u8]) {
        match self.asked {
            // A mechanism, a length, and what that mechanism says first.
            Asked::Sasl => {
                let end = body.iter().position(|&b| b == 0).unwrap_or(body.len());
                if &body[..end] == b"SCRAM-SHA-256" {
                    self.exchange.client_first(body.get(end + 5..).unwrap_or_default());
                }
            }
            Asked::SaslContinue => self.exchange.client_final(body),
            Asked::Nothing | Asked::SaslFinal | Asked::Other => {}
        }
    }

    fn begun(self, verifier: Option<&Verifier>) -> Begun {
        let means = match self.asked {
            Asked::Nothing => Means::Trust,
            Asked::SaslFinal => {
                let key = verifier.and_then(|verifier| self.exchange.client_key(verifier));
                key.map_or(Means::Client, Means::Scram)
            }
            Asked::Sasl | Asked::SaslContinue | Asked::Other => Means::Client,
        };
        Begun { known: self.known, means, cancel_key: self.cancel_key }
    }
}

/// The verifier of a role, if the table has one that can be read.
pub(crate) fn verifier(verifiers: &BTreeMap<String, String>, user: &str) -> Option<Verifier> {
    verifiers.get(user).and_then(|text| Verifier::parse(text))
}
