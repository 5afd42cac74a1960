//! Sends signed requests, again where that may help, and not faster than AWS wants them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, sleep_until};

use crate::credentials::{Chain, Environment};
use crate::error::AwsError;
use crate::http::{Answer, Endpoint, Question, ask};
use crate::sign::{Scope, Unsigned, query_string, sign};
use crate::xml::Element;

/// How often a request is sent.
pub const TRIES_MAX: u32 = 6;

/// How long it takes to the second try; twice as long to each further one.
const BACK_OFF: Duration = Duration::from_millis(250);

/// How long it takes to the next try at most.
const BACK_OFF_MAX: Duration = Duration::from_secs(5);

/// How long a call may take, with all tries.
pub const CALL_MAX: Duration = Duration::from_secs(90);

/// Requests to Route 53 in a second, of a whole account.
pub const ROUTE53_PER_SECOND: usize = 5;

/// Regions are words like this in names of hosts.
const REGION_MAX: usize = 32;

/// Answers that ask for patience.
const BUSY: [&str; 7] = [
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "RequestThrottled",
    "RequestLimitExceeded",
    "TooManyRequestsException",
    "PriorRequestNotComplete",
];

/// Answers that say that the credentials have ended.
const ENDED: [&str; 3] = ["ExpiredToken", "ExpiredTokenException", "RequestExpired"];

/// Refusals of a signature. Their words repeat what was signed, the session's token among it, and are not passed on.
const SIGNATURE: [&str; 4] =
    ["SignatureDoesNotMatch", "InvalidSignatureException", "IncompleteSignature", "AuthFailure"];

/// Which service is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    Route53,
    Rds,
    CloudWatch,
}

impl Service {
    /// As it is signed.
    fn word(self) -> &'static str {
        match self {
            Service::Route53 => "route53",
            Service::Rds => "rds",
            Service::CloudWatch => "monitoring",
        }
    }

    /// As it is in `AWS_ENDPOINT_URL_…`.
    fn variable(self) -> &'static str {
        match self {
            Service::Route53 => "AWS_ENDPOINT_URL_ROUTE_53",
            Service::Rds => "AWS_ENDPOINT_URL_RDS",
            Service::CloudWatch => "AWS_ENDPOINT_URL_CLOUDWATCH",
        }
    }
}

/// A request before it is signed.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) service: Service,
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) content_type: Option<&'static str>,
    pub(crate) body: Bytes,
}

/// Calls AWS in one region. Cheap to clone; clones share credentials and pace.
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    environment: Environment,
    credentials: Chain,
    region: Option<String>,
    /// When the last requests to Route 53 were sent.
    sent: Mutex<VecDeque<Instant>>,
}

impl Client {
    /// With what the environment of this process says.
    pub fn of_process(region: Option<&str>) -> Result<Client, AwsError> {
        Client::new(Environment::of_process(), region)
    }

    /// `region`: before what the environment says.
    pub fn new(environment: Environment, region: Option<&str>) -> Result<Client, AwsError> {
        if let Some(region) = region {
            check_region(region)?;
        }
        Ok(Client(Arc::new(Inner {
            credentials: Chain::new(environment.clone()),
            environment,
            region: region.map(str::to_owned),
            sent: Mutex::new(VecDeque::new()),
        })))
    }

    /// Sends a request until it is answered or nothing helps; the root of the answer.
    pub(crate) async fn call(&self, call: &Call) -> Result<Element, AwsError> {
        let end = Instant::now() + CALL_MAX;
        let (endpoint, region) = self.place(call.service).await?;
        let mut renewed = false;
        let mut tries = 0;
        loop {
            tries += 1;
            self.wait_for_turn(call.service).await;
            let answer = self.send(call, &endpoint, &region).await?;
            let error = match answer {
                Ok(answer) => match judge(&answer) {
                    Verdict::Done(element) => return Ok(element),
                    Verdict::Refused(AwsError::Refused { code, .. })
                        if ENDED.contains(&code.as_str()) && !renewed =>
                    {
                        renewed = true;
                        self.0.credentials.forget().await;
                        continue;
                    }
                    Verdict::Refused(error) => return Err(error),
                    Verdict::Busy(code) => AwsError::Busy { code, tries },
                },
                Err(what) => AwsError::Unknown(what),
            };
            let wait = back_off(tries);
            if tries == TRIES_MAX || end < Instant::now() + wait {
                return Err(error);
            }
            tracing::debug!(%error, tries, "AWS is asked again");
            sleep(wait).await;
        }
    }

    /// One try; inside: why there is no answer.
    async fn send(
        &self,
        call: &Call,
        endpoint: &Endpoint,
        region: &str,
    ) -> Result<Result<Answer, String>, AwsError> {
        let credentials = self.0.credentials.get().await?;
        let path = format!("{}{}", endpoint.prefix, call.path);
        let unsigned = Unsigned {
            method: call.method,
            host: &endpoint.authority,
            path: &path,
            query: &call.query,
            content_type: call.content_type,
            body: &call.body,
        };
        let scope = Scope { region, service: call.service.word() };
        let headers = sign(&unsigned, scope, &credentials, Timestamp::now());
        let target = match call.query.is_empty() {
            true => path.clone(),
            false => format!("{path}?{}", query_string(&call.query)),
        };
        let question = Question {
            method: call.method,
            target: &target,
            headers: &headers,
            body: call.body.clone(),
        };
        Ok(ask(endpoint, question).await)
    }

    /// Where a service is, and for which region it is signed.
    async fn place(&self, service: Service) -> Result<(Endpoint, String), AwsError> {
        let environment = &self.0.environment;
        let region = match &self.0.region {
            Some(region) => Some(region.clone()),
            None => environment.region().await?,
        };
        let region = match (service, region) {
            (Service::Route53, region) => region.unwrap_or_else(|| "us-east-1".to_owned()),
            (Service::Rds | Service::CloudWatch, Some(region)) => region,
            (Service::Rds | Service::CloudWatch, None) => {
                return Err(AwsError::Unfit(
                    "no region is named; use --region, or set AWS_REGION".to_owned(),
                ));
            }
        };
        check_region(&region)?;
        let other = environment.get(service.variable()).or(environment.get("AWS_ENDPOINT_URL"));
        let suffix = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        let (host, signed) = match service {
            // Route 53 is one for all regions of a partition.
            Service::Route53 if region.starts_with("cn-") => {
                ("route53.amazonaws.com.cn".to_owned(), "cn-northwest-1".to_owned())
            }
            Service::Route53 if region.starts_with("us-gov-") => {
                ("route53.us-gov.amazonaws.com".to_owned(), "us-gov-west-1".to_owned())
            }
            Service::Route53 => ("route53.amazonaws.com".to_owned(), "us-east-1".to_owned()),
            Service::Rds | Service::CloudWatch => {
                (format!("{}.{region}.{suffix}", service.word()), region)
            }
        };
        let url = other.unwrap_or_else(|| format!("https://{host}"));
        let endpoint = Endpoint::parse(&url)
            .ok_or_else(|| AwsError::Unfit("AWS_ENDPOINT_URL is no URL".to_owned()))?;
        Ok((endpoint, signed))
    }

    /// Route 53 takes five requests a second, of everybody who shares the account.
    async fn wait_for_turn(&self, service: Service) {
        if service != Service::Route53 {
            return;
        }
        let mut sent = self.0.sent.lock().await;
        if ROUTE53_PER_SECOND <= sent.len()
            && let Some(first) = sent.pop_front()
        {
            sleep_until(first + Duration::from_secs(1)).await;
        }
        sent.push_back(Instant::now());
    }
}

/// A region becomes part of a host's name.
fn check_region(region: &str) -> Result<(), AwsError> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    match region.len() <= REGION_MAX && !region.is_empty() && region.bytes().all(fits) {
        true => Ok(()),
        false => Err(AwsError::Unfit("the region is not one like `eu-west-1`".to_owned())),
    }
}

/// With a bit of chance, so that several do not come again together.
fn back_off(tries: u32) -> Duration {
    let full = BACK_OFF.saturating_mul(1 << tries.saturating_sub(1).min(10)).min(BACK_OFF_MAX);
    let share = u32::try_from(Timestamp::now().subsec_nanosecond() % 1000).unwrap_or(0);
    full / 2 + full / 2 * share / 1000
}

/// What is done with an answer.
enum Verdict {
    Done(Element),
    Refused(AwsError),
    Busy(String),
}

fn judge(answer: &Answer) -> Verdict {
    let read = Element::read(&answer.body);
    if (200..300).contains(&answer.status) {
        return match read {
            Ok(element) => Verdict::Done(element),
            Err(_) if answer.body.is_empty() => Verdict::Done(Element::default()),
            Err(error) => Verdict::Refused(AwsError::Strange(error)),
        };
    }
    let root = read.unwrap_or_default();
    let error = root.get("Error").unwrap_or(&root);
    let status = format!("status {}", answer.status);
    let code = match error.word("Code") {
        Some(code) => code.to_owned(),
        // Route 53 says some things in a way of their own: <InvalidChangeBatch><Messages>…
        None if root.get("Messages").is_some() => root.name.clone(),
        None => status,
    };
    if BUSY.contains(&code.as_str()) || matches!(answer.status, 429 | 500 | 502 | 503 | 504) {
        return Verdict::Busy(code);
    }
    let lines: Vec<&str> =
        root.list("Messages").iter().map(|message| message.text.as_str()).collect();
    let message = match SIGNATURE.contains(&code.as_str()) {
        true => "the secret key does not fit the access key, or this machine's clock is wrong"
            .to_owned(),
        false => error.word("Message").map_or_else(|| lines.join("; "), str::to_owned),
    };
    Verdict::Refused(AwsError::Refused { code, message })
}
