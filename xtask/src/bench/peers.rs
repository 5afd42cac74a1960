//! The proxies that are compared, each set up as its own people would for many keep-alive requests, with what is on
//! by default left on: health checks, access counters, the client's address passed on.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::children::{Child, Spec};
use crate::{procs, tools};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Haproxy,
    Nginx,
    Outlast,
}

impl Peer {
    pub(super) const ALL: [Peer; 3] = [Peer::Haproxy, Peer::Nginx, Peer::Outlast];

    pub(super) fn name(self) -> &'static str {
        match self {
            Peer::Haproxy => "haproxy",
            Peer::Nginx => "nginx",
            Peer::Outlast => "outlast",
        }
    }
}

/// Where a proxy listens and what lies behind it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    pub(super) http: SocketAddr,
    pub(super) tcp: SocketAddr,
    pub(super) face: SocketAddr,
    pub(super) backend: SocketAddr,
    pub(super) sink: SocketAddr,
}

/// A proxy that runs.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) peer: Peer,
    pub(super) places: Places,
    pub(super) child: Child,
}

impl Running {
    pub(super) fn start(
        peer: Peer,
        places: Places,
        threads: usize,
        core: Option<usize>,
        outlast: Option<&Path>,
        dir: &Path,
    ) -> Result<Running> {
        let dir = dir.join(peer.name());
        std::fs::create_dir_all(&dir).context("create a directory")?;
        let (file, text) = match peer {
            Peer::Haproxy => ("haproxy.cfg", haproxy(&places, threads)),
            Peer::Nginx => ("nginx.conf", nginx(&places, threads, &dir)),
            Peer::Outlast => ("outlast.toml", topology(&places, threads, &dir)),
        };
        let file = dir.join(file);
        std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        let (file, prefix) = (text_of(&file)?, text_of(&dir)?);
        let args = match peer {
            Peer::Haproxy => vec!["-db".to_owned(), "-f".to_owned(), file],
            Peer::Nginx => vec!["-p".to_owned(), prefix, "-c".to_owned(), file],
            Peer::Outlast => vec!["run".to_owned(), file],
        };
        let program = match peer {
            Peer::Haproxy | Peer::Nginx => find(peer.name())?,
            Peer::Outlast => outlast.context("outlast takes no part")?.to_owned(),
        };
        let name = peer.name();
        let child = Child::start(&Spec {
            name,
            program: &program,
            args: &args,
            dir: &dir,
            core,
            has_children: true,
        })?;
        Ok(Running { peer, places, child })
    }

    /// All of its processes.
    pub(super) fn processes(&self) -> Vec<procs::Stat> {
        procs::tree(self.child.pid())
    }

    /// Those that carry traffic, where they are told apart from the one that decides.
    pub(super) fn carriers(&self) -> Vec<procs::Stat> {
        let all = self.processes();
        let carries = |stat: &procs::Stat| {
            procs::command_line(stat.pid).get(1).is_some_and(|word| word == "proxy")
        };
        match self.peer {
            Peer::Haproxy | Peer::Nginx => all,
            Peer::Outlast => all.into_iter().filter(carries).collect(),
        }
    }
}

/// The server behind all of them: static files of 1 KiB and 64 KiB.
pub(super) fn start_backend(listen: SocketAddr, core: Option<usize>, dir: &Path) -> Result<Child> {
    let dir = dir.join("backend");
    std::fs::create_dir_all(&dir).context("create a directory")?;
    for (name, bytes) in [("1k", 1 << 10), ("64k", 64 << 10)] {
        std::fs::write(dir.join(name), vec![b'x'; bytes]).context("write a file to serve")?;
    }
    let file = dir.join("nginx.conf");
    std::fs::write(&file, backend(listen, &dir)).context("write the backend's configuration")?;
    let args = ["-p".to_owned(), text_of(&dir)?, "-c".to_owned(), text_of(&file)?];
    Child::start(&Spec {
        name: "backend",
        program: &find("nginx")?,
        args: &args,
        dir: &dir,
        core,
        has_children: true,
    })
}

fn find(program: &str) -> Result<PathBuf> {
    tools::which(program).with_context(|| format!("{program} is installed but not found"))
}

fn text_of(path: &Path) -> Result<String> {
    Ok(path.to_str().context("the temporary directory's name is not text")?.to_owned())
}

fn haproxy(places: &Places, threads: usize) -> String {
    let Places { http, tcp, backend, sink, .. } = places;
    format!(
        "global
    nbthread {threads}
    maxconn 8000
defaults
    timeout connect 2s
    timeout client 60s
    timeout server 30s
frontend web
    mode http
    bind {http}
    option forwardfor
    default_backend web
backend web
    mode http
    balance roundrobin
    option httpchk GET /health
    server b1 {backend} check inter 1s
frontend stream
    mode tcp
    bind {tcp}
    default_backend stream
backend stream
    mode tcp
    server s1 {sink} check inter 1s
"
    )
}

/// Enough connections are kept to the backend for 512 clients, and none is closed for having served many requests.
fn nginx(places: &Places, threads: usize, dir: &Path) -> String {
    let Places { http, backend, .. } = places;
    nginx_around(
        threads,
        dir,
        &format!(
            "    upstream web {{
        server {backend};
        keepalive 512;
        keepalive_requests 100000000;
    }}
    server {{
        listen {http};
        keepalive_requests 100000000;
        location = /nginx_status {{ stub_status; }}
        location / {{
            proxy_pass http://web;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        }}
    }}"
        ),
    )
}

fn backend(listen: SocketAddr, dir: &Path) -> String {
    let root = dir.display();
    nginx_around(
        1,
        dir,
        &format!(
            "    sendfile on;
    open_file_cache max=16;
    server {{
        listen {listen};
        root {root};
        keepalive_requests 100000000;
        location = /health {{ return 200 \"ok\\n\"; }}
    }}"
        ),
    )
}

fn nginx_around(threads: usize, dir: &Path, servers: &str) -> String {
    let dir = dir.display();
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    format!(
        "daemon off;
{user}
worker_processes {threads};
pid {dir}/nginx.pid;
error_log {dir}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
{servers}
}}
"
    )
}

fn topology(places: &Places, threads: usize, dir: &Path) -> String {
    let Places { http, tcp, face, backend, sink } = places;
    format!(
        r#"[cluster]
name = "bench"
data_dir = "{dir}/data"
face = "{face}"
proxy_threads = {threads}

[service.web]
listen = "{http}"
backends = ["http://{backend}"]
probe = {{ http = "/health", every = "1s", timeout = "500ms", fall = 3, rise = 2 }}

[service.stream]
listen = "{tcp}"
backends = ["tcp://{sink}"]
"#,
        dir = dir.display()
    )
}
