//! Signs requests (AWS Signature Version 4).

use jiff::Timestamp;
use jiff::tz::TimeZone;
use ring::{digest, hmac};

use crate::credentials::Credentials;

/// What is signed of a request.
#[derive(Debug)]
pub(crate) struct Unsigned<'a> {
    pub(crate) method: &'a str,
    /// The Host header.
    pub(crate) host: &'a str,
    /// As it is sent: only unreserved characters and slashes.
    pub(crate) path: &'a str,
    pub(crate) query: &'a [(String, String)],
    pub(crate) content_type: Option<&'a str>,
    pub(crate) body: &'a [u8],
}

/// For whom it is signed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope<'a> {
    pub(crate) region: &'a str,
    pub(crate) service: &'a str,
}

/// The headers that a request gets: name and value.
pub(crate) fn sign(
    request: &Unsigned<'_>,
    scope: Scope<'_>,
    credentials: &Credentials,
    now: Timestamp,
) -> Vec<(&'static str, String)> {
    let moment = now.to_zoned(TimeZone::UTC).strftime("%Y%m%dT%H%M%SZ").to_string();
    let day = moment.split('T').next().unwrap_or_default();
    // In the order of their names, as they are signed.
    let mut headers = Vec::new();
    headers.extend(request.content_type.map(|kind| ("content-type", kind.to_owned())));
    headers.push(("host", request.host.to_owned()));
    headers.push(("x-amz-date", moment.clone()));
    headers.extend(credentials.token().map(|token| ("x-amz-security-token", token.to_owned())));
    let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let lines: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let canonical = [
        request.method,
        request.path,
        &query_string(request.query),
        &lines,
        &names,
        &hex(digest::digest(&digest::SHA256, request.body).as_ref()),
    ]
    .join("\n");
    let Scope { region, service } = scope;
    let place = format!("{day}/{region}/{service}/aws4_request");
    let hashed = hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
    let to_sign = format!("AWS4-HMAC-SHA256\n{moment}\n{place}\n{hashed}");
    let mut key = format!("AWS4{}", credentials.secret()).into_bytes();
    for step in [day, region, service, "aws4_request", &to_sign] {
        let with = hmac::Key::new(hmac::HMAC_SHA256, &key);
        key = hmac::sign(&with, step.as_bytes()).as_ref().to_vec();
    }
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={}/{place}, SignedHeaders={names}, Signature={}",
        credentials.id(),
        hex(&key)
    );
    headers.retain(|(name, _)| *name != "host");
    headers.push(("authorization", authorization));
    headers
}

/// A query in the order and the form in which it is signed, and sent.
pub(crate) fn query_string(query: &[(String, String)]) -> String {
    let mut pairs: Vec<(String, String)> =
        query.iter().map(|(name, value)| (escape(name), escape(value))).collect();
    pairs.sort();
    let pairs: Vec<String> =
        pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.join("&")
}

/// Everything but unreserved characters (RFC 3986 2.3) as percent and two digits.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                escaped.push(char::from(byte));
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signature(
        request: &Unsigned<'_>,
        scope: Scope<'_>,
        token: Option<&str>,
        at: &str,
    ) -> String {
        let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
        let credentials = Credentials::fixed("AKIDEXAMPLE", secret, token);
        let headers = sign(request, scope, &credentials, at.parse().unwrap());
        let (_, authorization) = headers.iter().find(|(name, _)| *name == "authorization").unwrap();
        authorization.rsplit('=').next().unwrap().to_owned()
    }

    /// The first two are in the test suite that AWS published; the others were made with its botocore.
    #[test]
    fn signatures_are_those_of_aws() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let suite = Scope { region: "us-east-1", service: "service" };
        let route53 = Scope { region: "us-east-1", service: "route53" };
        let rds = Scope { region: "eu-west-1", service: "rds" };
        let get = Unsigned {
            method: "GET",
            host: "example.amazonaws.com",
            path: "/",
            query: &[],
            content_type: None,
            body: b"",
        };
        let at = ["2015-08-30T12:36:00Z", "2026-11-29T12:00:00Z"];
        for (request, scope, token, at, wanted) in [
            (
                Unsigned { ..get },
                suite,
                None,
                at[0],
                "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            ),
            (
                Unsigned { query: &[pair("Param2", "value2"), pair("Param1", "value1")], ..get },
                suite,
                None,
                at[0],
                "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
            ),
            (
                Unsigned {
                    method: "POST",
                    host: "route53.amazonaws.com",
                    path: "/2013-04-01/hostedzone/Z1/rrset",
                    content_type: Some("application/xml"),
                    body: b"<a>1</a>",
                    ..get
                },
                route53,
                Some("TOKEN+/="),
                at[1],
                "3016881d3d220c291ea47d8e69e14849995fa92c285572b702a47760f9442526",
            ),
            (
                Unsigned {
                    host: "route53.amazonaws.com",
                    path: "/2013-04-01/hostedzone/Z1/rrset",
                    query: &[pair("type", "A"), pair("name", "*.a b~c"), pair("maxitems", "300")],
                    ..get
                },
                route53,
                None,
                at[1],
                "b90b2630b8fb7c0899af9778bd239bc86ff7e64c4d27a8ea0a819daa2172babc",
            ),
            (
                Unsigned {
                    method: "POST",
                    host: "127.0.0.1:5000",
                    content_type: Some("application/x-www-form-urlencoded"),
                    body: b"Action=PromoteReadReplica&Version=2014-10-31",
                    ..get
                },
                rds,
                None,
                at[1],
                "69dd6baa902bd3739eabfa13dc73873f3e8a459d6445cd5e6c778008112ad957",
            ),
        ] {
            assert_eq!(signature(&request, scope, token, at), wanted, "{request:?}");
        }
    }
}
