//! Records kept in servers of other makes by updates.

use std::cell::Cell;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use outlast_core::topology::{Network, Policy, RecordKind, RecordValue};
use outlast_dns::elsewhere::{
    Elsewhere, News, Outline, Provider as _, Rfc2136, Settled, Trouble, Wanted, outline, push,
};
use outlast_dns::{Algorithm, TsigKey};
use tokio::sync::watch;

use super::wants::{api, entry, record, simple, value, wanted};
use super::{Dir, Running, ZONE, are_real, ask, key, name, run, wait_for_or};

const SECRET_TEXT: &str = "aGVsbG9oZWxsb2hlbGxvaGVsbG9oZWxsb2hlbGxvIQ==";

/// A server of another make with the zone of these tests, which the key `k` may change.
struct Other {
    at: SocketAddr,
    make: &'static str,
    _running: Running,
    dir: Dir,
}

impl Other {
    fn start(make: &'static str, test: &str) -> Other {
        let dir = Dir::new(&format!("{test}-{make}"));
        let at = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).unwrap();
        let (here, port) = (dir.0.display(), at.port());
        std::fs::write(dir.0.join("zone"), ZONE).unwrap();
        let conf = match make {
            "knot" => format!(
                "server:\n  listen: 127.0.0.1@{port}\n  rundir: {here}\n\
                 database:\n  storage: {here}\n\
                 log:\n  - target: {here}/log\n    any: info\n\
                 key:\n  - id: k\n    algorithm: hmac-sha256\n    secret: {SECRET_TEXT}\n\
                 acl:\n  - id: ours\n    action: update\n    key: k\n\
                 zone:\n  - domain: example.com\n    acl: ours\n    storage: {here}\n    file: zone\n"
            ),
            "powerdns" => format!(
                "launch=gsqlite3\ngsqlite3-database={here}/db\nlocal-address=127.0.0.1\nlocal-port={port}\nsocket-dir={here}\ndnsupdate=yes\n\
                 allow-dnsupdate-from=127.0.0.1\ncache-ttl=0\nquery-cache-ttl=0\nnegquery-cache-ttl=0\nzone-cache-refresh-interval=0\n\
                 guardian=no\ndaemon=no\nsecurity-poll-suffix=\ndistributor-threads=1\n"
            ),
            _ => format!(
                "options {{ directory \"{here}\"; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; pid-file none; \
                 session-keyfile none; recursion no; dnssec-validation no; notify no; }};\n\
                 controls {{ }};\n\
                 logging {{ channel here {{ file \"{here}/log\"; severity info; }}; category default {{ here; }}; }};\n\
                 key k {{ algorithm hmac-sha256; secret \"{SECRET_TEXT}\"; }};\n\
                 zone example.com {{ type primary; file \"{here}/zone\"; update-policy {{ grant k zonesub ANY; }}; }};\n"
            ),
        };
        let file = dir.0.join(if make == "powerdns" { "pdns.conf" } else { "conf" });
        std::fs::write(&file, conf).unwrap();
        let mut command = match make {
            "knot" => Command::new("/usr/sbin/knotd"),
            "powerdns" => fill_powerdns(&dir.0),
            _ => {
                let mut named = Command::new("/usr/sbin/named");
                named.args(["-f", "-n", "1"]);
                named
            }
        };
        if make != "powerdns" {
            command.arg("-c").arg(&file);
        }
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let running = Running(child.unwrap_or_else(|error| panic!("start {make}: {error}")));
        let other = Other { at, make, _running: running, dir };
        wait_for_or(make, || other.log(), || other.ask("example.com SOA").contains(" 7 "));
        other
    }

    fn log(&self) -> String {
        let read = |file: &Path| std::fs::read_to_string(file).unwrap_or_default();
        read(&self.dir.0.join("log"))
    }

    fn ask(&self, args: &str) -> String {
        ask("dig", self.at, &format!("+short +norec +tries=1 +time=2 {args}"))
    }

    fn provider(&self, key: TsigKey) -> Rfc2136 {
        Rfc2136 { server: self.at, zone: name("example.com"), key }
    }

    /// A change that somebody else makes.
    fn change(&self, lines: &str) {
        let port = self.at.port();
        let script = format!("server 127.0.0.1 {port}\nzone example.com\n{lines}\nsend\n");
        let said = run("nsupdate", &["-v", "-y", &format!("hmac-sha256:k:{SECRET_TEXT}")], &script);
        assert!(said.is_empty(), "{said}");
    }
}

fn block<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// Makes PowerDNS's database with the zone and the key; how it is started.
fn fill_powerdns(dir: &Path) -> Command {
    let here = dir.display().to_string();
    let make =
        "import sqlite3, sys; sqlite3.connect(sys.argv[1]).executescript(open(sys.argv[2]).read())";
    let schema = "/usr/share/pdns-backend-sqlite3/schema/schema.sqlite3.sql";
    let said = run("python3", &["-c", make, &format!("{here}/db"), schema], "");
    assert!(said.is_empty(), "{said}");
    let config = format!("--config-dir={here}");
    let zone = format!("{here}/zone");
    for words in [
        &["load-zone", "example.com", &zone][..],
        &["import-tsig-key", "k", "hmac-sha256", SECRET_TEXT],
        &["set-meta", "example.com", "TSIG-ALLOW-DNSUPDATE", "k"],
    ] {
        let said = run("pdnsutil", &[&[config.as_str()], words].concat(), "");
        assert!(!said.to_lowercase().contains("error"), "{words:?}: {said}");
    }
    let mut command = Command::new("/usr/sbin/pdns_server");
    command.arg(config);
    command
}

/// What was done or would be, one line each.
fn said(result: &Result<Outline, Trouble>) -> Vec<String> {
    result
        .as_ref()
        .unwrap_or_else(|trouble| panic!("{trouble}"))
        .to_string()
        .lines()
        .map(str::to_owned)
        .collect()
}

const MAKES: [&str; 3] = ["knot", "bind", "powerdns"];

#[test]
fn a_failover_is_followed_and_foreign_records_are_left_alone() {
    if !are_real() {
        return;
    }
    for other in MAKES.map(|make| Other::start(make, "follow")) {
        let server = other.provider(key());
        let all = || {
            vec![
                api(),
                record(
                    "@",
                    RecordKind::Txt,
                    simple(vec![RecordValue::Txt("v=spf1 \"-all\"".to_owned())]),
                ),
                record(
                    "two",
                    RecordKind::Aaaa,
                    simple(vec![
                        RecordValue::Aaaa("2001:db8::1".parse().unwrap()),
                        RecordValue::Aaaa("2001:db8::2".parse().unwrap()),
                    ]),
                ),
                record(
                    "far",
                    RecordKind::Cname,
                    simple(vec![RecordValue::Cname("Target.example.net".to_owned())]),
                ),
            ]
        };
        let make = other.make;
        let now = wanted(all(), &[]);
        let plan = block(outline(&server, &now));
        let lines = [
            "+ example.com. 60 TXT \"v=spf1 \\\"-all\\\"\"",
            "+ api.example.com. 60 A 192.0.2.1",
            "+ far.example.com. 60 CNAME target.example.net.",
            "+ two.example.com. 60 AAAA 2001:db8::1",
            "+ two.example.com. 60 AAAA 2001:db8::2",
        ];
        assert_eq!(said(&plan), lines, "{make}");
        assert_eq!(other.ask("api.example.com A"), "", "{make}: a dry run changes nothing");
        assert_eq!(said(&block(push(&server, &now))), lines, "{make}\n{}", other.log());
        assert_eq!(said(&block(push(&server, &now))), [""; 0], "{make}: once more");
        assert_eq!(other.ask("api.example.com A"), "192.0.2.1\n", "{make}");
        assert_eq!(other.ask("far.example.com CNAME"), "target.example.net.\n", "{make}");

        let down = wanted(all(), &["1"]);
        let lines = ["- api.example.com. 60 A 192.0.2.1", "+ api.example.com. 30 A 192.0.2.2"];
        assert_eq!(said(&block(push(&server, &down))), lines, "{make}");
        assert_eq!(other.ask("api.example.com A"), "192.0.2.2\n", "{make}");

        let gone = wanted(vec![api()], &["1"]).after(&down);
        assert_eq!(said(&block(push(&server, &gone))).len(), 4, "{make}");
        assert_eq!(other.ask("far.example.com CNAME"), "", "{make}");
        assert_eq!(other.ask("www.example.com A"), "192.0.2.1\n", "{make}");
        assert_eq!(other.ask("alias.example.com CNAME"), "www.example.com.\n", "{make}");
    }
}

#[test]
fn what_somebody_else_changes_meanwhile_is_not_overwritten_unseen() {
    if !are_real() {
        return;
    }
    for other in MAKES.map(|make| Other::start(make, "meanwhile")) {
        let (server, make) = (other.provider(key()), other.make);
        let first = wanted(vec![api()], &[]);
        block(push(&server, &first)).unwrap();
        let down = wanted(vec![api()], &["1"]);
        let plan = block(server.plan(&down)).unwrap();
        other
            .change("update delete api.example.com A\nupdate add api.example.com 60 A 203.0.113.9");
        let stale = block(server.apply(&plan));
        assert!(matches!(stale, Err(Trouble::Changed(_))), "{make}: {stale:?}");
        assert_eq!(other.ask("api.example.com A"), "203.0.113.9\n", "{make}: nothing was done");
        let lines = ["- api.example.com. 60 A 203.0.113.9", "+ api.example.com. 30 A 192.0.2.2"];
        assert_eq!(said(&block(push(&server, &down))), lines, "{make}");
    }
}

#[test]
fn what_cannot_be_said_is_told() {
    if !are_real() {
        return;
    }
    let weighted = Policy::Weighted(vec![(1, entry(1)), (3, entry(2))]);
    let network = Network { address: [198, 51, 100, 0].into(), prefix: 24 };
    let geo = Policy::Geo { entries: vec![(vec![network], entry(3))], default: Box::new(entry(4)) };
    for other in MAKES.map(|make| Other::start(make, "told")) {
        let (server, make) = (other.provider(key()), other.make);
        let records = vec![
            record("share", RecordKind::A, weighted.clone()),
            record("geo", RecordKind::A, geo.clone()),
            // The zone has a CNAME there.
            record("alias", RecordKind::A, simple(vec![value(5)])),
            // The zone has `*.wild TXT "any"`.
            record("x.wild", RecordKind::Txt, simple(vec![RecordValue::Txt("own".to_owned())])),
        ];
        let lines = [
            "+ geo.example.com. 60 A 192.0.2.4",
            "+ share.example.com. 60 A 192.0.2.2",
            "- x.wild.example.com. 60 TXT \"any\"",
            "+ x.wild.example.com. 60 TXT \"own\"",
            "warning: share.example.com. A: an update cannot say shares; all clients there get 192.0.2.2",
            "warning: geo.example.com. A: an update cannot tell clients apart; all clients there get 192.0.2.4",
            "left alone: alias.example.com. A: there is a CNAME at this name; take it out there",
        ];
        let now = wanted(records, &[]);
        assert_eq!(said(&block(push(&server, &now))), lines, "{make}");
        assert_eq!(said(&block(push(&server, &now))).len(), 3, "{make}: once more");
        assert_eq!(other.ask("y.wild.example.com TXT"), "\"any\"\n", "{make}");
        assert_eq!(other.ask("x.wild.example.com TXT"), "\"own\"\n", "{make}");

        // A CNAME that was ours makes place for an address.
        let alias = wanted(
            vec![record(
                "alias",
                RecordKind::Cname,
                simple(vec![RecordValue::Cname("www.example.com".to_owned())]),
            )],
            &[],
        );
        let instead =
            wanted(vec![record("alias", RecordKind::A, simple(vec![value(5)]))], &[]).after(&alias);
        let lines = [
            "+ alias.example.com. 60 A 192.0.2.5",
            "- alias.example.com. 60 CNAME www.example.com.",
        ];
        assert_eq!(said(&block(push(&server, &instead))), lines, "{make}");
        assert_eq!(other.ask("alias.example.com A"), "192.0.2.5\n", "{make}");
        // What the server passes over without a word is noticed.
        let beside = wanted(
            vec![record(
                "www",
                RecordKind::Cname,
                simple(vec![RecordValue::Cname("a.example".to_owned())]),
            )],
            &[],
        );
        let trouble = block(push(&server, &beside)).expect_err("a CNAME beside addresses");
        let trouble = trouble.to_string();
        assert!(
            // PowerDNS refuses it, the others pass over it.
            trouble.contains("www.example.com. CNAME") || trouble.contains("something else stands"),
            "{make}: {trouble}"
        );

        let stranger =
            TsigKey::new(&name("k"), Algorithm::Sha256, b"another secret of such a length")
                .unwrap();
        let refused = block(push(&other.provider(stranger), &wanted(vec![api()], &[])));
        assert!(
            matches!(&refused, Err(Trouble::Never(what)) if what.contains("does not take the key k")),
            "{make}: {refused:?}"
        );
        let elsewhere = Rfc2136 { zone: name("example.org"), ..other.provider(key()) };
        let other_zone =
            Wanted::one("example.org", "api.example.org", value(1), Duration::from_secs(60))
                .unwrap();
        let refused = block(push(&elsewhere, &other_zone));
        assert!(
            matches!(&refused, Err(Trouble::Never(what)) if what.contains("with authority")),
            "{make}: {refused:?}"
        );
    }
}

#[test]
fn what_changes_is_sent_until_nobody_wants_anything() {
    if !are_real() {
        return;
    }
    let other = Other::start("knot", "reconcile");
    let server = Elsewhere::Rfc2136(other.provider(key()));
    let (want, wants) = watch::channel(None);
    let news = Cell::new(0);
    block(async {
        let (told, mut tells) = tokio::sync::mpsc::unbounded_channel();
        let mut settled = Settled::default();
        let keep = server.reconcile(wants, &mut settled, move |news| drop(told.send(news)));
        let lead = async {
            for (down, address) in
                [(&[][..], "192.0.2.1\n"), (&["1"], "192.0.2.2\n"), (&[], "192.0.2.1\n")]
            {
                want.send(Some(wanted(vec![api()], down))).unwrap();
                match tells.recv().await {
                    Some(News::AsWanted(outline)) => assert!(!outline.lines.is_empty()),
                    other => panic!("{other:?}"),
                }
                assert_eq!(other.ask("api.example.com A"), address);
                news.set(news.get() + 1);
            }
            // What was ours goes once; whoever puts it there again may keep it.
            let (before, none) = (wanted(vec![api()], &[]), wanted(Vec::new(), &[]));
            want.send(Some(none.after(&before))).unwrap();
            assert!(
                matches!(tells.recv().await, Some(News::AsWanted(outline)) if outline.lines.len() == 1)
            );
            other.change("update add api.example.com 60 A 203.0.113.9");
            want.send_modify(|_| ());
            assert!(
                matches!(tells.recv().await, Some(News::AsWanted(outline)) if outline.lines.is_empty())
            );
            assert_eq!(other.ask("api.example.com A"), "203.0.113.9\n");
            drop(want);
        };
        tokio::join!(keep, lead);
    });
    assert_eq!(news.get(), 3);
}
