//! A secondary of another make that follows by NOTIFY and IXFR.

use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::sync::Arc;

use outlast_dns::dnssec::ZoneKey;
use outlast_dns::remote::{self, RemoteError};
use outlast_dns::update::{Change, Prerequisite};
use outlast_dns::zone::{Choice, Rdata, Record, ZoneSpec};
use outlast_dns::{Algorithm, TsigKey};

use super::{
    Dir, Running, SECRET, Secondary, ZONE, address, are_real, ask, build, key, name, spec, start,
    wait_for, wait_for_or,
};
use outlast_dns::zone::Rtype;

#[test]
fn knot_follows_by_notify_and_incremental_transfer() {
    if !are_real() {
        return;
    }
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let knot = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let (server, _updates) = start(vec![Secondary { address: knot, key: Some(key()) }]);
    server.publish(build(spec(7, &[])));
    let dir = Dir::new("knot");
    let here = dir.0.display();
    let ours = server.addresses()[0].port();
    let conf = format!(
        "server:\n  listen: 127.0.0.1@{port}\n  rundir: {here}\n\
         database:\n  storage: {here}\n\
         log:\n  - target: {here}/log\n    any: info\n\
         key:\n  - id: k\n    algorithm: hmac-sha256\n    secret: aGVsbG9oZWxsb2hlbGxvaGVsbG9oZWxsb2hlbGxvIQ==\n\
         remote:\n  - id: primary\n    address: 127.0.0.1@{ours}\n    key: k\n\
         acl:\n  - id: told\n    action: notify\n    key: k\n\
         zone:\n  - domain: example.com\n    master: primary\n    acl: told\n    storage: {here}\n"
    );
    let file = dir.0.join("knot.conf");
    std::fs::write(&file, conf).unwrap();
    let child = Command::new("/usr/sbin/knotd").arg("-c").arg(&file).stdout(Stdio::null()).spawn();
    let _knot = Running(child.expect("start knotd"));
    let log = || std::fs::read_to_string(dir.0.join("log")).unwrap_or_default();
    wait_for("the first transfer", || ask("kdig", knot, "+short example.com SOA").contains(" 7 "));
    server.publish(build(spec(8, &[("new", Rtype::A, address(1))])));
    wait_for("the change", || ask("kdig", knot, "+short new.example.com A").contains("10.0.0.1"));
    server.publish(build(spec(9, &[])));
    wait_for("the next", || ask("kdig", knot, "new.example.com A").contains("NXDOMAIN"));
    let log = log();
    let is_incremental = log
        .lines()
        .filter(|line| line.contains("IXFR, incoming") && line.contains("finished"))
        .count();
    assert_eq!(is_incremental, 2, "{log}");
    assert!(log.contains("notify, incoming") && !log.contains("fallback to AXFR"), "{log}");
}

/// Knot checks every signature and the chain of denials before it takes a zone.
#[test]
fn knot_validates_the_signed_zone_that_it_follows() {
    if !are_real() {
        return;
    }
    let knot = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (server, _updates) = start(vec![Secondary { address: knot, key: Some(key()) }]);
    let zone_key: Arc<ZoneKey> = ZoneKey::from_pkcs8(&ZoneKey::generate().unwrap()).unwrap().into();
    let signed = |serial, extra: &[(&str, Rtype, Choice)]| {
        build(ZoneSpec { key: Some(zone_key.clone()), ..spec(serial, extra) })
    };
    server.publish(signed(7, &[]));
    let dir = Dir::new("signed");
    let here = dir.0.display();
    let conf = format!(
        "server:\n  listen: 127.0.0.1@{}\n  rundir: {here}\n\
         database:\n  storage: {here}\n\
         log:\n  - target: {here}/log\n    any: info\n\
         key:\n  - id: k\n    algorithm: hmac-sha256\n    secret: aGVsbG9oZWxsb2hlbGxvaGVsbG9oZWxsb2hlbGxvIQ==\n\
         remote:\n  - id: primary\n    address: 127.0.0.1@{}\n    key: k\n\
         acl:\n  - id: told\n    action: notify\n    key: k\n\
         zone:\n  - domain: example.com\n    master: primary\n    acl: told\n    storage: {here}\n    dnssec-validation: on\n",
        knot.port(),
        server.addresses()[0].port()
    );
    let file = dir.0.join("knot.conf");
    std::fs::write(&file, conf).unwrap();
    let child = Command::new("/usr/sbin/knotd").arg("-c").arg(&file).stdout(Stdio::null()).spawn();
    let _knot = Running(child.expect("start knotd"));
    let log = || std::fs::read_to_string(dir.0.join("log")).unwrap_or_default();
    wait_for("the first transfer", || {
        assert!(!log().contains("validation failed"), "{}", log());
        ask("kdig", knot, "+short example.com SOA").contains(" 7 ")
    });
    server.publish(signed(8, &[("new", Rtype::A, address(1))]));
    wait_for("the change", || ask("kdig", knot, "+short new.example.com A").contains("10.0.0.1"));
    assert!(log().contains("DNSSEC, validation successful"), "{}", log());
}

/// NSD asks for changes and takes the zone whole where we give it whole.
#[test]
fn nsd_follows_by_notify() {
    if !are_real() {
        return;
    }
    let nsd = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (server, _updates) = start(vec![Secondary { address: nsd, key: Some(key()) }]);
    server.publish(build(spec(7, &[])));
    let dir = Dir::new("nsd");
    let here = dir.0.display();
    let conf = format!(
        "server:\n  ip-address: 127.0.0.1@{}\n  server-count: 1\n  username: \"\"\n  zonesdir: {here}\n  pidfile: {here}/pid\n\
         \x20 xfrdfile: {here}/xfrd\n  xfrdir: {here}\n  zonelistfile: {here}/list\n  logfile: {here}/log\n  database: \"\"\n  rrl-ratelimit: 0\n\
         remote-control:\n  control-enable: no\n\
         key:\n  name: k\n  algorithm: hmac-sha256\n  secret: aGVsbG9oZWxsb2hlbGxvaGVsbG9oZWxsb2hlbGxvIQ==\n\
         zone:\n  name: example.com\n  zonefile: zone\n  request-xfr: 127.0.0.1@{} k\n  allow-notify: 127.0.0.1 k\n",
        nsd.port(),
        server.addresses()[0].port()
    );
    let file = dir.0.join("nsd.conf");
    std::fs::write(&file, conf).unwrap();
    let child =
        Command::new("/usr/sbin/nsd").args(["-d", "-c"]).arg(&file).stderr(Stdio::null()).spawn();
    let _nsd = Running(child.expect("start nsd"));
    let log = || std::fs::read_to_string(dir.0.join("log")).unwrap_or_default();
    wait_for_or("the first transfer", log, || {
        ask("kdig", nsd, "+short example.com SOA").contains(" 7 ")
    });
    server.publish(build(spec(8, &[("new", Rtype::A, address(1))])));
    wait_for("the change", || ask("kdig", nsd, "+short new.example.com A").contains("10.0.0.1"));
}

#[test]
fn knot_takes_our_updates() {
    if !are_real() {
        return;
    }
    let knot = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dir = Dir::new("remote");
    let here = dir.0.display();
    let conf = format!(
        "server:\n  listen: 127.0.0.1@{}\n  rundir: {here}\n\
         database:\n  storage: {here}\n\
         key:\n  - id: k\n    algorithm: hmac-sha256\n    secret: aGVsbG9oZWxsb2hlbGxvaGVsbG9oZWxsb2hlbGxvIQ==\n\
         acl:\n  - id: ours\n    action: update\n    key: k\n\
         zone:\n  - domain: example.com\n    acl: ours\n    storage: {here}\n    file: zone\n",
        knot.port()
    );
    let file = dir.0.join("knot.conf");
    std::fs::write(&file, conf).unwrap();
    std::fs::write(dir.0.join("zone"), ZONE).unwrap();
    let child = Command::new("/usr/sbin/knotd").arg("-c").arg(&file).stdout(Stdio::null()).spawn();
    let _knot = Running(child.expect("start knotd"));
    wait_for("knot", || ask("kdig", knot, "+short example.com SOA").contains(" 7 "));

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let zone = name("example.com");
    let update = |key: &TsigKey, prerequisites: &[Prerequisite], changes: &[Change]| {
        runtime.block_on(remote::update(knot, &zone, key, prerequisites, changes))
    };
    let new = name("new.example.com");
    let data = Rdata::a([10, 0, 0, 7].into());
    let add = Change::Add(Record { owner: new.clone(), rtype: Rtype::A, ttl: 30, data });
    assert!(update(&key(), &[], std::slice::from_ref(&add)).is_ok());
    assert!(ask("kdig", knot, "+short new.example.com A").contains("10.0.0.7"));
    let absent = [Prerequisite::NameNotInUse(new.clone())];
    let refused = update(&key(), &absent, &[Change::DeleteName(new.clone())]);
    assert!(matches!(refused, Err(RemoteError::Refused(6))), "{refused:?}");
    let present = [Prerequisite::NameInUse(new.clone())];
    assert!(update(&key(), &present, &[Change::DeleteName(new)]).is_ok());
    assert!(ask("kdig", knot, "new.example.com A").contains("NXDOMAIN"));
    let stranger = TsigKey::new(&name("stranger"), Algorithm::Sha256, SECRET).unwrap();
    let refused = update(&stranger, &[], &[add]);
    assert!(matches!(refused, Err(RemoteError::NotSigned(9))), "{refused:?}");
}
