//! What people ask through the admin socket.

use std::net::IpAddr;

use outlast_core::agent::Input;
use tokio::sync::oneshot;

use super::Loop;
use crate::names;

/// What a person asks through the admin socket.
#[derive(Debug)]
pub(in crate::agent) enum Request {
    Reload {
        answer: oneshot::Sender<Result<String, String>>,
    },
    Drain {
        service: String,
        backend: String,
        on: bool,
        answer: oneshot::Sender<Result<String, String>>,
    },
    Failback {
        service: String,
        answer: oneshot::Sender<Result<String, String>>,
    },
    Explain {
        name: String,
        from: Option<IpAddr>,
        answer: oneshot::Sender<Result<String, String>>,
    },
    /// What only the name servers can do.
    Names(names::Ask),
    Upgrade {
        answer: oneshot::Sender<Result<String, String>>,
    },
    Stop {
        answer: oneshot::Sender<Result<String, String>>,
    },
}

impl Loop {
    pub(super) fn answer(&mut self, request: Request) {
        match request {
            Request::Reload { answer } => {
                let result = self.reload();
                answer.send(result).ok();
            }
            Request::Drain { service, backend, on, answer } => {
                let known = self
                    .topology
                    .services
                    .get(&service)
                    .is_some_and(|s| s.pool.backends().iter().any(|b| b.url == backend));
                if !known {
                    let backends: Vec<String> =
                        self.topology.services.get(&service).map_or_else(Vec::new, |s| {
                            s.pool.backends().iter().map(|b| b.url.clone()).collect()
                        });
                    let have = if backends.is_empty() {
                        format!("there is no service `{service}`")
                    } else {
                        format!(
                            "service `{service}` has no backend `{backend}`; it has {}",
                            backends.join(", ")
                        )
                    };
                    answer.send(Err(have)).ok();
                    return;
                }
                self.step(Input::Drain { service, backend: backend.clone(), on });
                answer
                    .send(Ok(if on {
                        format!("{backend} drains")
                    } else {
                        format!("{backend} serves again")
                    }))
                    .ok();
            }
            Request::Failback { service, answer } => self.let_fail_back(service, answer),
            Request::Explain { name, from, answer } => {
                answer.send(self.explain(&name, from)).ok();
            }
            Request::Names(ask) => self.name_servers.ask(ask),
            // Handled by the loop, because they end it.
            Request::Upgrade { answer } | Request::Stop { answer } => {
                answer.send(Err("not now".to_owned())).ok();
            }
        }
    }
}
