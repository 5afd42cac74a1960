//! HTTP/2 clients: what they see, and what the backends see of them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use http_body::Frame;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use crate::harness::{Backend, Gate, LIMIT, Wire, get, nobody, ok, until};
use crate::tls::{Authority, client, trusting};

/// A request body that is said piece by piece, while the answer comes.
pub(crate) struct Script(mpsc::Receiver<Frame<Bytes>>);

impl http_body::Body for Script {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|frame| frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_closed() && self.0.is_empty()
    }
}

pub(crate) type Sender = SendRequest<Script>;

/// Runs an HTTP/2 client, within the limit.
pub(crate) fn run<T>(body: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(LIMIT, body).await.expect("in time") })
}

async fn over<T: AsyncRead + AsyncWrite + Send + Unpin + 'static>(io: T) -> Sender {
    let (sender, conn) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io))
            .await
            .unwrap();
    tokio::spawn(async move { conn.await.ok() });
    sender
}

/// Opens with HTTP/2 and no TLS; tells how the connection ended.
pub(crate) async fn known_to_end(
    to: SocketAddr,
) -> (Sender, tokio::task::JoinHandle<hyper::Result<()>>) {
    let stream = tokio::net::TcpStream::connect(to).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (sender, conn) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    (sender, tokio::spawn(conn))
}

/// Opens with HTTP/2 and no TLS.
pub(crate) async fn known(to: SocketAddr) -> Sender {
    let stream = tokio::net::TcpStream::connect(to).await.unwrap();
    stream.set_nodelay(true).unwrap();
    over(stream).await
}

pub(crate) fn request(method: &str, path: &str) -> http::request::Builder {
    Request::builder().method(method).uri(format!("http://shop{path}"))
}

pub(crate) fn nothing() -> Script {
    Script(mpsc::channel(1).1)
}

fn pieces() -> (mpsc::Sender<Frame<Bytes>>, Script) {
    let (tell, hear) = mpsc::channel(1);
    (tell, Script(hear))
}

pub(crate) async fn text(response: Response<Incoming>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[test]
fn http2_is_spoken_by_prior_knowledge() {
    let backend = Backend::answering(|r| {
        let names = [
            "host",
            "x-forwarded-for",
            "x-forwarded-host",
            "cookie",
            "te",
            "content-length",
            "transfer-encoding",
        ];
        ok(&names.map(|n| r.all(n).join("+")).join("|"))
    });
    let gate = Gate::http(&[backend.address], |_| {});
    run(async {
        let mut sender = known(gate.address).await;
        for _ in 0..3 {
            let asked = request("GET", "/a?b")
                .header("cookie", "a=1")
                .header("cookie", "b=2")
                .header("te", "trailers")
                .header("x-forwarded-for", "6.6.6.6");
            let response = sender.send_request(asked.body(nothing()).unwrap()).await.unwrap();
            assert_eq!((response.status().as_u16(), response.version()), (200, Version::HTTP_2));
            assert_eq!(text(response).await, "shop|127.0.0.1|shop|a=1; b=2|||");
        }
    });
    assert!(backend.requests().iter().all(|r| r.head.starts_with("GET /a?b HTTP/1.1\r\n")));
    assert_eq!(backend.connections(), 1);
}

#[test]
fn http2_is_chosen_in_the_tls_handshake() {
    let authority = Authority::new();
    let backend = Backend::answering(|r| ok(r.header("x-forwarded-proto").unwrap_or("-")));
    let gate = Gate::http(&[backend.address], |service| {
        service.certificates = vec![authority.issue(&["shop"])];
    });
    run(async {
        let config = trusting(&authority, &["h2", "http/1.1"]);
        let stream = tokio::net::TcpStream::connect(gate.address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(config);
        let stream = connector.connect("shop".try_into().unwrap(), stream).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
        let mut sender = over(stream).await;
        let response = sender.send_request(request("GET", "/").body(nothing()).unwrap()).await;
        assert_eq!(text(response.unwrap()).await, "https");
    });
    // Who does not know it gets HTTP/1.1.
    for alpn in [&["http/1.1"][..], &[]] {
        let mut wire = client(gate.address, "shop", &trusting(&authority, alpn));
        assert_eq!(wire.ask(get("/")).text(), "https");
    }
}

#[test]
fn a_hundred_streams_run_at_once() {
    let seen = Arc::new(AtomicUsize::new(0));
    let backend = Backend::start(move |mut stage| {
        while let Some(request) = stage.next() {
            seen.fetch_add(1, SeqCst);
            until("all hundred are here", || seen.load(SeqCst) >= 100);
            stage.say(ok(&request.line()));
        }
    });
    let gate = Gate::http(&[backend.address], |_| {});
    run(async {
        let sender = known(gate.address).await;
        let asking = (0..100).map(|n| {
            let mut sender = sender.clone();
            tokio::spawn(async move {
                let asked = request("GET", &format!("/{n}")).body(nothing()).unwrap();
                text(sender.send_request(asked).await.unwrap()).await
            })
        });
        for (n, answer) in asking.collect::<Vec<_>>().into_iter().enumerate() {
            assert_eq!(answer.await.unwrap(), format!("GET /{n}"));
        }
    });
    assert_eq!(backend.count(), 100);
}

#[test]
fn bodies_stream_both_ways_at_once() {
    let backend = Backend::start(|mut stage| {
        stage.wire.head().unwrap();
        stage.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        // One chunk for each that comes.
        while let Ok(Some(line)) = stage.wire.until(b"\r\n") {
            let size =
                usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim(), 16).unwrap();
            let chunk = stage.wire.exactly(size + 2).unwrap();
            stage.say([line, chunk].concat());
            if size == 0 {
                return;
            }
        }
    });
    let gate = Gate::http(&[backend.address], |_| {});
    run(async {
        let mut sender = known(gate.address).await;
        let (tell, body) = pieces();
        tell.send(Frame::data(Bytes::from_static(b"first"))).await.unwrap();
        let response = sender.send_request(request("POST", "/").body(body).unwrap()).await.unwrap();
        let mut answer = response.into_body();
        let mut sent = Bytes::from_static(b"first");
        for n in 0..200_usize {
            let mut got = Vec::new();
            while got.len() < sent.len() {
                got.extend(answer.frame().await.unwrap().unwrap().into_data().unwrap());
            }
            assert!(got == sent, "piece {n}");
            sent = Bytes::from(vec![n as u8; n * 499 + 1]);
            tell.send(Frame::data(sent.clone())).await.unwrap();
        }
        drop(tell);
        let last = answer.collect().await.unwrap().to_bytes();
        assert!(last == sent);
    });
}

#[test]
fn large_bodies_arrive_whole() {
    let backend = Backend::answering(|r| ok(&"x".repeat(r.body.len())));
    let gate = Gate::http(&[backend.address], |_| {});
    run(async {
        let mut sender = known(gate.address).await;
        let (tell, body) = pieces();
        let asked = request("POST", "/").header("content-length", 20 << 20).body(body).unwrap();
        let answering = sender.send_request(asked);
        tokio::spawn(async move {
            for n in 0..20_u8 {
                tell.send(Frame::data(Bytes::from(vec![n; 1 << 20]))).await.unwrap();
            }
        });
        let answer = answering.await.unwrap().into_body().collect().await.unwrap().to_bytes();
        assert_eq!(answer.len(), 20 << 20);
    });
    let request = &backend.requests()[0];
    assert_eq!(request.header("content-length"), Some("20971520"));
    assert!(request.body.chunks(1 << 20).enumerate().all(|(n, c)| c.iter().all(|&b| b == n as u8)));
}

#[test]
fn trailers_of_an_answer_pass_and_trailers_of_a_request_do_not() {
    let backend = Backend::start(|mut stage| {
        while let Some(_request) = stage.next() {
            stage.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 42\r\n\r\n");
        }
    });
    let gate = Gate::http(&[backend.address], |_| {});
    run(async {
        let mut sender = known(gate.address).await;
        let (tell, body) = pieces();
        let answering = sender.send_request(request("POST", "/").body(body).unwrap());
        tell.send(Frame::data(Bytes::from_static(b"data"))).await.unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("content-length", "99".parse().unwrap());
        trailers.insert("x-mine", "1".parse().unwrap());
        tell.send(Frame::trailers(trailers)).await.unwrap();
        drop(tell);
        let collected = answering.await.unwrap().into_body().collect().await.unwrap();
        assert_eq!(collected.trailers().and_then(|t| t.get("x-sum")).unwrap(), "42");
        assert_eq!(collected.to_bytes(), "hi");
        // The connection to the backend is in order: nothing of the trailers was left on it.
        let again =
            sender.send_request(request("GET", "/").body(nothing()).unwrap()).await.unwrap();
        assert_eq!(text(again).await, "hi");
    });
    assert_eq!(backend.requests()[0].body, b"data");
    assert_eq!((backend.count(), backend.connections()), (2, 1));
}

#[test]
fn streams_are_retried_like_any_request() {
    let good = Backend::named("good");
    let bad = Backend::start(|mut stage| drop(stage.next()));
    let gate = Gate::http(&[nobody(), bad.address, good.address], |service| {
        service.eject.failures = 0;
        service.retry.backoff = Duration::from_millis(1);
    });
    run(async {
        let mut sender = known(gate.address).await;
        for _ in 0..9 {
            let asked = request("GET", "/").body(nothing()).unwrap();
            assert_eq!(text(sender.send_request(asked).await.unwrap()).await, "good");
        }
    });
    assert!(gate.stats().retries >= 6);
}

#[test]
fn what_http1_refuses_http2_does_not_smuggle() {
    let backend = Backend::named("b");
    let gate = Gate::http(&[backend.address], |_| {});
    run(async {
        let mut sender = known(gate.address).await;
        for (asked, status) in [
            (request("GET", "/../etc"), 400),
            (request("GET", "/%00"), 400),
            (request("get", "/"), 400),
            (request("TRACE", "/"), 405),
            (Request::builder().uri("http://a..b/"), 400),
            (request("GET", "/").header("expect", "tea"), 417),
        ] {
            let response = sender.send_request(asked.body(nothing()).unwrap()).await.unwrap();
            assert_eq!(response.status().as_u16(), status);
        }
        let asked = request("GET", "/").header("connection", "x-hop").header("upgrade", "h2c");
        // Headers of one hop are an error in HTTP/2, whoever lets them through: none may reach the backend.
        if let Ok(response) = sender.send_request(asked.body(nothing()).unwrap()).await {
            drop(text(response).await);
        }
    });
    assert!(backend.requests().iter().all(|r| r.header("upgrade").is_none()));
    assert!(backend.count() <= 1);
}

#[test]
fn a_length_that_does_not_fit_the_body_smuggles_nothing() {
    let backend = Backend::named("b");
    let gate = Gate::http(&[backend.address], |_| {});
    run(async {
        for (length, body) in
            [(2, "hello"), (0, "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"), (50, "short")]
        {
            let mut sender = known(gate.address).await;
            let (tell, script) = pieces();
            let asked = request("POST", "/").header("content-length", length).body(script).unwrap();
            let answering = sender.send_request(asked);
            tell.send(Frame::data(Bytes::from_static(body.as_bytes()))).await.ok();
            drop(tell);
            answering.await.ok();
        }
        let mut sender = known(gate.address).await;
        let asked = request("GET", "/next").body(nothing()).unwrap();
        assert_eq!(text(sender.send_request(asked).await.unwrap()).await, "b");
    });
    assert!(
        backend.requests().iter().all(|r| r.line() != "GET /smuggled"),
        "{:?}",
        backend.requests()
    );
}

#[test]
fn a_stream_that_the_client_resets_is_taken_back() {
    let gone = Arc::new(AtomicBool::new(false));
    let seen = gone.clone();
    let backend = Backend::start(move |mut stage| {
        let request = stage.next().unwrap();
        if request.line() == "GET /other" {
            stage.say(ok("other"));
            return;
        }
        stage.say("HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n");
        while stage.say(vec![7; 1 << 16]) {}
        seen.store(true, SeqCst);
    });
    let gate = Gate::http(&[backend.address], |_| {});
    run(async {
        let mut sender = known(gate.address).await;
        let asked = request("GET", "/").body(nothing()).unwrap();
        let mut body = sender.send_request(asked).await.unwrap().into_body();
        body.frame().await.unwrap().unwrap();
        drop(body);
        let asked = request("GET", "/other").body(nothing()).unwrap();
        assert_eq!(text(sender.send_request(asked).await.unwrap()).await, "other");
        let told = tokio::task::spawn_blocking(move || until("told", || gone.load(SeqCst)));
        told.await.unwrap();
    });
    until("its place is free", || gate.stats().in_flight == 0);
}

#[test]
fn a_body_that_breaks_off_does_not_look_whole() {
    for head in [
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ] {
        let backend = Backend::start(move |mut stage| {
            stage.next();
            stage.say(head);
        });
        let gate = Gate::http(&[backend.address], |_| {});
        run(async {
            let mut sender = known(gate.address).await;
            let asked = request("GET", "/").body(nothing()).unwrap();
            let whole = match sender.send_request(asked).await {
                Ok(response) => response.into_body().collect().await.map(drop),
                Err(e) => Err(e),
            };
            assert!(whole.is_err(), "{head}");
        });
    }
}

#[test]
fn a_draining_proxy_says_goodbye_and_finishes_what_it_has() {
    let go = Arc::new(AtomicBool::new(false));
    let seen = go.clone();
    let backend = Backend::start(move |mut stage| {
        while let Some(request) = stage.next() {
            if request.line() == "GET /late" {
                until("told to go on", || seen.load(SeqCst));
            }
            stage.say(ok("late"));
        }
    });
    let gate = Gate::http(&[backend.address], |_| {});
    run(async {
        let mut sender = known(gate.address).await;
        let answering = sender.send_request(request("GET", "/late").body(nothing()).unwrap());
        let answering = tokio::spawn(answering);
        while backend.count() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        gate.proxy.drain();
        // GOAWAY: the client may begin nothing new here.
        while let Ok(answer) =
            sender.send_request(request("GET", "/").body(nothing()).unwrap()).await
        {
            assert_eq!(answer.status().as_u16(), 200);
        }
        go.store(true, SeqCst);
        assert_eq!(text(answering.await.unwrap().unwrap()).await, "late");
    });
    until("the connection is over", || gate.proxy.connections() == 0);
}

#[test]
fn nonsense_after_the_preface_harms_nobody() {
    let backend = Backend::named("b");
    let gate = Gate::http(&[backend.address], |_| {});
    for after in
        ["", "garbage that is no frame at all, but long enough to be one", "\0\0\0\x04\0\0\0\0\0"]
    {
        let mut wire = Wire::connect(gate.address);
        wire.try_send(format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{after}")).ok();
        wire.end();
        wire.rest().ok();
    }
    assert_eq!(Wire::connect(gate.address).ask(get("/")).text(), "b");
    assert_eq!(backend.count(), 1);
}
