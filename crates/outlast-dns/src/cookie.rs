//! DNS cookies (RFC 7873) in the form that all servers of a zone can share (RFC 9018).

use std::fmt;
use std::net::IpAddr;

/// Bytes of what a client chooses.
pub(crate) const CLIENT_COOKIE: usize = 8;

/// Bytes of what a server of this form answers.
const SERVER_COOKIE: usize = 16;

/// Bytes of both.
pub(crate) const COOKIE: usize = CLIENT_COOKIE + SERVER_COOKIE;

/// Bytes of the longest cookie of any form (RFC 7873 4).
pub(crate) const COOKIE_MAX: usize = 40;

/// The form of RFC 9018: version 1 and three reserved bytes.
const VERSION: [u8; 4] = [1, 0, 0, 0];

/// How old a cookie may be, in seconds, and how far its time may lie ahead (RFC 9018 4.3).
const AGE_MAX: i32 = 3_600;
const AHEAD_MAX: i32 = 300;

/// From this age on, a new one is given.
const AGE_RENEW: i32 = 1_800;

/// What cookies are made with. All servers of a zone are given the same, so that each takes the cookies of the others.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CookieSecrets {
    pub current: [u8; 16],
    /// Cookies made with it are still taken, while a new secret is brought to all servers.
    pub previous: Option<[u8; 16]>,
}

impl fmt::Debug for CookieSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CookieSecrets")
    }
}

/// What became of a client's cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checked {
    /// The whole cookie of the answer.
    pub(crate) answer: [u8; COOKIE],
    /// Whether the client has shown that it receives what is sent to its address.
    pub(crate) is_valid: bool,
}

impl CookieSecrets {
    /// Judges the cookie of a query; the client's part is there, the server's may be missing or of any form.
    pub(crate) fn check(
        &self,
        client: [u8; CLIENT_COOKIE],
        server: &[u8],
        address: IpAddr,
        now: u32,
    ) -> Checked {
        let known = <[u8; SERVER_COOKIE]>::try_from(server).ok().filter(|server| {
            let secrets = std::iter::once(self.current).chain(self.previous);
            let (head, _) = server.split_at(8);
            // Tags are compared as one word, so that the time taken does not tell where they differ.
            let told = u64::from_le_bytes(server[8..].try_into().unwrap_or_default());
            let mut made = secrets.map(|secret| tag(secret, client, head, address));
            server.starts_with(&VERSION[..1]) && made.any(|made| made == told)
        });
        let age = known.map(|cookie| {
            let made = u32::from_be_bytes([cookie[4], cookie[5], cookie[6], cookie[7]]);
            now.wrapping_sub(made).cast_signed()
        });
        let is_valid = age.is_some_and(|age| (-AHEAD_MAX..=AGE_MAX).contains(&age));
        let mut answer = [0; COOKIE];
        answer[..CLIENT_COOKIE].copy_from_slice(&client);
        let place = &mut answer[CLIENT_COOKIE..];
        match known.filter(|_| is_valid && age.is_some_and(|age| age < AGE_RENEW)) {
            Some(cookie) => place.copy_from_slice(&cookie),
            None => place.copy_from_slice(&self.make(client, address, now)),
        }
        Checked { answer, is_valid }
    }

    fn make(&self, client: [u8; CLIENT_COOKIE], address: IpAddr, now: u32) -> [u8; SERVER_COOKIE] {
        let mut cookie = [0; SERVER_COOKIE];
        cookie[..4].copy_from_slice(&VERSION);
        cookie[4..8].copy_from_slice(&now.to_be_bytes());
        let tag = tag(self.current, client, &cookie[..8], address).to_le_bytes();
        cookie[8..].copy_from_slice(&tag);
        cookie
    }
}

/// The hash of a server cookie (RFC 9018 4.4).
fn tag(secret: [u8; 16], client: [u8; CLIENT_COOKIE], head: &[u8], address: IpAddr) -> u64 {
    let mut input = [0; 32];
    input[..8].copy_from_slice(&client);
    input[8..16].copy_from_slice(head);
    let length = match address {
        IpAddr::V4(v4) => {
            input[16..20].copy_from_slice(&v4.octets());
            20
        }
        IpAddr::V6(v6) => {
            input[16..32].copy_from_slice(&v6.octets());
            32
        }
    };
    siphash(secret, &input[..length])
}

/// SipHash-2-4 of at most 255 bytes.
pub(crate) fn siphash(key: [u8; 16], input: &[u8]) -> u64 {
    let (halves, _) = key.as_chunks::<8>();
    let (k0, k1) = (u64::from_le_bytes(halves[0]), u64::from_le_bytes(halves[1]));
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    let (words, tail) = input.as_chunks::<8>();
    let mut last = [0; 8];
    last[..tail.len()].copy_from_slice(tail);
    last[7] = u8::try_from(input.len() & 0xff).unwrap_or_default();
    for word in words.iter().chain([&last]) {
        let word = u64::from_le_bytes(*word);
        v[3] ^= word;
        round(&mut v);
        round(&mut v);
        v[0] ^= word;
    }
    v[2] ^= 0xff;
    for _ in 0..4 {
        round(&mut v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

/// One round of SipHash.
fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 9018 appendix A.1.
    #[test]
    fn a_new_cookie_is_that_of_the_standard() {
        let secret = 0xe5e9_73e5_a6b2_a43f_48e7_dc84_9e37_bfcf_u128.to_be_bytes();
        let secrets = CookieSecrets { current: secret, previous: None };
        let client = 0x2464_c4ab_cf10_c957_u64.to_be_bytes();
        let address = [198, 51, 100, 100].into();
        let made = secrets.check(client, b"", address, 1_559_731_985);
        assert!(!made.is_valid);
        let wanted = 0x0100_0000_5cf7_9f11_1f81_30c3_eee2_9480_u128.to_be_bytes();
        assert_eq!(made.answer[8..], wanted);

        let again = |secrets: CookieSecrets, address: IpAddr, now| {
            secrets.check(client, &wanted, address, now)
        };
        let rolled = CookieSecrets { current: [1; 16], previous: Some(secret) };
        let foreign = CookieSecrets { current: [1; 16], previous: None };
        for (secrets, address, later, valid, kept) in [
            (secrets, [198, 51, 100, 100], 0, true, true),
            (secrets, [198, 51, 100, 100], 1_799, true, true),
            (secrets, [198, 51, 100, 100], 1_800, true, false),
            (secrets, [198, 51, 100, 100], 3_601, false, false),
            (secrets, [198, 51, 100, 100], -300, true, true),
            (secrets, [198, 51, 100, 100], -301, false, false),
            (secrets, [198, 51, 100, 101], 0, false, false),
            (rolled, [198, 51, 100, 100], 0, true, true),
            (foreign, [198, 51, 100, 100], 0, false, false),
        ] {
            let now = 1_559_731_985u32.wrapping_add_signed(later);
            let checked = again(secrets, address.into(), now);
            assert_eq!(checked.is_valid, valid, "{address:?} {later}");
            assert_eq!(checked.answer[8..] == wanted, kept, "{address:?} {later}");
        }
    }
}
