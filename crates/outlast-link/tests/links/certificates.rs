//! New certificates, new CAs and revocations, while everything runs.

use std::path::PathBuf;
use std::time::Duration;

use outlast_link::wire::{Frame, Lane};
use outlast_link::{Channel, Identity, IdentityFiles, LinkEvent, Pem, RefusalKind, Security};

use crate::harness::{
    Ca, Issued, Node, Raw, cluster, config, connected, hello, listen, peers, until, within,
};

async fn taken(node: &mut Node) -> Option<String> {
    node.event("new certificates", |event| {
        if let LinkEvent::IdentityTaken { fault } = event { Some(fault) } else { None }
    })
    .await
}

#[tokio::test]
async fn new_certificates_are_taken_without_cutting_anything() {
    let ca = Ca::new("ca");
    let mut nodes = cluster(Some(&ca), &["a", "b"]).await;
    let instances = |nodes: &[Node]| -> Vec<Duration> {
        nodes
            .iter()
            .flat_map(|n| n.links.peers().into_values())
            .map(|p| p.connection.unwrap().lasts)
            .collect()
    };
    let before = instances(&nodes);
    let (a, b) = (ca.issue("a", 11), ca.issue("b", 12));
    nodes[0].links.reload_identity(ca.identity(&a, &[])).unwrap();
    nodes[1].links.reload_identity(ca.identity(&b, &[])).unwrap();
    assert_eq!(taken(&mut nodes[0]).await, None);
    assert_eq!(taken(&mut nodes[1]).await, None);
    nodes[0].links.try_send("b", Channel::Consensus, vec![1]).unwrap();
    within("a message", nodes[1].inboxes.consensus.next()).await.unwrap();
    let after = instances(&nodes);
    assert!(
        before.iter().zip(&after).all(|(before, after)| before < after),
        "the same connections"
    );
    let other = nodes[0].links.reload_identity(ca.identity(&b, &[])).unwrap_err();
    assert!(other.to_string().starts_with("the certificate names node `b` and this is node `a`"));
}

#[tokio::test]
async fn a_revoked_node_is_cut_off_and_its_new_certificate_is_not() {
    let ca = Ca::new("ca");
    let mut a = Node::alone(&ca).await;
    let old = ca.issue("b", 2);
    let mut raw = Raw::accepted(a.address, &old, hello("b")).await;
    until("b is up", || a.is_up("b")).await;
    let own = ca.issue("a", 1);
    a.links.reload_identity(ca.identity(&own, &[2])).unwrap();
    let text = "its certificate is not good any more: it was revoked";
    assert_eq!(raw.goodbye().await, text);
    assert_eq!(a.down("b").await, text);
    let mut again = Raw::connect(a.address, Some(&old)).await.unwrap();
    again.send(&[1]).await;
    a.refusal(RefusalKind::Revoked).await;
    let new = Raw::accepted(a.address, &ca.issue("b", 3), hello("b")).await;
    until("b is up again", || a.is_up("b")).await;
    drop(new);
}

#[tokio::test]
async fn nothing_of_a_revoked_node_is_taken_any_more_even_if_it_holds_up_the_goodbye() {
    let ca = Ca::new("ca");
    let mut a = Node::alone(&ca).await;
    let mut raw = Raw::accepted(a.address, &ca.issue("b", 2), hello("b")).await;
    until("b is up", || a.is_up("b")).await;
    // It never says how much it takes, so this waits, and the goodbye behind it.
    a.links.try_send("b", Channel::Consensus, vec![1]).unwrap();
    a.links.reload_identity(ca.identity(&ca.issue("a", 1), &[2])).unwrap();
    let payload = b"vote for me";
    raw.send_frame(Frame::Data { lane: Lane::Consensus, more: false, payload }).await;
    let text = "its certificate is not good any more: it was revoked";
    assert_eq!(a.down("b").await, text);
    assert_eq!(a.inboxes.consensus.next_now(), None);
}

#[tokio::test]
async fn a_connection_ends_when_its_certificate_expires() {
    let ca = Ca::new("ca");
    let mut a = Node::alone(&ca).await;
    // Long enough to get in, on a machine that is not asleep.
    let mut raw = Raw::accepted(a.address, &ca.issue_for("b", 2, 5), hello("b")).await;
    let text = "its certificate is not good any more: it has expired";
    let told = tokio::spawn(async move { raw.goodbye().await });
    assert_eq!(a.down("b").await, text);
    assert_eq!(told.await.unwrap(), text);
}

#[tokio::test]
async fn one_ca_takes_the_place_of_another_without_an_interruption() {
    let (old, new) = (Ca::new("old"), Ca::new("new"));
    let names = ["a", "b"];
    let mut nodes = cluster(Some(&old), &names).await;
    let take = |nodes: &mut Vec<Node>, pem: &dyn Fn(&str) -> Pem| {
        for (node, name) in nodes.iter().zip(names) {
            node.links.reload_identity(Identity::from_pem(&pem(name)).unwrap()).unwrap();
        }
    };
    let still = |nodes: &[Node]| nodes[0].is_up("b") && nodes[1].is_up("a");
    // Trust both; then have certificates of the new one; then trust that alone.
    take(&mut nodes, &|name| old.pem_with(&new, &old.issue(name, 1)));
    assert!(still(&nodes));
    take(&mut nodes, &|name| old.pem_with(&new, &new.issue(name, 2)));
    assert!(still(&nodes));
    // Connections that began with the old CA are made anew.
    take(&mut nodes, &|name| new.pem(&new.issue(name, 2), &[]));
    connected(&nodes, &names).await;
    let mut lone = Raw::connect(nodes[0].address, Some(&old.issue("b", 3))).await.unwrap();
    lone.send(&[1]).await;
    nodes[0].refusal(RefusalKind::OtherCa).await;
}

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let dir = std::env::temp_dir().join(format!("outlast-link-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }

    fn files(&self) -> IdentityFiles {
        let file = |name| self.0.join(name);
        IdentityFiles {
            ca: file("ca.pem"),
            cert: file("node.pem"),
            key: file("node.key"),
            crl: Some(file("ca.crl")),
        }
    }

    fn write(&self, pem: &Pem) {
        let files = self.files();
        for (path, bytes) in
            [(&files.ca, &pem.ca), (&files.cert, &pem.cert), (&files.key, &pem.key)]
        {
            std::fs::write(path, bytes).unwrap();
        }
        if let (Some(path), Some(bytes)) = (&files.crl, &pem.crl) {
            std::fs::write(path, bytes).unwrap();
        }
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

#[tokio::test]
async fn files_are_followed_by_what_they_hold() {
    let ca = Ca::new("ca");
    let dir = Dir::new("files");
    let own = ca.issue("a", 1);
    dir.write(&ca.pem(&own, &[]));
    let identity = Identity::from_pem(&dir.files().read().unwrap()).unwrap();
    let to = peers(&[("b", "127.0.0.1:1".parse().unwrap())]);
    let mut a = Node::start(config("a"), listen().await, &to, Security::Tls(identity));
    a.links.follow_files(dir.files());
    assert_eq!(taken(&mut a).await, None, "what is there first");
    let raw = Raw::accepted(a.address, &ca.issue("b", 2), hello("b")).await;
    until("b is up", || a.is_up("b")).await;

    // Half of a change is waited out, and reported if it stays.
    let Issued { cert, key } = ca.issue("a", 3);
    std::fs::write(dir.files().cert, &cert).unwrap();
    let reason = a
        .event("a refusal of files", |event| {
            if let LinkEvent::IdentityRefused { reason } = event { Some(reason) } else { None }
        })
        .await;
    assert!(reason.starts_with("certificate and key: "), "{reason}");
    assert!(a.is_up("b"), "what was there goes on");
    std::fs::write(dir.files().key, &key).unwrap();
    assert_eq!(taken(&mut a).await, None);
    assert!(a.is_up("b"));

    // A list of revocations appears.
    std::fs::write(dir.files().crl.unwrap(), ca.crl(&[2, 3])).unwrap();
    let fault = taken(&mut a).await;
    assert_eq!(fault.as_deref(), Some("this node's own certificate: it was revoked"));
    assert_eq!(a.down("b").await, "its certificate is not good any more: it was revoked");
    drop(raw);
    let late = a.events.try_recv();
    assert!(late.is_err(), "what did not change is not taken again: {late:?}");
}

#[test]
fn files_that_make_no_identity_are_refused_with_the_reason() {
    let (ca, other) = (Ca::new("ca"), Ca::new("other"));
    let (a, b) = (ca.issue("a", 1), ca.issue("b", 2));
    let good = ca.pem(&a, &[5]);
    let same_name = Ca::new("ca");
    for (pem, reason) in [
        (Pem { cert: Vec::new(), ..good.clone() }, "certificate: the file holds none"),
        (Pem { ca: b"x".to_vec(), ..good.clone() }, "CA: the file holds no certificate"),
        (Pem { key: b.key.into_bytes(), ..good.clone() }, "certificate and key: "),
        (Pem { key: Vec::new(), ..good.clone() }, "private key: "),
        (
            Pem { crl: Some(same_name.crl(&[1]).into_bytes()), ..good.clone() },
            "list of revocations: ",
        ),
        (
            Pem {
                crl: Some(b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n".to_vec()),
                ..good.clone()
            },
            "list of revocations: ",
        ),
    ] {
        let error = Identity::from_pem(&pem).unwrap_err().to_string();
        assert!(error.starts_with(reason), "{error}");
    }
    // A list of a CA that has nothing to do with it is only a list too much.
    let foreign = Pem { crl: Some(other.crl(&[1]).into_bytes()), ..good };
    let identity = Identity::from_pem(&foreign).unwrap();
    assert_eq!((identity.nodes(), identity.fault()), (&["a".to_owned()][..], None));
    let missing = IdentityFiles {
        ca: "/nonexistent/ca.pem".into(),
        cert: "/nonexistent/node.pem".into(),
        key: "/nonexistent/node.key".into(),
        crl: None,
    };
    let error = missing.read().unwrap_err().to_string();
    assert!(error.starts_with("read /nonexistent/ca.pem: "), "{error}");
}
