//! The addresses of backends that are named by host.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use outlast_core::topology::Topology;
use tokio::sync::mpsc;

use super::super::table::Resolved;
use super::{Loop, Said};

/// A lookup may take this long; the system's resolver usually gives up earlier.
const LOOKUP_MAX: Duration = Duration::from_secs(30);

/// What is known of names, and what is being asked.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Addresses as last resolved.
    pub(super) known: Resolved,
    /// One question a name at a time.
    asked: BTreeSet<String>,
}

impl Names {
    pub(super) fn new(known: Resolved) -> Names {
        Names { known, asked: BTreeSet::new() }
    }

    /// Takes the names of a topology: forgets those that it does not have, returns those that are to be asked now.
    fn follow(&mut self, topology: &Topology) -> Vec<String> {
        let hosts: BTreeSet<&String> = topology
            .services
            .values()
            .flat_map(|s| s.pool.backends())
            .map(|b| &b.host)
            .filter(|host| host.parse::<IpAddr>().is_err())
            .collect();
        self.known.retain(|host, _| hosts.contains(host));
        let new: Vec<String> =
            hosts.into_iter().filter(|host| !self.asked.contains(*host)).cloned().collect();
        self.asked.extend(new.iter().cloned());
        new
    }

    /// Takes an answer; true if it changes what is known.
    fn answer(
        &mut self,
        topology: &Topology,
        host: &str,
        found: Result<Vec<IpAddr>, String>,
    ) -> bool {
        self.asked.remove(host);
        let backends = topology.services.values().flat_map(|s| s.pool.backends());
        if !backends.into_iter().any(|b| b.host == host) {
            // A reload has taken it away while it was asked.
            return false;
        }
        let found = match found {
            Ok(found) => found,
            // The last known address stays in force.
            Err(error) => {
                tracing::warn!(error, host, "resolve a backend");
                return false;
            }
        };
        // The same answer in another order is no change.
        let keeps = self.known.get(host).is_some_and(|ip| found.contains(ip));
        match found.first() {
            Some(&first) if !keeps => {
                self.known.insert(host.to_owned(), first);
                true
            }
            Some(_) | None => false,
        }
    }
}

impl Loop {
    /// Resolves the host names of backends in the background; each answer comes back on its own.
    pub(super) fn resolve(&mut self) {
        for host in self.names.follow(&self.topology) {
            // Bounded by LOOKUP_MAX; one for each name.
            drop(tokio::task::spawn(look_up(host, self.sender.clone())));
        }
    }

    pub(super) fn hear_address(&mut self, host: &str, found: Result<Vec<IpAddr>, String>) {
        if self.names.answer(&self.topology, host, found) {
            self.publish();
        }
    }
}

async fn look_up(host: String, inbox: mpsc::Sender<Said>) {
    let asked = tokio::net::lookup_host((host.as_str(), 0));
    let found = match tokio::time::timeout(LOOKUP_MAX, asked).await {
        Ok(Ok(found)) => Ok(found.map(|a| a.ip()).collect()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_elapsed) => Err(format!("no answer within {LOOKUP_MAX:?}")),
    };
    // An agent that is ending needs no answer.
    inbox.send(Said::Resolved { host, found }).await.ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology(hosts: &[&str]) -> Topology {
        let backends: Vec<String> = hosts.iter().map(|h| format!("\"http://{h}:80\"")).collect();
        let text = format!(
            "[cluster]\nname = \"t\"\n[service.web]\nlisten = \"127.0.0.1:1\"\nbackends = [{}]\nprobe = {{ http = \"/\" }}\n",
            backends.join(", ")
        );
        crate::file::parse("t", &text).map_err(|c| c.to_string()).unwrap()
    }

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn a_late_answer_changes_its_own_name_only() {
        let both = topology(&["a.test", "b.test", "10.0.0.9"]);
        let mut names = Names::new(Resolved::from([("a.test".to_owned(), ip(1))]));
        assert_eq!(names.follow(&both), ["a.test", "b.test"]);
        assert_eq!(names.follow(&both), [""; 0], "one question at a time");
        // `b` is slow; meanwhile `a` gets another address, twice.
        assert!(names.answer(&both, "a.test", Ok(vec![ip(2)])));
        assert_eq!(names.follow(&both), ["a.test"]);
        assert!(names.answer(&both, "a.test", Ok(vec![ip(3)])));
        assert!(names.answer(&both, "b.test", Ok(vec![ip(7), ip(8)])));
        let known = Resolved::from([("a.test".to_owned(), ip(3)), ("b.test".to_owned(), ip(7))]);
        assert_eq!(names.known, known);
        names.follow(&both);
        assert!(!names.answer(&both, "b.test", Ok(vec![ip(8), ip(7)])), "another order");
        assert!(!names.answer(&both, "a.test", Err("timed out".to_owned())));
        assert_eq!(names.known, known);
        // A reload takes `b` away while it is asked.
        names.follow(&both);
        let one = topology(&["a.test"]);
        names.follow(&one);
        assert!(!names.answer(&one, "b.test", Ok(vec![ip(5)])));
        assert_eq!(names.known, Resolved::from([("a.test".to_owned(), ip(3))]));
    }
}
