//! Who we are to AWS: the usual places, in the usual order.
//!
//! | place | what says so |
//! | --- | --- |
//! | environment | `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN` |
//! | `~/.aws/credentials`, `~/.aws/config` | `AWS_PROFILE`, else `default`; `AWS_SHARED_CREDENTIALS_FILE`, `AWS_CONFIG_FILE` |
//! | a container's endpoint (ECS, EKS Pod Identity) | `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI`, `AWS_CONTAINER_CREDENTIALS_FULL_URI` |
//! | the instance's metadata (EC2, version 2 alone) | unless `AWS_EC2_METADATA_DISABLED` is `true` |

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::Mutex;

use crate::error::AwsError;
use crate::http::{Answer, Endpoint, Question, ask_within};
use crate::ini;

/// Credentials that end within this time are fetched anew.
const RENEW_BEFORE: Duration = Duration::from_secs(300);

/// Bytes of a file with credentials or a token.
const FILE_MAX: u64 = 1 << 20;

/// How long the metadata of an instance or a container may take to answer: outside of AWS nobody does.
const METADATA_MAX: Duration = Duration::from_secs(1);

/// How often metadata are asked for.
const METADATA_TRIES: u32 = 3;

const INSTANCE_METADATA: &str = "http://169.254.169.254";
const CONTAINER_METADATA: &str = "http://169.254.170.2";

/// Seconds for which a token of the instance's metadata is good.
const TOKEN_SECONDS: &str = "300";

/// Hosts that credentials may be fetched from without TLS, beside this machine itself: ECS and EKS.
const METADATA_HOSTS: [&str; 3] = ["169.254.170.2", "169.254.170.23", "fd00:ec2::23"];

/// What identifies us to AWS. `Debug` says where it is from and no more.
#[derive(Clone)]
pub struct Credentials {
    id: String,
    secret: String,
    token: Option<String>,
    until: Option<Timestamp>,
    from: &'static str,
}

impl Credentials {
    /// Some that somebody has at hand, and that do not end.
    pub fn fixed(id: &str, secret: &str, token: Option<&str>) -> Credentials {
        Credentials {
            id: id.to_owned(),
            secret: secret.to_owned(),
            token: token.map(str::to_owned),
            until: None,
            from: "given",
        }
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn secret(&self) -> &str {
        &self.secret
    }

    pub(crate) fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// Which place they are from.
    pub fn from(&self) -> &'static str {
        self.from
    }

    fn is_good(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| now + RENEW_BEFORE < until)
    }

    /// What the endpoint of a container or an instance answers.
    fn read(body: &[u8], from: &'static str) -> Option<Credentials> {
        let json: serde_json::Value = serde_json::from_slice(body).ok()?;
        let text = |name: &str| json.get(name)?.as_str().map(str::to_owned);
        Some(Credentials {
            id: text("AccessKeyId")?,
            secret: text("SecretAccessKey")?,
            token: text("Token").filter(|token| !token.is_empty()),
            until: text("Expiration").and_then(|until| until.parse().ok()),
            from,
        })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials(from the {})", self.from)
    }
}

/// The variables of a process, or what a test puts in their place.
#[derive(Clone)]
pub struct Environment(Arc<Lookup>);

type Lookup = dyn Fn(&str) -> Option<String> + Send + Sync;

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Environment")
    }
}

impl Environment {
    /// Of this process.
    pub fn of_process() -> Environment {
        Environment(Arc::new(|name| std::env::var(name).ok()))
    }

    /// These variables alone.
    pub fn of(variables: &[(&str, &str)]) -> Environment {
        let variables: BTreeMap<String, String> =
            variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Environment(Arc::new(move |name| variables.get(name).cloned()))
    }

    /// A variable that says something.
    pub(crate) fn get(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|value| !value.is_empty())
    }

    fn is_on(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    fn profile(&self) -> String {
        self.get("AWS_PROFILE").unwrap_or_else(|| "default".to_owned())
    }

    /// A file of AWS's: named by a variable, or else in the home directory.
    fn file(&self, variable: &str, name: &str) -> Option<PathBuf> {
        let named = self.get(variable).map(PathBuf::from);
        named.or_else(|| Some(Path::new(&self.get("HOME")?).join(".aws").join(name)))
    }

    /// What the two files say of our profile; the file of credentials comes first.
    async fn files(&self) -> Result<BTreeMap<String, String>, AwsError> {
        let profile = self.profile();
        let mut all = BTreeMap::new();
        let mut known = false;
        for (variable, name, heads) in [
            ("AWS_CONFIG_FILE", "config", [format!("profile {profile}"), profile.clone()]),
            (
                "AWS_SHARED_CREDENTIALS_FILE",
                "credentials",
                [profile.clone(), format!("profile {profile}")],
            ),
        ] {
            let Some(path) = self.file(variable, name) else { continue };
            let Some(text) = read(&path).await? else { continue };
            let sections = ini::read(&text);
            let is_config = name == "config";
            for head in heads {
                // In the file of configuration only the default profile goes without the word.
                let is_ours = match (is_config, head.starts_with("profile ")) {
                    (true, true) | (false, false) => true,
                    (true, false) => profile == "default",
                    (false, true) => false,
                };
                if let Some(keys) = sections.get(&head).filter(|_| is_ours) {
                    known = true;
                    all.extend(keys.clone());
                }
            }
        }
        if !known && self.get("AWS_PROFILE").is_some() {
            return Err(AwsError::Credentials(format!(
                "there is no profile `{profile}` in AWS's files; set AWS_PROFILE to another, or unset it"
            )));
        }
        Ok(all)
    }

    /// The region that calls go to where none is named.
    pub(crate) async fn region(&self) -> Result<Option<String>, AwsError> {
        let named = self.get("AWS_REGION").or_else(|| self.get("AWS_DEFAULT_REGION"));
        match named {
            Some(region) => Ok(Some(region)),
            None => Ok(self.files().await?.remove("region")),
        }
    }
}

/// Finds credentials, and keeps them until they are about to end.
#[derive(Debug)]
pub struct Chain {
    environment: Environment,
    kept: Mutex<Option<Credentials>>,
}

impl Chain {
    pub fn new(environment: Environment) -> Chain {
        Chain { environment, kept: Mutex::new(None) }
    }

    /// Credentials that are good now.
    pub(crate) async fn get(&self) -> Result<Credentials, AwsError> {
        let mut kept = self.kept.lock().await;
        if let Some(credentials) = kept.as_ref().filter(|kept| kept.is_good(Timestamp::now())) {
            return Ok(credentials.clone());
        }
        let found = self.find().await?;
        tracing::debug!(from = found.from, "credentials for AWS");
        *kept = Some(found.clone());
        Ok(found)
    }

    /// AWS said that they are no longer good.
    pub(crate) async fn forget(&self) {
        *self.kept.lock().await = None;
    }

    async fn find(&self) -> Result<Credentials, AwsError> {
        if let Some(found) = self.of_environment()? {
            return Ok(found);
        }
        if let Some(found) = self.of_files().await? {
            return Ok(found);
        }
        if let Some(found) = self.of_container().await? {
            return Ok(found);
        }
        if let Some(found) = self.of_instance().await? {
            return Ok(found);
        }
        Err(AwsError::Credentials(format!(
            "no credentials for AWS: neither in the environment (AWS_ACCESS_KEY_ID) nor for the profile `{}` in ~/.aws, \
             nor from a container or the metadata of an instance",
            self.environment.profile()
        )))
    }

    fn of_environment(&self) -> Result<Option<Credentials>, AwsError> {
        let get = |name| self.environment.get(name);
        match (get("AWS_ACCESS_KEY_ID"), get("AWS_SECRET_ACCESS_KEY")) {
            (Some(id), Some(secret)) => Ok(Some(Credentials {
                id,
                secret,
                token: get("AWS_SESSION_TOKEN"),
                until: None,
                from: "environment",
            })),
            (None, None) => Ok(None),
            (Some(_), None) | (None, Some(_)) => Err(AwsError::Credentials(
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY go together: set both, or neither"
                    .to_owned(),
            )),
        }
    }

    async fn of_files(&self) -> Result<Option<Credentials>, AwsError> {
        let mut keys = self.environment.files().await?;
        let mut take = |name: &str| keys.remove(name);
        if let (Some(id), Some(secret)) = (take("aws_access_key_id"), take("aws_secret_access_key"))
        {
            let token = take("aws_session_token");
            return Ok(Some(Credentials {
                id,
                secret,
                token,
                until: None,
                from: "files in ~/.aws",
            }));
        }
        let other = ["role_arn", "credential_process", "sso_session", "sso_start_url"];
        match other.iter().find(|name| keys.contains_key(**name)) {
            Some(name) => Err(AwsError::Credentials(format!(
                "the profile `{}` has `{name}`, which outlast does not follow; give it keys, or export them: \
                 `aws configure export-credentials --format env`",
                self.environment.profile()
            ))),
            None => Ok(None),
        }
    }

    async fn of_container(&self) -> Result<Option<Credentials>, AwsError> {
        let get = |name| self.environment.get(name);
        let relative = get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
        let full = get("AWS_CONTAINER_CREDENTIALS_FULL_URI");
        let Some(url) = relative.map(|path| format!("{CONTAINER_METADATA}{path}")).or(full) else {
            return Ok(None);
        };
        let bad =
            |what: String| AwsError::Credentials(format!("the container's credentials: {what}"));
        let endpoint = Endpoint::parse(&url)
            .filter(may_have_credentials)
            .ok_or_else(|| bad("they may only come by https or from this machine".to_owned()))?;
        let target = url.parse::<hyper::Uri>().ok();
        let target = target.as_ref().and_then(hyper::Uri::path_and_query);
        let target = target.map_or("/", |path| path.as_str());
        let token = match get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
            Some(path) => read(Path::new(&path)).await?.map(|text| text.trim().to_owned()),
            None => get("AWS_CONTAINER_AUTHORIZATION_TOKEN"),
        };
        let headers: Vec<_> = token.map(|token| ("authorization", token)).into_iter().collect();
        let answer = fetch(&endpoint, "GET", target, &headers).await.map_err(bad)?;
        if answer.status != 200 {
            return Err(AwsError::Credentials(format!(
                "the container's credentials: status {}",
                answer.status
            )));
        }
        let read = Credentials::read(&answer.body, "container");
        read.map(Some).ok_or_else(|| {
            AwsError::Credentials("the container's credentials: not understood".to_owned())
        })
    }

    /// None if this is no instance of EC2, or one without a role.
    async fn of_instance(&self) -> Result<Option<Credentials>, AwsError> {
        if self.environment.is_on("AWS_EC2_METADATA_DISABLED") {
            return Ok(None);
        }
        let named = self.environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT");
        let url = named.unwrap_or_else(|| INSTANCE_METADATA.to_owned());
        let endpoint = Endpoint::parse(&url).ok_or_else(|| {
            AwsError::Credentials("AWS_EC2_METADATA_SERVICE_ENDPOINT is no URL".to_owned())
        })?;
        let prefix = &endpoint.prefix;
        let wanted = [("x-aws-ec2-metadata-token-ttl-seconds", TOKEN_SECONDS.to_owned())];
        let Ok(token) =
            fetch(&endpoint, "PUT", &format!("{prefix}/latest/api/token"), &wanted).await
        else {
            return Ok(None);
        };
        let Some(token) = text(&token) else { return Ok(None) };
        let with = [("x-aws-ec2-metadata-token", token)];
        let root = format!("{prefix}/latest/meta-data/iam/security-credentials/");
        let bad = |what: String| AwsError::Credentials(format!("the instance's metadata: {what}"));
        let role = fetch(&endpoint, "GET", &root, &with).await.map_err(bad)?;
        let Some(role) = text(&role) else { return Ok(None) };
        let role = role.lines().next().unwrap_or_default();
        let answer = fetch(&endpoint, "GET", &format!("{root}{role}"), &with).await.map_err(bad)?;
        let read = Credentials::read(&answer.body, "instance's metadata");
        read.map(Some).ok_or_else(|| {
            AwsError::Credentials("the instance's metadata: not understood".to_owned())
        })
    }
}

/// The body of a good answer.
fn text(answer: &Answer) -> Option<String> {
    let text = std::str::from_utf8(&answer.body).ok()?.trim();
    (answer.status == 200 && !text.is_empty()).then(|| text.to_owned())
}

fn may_have_credentials(endpoint: &Endpoint) -> bool {
    let host = endpoint.host();
    let is_here = host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()) || host == "localhost";
    endpoint.is_tls() || is_here || METADATA_HOSTS.contains(&host)
}

async fn fetch(
    endpoint: &Endpoint,
    method: &str,
    target: &str,
    headers: &[(&'static str, String)],
) -> Result<Answer, String> {
    let mut worst = String::new();
    for _ in 0..METADATA_TRIES {
        let question = Question { method, target, headers, body: Bytes::new() };
        match ask_within(endpoint, question, METADATA_MAX, METADATA_MAX).await {
            Ok(answer) if answer.status < 500 => return Ok(answer),
            Ok(answer) => worst = format!("status {}", answer.status),
            Err(error) => worst = error,
        }
    }
    Err(worst)
}

/// None if there is no such file. Home directories may be slow, so that nobody else waits for it.
async fn read(path: &Path) -> Result<Option<String>, AwsError> {
    use std::io::{ErrorKind, Read as _};
    let place = path.to_owned();
    let task = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        std::fs::File::open(place)?.take(FILE_MAX).read_to_string(&mut text)?;
        Ok(text)
    });
    match task.await.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(AwsError::Credentials(format!("read {}: {error}", path.display()))),
    }
}
