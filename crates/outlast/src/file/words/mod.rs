//! The small languages inside strings: addresses, URLs, commands, status codes, schedules.
//!
//! Each parser returns the exact type or says what is wrong and what to write instead.

mod net;

use std::net::{IpAddr, SocketAddr};

use std::time::Duration;

use outlast_core::topology::{Command, HashKey, StatusSet};
use outlast_core::units;

pub(crate) use net::*;

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

/// A name that is absolute whether it ends in a dot or not; without that dot.
pub(crate) fn domain(text: &str) -> Result<String, Fault> {
    let name = text.strip_suffix('.').unwrap_or(text);
    if is_domain(name) {
        return Ok(name.to_owned());
    }
    fault(format!("{} is not a name", quote(text)), "write it whole, like \"ns1.example.com\"")
}

/// The port of the name system.
const DNS_PORT: u16 = 53;

/// Another name server: an IP address, and a port if it is not the usual one.
pub(crate) fn name_server(text: &str) -> Result<SocketAddr, Fault> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, DNS_PORT));
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(address),
        Ok(_) | Err(_) => fault(
            format!("{} is not the address of a name server", quote(text)),
            "write it like \"192.0.2.53\", \"192.0.2.53:53\" or \"[2001:db8::53]:53\"; names are not looked up here",
        ),
    }
}

/// Characters of the id of a hosted zone of Route 53.
const HOSTED_ZONE_MAX: usize = 32;

/// The id of a hosted zone, as AWS's tools print it.
pub(crate) fn hosted_zone(text: &str) -> Result<String, Fault> {
    let id = text.strip_prefix("/hostedzone/").unwrap_or(text);
    let fits = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit();
    if !id.is_empty() && id.len() <= HOSTED_ZONE_MAX && id.bytes().all(fits) {
        return Ok(id.to_owned());
    }
    fault(
        format!("{} is not the id of a hosted zone", quote(text)),
        "write it like \"Z1234567890ABC\"; `aws route53 list-hosted-zones` shows it",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_split_as_a_shell_does() {
        for (text, words) in [
            ("api", &["api"] as &[&str]),
            ("  /usr/bin/api  --port\t3000 ", &["/usr/bin/api", "--port", "3000"]),
            ("say 'a b' \"c d\" e\\ f", &["say", "a b", "c d", "e f"]),
            ("say ''", &["say", ""]),
            ("say a'b'\"c\"d", &["say", "abcd"]),
            (r#"say "a\"b\\c\d""#, &["say", r#"a"b\c\d"#]),
            (r"say '\n'", &["say", r"\n"]),
            ("say '|' \\& $HOME", &["say", "|", "&", "$HOME"]),
        ] {
            let words = words.iter().map(|&word| word.to_owned()).collect();
            assert_eq!(command(text), Ok(Command(words)), "{text}");
        }
        for text in ["", " ", "a | b", "a && b", "a > b", "'a", "\"a", "\"a\\", "a\\", "''"] {
            assert!(command(text).is_err(), "{text}");
        }
    }

    #[test]
    fn status_codes_are_one_or_many() {
        let set = |ranges: &[(u16, u16)]| Ok(StatusSet(ranges.to_vec()));
        assert_eq!(status_set("204"), set(&[(204, 204)]));
        assert_eq!(status_set("200-299, 304"), set(&[(200, 299), (304, 304)]));
        for text in ["", "2xx", "99", "600", "300-200", "200-", "+200", "0200", "200,,201"] {
            assert!(status_set(text).is_err(), "{text}");
        }
    }

    #[test]
    fn copies_are_made_at_a_time_or_every_so_often() {
        for text in ["02:00 daily", "23:59 sunday", "every 4h", "every 1h30m"] {
            assert!(schedule(text).is_ok(), "{text}");
        }
        for text in
            ["2:00 daily", "24:00 daily", "02:60 daily", "02:00", "every", "every 0s", "daily"]
        {
            assert!(schedule(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_percentage_is_shown_as_the_share_that_was_meant() {
        assert_eq!(share(99.95), "0.9995");
        assert_eq!(share(100.0), "1");
        assert_eq!(share(99.99999), "0.9999999");
    }

    #[test]
    fn names_are_safe_in_paths_and_metrics() {
        for text in ["web", "Web-2_b", "1"] {
            assert!(part_name(text).is_ok(), "{text}");
        }
        for text in ["", "a b", "a.b", "a/b", "..", "é", &"n".repeat(64)] {
            assert!(part_name(text).is_err(), "{text}");
        }
    }
}
