//! A secondary of another make that follows by NOTIFY and IXFR.

use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};

use super::{Dir, Secondary, address, are_real, ask, build, key, spec, start, wait_for};
use outlast_dns::zone::Rtype;

/// A program that is killed at the end.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

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
