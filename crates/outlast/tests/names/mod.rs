//! Names that move, on real machines of a lab: agreed on by all name servers, kept by one that is cut off, changed by
//! updates, followed by clients with ordinary tools.

use std::fs;

use serde_json::Value;

use crate::{Lab, each_user, one_user, wait_until};

const FILE: &str = r#"
[cluster]
name = "names"
data_dir = "/var/lib/outlast-of-a-test"
proxy_threads = 1
[node.a]
address = "10.0.0.1"
[node.b]
address = "10.0.0.2"
[node.c]
address = "10.0.0.3"
[node.w1]
address = "10.0.0.4"
[node.w2]
address = "10.0.0.5"
[consensus]
voters = ["a", "b", "c"]
[process.web]
nodes = ["w1", "w2"]
command = "python3 -m http.server 7001"
[dns."example.com"]
listen = "0.0.0.0:53"
rate_limit = "off"
SIGNED
records = [
  { name = "api", type = "A", policy = "failover", primary = "10.0.0.4", secondary = "10.0.0.5", ttl = "60s", probe = { tcp = true, port = 7001, every = "1s", timeout = "900ms", fall = 3, rise = 2 } },
  { name = "any", type = "TXT", values = ["fixed"] },
]
"#;

const SERVERS: [&str; 3] = ["10.0.0.1", "10.0.0.2", "10.0.0.3"];

/// What a server answers to one question, in short; nothing where it does not answer.
fn dig(lab: &Lab, from: &str, server: &str, words: &[&str]) -> String {
    let at = format!("@{server}");
    let mut all = vec!["dig", "+short", "+tries=1", "+time=1", &at];
    all.extend(words);
    let output = lab.exec(from, &all);
    let said = String::from_utf8_lossy(&output.stdout);
    said.lines().filter(|line| !line.starts_with(';')).collect::<Vec<_>>().join(" ")
}

fn address(lab: &Lab, node: &str) -> String {
    dig(lab, node, "127.0.0.1", &["api.example.com", "A"])
}

fn all_say(lab: &Lab, value: &str) {
    for server in SERVERS {
        wait_until(&format!("{server} says {value}"), || {
            dig(lab, "a", server, &["api.example.com", "A"]) == value
        });
    }
}

#[test]
fn all_name_servers_move_together_and_one_that_is_cut_off_keeps_its_answer() {
    each_user(|user| {
        let lab = Lab::up(user, &FILE.replace("SIGNED", ""));
        all_say(&lab, "10.0.0.4");
        let explained = |node: &str| {
            let output = lab.exec(node, &["outlast", "dns", "explain", "api.example.com"]);
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        // Before it is judged, a value that does not answer yet counts as healthy, too.
        wait_until("both are known to be up", || {
            explained("a").matches("its probe at port 7001 is up").count() == 2
        });
        all_say(&lab, "10.0.0.4");
        // A person says at one node that it moves soon, and all answer so.
        let ttl = |server: &str| {
            let words = ["+noshort", "+noall", "+answer", "api.example.com", "A"];
            dig(&lab, "a", server, &words).split_whitespace().nth(1).map(str::to_owned)
        };
        let lower = |more: &[&str]| {
            let words = ["outlast", "dns", "lower-ttl", "api.example.com"];
            lab.exec("b", &[words.as_slice(), more].concat())
        };
        for (more, wanted) in [(["--for", "1h"].as_slice(), "30"), (&["--end"], "60")] {
            let output = lower(more);
            assert!(output.status.success(), "{output:?}");
            for server in SERVERS {
                wait_until("it is answered", || ttl(server).as_deref() == Some(wanted));
            }
        }
        // Who sees nothing any more says what was agreed on last, and moves nobody.
        lab.good(&["cut", "c", "--for", "60s"]);
        wait_until("the others know that it is gone", || {
            let said = String::from_utf8_lossy(
                &lab.exec("a", &["outlast", "dns", "explain", "api.example.com"]).stdout,
            )
            .into_owned();
            said.contains("a client is wrong for at most") && !said.contains("c sees it")
        });
        assert_eq!(address(&lab, "c"), "10.0.0.4");
        assert_eq!(address(&lab, "a"), "10.0.0.4");
        lab.good(&["kill", "w1"]);
        for node in ["a", "b"] {
            wait_until("the others move on", || address(&lab, node) == "10.0.0.5");
        }
        assert_eq!(address(&lab, "c"), "10.0.0.4");
        lab.good(&["heal"]);
        all_say(&lab, "10.0.0.5");
        let explained = lab.exec("b", &["outlast", "dns", "explain", "api.example.com"]);
        let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
        assert!(
            explained.contains("failover: 10.0.0.5 serves, the secondary; 1 of 2 healthy"),
            "{explained}"
        );
        assert!(explained.contains("ttl 30s"), "{explained}");
        // After a restart, before it has heard of anybody, it answers as it did.
        lab.good(&["kill", "b"]);
        lab.good(&["start", "b"]);
        let mut first = String::new();
        wait_until("it answers again", || {
            first = address(&lab, "b");
            !first.is_empty()
        });
        assert_eq!(first, "10.0.0.5");
    });
}

#[test]
fn an_update_to_any_server_is_answered_by_all_and_one_to_what_the_file_has_is_refused() {
    each_user(|user| {
        let lab = Lab::new(user);
        let keys = lab.dir.join("keys");
        let key = "key \"admin\" { algorithm hmac-sha256; secret \"c2VjcmV0LWtleS1vZi0zMi1ieXRlcy1pbi1hbGw=\"; };\n";
        fs::write(&keys, key).unwrap();
        let more = format!("keys = \"{}\"\nupdate = [\"admin\"]\ndnssec = true", keys.display());
        lab.write(&FILE.replace("SIGNED", &more));
        lab.good(&["up", "lab.toml", "--detach"]);
        all_say(&lab, "10.0.0.4");
        let update = |server: &str, what: &str| {
            let script = format!(
                "printf 'server {server}\\nzone example.com\\n{what}\\nsend\\n' | nsupdate -k {}",
                keys.display()
            );
            lab.exec("a", &["sh", "-c", &script])
        };
        for (nth, server) in SERVERS.iter().enumerate() {
            let output =
                update(server, &format!("update add www{nth}.example.com 60 A 192.0.2.{nth}"));
            assert!(output.status.success(), "{server}: {output:?}");
        }
        for server in SERVERS {
            for nth in 0..3 {
                let name = format!("www{nth}.example.com");
                wait_until(&format!("{server} knows {name}"), || {
                    dig(&lab, "a", server, &[&name, "A"]) == format!("192.0.2.{nth}")
                });
            }
        }
        let refused = update("10.0.0.2", "update add api.example.com 60 A 192.0.2.9");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("REFUSED"), "{refused:?}");
        let gone = update("10.0.0.2", "update delete www0.example.com");
        assert!(gone.status.success(), "{gone:?}");
        for server in SERVERS {
            wait_until("it is gone", || {
                dig(&lab, "a", server, &["www0.example.com", "A"]).is_empty()
            });
        }
        // All sign with the same key, and have one serial.
        let keys_of = |server| dig(&lab, "a", server, &["example.com", "DNSKEY"]);
        let serial = |server| dig(&lab, "a", server, &["example.com", "SOA"]);
        for server in SERVERS {
            assert_eq!(keys_of(server), keys_of("10.0.0.1"));
            wait_until("serials are the same", || serial(server) == serial("10.0.0.1"));
        }
        let signed = dig(&lab, "a", "10.0.0.3", &["+dnssec", "api.example.com", "A"]);
        assert!(signed.contains(" A 13 3 "), "{signed}");
    });
}

const COMPANY: &str = r#"
[node.a]
address = "10.0.0.1"
[node.b]
address = "10.0.0.2"
[node.c]
address = "10.0.0.3"
"#;

#[test]
fn a_name_server_that_was_alone_brings_its_keys_and_records_along_when_it_gets_company() {
    // The first by name founds the cluster: once that is the one that was alone, and once another one.
    for alone in ["a", "c"] {
        one_user(|user| {
            let lab = Lab::new(user);
            let keys = lab.dir.join("keys");
            let key = "key \"admin\" { algorithm hmac-sha256; secret \"c2VjcmV0LWtleS1vZi0zMi1ieXRlcy1pbi1hbGw=\"; };\n";
            fs::write(&keys, key).unwrap();
            let file = |nodes: &str| {
                format!(
                    "[cluster]\nname = \"company\"\ndata_dir = \"/var/lib/outlast-of-a-test\"\nproxy_threads = 1\n{nodes}\
                     [dns.\"example.com\"]\nlisten = \"0.0.0.0:53\"\nkeys = \"{}\"\nupdate = [\"admin\"]\ndnssec = true\n\
                     records = [\n  {{ name = \"www\", type = \"A\", values = [\"192.0.2.1\"] }},\n]\n",
                    keys.display()
                )
            };
            let own = SERVERS[usize::from(alone == "c") * 2];
            lab.write(&file(&format!("[node.{alone}]\naddress = \"{own}\"\n")));
            lab.good(&["up", "lab.toml", "--detach", "--keep"]);
            let ask = |server: &str, words: &[&str]| dig(&lab, alone, server, words);
            wait_until("it answers alone", || ask(own, &["www.example.com", "A"]) == "192.0.2.1");
            let script = format!(
                "printf 'server {own}\\nzone example.com\\nupdate add added.example.com 60 A 192.0.2.7\\nsend\\n' | nsupdate -k {}",
                keys.display()
            );
            let output = lab.exec(alone, &["sh", "-c", &script]);
            assert!(output.status.success(), "{output:?}");
            wait_until("the record is there", || {
                ask(own, &["added.example.com", "A"]) == "192.0.2.7"
            });
            let key = ask(own, &["example.com", "DNSKEY"]);
            let serial = |server: &str| -> u32 {
                let soa = ask(server, &["example.com", "SOA"]);
                soa.split(' ').nth(2).and_then(|word| word.parse().ok()).unwrap_or_default()
            };
            let before = serial(own);
            assert!(!key.is_empty() && before != 0, "{key} {before}");
            lab.good(&["down"]);

            lab.write(&file(COMPANY));
            lab.good(&["up", "lab.toml", "--detach", "--keep"]);
            for server in SERVERS {
                // By then it is what all have agreed on.
                wait_until("the serial counts on", || before < serial(server));
                wait_until(&format!("{server} has what was added"), || {
                    ask(server, &["added.example.com", "A"]) == "192.0.2.7"
                });
                assert_eq!(ask(server, &["example.com", "DNSKEY"]), key, "{server}");
            }
            // Whatever is restarted has it from its disk.
            lab.good(&["kill", alone]);
            lab.good(&["start", alone]);
            wait_until("it answers again", || ask(own, &["added.example.com", "A"]) == "192.0.2.7");
            assert_eq!(ask(own, &["example.com", "DNSKEY"]), key);
        });
    }
}

/// A program that has port 53 of an address, which its machine need not have yet, until it is killed.
const TAKER: &str = r"
import os, signal, socket, sys, time
IP_FREEBIND = 15
taken = socket.socket(socket.AF_INET, getattr(socket, sys.argv[1]))
taken.setsockopt(socket.SOL_IP, IP_FREEBIND, 1)
while True:
    try:
        taken.bind(('10.0.0.77', 53))
        break
    except OSError:
        time.sleep(0.01)
if sys.argv[1] == 'SOCK_STREAM':
    taken.listen()
with open('/tmp/taker', 'w') as file:
    file.write(str(os.getpid()))
signal.pause()
";

#[test]
fn an_address_whose_port_another_program_has_is_named_and_the_others_answer() {
    one_user(|user| {
        let file = FILE.replace("SIGNED", "").replace("name = \"names\"", "name = \"taken\"");
        let lab = Lab::up(user, &file);
        let says = |server: &str| dig(&lab, "a", server, &["any.example.com", "TXT"]);
        let answers = |server: &str| {
            wait_until(&format!("{server} answers"), || says(server) == "\"fixed\"");
        };
        let trouble = || {
            let output = lab.exec("a", &["outlast", "status", "--format", "json"]);
            let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            status["dns"]["example.com"]["trouble"].as_str().map(str::to_owned)
        };
        answers("10.0.0.1");
        for kind in ["SOCK_DGRAM", "SOCK_STREAM"] {
            let mut taker = lab.command(&["exec", "a", "--", "python3", "-c", TAKER, kind]);
            let mut taker = taker.spawn().unwrap();
            wait_until("the port is taken", || {
                lab.exec("a", &["test", "-s", "/tmp/taker"]).status.success()
            });
            let address = |what| {
                let output = lab.exec("a", &["ip", "addr", what, "10.0.0.77/24", "dev", "eth0"]);
                assert!(output.status.success(), "{output:?}");
            };
            address("add");
            wait_until("it is said", || trouble().is_some());
            let said = trouble().unwrap_or_default();
            assert!(said.starts_with("listen on 10.0.0.77:53; end what uses it"), "{said}");
            assert!(said.contains("in use") && !said.contains("10.0.0.1:53"), "{said}");
            for server in ["10.0.0.1", "127.0.0.1"] {
                assert_eq!(says(server), "\"fixed\"", "{server} beside {kind}");
            }
            let ends = ["sh", "-c", "kill $(cat /tmp/taker) && rm /tmp/taker"];
            assert!(lab.exec("a", &ends).status.success());
            taker.wait().unwrap();
            // Once it is free it is taken, and nothing is wrong any more.
            answers("10.0.0.77");
            wait_until("all is well", || trouble().is_none());
            address("del");
        }
    });
}

const PAIR: &str = r#"
[cluster]
name = "pair"
data_dir = "/var/lib/outlast-of-a-test"
proxy_threads = 1
[node.a]
address = "10.0.0.1"
[node.b]
address = "10.0.0.2"
[node.c]
address = "10.0.0.3"
[consensus]
voters = ["a", "b", "c"]
[process.web]
nodes = ["a", "b"]
command = "python3 -m http.server 7001"
[service.shop]
listen = "0.0.0.0:8080"
primary = "http://10.0.0.1:7001"
backup = "http://10.0.0.2:7001"
standby = "hot"
probe = { tcp = true, every = "1s", timeout = "900ms", fall = 2, rise = 2 }
failback = "manual"
[address.edge]
ip = "10.0.0.100/24"
interface = "eth0"
follows = "service.shop"
[dns."example.com"]
listen = "0.0.0.0:53"
records = [
  { name = "shop", type = "A", policy = "failover", primary = "192.0.2.1", secondary = "192.0.2.2", follows = "service.shop", ttl = "30s" },
]
"#;

/// The stages of the last failover in a node's journal, in their order, as long as they are what they are to be.
fn stages(lab: &Lab, node: &str) -> Vec<String> {
    let output = lab.exec(node, &["outlast", "events", "--format", "json"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let events = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let stages = events.filter(|event| event["event"] == "failover_stage");
    stages.filter_map(|event| Some(event["stage"].as_str()?.to_owned())).collect()
}

#[test]
fn a_service_that_fails_over_takes_its_address_and_its_name_along_and_each_step_is_written_down() {
    each_user(|user| {
        let lab = Lab::up(user, PAIR);
        let name = |node| dig(&lab, node, "127.0.0.1", &["shop.example.com", "A"]);
        for node in ["a", "b", "c"] {
            wait_until("the primary is answered", || name(node) == "192.0.2.1");
        }
        let holds = |node: &str| {
            let here = lab.exec(node, &["ip", "-4", "addr", "show", "eth0"]);
            String::from_utf8_lossy(&here.stdout).contains("10.0.0.100")
        };
        wait_until("the address is with the primary", || holds("a"));
        lab.good(&["kill", "a"]);
        wait_until("the address is with the backup", || holds("b"));
        for node in ["b", "c"] {
            wait_until("the backup is answered", || name(node) == "192.0.2.2");
        }
        let wanted = ["detect", "switch", "address", "names"];
        wait_until("whoever decided has written down all of it", || {
            ["b", "c"].iter().any(|node| stages(&lab, node) == wanted)
        });
        // With both sides down, the last place that is known stays.
        lab.good(&["cut", "b", "--for", "60s"]);
        wait_until("the last one knows that nobody serves", || {
            let output = lab.exec("c", &["outlast", "status", "--format", "json"]);
            let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            status["services"]["shop"]["state"] == "down"
        });
        assert_eq!(name("c"), "192.0.2.2");
    });
}
