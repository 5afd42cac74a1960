//! Route 53: hosted zones, sets of records, health checks.

use std::net::IpAddr;

use bytes::Bytes;

use crate::client::{Call, Client, Service};
use crate::error::AwsError;
use crate::xml::Element;

const SPACE: &str = "https://route53.amazonaws.com/doc/2013-04-01/";
const VERSION: &str = "/2013-04-01";

/// Pages of one list that are read; a page has up to 300 sets, or 100 health checks.
const PAGES_MAX: usize = 200;

/// Changes of sets in one batch.
pub const CHANGES_MAX: usize = 1000;

/// Characters of all values in one batch.
pub const VALUES_MAX: usize = 32_000;

/// Characters of what identifies the request that made a health check.
pub const REFERENCE_MAX: usize = 64;

/// Characters of a tag's value.
const TAG_MAX: usize = 256;

/// Bytes of an answer that are looked at for a text.
pub const SEARCHED: usize = 5120;

/// Characters of a text that answers are searched for.
pub const SEARCH_MAX: usize = 255;

/// A set of records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordSet {
    /// In small letters, without a dot at its end; `*` as it is.
    pub name: String,
    pub kind: String,
    /// Tells sets of the same name and type apart.
    pub set_identifier: Option<String>,
    pub ttl: Option<u32>,
    /// As in a zone file.
    pub values: Vec<String>,
    pub choice: Option<Choice>,
    pub health_check: Option<String>,
    pub alias: Option<Alias>,
    /// Something in it is not among these, and not made here: a place on earth, a traffic policy.
    pub has_more: bool,
}

/// A set of records that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Existing {
    pub set: RecordSet,
    /// As it came: what deletes it must repeat it word by word.
    raw: Element,
}

/// By what Route 53 chooses a set among others of its name and type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    Primary,
    Secondary,
    Weight(u8),
    /// Of AWS; by the time that it measures.
    Region(String),
    Multivalue,
}

/// A set that answers as another one of the same zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    pub zone_id: String,
    pub name: String,
    pub evaluate: bool,
}

impl RecordSet {
    /// A set that is to be.
    pub fn new(name: &str, kind: &str) -> RecordSet {
        RecordSet {
            name: name.to_owned(),
            kind: kind.to_owned(),
            set_identifier: None,
            ttl: None,
            values: Vec::new(),
            choice: None,
            health_check: None,
            alias: None,
            has_more: false,
        }
    }

    fn read(element: &Element) -> Option<RecordSet> {
        let word = |name: &str| element.word(name);
        let number = |name: &str| word(name).and_then(|text| text.parse().ok());
        let choice = match (word("Failover"), number("Weight"), word("Region")) {
            (Some("PRIMARY"), _, _) => Some(Choice::Primary),
            (Some(_), _, _) => Some(Choice::Secondary),
            (None, Some(weight), _) => Some(Choice::Weight(weight)),
            (None, None, Some(region)) => Some(Choice::Region(region.to_owned())),
            (None, None, None) => {
                (word("MultiValueAnswer") == Some("true")).then_some(Choice::Multivalue)
            }
        };
        let alias = element.get("AliasTarget").map(|alias| Alias {
            zone_id: alias.word("HostedZoneId").unwrap_or_default().to_owned(),
            name: plain_name(alias.word("DNSName").unwrap_or_default()),
            evaluate: alias.word("EvaluateTargetHealth") == Some("true"),
        });
        let records = element.list("ResourceRecords").iter();
        let values = records.filter_map(|record| record.word("Value")).map(str::to_owned);
        let more =
            ["GeoLocation", "GeoProximityLocation", "CidrRoutingConfig", "TrafficPolicyInstanceId"];
        Some(RecordSet {
            name: plain_name(word("Name")?),
            kind: word("Type")?.to_owned(),
            set_identifier: word("SetIdentifier").map(str::to_owned),
            ttl: word("TTL").and_then(|text| text.parse().ok()),
            values: values.collect(),
            choice,
            health_check: word("HealthCheckId").map(str::to_owned),
            alias,
            has_more: more.iter().any(|name| element.get(name).is_some()),
        })
    }

    /// In the order that Route 53's schema has.
    fn write(&self) -> Element {
        let mut inner = vec![Element::text("Name", &self.name), Element::text("Type", &self.kind)];
        let mut put = |name: &str, value: Option<String>| {
            inner.extend(value.map(|value| Element::text(name, value)));
        };
        put("SetIdentifier", self.set_identifier.clone());
        let is = |wanted: &Choice| self.choice.as_ref() == Some(wanted);
        if let Some(Choice::Weight(weight)) = &self.choice {
            put("Weight", Some(weight.to_string()));
        }
        if let Some(Choice::Region(region)) = &self.choice {
            put("Region", Some(region.clone()));
        }
        put("Failover", is(&Choice::Primary).then(|| "PRIMARY".to_owned()));
        put("Failover", is(&Choice::Secondary).then(|| "SECONDARY".to_owned()));
        put("MultiValueAnswer", is(&Choice::Multivalue).then(|| "true".to_owned()));
        put("TTL", self.ttl.map(|ttl| ttl.to_string()));
        if !self.values.is_empty() {
            let record =
                |value: &String| Element::of("ResourceRecord", vec![Element::text("Value", value)]);
            inner.push(Element::of("ResourceRecords", self.values.iter().map(record).collect()));
        }
        if let Some(alias) = &self.alias {
            inner.push(Element::of(
                "AliasTarget",
                vec![
                    Element::text("HostedZoneId", &alias.zone_id),
                    Element::text("DNSName", &alias.name),
                    Element::text("EvaluateTargetHealth", alias.evaluate.to_string()),
                ],
            ));
        }
        inner.extend(self.health_check.iter().map(|id| Element::text("HealthCheckId", id)));
        Element::of("ResourceRecordSet", inner)
    }
}

impl Existing {
    fn read(element: &Element) -> Option<Existing> {
        Some(Existing { set: RecordSet::read(element)?, raw: element.clone() })
    }
}

/// A name as people write it: Route 53 writes `\052` for a star and ends with a dot.
pub(crate) fn plain_name(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.trim_end_matches('.');
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(b'*') => {
                plain.push('*');
                rest = &after[3..];
            }
            Some(_) | None => {
                plain.push('\\');
                rest = after;
            }
        }
    }
    plain.push_str(rest);
    plain.to_ascii_lowercase()
}

/// What is done to one set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It must not be there.
    Create(RecordSet),
    /// It must be there, exactly as it was read.
    Delete(Existing),
}

/// How Route 53 asks a server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CheckConfig {
    pub how: How,
    pub ip: Option<IpAddr>,
    pub port: u16,
    /// Without an address: the name that is asked; else what is said to be asked.
    pub host: Option<String>,
    /// 10 or 30 seconds.
    pub interval: u8,
    /// How many answers in a row turn it, both ways.
    pub threshold: u8,
    pub inverted: bool,
    /// Nobody is asked; it counts as healthy, or as unhealthy if inverted.
    pub disabled: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum How {
    Tcp,
    Http {
        tls: bool,
        path: String,
        search: Option<String>,
    },
    /// Something else that this does not make.
    Other(String),
}

/// A health check as Route 53 has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub id: String,
    /// What the request that made it was identified by.
    pub reference: String,
    pub version: u64,
    pub config: CheckConfig,
}

impl CheckConfig {
    fn read(element: &Element) -> Option<CheckConfig> {
        let word = |name: &str| element.word(name);
        let number = |name: &str, otherwise: u8| {
            word(name).and_then(|text| text.parse().ok()).unwrap_or(otherwise)
        };
        let path = word("ResourcePath").unwrap_or_default().to_owned();
        let search = word("SearchString").map(str::to_owned);
        let how = match word("Type")? {
            "TCP" => How::Tcp,
            "HTTP" | "HTTP_STR_MATCH" => How::Http { tls: false, path, search },
            "HTTPS" | "HTTPS_STR_MATCH" => How::Http { tls: true, path, search },
            other => How::Other(other.to_owned()),
        };
        let port = match &how {
            How::Http { tls: true, .. } => 443,
            How::Http { tls: false, .. } | How::Tcp | How::Other(_) => 80,
        };
        Some(CheckConfig {
            how,
            ip: word("IPAddress").and_then(|text| text.parse().ok()),
            port: word("Port").and_then(|text| text.parse().ok()).unwrap_or(port),
            host: word("FullyQualifiedDomainName").map(str::to_owned),
            interval: number("RequestInterval", 30),
            threshold: number("FailureThreshold", 3),
            inverted: word("Inverted") == Some("true"),
            disabled: word("Disabled") == Some("true"),
        })
    }

    /// In the order that Route 53's schema has.
    fn write(&self) -> Element {
        let (word, tls, path, search) = match &self.how {
            How::Tcp => ("TCP", false, None, None),
            How::Http { tls, path, search } => {
                let word = match (tls, search) {
                    (false, None) => "HTTP",
                    (false, Some(_)) => "HTTP_STR_MATCH",
                    (true, None) => "HTTPS",
                    (true, Some(_)) => "HTTPS_STR_MATCH",
                };
                (word, *tls, Some(path.clone()), search.clone())
            }
            How::Other(word) => (word.as_str(), false, None, None),
        };
        let all = [
            ("IPAddress", self.ip.map(|ip| ip.to_string())),
            ("Port", Some(self.port.to_string())),
            ("Type", Some(word.to_owned())),
            ("ResourcePath", path),
            ("FullyQualifiedDomainName", self.host.clone()),
            ("SearchString", search),
            ("RequestInterval", Some(self.interval.to_string())),
            ("FailureThreshold", Some(self.threshold.to_string())),
            ("MeasureLatency", Some("false".to_owned())),
            ("Inverted", Some(self.inverted.to_string())),
            ("Disabled", Some(self.disabled.to_string())),
            ("EnableSNI", tls.then(|| "true".to_owned())),
        ];
        let inner = all.into_iter().filter_map(|(name, value)| Some(Element::text(name, value?)));
        Element::of("HealthCheckConfig", inner.collect())
    }
}

impl Check {
    fn read(element: &Element) -> Option<Check> {
        Some(Check {
            id: element.word("Id")?.to_owned(),
            reference: element.word("CallerReference").unwrap_or_default().to_owned(),
            version: element
                .word("HealthCheckVersion")
                .and_then(|text| text.parse().ok())
                .unwrap_or(1),
            config: CheckConfig::read(element.get("HealthCheckConfig")?)?,
        })
    }
}

/// Ids come as `/hostedzone/Z1` and become part of paths: letters and digits alone.
pub fn zone_id(text: &str) -> Option<&str> {
    let id = text.strip_prefix("/hostedzone/").unwrap_or(text);
    let fits = |byte: u8| byte.is_ascii_alphanumeric();
    (!id.is_empty() && id.len() <= 32 && id.bytes().all(fits)).then_some(id)
}

fn check_id(text: &str) -> Result<&str, AwsError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    match !text.is_empty() && text.len() <= 64 && text.bytes().all(fits) {
        true => Ok(text),
        false => Err(AwsError::Strange("the id of a health check".to_owned())),
    }
}

fn zone_path(zone: &str) -> Result<String, AwsError> {
    let id = zone_id(zone).ok_or_else(|| {
        AwsError::Unfit(format!("`{zone}` is not the id of a hosted zone, like Z1234567890ABC"))
    })?;
    Ok(format!("/hostedzone/{id}"))
}

impl Client {
    /// The name of a hosted zone, in small letters and without a dot at its end.
    pub async fn hosted_zone_name(&self, zone: &str) -> Result<String, AwsError> {
        let answer = self.route53("GET", &zone_path(zone)?, &[], None).await?;
        let name = answer.get("HostedZone").and_then(|zone| zone.word("Name"));
        name.map(plain_name)
            .ok_or_else(|| AwsError::Strange("a hosted zone without a name".to_owned()))
    }

    /// All sets of records of a hosted zone.
    pub async fn record_sets(&self, zone: &str) -> Result<Vec<Existing>, AwsError> {
        let path = format!("{}/rrset", zone_path(zone)?);
        let mut all = Vec::new();
        let mut from: Vec<(&str, String)> = Vec::new();
        for _ in 0..PAGES_MAX {
            let page = self.route53("GET", &path, &from, None).await?;
            all.extend(page.list("ResourceRecordSets").iter().filter_map(Existing::read));
            if page.word("IsTruncated") != Some("true") {
                return Ok(all);
            }
            let next = [
                ("name", "NextRecordName"),
                ("type", "NextRecordType"),
                ("identifier", "NextRecordIdentifier"),
            ];
            from = next
                .iter()
                .filter_map(|(key, name)| Some((*key, page.word(name)?.to_owned())))
                .collect();
        }
        Err(AwsError::Unfit(format!("the hosted zone {zone} has too many records")))
    }

    /// Changes sets of records, all or none; the id of the change.
    pub async fn change_record_sets(
        &self,
        zone: &str,
        comment: &str,
        changes: &[Change],
    ) -> Result<String, AwsError> {
        let path = format!("{}/rrset/", zone_path(zone)?);
        let list = changes.iter().map(|change| {
            let (action, set) = match change {
                Change::Create(set) => ("CREATE", set.write()),
                Change::Delete(existing) => ("DELETE", existing.raw.clone()),
            };
            Element::of("Change", vec![Element::text("Action", action), set])
        });
        let batch = Element::of(
            "ChangeBatch",
            vec![Element::text("Comment", comment), Element::of("Changes", list.collect())],
        );
        let question = Element::of("ChangeResourceRecordSetsRequest", vec![batch]);
        let answer = self.route53("POST", &path, &[], Some(&question)).await?;
        let id = answer.get("ChangeInfo").and_then(|info| info.word("Id"));
        Ok(id.unwrap_or_default().trim_start_matches("/change/").to_owned())
    }

    /// All health checks of the account.
    pub async fn health_checks(&self) -> Result<Vec<Check>, AwsError> {
        let mut all = Vec::new();
        let mut from: Vec<(&str, String)> = Vec::new();
        for _ in 0..PAGES_MAX {
            let page = self.route53("GET", "/healthcheck", &from, None).await?;
            all.extend(page.list("HealthChecks").iter().filter_map(Check::read));
            match (page.word("IsTruncated"), page.word("NextMarker")) {
                (Some("true"), Some(marker)) => from = vec![("marker", marker.to_owned())],
                (_, _) => return Ok(all),
            }
        }
        Err(AwsError::Unfit("the account has too many health checks".to_owned()))
    }

    /// Makes a health check, or finds the one that the same reference has made.
    pub async fn create_health_check(
        &self,
        reference: &str,
        config: &CheckConfig,
    ) -> Result<Check, AwsError> {
        let question = Element::of(
            "CreateHealthCheckRequest",
            vec![Element::text("CallerReference", reference), config.write()],
        );
        let answer = self.route53("POST", "/healthcheck", &[], Some(&question)).await?;
        let check = answer.get("HealthCheck").and_then(Check::read);
        check.ok_or_else(|| AwsError::Strange("no health check in it".to_owned()))
    }

    /// Turns what a disabled health check counts as; refused if somebody has changed the check since it was read.
    pub async fn invert_health_check(&self, check: &Check, inverted: bool) -> Result<(), AwsError> {
        let question = Element::of(
            "UpdateHealthCheckRequest",
            vec![
                Element::text("HealthCheckVersion", check.version.to_string()),
                Element::text("Inverted", inverted.to_string()),
            ],
        );
        let path = format!("/healthcheck/{}", check_id(&check.id)?);
        self.route53("POST", &path, &[], Some(&question)).await.map(drop)
    }

    /// Deletes a health check; well if it is gone already.
    pub async fn delete_health_check(&self, id: &str) -> Result<(), AwsError> {
        let path = format!("/healthcheck/{}", check_id(id)?);
        match self.route53("DELETE", &path, &[], None).await {
            Err(error) if error.code() == Some("NoSuchHealthCheck") => Ok(()),
            other => other.map(drop),
        }
    }

    /// Gives a health check the name that people see.
    pub async fn name_health_check(&self, id: &str, name: &str) -> Result<(), AwsError> {
        let name: String = name.chars().take(TAG_MAX).collect();
        let tag =
            Element::of("Tag", vec![Element::text("Key", "Name"), Element::text("Value", name)]);
        let question =
            Element::of("ChangeTagsForResourceRequest", vec![Element::of("AddTags", vec![tag])]);
        let path = format!("/tags/healthcheck/{}", check_id(id)?);
        self.route53("POST", &path, &[], Some(&question)).await.map(drop)
    }

    async fn route53(
        &self,
        method: &'static str,
        path: &str,
        query: &[(&str, String)],
        question: Option<&Element>,
    ) -> Result<Element, AwsError> {
        let query = query.iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
        let call = Call {
            service: Service::Route53,
            method,
            path: format!("{VERSION}{path}"),
            query: query.collect(),
            content_type: question.map(|_| "application/xml"),
            body: question.map(|element| Bytes::from(element.document(SPACE))).unwrap_or_default(),
        };
        self.call(&call).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_people_write_them() {
        for (text, plain) in [
            ("Api.Example.com.", "api.example.com"),
            ("\\052.b.example.com.", "*.b.example.com"),
            ("a\\100b.example.com", "a\\100b.example.com"),
            ("a\\", "a\\"),
        ] {
            assert_eq!(plain_name(text), plain, "{text}");
        }
    }

    #[test]
    fn what_was_read_is_deleted_word_by_word() {
        let text = b"<ResourceRecordSet><Name>\\052.x.</Name><Type>A</Type><SetIdentifier>eu</SetIdentifier>\
            <GeoLocation><ContinentCode>EU</ContinentCode></GeoLocation><TTL>60</TTL>\
            <ResourceRecords><ResourceRecord><Value>192.0.2.1</Value></ResourceRecord></ResourceRecords></ResourceRecordSet>";
        let raw = Element::read(text).unwrap();
        let existing = Existing::read(&raw).unwrap();
        assert!(existing.set.has_more);
        assert_eq!((existing.set.name.as_str(), existing.raw), ("*.x", raw));
    }

    #[test]
    fn a_set_that_is_written_is_read_as_itself() {
        for choice in [
            None,
            Some(Choice::Primary),
            Some(Choice::Secondary),
            Some(Choice::Weight(0)),
            Some(Choice::Region("eu-west-1".to_owned())),
            Some(Choice::Multivalue),
        ] {
            let set = RecordSet {
                set_identifier: choice.as_ref().map(|_| "one".to_owned()),
                ttl: Some(60),
                values: vec!["192.0.2.1".to_owned()],
                choice,
                health_check: Some("abc".to_owned()),
                ..RecordSet::new("api.example.com", "A")
            };
            assert_eq!(RecordSet::read(&set.write()), Some(set));
        }
        let alias =
            Alias { zone_id: "Z1".to_owned(), name: "b.example.com".to_owned(), evaluate: true };
        let set = RecordSet { alias: Some(alias), ..RecordSet::new("a.example.com", "A") };
        assert_eq!(RecordSet::read(&set.write()), Some(set));
    }

    #[test]
    fn a_check_that_is_written_is_read_as_itself() {
        for how in [
            How::Tcp,
            How::Http { tls: true, path: "/health".to_owned(), search: None },
            How::Http { tls: false, path: "/".to_owned(), search: Some("\"ok\"".to_owned()) },
        ] {
            let config = CheckConfig {
                how,
                ip: Some([192, 0, 2, 1].into()),
                port: 443,
                host: Some("primary.example.com".to_owned()),
                interval: 30,
                threshold: 3,
                inverted: false,
                disabled: false,
            };
            assert_eq!(CheckConfig::read(&config.write()), Some(config));
        }
    }

    #[test]
    fn ids_that_would_be_other_paths_are_refused() {
        assert_eq!(zone_id("/hostedzone/Z1234567890ABC"), Some("Z1234567890ABC"));
        for text in ["", "Z1/../Z2", "Z1?x", "/hostedzone/"] {
            assert_eq!(zone_id(text), None, "{text}");
        }
    }
}
