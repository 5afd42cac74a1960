//! The small languages inside strings: addresses, URLs, commands, status codes, schedules.
//!
//! Each parser returns the exact type or says what is wrong and what to write instead.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use outlast_core::topology::{
    Authority, Backend, Command, HashKey, HttpTarget, Network, StatusSet,
};
use outlast_core::units;

use super::complaint::quote;
use super::shape::one_of;

/// What is wrong with a piece of text, and what to write instead.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) message: String,
    pub(crate) help: String,
}

fn fault<T>(message: impl Into<String>, help: impl Into<String>) -> Result<T, Fault> {
    Err(Fault { message: message.into(), help: help.into() })
}

pub(crate) fn duration(text: &str) -> Result<Duration, Fault> {
    units::parse_duration(text).or_else(|wrong| {
        let units = one_of(units::duration_units().map(str::to_owned));
        fault(
            format!("the duration {} {wrong}", quote(text)),
            format!("write a number and a unit, like \"5s\" or \"1h30m\"; units are {units}"),
        )
    })
}

pub(crate) fn size(text: &str) -> Result<u64, Fault> {
    units::parse_size(text).or_else(|wrong| {
        let units = one_of(units::size_units().map(str::to_owned));
        fault(
            format!("the size {} {wrong}", quote(text)),
            format!("write a number and a unit, like \"16MiB\"; units are {units}"),
        )
    })
}

/// `99.95` (percent) as the share that was meant.
pub(crate) fn share(percent: f64) -> String {
    let text = format!("{:.9}", percent / 100.0);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

pub(crate) fn ip(text: &str) -> Result<IpAddr, Fault> {
    text.parse().or_else(|_| {
        let help = match text.parse::<SocketAddr>() {
            Ok(address) => format!("leave out the port: \"{}\"", address.ip()),
            Err(_) => {
                "write four numbers from 0 to 255, like \"10.0.0.1\", or an IPv6 address".to_owned()
            }
        };
        fault(format!("{} is not an IP address", quote(text)), help)
    })
}

/// An address to listen on.
pub(crate) fn listen(text: &str) -> Result<SocketAddr, Fault> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        if address.port() == 0 {
            return fault("port 0 is no port", "write a port from 1 to 65535");
        }
        return Ok(address);
    }
    let message = format!("{} is not an IP address and a port", quote(text));
    let port = text.strip_prefix(':').unwrap_or(text);
    if port.parse::<NonZeroU16>().is_ok() {
        return fault(message, format!("write \"0.0.0.0:{port}\" to listen on every address"));
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return fault(message, format!("add a port: \"[{text}]:80\""));
    }
    if text.parse::<IpAddr>().is_ok() {
        return fault(message, format!("add a port: \"{text}:80\""));
    }
    if let Some((host, port)) = text.rsplit_once(':')
        && host.parse::<IpAddr>().is_ok()
        && port.bytes().all(|byte| byte.is_ascii_digit())
    {
        return fault(message, "write a port from 1 to 65535");
    }
    fault(message, "write them like \"0.0.0.0:80\" or \"[::]:80\"; a name cannot be listened on")
}

/// An address and a prefix length; an address alone is a network of one.
pub(crate) fn prefixed(text: &str) -> Result<Network, Fault> {
    let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
    let address = ip(address)?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        None => Some(bits),
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok(),
        Some(_) => None,
    };
    match prefix.filter(|&prefix: &u8| prefix <= bits) {
        Some(prefix) => Ok(Network { address, prefix }),
        None => fault(
            format!("{} has no prefix length that makes sense", quote(text)),
            format!("write a number from 0 to {bits} behind the slash"),
        ),
    }
}

/// A network: no bits set beyond its prefix.
pub(crate) fn network(text: &str) -> Result<Network, Fault> {
    let network = prefixed(text)?;
    let base = match network.address {
        IpAddr::V4(ip) => {
            let host_bits = 32 - u32::from(network.prefix);
            let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
            IpAddr::from((ip.to_bits() & mask).to_be_bytes())
        }
        IpAddr::V6(ip) => {
            let host_bits = 128 - u32::from(network.prefix);
            let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
            IpAddr::from((ip.to_bits() & mask).to_be_bytes())
        }
    };
    if base == network.address {
        return Ok(network);
    }
    fault(
        format!("{} is an address within a network", quote(text)),
        format!(
            "write \"{base}/{}\" for the network, or \"{}\" for the address alone",
            network.prefix, network.address
        ),
    )
}

/// A host name or an IP address (without brackets).
pub(crate) fn is_host(host: &str) -> bool {
    if host.parse::<IpAddr>().is_ok() {
        return true;
    }
    let numeric = host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    !numeric && is_domain(host)
}

/// A domain name: RFC 1035 2.3.4 has at most 63 octets in a label and 255 in all, 253 as text.
pub(crate) fn is_domain(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    name.len() <= 253 && name.split('.').all(label)
}

/// Splits `host`, `host:port`, `[v6]:port`. The port is `None` if there is none, an error if it is not one.
fn split_authority(text: &str) -> Result<(&str, Option<NonZeroU16>), ()> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest.split_once(']').ok_or(())?;
        host.parse::<Ipv6Addr>().map_err(|_no_address| ())?;
        match port {
            "" => (host, None),
            port => (host, Some(port.strip_prefix(':').ok_or(())?)),
        }
    } else {
        text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)))
    };
    if !is_host(host) {
        return Err(());
    }
    let port = match port {
        None => None,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(digits.parse().map_err(|_no_port| ())?)
        }
        Some(_) => return Err(()),
    };
    Ok((host, port))
}

/// `host:port`
pub(crate) fn authority(text: &str) -> Result<Authority, Fault> {
    match split_authority(text) {
        Ok((host, Some(port))) => Ok(Authority { host: host.to_owned(), port }),
        Ok((_, None)) => fault(
            format!("{} has no port", quote(text)),
            "write host:port, like \"127.0.0.1:3000\"",
        ),
        Err(()) => fault(
            format!("{} is not a host and a port", quote(text)),
            "write host:port, like \"127.0.0.1:3000\" or \"[::1]:3000\"",
        ),
    }
}

const HTTP_PORT: NonZeroU16 = NonZeroU16::new(80).expect("80 is not zero");
const HTTPS_PORT: NonZeroU16 = NonZeroU16::new(443).expect("443 is not zero");

/// A backend, and whether it is one for TCP.
pub(crate) fn backend(text: &str) -> Result<(Backend, bool), Fault> {
    const HELP: &str =
        "write http://, https:// or tcp://, then host:port, like \"http://10.0.0.1:3000\"";
    let Some((scheme, rest)) = text.split_once("://") else {
        return match authority(text) {
            Ok(_) => fault(
                format!("{} does not say how to speak to the backend", quote(text)),
                format!("write \"http://{text}\", or https:// or tcp://"),
            ),
            Err(_) => fault(format!("{} is not a backend", quote(text)), HELP),
        };
    };
    let (tls, tcp, default_port) = match scheme {
        "http" => (false, false, Some(HTTP_PORT)),
        "https" => (true, false, Some(HTTPS_PORT)),
        "tcp" => (false, true, None),
        _ => {
            return fault(format!("a backend cannot be {}", quote(&format!("{scheme}://"))), HELP);
        }
    };
    if let Some(end) = rest.find(['/', '?', '#'])
        && let Ok(_) = split_authority(&rest[..end])
    {
        return fault(
            format!("a backend has no path: {}", quote(text)),
            format!("write \"{scheme}://{}\"; requests keep their own path", &rest[..end]),
        );
    }
    let Ok((host, port)) = split_authority(rest) else {
        return fault(format!("{} has no host and port that make sense", quote(text)), HELP);
    };
    let Some(port) = port.or(default_port) else {
        return fault(format!("{} has no port", quote(text)), format!("write \"{text}:PORT\""));
    };
    Ok((Backend { url: text.to_owned(), tls, host: host.to_owned(), port }, tcp))
}

/// A path or a whole URL to ask over HTTP.
pub(crate) fn http_target(text: &str) -> Result<HttpTarget, Fault> {
    if text.starts_with('/') {
        return Ok(HttpTarget::Path(http_path(text)?));
    }
    let message = || format!("{} is neither a path nor a URL", quote(text));
    let (tls, rest) = match text.split_once("://") {
        Some(("http", rest)) => (false, rest),
        Some(("https", rest)) => (true, rest),
        Some(_) => return fault(message(), "write http:// or https://"),
        None if text.contains(['.', ':']) => {
            return fault(message(), format!("write \"http://{text}\"").replace('`', ""));
        }
        None => return fault(message(), "write a path, like \"/health\""),
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (host_port, path) = rest.split_at(end);
    let Ok((host, port)) = split_authority(host_port) else {
        return fault(
            format!("{} has no host that makes sense", quote(text)),
            "write it like \"http://10.0.0.1:3000/health\"",
        );
    };
    let port = port.unwrap_or(if tls { HTTPS_PORT } else { HTTP_PORT });
    let path = match path {
        "" => "/".to_owned(),
        path if path.starts_with('/') => http_path(path)?,
        path => http_path(&format!("/{path}"))?,
    };
    Ok(HttpTarget::Url { tls, authority: Authority { host: host.to_owned(), port }, path })
}

/// A whole URL for HTTP.
pub(crate) fn http_url(text: &str) -> Result<String, Fault> {
    if text.starts_with('/') {
        return fault(
            format!("{} is not a URL", quote(text)),
            "write it like \"https://api.example.com/health\"",
        );
    }
    http_target(text).map(|_| text.to_owned())
}

fn http_path(text: &str) -> Result<String, Fault> {
    match text.chars().find(|c| !c.is_ascii_graphic() || *c == '#') {
        None => Ok(text.to_owned()),
        Some(c) => fault(
            format!("the path {} contains a character that no URL may", quote(text)),
            match c {
                '#' => "leave out # and what follows it".to_owned(),
                ' ' => "write %20 for a space".to_owned(),
                _ => "write it with %, like %C3%A4".to_owned(),
            },
        ),
    }
}

/// Operators of a shell that mean nothing without one.
const SHELL_WORDS: [&str; 9] = ["|", "||", "&", "&&", ";", ">", ">>", "<", "2>&1"];

/// Splits a command into words as a shell does: blanks, quotes and backslashes; nothing else.
pub(crate) fn command(text: &str) -> Result<Command, Fault> {
    let mut words: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut plain = true;
    let mut operator = None;
    let mut chars = text.chars();
    let unclosed = |quote: char| -> Result<Command, Fault> {
        fault(
            format!("a {quote} is not closed in this command"),
            format!("write the second {quote}"),
        )
    };
    loop {
        let next = chars.next();
        if next.is_none_or(|c| c.is_ascii_whitespace()) {
            if let Some(word) = word.take() {
                if plain && operator.is_none() {
                    operator = SHELL_WORDS.iter().find(|&&shell_word| shell_word == word);
                }
                words.push(word);
            }
            plain = true;
            if next.is_none() {
                break;
            }
            continue;
        }
        let current = word.get_or_insert_default();
        match next {
            Some('\'') => {
                plain = false;
                loop {
                    match chars.next() {
                        None => return unclosed('\''),
                        Some('\'') => break,
                        Some(c) => current.push(c),
                    }
                }
            }
            Some('"') => {
                plain = false;
                loop {
                    match chars.next() {
                        None => return unclosed('"'),
                        Some('"') => break,
                        Some('\\') => match chars.next() {
                            None => return unclosed('"'),
                            Some(c) if matches!(c, '"' | '\\' | '$' | '`') => current.push(c),
                            Some(c) => current.extend(['\\', c]),
                        },
                        Some(c) => current.push(c),
                    }
                }
            }
            Some('\\') => {
                plain = false;
                match chars.next() {
                    Some(c) => current.push(c),
                    None => {
                        return fault(
                            "the command ends in a backslash",
                            "leave it out, or double it",
                        );
                    }
                }
            }
            Some(c) => current.push(c),
            None => {}
        }
    }
    if let Some(operator) = operator {
        return fault(
            format!("`{operator}` means nothing here: no shell runs this command"),
            "write [\"sh\", \"-c\", \"…\"] to have one",
        );
    }
    match words.first() {
        Some(program) if !program.is_empty() => Ok(Command(words)),
        Some(_) | None => {
            fault("the command names no program", "write it first, like \"/usr/bin/api\"")
        }
    }
}

/// `200`, `200-299`, or several with commas between.
pub(crate) fn status_set(text: &str) -> Result<StatusSet, Fault> {
    let code = |digits: &str| -> Option<u16> {
        let digits = digits.trim();
        let plain = digits.len() == 3 && digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse().ok().filter(|code| plain && (100..=599).contains(code))
    };
    let range = |range: &str| match range.split_once('-') {
        None => code(range).map(|code| (code, code)),
        Some((low, high)) => Some((code(low)?, code(high)?)).filter(|(low, high)| low <= high),
    };
    match text.split(',').map(range).collect() {
        Some(ranges) => Ok(StatusSet(ranges)),
        None => fault(
            format!("{} is not a set of status codes", quote(text)),
            "write codes from 100 to 599 and ranges of them, like \"200-299,304\"",
        ),
    }
}

pub(crate) fn hash_key(text: &str) -> Result<HashKey, Fault> {
    let token = |name: &str| is_token(name).then(|| name.to_owned());
    let key = match text.split_once(':') {
        None if text == "ip" => Some(HashKey::ClientIp),
        None if text == "path" => Some(HashKey::Path),
        Some(("header", name)) => token(name).map(HashKey::Header),
        Some(("cookie", name)) => token(name).map(HashKey::Cookie),
        None | Some(_) => None,
    };
    key.map_or_else(
        || {
            fault(
                format!("requests cannot be hashed on {}", quote(text)),
                "write \"ip\", \"path\", \"header:NAME\" or \"cookie:NAME\"",
            )
        },
        Ok,
    )
}

/// A header's or a cookie's name: a token of RFC 9110 5.6.2.
pub(crate) fn is_token(name: &str) -> bool {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(token)
}

/// A path; a relative one is relative to the topology file.
pub(crate) fn path(text: &str) -> Result<String, Fault> {
    if text.is_empty() || text.contains('\0') {
        return fault(
            "the path is empty".to_owned(),
            "name a directory, as in \"/var/lib/outlast\"",
        );
    }
    Ok(text.to_owned())
}

pub(crate) fn absolute_path(text: &str) -> Result<String, Fault> {
    if text.starts_with('/') {
        return Ok(text.to_owned());
    }
    fault(format!("{} is not an absolute path", quote(text)), "begin it with a slash")
}

/// An IANA time zone, by its form.
pub(crate) fn timezone(text: &str) -> Result<String, Fault> {
    let part = |part: &str| {
        part.bytes().next().is_some_and(|first| first.is_ascii_alphabetic())
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_+-".contains(&byte))
    };
    if text.len() <= 64 && text.split('/').all(part) {
        return Ok(text.to_owned());
    }
    fault(
        format!("{} is not the name of a time zone", quote(text)),
        "write it as the IANA database does, like \"Europe/Berlin\" or \"UTC\"",
    )
}

const WEEKDAYS: [&str; 7] =
    ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];

/// `02:00 daily`, `02:00 sunday` or `every 4h`.
pub(crate) fn schedule(text: &str) -> Result<String, Fault> {
    if let Some(every) = text.strip_prefix("every ") {
        if duration(every)?.is_zero() {
            return fault("`every` cannot be zero", "write it like \"every 4h\"");
        }
        return Ok(text.to_owned());
    }
    let two_digits = |digits: &str, max: u8| {
        digits.len() == 2
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && digits.parse::<u8>().is_ok_and(|number| number <= max)
    };
    let fits = text.split_once(' ').is_some_and(|(time, day)| {
        time.split_once(':').is_some_and(|(h, m)| two_digits(h, 23) && two_digits(m, 59))
            && (day == "daily" || WEEKDAYS.contains(&day))
    });
    if fits {
        return Ok(text.to_owned());
    }
    fault(
        format!("{} is not a time to copy at", quote(text)),
        "write \"02:00 daily\", \"02:00 sunday\" or \"every 4h\"",
    )
}

/// Where copies go.
pub(crate) fn backup_target(text: &str) -> Result<String, Fault> {
    let fits = match text.split_once("://") {
        Some(("s3", rest)) => {
            let bucket = rest.split('/').next().unwrap_or_default();
            (3..=63).contains(&bucket.len()) && is_domain(bucket)
        }
        Some(("file", path)) => path.starts_with('/'),
        Some(_) => false,
        None => text.starts_with('/'),
    };
    if fits {
        return Ok(text.to_owned());
    }
    fault(
        format!("{} is not a place for copies", quote(text)),
        "write \"s3://BUCKET/PREFIX\", \"file:///PATH\" or an absolute path",
    )
}

/// The longest name of a part: it becomes part of file names and of metrics.
const NAME_MAX: usize = 63;

/// A part's name: letters, digits, `_` and `-`.
pub(crate) fn part_name(text: &str) -> Result<String, Fault> {
    if text.is_empty() {
        return fault("a part needs a name", "write one, like [service.web]");
    }
    if text.len() > NAME_MAX {
        return fault(
            format!("the name {} is too long", quote(text)),
            format!("write at most {NAME_MAX} characters"),
        );
    }
    if text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)) {
        return Ok(text.to_owned());
    }
    fault(format!("{} cannot be a name", quote(text)), "a name has letters, digits, _ and - only")
}

/// A zone of the name system.
pub(crate) fn zone_name(text: &str) -> Result<String, Fault> {
    if !text.is_empty() && is_domain(text) {
        return Ok(text.to_owned());
    }
    fault(
        format!("{} cannot be the name of a zone", quote(text)),
        "write it like [dns.\"example.com\"]",
    )
}

/// A record's name within its zone: `@` is the zone itself, `*` in front stands for every name.
pub(crate) fn record_name(text: &str) -> Result<String, Fault> {
    let rest = text.strip_prefix("*.").unwrap_or(text);
    if matches!(text, "@" | "*") || (is_domain(rest) && !rest.ends_with('.')) {
        return Ok(text.to_owned());
    }
    fault(
        format!("{} cannot be the name of a record", quote(text)),
        "write it without the zone, like \"api\"; \"@\" is the zone itself",
    )
}

/// A network interface. Linux: at most 15 bytes, no blank and no slash.
pub(crate) fn interface(text: &str) -> Result<String, Fault> {
    let fits = text.len() <= 15
        && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':')
        && !matches!(text, "." | "..");
    if fits {
        return Ok(text.to_owned());
    }
    fault(
        format!("{} cannot be a network interface", quote(text)),
        "write one that `ip link` lists, like \"eth0\"",
    )
}

/// A mail server.
pub(crate) fn smtp_url(text: &str) -> Result<String, Fault> {
    let rest = text.strip_prefix("smtp://").or_else(|| text.strip_prefix("smtps://"));
    if rest.is_some_and(|rest| split_authority(rest.trim_end_matches('/')).is_ok()) {
        return Ok(text.to_owned());
    }
    fault(
        format!("{} is not a mail server", quote(text)),
        "write it like \"smtp://127.0.0.1:25\" or \"smtps://mail.example.com\"",
    )
}

pub(crate) fn mail_address(text: &str) -> Result<String, Fault> {
    let fits = text.rsplit_once('@').is_some_and(|(local, domain)| {
        !local.is_empty() && local.bytes().all(|byte| byte.is_ascii_graphic()) && is_domain(domain)
    });
    if fits {
        return Ok(text.to_owned());
    }
    fault(format!("{} is not a mail address", quote(text)), "write it like \"ops@example.com\"")
}

/// A percentile's name, `p95` or `p99.9`.
pub(crate) fn percentile(text: &str) -> Result<f64, Fault> {
    let number = text.strip_prefix('p').filter(|digits| {
        digits.starts_with(|c: char| c.is_ascii_digit())
            && digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    });
    match number.and_then(|digits| digits.parse::<f64>().ok()) {
        Some(percentile) if percentile > 0.0 && percentile < 100.0 => Ok(percentile),
        Some(_) | None => fault(
            format!("{} is not a percentile", quote(text)),
            "write p and a number between 0 and 100, like p95 or \"p99.9\"",
        ),
    }
}
