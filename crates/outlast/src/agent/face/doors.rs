//! Tests of what is answered to whom: methods, paths, forms and details.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use tokio::sync::watch;

use super::tests::scene;
use super::*;
use crate::agent::shared::{Recent, StatsAt};

fn shared() -> Shared {
    let scene = scene();
    Shared {
        node: scene.node,
        version: scene.version,
        started: Instant::now(),
        started_at: scene.started_at,
        picture: watch::channel(scene.picture).1,
        stats: Arc::new(Mutex::new(StatsAt::new(Instant::now()))),
        stopping: watch::channel(false).1,
        recent: Recent::default(),
    }
}

fn ask(method: Method, path: &str, headers: &[(&str, &str)], door: Door) -> Response<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    respond(&request.body(()).unwrap(), &shared(), door)
}

fn get(path: &str) -> Response<Full<Bytes>> {
    ask(Method::GET, path, &[], Door::Public)
}

fn header<'a>(response: &'a Response<Full<Bytes>>, name: &str) -> &'a str {
    response.headers()[name].to_str().unwrap()
}

fn body(response: Response<Full<Bytes>>) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let body = runtime.block_on(response.into_body().collect()).unwrap();
    String::from_utf8(body.to_bytes().to_vec()).unwrap()
}

#[test]
fn every_place_answers_in_its_own_form_and_is_never_kept() {
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/health", "application/health+json"),
        ("/health/", "application/health+json"),
        ("/health/live", "application/health+json"),
        ("/health/ready?x=1", "application/health+json"),
        ("/health/started", "application/health+json"),
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8"),
        ("/v1/status", "application/json"),
    ] {
        let response = get(path);
        assert_eq!(header(&response, "content-type"), kind, "{path}");
        assert_eq!(header(&response, "cache-control"), "no-store", "{path}");
    }
    // The literal picture is older than any that is to be believed.
    assert_eq!(get("/health/live").status(), 200);
    assert_eq!(get("/health/ready").status(), 503);
}

#[test]
fn head_is_get_without_the_body() {
    for (path, _, _) in PLACES {
        // Ages differ from moment to moment, but not their width in most answers.
        let (with, without) = (get(path), ask(Method::HEAD, path, &[], Door::Public));
        assert_eq!(without.status(), with.status(), "{path}");
        let length: usize = header(&without, "content-length").parse().unwrap();
        assert!(length > 0 && body(with).len().abs_diff(length) < 64, "{path}");
        assert_eq!(body(without), "", "{path}");
    }
}

#[test]
fn other_methods_and_paths_are_told_what_there_is() {
    let response = ask(Method::POST, "/metrics", &[], Door::Public);
    assert_eq!((response.status().as_u16(), header(&response, "allow")), (405, "GET, HEAD"));
    let response = get("/nothing");
    assert_eq!(response.status(), 404);
    let text = body(response);
    assert!(
        PLACES.iter().all(|(path, _, what)| text.contains(path) && text.contains(what)),
        "{text}"
    );
    assert_eq!(ask(Method::DELETE, "/nothing", &[], Door::Public).status(), 404);
}

#[test]
fn metrics_come_in_the_form_that_is_liked() {
    let open = ("accept", "application/openmetrics-text; version=1.0.0");
    let response =
        ask(Method::GET, "/metrics", &[open, ("accept", "text/plain;q=0.5")], Door::Public);
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!((header(&response, "content-type"), header(&response, "vary")), (kind, "accept"));
    assert!(body(response).ends_with("# EOF\n"));
}

#[test]
fn details_are_for_those_who_could_log_in() {
    let forwarded: &[(&str, &str)] = &[("x-forwarded-for", "203.0.113.9")];
    for (door, headers, full) in [
        (Door::Public, &[][..], false),
        (Door::Local, &[][..], true),
        (Door::Local, forwarded, false),
        (Door::Admin, &[][..], true),
    ] {
        let text = body(ask(Method::GET, "/health", headers, door));
        assert_eq!(text.contains("stripe.example"), full, "{door:?} {headers:?}");
        assert!(text.contains("\"external:stripe\""), "{text}");
    }
}

#[test]
fn no_two_pages_share_a_nonce() {
    let nonce = || {
        let response = get("/");
        let policy = header(&response, "content-security-policy").to_owned();
        let nonce = policy.split_once("'nonce-").unwrap().1.split_once('\'').unwrap().0.to_owned();
        assert!(body(response).contains(&format!("<script nonce=\"{nonce}\">")));
        nonce
    };
    assert_ne!(nonce(), nonce());
}
