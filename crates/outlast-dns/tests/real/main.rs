//! The tools that people ask name servers with, and a secondary of another make, against a real server on loopback.
//!
//! With `OUTLAST_REAL=1` the tests run; without it they say that they did not.

#![cfg(test)]

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use outlast_dns::dnssec::{Signatures, ZoneKey};
use outlast_dns::name::Name;
use outlast_dns::server::{Config, Secondary, Server, UpdateRequest};
use outlast_dns::table::Table;
use outlast_dns::update::UpdateAnswer;
use outlast_dns::zone::{Choice, Prefix, Rdata, Rrset, Rtype, ZoneSpec};
use outlast_dns::{Algorithm, CookieSecrets, TsigKey};
use tokio::sync::mpsc;

mod elsewhere;
mod measure;
mod secondary;
#[path = "../wants/mod.rs"]
mod wants;

/// `aGVsbG9oZWxsb2hlbGxvaGVsbG9oZWxsb2hlbGxvIQ==`.
const SECRET: &[u8] = b"hellohellohellohellohellohello!";

const ZONE: &str = "\
$TTL 60
@ IN SOA ns1 host 7 300 60 604800 5
@ NS ns1
ns1 A 127.0.0.1
www A 192.0.2.1
www AAAA 2001:db8::1
alias CNAME www
*.wild TXT \"any\"
deep.between A 192.0.2.2
child NS ns.child
ns.child A 192.0.2.77
";

/// Whether these tests are to run. Then the tools have to be there.
fn are_real() -> bool {
    let real = std::env::var_os("OUTLAST_REAL").is_some_and(|value| value == "1");
    if !real {
        // Past what keeps the output of tests that pass to itself.
        let said = b"NOT RUN: with OUTLAST_REAL=1 this test asks a real server with dig, kdig, delv and nsupdate\n";
        std::io::stderr().write_all(said).ok();
    }
    real
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn now() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u32::try_from(since.as_secs()).expect("before 2106")
}

fn spec(serial: u32, extra: &[(&str, Rtype, Choice)]) -> ZoneSpec {
    let mut spec = ZoneSpec::from_zone_file(&name("example.com"), ZONE).expect("a zone file");
    spec.serial = serial;
    for (owner, rtype, choice) in extra {
        let owner = name(&format!("{owner}.example.com"));
        spec.sets.push(Rrset { owner, rtype: *rtype, ttl: 30, choice: choice.clone() });
    }
    spec
}

fn address(last: u8) -> Choice {
    Choice::One(vec![Rdata::a([10, 0, 0, last].into())])
}

fn build(spec: ZoneSpec) -> Table {
    Table::build(&[spec], &mut Signatures::default(), now()).expect("a good zone")
}

fn key() -> TsigKey {
    let mut key = TsigKey::new(&name("k"), Algorithm::Sha256, SECRET).expect("a key");
    (key.may_transfer, key.may_update) = (true, true);
    key
}

fn start(secondaries: Vec<Secondary>) -> (Server, mpsc::Receiver<UpdateRequest>) {
    let config = Config {
        cookies: Some(CookieSecrets { current: [5; 16], previous: None }),
        nsid: b"node1".to_vec(),
        keys: vec![key()],
        secondaries,
        ..Config::default()
    };
    let listen = ["127.0.0.1:0".parse().expect("an address")];
    Server::start(&listen, 1, config, Table::default()).expect("a server")
}

/// A directory of this test alone, removed at its end.
struct Dir(PathBuf);

impl Dir {
    fn new(test: &str) -> Dir {
        let path = std::env::temp_dir().join(format!("outlast-dns-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("make a directory");
        Dir(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// A server of another make, which is asked to end at the end, so that it ends its children.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        run("kill", &[&self.0.id().to_string()], "");
        self.0.wait().ok();
    }
}

/// Runs a tool; what it says, on both ways.
fn run(program: &str, args: &[&str], input: &str) -> String {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("start {program}: {error}"));
    child.stdin.take().expect("its input").write_all(input.as_bytes()).expect("give it its input");
    let output = child.wait_with_output().expect("it ends");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn ask(program: &str, server: SocketAddr, args: &str) -> String {
    let (at, port) = (format!("@{}", server.ip()), server.port().to_string());
    let args: Vec<&str> = [&at, "-p", &port].into_iter().chain(args.split_whitespace()).collect();
    run(program, &args, "")
}

fn wait_for(what: &str, is_so: impl FnMut() -> bool) {
    wait_for_or(what, String::new, is_so);
}

/// Waits until something is so; if it does not come about, `log` is shown.
fn wait_for_or(what: &str, log: impl Fn() -> String, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < end, "{what}\n{}", log());
        std::thread::yield_now();
    }
}

#[test]
fn dig_and_kdig_understand_every_answer() {
    if !are_real() {
        return;
    }
    let (server, _updates) = start(Vec::new());
    let prefix = Prefix { address: [198, 51, 100, 0].into(), length: 24 };
    let geo =
        Choice::ByClient { prefixes: vec![(prefix, address(1))], default: Box::new(address(2)) };
    let mut spec = spec(7, &[("geo", Rtype::A, geo)]);
    spec.key = Some(ZoneKey::from_pkcs8(&ZoneKey::generate().unwrap()).unwrap().into());
    server.publish(build(spec));
    let at = server.addresses()[0];
    for (args, wanted) in [
        ("+norec www.example.com A", &["NOERROR", "flags: qr aa;", "192.0.2.1"][..]),
        ("+norec +tcp www.example.com AAAA", &["NOERROR", "2001:db8::1"]),
        ("+norec +dnssec www.example.com A", &["RRSIG", "flags: do"]),
        ("+norec +tcp +dnssec no.example.com A", &["NXDOMAIN", "NSEC", "SOA"]),
        ("+norec alias.example.com A", &["CNAME", "192.0.2.1"]),
        ("+norec a.b.wild.example.com TXT", &["a.b.wild.example.com.", "any"]),
        ("+norec x.child.example.com A", &["NS", "ns.child.example.com.", "192.0.2.77"]),
        ("+norec +subnet=198.51.100.9/24 geo.example.com A", &["10.0.0.1", "198.51.100.0/24/24"]),
        ("+norec +subnet=203.0.113.9/24 geo.example.com A", &["10.0.0.2", "203.0.113.0/24/"]),
        ("+norec +nsid www.example.com A", &["NSID", "node1"]),
        ("+norec www.example.org A", &["REFUSED"]),
        ("+norec -c CH version.bind TXT", &["REFUSED"]),
        ("+norec www.example.com ANY", &["NOERROR", "192.0.2.1"]),
    ] {
        for program in ["dig", "kdig"] {
            let said = ask(program, at, args);
            let is_missing = |word: &&&str| {
                // The two write some things in their own way.
                let other = word
                    .replace("flags: do", "Flags: DO")
                    .replace("flags: qr aa;", "Flags: qr aa;");
                !said.contains(**word)
                    && !said.contains(&other)
                    && (program == "dig" || **word != "NSID")
            };
            let missing: Vec<_> = wanted.iter().filter(is_missing).collect();
            assert!(missing.is_empty(), "{program} {args}: {missing:?}\n{said}");
            let complains =
                said.to_lowercase().contains("warning: message") || said.contains("malformed");
            assert!(!complains, "{program} {args}\n{said}");
        }
    }
    let said = ask("dig", at, "+norec +cookie=0102030405060708 www.example.com A");
    assert!(said.contains("(good)"), "{said}");
    let said = ask("kdig", at, "+norec +cookie www.example.com A");
    assert!(said.contains("COOKIE"), "{said}");
    assert!(server.counters().answers > 0);
    server.stop();
}

#[test]
fn delv_validates_answers_and_denials() {
    if !are_real() {
        return;
    }
    let (server, _updates) = start(Vec::new());
    let mut spec = spec(
        7,
        &[("mixed", Rtype::A, Choice::Weighted(vec![(1, address(1)), (1, Choice::Empty)]))],
    );
    let key = ZoneKey::from_pkcs8(&ZoneKey::generate().unwrap()).unwrap();
    let ds = key.ds(&spec.name).0;
    let hex: String = ds[4..].iter().map(|byte| format!("{byte:02X}")).collect();
    let anchor =
        format!("trust-anchors {{ example.com. static-ds {} 13 2 \"{hex}\"; }};\n", key.tag());
    spec.key = Some(key.into());
    server.publish(build(spec));
    let dir = Dir::new("delv");
    let file = dir.0.join("anchor");
    std::fs::write(&file, anchor).unwrap();
    let file = file.display();
    for (question, wanted) in [
        ("www.example.com A", "; fully validated"),
        ("alias.example.com AAAA", "; fully validated"),
        ("x.wild.example.com TXT", "; fully validated"),
        ("example.com DNSKEY", "; fully validated"),
        ("example.com CDS", "; fully validated"),
        ("example.com NSEC", "; fully validated"),
        ("www.example.com TXT", "; negative response, fully validated"),
        ("between.example.com A", "; negative response, fully validated"),
        ("x.wild.example.com A", "; negative response, fully validated"),
        ("no.example.com A", "; negative response, fully validated"),
        ("no.www.example.com A", "; negative response, fully validated"),
        ("mixed.example.com A", "fully validated"),
        ("mixed.example.com A", "fully validated"),
        ("mixed.example.com A", "fully validated"),
        ("mixed.example.com A", "fully validated"),
    ] {
        let said =
            ask("delv", server.addresses()[0], &format!("-a {file} +root=example.com {question}"));
        assert!(said.contains(wanted), "{question}\n{said}");
    }
}

#[test]
fn nsupdate_changes_a_zone_and_dig_transfers_it_and_its_changes() {
    if !are_real() {
        return;
    }
    let (server, mut updates) = start(Vec::new());
    server.publish(build(spec(7, &[("gone", Rtype::A, address(9))])));
    let at = server.addresses()[0];
    let decide = std::thread::spawn(move || {
        let UpdateRequest { update, answer, .. } = updates.blocking_recv().expect("an update");
        answer.send(UpdateAnswer::Done).expect("somebody waits");
        let UpdateRequest { answer, .. } = updates.blocking_recv().expect("another");
        answer.send(UpdateAnswer::NoSuchSet).expect("somebody waits");
        update
    });
    let secret = "hmac-sha256:k aGVsbG9oZWxsb2hlbGxvaGVsbG9oZWxsb2hlbGxvIQ==";
    let head = format!("server {} {}\nzone example.com\n", at.ip(), at.port());
    let good = format!(
        "{head}key {secret}\nprereq yxdomain www.example.com\nprereq nxrrset www.example.com TXT\n\
         update add new.example.com 30 A 192.0.2.99\nupdate delete gone.example.com A\nsend\nanswer\n"
    );
    let said = run("nsupdate", &[], &good);
    assert!(said.contains("NOERROR"), "{said}");
    let said =
        run("nsupdate", &["-v"], &format!("{head}key {secret}\nprereq yxrrset www TXT\nsend\n"));
    assert!(said.contains("NOTZONE") || said.contains("NXRRSET"), "{said}");
    let said = run(
        "nsupdate",
        &["-v"],
        &format!("{head}key {secret}\nprereq yxrrset www.example.com TXT\nsend\n"),
    );
    assert!(said.contains("NXRRSET"), "{said}");
    let update = decide.join().expect("both came");
    assert_eq!((update.prerequisites.len(), update.changes.len(), update.key), (2, 2, name("k")));
    let said =
        run("nsupdate", &[], &format!("{head}update add x.example.com 30 A 192.0.2.1\nsend\n"));
    assert!(said.contains("REFUSED"), "{said}");
    let wrong = secret.replace("aGVsbG9o", "aGVsbG9i");
    let said = run(
        "nsupdate",
        &[],
        &format!("{head}key {wrong}\nupdate add x.example.com 30 A 192.0.2.1\nsend\n"),
    );
    assert!(said.contains("BADSIG") || said.contains("NOTAUTH"), "{said}");

    server.publish(build(spec(8, &[("new", Rtype::A, address(99))])));
    let said = ask("dig", at, "example.com AXFR");
    assert!(said.contains("Transfer failed"), "{said}");
    let said = ask("dig", at, &format!("-y {} example.com AXFR", secret.replace(' ', ":")));
    assert!(said.contains("XFR size: 12 records") && said.contains("10.0.0.99"), "{said}");
    let said = ask("kdig", at, &format!("-y {} example.com IXFR=7", secret.replace(' ', ":")));
    let is_record = |line: &&str| line.contains("IN") && !line.starts_with(';');
    let records: Vec<&str> = said.lines().filter(is_record).collect();
    assert_eq!(records.len(), 6, "{said}");
    assert!(records[2].contains("10.0.0.9") && records[4].contains("10.0.0.99"), "{said}");
    let said = ask("dig", at, &format!("-y {} example.com IXFR=8", secret.replace(' ', ":")));
    assert!(said.contains("XFR size: 1 records"), "{said}");
    let said = ask("dig", at, &format!("-y {} example.com IXFR=3", secret.replace(' ', ":")));
    assert!(said.contains("XFR size: 12 records"), "{said}");
    let said = ask("dig", at, &format!("-y {} example.com SOA", secret.replace(' ', ":")));
    assert!(
        said.contains("NOERROR")
            && said.contains("TSIG")
            && !said.contains("could not be validated"),
        "{said}"
    );
}
