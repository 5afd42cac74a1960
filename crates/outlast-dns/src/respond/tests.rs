use super::*;
use crate::dnssec::{Signatures, ZoneKey};
use crate::name::Name;
use crate::wire::read_record;
use crate::zone::{Choice, Rdata, Rrset, ZoneSpec};

const ZONE: &str = "\
$TTL 60
@ IN SOA ns1 host 7 300 60 604800 5
@ NS ns1
@ NS ns.elsewhere.
ns1 A 192.0.2.53
www A 192.0.2.1
www AAAA 2001:db8::1
alias CNAME www
far CNAME www.elsewhere.
broken CNAME nothing
loop1 CNAME loop2
loop2 CNAME loop1
*.wild TXT \"any\"
to-wild CNAME x.wild
deep.between A 192.0.2.2
@ MX 10 mail
mail A 192.0.2.25
child NS ns.child
child NS ns1
ns.child A 192.0.2.77
sub.child A 192.0.2.78
";

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn spec(signed: bool) -> ZoneSpec {
    let mut spec = ZoneSpec::from_zone_file(&name("example.com"), ZONE).unwrap();
    let big: Vec<_> = (0..100).map(|n| Rdata::a([192, 0, 2, n].into())).collect();
    let set = |owner: &str, rtype, choice| Rrset { owner: name(owner), rtype, ttl: 30, choice };
    spec.sets.push(set("big.example.com", Rtype::A, Choice::One(big)));
    spec.sets.push(set("empty.example.com", Rtype::A, Choice::Empty));
    let one = |n| Choice::One(vec![Rdata::a([10, 0, 0, n].into())]);
    let prefix = crate::zone::Prefix { address: [198, 51, 100, 0].into(), length: 24 };
    let by = Choice::ByClient { prefixes: vec![(prefix, one(1))], default: Box::new(one(2)) };
    spec.sets.push(set("geo.example.com", Rtype::A, by));
    spec.key = signed.then(|| ZoneKey::from_pkcs8(&ZoneKey::generate().unwrap()).unwrap().into());
    spec
}

pub(super) fn table(signed: bool) -> Table {
    Table::build(&[spec(signed)], &mut Signatures::default(), 1_000_000).unwrap()
}

fn asker() -> Asker {
    Asker { address: [127, 0, 0, 1].into(), transport: Transport::Udp, now: 1_000_000, chance: 1 }
}

/// A query with the bytes of an OPT record's data, if any, and the flag for signatures.
fn query(qname: &str, rtype: Rtype, opt: Option<(&[u8], bool)>) -> Vec<u8> {
    let mut message = crate::wire::Message::new(0xabcd, [RD, 0], &name(qname), rtype).0;
    if let Some((data, dnssec)) = opt {
        message[11] = 1;
        message.extend([0, 0, 41, 0x10, 0, 0, 0, if dnssec { 0x80 } else { 0 }, 0]);
        message.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        message.extend(data);
    }
    message
}

fn state() -> State {
    let cookies = CookieSecrets { current: [3; 16], previous: None };
    State::new(Some(cookies), None, [1; 16], b"node1")
}

/// Flags, code and records of an answer, in words.
fn said(message: &[u8]) -> String {
    let rcode = match message[3] & 0xf {
        0 => "NOERROR".to_owned(),
        3 => "NXDOMAIN".to_owned(),
        other => other.to_string(),
    };
    let flag = |bit, word| if message[2] & bit != 0 { word } else { "" };
    let mut said = format!("{rcode}{}{}", flag(AA, " aa"), flag(TC, " tc"));
    let mut at = Question::read(message).map_or(HEAD, |question| question.end());
    for (section, word) in [(1, "|"), (2, "||"), (3, "|||")] {
        if count(message, section) > 0 {
            said += &format!(" {word}");
        }
        for _ in 0..count(message, section) {
            let read = read_record(message, at).expect("a whole record");
            said += &format!(" {}{}", read.record.owner, read.record.rtype.0);
            at = read.end;
        }
    }
    assert_eq!(at, message.len(), "nothing is left over");
    said
}

fn ask(table: &Table, message: &[u8], asker: Asker) -> Result<Vec<u8>, Reply> {
    let mut out = vec![0; MESSAGE_MAX];
    match respond(message, asker, table, &state(), &mut out) {
        Reply::Send(length, _) => Ok(out[..length].to_vec()),
        other @ (Reply::Drop(_) | Reply::Later(_)) => Err(other),
    }
}

#[test]
fn questions_are_answered_as_the_zone_says() {
    let table = table(false);
    for (qname, rtype, wanted) in [
        ("www.example.com", Rtype::A, "NOERROR aa | www.example.com.1"),
        ("WWW.example.COM", Rtype::AAAA, "NOERROR aa | www.example.com.28"),
        ("www.example.com", Rtype::TXT, "NOERROR aa || example.com.6"),
        ("www.example.com", Rtype::ANY, "NOERROR aa | www.example.com.1"),
        ("alias.example.com", Rtype::A, "NOERROR aa | alias.example.com.5 www.example.com.1"),
        ("alias.example.com", Rtype::CNAME, "NOERROR aa | alias.example.com.5"),
        ("alias.example.com", Rtype::TXT, "NOERROR aa | alias.example.com.5 || example.com.6"),
        ("far.example.com", Rtype::A, "NOERROR aa | far.example.com.5"),
        ("broken.example.com", Rtype::A, "NXDOMAIN aa | broken.example.com.5 || example.com.6"),
        ("x.wild.example.com", Rtype::TXT, "NOERROR aa | x.wild.example.com.16"),
        ("a.b.wild.example.com", Rtype::TXT, "NOERROR aa | a.b.wild.example.com.16"),
        ("x.wild.example.com", Rtype::A, "NOERROR aa || example.com.6"),
        ("wild.example.com", Rtype::TXT, "NOERROR aa || example.com.6"),
        (
            "to-wild.example.com",
            Rtype::TXT,
            "NOERROR aa | to-wild.example.com.5 x.wild.example.com.16",
        ),
        ("between.example.com", Rtype::A, "NOERROR aa || example.com.6"),
        ("x.between.example.com", Rtype::A, "NXDOMAIN aa || example.com.6"),
        ("nothing.example.com", Rtype::A, "NXDOMAIN aa || example.com.6"),
        ("x.www.example.com", Rtype::A, "NXDOMAIN aa || example.com.6"),
        ("empty.example.com", Rtype::A, "NOERROR aa || example.com.6"),
        ("example.com", Rtype::SOA, "NOERROR aa | example.com.6"),
        ("example.com", Rtype::IXFR, "NOERROR aa | example.com.6"),
        ("example.com", Rtype::NS, "NOERROR aa | example.com.2 example.com.2"),
        ("example.com", Rtype::DS, "NOERROR aa || example.com.6"),
        ("child.example.com", Rtype::DS, "NOERROR aa || example.com.6"),
        (
            "child.example.com",
            Rtype::NS,
            "NOERROR || child.example.com.2 child.example.com.2 ||| ns.child.example.com.1 ns1.example.com.1",
        ),
        (
            "x.sub.child.example.com",
            Rtype::A,
            "NOERROR || child.example.com.2 child.example.com.2 ||| ns.child.example.com.1 ns1.example.com.1",
        ),
        ("big.example.com", Rtype::A, "NOERROR aa tc"),
        ("com", Rtype::A, "5"),
        ("example.org", Rtype::A, "5"),
        ("example.com", Rtype::AXFR, "1"),
        ("example.com", Rtype(249), "4"),
    ] {
        let answer = ask(&table, &query(qname, rtype, None), asker()).unwrap();
        assert_eq!(said(&answer), wanted, "{qname} {rtype:?}");
        assert_eq!(answer[..3], [0xab, 0xcd, QR | RD | (answer[2] & 6)], "{qname}");
    }
    let looped = ask(&table, &query("loop1.example.com", Rtype::A, None), asker()).unwrap();
    assert!(said(&looped).starts_with("NOERROR aa | loop1.example.com.5 loop2.example.com.5"));
}

#[test]
fn the_case_of_the_question_is_kept() {
    let table = table(false);
    let mut message = query("www.example.com", Rtype::A, None);
    message[13] = b'W';
    let answer = ask(&table, &message, asker()).unwrap();
    assert_eq!(answer[12..33], message[12..33]);
}

#[test]
fn signed_answers_carry_proofs_for_those_who_ask() {
    let table = table(true);
    for (qname, rtype, plain, signed) in [
        (
            "www.example.com",
            Rtype::A,
            "| www.example.com.1",
            "| www.example.com.1 www.example.com.46",
        ),
        (
            "www.example.com",
            Rtype::TXT,
            "|| example.com.6",
            "|| example.com.6 example.com.46 www.example.com.47 www.example.com.46",
        ),
        (
            "x.wild.example.com",
            Rtype::TXT,
            "| x.wild.example.com.16",
            "| x.wild.example.com.16 x.wild.example.com.46 || *.wild.example.com.47 *.wild.example.com.46",
        ),
        (
            "x.wild.example.com",
            Rtype::A,
            "|| example.com.6",
            "|| example.com.6 example.com.46 *.wild.example.com.47 *.wild.example.com.46",
        ),
        (
            "nothing.example.com",
            Rtype::A,
            "|| example.com.6",
            "|| example.com.6 example.com.46 mail.example.com.47 mail.example.com.46 example.com.47 example.com.46",
        ),
        (
            "child.example.com",
            Rtype::DS,
            "|| example.com.6",
            "|| example.com.6 example.com.46 child.example.com.47 child.example.com.46",
        ),
    ] {
        let words = |dnssec| {
            let answer = ask(&table, &query(qname, rtype, Some((b"", dnssec))), asker()).unwrap();
            said(&answer).split_once(" aa ").unwrap().1.replace(" ||| .41", "").replace(" .41", "")
        };
        assert_eq!(words(false), plain, "{qname}");
        assert_eq!(words(true), signed, "{qname}");
    }
}

#[test]
fn what_is_no_query_is_not_answered_and_what_is_broken_is_told_so() {
    let table = table(false);
    let good = query("www.example.com", Rtype::A, Some((b"", false)));
    let no_query = Err(Reply::Drop(Dropped::NoQuery));
    let change = |places: &[(usize, u8)]| {
        let mut message = good.clone();
        places.iter().for_each(|&(place, byte)| message[place] = byte);
        message
    };
    for (message, wanted) in [
        (Vec::new(), no_query),
        (good[..11].to_vec(), no_query),
        (change(&[(2, QR)]), no_query),
        (change(&[(2, QR | 0x28)]), no_query),
        (good[..12].to_vec(), Ok("1")),
        (good[..30].to_vec(), Ok("1")),
        (change(&[(5, 0)]), Ok("1")),
        (change(&[(5, 2)]), Ok("1")),
        (change(&[(12, 0xc0)]), Ok("1")),
        (change(&[(12, 0x40)]), Ok("1")),
        (change(&[(11, 2)]), Ok("1")),
        (change(&[(2, 2 << 3)]), Ok("4")),
        (change(&[(2, NOTIFY << 3)]), Ok("4")),
        (change(&[(2, UPDATE << 3)]), Err(Reply::Later(Later::Update))),
        (change(&[(32, 3)]), Ok("5 ||| .41")),
        (change(&[(34, 0)]), Ok("NOERROR aa | www.example.com.1 ||| .41")),
        // An OPT of version 1: BADVERS has its upper bits in the OPT.
        (change(&[(39, 1)]), Ok("NOERROR ||| .41")),
        // Longer data than there are bytes.
        (change(&[(43, 9)]), Ok("1")),
    ] {
        let answer = ask(&table, &message, asker());
        let answer = answer.as_ref().map(|answer| said(answer)).map_err(|reply| *reply);
        assert_eq!(answer.as_deref(), wanted.as_ref().map(|said| *said), "{message:?}");
    }
    assert_eq!(ask(&table, &change(&[(39, 1)]), asker()).unwrap()[38], 1, "BADVERS is 16");
    let transfer = query("example.com", Rtype::AXFR, None);
    let over_tcp = Asker { transport: Transport::Tcp, ..asker() };
    assert_eq!(ask(&table, &transfer, over_tcp), Err(Reply::Later(Later::Transfer)));
}

#[test]
fn options_are_answered() {
    let table = table(false);
    let options = |data: &[u8], qname: &str| {
        let answer = ask(&table, &query(qname, Rtype::A, Some((data, false))), asker()).unwrap();
        let opt = answer.windows(5).rposition(|w| w == [0, 0, 41, 4, 208]).unwrap();
        let address = answer[opt - 1];
        (answer[opt + 11..].to_vec(), address)
    };
    assert_eq!(options(b"\0\x03\0\0", "www.example.com").0, b"\0\x03\0\x05node1");
    assert_eq!(options(b"\0\x99\0\x01x", "www.example.com").0, b"");
    let ours = b"\0\x08\0\x07\0\x01\x18\0\xc6\x33\x64";
    assert_eq!(
        options(ours, "geo.example.com"),
        (b"\0\x08\0\x07\0\x01\x18\x18\xc6\x33\x64".to_vec(), 1)
    );
    assert_eq!(options(ours, "www.example.com").0, b"\0\x08\0\x07\0\x01\x18\0\xc6\x33\x64");
    let other = b"\0\x08\0\x07\0\x01\x18\0\xc6\x33\x65";
    assert_eq!(
        options(other, "geo.example.com"),
        (b"\0\x08\0\x07\0\x01\x18\x18\xc6\x33\x65".to_vec(), 2)
    );
    let none = b"\0\x08\0\x04\0\x01\0\0";
    assert_eq!(options(none, "geo.example.com"), (none.to_vec(), 2));
    let (cookie, _) = options(b"\0\x0a\0\x08clientid", "www.example.com");
    assert_eq!((cookie.len(), &cookie[..12]), (28, &b"\0\x0a\0\x18clientid"[..]));
    assert_eq!(options(&cookie, "www.example.com").0, cookie);
}

#[test]
fn a_client_with_a_valid_cookie_is_not_limited() {
    let table = table(false);
    let limit = RateLimit { per_second: 1.try_into().unwrap(), slip: 1 };
    let cookies = CookieSecrets { current: [3; 16], previous: None };
    let state = State::new(Some(cookies), Some(limit), [1; 16], b"");
    let mut out = vec![0; 1232];
    let mut ask = |option: &[u8]| {
        let opt = if option.is_empty() { None } else { Some((option, false)) };
        let message = query("www.example.com", Rtype::A, opt);
        match respond(&message, asker(), &table, &state, &mut out) {
            Reply::Send(length, sent) => (sent, out[..length].to_vec()),
            other @ (Reply::Drop(_) | Reply::Later(_)) => panic!("{other:?}"),
        }
    };
    assert_eq!(ask(b"").0, Sent::Answer);
    let (sent, cut) = ask(b"");
    assert_eq!((sent, said(&cut).as_str()), (Sent::Slipped, "NOERROR tc"));
    let (sent, bad_cookie) = ask(b"\0\x0a\0\x08clientid");
    assert_eq!((sent, bad_cookie[3] & 0xf, bad_cookie[38]), (Sent::Slipped, 7, 1));
    let cookie = bad_cookie[44..].to_vec();
    for _ in 0..3 {
        assert_eq!(ask(&cookie).0, Sent::Answer);
    }
}

#[test]
fn answers_of_different_transports_have_different_room() {
    let table = table(true);
    let over_tcp = Asker { transport: Transport::Tcp, ..asker() };
    let message = query("big.example.com", Rtype::A, Some((b"", true)));
    for (asker, message, most) in [
        (asker(), &message[..], 1_232),
        (asker(), &query("big.example.com", Rtype::A, None), 512),
        (over_tcp, &message, 65_535),
    ] {
        let answer = ask(&table, message, asker).unwrap();
        assert!(answer.len() <= most);
        let is_cut = answer[2] & TC != 0;
        assert_eq!(
            (is_cut, count(&answer, 1)),
            if most < 65_535 { (true, 0) } else { (false, 101) }
        );
    }
}

/// What is wrong with zones is said, all of it.
#[test]
fn broken_zones_are_refused() {
    let build = |text: &str| {
        let spec = ZoneSpec::from_zone_file(&name("z"), text).unwrap();
        Table::build(&[spec], &mut Signatures::default(), 0).map(drop).map_err(|bad| bad.0)
    };
    let head = "@ 5 SOA ns h 1 2 3 4 5\n";
    for (text, wanted) in [
        ("@ 5 NS ns\n", Ok(())),
        ("", Err(1)),
        ("@ 5 NS ns\na 5 CNAME b\na 5 A 192.0.2.1\n", Err(1)),
        ("@ 5 NS ns\na 5 CNAME b\na 5 CNAME c\n", Err(1)),
        ("@ 5 NS ns\na.other. 5 A 192.0.2.1\nb.other. 5 A 192.0.2.1\n", Err(2)),
    ] {
        assert_eq!(build(&format!("{head}{text}")).map_err(|bad| bad.len()), wanted, "{text}");
    }
}

/// Aliases that choose among aliases: refused before their answers fill the memory.
#[test]
fn answers_that_multiply_are_refused() {
    let mut spec = spec(false);
    for n in 0..8 {
        let targets = (0..50).map(|_| {
            (1, Choice::One(vec![Rdata::name(&name(&format!("m{}.example.com", n + 1)))]))
        });
        let owner = name(&format!("m{n}.example.com"));
        let choice = Choice::Weighted(targets.collect());
        spec.sets.push(Rrset { owner, rtype: Rtype::CNAME, ttl: 5, choice });
    }
    let bad = Table::build(&[spec], &mut Signatures::default(), 0).map(drop).unwrap_err();
    assert!(bad.0.iter().any(|fault| fault.starts_with("m0.example.com.: more than")), "{bad}");
}
