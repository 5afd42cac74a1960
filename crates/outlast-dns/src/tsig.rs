//! Messages signed with a shared key (RFC 8945): who may transfer and who may update.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use domain::base::message_builder::AdditionalBuilder;
use domain::base::question::ComposeQuestion;
use domain::base::record::ComposeRecord;
use domain::base::wire::Composer;
use domain::base::{Header, Message, MessageBuilder};
use domain::rdata::tsig::Time48;
use domain::tsig::{ClientTransaction, Key, KeyName, ServerSequence};

use crate::name::Name;
use crate::respond::count;

pub use domain::tsig::Algorithm;

/// Keys of a server.
pub(crate) const KEYS_MAX: usize = 1024;

/// A shared key, and what it is good for.
#[derive(Clone)]
pub struct TsigKey {
    pub name: Name,
    pub may_transfer: bool,
    pub may_update: bool,
    key: Arc<Key>,
}

impl fmt::Debug for TsigKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TsigKey({})", self.name)
    }
}

/// The name of a key is no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadTsigKey;

impl fmt::Display for BadTsigKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the key cannot be used for TSIG")
    }
}

impl std::error::Error for BadTsigKey {}

impl TsigKey {
    /// A key that is good for nothing yet; `secret` is its bytes, not their base64.
    pub fn new(name: &Name, algorithm: Algorithm, secret: &[u8]) -> Result<TsigKey, BadTsigKey> {
        let key_name: KeyName = name.to_string().parse().map_err(|_name| BadTsigKey)?;
        let key =
            Key::new(algorithm, secret, key_name, None, None).map_err(|_bounds| BadTsigKey)?;
        Ok(TsigKey {
            name: name.clone(),
            may_transfer: false,
            may_update: false,
            key: Arc::new(key),
        })
    }
}

impl AsRef<Key> for TsigKey {
    fn as_ref(&self) -> &Key {
        &self.key
    }
}

/// The keys of a server, by name and algorithm.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keys(HashMap<(KeyName, Algorithm), TsigKey>);

impl Keys {
    pub(crate) fn new(keys: &[TsigKey]) -> Keys {
        let keys = keys.iter().take(KEYS_MAX);
        Keys(keys.map(|k| ((k.key.name().clone(), k.key.algorithm()), k.clone())).collect())
    }

    /// Takes the signature off a message and checks it. If it is wrong, the answer that says so.
    pub(crate) fn verify(&self, message: Vec<u8>) -> Result<(Vec<u8>, Signer), Vec<u8>> {
        let mut message = Message::from_octets(message).map_err(|_short| Vec::new())?;
        let original = message.clone();
        match ServerSequence::request(&self.0, &mut message, Time48::now()) {
            Ok(Some(sequence)) => Ok((message.into_octets(), Signer(sequence))),
            Ok(None) => Err(Vec::new()),
            Err(error) => {
                let answer = error.build_message(&original, MessageBuilder::new_vec());
                Err(answer.map(AdditionalBuilder::finish).unwrap_or_default())
            }
        }
    }
}

/// Signs the answers to one message.
#[derive(Debug)]
pub(crate) struct Signer(ServerSequence<TsigKey>);

impl Signer {
    pub(crate) fn key(&self) -> &TsigKey {
        self.0.wrapped_key()
    }

    /// The next answer with its signature; none if that does not fit.
    pub(crate) fn sign(&mut self, answer: &[u8]) -> Option<Vec<u8>> {
        let mut builder = builder(answer)?;
        self.0.answer(&mut builder, Time48::now()).ok()?;
        Some(builder.finish())
    }
}

/// A question that was signed, until its answer has come.
#[derive(Debug)]
pub(crate) struct Asked(ClientTransaction<TsigKey>);

impl Asked {
    /// Signs a question.
    pub(crate) fn sign(key: TsigKey, question: &[u8]) -> Option<(Vec<u8>, Asked)> {
        let mut builder = builder(question)?;
        let transaction = ClientTransaction::request(key, &mut builder, Time48::now()).ok()?;
        Some((builder.finish(), Asked(transaction)))
    }

    /// Whether an answer is signed with the same key.
    pub(crate) fn is_answer(&self, answer: &[u8]) -> bool {
        let Ok(mut message) = Message::from_octets(answer.to_vec()) else { return false };
        self.0.answer(&mut message, Time48::now()).is_ok()
    }
}

/// A message as what records can be added to. The bytes are appended whole, and counted one by one.
fn builder(message: &[u8]) -> Option<AdditionalBuilder<Vec<u8>>> {
    let mut body = message.get(12..)?;
    let mut next = || Bytes(std::mem::take(&mut body));
    let mut builder = MessageBuilder::new_vec();
    *builder.header_mut() = *Header::for_message_slice(message);
    let mut questions = builder.question();
    for _ in 0..count(message, 0) {
        questions.push(next()).ok()?;
    }
    let mut answers = questions.answer();
    for _ in 0..count(message, 1) {
        answers.push(next()).ok()?;
    }
    let mut authorities = answers.authority();
    for _ in 0..count(message, 2) {
        authorities.push(next()).ok()?;
    }
    let mut additionals = authorities.additional();
    for _ in 0..count(message, 3) {
        additionals.push(next()).ok()?;
    }
    Some(additionals)
}

/// Bytes that are already in the form of a message.
struct Bytes<'m>(&'m [u8]);

impl ComposeQuestion for Bytes<'_> {
    fn compose_question<T: Composer + ?Sized>(&self, target: &mut T) -> Result<(), T::AppendError> {
        target.append_slice(self.0)
    }
}

impl ComposeRecord for Bytes<'_> {
    fn compose_record<T: Composer + ?Sized>(&self, target: &mut T) -> Result<(), T::AppendError> {
        target.append_slice(self.0)
    }
}
