//! A `[process.NAME]` as a Kubernetes Deployment, with the same numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use outlast_core::topology::{
    Authority, Check, Command, HttpCheck, HttpTarget, PartRef, Probe, Process, StatusSet, Topology,
};
use serde_json::{Map, Value, json};

use super::yaml::to_yaml;

/// The label by which the Deployment finds its Pods.
const NAME_LABEL: &str = "app.kubernetes.io/name";
/// Of a DNS label (RFC 1123), and so of an object's name and a label's value.
const NAME_MAX: usize = 63;
/// The status codes that a Kubernetes probe counts as success.
const KUBERNETES_SUCCESS: (u16, u16) = (200, 399);

/// The Deployment (apps/v1) of a process, or what the file must say before there can be one.
pub fn deployment(topology: &Topology, process: &str) -> Result<Value, String> {
    export(topology, process).map(|(manifest, _)| manifest)
}

/// The Deployment as YAML, and above it as comments what Kubernetes does otherwise than the agent.
pub fn deployment_yaml(topology: &Topology, process: &str) -> Result<String, String> {
    let (manifest, notes) = export(topology, process)?;
    let comments: String = notes.iter().map(|note| format!("# {note}\n")).collect();
    Ok(comments + &to_yaml(&manifest))
}

fn export(topology: &Topology, name: &str) -> Result<(Value, Vec<String>), String> {
    let Some(process) = topology.processes.get(name) else {
        let known: Vec<&str> = topology.processes.keys().map(String::as_str).collect();
        return Err(match known.as_slice() {
            [] => "the file has no [process.NAME] to export".to_owned(),
            known => format!("there is no process `{name}`: name one of {}", known.join(", ")),
        });
    };
    let mut export = Export { name, notes: Vec::new() };
    let manifest = export.manifest(process)?;
    Ok((manifest, export.notes))
}

/// The export of one process, and what is lost by it.
struct Export<'a> {
    name: &'a str,
    notes: Vec<String>,
}

impl Export<'_> {
    fn manifest(&mut self, process: &Process) -> Result<Value, String> {
        let object_name = self.object_name()?;
        let labels = json!({ NAME_LABEL: object_name });
        let pod = json!({
            "affinity": apart_from(&labels),
            "containers": [self.container(&object_name, process)?],
            "terminationGracePeriodSeconds": self.seconds("stop_timeout", process.stop_timeout),
        });
        self.note_needs(&process.needs);
        Ok(json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": { "name": object_name, "labels": labels },
            "spec": {
                // A file without nodes is about one machine.
                "replicas": process.nodes.len().max(1),
                "selector": { "matchLabels": labels },
                "template": { "metadata": { "labels": labels }, "spec": pod },
            },
        }))
    }

    /// Kubernetes names are lower case, with `-` for every other sign.
    fn object_name(&self) -> Result<String, String> {
        let name: String = self
            .name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
            .collect();
        let name = name.trim_matches('-');
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(self.fault(&format!(
                "its name makes no Kubernetes name: take 1 to {NAME_MAX} letters, digits and `-`"
            )));
        }
        Ok(name.to_owned())
    }

    fn container(&mut self, object_name: &str, process: &Process) -> Result<Value, String> {
        let Some(image) = &process.image else {
            return Err(self.fault(
                "it names no container image: write `image = \"registry.example.com/api:1.2\"`",
            ));
        };
        let mut container = Map::new();
        container.insert("name".to_owned(), json!(object_name));
        container.insert("image".to_owned(), json!(image));
        container.insert("command".to_owned(), verbatim_all(&process.command));
        if let Some(directory) = &process.directory {
            container.insert("workingDir".to_owned(), json!(directory));
        }
        if !process.environment.is_empty() {
            container.insert("env".to_owned(), named_values(&process.environment));
        }
        if let Some(user) = &process.user {
            match user.parse::<u32>() {
                Ok(uid) => {
                    container.insert("securityContext".to_owned(), json!({ "runAsUser": uid }));
                }
                Err(_) => self.notes.push(format!(
                    "user = {user:?} is left out: Kubernetes wants a number, or the image says USER"
                )),
            }
        }
        let limits = self.limits(process);
        if !limits.is_empty() {
            container.insert("resources".to_owned(), json!({ "limits": limits }));
        }
        let mut ports = BTreeSet::new();
        for (word, key, probe) in [
            ("startup", "startupProbe", &process.startup),
            ("liveness", "livenessProbe", &process.liveness),
            ("readiness", "readinessProbe", &process.readiness),
        ] {
            if let Some(probe) = probe {
                let export = self.probe(word, probe, &mut ports)?;
                container.insert(key.to_owned(), export);
            }
        }
        if !ports.is_empty() {
            let ports: Vec<Value> =
                ports.into_iter().map(|port: u16| json!({ "containerPort": port })).collect();
            container.insert("ports".to_owned(), json!(ports));
        }
        Ok(Value::Object(container))
    }

    fn limits(&mut self, process: &Process) -> Map<String, Value> {
        let mut limits = Map::new();
        if let Some(bytes) = process.memory_limit {
            let mebibytes = bytes.div_ceil(1 << 20);
            if mebibytes << 20 != bytes {
                self.notes.push(format!(
                    "the memory limit of {bytes} bytes is rounded up to {mebibytes}Mi"
                ));
            }
            limits.insert("memory".to_owned(), json!(format!("{mebibytes}Mi")));
        }
        if let Some(cores) = process.cpu_limit {
            // Less than a thousandth of a core is below what Kubernetes counts in.
            let milli = (cores * 1000.0).round().max(1.0);
            limits.insert("cpu".to_owned(), json!(format!("{milli}m")));
        }
        limits
    }

    fn probe(
        &mut self,
        word: &str,
        probe: &Probe,
        ports: &mut BTreeSet<u16>,
    ) -> Result<Value, String> {
        let (kind, action) = match &probe.check {
            Check::Http(check) => ("httpGet", self.http_get(word, check, ports)?),
            Check::Tcp { address } => {
                ("tcpSocket", self.tcp_socket(word, address.as_ref(), ports)?)
            }
            Check::Command(command) => {
                if command.0.iter().any(|argument| argument.contains("{backend}")) {
                    return Err(self.fault(&format!(
                        "its {word} command asks for {{backend}}, which a process has not: write the address"
                    )));
                }
                ("exec", json!({ "command": verbatim_all(command) }))
            }
            Check::Grpc { service, address, tls, tls_verify: _ } => {
                if *tls {
                    return Err(self.fault(&format!(
                        "its {word} probe speaks gRPC over TLS, which Kubernetes does not: probe with `tcp` or `command`"
                    )));
                }
                ("grpc", self.grpc(word, service, address.as_ref(), ports)?)
            }
        };
        let mut rise = probe.thresholds.rise.get();
        if rise != 1 && word != "readiness" {
            self.notes.push(format!(
                "the {word} probe's rise = {rise} becomes successThreshold 1, the only one that Kubernetes allows there"
            ));
            rise = 1;
        }
        Ok(json!({
            kind: action,
            "initialDelaySeconds": self.seconds(&format!("{word}.delay"), probe.delay),
            "periodSeconds": self.seconds(&format!("{word}.every"), probe.every).max(1),
            "timeoutSeconds": self.seconds(&format!("{word}.timeout"), probe.timeout).max(1),
            "failureThreshold": probe.thresholds.fall,
            "successThreshold": rise,
        }))
    }

    fn http_get(
        &mut self,
        word: &str,
        check: &HttpCheck,
        ports: &mut BTreeSet<u16>,
    ) -> Result<Value, String> {
        let (tls, authority, path) = match &check.target {
            HttpTarget::Url { tls, authority, path } => (*tls, authority, path),
            HttpTarget::Path(path) => {
                return Err(self.fault(&format!(
                    "its {word} probe names a path without a port: write `http = \"http://127.0.0.1:3000{path}\"`"
                )));
            }
        };
        self.note_http(word, check, tls);
        let mut get = Map::new();
        get.insert("path".to_owned(), json!(path));
        get.insert("port".to_owned(), json!(authority.port));
        get.insert("scheme".to_owned(), json!(if tls { "HTTPS" } else { "HTTP" }));
        if let Some(host) = self.host(authority, ports) {
            get.insert("host".to_owned(), json!(host));
        }
        if !check.headers.is_empty() {
            let headers: Vec<Value> = check
                .headers
                .iter()
                .map(|(name, value)| json!({ "name": name, "value": value }))
                .collect();
            get.insert("httpHeaders".to_owned(), json!(headers));
        }
        Ok(Value::Object(get))
    }

    fn note_http(&mut self, word: &str, check: &HttpCheck, tls: bool) {
        let mut note = |text: &str| self.notes.push(format!("the {word} probe {text}"));
        if check.method != "GET" {
            note(&format!("asks with GET, not {}: Kubernetes has no other method", check.method));
        }
        if check.status != StatusSet(vec![KUBERNETES_SUCCESS]) {
            note("counts every status from 200 to 399 as success: Kubernetes has no other set");
        }
        if check.body.is_some() {
            note("does not look at the body: Kubernetes cannot");
        }
        if tls && check.tls_verify {
            note("does not verify the certificate: Kubernetes never does");
        }
    }

    fn tcp_socket(
        &mut self,
        word: &str,
        address: Option<&Authority>,
        ports: &mut BTreeSet<u16>,
    ) -> Result<Value, String> {
        let address = self.address(word, address)?;
        Ok(match self.host(address, ports) {
            Some(host) => json!({ "host": host, "port": address.port }),
            None => json!({ "port": address.port }),
        })
    }

    fn grpc(
        &mut self,
        word: &str,
        service: &str,
        address: Option<&Authority>,
        ports: &mut BTreeSet<u16>,
    ) -> Result<Value, String> {
        let address = self.address(word, address)?;
        if let Some(host) = self.host(address, ports) {
            return Err(self.fault(&format!(
                "its {word} probe asks gRPC of {host}, but Kubernetes asks it of the Pod only: probe 127.0.0.1"
            )));
        }
        Ok(match service {
            "" => json!({ "port": address.port }),
            service => json!({ "port": address.port, "service": service }),
        })
    }

    fn address<'a>(
        &self,
        word: &str,
        address: Option<&'a Authority>,
    ) -> Result<&'a Authority, String> {
        address.ok_or_else(|| {
            self.fault(&format!("its {word} probe names no port: write `127.0.0.1:3000`"))
        })
    }

    /// The host to probe; `None` is the Pod itself, whose port it then is.
    fn host(&mut self, authority: &Authority, ports: &mut BTreeSet<u16>) -> Option<String> {
        if !is_loopback(&authority.host) {
            return Some(authority.host.clone());
        }
        ports.insert(authority.port.get());
        let note = "the probes ask the Pod's own address instead of the loopback: the program must listen there";
        if !self.notes.iter().any(|told| told == note) {
            self.notes.push(note.to_owned());
        }
        None
    }

    fn note_needs(&mut self, needs: &[PartRef]) {
        if needs.is_empty() {
            return;
        }
        let needs: Vec<String> = needs.iter().map(PartRef::to_string).collect();
        self.notes.push(format!(
            "it needs {}: see that they are there, this Deployment does not start them",
            needs.join(", ")
        ));
    }

    /// Whole seconds, rounded up: Kubernetes knows no shorter ones.
    fn seconds(&mut self, key: &str, duration: Duration) -> u64 {
        let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
        if Duration::from_secs(seconds) != duration {
            self.notes.push(format!(
                "{key} = {duration:?} is rounded up to {seconds}s: Kubernetes counts in seconds"
            ));
        }
        seconds
    }

    fn fault(&self, text: &str) -> String {
        format!("[process.{}] has no Deployment: {text}", self.name)
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

fn named_values(environment: &BTreeMap<String, String>) -> Value {
    environment
        .iter()
        .map(|(name, value)| json!({ "name": name, "value": verbatim(value) }))
        .collect()
}

fn verbatim_all(command: &Command) -> Value {
    command.0.iter().map(|argument| json!(verbatim(argument))).collect()
}

/// Kubernetes puts a variable's value in place of `$(NAME)` and `$` in place of `$$`; the agent takes both as they are.
fn verbatim(text: &str) -> String {
    if text.contains("$(") || text.contains("$$") {
        text.replace('$', "$$")
    } else {
        text.to_owned()
    }
}

/// Each Pod on a machine of its own, as long as there are enough.
fn apart_from(labels: &Value) -> Value {
    json!({
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{
                "weight": 100,
                "podAffinityTerm": {
                    "labelSelector": { "matchLabels": labels },
                    "topologyKey": "kubernetes.io/hostname",
                },
            }],
        },
    })
}
