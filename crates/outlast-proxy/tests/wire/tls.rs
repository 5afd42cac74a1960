//! TLS towards clients and backends: which certificate, who is believed, and what a new certificate does to old connections.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use outlast_proxy::stats::ErrorKind;
use outlast_proxy::table::{Certificate, Protocol};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConnection, StreamOwned};

use crate::harness::{Backend, Gate, LIMIT, Stage, Wire, get, ok, until};

/// A certificate authority of the test's own.
pub(crate) struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { pem, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn issue(&self, names: &[&str]) -> Certificate {
        let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(names).unwrap();
        let chain = params.signed_by(&key, &self.issuer).unwrap().pem();
        Certificate { chain, key: key.serialize_pem(), client_ca: None }
    }

    pub(crate) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        roots
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn der(certificate: &Certificate) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = CertificateDer::pem_slice_iter(certificate.chain.as_bytes());
    let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).unwrap();
    (chain.collect::<Result<_, _>>().unwrap(), key)
}

/// A client that believes one authority and offers these protocols.
pub(crate) fn trusting(authority: &Authority, alpn: &[&str]) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(authority.roots())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Arc::new(config)
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// Connects; the handshake happens with the first byte.
pub(crate) fn client(to: SocketAddr, name: &str, config: &Arc<ClientConfig>) -> Wire<Tls> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let conn = ClientConnection::new(config.clone(), name).unwrap();
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_nodelay(true).unwrap();
    Wire { stream: StreamOwned::new(conn, stream), buffer: Vec::new(), number: 0 }
}

/// The serial numbers are random, so the certificate itself says which one it is.
fn presented(wire: &Wire<Tls>) -> CertificateDer<'static> {
    wire.stream.conn.peer_certificates().unwrap()[0].clone().into_owned()
}

#[test]
fn the_name_that_the_client_asks_for_chooses_the_certificate() {
    let authority = Authority::new();
    let shop = authority.issue(&["shop.example", "www.shop.example"]);
    let wild = authority.issue(&["*.wild.example", "exact.wild.example"]);
    let exact = authority.issue(&["exact.wild.example"]);
    let backend = Backend::answering(|r| ok(r.header("x-forwarded-proto").unwrap_or("-")));
    let gate = Gate::http(&[backend.address], |service| {
        service.certificates = vec![shop.clone(), exact.clone(), wild.clone()];
    });
    let config = trusting(&authority, &[]);
    for (name, expected) in [
        ("shop.example", &shop),
        ("www.shop.example", &shop),
        ("SHOP.example", &shop),
        ("any.wild.example", &wild),
        ("exact.wild.example", &exact),
    ] {
        let mut wire = client(gate.address, name, &config);
        assert_eq!(wire.ask(get("/")).text(), "https", "{name}");
        assert_eq!(presented(&wire), der(expected).0[0], "{name}");
    }
    // A name that nobody has gets the first one, and the client refuses it; one label deep is all that a wildcard covers.
    for name in ["other.example", "two.deep.wild.example", "wild.example"] {
        let mut wire = client(gate.address, name, &config);
        assert!(wire.try_send(get("/")).is_err(), "{name}");
    }
    // Without a name, the first one too.
    let mut plain = (*config).clone();
    plain.enable_sni = false;
    let mut wire = client(gate.address, "shop.example", &Arc::new(plain));
    assert_eq!(wire.ask(get("/")).text(), "https");
}

#[test]
fn a_new_certificate_leaves_open_connections_alone() {
    let authority = Authority::new();
    let (old, new) = (authority.issue(&["shop.example"]), authority.issue(&["shop.example"]));
    let backend = Backend::named("b");
    let gate = Gate::http(&[backend.address], |service| service.certificates = vec![old.clone()]);
    let config = trusting(&authority, &[]);
    let mut before = client(gate.address, "shop.example", &config);
    assert_eq!(before.ask(get("/")).text(), "b");
    gate.change(|service| service.certificates = vec![new.clone()]);
    assert_eq!(before.ask(get("/")).text(), "b");
    assert_eq!(presented(&before), der(&old).0[0]);
    let mut after = client(gate.address, "shop.example", &trusting(&authority, &[]));
    assert_eq!(after.ask(get("/")).text(), "b");
    assert_eq!(presented(&after), der(&new).0[0]);
    assert_eq!(before.ask(get("/")).text(), "b");
}

#[test]
fn a_bad_certificate_is_refused_and_the_old_one_serves_on() {
    let authority = Authority::new();
    let good = authority.issue(&["shop.example"]);
    let backend = Backend::named("b");
    let gate = Gate::http(&[backend.address], |service| service.certificates = vec![good.clone()]);
    let other = authority.issue(&["shop.example"]);
    for bad in [
        Certificate { key: other.key, ..good.clone() },
        Certificate { chain: "nonsense".to_owned(), ..good.clone() },
        Certificate { key: String::new(), ..good.clone() },
        Certificate { client_ca: Some(String::new()), ..good },
    ] {
        let mut table = gate.proxy.table();
        table.services[0].certificates = vec![bad];
        assert!(outlast_proxy::check(&table).is_err(), "a check says so beforehand");
        let refused = gate.proxy.apply(table, std::collections::BTreeMap::new());
        assert!(matches!(refused, Err(outlast_proxy::Refused::Tls(_))), "{refused:?}");
    }
    let mut wire = client(gate.address, "shop.example", &trusting(&authority, &[]));
    assert_eq!(wire.ask(get("/")).text(), "b");
}

#[test]
fn clients_may_have_to_show_a_certificate() {
    let authority = Authority::new();
    let (ours, strangers) = (Authority::new(), Authority::new());
    let backend = Backend::named("b");
    let gate = Gate::http(&[backend.address], |service| {
        let certificate = authority.issue(&["shop.example"]);
        service.certificates =
            vec![Certificate { client_ca: Some(ours.pem.clone()), ..certificate }];
    });
    let with = |certificate: &Certificate| {
        let (chain, key) = der(certificate);
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(authority.roots())
            .with_client_auth_cert(chain, key)
            .unwrap();
        Arc::new(config)
    };
    let ask = |config: &Arc<ClientConfig>| {
        let mut wire = client(gate.address, "shop.example", config);
        wire.try_send(get("/")).and_then(|()| wire.try_answer()).map(|a| a.text())
    };
    assert_eq!(ask(&with(&ours.issue(&["me"]))).unwrap(), "b");
    assert!(ask(&with(&strangers.issue(&["me"]))).is_err());
    assert!(ask(&trusting(&authority, &[])).is_err());
    assert_eq!(backend.count(), 1);
}

#[test]
fn what_is_not_tls_gets_nothing() {
    let authority = Authority::new();
    let backend = Backend::named("b");
    let gate = Gate::http(&[backend.address], |service| {
        service.certificates = vec![authority.issue(&["shop.example"])];
        service.timeouts.head = std::time::Duration::from_millis(200);
    });
    let mut wire = Wire::connect(gate.address);
    wire.send(get("/"));
    let got = wire.rest().unwrap_or_default();
    assert!(!got.starts_with(b"HTTP"), "{got:?}");
    let mut silent = Wire::connect(gate.address);
    assert_eq!(silent.rest().unwrap_or_default(), b"");
    assert_eq!(backend.connections(), 0);
    until("both are counted", || gate.own_errors(ErrorKind::BadRequest) == 2);
}

/// A backend that speaks TLS.
fn secure(certificate: &Certificate) -> Backend {
    let (chain, key) = der(certificate);
    let config = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let config = Arc::new(config);
    Backend::start(move |stage: Stage| {
        let conn = ServerConnection::new(config.clone()).unwrap();
        let stream = StreamOwned::new(conn, stage.wire.stream.try_clone().unwrap());
        let mut wire = Wire { stream, buffer: Vec::new(), number: 0 };
        while let Ok(Some(request)) = wire.request() {
            stage.note(&request);
            let name = wire.stream.conn.server_name().unwrap_or("-").to_owned();
            let answer = ok(&format!("{name} {}", request.body.len()));
            if wire.try_send(answer).is_err() {
                return;
            }
        }
    })
}

#[test]
fn backends_are_verified_by_the_name_in_the_table() {
    let authority = Authority::new();
    let backend = secure(&authority.issue(&["inner.example"]));
    for (name, roots, expected) in [
        ("inner.example", authority.roots(), 200),
        ("other.example", authority.roots(), 502),
        ("inner.example", Authority::new().roots(), 502),
        ("not a name", authority.roots(), 502),
    ] {
        let gate = Gate::rooted(Protocol::Http, 1, &[backend.address], roots, |service| {
            service.backends[0].tls_name = Some(name.to_owned());
        });
        let mut wire = Wire::connect(gate.address);
        let answer = wire.ask(get("/"));
        assert_eq!(answer.status(), expected, "{name}");
        if expected == 200 {
            assert_eq!(answer.text(), "inner.example 0");
            let body = vec![7; 1 << 20];
            let answer = wire.ask(crate::harness::with_body("POST", "/", &body));
            assert_eq!(answer.text(), format!("inner.example {}", 1 << 20));
            assert_eq!(backend.connections(), 1, "TLS connections are kept too");
        } else {
            assert!(gate.errors(0, ErrorKind::Connect) >= 1);
        }
    }
    assert_eq!(backend.count(), 2, "nothing is said to a backend that is not who it should be");
}

#[test]
fn a_stale_tls_connection_costs_no_request() {
    let authority = Authority::new();
    let (chain, key) = der(&authority.issue(&["inner.example"]));
    let config = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let config = Arc::new(config);
    let backend = Backend::start(move |stage: Stage| {
        let conn = ServerConnection::new(config.clone()).unwrap();
        let stream = StreamOwned::new(conn, stage.wire.stream.try_clone().unwrap());
        let mut wire = Wire { stream, buffer: Vec::new(), number: 0 };
        if let Ok(Some(_request)) = wire.request() {
            wire.try_send(ok("once")).ok();
            // With a proper end, or without.
            if stage.wire.number.is_multiple_of(2) {
                wire.stream.conn.send_close_notify();
                wire.try_send("").ok();
            }
        }
    });
    let gate = Gate::rooted(Protocol::Http, 1, &[backend.address], authority.roots(), |service| {
        service.backends[0].tls_name = Some("inner.example".to_owned());
        service.eject.failures = 0;
    });
    let mut wire = Wire::connect(gate.address);
    for n in 0..100 {
        assert_eq!(wire.ask(get("/")).text(), "once", "request {n}");
    }
}
