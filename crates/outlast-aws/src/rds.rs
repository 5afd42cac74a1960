//! RDS: a read replica becomes a database of its own.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::time::{Instant, sleep};

use crate::client::{Call, Client, Service};
use crate::error::AwsError;
use crate::sign::query_string;
use crate::xml::Element;

const RDS_VERSION: &str = "2014-10-31";
const CLOUDWATCH_VERSION: &str = "2010-08-01";

/// How far back CloudWatch is asked for a replica's lag.
const LAG_WINDOW: Duration = Duration::from_secs(600);

/// The figure of the minute that runs counts, too.
const LAG_AHEAD: Duration = Duration::from_secs(60);

/// Seconds of one figure of CloudWatch's.
const LAG_PERIOD: &str = "60";

/// Characters of the name of a database instance.
const IDENTIFIER_MAX: usize = 63;

/// A database instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    pub id: String,
    /// `available`, `modifying`, `rebooting` and others.
    pub status: String,
    /// Of what it is a read replica: a name, or an ARN if that is in another region.
    pub replica_of: Option<String>,
    /// What RDS says of its replication: `replicating`, or what is wrong.
    pub replication: Option<String>,
    /// Where clients reach it: name and port.
    pub endpoint: Option<(String, u16)>,
}

impl Instance {
    fn read(element: &Element) -> Option<Instance> {
        let endpoint = element.get("Endpoint").and_then(|endpoint| {
            Some((endpoint.word("Address")?.to_owned(), endpoint.word("Port")?.parse().ok()?))
        });
        let infos = element.list("StatusInfos").iter();
        let mut replication =
            infos.filter(|info| info.word("StatusType") == Some("read replication"));
        Some(Instance {
            id: element.word("DBInstanceIdentifier")?.to_owned(),
            status: element.word("DBInstanceStatus").unwrap_or("unknown").to_owned(),
            replica_of: element.word("ReadReplicaSourceDBInstanceIdentifier").map(str::to_owned),
            replication: replication.find_map(|info| info.word("Status")).map(str::to_owned),
            endpoint,
        })
    }
}

/// How far behind a replica is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lag {
    pub behind: Duration,
    /// How long ago that was so.
    pub age: Duration,
}

/// Within what a replica is promoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How far behind it may be, by the last figure of CloudWatch; `None`: that is not asked.
    pub lag: Option<Duration>,
    /// How long it may take until it is available.
    pub wait: Duration,
    /// How often it is looked at meanwhile.
    pub look: Duration,
}

/// What is happening.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// It is a replica of that, so far behind.
    Found { instance: Instance, lag: Option<Lag> },
    /// RDS was told.
    Told,
    /// What it is like now, after so long.
    Waiting { status: String, still_replica: bool, after: Duration },
    /// It is a database of its own.
    Done { instance: Instance, after: Duration },
}

/// Why a replica was not promoted.
#[derive(Clone, Debug, PartialEq)]
pub enum PromoteError {
    Aws(AwsError),
    /// It is none: it was promoted already, or is something else.
    NotAReplica(String),
    /// RDS says this of its replication.
    NotReplicating(String),
    TooFarBehind {
        lag: Lag,
        limit: Duration,
    },
    /// CloudWatch has no figure.
    UnknownLag,
    /// It is not in a state in which it can be promoted.
    NotAvailable(String),
    /// It was told, and is not done yet.
    NotDone {
        status: String,
        after: Duration,
    },
}

impl fmt::Display for PromoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PromoteError::Aws(error) => write!(f, "{error}"),
            PromoteError::NotAReplica(id) => write!(
                f,
                "{id} is not a read replica; if it has been promoted already, go on with --already-promoted"
            ),
            PromoteError::NotReplicating(status) => write!(
                f,
                "its replication is `{status}`: it may lack writes; --max-lag any promotes it nevertheless"
            ),
            PromoteError::TooFarBehind { lag, limit } => write!(
                f,
                "it was {:.0} s behind {:.0} s ago, and {:.0} s are allowed: these writes would be lost; wait, or allow more with --max-lag",
                lag.behind.as_secs_f64(),
                lag.age.as_secs_f64(),
                limit.as_secs_f64()
            ),
            PromoteError::UnknownLag => f.write_str(
                "CloudWatch has no figure of how far behind it is; --max-lag any promotes it nevertheless",
            ),
            PromoteError::NotAvailable(status) => {
                write!(f, "it is `{status}`; only one that is `available` can be promoted")
            }
            PromoteError::NotDone { status, after } => write!(
                f,
                "it was told, and is `{status}` after {:.0} s; it goes on by itself: look again with --already-promoted",
                after.as_secs_f64()
            ),
        }
    }
}

impl std::error::Error for PromoteError {}

impl From<AwsError> for PromoteError {
    fn from(error: AwsError) -> PromoteError {
        PromoteError::Aws(error)
    }
}

impl Client {
    /// What RDS says of an instance.
    pub async fn instance(&self, id: &str) -> Result<Instance, AwsError> {
        check_identifier(id)?;
        let answer =
            self.form(Service::Rds, "DescribeDBInstances", &[("DBInstanceIdentifier", id)]).await?;
        let result = answer.get("DescribeDBInstancesResult");
        let found = result.map_or(&[][..], |result| result.list("DBInstances"));
        found
            .iter()
            .find_map(Instance::read)
            .ok_or_else(|| AwsError::Strange("no instance in it".to_owned()))
    }

    /// How far a replica was behind when CloudWatch was last told.
    pub async fn replica_lag(&self, id: &str) -> Result<Option<Lag>, AwsError> {
        check_identifier(id)?;
        let now = Timestamp::now();
        let whole =
            |at: Timestamp| at.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let answer = self
            .form(
                Service::CloudWatch,
                "GetMetricStatistics",
                &[
                    ("Namespace", "AWS/RDS"),
                    ("MetricName", "ReplicaLag"),
                    ("Dimensions.member.1.Name", "DBInstanceIdentifier"),
                    ("Dimensions.member.1.Value", id),
                    ("StartTime", &whole(now - LAG_WINDOW)),
                    ("EndTime", &whole(now + LAG_AHEAD)),
                    ("Period", LAG_PERIOD),
                    ("Statistics.member.1", "Maximum"),
                ],
            )
            .await?;
        let points = answer.get("GetMetricStatisticsResult");
        let points = points.map_or(&[][..], |result| result.list("Datapoints"));
        let figures = points.iter().filter_map(|point| {
            let at: Timestamp = point.word("Timestamp")?.parse().ok()?;
            // RDS says -1 while it does not know.
            let seconds = point.word("Maximum")?.parse::<f64>().ok().filter(|lag| 0.0 <= *lag)?;
            Some((at, Duration::try_from_secs_f64(seconds).ok()?))
        });
        let last = figures.max_by_key(|(at, _)| *at);
        Ok(last.map(|(at, behind)| {
            let age = Duration::try_from(now.duration_since(at)).unwrap_or_default();
            Lag { behind, age }
        }))
    }

    /// Makes a replica a database of its own, and waits until it is one.
    pub async fn promote_replica(
        &self,
        id: &str,
        limits: Limits,
        say: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Instance, PromoteError> {
        let instance = self.instance(id).await?;
        if instance.replica_of.is_none() {
            return Err(PromoteError::NotAReplica(id.to_owned()));
        }
        if instance.status != "available" {
            return Err(PromoteError::NotAvailable(instance.status));
        }
        let mut lag = None;
        if let Some(limit) = limits.lag {
            if let Some(status) = &instance.replication
                && status != "replicating"
            {
                return Err(PromoteError::NotReplicating(status.clone()));
            }
            let found = self.replica_lag(id).await?.ok_or(PromoteError::UnknownLag)?;
            if limit < found.behind {
                return Err(PromoteError::TooFarBehind { lag: found, limit });
            }
            lag = Some(found);
        }
        say(Progress::Found { instance, lag });
        self.form(Service::Rds, "PromoteReadReplica", &[("DBInstanceIdentifier", id)]).await?;
        say(Progress::Told);
        self.until_promoted(id, limits, say).await
    }

    /// Waits until one that was told is a database of its own and available.
    pub async fn until_promoted(
        &self,
        id: &str,
        limits: Limits,
        say: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Instance, PromoteError> {
        let start = Instant::now();
        loop {
            let instance = self.instance(id).await?;
            let after = start.elapsed();
            let still_replica = instance.replica_of.is_some();
            if instance.status == "available" && !still_replica {
                say(Progress::Done { instance: instance.clone(), after });
                return Ok(instance);
            }
            if limits.wait <= after {
                return Err(PromoteError::NotDone { status: instance.status, after });
            }
            say(Progress::Waiting { status: instance.status, still_replica, after });
            sleep(limits.look.min(limits.wait.saturating_sub(after))).await;
        }
    }

    /// A call in the form of a query.
    async fn form(
        &self,
        service: Service,
        action: &str,
        fields: &[(&str, &str)],
    ) -> Result<Element, AwsError> {
        let version = if service == Service::Rds { RDS_VERSION } else { CLOUDWATCH_VERSION };
        let all = [("Action", action), ("Version", version)];
        let all = all.iter().chain(fields).map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let call = Call {
            service,
            method: "POST",
            path: "/".to_owned(),
            query: Vec::new(),
            content_type: Some("application/x-www-form-urlencoded; charset=utf-8"),
            body: Bytes::from(query_string(&all.collect::<Vec<_>>())),
        };
        self.call(&call).await
    }
}

fn check_identifier(id: &str) -> Result<(), AwsError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    match !id.is_empty() && id.len() <= IDENTIFIER_MAX && id.bytes().all(fits) {
        true => Ok(()),
        false => Err(AwsError::Unfit(format!(
            "`{id}` is not the name of a database instance, like myapp-standby"
        ))),
    }
}
