//! `outlast dns plan`, `outlast dns push` and `outlast aws promote-replica` as a shell sees them, with Knot and moto.

#![cfg(test)]

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use emulator::Moto;
use outlast::elsewhere::{Healths, Keepers, Standings, wanted};
use outlast_core::health::Health;
use outlast_core::names::Sticky;
use outlast_core::topology::Topology;
use outlast_dns::elsewhere::News;
use tokio::sync::watch;

#[path = "../../outlast-aws/tests/emulator/mod.rs"]
mod emulator;

const SECRET: &str = "aGVsbG9oZWxsb2hlbGxvaGVsbG9oZWxsb2hlbGxvIQ==";

/// A directory with a topology, an emulator of AWS and a Knot that takes updates.
struct Stage {
    dir: PathBuf,
    moto: Moto,
    zone_id: String,
    knot: Child,
    knot_port: u16,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.knot.kill().ok();
        self.knot.wait().ok();
        std::fs::remove_dir_all(&self.dir).ok();
    }
}

impl Stage {
    fn new(test: &str) -> Option<Stage> {
        let moto = Moto::start()?;
        let zone_id = moto.boto3("print(route53.create_hosted_zone(Name='example.com', CallerReference='1')['HostedZone']['Id'].split('/')[-1])");
        let dir =
            std::env::temp_dir().join(format!("outlast-elsewhere-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        let here = dir.display();
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|socket| socket.local_addr())
            .expect("a port")
            .port();
        let conf = format!(
            "server:\n  listen: 127.0.0.1@{port}\n  rundir: {here}\ndatabase:\n  storage: {here}\n\
             key:\n  - id: k\n    algorithm: hmac-sha256\n    secret: {SECRET}\n\
             acl:\n  - id: ours\n    action: update\n    key: k\n\
             zone:\n  - domain: example.com\n    acl: ours\n    storage: {here}\n    file: zone\n"
        );
        let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).expect("write");
        write("knot.conf", &conf);
        write("zone", "$TTL 60\n@ SOA ns1 host 7 300 60 604800 5\n@ NS ns1\nns1 A 127.0.0.1\n");
        write(
            "tsig.keys",
            &format!("key \"k\" {{ algorithm hmac-sha256; secret \"{SECRET}\"; }};\n"),
        );
        write(
            "outlast.toml",
            &format!(
                "[cluster]\nname = \"shop\"\n\n[dns.\"example.com\"]\nkeys = \"tsig.keys\"\n\
                 elsewhere = [{{ rfc2136 = \"127.0.0.1:{port}\", key = \"k\" }}, {{ route53 = \"{zone_id}\" }}]\n\
                 records = [\n  {{ name = \"api\", type = \"A\", policy = \"failover\", secondary = \"52.234.56.78\", \
                 primary = {{ value = \"54.123.45.67\", probe = {{ http = \"https://primary.example.com/health\", every = \"30s\", fall = 3 }} }} }},\n]\n"
            ),
        );
        let knot = Command::new("/usr/sbin/knotd")
            .arg("-c")
            .arg(dir.join("knot.conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let stage = Stage { knot: knot.expect("start knotd"), dir, moto, zone_id, knot_port: port };
        let end = Instant::now() + Duration::from_secs(20);
        while !stage.dig("example.com SOA").contains(" 7 ") {
            assert!(Instant::now() < end, "knotd does not answer");
            std::thread::yield_now();
        }
        Some(stage)
    }

    fn dig(&self, args: &str) -> String {
        let mut dig = Command::new("dig");
        dig.args(["@127.0.0.1", "-p", &self.knot_port.to_string(), "+short", "+norec"]);
        let output = dig.args(args.split(' ')).output().expect("run dig");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn outlast(&self, args: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_outlast"))
            .args(args.split(' '))
            .current_dir(&self.dir)
            .env("AWS_ENDPOINT_URL", &self.moto.url)
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("RUST_LOG", "trace")
            .output()
            .expect("outlast starts")
    }

    /// What a verb says, and how it ends.
    fn said(&self, args: &str) -> (Option<i32>, String) {
        let output = self.outlast(args);
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).expect("it is text").replace(&self.zone_id, "ZONE");
        assert!(!said.contains("wJalrXUtnFEMI") && !said.contains(SECRET), "{said}");
        let said = said.replace(&format!("127.0.0.1:{}", self.knot_port), "127.0.0.1:PORT");
        (output.status.code(), said)
    }
}

#[test]
fn a_zone_is_shown_and_pushed_to_both_places() {
    let Some(stage) = Stage::new("push") else { return };
    let plan = "\
no agent was asked: everything counts as healthy

example.com at 127.0.0.1:PORT: would be changed
  + api.example.com. 60 A 54.123.45.67

example.com at Route 53 zone ZONE: would be changed
  + health check api.example.com A 54.123.45.67:80: https://primary.example.com:443/health every 30 s, 3 in a row
  + api.example.com. 60 A 54.123.45.67, primary, if healthy: https://primary.example.com:443/health every 30 s, 3 in a row
  + api.example.com. 60 A 52.234.56.78, secondary
";
    assert_eq!(stage.said("dns plan --without-agent"), (Some(0), plan.to_owned()));
    assert_eq!(stage.dig("api.example.com A"), "");
    let done = plan.replace("would be changed", "done");
    assert_eq!(stage.said("dns push example.com --without-agent"), (Some(0), done));
    assert_eq!(stage.dig("api.example.com A"), "54.123.45.67\n");
    let again = "\
no agent was asked: everything counts as healthy

example.com at 127.0.0.1:PORT: as wanted

example.com at Route 53 zone ZONE: as wanted
";
    assert_eq!(stage.said("dns push --without-agent"), (Some(0), again.to_owned()));
    let (code, said) = stage.said("dns push");
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("--without-agent takes everything for healthy"), "{said}");
    let (code, said) = stage.said("dns plan example.org --without-agent");
    assert_eq!((code, said.trim_end()), (Some(2), "error: the file has no zone example.org"));
    std::fs::write(
        stage.dir.join("tsig.keys"),
        "key other { algorithm hmac-sha256; secret AAAA; };",
    )
    .expect("write");
    let (code, said) = stage.said("dns plan --without-agent --format json");
    assert_eq!(code, Some(2), "{said}");
    let json: serde_json::Value = serde_json::from_str(&said).expect("it is JSON");
    let error = json["places"][0]["error"].as_str().expect("an error");
    assert!(error.ends_with("tsig.keys has no key k; it has other."), "{error}");
    assert_eq!(json["places"][1]["error"], serde_json::Value::Null);
}

#[test]
fn a_replica_in_another_region_becomes_the_database_and_the_name_leads_to_it() {
    let Some(stage) = Stage::new("promote") else { return };
    stage.moto.boto3(
        "a = client('rds', 'us-east-1'); b = client('rds', 'us-west-2')\n\
         p = a.create_db_instance(DBInstanceIdentifier='myapp-primary', Engine='postgres', DBInstanceClass='db.m5.large', \
         AllocatedStorage=20, MasterUsername='x', MasterUserPassword='secret-secret')\n\
         b.create_db_instance_read_replica(DBInstanceIdentifier='myapp-standby', SourceDBInstanceIdentifier=p['DBInstance']['DBInstanceArn'])",
    );
    let tell = |lag: f64| {
        stage.moto.boto3(&format!(
            "client('cloudwatch', 'us-west-2').put_metric_data(Namespace='AWS/RDS', MetricData=[dict(MetricName='ReplicaLag', Value={lag}, \
             Timestamp=datetime.datetime.now(datetime.timezone.utc), Dimensions=[dict(Name='DBInstanceIdentifier', Value='myapp-standby')])])"
        ))
    };
    let promote = |more: &str| {
        stage.said(&format!("aws promote-replica myapp-standby --region us-west-2 {more}"))
    };
    let (code, said) = promote("--yes");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("CloudWatch has no figure"), "{said}");
    tell(90.0);
    let (code, said) = promote("--yes");
    assert!(code == Some(1) && said.contains("it was 90 s behind"), "{said}");
    let (code, said) = promote("--dry-run --point db.example.com");
    assert_eq!(code, Some(0), "{said}");
    for words in [
        "afterwards, example.com at 127.0.0.1:PORT and example.com at Route 53 zone ZONE:",
        "db.example.com. 60 CNAME",
        "90.0 s behind",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let (code, said) = promote("--max-lag 2m");
    assert!(code == Some(2) && said.contains("no terminal to ask on"), "{said}");
    let (code, said) = promote("--max-lag 2m --yes --point api.example.com");
    assert!(code == Some(2) && said.contains("the file has api.example.com itself"), "{said}");
    let (code, said) = promote("--max-lag 2m --yes --point db.example.com");
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("a database of its own") && said.contains("db.example.com leads to "),
        "{said}"
    );
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let now = runtime.block_on(stage.moto.client("us-west-2").instance("myapp-standby"));
    assert_eq!(now.expect("it is there").replica_of, None);
    let at_knot = stage.dig("db.example.com CNAME");
    let at_aws = stage.moto.boto3(&format!(
        "print([s['ResourceRecords'][0]['Value'] for s in route53.list_resource_record_sets(HostedZoneId='{}')['ResourceRecordSets'] if s['Type'] == 'CNAME'][0])",
        stage.zone_id
    ));
    assert_eq!(at_knot, format!("{at_aws}.\n"));
    assert!(at_aws.contains("us-west-2.rds.amazonaws.com"), "{at_aws}");
    let (code, said) = promote("--max-lag any --yes");
    assert!(code == Some(1) && said.contains("is not a read replica"), "{said}");
    let (code, said) = promote(&format!(
        "--already-promoted --point database.example.com --hosted-zone {}",
        stage.zone_id
    ));
    assert!(code == Some(0) && said.contains("database.example.com leads to "), "{said}");
}

/// Waits until what is said of all places is so.
async fn until(
    standings: &mut watch::Receiver<Standings>,
    what: &str,
    holds: impl Fn(&Standings) -> bool,
) {
    let waited =
        tokio::time::timeout(Duration::from_secs(60), standings.wait_for(|all| holds(all)))
            .await
            .is_ok();
    if !waited {
        panic!("{what}: {:?}", *standings.borrow());
    }
}

#[test]
fn whoever_leads_keeps_a_zone_as_it_is_wanted() {
    let Some(stage) = Stage::new("keep") else { return };
    let text = std::fs::read_to_string(stage.dir.join("outlast.toml")).expect("read");
    let text = text.replace(
        "{ name = \"api\"",
        "{ name = \"old\", type = \"A\", values = [\"192.0.2.9\"] },\n  { name = \"api\"",
    );
    let parse = |text: &str| -> Topology {
        outlast::file::parse("outlast.toml", text).expect("a good file")
    };
    let (first, second) = (parse(&text), parse(&text.replace("\"old\"", "\"new\"")));
    // This process has no credentials for the emulator.
    let one = |topology: &Topology| -> Topology {
        let mut topology = topology.clone();
        topology.dns.get_mut("example.com").expect("it is there").elsewhere.truncate(1);
        topology
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut keepers = Keepers::new("shop", &stage.dir);
        let mut standings = keepers.standings();
        let mut follow = |topology: &Topology, down: bool| {
            let health = if down { Health::Down } else { Health::Up };
            let healths = Healths::from([("api.example.com A 54.123.45.67:80".to_owned(), health)]);
            keepers.follow(topology, |name, zone| wanted(name, zone, &healths, &Sticky::default()));
        };
        let is = |words: &'static str| {
            move |all: &Standings| {
                let lines = all.values().flatten().map(|news| match news {
                    News::AsWanted(outline) => outline.lines.join("\n"),
                    News::Failed { trouble, .. } => trouble.to_string(),
                });
                lines.collect::<Vec<_>>().join("\n").contains(words)
            }
        };
        let (first, second) = (one(&first), one(&second));
        follow(&first, false);
        until(&mut standings, "the first push", is("+ api.example.com. 60 A 54.123.45.67")).await;
        assert_eq!(stage.dig("old.example.com A"), "192.0.2.9\n");
        follow(&first, true);
        until(&mut standings, "the failover", is("+ api.example.com. 30 A 52.234.56.78")).await;
        assert_eq!(stage.dig("api.example.com A"), "52.234.56.78\n");
        follow(&second, true);
        until(&mut standings, "another record", is("+ new.example.com. 60 A 192.0.2.9")).await;
        assert_eq!(
            (stage.dig("old.example.com A"), stage.dig("new.example.com A")),
            (String::new(), "192.0.2.9\n".to_owned())
        );
        let mut none = second.clone();
        none.dns.get_mut("example.com").expect("it is there").elsewhere.clear();
        follow(&none, true);
        until(&mut standings, "nothing is kept any more", Standings::is_empty).await;
        assert_eq!(stage.dig("new.example.com A"), "192.0.2.9\n", "what is left there stays");
    });
}
