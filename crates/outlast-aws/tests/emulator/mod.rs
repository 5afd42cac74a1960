//! moto, an emulator of AWS, as a server; and boto3, AWS's own client. Tests of other crates use it, too.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use outlast_aws::Client;
use outlast_aws::credentials::Environment;

/// Begins moto as its own program does, with two things as RDS does them: what is promoted is no replica any more, and that
/// takes a while (moto 5.2.5 goes on naming the source).
const SERVER: &str = "
import sys
from moto.rds.models import RDSBackend
from moto.server import main
promote, describe = RDSBackend.promote_read_replica, RDSBackend.describe_db_instances
waiting = {}
def promoted(self, kwargs):
    database = promote(self, kwargs)
    database.status = 'modifying'
    waiting[database.db_instance_identifier] = 3
    return database
def described(self, *args, **kwargs):
    found = describe(self, *args, **kwargs)
    for database in found:
        left = waiting.get(database.db_instance_identifier)
        if left is not None:
            waiting[database.db_instance_identifier] = left - 1
            if left == 1:
                database.source_db_instance_identifier = None
            if left == 0:
                database.status = 'available'
                del waiting[database.db_instance_identifier]
    return found
RDSBackend.promote_read_replica, RDSBackend.describe_db_instances = promoted, described
main(sys.argv[1:])
";

/// A server of moto's that ends with the test.
pub(crate) struct Moto {
    server: Child,
    pub(crate) url: String,
}

impl Drop for Moto {
    fn drop(&mut self) {
        self.server.kill().ok();
        self.server.wait().ok();
    }
}

impl Moto {
    /// None if tests against something real are not to run.
    pub(crate) fn start() -> Option<Moto> {
        if std::env::var_os("OUTLAST_REAL").is_none_or(|value| value != "1") {
            std::io::stderr()
                .write_all(
                    b"NOT RUN: with OUTLAST_REAL=1 this test asks moto, an emulator of AWS\n",
                )
                .ok();
            return None;
        }
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|socket| socket.local_addr())
            .expect("a port")
            .port();
        let server = Command::new("python3")
            .args(["-c", SERVER, "-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start moto");
        let moto = Moto { server, url: format!("http://127.0.0.1:{port}") };
        let end = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < end, "moto does not begin");
            std::thread::yield_now();
        }
        Some(moto)
    }

    pub(crate) fn client(&self, region: &str) -> Client {
        let environment = Environment::of(&[
            ("AWS_ENDPOINT_URL", self.url.as_str()),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
        ]);
        Client::new(environment, Some(region)).expect("a client")
    }

    /// What boto3 prints.
    pub(crate) fn boto3(&self, script: &str) -> String {
        let head = format!(
            "import boto3, json, datetime\n\
             def client(name, region='us-east-1'):\n  return boto3.client(name, region_name=region, endpoint_url='{}', \
             aws_access_key_id='test', aws_secret_access_key='test')\nroute53 = client('route53')\n",
            self.url
        );
        let output =
            Command::new("python3").args(["-c", &(head + script)]).output().expect("run python");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}
