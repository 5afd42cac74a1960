//! Begins a session once more, at another server, without its client.

use std::io;

use super::login::Means;
use super::params::Parameters;
use super::scram::{Login, Verifier};
use super::wire::{Wire, sqlstate};
use crate::io::Rest;

/// Why a session did not begin at this server.
pub(crate) enum Not {
    /// It cannot take sessions yet, or was lost.
    Yet,
    /// It asks for what only the client knows, or refuses the session for good.
    Ever(&'static str),
}

const PASSWORD: &str = "a password that only its client knows";
const REFUSED: &str = "what the new server refuses";

impl From<io::Error> for Not {
    fn from(_lost: io::Error) -> Not {
        Not::Yet
    }
}

/// Says the startup packet again and answers for the client. What the client has to know of the new server goes to `news`;
/// returns the key that the new server would cancel a statement for.
pub(crate) async fn begin(
    server: &mut Wire,
    packet: &[u8],
    means: &Means,
    verifier: Option<&Verifier>,
    known: &mut Parameters,
    news: &mut Rest,
) -> Result<Vec<u8>, Not> {
    server.send(packet).await?;
    let mut prover = Prover { means, verifier, login: None, proved: true };
    let mut cancel_key = Vec::new();
    loop {
        while let Some(message) = server.message()? {
            let mut answer = Vec::new();
            let ready = message.tag == b'Z';
            match message.tag {
                b'R' => answer = prover.answer(message.body)?,
                b'S' if known.set(message.body) => news.push(message.bytes),
                b'K' => cancel_key = message.body.to_vec(),
                b'E' => return Err(refused(message.body)),
                b'Z' if !prover.proved => return Err(Not::Ever(PASSWORD)),
                // A notice is for whoever has just connected.
                _ => {}
            }
            let count = message.bytes.len();
            server.consume(count);
            if ready {
                return Ok(cancel_key);
            }
            if !answer.is_empty() {
                server.send(&answer).await?;
            }
        }
        if !server.fill().await? {
            return Err(Not::Yet);
        }
    }
}

fn refused(body: &[u8]) -> Not {
    // Starting up, shutting down, no connection free: another moment may do.
    match sqlstate(body) {
        b"57P03" | b"57P01" | b"57P02" | b"53300" => Not::Yet,
        [b'2', b'8', ..] => Not::Ever(PASSWORD),
        _ => Not::Ever(REFUSED),
    }
}

/// Answers what a server asks before it lets a session in.
struct Prover<'a> {
    means: &'a Means,
    verifier: Option<&'a Verifier>,
    login: Option<Login<'a>>,
    proved: bool,
}

impl Prover<'_> {
    fn answer(&mut self, body: &[u8]) -> Result<Vec<u8>, Not> {
        let Some((code, data)) = body.split_first_chunk::<4>() else {
            return Err(Not::Ever(REFUSED));
        };
        match u32::from_be_bytes(*code) {
            0 => Ok(Vec::new()),
            10 => self.first(data),
            11 => {
                let last = self
                    .login
                    .as_mut()
                    .and_then(|login| login.last(data))
                    .ok_or(Not::Ever(PASSWORD))?;
                Ok(response(last.as_bytes()))
            }
            12 => {
                self.proved = self.login.as_ref().is_some_and(|login| login.proved(data));
                Ok(Vec::new())
            }
            _ => Err(Not::Ever(PASSWORD)),
        }
    }

    fn first(&mut self, mechanisms: &[u8]) -> Result<Vec<u8>, Not> {
        let offered = mechanisms.split(|&b| b == 0).any(|name| name == b"SCRAM-SHA-256");
        let (true, Means::Scram(key), Some(verifier)) = (offered, self.means, self.verifier) else {
            return Err(Not::Ever(PASSWORD));
        };
        if !key.fits(verifier) {
            return Err(Not::Ever(PASSWORD));
        }
        let nonce =
            ring::rand::generate(&ring::rand::SystemRandom::new()).map_err(|_lack| Not::Yet)?;
        let mut login = Login::new(key, verifier, nonce.expose());
        let first = login.first();
        self.login = Some(login);
        self.proved = false;
        let length = u32::try_from(first.len()).expect("a short text");
        Ok(response(
            &[b"SCRAM-SHA-256\0", length.to_be_bytes().as_slice(), first.as_bytes()].concat(),
        ))
    }
}

fn response(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("a short text");
    [b"p", length.to_be_bytes().as_slice(), body].concat()
}
