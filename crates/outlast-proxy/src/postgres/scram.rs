//! SCRAM-SHA-256 (RFC 5802, RFC 7677), seen from the middle: what a client proves to one server is enough to prove the same to
//! another that has the same verifier, and to nobody else.

use ring::{digest, hmac};

/// What is stored of a role's password: salt, iterations and two keys, none of which can log in.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    iterations: String,
    salt: String,
    stored_key: Key,
    server_key: Key,
}

pub type Key = [u8; 32];

/// What a client that knows the password can compute. Never shown, never written.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientKey(Key);

impl std::fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientKey")
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier")
    }
}

impl Verifier {
    /// `SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey`, as in `pg_authid`.
    pub fn parse(text: &str) -> Option<Verifier> {
        let (costs, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
        let (iterations, salt) = costs.split_once(':')?;
        let (stored, server) = keys.split_once(':')?;
        let key = |text| Key::try_from(decode(text)?).ok();
        Some(Verifier {
            iterations: iterations.to_owned(),
            salt: salt.to_owned(),
            stored_key: key(stored)?,
            server_key: key(server)?,
        })
    }
}

/// What a client and a server have said to each other.
#[derive(Clone, Debug, Default)]
pub struct Exchange {
    client_first_bare: String,
    server_first: String,
    client_final: String,
}

impl Exchange {
    /// The client's first message, with its header.
    pub fn client_first(&mut self, message: &[u8]) {
        let text = std::str::from_utf8(message).unwrap_or_default();
        // "n,," or "y,," and an authorization identity, if any.
        self.client_first_bare = text.splitn(3, ',').nth(2).unwrap_or_default().to_owned();
    }

    pub fn server_first(&mut self, message: &[u8]) {
        self.server_first = String::from_utf8_lossy(message).into_owned();
    }

    pub fn client_final(&mut self, message: &[u8]) {
        self.client_final = String::from_utf8_lossy(message).into_owned();
    }

    /// The key of a client whose proof has been accepted; `None` if this is not the verifier that it was accepted with.
    pub fn client_key(&self, verifier: &Verifier) -> Option<ClientKey> {
        let (without_proof, proof) = self.client_final.rsplit_once(",p=")?;
        let signature = self.signature(&verifier.stored_key, without_proof);
        let key = xor(&Key::try_from(decode(proof)?).ok()?, &signature);
        ClientKey(key).fits(verifier).then_some(ClientKey(key))
    }

    fn signature(&self, key: &Key, without_proof: &str) -> Key {
        let said = [&self.client_first_bare, &self.server_first, without_proof].join(",");
        sign(key, said.as_bytes())
    }
}

impl ClientKey {
    /// Whether the password is still the one that this key was made of.
    pub fn fits(&self, verifier: &Verifier) -> bool {
        digest::digest(&digest::SHA256, &self.0).as_ref() == verifier.stored_key
    }
}

/// Logs in with a key instead of a password.
#[derive(Debug)]
pub struct Login<'a> {
    key: &'a ClientKey,
    verifier: &'a Verifier,
    nonce: String,
    exchange: Exchange,
}

impl<'a> Login<'a> {
    pub fn new(key: &'a ClientKey, verifier: &'a Verifier, nonce: [u8; 18]) -> Login<'a> {
        Login { key, verifier, nonce: encode(&nonce), exchange: Exchange::default() }
    }

    /// What is said first.
    pub fn first(&mut self) -> String {
        let message = format!("n,,n=,r={}", self.nonce);
        self.exchange.client_first(message.as_bytes());
        message
    }

    /// The answer to the server's first message; `None` if it is not the server that has this verifier.
    pub fn last(&mut self, server_first: &[u8]) -> Option<String> {
        self.exchange.server_first(server_first);
        let mut parts = self.exchange.server_first.split(',');
        let nonce = parts.next()?.strip_prefix("r=")?;
        let salt = parts.next()?.strip_prefix("s=")?;
        let iterations = parts.next()?.strip_prefix("i=")?;
        let same = nonce.starts_with(&self.nonce)
            && salt == self.verifier.salt
            && iterations == self.verifier.iterations;
        if !same {
            return None;
        }
        let without_proof = format!("c=biws,r={nonce}");
        let signature = self.exchange.signature(&self.verifier.stored_key, &without_proof);
        let proof = encode(&xor(&self.key.0, &signature));
        self.exchange.client_final(without_proof.as_bytes());
        Some(format!("{without_proof},p={proof}"))
    }

    /// Whether the server has proved that it knows the verifier.
    pub fn proved(&self, server_final: &[u8]) -> bool {
        let signature =
            self.exchange.signature(&self.verifier.server_key, &self.exchange.client_final);
        let told = server_final.strip_prefix(b"v=").and_then(|text| std::str::from_utf8(text).ok());
        told.and_then(decode).is_some_and(|told| told == signature)
    }
}

fn sign(key: &Key, text: &[u8]) -> Key {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text);
    Key::try_from(tag.as_ref()).expect("SHA-256 has 32 bytes")
}

fn xor(a: &Key, b: &Key) -> Key {
    std::array::from_fn(|i| a[i] ^ b[i])
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base 64 (RFC 4648 section 4).
fn encode(bytes: &[u8]) -> String {
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let of = |i: usize| u32::from(group.get(i).copied().unwrap_or_default());
        let bits = of(0) << 16 | of(1) << 8 | of(2);
        for i in 0..4 {
            let digit = usize::try_from(bits >> (18 - 6 * i) & 63).expect("six bits");
            text.push(if i <= group.len() { char::from(ALPHABET[digit]) } else { '=' });
        }
    }
    text
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    if !text.len().is_multiple_of(4) {
        return None;
    }
    for byte in text.strip_suffix("==").or(text.strip_suffix('=')).unwrap_or(text).bytes() {
        let digit = ALPHABET.iter().position(|&b| b == byte)?;
        bits = bits << 6 | u32::try_from(digit).ok()?;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).ok()?);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 7677 section 3, password `pencil`.
    fn example() -> (Exchange, Verifier) {
        let mut exchange = Exchange::default();
        exchange.client_first(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        exchange.server_first(
            b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
        );
        exchange.client_final(
            b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
        );
        let salt = decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let mut salted = [0; 32];
        let rounds = std::num::NonZeroU32::new(4096).unwrap();
        ring::pbkdf2::derive(
            ring::pbkdf2::PBKDF2_HMAC_SHA256,
            rounds,
            &salt,
            b"pencil",
            &mut salted,
        );
        let stored = digest::digest(&digest::SHA256, &sign(&salted, b"Client Key"));
        let server = encode(&sign(&salted, b"Server Key"));
        let text = format!(
            "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==${}:{server}",
            encode(stored.as_ref())
        );
        (exchange, Verifier::parse(&text).unwrap())
    }

    #[test]
    fn the_key_of_the_rfcs_example_logs_in_once_more() {
        let (exchange, verifier) = example();
        let key = exchange.client_key(&verifier).unwrap();
        let mut login = Login::new(&key, &verifier, [7; 18]);
        let first = login.first();
        let nonce = first.strip_prefix("n,,n=,r=").unwrap();
        assert_eq!(login.last(b"r=other,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"), None);
        assert_eq!(login.last(format!("r={nonce}x,s=AAAA,i=4096").as_bytes()), None);
        let server_first = format!("r={nonce}x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096");
        let last = login.last(server_first.as_bytes()).unwrap();
        // The server's own way to check it.
        let mut seen = Exchange::default();
        seen.client_first(first.as_bytes());
        seen.server_first(server_first.as_bytes());
        seen.client_final(last.as_bytes());
        assert_eq!(seen.client_key(&verifier), Some(key.clone()));
        let without = last.rsplit_once(",p=").unwrap().0;
        let signature = encode(&seen.signature(&verifier.server_key, without));
        assert!(login.proved(format!("v={signature}").as_bytes()));
        assert!(!login.proved(b"v=AAAA") && !login.proved(b"e=other-error"));
    }

    #[test]
    fn another_verifier_gives_no_key() {
        let (mut exchange, verifier) = example();
        let other = Verifier { stored_key: [1; 32], ..verifier.clone() };
        assert_eq!(exchange.client_key(&other), None);
        exchange.client_final(b"c=biws,r=x,p=AAAA");
        assert_eq!(exchange.client_key(&verifier), None);
        for text in ["", "md5abc", "SCRAM-SHA-256$4096:AAAA$AAAA:AAAA", "SCRAM-SHA-256$4096"] {
            assert_eq!(Verifier::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn base_64_comes_back(bytes: Vec<u8>) {
            prop_assert_eq!(decode(&encode(&bytes)), Some(bytes));
        }

        #[test]
        fn no_text_makes_it_panic(text: String) {
            decode(&text);
            Verifier::parse(&format!("SCRAM-SHA-256${text}"));
        }
    }
}
