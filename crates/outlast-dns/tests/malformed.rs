//! What a machine sends that means no good, and what an answer costs: no panic, no answer to what is no query, none that is
//! larger than it may be, and nothing from the heap.

#![cfg(test)]

use std::net::{IpAddr, Ipv4Addr};

use outlast_dns::dnssec::{Signatures, ZoneKey};
use outlast_dns::name::Name;
use outlast_dns::respond::{Asker, Dropped, Reply, State, Transport, UDP_MAX, respond};
use outlast_dns::table::Table;
use outlast_dns::zone::ZoneSpec;
use outlast_dns::{CookieSecrets, RateLimit};

const ZONE: &str = "\
$TTL 60
@ IN SOA ns1 host 7 300 60 604800 5
@ NS ns1
ns1 A 127.0.0.1
www A 192.0.2.1
alias CNAME www
*.wild TXT \"any\"
child NS ns.child
ns.child A 192.0.2.77
";

/// Malformed messages that are tried, and the seed that they follow from.
const MESSAGES: usize = 200_000;
const SEED: u64 = 20_261_129;

fn table(signed: bool) -> Table {
    let name: Name = "example.com".parse().unwrap();
    let mut spec = ZoneSpec::from_zone_file(&name, ZONE).unwrap();
    spec.key = signed.then(|| ZoneKey::from_pkcs8(&ZoneKey::generate().unwrap()).unwrap().into());
    Table::build(&[spec], &mut Signatures::default(), 1_000_000).unwrap()
}

fn state(limit: Option<RateLimit>) -> State {
    State::new(Some(CookieSecrets { current: [1; 16], previous: None }), limit, [2; 16], b"node1")
}

fn asker(transport: Transport) -> Asker {
    Asker { address: IpAddr::V4(Ipv4Addr::LOCALHOST), transport, now: 1_000_000, chance: 1 }
}

/// A well-formed query with all options.
fn query(name: &str, rtype: u16) -> Vec<u8> {
    let name: Name = name.parse().unwrap();
    let mut message = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\x01".to_vec();
    message.extend(name.wire());
    message.extend(rtype.to_be_bytes());
    message.extend(b"\0\x01\0\0\x29\x10\0\0\0\x80\0\0\x1b");
    message.extend(b"\0\x0a\0\x08clientid\0\x08\0\x07\0\x01\x18\0\xc0\0\x02\0\x03\0\0");
    message
}

fn queries() -> Vec<Vec<u8>> {
    let names = ["www", "alias", "no", "a.wild", "x.child", "no.such.name.at.all", "WWW"];
    let names = names.iter().map(|name| format!("{name}.example.com"));
    let types = [1u16, 28, 16, 255, 6, 43, 252, 251, 250];
    names.flat_map(|name| types.map(|rtype| query(&name, rtype))).collect()
}

/// Numbers that follow from a seed (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap() % limit
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap()
    }
}

/// A message that was once good, or never was.
fn spoil(numbers: &mut Numbers, good: &[Vec<u8>]) -> Vec<u8> {
    let mut message = good[numbers.below(good.len())].clone();
    match numbers.below(6) {
        0 => message.truncate(numbers.below(message.len() + 1)),
        1 => {
            let more = numbers.below(64);
            message.extend((0..more).map(|_| numbers.byte()));
        }
        2 => message = (0..numbers.below(600)).map(|_| numbers.byte()).collect(),
        _ => {
            for _ in 0..1 + numbers.below(8) {
                let place = numbers.below(message.len());
                message[place] = if numbers.below(2) == 0 {
                    numbers.byte()
                } else {
                    message[place] ^ 1 << numbers.below(8)
                };
            }
        }
    }
    message
}

#[test]
fn malformed_messages_get_what_they_may_and_no_more() {
    let (good, mut numbers) = (queries(), Numbers(SEED));
    let (tables, state) = ([table(false), table(true)], state(None));
    let mut out = vec![0; 65_535];
    let mut answered = 0;
    for n in 0..MESSAGES {
        let message = spoil(&mut numbers, &good);
        let transport = if n % 8 == 0 { Transport::Tcp } else { Transport::Udp };
        let reply = respond(&message, asker(transport), &tables[n % 2], &state, &mut out);
        let is_query = message.len() >= 12 && message[2] & 0x80 == 0;
        assert_eq!(is_query, reply != Reply::Drop(Dropped::NoQuery), "{message:?}");
        if let Reply::Send(length, _) = reply {
            answered += 1;
            assert!(length >= 12 && out[2] & 0x80 != 0 && out[..2] == message[..2], "{message:?}");
            assert!(transport == Transport::Tcp || length <= usize::from(UDP_MAX), "{message:?}");
            let had_edns = message[10..12] != [0, 0];
            assert!(transport == Transport::Tcp || had_edns || length <= 512, "{message:?}");
        }
    }
    assert!(answered > MESSAGES / 2, "most are broken in a way that is answered: {answered}");
}

#[test]
fn an_answer_takes_nothing_from_the_heap() {
    let limit = Some(RateLimit::default());
    let (tables, state) = ([table(false), table(true)], state(limit));
    let mut out = vec![0; 65_535];
    let queries = queries();
    let used = allocation_counter::measure(|| {
        for table in &tables {
            for message in &queries {
                respond(message, asker(Transport::Udp), table, &state, &mut out);
            }
        }
    });
    assert_eq!((used.count_total, used.bytes_total), (0, 0));
}
