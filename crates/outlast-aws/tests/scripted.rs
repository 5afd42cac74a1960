//! The client against a server that answers by a script: what it asks, what it makes of the answers, and what it never shows.

#![cfg(test)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use outlast_aws::credentials::Environment;
use outlast_aws::rds::{Limits, Progress, PromoteError};
use outlast_aws::route53::{CheckConfig, How};
use outlast_aws::{AwsError, Client};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Something that must be seen nowhere.
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

/// A server and what it was asked; each request is answered by the script's function.
struct Scripted {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

type Script = dyn Fn(usize, &str) -> (u16, String) + Send + Sync;

impl Scripted {
    async fn start(script: impl Fn(usize, &str) -> (u16, String) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = asked.clone();
        let script: Arc<Script> = Arc::new(script);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                answer(stream, &seen, &*script).await;
            }
        });
        Scripted { url, asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("nobody panics with it").clone()
    }

    fn client(&self, more: &[(&str, &str)]) -> Client {
        let keys = [
            ("AWS_ENDPOINT_URL", self.url.as_str()),
            ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
            ("AWS_SESSION_TOKEN", "TOKEN"),
        ];
        let all = [&keys[..], more].concat();
        Client::new(Environment::of(&all), Some("eu-west-1")).expect("a client")
    }
}

async fn answer(mut stream: TcpStream, seen: &Mutex<Vec<String>>, script: &Script) {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    loop {
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.to_ascii_lowercase();
            let length = length.split("content-length: ").nth(1);
            let length = length.and_then(|rest| rest.lines().next()?.trim().parse().ok());
            if length.unwrap_or(0) <= body.len() {
                break;
            }
        }
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => text.push_str(&String::from_utf8_lossy(&buffer[..count])),
        }
    }
    let nth = {
        let mut seen = seen.lock().expect("nobody panics with it");
        seen.push(text.clone());
        seen.len() - 1
    };
    let (status, body) = script(nth, &text);
    if status == 0 {
        return;
    }
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).await.ok();
}

fn error(code: &str, message: &str) -> String {
    format!(
        "<ErrorResponse xmlns=\"https://route53.amazonaws.com/doc/2013-04-01/\"><Error><Type>Sender</Type>\
         <Code>{code}</Code><Message>{message}</Message></Error><RequestId>1</RequestId></ErrorResponse>"
    )
}

const ZONE: &str = "<GetHostedZoneResponse><HostedZone><Id>/hostedzone/Z1</Id><Name>example.com.</Name></HostedZone></GetHostedZoneResponse>";

#[tokio::test]
async fn a_busy_route53_is_asked_again() {
    for (status, body) in [
        (400, error("Throttling", "Rate exceeded")),
        (400, error("PriorRequestNotComplete", "wait")),
        (503, String::new()),
        (0, String::new()),
    ] {
        let name = format!("{status} {body}");
        let server = Scripted::start(move |nth, _| match nth {
            0 | 1 => (status, body.clone()),
            _ => (200, ZONE.to_owned()),
        })
        .await;
        let found = server.client(&[]).hosted_zone_name("Z1").await;
        assert_eq!(found, Ok("example.com".to_owned()), "{name}");
        assert_eq!(server.asked().len(), 3, "{name}");
    }
}

#[tokio::test]
async fn more_than_five_requests_are_not_sent_in_a_second() {
    let server = Scripted::start(|_, _| (200, ZONE.to_owned())).await;
    let client = server.client(&[]);
    let start = std::time::Instant::now();
    for _ in 0..6 {
        client.hosted_zone_name("Z1").await.expect("an answer");
    }
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_refusal_is_told_in_words_and_not_repeated() {
    let batch = "<InvalidChangeBatch xmlns=\"x\"><Messages><Message>it is not found</Message>\
        <Message>it exists</Message></Messages><RequestId>1</RequestId></InvalidChangeBatch>";
    for (status, body, wanted) in [
        (
            404,
            error("NoSuchHostedZone", "no zone &amp; so on"),
            "AWS refuses: NoSuchHostedZone: no zone & so on",
        ),
        (400, batch.to_owned(), "AWS refuses: InvalidChangeBatch: it is not found; it exists"),
        (403, "nonsense".to_owned(), "AWS refuses: status 403"),
        (
            403,
            error("SignatureDoesNotMatch", "x-amz-security-token:TOKEN"),
            "AWS refuses: SignatureDoesNotMatch: the secret key does not fit the access key, or this machine's clock is wrong",
        ),
        (200, "nonsense".to_owned(), "the answer of AWS is strange: the XML is cut"),
    ] {
        let server = Scripted::start(move |_, _| (status, body.clone())).await;
        let found = server.client(&[]).hosted_zone_name("Z1").await;
        assert_eq!(found.map_err(|error| error.to_string()), Err(wanted.to_owned()));
        assert_eq!(server.asked().len(), 1, "{wanted}");
    }
}

#[tokio::test]
async fn ended_credentials_are_fetched_anew_once() {
    let server = Scripted::start(|_, _| (403, error("ExpiredToken", "over"))).await;
    let found = server.client(&[]).hosted_zone_name("Z1").await;
    assert_eq!(
        found.map_err(|error| error.code().map(str::to_owned)),
        Err(Some("ExpiredToken".to_owned()))
    );
    assert_eq!(server.asked().len(), 2);
}

#[tokio::test]
async fn nothing_shows_the_secret() {
    let server = Scripted::start(|_, _| (200, ZONE.to_owned())).await;
    let client = server.client(&[]);
    client.hosted_zone_name("Z1").await.expect("an answer");
    let shown = format!("{client:?} {client:#?}");
    assert!(
        !shown.contains(SECRET) && !shown.contains("TOKEN") && !shown.contains("AKID"),
        "{shown}"
    );
    let asked = server.asked().join("\n");
    assert!(!asked.contains(SECRET), "{asked}");
    assert!(asked.contains("authorization: AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/"), "{asked}");
    assert!(asked.contains("x-amz-security-token: TOKEN"), "{asked}");
}

#[tokio::test]
async fn pages_are_followed_to_the_last() {
    let page = |name: &str, next: &str| {
        format!(
            "<ListResourceRecordSetsResponse><ResourceRecordSets><ResourceRecordSet><Name>{name}.</Name><Type>A</Type><TTL>60</TTL>\
             <ResourceRecords><ResourceRecord><Value>192.0.2.1</Value></ResourceRecord></ResourceRecords></ResourceRecordSet>\
             </ResourceRecordSets>{next}</ListResourceRecordSetsResponse>"
        )
    };
    let server = Scripted::start(move |nth, _| {
        let next = "<IsTruncated>true</IsTruncated><NextRecordName>\\052.b.</NextRecordName><NextRecordType>A</NextRecordType>\
            <NextRecordIdentifier>one two</NextRecordIdentifier>";
        (200, page(if nth == 0 { "a" } else { "\\052.b" }, if nth == 0 { next } else { "<IsTruncated>false</IsTruncated>" }))
    })
    .await;
    let sets = server.client(&[]).record_sets("Z1").await.expect("sets");
    let names: Vec<&str> = sets.iter().map(|found| found.set.name.as_str()).collect();
    assert_eq!(names, ["a", "*.b"]);
    let second = &server.asked()[1];
    let line = second.lines().next().expect("a line");
    assert_eq!(
        line,
        "GET /2013-04-01/hostedzone/Z1/rrset?identifier=one%20two&name=%5C052.b.&type=A HTTP/1.1"
    );
}

#[tokio::test]
async fn credentials_come_from_the_first_place_that_has_them() {
    let until = "2999-01-01T00:00:00Z";
    let server = Scripted::start(move |_, asked| {
        let line = asked.lines().next().unwrap_or_default().to_owned();
        let lower = asked.to_ascii_lowercase();
        let keys = |id: &str| {
            format!("{{\"AccessKeyId\":\"{id}\",\"SecretAccessKey\":\"x\",\"Token\":\"t\",\"Expiration\":\"{until}\"}}")
        };
        match line.split(' ').nth(1).unwrap_or_default() {
            "/latest/api/token" if line.starts_with("PUT") => (200, "TOK".to_owned()),
            "/latest/meta-data/iam/security-credentials/" if lower.contains("x-aws-ec2-metadata-token: tok") => {
                (200, "role".to_owned())
            }
            "/latest/meta-data/iam/security-credentials/role" => (200, keys("FROMINSTANCE")),
            "/container?x=1" if lower.contains("authorization: auth") => (200, keys("FROMCONTAINER")),
            _ if lower.contains("aws4-hmac-sha256") => (200, ZONE.to_owned()),
            other => (404, other.to_owned()),
        }
    })
    .await;
    let dir = std::env::temp_dir().join(format!("outlast-aws-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).expect("write");
        path.to_string_lossy().into_owned()
    };
    let keys = write(
        "credentials",
        "[default]\naws_access_key_id=FROMDEFAULT\naws_secret_access_key=x\n[prod]\naws_access_key_id = FROMPROD\naws_secret_access_key = x\n",
    );
    let config = write(
        "config",
        "[profile assumed]\nrole_arn = arn:x\n[profile inside]\naws_access_key_id=FROMCONFIG\naws_secret_access_key=x\n",
    );
    let none = dir.join("none").to_string_lossy().into_owned();
    let container = format!("{}/container?x=1", server.url);
    let files =
        [("AWS_SHARED_CREDENTIALS_FILE", keys.as_str()), ("AWS_CONFIG_FILE", config.as_str())];
    let no_files =
        [("AWS_SHARED_CREDENTIALS_FILE", none.as_str()), ("AWS_CONFIG_FILE", none.as_str())];
    let instance = ("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.url.as_str());
    let at_container = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", container.as_str());
    let auth = ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "auth");
    let off = ("AWS_EC2_METADATA_DISABLED", "true");
    for (variables, wanted) in [
        (
            [&files[..], &[("AWS_ACCESS_KEY_ID", "FROMENV"), ("AWS_SECRET_ACCESS_KEY", "x")]]
                .concat(),
            "FROMENV",
        ),
        ([&files[..], &[at_container, auth]].concat(), "FROMDEFAULT"),
        ([&files[..], &[("AWS_PROFILE", "prod")]].concat(), "FROMPROD"),
        ([&files[..], &[("AWS_PROFILE", "inside")]].concat(), "FROMCONFIG"),
        ([&files[..], &[("AWS_PROFILE", "assumed")]].concat(), "has `role_arn`"),
        ([&files[..], &[("AWS_PROFILE", "missing")]].concat(), "no profile `missing`"),
        ([&files[..], &[("AWS_ACCESS_KEY_ID", "HALF")]].concat(), "go together"),
        ([&no_files[..], &[at_container, auth, instance]].concat(), "FROMCONTAINER"),
        ([&no_files[..], &[instance]].concat(), "FROMINSTANCE"),
        (
            [&no_files[..], &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://192.0.2.1/x")]]
                .concat(),
            "only come by https",
        ),
        ([&no_files[..], &[instance, off]].concat(), "no credentials for AWS"),
    ] {
        let all = [&variables[..], &[("AWS_ENDPOINT_URL", server.url.as_str())]].concat();
        let client = Client::new(Environment::of(&all), None).expect("a client");
        let found = client.hosted_zone_name("Z1").await;
        match found {
            Ok(_) => {
                let asked = server.asked();
                let last = asked.last().expect("a request");
                assert!(last.contains(&format!("Credential={wanted}/")), "{wanted}: {last}");
            }
            Err(error) => assert!(error.to_string().contains(wanted), "{wanted}: {error}"),
        }
    }
    std::fs::remove_dir_all(&dir).ok();
}

fn instance(status: &str, replica: bool, replication: &str) -> String {
    let of = "<ReadReplicaSourceDBInstanceIdentifier>arn:aws:rds:us-east-1:1:db:myapp-primary</ReadReplicaSourceDBInstanceIdentifier>";
    format!(
        "<DescribeDBInstancesResponse><DescribeDBInstancesResult><DBInstances><DBInstance>\
         <DBInstanceIdentifier>myapp-standby</DBInstanceIdentifier><DBInstanceStatus>{status}</DBInstanceStatus>{}\
         <Endpoint><Address>myapp-standby.x.rds.amazonaws.com</Address><Port>5432</Port></Endpoint>\
         <StatusInfos><DBInstanceStatusInfo><StatusType>read replication</StatusType><Normal>true</Normal><Status>{replication}</Status>\
         </DBInstanceStatusInfo></StatusInfos></DBInstance></DBInstances></DescribeDBInstancesResult></DescribeDBInstancesResponse>",
        if replica { of } else { "" }
    )
}

fn lag(seconds: &[(&str, f64)]) -> String {
    let points: String = seconds
        .iter()
        .map(|(at, lag)| {
            format!("<member><Timestamp>{at}</Timestamp><Maximum>{lag}</Maximum></member>")
        })
        .collect();
    format!(
        "<GetMetricStatisticsResponse><GetMetricStatisticsResult><Datapoints>{points}</Datapoints></GetMetricStatisticsResult></GetMetricStatisticsResponse>"
    )
}

const LIMITS: Limits = Limits {
    lag: Some(Duration::from_secs(5)),
    wait: Duration::from_secs(20),
    look: Duration::from_millis(1),
};

#[tokio::test]
async fn a_replica_is_promoted_and_waited_for() {
    let server = Scripted::start(|nth, asked| {
        if asked.contains("GetMetricStatistics") {
            return (200, lag(&[("2026-11-29T12:01:00Z", 0.5), ("2026-11-29T12:00:00Z", 90.0)]));
        }
        if asked.contains("PromoteReadReplica") {
            return (200, "<PromoteReadReplicaResponse/>".to_owned());
        }
        match nth {
            0 | 3 => (200, instance("available", true, "replicating")),
            4 => (200, instance("modifying", true, "replicating")),
            5 => (200, instance("rebooting", false, "")),
            _ => (200, instance("available", false, "")),
        }
    })
    .await;
    let mut said = Vec::new();
    let done = server
        .client(&[])
        .promote_replica("myapp-standby", LIMITS, &mut |progress| {
            said.push(match progress {
                Progress::Found { lag, .. } => format!("found {:?}", lag.map(|lag| lag.behind)),
                Progress::Told => "told".to_owned(),
                Progress::Waiting { status, still_replica, .. } => {
                    format!("{status} {still_replica}")
                }
                Progress::Done { .. } => "done".to_owned(),
            });
        })
        .await
        .expect("promoted");
    assert_eq!(done.endpoint, Some(("myapp-standby.x.rds.amazonaws.com".to_owned(), 5432)));
    assert_eq!(
        said,
        [
            "found Some(500ms)",
            "told",
            "available true",
            "modifying true",
            "rebooting false",
            "done"
        ]
    );
}

#[tokio::test]
async fn what_must_not_be_promoted_is_not() {
    for (described, figures, wanted) in [
        (instance("available", false, ""), lag(&[]), "is not a read replica"),
        (instance("creating", true, "replicating"), lag(&[]), "it is `creating`"),
        (instance("available", true, "error"), lag(&[]), "its replication is `error`"),
        (instance("available", true, "replicating"), lag(&[]), "has no figure"),
        (
            instance("available", true, "replicating"),
            lag(&[("2026-11-29T12:00:00Z", -1.0)]),
            "has no figure",
        ),
        (
            instance("available", true, "replicating"),
            lag(&[("2026-11-29T12:00:00Z", 90.0)]),
            "90 s behind",
        ),
    ] {
        let server = Scripted::start(move |_, asked| {
            (200, if asked.contains("GetMetric") { figures.clone() } else { described.clone() })
        })
        .await;
        let client = server.client(&[]);
        let result = client.promote_replica("myapp-standby", LIMITS, &mut drop).await;
        let error = result.expect_err(wanted).to_string();
        assert!(error.contains(wanted), "{wanted}: {error}");
        let told = server.asked().iter().any(|asked| asked.contains("PromoteReadReplica"));
        assert!(!told, "{wanted}");
    }
}

#[tokio::test]
async fn a_promotion_that_takes_too_long_is_told() {
    let server = Scripted::start(|_, _| (200, instance("modifying", true, "replicating"))).await;
    let limits = Limits { wait: Duration::from_millis(20), ..LIMITS };
    let result = server.client(&[]).until_promoted("myapp-standby", limits, &mut drop).await;
    assert!(matches!(result, Err(PromoteError::NotDone { .. })), "{result:?}");
}

#[tokio::test]
async fn what_cannot_be_sent_is_not() {
    let server = Scripted::start(|_, _| (200, ZONE.to_owned())).await;
    let client = server.client(&[]);
    assert!(matches!(client.hosted_zone_name("../x").await, Err(AwsError::Unfit(_))));
    assert!(matches!(client.instance("a&Action=x").await, Err(AwsError::Unfit(_))));
    assert!(matches!(Client::new(Environment::of(&[]), Some("x.evil")), Err(AwsError::Unfit(_))));
    let config = CheckConfig {
        how: How::Tcp,
        ip: None,
        port: 1,
        host: None,
        interval: 10,
        threshold: 3,
        inverted: false,
        disabled: false,
    };
    // An answer without a health check.
    let made = client.create_health_check("r", &config).await;
    assert!(matches!(made, Err(AwsError::Strange(_))), "{made:?}");
    assert_eq!(server.asked().len(), 1);
}
