//! A client of PostgreSQL that shows every message.

use std::io;
use std::net::SocketAddr;

use outlast_proxy::postgres::startup;

use crate::harness::Wire;

/// One message of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) tag: char,
    pub(crate) body: Vec<u8>,
}

impl Message {
    /// A field of an ErrorResponse.
    pub(crate) fn field(&self, field: u8) -> String {
        let found = self.body.split(|&b| b == 0).find_map(|text| text.strip_prefix(&[field]));
        String::from_utf8_lossy(found.unwrap_or_default()).into_owned()
    }

    pub(crate) fn code(&self) -> String {
        self.field(b'C')
    }
}

pub(crate) fn message(tag: char, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[tag as u8], length.to_be_bytes().as_slice(), body].concat()
}

pub(crate) fn query(text: &str) -> Vec<u8> {
    message('Q', format!("{text}\0").as_bytes())
}

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) wire: Wire,
    /// BackendKeyData.
    pub(crate) key: Vec<u8>,
}

impl Client {
    #[track_caller]
    pub(crate) fn begin(to: SocketAddr, user: &str) -> Client {
        Client::try_begin(to, &[("user", user), ("database", "postgres")])
            .unwrap_or_else(|e| panic!("{e:?}"))
    }

    /// A session that is ready, or what the server refused it with.
    pub(crate) fn try_begin(to: SocketAddr, pairs: &[(&str, &str)]) -> Result<Client, Message> {
        let gone = |e: io::Error| Message { tag: '-', body: e.to_string().into_bytes() };
        let stream = std::net::TcpStream::connect(to).map_err(gone)?;
        let mut client = Client { wire: Wire::over(stream), key: Vec::new() };
        client.wire.try_send(startup::packet(pairs)).map_err(gone)?;
        loop {
            let message = client.next().map_err(gone)?;
            match message.tag {
                'E' => return Err(message),
                'K' => client.key = message.body,
                'Z' => return Ok(client),
                _ => {}
            }
        }
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.wire.send(bytes);
    }

    pub(crate) fn next(&mut self) -> io::Result<Message> {
        let head = self.wire.exactly(5)?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let body = self.wire.exactly(usize::try_from(length).unwrap() - 4)?;
        Ok(Message { tag: char::from(head[0]), body })
    }

    /// Everything up to ReadyForQuery, or to a FATAL error.
    #[track_caller]
    pub(crate) fn answer(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        loop {
            let message = self.next().unwrap_or_else(|e| panic!("{e} after {messages:?}"));
            let last = message.tag == 'Z' || message.tag == 'E' && message.field(b'S') == "FATAL";
            messages.push(message);
            if last {
                return messages;
            }
        }
    }

    /// The first column of the last row, or the code of the error.
    #[track_caller]
    pub(crate) fn ask(&mut self, text: &str) -> String {
        self.send(query(text));
        self.said()
    }

    #[track_caller]
    pub(crate) fn said(&mut self) -> String {
        told(&self.answer())
    }

    /// The FATAL error that ends the session, without a request.
    #[track_caller]
    pub(crate) fn farewell(&mut self) -> Message {
        loop {
            let message = self.next().expect("an error before the end");
            if message.tag == 'E' {
                assert_eq!(message.field(b'S'), "FATAL");
                assert_eq!(self.wire.rest().unwrap_or_default(), b"", "nothing after it");
                return message;
            }
        }
    }
}

pub(crate) fn told(messages: &[Message]) -> String {
    let mut said = String::new();
    for message in messages {
        match message.tag {
            'E' => return message.code(),
            // One column: its count, its length, itself.
            'D' => {
                said = text(message.body.get(6..));
            }
            _ => {}
        }
    }
    said
}

fn text(bytes: Option<&[u8]>) -> String {
    String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
}
