//! Addresses, networks, hosts and URLs.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;

use outlast_core::topology::{Authority, Backend, HttpTarget, Network};

use super::{Fault, fault};
use crate::file::complaint::quote;

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
pub(super) fn split_authority(text: &str) -> Result<(&str, Option<NonZeroU16>), ()> {
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
            let text = quote(text);
            return fault(message(), format!("write \"http://{}\"", text.trim_matches('`')));
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
    if !text.contains("://") {
        let help = match text.starts_with('/') {
            true => "write it like \"https://api.example.com/health\"".to_owned(),
            false => format!("write \"http://{}\", or https://", quote(text).trim_matches('`')),
        };
        return fault(format!("{} is not a URL", quote(text)), help);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_is_a_scheme_a_host_and_a_port() {
        for (text, authority, tls, tcp) in [
            ("http://10.0.0.1:3000", "10.0.0.1:3000", false, false),
            ("http://10.0.0.1", "10.0.0.1:80", false, false),
            ("https://api.example.com", "api.example.com:443", true, false),
            ("tcp://[::1]:5432", "[::1]:5432", false, true),
            ("http://my_service:8080", "my_service:8080", false, false),
        ] {
            let (read, is_tcp) = backend(text).expect(text);
            assert_eq!((read.authority().as_str(), read.tls, is_tcp), (authority, tls, tcp));
            assert_eq!(read.url, text);
        }
        for text in [
            "",
            "10.0.0.1:80",
            "tcp://10.0.0.1",
            "ftp://x",
            "http://",
            "http://:80",
            "http://x:0",
            "http://x:",
            "http://x:65536",
            "http://x:+1",
            "http://a b",
            "http://-x",
            "http://[::1",
            "http://[x]:1",
            "http://::1:80",
            "http://10.0.0.1:80/",
            "http://1.2.3",
            "HTTP://x",
        ] {
            assert!(backend(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_probe_asks_a_path_or_a_whole_url() {
        assert_eq!(http_target("/a?b=c"), Ok(HttpTarget::Path("/a?b=c".to_owned())));
        let authority = |host: &str, port| Authority { host: host.to_owned(), port };
        let url =
            |tls, authority, path: &str| HttpTarget::Url { tls, authority, path: path.to_owned() };
        for (text, target) in [
            ("http://x", url(false, authority("x", HTTP_PORT), "/")),
            ("https://x?a", url(true, authority("x", HTTPS_PORT), "/?a")),
            ("https://[::1]/a/b", url(true, authority("::1", HTTPS_PORT), "/a/b")),
        ] {
            assert_eq!(http_target(text), Ok(target), "{text}");
        }
        for text in ["health", "x:80/", "/a b", "/é", "/#a", "http:///a", "ftp://x/"] {
            assert!(http_target(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_network_has_no_bits_beyond_its_prefix() {
        for text in
            ["10.0.0.0/8", "10.0.0.1", "10.0.0.1/32", "0.0.0.0/0", "::/0", "fd00::/8", "::1"]
        {
            assert!(network(text).is_ok(), "{text}");
        }
        for text in
            ["10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "fd00::1/8", "::/129", "x/8"]
        {
            assert!(network(text).is_err(), "{text}");
        }
        assert!(prefixed("10.0.0.100/24").is_ok());
    }
}
