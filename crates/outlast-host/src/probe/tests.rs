//! Probes against real servers: sockets, TLS with certificates of our own, processes.

use std::convert::Infallible;
use std::io;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use outlast_core::topology::{
    Authority, Backend, Check, Command, HttpCheck, HttpTarget, StatusSet,
};
use rcgen::{CertificateParams, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(200);

/// A server that runs until it is dropped.
struct Server {
    at: Authority,
    _tasks: JoinSet<()>,
}

impl Server {
    fn backend(&self, tls: bool) -> Backend {
        let host = "localhost".to_owned();
        Backend { url: String::new(), tls, host, port: self.at.port }
    }
}

/// Does `serve` with each connection.
async fn server<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Server
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = NonZeroU16::new(listener.local_addr().unwrap().port()).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut open = JoinSet::new();
        while let Ok((connection, _)) = listener.accept().await {
            open.spawn(serve(connection));
        }
    });
    Server { at: Authority { host: "127.0.0.1".to_owned(), port }, _tasks: tasks }
}

/// What the test server answers; a request's own words come back in the body.
async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let echo = format!("{} {}\n{:?}", request.method(), request.uri(), request.headers());
    let response = Response::builder();
    let response = match request.uri().path() {
        "/echo" => response.body(Full::from(echo)),
        "/fail" => response.status(500).body(Full::default()),
        "/away" => response.status(302).header("location", "/echo").body(Full::default()),
        "/long" => response.body(Full::from(format!("{}needle", " ".repeat(http::BODY_MAX)))),
        "/near" => response.body(Full::from(format!("{}needle", " ".repeat(http::BODY_MAX - 6)))),
        _ => response.status(404).body(Full::default()),
    };
    Ok(response.unwrap())
}

async fn http_server() -> Server {
    server(|connection| async {
        let http = hyper::server::conn::http1::Builder::new();
        drop(http.serve_connection(TokioIo::new(connection), service_fn(answer)).await);
    })
    .await
}

async fn https_server(config: ServerConfig) -> Server {
    let acceptor = TlsAcceptor::from(Arc::new(config));
    server(move |connection| {
        let accept = acceptor.accept(connection);
        async {
            let Ok(stream) = accept.await else { return };
            let http = hyper::server::conn::http1::Builder::new();
            drop(http.serve_connection(TokioIo::new(stream), service_fn(answer)).await);
        }
    })
    .await
}

/// An authority of our own, and a certificate that it signed.
struct Pki {
    ca: CertificateDer<'static>,
    config: ServerConfig,
}

fn pki(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Pki {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(ca, ca_key);

    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    change(&mut params);
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Pki { ca: ca_certificate.der().clone(), config }
}

fn get(path: &str) -> HttpCheck {
    HttpCheck {
        target: HttpTarget::Path(path.to_owned()),
        method: "GET".to_owned(),
        status: StatusSet(vec![(200, 299)]),
        body: None,
        headers: Vec::new(),
        tls_verify: true,
    }
}

/// Asks and compares the sentence; `127.0.0.1:PORT` stands for the server's address.
async fn check_answer(prober: &Prober, check: Check, backend: &Backend, code: Code, says: &str) {
    let answer = prober.ask(&check, Some(backend), TIMEOUT).await;
    let reason = answer.reason.replace(&backend.port.to_string(), "PORT");
    assert_eq!((answer.code, reason.as_str()), (code, says));
    assert_eq!(answer.ok, code == Code::Ok);
}

/// A port that nobody listens on.
async fn dead_port() -> NonZeroU16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    NonZeroU16::new(listener.local_addr().unwrap().port()).unwrap()
}

#[tokio::test]
async fn an_http_probe_judges_the_status() {
    let server = http_server().await;
    let backend = server.backend(false);
    let prober = Prober::new();
    for (path, code, says) in [
        ("/echo", Code::Ok, "status 200"),
        ("/fail", Code::Status, "status 500, expected 200-299"),
        ("/away", Code::Status, "status 302 to /echo, expected 200-299"),
    ] {
        check_answer(&prober, Check::Http(get(path)), &backend, code, says).await;
    }
    let mut check = get("/away");
    check.status = StatusSet(vec![(200, 204), (302, 302)]);
    check_answer(&prober, Check::Http(check.clone()), &backend, Code::Ok, "status 302").await;
    check.target = HttpTarget::Path("/none".to_owned());
    let says = "status 404, expected 200-204, 302";
    check_answer(&prober, Check::Http(check), &backend, Code::Status, says).await;
}

#[tokio::test]
async fn an_http_probe_searches_the_first_64_kib_of_the_body() {
    let server = http_server().await;
    let backend = server.backend(false);
    let prober = Prober::new();
    let lacks = "body lacks \"needle\"";
    let lacks_so_far = "body lacks \"needle\" in its first 64 KiB";
    for (path, code, says) in [
        ("/near", Code::Ok, "status 200"),
        ("/long", Code::Body, lacks_so_far),
        ("/echo", Code::Body, lacks),
    ] {
        let check = HttpCheck { body: Some("needle".to_owned()), ..get(path) };
        check_answer(&prober, Check::Http(check), &backend, code, says).await;
    }
}

#[tokio::test]
async fn an_http_probe_says_who_asks_and_whom() {
    let server = http_server().await;
    let backend = server.backend(false);
    let prober = Prober::new();
    let asks = |text: &str, headers: &[(&str, &str)]| {
        let mut check = get("/echo?a=b");
        check.method = "POST".to_owned();
        check.body = Some(text.to_owned());
        check.headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        Check::Http(check)
    };
    for (text, headers) in [
        ("POST /echo?a=b\n", vec![]),
        (&format!("\"host\": \"localhost:{}\"", backend.port), vec![]),
        (&format!("\"user-agent\": \"outlast/{}\"", env!("CARGO_PKG_VERSION")), vec![]),
        ("\"host\": \"example.org\"", vec![("Host", "example.org")]),
        ("\"x-token\": \"s3cret\"", vec![("X-Token", "s3cret")]),
        ("\"user-agent\": \"mine\"", vec![("user-agent", "mine")]),
    ] {
        check_answer(&prober, asks(text, &headers), &backend, Code::Ok, "status 200").await;
    }
}

#[tokio::test]
async fn a_whole_url_needs_no_backend() {
    let server = http_server().await;
    let target =
        HttpTarget::Url { tls: false, authority: server.at.clone(), path: "/echo".to_owned() };
    let check = Check::Http(HttpCheck { target, ..get("/") });
    let answer = Prober::new().ask(&check, None, TIMEOUT).await;
    assert_eq!(answer.reason, "status 200");

    let answer = Prober::new().ask(&Check::Http(get("/x")), None, TIMEOUT).await;
    assert_eq!(answer.code, Code::Internal);
    let answer = Prober::new().ask(&Check::Tcp { address: None }, None, TIMEOUT).await;
    assert_eq!(answer.code, Code::Internal);
}

#[tokio::test]
async fn a_dead_port_is_refused() {
    let port = dead_port().await;
    let backend = Backend { url: String::new(), tls: false, host: "127.0.0.1".to_owned(), port };
    let prober = Prober::new();
    for check in [Check::Tcp { address: None }, Check::Http(get("/"))] {
        let says = "connect 127.0.0.1:PORT: refused";
        check_answer(&prober, check, &backend, Code::Refused, says).await;
    }
}

#[tokio::test]
async fn a_name_without_an_address_says_so() {
    let at = Authority { host: "nowhere.invalid".to_owned(), port: NonZeroU16::MIN };
    let answer = Prober::new().ask(&Check::Tcp { address: Some(at) }, None, TIMEOUT).await;
    assert_eq!(answer.code, Code::Dns, "{}", answer.reason);
    assert!(answer.reason.starts_with("look up nowhere.invalid: "), "{}", answer.reason);
}

#[tokio::test]
async fn an_open_port_is_enough_for_a_tcp_probe_even_if_it_closes_at_once() {
    let server = server(|connection| async { drop(connection) }).await;
    let prober = Prober::new();
    let backend = server.backend(false);
    check_answer(&prober, Check::Tcp { address: None }, &backend, Code::Ok, "connected").await;
    let address = Some(server.at.clone());
    check_answer(&prober, Check::Tcp { address }, &backend, Code::Ok, "connected").await;
}

#[tokio::test]
async fn a_silent_server_is_given_up_on_in_time() {
    let server = server(|connection| async {
        let _held = connection;
        std::future::pending::<()>().await;
    })
    .await;
    for backend in [server.backend(false), server.backend(true)] {
        let answer = Prober::new().ask(&Check::Http(get("/")), Some(&backend), SHORT).await;
        assert_eq!(answer.code, Code::Timeout);
        assert!(answer.reason.ends_with("no answer within 200ms"), "{}", answer.reason);
        assert!(answer.took >= SHORT && answer.took < TIMEOUT, "{:?}", answer.took);
    }
}

#[tokio::test]
async fn a_server_that_hangs_up_or_talks_nonsense_says_so() {
    let closes = server(|connection| async move {
        let mut request = [0; 1024];
        connection.readable().await.unwrap();
        drop(connection.try_read(&mut request));
    })
    .await;
    let prober = Prober::new();
    let check = Check::Http(get("/"));
    let says = "closed by the other side";
    check_answer(&prober, check.clone(), &closes.backend(false), Code::Reset, says).await;

    let resets = server(|connection| async move {
        connection.readable().await.unwrap();
        connection.set_zero_linger().unwrap();
    })
    .await;
    let says = "reset by the other side";
    check_answer(&prober, check.clone(), &resets.backend(false), Code::Reset, says).await;

    let babbles = server(|mut connection| async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        connection.write_all(b"SSH-2.0-OpenSSH_9.9\r\n").await.unwrap();
        drop(connection.read_to_end(&mut Vec::new()).await);
    })
    .await;
    let answer = prober.ask(&check, Some(&babbles.backend(false)), TIMEOUT).await;
    assert_eq!(answer.code, Code::Protocol, "{}", answer.reason);
}

#[tokio::test]
async fn tls_is_verified_unless_told_otherwise() {
    let past = |params: &mut CertificateParams| {
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
    };
    let future = |params: &mut CertificateParams| {
        params.not_before = rcgen::date_time_ymd(3001, 1, 1);
        params.not_after = rcgen::date_time_ymd(3002, 1, 1);
    };
    for (pki, trusted, code, says) in [
        (pki("localhost", |_| {}), true, Code::Ok, "status 200"),
        (pki("localhost", past), true, Code::Certificate, "certificate expired"),
        (pki("localhost", future), true, Code::Certificate, "certificate not valid yet"),
        (pki("other.example", |_| {}), true, Code::Certificate, "certificate is not for localhost"),
        (
            pki("localhost", |_| {}),
            false,
            Code::Certificate,
            "certificate is signed by an unknown authority",
        ),
    ] {
        let prober = Prober::trusting(trusted.then_some(pki.ca));
        let server = https_server(pki.config).await;
        let backend = server.backend(true);
        check_answer(&prober, Check::Http(get("/echo")), &backend, code, says).await;
        let blind = Check::Http(HttpCheck { tls_verify: false, ..get("/echo") });
        check_answer(&prober, blind, &backend, Code::Ok, "status 200").await;
    }
}

#[tokio::test]
async fn a_host_header_names_the_certificate_too() {
    let pki = pki("shop.example", |_| {});
    let prober = Prober::trusting([pki.ca]);
    let server = https_server(pki.config).await;
    let headers = vec![("Host".to_owned(), "shop.example:8443".to_owned())];
    let check = Check::Http(HttpCheck { headers, ..get("/echo") });
    check_answer(&prober, check, &server.backend(true), Code::Ok, "status 200").await;
}

#[tokio::test]
async fn a_plain_server_asked_for_tls_says_so() {
    let server = http_server().await;
    let answer =
        Prober::new().ask(&Check::Http(get("/")), Some(&server.backend(true)), TIMEOUT).await;
    assert_eq!(answer.code, Code::Tls, "{}", answer.reason);
}

#[test]
fn our_own_trouble_is_told_from_the_other_sides() {
    use rustix::io::Errno;
    for (errno, code) in [
        (Errno::MFILE, Code::Internal),
        (Errno::ADDRNOTAVAIL, Code::Internal),
        (Errno::CONNREFUSED, Code::Refused),
        (Errno::HOSTUNREACH, Code::Unreachable),
        (Errno::TIMEDOUT, Code::Timeout),
        (Errno::PIPE, Code::Reset),
    ] {
        assert_eq!(dial::io_fault("", &io::Error::from(errno)).code, code, "{errno}");
    }
}

fn command(argv: &[&str]) -> Check {
    Check::Command(Command(argv.iter().map(|&word| word.to_owned()).collect()))
}

#[tokio::test]
async fn a_command_answers_by_its_exit_status() {
    let port = NonZeroU16::new(5432).unwrap();
    let backend = Backend { url: String::new(), tls: false, host: "::1".to_owned(), port };
    let prober = Prober::new();
    for (script, code, says) in [
        ("exit 0", Code::Ok, "exit status 0"),
        ("echo fine", Code::Ok, "exit status 0: fine"),
        ("echo starting; echo no reply >&2; exit 2", Code::Exit, "exit status 2: no reply"),
    ] {
        check_answer(&prober, command(&["sh", "-c", script]), &backend, code, says).await;
    }
    let check = command(&["echo", "--at={backend}"]);
    check_answer(&prober, check.clone(), &backend, Code::Ok, "exit status 0: --at=[::1]:PORT")
        .await;
    assert_eq!(prober.ask(&check, None, TIMEOUT).await.code, Code::Internal);

    let says = "run /nowhere/check: no such file or directory";
    check_answer(&prober, command(&["/nowhere/check"]), &backend, Code::Exit, says).await;

    let answer = prober.ask(&command(&["sleep", "60"]), None, SHORT).await;
    assert_eq!((answer.code, answer.reason.as_str()), (Code::Timeout, "no answer within 200ms"));
    assert!(answer.took < TIMEOUT, "{:?}", answer.took);
}

/// A gRPC server whose health is what the service's name says.
async fn health(request: Request<Incoming>) -> Result<Response<GrpcBody>, Infallible> {
    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
    assert_eq!(request.headers()["te"], "trailers");
    let bytes = request.into_body().collect().await.unwrap().to_bytes();
    let asked = String::from_utf8_lossy(&bytes[bytes.len().min(7)..]).into_owned();
    let trailers = |status: &'static str| {
        let mut trailers = hyper::HeaderMap::new();
        trailers.insert("grpc-status", hyper::header::HeaderValue::from_static(status));
        trailers
    };
    let body = |message: &'static [u8], status| {
        let body = Full::new(Bytes::from_static(message));
        body.with_trailers(std::future::ready(Some(Ok(trailers(status))))).boxed()
    };
    let response = Response::builder().header("content-type", "application/grpc+proto");
    let empty = || Full::new(Bytes::new()).boxed();
    Ok(match asked.as_str() {
        "" => response.body(body(b"\0\0\0\0\x02\x08\x01", "0")),
        "ill" => response.body(body(b"\0\0\0\0\x02\x08\x02", "0")),
        "torn" => response.body(body(b"\0\0\0\0\x02\x08", "0")),
        "late" => response.body(body(b"", "14")),
        "none" => response.header("grpc-status", "5").body(empty()),
        "old" => response.header("grpc-status", "12").body(empty()),
        "full" => response
            .header("grpc-status", "8")
            .header("grpc-message", "too many probes")
            .body(empty()),
        "web" => Response::builder().header("content-type", "text/html").body(empty()),
        _ => response.status(503).body(empty()),
    }
    .unwrap())
}

type GrpcBody = http_body_util::combinators::BoxBody<Bytes, Infallible>;

/// Runs what the server wants run.
#[derive(Clone)]
struct Spawn;

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Spawn {
    fn execute(&self, task: F) {
        drop(tokio::spawn(task));
    }
}

fn grpc(service: &str, tls: bool) -> Check {
    Check::Grpc { service: service.to_owned(), address: None, tls, tls_verify: true }
}

#[tokio::test]
async fn a_grpc_probe_takes_only_serving_for_a_yes() {
    let server = server(|connection| async {
        let http = hyper::server::conn::http2::Builder::new(Spawn);
        drop(http.serve_connection(TokioIo::new(connection), service_fn(health)).await);
    })
    .await;
    let backend = server.backend(false);
    let prober = Prober::new();
    for (service, code, says) in [
        ("", Code::Ok, "gRPC SERVING"),
        ("ill", Code::Grpc, "gRPC NOT_SERVING"),
        ("torn", Code::Grpc, "malformed health answer: not as long as its frame says"),
        ("late", Code::Grpc, "gRPC UNAVAILABLE"),
        ("none", Code::Grpc, "gRPC NOT_FOUND: no service `none`"),
        ("old", Code::Grpc, "gRPC UNIMPLEMENTED: the server does not answer health checks"),
        ("full", Code::Grpc, "gRPC RESOURCE_EXHAUSTED: too many probes"),
        ("web", Code::Protocol, "the answer is not gRPC"),
        ("down", Code::Status, "HTTP status 503, expected 200"),
    ] {
        check_answer(&prober, grpc(service, false), &backend, code, says).await;
    }
}

#[tokio::test]
async fn a_grpc_probe_speaks_tls() {
    let pki = pki("localhost", |_| {});
    let prober = Prober::trusting([pki.ca]);
    let acceptor = TlsAcceptor::from(Arc::new(pki.config));
    let server = server(move |connection| {
        let accept = acceptor.accept(connection);
        async {
            let Ok(stream) = accept.await else { return };
            let http = hyper::server::conn::http2::Builder::new(Spawn);
            drop(http.serve_connection(TokioIo::new(stream), service_fn(health)).await);
        }
    })
    .await;
    check_answer(&prober, grpc("", true), &server.backend(false), Code::Ok, "gRPC SERVING").await;
    check_answer(&prober, grpc("", false), &server.backend(true), Code::Ok, "gRPC SERVING").await;
}

#[tokio::test]
async fn a_grpc_probe_of_another_kind_of_server_fails() {
    let server = http_server().await;
    let answer = Prober::new().ask(&grpc("", false), Some(&server.backend(false)), TIMEOUT).await;
    assert!([Code::Protocol, Code::Reset].contains(&answer.code), "{answer:?}");
}
