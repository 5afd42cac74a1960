//! The name server of a node that is alone: what people do with it, and what must not take it away.

use std::process::Command;

use rustix::process::Signal;

use super::stage::{Backend, Stage, free_port, kill, wait_until};

const KEY: &str = "key \"admin\" { algorithm hmac-sha256; secret \"c2VjcmV0LWtleS1vZi0zMi1ieXRlcy1pbi1hbGw=\"; };\n";

/// What is answered to one question, in short; nothing where nobody answers.
fn dig(port: u16, words: &[&str]) -> String {
    let mut command = Command::new("dig");
    command.args(["@127.0.0.1", "-p", &port.to_string(), "+short", "+tries=1", "+time=1"]);
    let output = command.args(words).output().expect("bind9-dnsutils is installed");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.lines().filter(|line| !line.starts_with(';')).collect::<Vec<_>>().join(" ")
}

/// The same with all that is said.
fn whole(port: u16, name: &str) -> String {
    let mut command = Command::new("dig");
    command.args(["@127.0.0.1", "-p", &port.to_string(), "+tries=1", "+time=1", name, "A"]);
    let output = command.output().expect("bind9-dnsutils is installed");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn says(port: u16, name: &str, kind: &str, value: &str) {
    wait_until(&format!("{name} {kind} is {value}"), || dig(port, &[name, kind]) == value);
}

#[test]
fn a_zone_file_is_taken_in_and_a_pin_decides_until_it_is_taken_out() {
    let backend = Backend::start("b1");
    let (stage, port) = (Stage::new("alone"), free_port());
    let probed = backend.url().rsplit(':').next().expect("it has a port").to_owned();
    stage.write(&format!(
        "[dns.\"example.com\"]\nlisten = \"127.0.0.1:{port}\"\nrecords = [\n  {{ name = \"api\", type = \"A\", policy = \
         \"failover\", primary = \"127.0.0.1\", secondary = {{ value = \"192.0.2.2\", probe = \"service.none\" }}, probe = \
         {{ tcp = true, port = {probed}, every = \"500ms\", timeout = \"400ms\" }} }},\n]\n\
         [service.none]\nlisten = \"127.0.0.1:{}\"\nbackends = [\"{}\"]\n",
        free_port(),
        backend.url()
    ));
    let agent = stage.start();
    says(port, "api.example.com", "A", "127.0.0.1");

    let file = stage.data().with_file_name("example.zone");
    let zone = "$ORIGIN example.com.\n$TTL 300\n@ IN SOA ns hostmaster 1 2 3 4 5\n@ IN NS ns\n\
                @ IN MX 10 mail\nmail IN A 192.0.2.7\napi IN A 192.0.2.9\n";
    std::fs::write(&file, zone).expect("the directory is ours");
    let (obeyed, said) = stage.verb(&["dns", "import", "example.com", &file.display().to_string()]);
    assert!(obeyed && said.contains("2 records") && said.contains("left out"), "{said}");
    says(port, "example.com", "MX", "10 mail.example.com.");
    says(port, "mail.example.com", "A", "192.0.2.7");
    // What the topology has stays the topology's.
    says(port, "api.example.com", "A", "127.0.0.1");

    let (obeyed, said) = stage.verb(&["dns", "pin", "api.example.com", "192.0.2.9"]);
    assert!(!obeyed && said.contains("is none of"), "{said}");
    let (obeyed, said) = stage.verb(&["dns", "pin", "api.example.com", "192.0.2.2"]);
    assert!(obeyed, "{said}");
    says(port, "api.example.com", "A", "192.0.2.2");
    let (_, said) = stage.verb(&["dns", "explain", "api.example.com"]);
    assert!(said.contains("192.0.2.2 serves") && said.contains("pinned"), "{said}");
    let (obeyed, said) = stage.verb(&["dns", "pin", "api.example.com", "127.0.0.1"]);
    assert!(obeyed, "{said}");
    says(port, "api.example.com", "A", "127.0.0.1");
    let (obeyed, said) = stage.verb(&["dns", "unpin", "api.example.com"]);
    assert!(obeyed, "{said}");

    // People say that it moves soon: of any record, until it ends by itself or they say so.
    let ttl = |name: &str| {
        let (_, said) = stage.verb(&["dns", "explain", name]);
        said.lines().next().unwrap_or_default().split("ttl ").last().unwrap_or_default().to_owned()
    };
    let answered = || {
        let said = dig(port, &["+noshort", "+noall", "+answer", "api.example.com", "A"]);
        said.split_whitespace().nth(1).map(str::to_owned)
    };
    assert_eq!((ttl("api.example.com").as_str(), answered().as_deref()), ("60s", Some("60")));
    let lower =
        |more: &[&str]| stage.verb(&[&["dns", "lower-ttl", "api.example.com"], more].concat());
    let (obeyed, said) = lower(&["--for", "25h"]);
    assert!(!obeyed && said.contains("write 1d or less"), "{said}");
    let (obeyed, said) = stage.verb(&["dns", "lower-ttl", "mail.example.com", "--for", "1h"]);
    assert!(!obeyed && said.contains("no record of the topology"), "{said}");
    let (obeyed, said) = lower(&["--for", "1h"]);
    assert!(obeyed && said.contains("remembered for 30s until"), "{said}");
    wait_until("the lower ttl is answered", || answered().as_deref() == Some("30"));
    assert_eq!(ttl("api.example.com"), "30s as a person asked");
    let (_, said) = stage.verb(&["status"]);
    assert!(said.contains("ttl 30s (lowered until 20"), "{said}");
    let (obeyed, said) = lower(&["--end"]);
    assert!(obeyed && said.contains("remembered for 1m again"), "{said}");
    wait_until("the ttl is as ever", || answered().as_deref() == Some("60"));
    let (obeyed, said) = lower(&["--for", "1ms"]);
    assert!(obeyed, "{said}");
    wait_until("it ends by itself", || ttl("api.example.com") == "60s");

    // Killed and started again, it has all of it with its first answer, and waits for nothing but its disk.
    drop(agent);
    let proxies = stage.proxies();
    assert!(!proxies.is_empty());
    proxies.iter().for_each(|&proxy| kill(proxy, Signal::STOP));
    let mut agent = stage.spawn();
    let mut first = String::new();
    wait_until("it answers again", || {
        first = whole(port, "mail.example.com");
        first.contains("status: ")
    });
    assert!(first.contains("NOERROR") && first.contains("192.0.2.7"), "{first}");
    assert_eq!(stage.proxies(), proxies);
    assert!(stage.status().is_none(), "the agent still waits for its proxy");
    proxies.iter().for_each(|&proxy| kill(proxy, Signal::CONT));
    stage.wait_for_agent(&mut agent);
    assert_eq!(stage.proxies(), proxies);
}

#[test]
fn a_file_of_keys_that_cannot_be_read_takes_no_answer_away() {
    let (stage, port) = (Stage::new("keys"), free_port());
    let keys = stage.data().with_file_name("keys");
    std::fs::write(&keys, KEY).expect("the directory is ours");
    stage.write(&format!(
        "[dns.\"example.com\"]\nlisten = \"127.0.0.1:{port}\"\nkeys = \"{}\"\nupdate = [\"admin\"]\nrecords = [\n  \
         {{ name = \"www\", type = \"A\", values = [\"192.0.2.1\"] }},\n]\n",
        keys.display()
    ));
    let _agent = stage.start();
    says(port, "www.example.com", "A", "192.0.2.1");
    std::fs::write(&keys, "key \"admin\" { nonsense").expect("the directory is ours");
    wait_until("it is said", || {
        let (_, said) = stage.verb(&["status"]);
        said.contains("nonsense")
    });
    assert_eq!(dig(port, &["www.example.com", "A"]), "192.0.2.1");
}
