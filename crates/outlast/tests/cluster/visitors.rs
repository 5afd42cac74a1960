//! Strangers at the port where nodes speak to each other: each is refused, each stands in the journal, and nobody stalls.

#![expect(clippy::unwrap_used, reason = "helpers of tests, outside the test functions themselves")]

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outlast_core::linear::{Start, TRIES_MAX, Verdict, check};
use outlast_link::limits::STRANGERS_MAX;
use outlast_link::wire::{Frame, Greeting, Hello, Lane, PREAMBLE, VERSIONS};
use rcgen::{CertificateParams, DistinguishedName, DnType, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use super::Nodes;
use crate::clients::{Client, History};
use crate::stage::{LIMIT, Stage, wait_until};

/// A place for certificates, and `outlast certs` in it.
struct Authority(Stage);

impl Authority {
    fn new(name: &str) -> Authority {
        let authority = Authority(Stage::new(name));
        authority.run(&["init", "--cluster", "test"]);
        authority
    }

    fn run(&self, words: &[&str]) -> String {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_outlast"))
            .arg("certs")
            .args(words)
            .current_dir(&self.0.dir)
            .output()
            .expect("cargo has built it");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{words:?}: {said}");
        said
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.dir.join("certs").join(name)
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.file(name)).expect("it was made")
    }

    /// The certificate of a node as it lies there now.
    fn papers(&self, node: &str) -> Papers {
        Papers { cert: self.text(&format!("{node}.pem")), key: self.text(&format!("{node}.key")) }
    }

    /// A certificate of this CA whose time was over a minute ago; `outlast certs issue` does not make such.
    fn expired(&self, node: &str) -> Papers {
        let shown = self.run(&["show", "--format", "json"]);
        let shown: serde_json::Value = serde_json::from_str(&shown).expect("it is JSON");
        let all = shown["certificates"].as_array().expect("it is a list");
        let ca = all.iter().find(|one| one["ca"] == true).expect("there is a CA");
        let mut of_ca = CertificateParams::default();
        of_ca.distinguished_name = DistinguishedName::new();
        let name = ca["name"].as_str().expect("it has a name");
        of_ca.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::from_pem(&self.text("ca.key")).expect("it is a key");
        let issuer = Issuer::new(of_ca, key);
        let name = outlast_link::certificate_name(node);
        let mut params = CertificateParams::new(vec![name]).expect("it is a name");
        let now = SystemTime::now();
        params.not_before = (now - Duration::from_secs(3_600)).into();
        params.not_after = (now - Duration::from_secs(60)).into();
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("a key can be made");
        let cert = params.signed_by(&key, &issuer).expect("it can be signed").pem();
        Papers { cert, key: key.serialize_pem() }
    }

    fn tls(&self, node: &str) -> String {
        let file = |name: &str| self.file(name).display().to_string();
        format!(
            "tls = {{ ca = \"{}\", cert = \"{}\", key = \"{}\", crl = \"{}\" }}\n\
             [consensus]\nvoters = [\"a\", \"b\", \"c\"]\n",
            file("ca.pem"),
            file(&format!("{node}.pem")),
            file(&format!("{node}.key")),
            file("ca.crl")
        )
    }
}

/// What a visitor shows.
struct Papers {
    cert: String,
    key: String,
}

/// Believes every server: it is the server that must not believe.
#[derive(Debug)]
struct Gullible(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A TLS session of a visitor, and what it has read and not used.
struct Session {
    tls: rustls::StreamOwned<rustls::ClientConnection, TcpStream>,
    read: Vec<u8>,
}

impl Session {
    fn over(stream: TcpStream, papers: Option<&Papers>) -> Session {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("it is compiled in")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Gullible(provider)));
        let config = match papers {
            None => builder.with_no_client_auth(),
            Some(papers) => {
                let cert = CertificateDer::from_pem_slice(papers.cert.as_bytes());
                let key = PrivateKeyDer::from_pem_slice(papers.key.as_bytes());
                let cert = vec![cert.expect("it is a certificate")];
                builder.with_client_auth_cert(cert, key.expect("it is a key")).expect("they fit")
            }
        };
        let name = ServerName::try_from("a").expect("it is a name");
        let client = rustls::ClientConnection::new(Arc::new(config), name).expect("it is complete");
        Session { tls: rustls::StreamOwned::new(client, stream), read: Vec::new() }
    }

    /// Whoever refuses us may have closed already.
    fn send(&mut self, bytes: &[u8]) {
        self.tls.write_all(bytes).and_then(|()| self.tls.flush()).ok();
    }

    fn greet(&mut self, hello: Hello) {
        let mut bytes = PREAMBLE.to_vec();
        Greeting::Hello(hello).write(&mut bytes);
        self.send(&bytes);
    }

    fn frame(&mut self, frame: Frame<'_>) {
        let mut bytes = Vec::new();
        frame.write(&mut bytes);
        self.send(&bytes);
    }

    fn more(&mut self) -> bool {
        let mut piece = [0; 4096];
        let count = self.tls.read(&mut piece).unwrap_or(0);
        self.read.extend_from_slice(&piece[..count]);
        count > 0
    }

    /// Waits until the node says that we may come in.
    fn is_accepted(&mut self) -> bool {
        loop {
            if self.read.starts_with(&PREAMBLE) {
                self.read.drain(..PREAMBLE.len());
            }
            match Greeting::read(&self.read).expect("a node greets well") {
                Some((greeting, used)) => {
                    self.read.drain(..used);
                    match greeting {
                        Greeting::Accepted => return true,
                        Greeting::Refused { .. } => return false,
                        Greeting::Hello(_) => {
                            let mut bytes = Vec::new();
                            Greeting::Accepted.write(&mut bytes);
                            self.send(&bytes);
                        }
                    }
                }
                None if self.more() => {}
                None => return false,
            }
        }
    }

    /// Reads frames until this many are as wanted.
    fn wait_for(&mut self, count: usize, wanted: impl Fn(Frame<'_>) -> bool) {
        let mut seen = 0;
        while seen < count {
            let read = Frame::read(&self.read).expect("a node speaks well");
            match read.map(|(frame, used)| (wanted(frame), used)) {
                Some((is_one, used)) => {
                    seen += usize::from(is_one);
                    self.read.drain(..used);
                }
                None => assert!(self.more(), "the node has closed after {seen} of {count}"),
            }
        }
    }
}

fn hello(node: &str) -> Hello {
    Hello {
        versions: VERSIONS,
        cluster: "test".to_owned(),
        node: node.to_owned(),
        id: 0,
        instance: 99,
        build: "visitor".to_owned(),
    }
}

/// A running cluster, and who knocks at its node `a`.
struct House {
    nodes: Nodes,
    visits: u8,
}

impl House {
    fn port(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.nodes.port))
    }

    /// Connects from an address that nobody had before, so that what the journal says is of this visitor.
    fn knock(&mut self) -> TcpStream {
        self.visits += 1;
        self.connect(self.visits)
    }

    fn connect(&self, last: u8) -> TcpStream {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let connected = runtime.expect("a runtime can be built").block_on(async {
            let socket = tokio::net::TcpSocket::new_v4()?;
            socket.bind(SocketAddr::from(([127, 0, 9, last], 0)))?;
            socket.connect(self.port()).await?.into_std()
        });
        let stream = connected.expect("the node listens");
        stream.set_nonblocking(false).expect("it is ours");
        stream.set_read_timeout(Some(LIMIT)).expect("it is ours");
        stream
    }

    /// While the visitor is still there: the journal has its refusal, and the node that it knocked at takes a write.
    #[track_caller]
    fn refused(&self, text: &str) {
        let from = format!("127.0.9.{}:", self.visits);
        self.nodes.stage("a").event(0, "link_refused", |event| {
            event["reason"].as_str().is_some_and(|why| why.starts_with(&from) && why.contains(text))
        });
        self.writes();
    }

    #[track_caller]
    fn writes(&self) {
        let value = format!("visit {}", self.visits);
        self.nodes.verb("a", &["kv", "put", "visit", &value]);
        assert_eq!(self.nodes.get("b", "visit"), value);
    }
}

/// Carries one connection to `target` and writes down what the visitor sends.
fn tap(target: SocketAddr) -> (SocketAddr, std::thread::JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
    let at = listener.local_addr().expect("it is bound");
    let carry = move || {
        let (mut near, _) = listener.accept().expect("the visitor comes");
        let mut far = TcpStream::connect(target).expect("the node listens");
        let (mut far_back, mut near_back) =
            (far.try_clone().expect("it is ours"), near.try_clone().expect("it is ours"));
        let back = std::thread::spawn(move || std::io::copy(&mut far_back, &mut near_back).ok());
        let mut recorded = Vec::new();
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = near.read(&mut piece) {
            recorded.extend_from_slice(&piece[..count]);
            far.write_all(&piece[..count]).ok();
        }
        far.shutdown(Shutdown::Both).ok();
        back.join().expect("it does not panic");
        recorded
    };
    (at, std::thread::spawn(carry))
}

/// Longer than this nobody waits for any answer of the cluster, on a machine with much else to do.
const STALL: Duration = Duration::from_secs(3);

#[test]
fn strangers_are_refused_and_noted_while_the_cluster_takes_writes() {
    let (ours, others) = (Authority::new("visitors-ca"), Authority::new("visitors-other-ca"));
    ours.run(&["issue", "a", "b", "c", "d", "x"]);
    others.run(&["issue", "b"]);
    let expired = ours.expired("b");
    // A list from the first moment on, of somebody who is met below.
    ours.run(&["revoke", "x"]);
    // Node d stands in the file, has good papers, and does not run: a visitor can be it.
    let names = ["a", "b", "c", "d"];
    let mut nodes = Nodes::start_each("visitors", &names, |node| ours.tls(node));
    nodes.kill("d");
    nodes.leader();
    let running = ["a", "b", "c"];
    let pid = |nodes: &Nodes, node| nodes.agents[nodes.at(node)].as_ref().unwrap().pid();
    let before = running.map(|node| pid(&nodes, node));
    let proxy = nodes.stage("a").proxy();
    let history = History::new();
    let dirs = running.map(|node| nodes.stage(node).data()).to_vec();
    let clients: Vec<_> =
        (0..3).map(|number| Client::new(number, &history).live(dirs.clone())).collect();

    let mut house = House { nodes, visits: 0 };
    house.who_does_not_speak_tls();
    house.who_shows_the_wrong_thing(&ours, &others, &expired);
    house.whose_certificate_is_revoked_meanwhile(&ours);
    let d = ours.papers("d");
    house.who_says_again_what_somebody_else_said(&d);
    house.who_says_everything_twice(&d);
    house.who_stops_in_the_middle_of_a_word(&d);
    house.who_comes_in_crowds();

    history.end();
    for client in clients {
        client.join().expect("a client that finds a mistake says which");
    }
    let calls = history.take();
    let mut ends: Vec<u64> = calls.iter().filter_map(|call| call.returned).collect();
    ends.sort_unstable();
    let longest = ends.windows(2).map(|pair| pair[1] - pair[0]).max();
    let longest = Duration::from_nanos(longest.expect("clients were answered"));
    let count = calls.len();
    println!("{} visits, {count} calls meanwhile, no answer for {longest:?} at most", house.visits);
    assert!(longest < STALL, "nobody was answered for {longest:?}");
    assert_eq!(check(&calls, Start::Empty, TRIES_MAX), Verdict::Linearizable);
    for (node, before) in running.into_iter().zip(before) {
        assert_eq!(pid(&house.nodes, node), before);
        let at = house.nodes.at(node);
        let agent = house.nodes.agents[at].as_mut().unwrap();
        assert_eq!(agent.child.try_wait().unwrap(), None, "{node} goes on");
        assert!(!house.nodes.stage(node).log().contains("panicked"), "{node}");
    }
    assert_eq!(house.nodes.stage("a").proxy(), proxy, "traffic is served by the same process");
}

impl House {
    fn who_does_not_speak_tls(&mut self) {
        for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 100], &[0xff; 3000]] {
            let mut stream = self.knock();
            stream.write_all(garbage).unwrap();
            self.refused("");
        }
        let mut plain = self.knock();
        plain.write_all(&PREAMBLE).unwrap();
        self.refused("it speaks without TLS, this cluster uses TLS");
        let mut torn = self.knock();
        torn.write_all(&[22, 3, 1, 2, 0, 1, 0]).unwrap();
        torn.shutdown(Shutdown::Write).unwrap();
        self.refused("closed the connection before it was encrypted");
    }

    /// Greets with these papers, and is refused.
    #[track_caller]
    fn visit(&mut self, papers: Option<&Papers>, who: Hello, text: &str) {
        let mut session = Session::over(self.knock(), papers);
        session.greet(who);
        self.refused(text);
    }

    fn who_shows_the_wrong_thing(
        &mut self,
        ours: &Authority,
        others: &Authority,
        expired: &Papers,
    ) {
        let b = ours.papers("b");
        self.visit(None, hello("b"), "shows no certificate: only nodes of this cluster");
        self.visit(Some(&others.papers("b")), hello("b"), "it is from another CA");
        self.visit(Some(expired), hello("b"), "it has expired");
        self.visit(Some(&ours.papers("x")), hello("b"), "it was revoked");
        let foreign = Hello { cluster: "staging".to_owned(), ..hello("b") };
        self.visit(Some(&b), foreign, "it belongs to cluster `staging`, this is cluster `test`");
        let own = ours.papers("a");
        self.visit(Some(&own), hello("a"), "it says that it is node `a`, and so are we");
        self.visit(Some(&b), hello("b"), "node `b` is connected already from 127.0.0.");
        let text = "it says that it is node `b` and shows the certificate of node `c`";
        self.visit(Some(&ours.papers("c")), hello("b"), text);
    }

    /// Comes in as node `d`.
    fn enter(&mut self, papers: &Papers) -> Session {
        let mut session = Session::over(self.knock(), Some(papers));
        session.greet(hello("d"));
        assert!(session.is_accepted(), "d belongs here");
        session
    }

    /// The journal has the end of the connection to `d`, behind this many events.
    #[track_caller]
    fn ended(&self, after: usize, text: &str) {
        self.nodes.stage("a").event(after, "link_down", |event| {
            event["subject"] == "node.d"
                && event["reason"].as_str().is_some_and(|why| why.contains(text))
        });
        self.writes();
    }

    fn events(&self) -> usize {
        self.nodes.stage("a").journal().len()
    }

    /// Its connection ends, and it does not come in again; with a new certificate the node would.
    fn whose_certificate_is_revoked_meanwhile(&mut self, ours: &Authority) {
        let old = ours.papers("d");
        let mut session = self.enter(&old);
        let before = self.events();
        ours.run(&["revoke", "d"]);
        ours.run(&["rotate", "d"]);
        // It shows all the while that it lives.
        wait_until("the end of the connection", || {
            session.frame(Frame::Ping(1));
            let events = self.nodes.stage("a").journal();
            events[before..].iter().any(|e| e["event"] == "link_down" && e["subject"] == "node.d")
        });
        self.ended(before, "its certificate is not good any more: it was revoked");
        drop(session);
        self.visit(Some(&old), hello("d"), "it was revoked");
    }

    /// A session that was written down on the way: to another connection it makes no sense.
    fn who_says_again_what_somebody_else_said(&mut self, papers: &Papers) {
        let (at, recorded) = tap(self.port());
        let mut session = Session::over(TcpStream::connect(at).unwrap(), Some(papers));
        session.greet(hello("d"));
        assert!(session.is_accepted(), "d belongs here");
        session.frame(Frame::Ping(7));
        session.wait_for(1, |frame| frame == Frame::Pong(7));
        let before = self.events();
        drop(session);
        let recorded = recorded.join().unwrap();
        self.ended(before, "");
        let mut replay = self.knock();
        replay.write_all(&recorded).unwrap();
        self.refused("breaks the rules of TLS");
    }

    /// One who belongs here may repeat itself: a question is answered as often as it is asked, and what is no message of
    /// that node is dropped as often as it comes. (That a message of the log takes effect once is what storms show.)
    fn who_says_everything_twice(&mut self, papers: &Papers) {
        let mut session = self.enter(papers);
        let question = Frame::Data { lane: Lane::Requests, more: false, payload: &[5, 0xff, 0xff] };
        let vote = Frame::Data { lane: Lane::Consensus, more: false, payload: b"vote for me" };
        // Nothing is sent to somebody who has not said how much they take.
        session.frame(Frame::Credit { lane: Lane::Answers, bytes: 1_000 });
        for frame in [question, vote, Frame::Ping(9), question, vote, Frame::Ping(9)] {
            session.frame(frame);
        }
        session.wait_for(2, |frame| matches!(frame, Frame::Data { lane: Lane::Answers, .. }));
        self.writes();
        let before = self.events();
        drop(session);
        self.ended(before, "");
        let log = self.nodes.stage("a").log();
        let dropped = log.matches("drop what is no message of this node").count();
        assert_eq!(dropped, 2, "{log}");
    }

    fn who_stops_in_the_middle_of_a_word(&mut self, papers: &Papers) {
        let mut greeting = PREAMBLE.to_vec();
        Greeting::Hello(hello("d")).write(&mut greeting);
        let mut session = Session::over(self.knock(), Some(papers));
        session.send(&greeting[..greeting.len() - 1]);
        session.tls.conn.send_close_notify();
        session.tls.flush().ok();
        session.tls.sock.shutdown(Shutdown::Write).unwrap();
        self.refused("closed the connection in the middle of the greeting");
        // The length of a ping, and no ping.
        let mut session = self.enter(papers);
        let before = self.events();
        session.send(&[16, 1]);
        session.tls.sock.shutdown(Shutdown::Write).unwrap();
        self.ended(before, "the other side closed the connection");
        let mut session = self.enter(papers);
        let before = self.events();
        session.send(&[0x7e, 0]);
        self.ended(before, "a frame that is not known");
    }

    fn who_comes_in_crowds(&mut self) {
        self.visits += 1;
        let crowd: Vec<_> = (0..=STRANGERS_MAX).map(|_| self.connect(self.visits)).collect();
        self.refused("too many connections at once that have not shown who they are");
        drop(crowd);
        self.writes();
    }
}
