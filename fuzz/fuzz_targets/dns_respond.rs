//! Messages to the name server: no panic, no answer to what is no query, and no answer that is larger than it may be.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use outlast_dns::CookieSecrets;
use outlast_dns::dnssec::{Signatures, ZoneKey};
use outlast_dns::name::Name;
use outlast_dns::respond::{Asker, Dropped, Reply, State, Transport, UDP_MAX, respond};
use outlast_dns::table::Table;
use outlast_dns::zone::ZoneSpec;

const ZONE: &str = "$TTL 60\n@ IN SOA ns1 host 7 300 60 604800 5\n@ NS ns1\nns1 A 127.0.0.1\nwww A 192.0.2.1\n\
    alias CNAME www\n*.wild TXT any\nchild NS ns.child\nns.child A 192.0.2.77\n";

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let name: Name = "example.com".parse().expect("a name");
    let mut spec = ZoneSpec::from_zone_file(&name, ZONE).expect("a zone file");
    let key = ZoneKey::generate().and_then(|bytes| ZoneKey::from_pkcs8(&bytes)).expect("a key");
    spec.key = Some(key.into());
    Table::build(&[spec], &mut Signatures::default(), 1_000_000).expect("a good zone")
});

static STATE: LazyLock<State> = LazyLock::new(|| {
    let cookies = CookieSecrets { current: [1; 16], previous: None };
    State::new(Some(cookies), None, [2; 16], b"node1")
});

fuzz_target!(|bytes: &[u8]| {
    let mut out = vec![0; 65_535];
    for transport in [Transport::Udp, Transport::Tcp] {
        let asker = Asker { address: [127, 0, 0, 1].into(), transport, now: 1_000_000, chance: 1 };
        let reply = respond(bytes, asker, &TABLE, &STATE, &mut out);
        let is_query = bytes.len() >= 12 && bytes[2] & 0x80 == 0;
        assert_eq!(is_query, reply != Reply::Drop(Dropped::NoQuery));
        if let Reply::Send(length, _) = reply {
            assert!(transport == Transport::Tcp || length <= usize::from(UDP_MAX));
            assert!(out[2] & 0x80 != 0 && out[..2] == bytes[..2]);
        }
    }
});
