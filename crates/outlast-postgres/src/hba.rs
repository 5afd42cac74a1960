//! Lines of `pg_hba.conf`: what PostgreSQL would refuse in one, without asking it.
//!
//! One bad line is enough, and PostgreSQL keeps the old ones for as long as it runs, and does not start again.

use std::net::IpAddr;

/// What a line begins with.
const KINDS: [&str; 6] = ["local", "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc"];

/// Ways to show who one is, of all versions. Which of them a program was built with, it alone knows.
const METHODS: [&str; 14] = [
    "trust",
    "reject",
    "scram-sha-256",
    "md5",
    "password",
    "gss",
    "sspi",
    "ident",
    "peer",
    "pam",
    "ldap",
    "radius",
    "cert",
    "bsd",
];
/// Since PostgreSQL 18.
const OAUTH: &str = "oauth";

/// What is wrong with a line, if anything is seen to be.
pub fn fault(line: &str) -> Option<String> {
    check(line).err()
}

fn check(line: &str) -> Result<(), String> {
    if line.contains(['\n', '\r']) {
        return Err("it has more than one line".to_owned());
    }
    let fields = fields(line)?;
    let (Some(kind), fields) = (fields.first(), &fields) else {
        // A comment.
        return Ok(());
    };
    let kind = match kind.as_slice() {
        [kind] if KINDS.contains(&kind.as_str()) => kind.as_str(),
        _ => return Err(format!("it begins with none of {}", KINDS.join(", "))),
    };
    let local = kind == "local";
    let mut method_at = 4;
    if local {
        method_at = 3;
    } else if let Some(address) = fields.get(3) {
        let [address] = address.as_slice() else {
            return Err("it has more than one address".to_owned());
        };
        let mask = fields.get(4).and_then(|mask| mask.first());
        if needs_mask(address)? {
            if mask.is_none_or(|mask| mask.parse::<IpAddr>().is_err()) {
                return Err(format!(
                    "the address {address} has no mask behind it, like {address}/32"
                ));
            }
            method_at = 5;
        }
    }
    let Some(method) = fields.get(method_at) else {
        let wanted = if local {
            "a database, a user and a method"
        } else {
            "a database, a user, an address and a method"
        };
        return Err(format!("behind `{kind}` there must be {wanted}"));
    };
    let [method] = method.as_slice() else {
        return Err("it has more than one method".to_owned());
    };
    if !METHODS.contains(&method.as_str()) && method != OAUTH {
        return Err(format!("there is no method `{method}`; one is scram-sha-256"));
    }
    let misplaced = match method.as_str() {
        "peer" => !local,
        "gss" | "sspi" => local,
        "cert" => kind != "hostssl",
        _ => false,
    };
    if misplaced {
        return Err(format!("the method `{method}` does not go with `{kind}`"));
    }
    let mut options = fields[method_at + 1..].iter().flatten();
    match options.find(|option| !option.contains('=')) {
        Some(option) => Err(format!("`{option}` behind the method is no NAME=VALUE")),
        None => Ok(()),
    }
}

/// Whether an address is one half of what it must be.
fn needs_mask(address: &str) -> Result<bool, String> {
    match address.split_once('/') {
        Some((ip, bits)) => {
            let bits_max = match ip.parse::<IpAddr>() {
                Ok(IpAddr::V4(_)) => 32,
                Ok(IpAddr::V6(_)) => 128,
                // With a zone.
                Err(_) if ip.contains(':') && ip.contains('%') => 128,
                Err(_) => return Err(format!("`{address}` is no network")),
            };
            let fits = bits.parse::<u32>().is_ok_and(|bits| bits <= bits_max);
            if fits { Ok(false) } else { Err(format!("`{address}` is no network")) }
        }
        None => Ok(address.parse::<IpAddr>().is_ok()),
    }
}

/// The fields of a line, each with the values that commas join in it, as PostgreSQL splits it: a comment ends it, quotes keep
/// together what is between them.
fn fields(line: &str) -> Result<Vec<Vec<String>>, String> {
    let mut all: Vec<Vec<String>> = Vec::new();
    let mut letters = line.chars().peekable();
    // A value that ends with a comma has its next in the same field.
    let mut goes_on = false;
    loop {
        while letters.next_if(|c| c.is_ascii_whitespace() || *c == ',').is_some() {}
        let mut value = String::new();
        let (mut quoted, mut any, mut comma) = (false, false, false);
        while let Some(letter) = letters.next() {
            match letter {
                '#' if !quoted => while letters.next().is_some() {},
                ',' if !quoted => {
                    comma = true;
                    break;
                }
                c if c.is_ascii_whitespace() && !quoted => break,
                '"' => (quoted, any) = (!quoted, true),
                c => {
                    value.push(c);
                    any = true;
                }
            }
        }
        if quoted {
            return Err("a quote is not closed".to_owned());
        }
        if !any {
            return Ok(all);
        }
        match all.last_mut() {
            Some(field) if goes_on => field.push(value),
            _ => all.push(vec![value]),
        }
        goes_on = comma;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_postgresql_would_refuse_is_seen() {
        for line in [
            "host all all all scram-sha-256",
            "local all all peer",
            "local all all peer map=outlast",
            "hostssl \"a b\",other +team, @file 10.0.0.0/8 cert clientcert=verify-full",
            "host all all 10.0.0.1 255.255.255.255 md5",
            "host all all ::1/128 trust # ours",
            "hostnossl replication all .example.com reject",
            "hostnogssenc all all samenet scram-sha-256",
            "# nobody else",
        ] {
            assert_eq!(fault(line), None, "{line}");
        }
        for (line, word) in [
            ("hots all all all trust", "begins with none"),
            ("HOST all all all trust", "begins with none"),
            ("host,local all all all trust", "begins with none"),
            ("include other.conf", "begins with none"),
            ("host all all trust", "there must be"),
            ("host", "there must be"),
            ("local all all", "there must be"),
            ("host all all all scram-sha256", "no method"),
            ("local all all all trust", "no method"),
            ("host all all all trust,reject", "more than one method"),
            ("host all all 10.0.0.1 trust", "no mask"),
            ("host all all 10.0.0.0/33 trust", "no network"),
            ("host all all example.com/24 trust", "no network"),
            ("host all all a,b trust", "more than one address"),
            ("host all all all peer", "does not go with"),
            ("host all all all cert", "does not go with"),
            ("host all all all md5 please", "NAME=VALUE"),
            ("host all \"all all trust", "not closed"),
            ("host all all all trust\nlocal all all trust", "more than one line"),
        ] {
            assert!(
                fault(line).is_some_and(|fault| fault.contains(word)),
                "{line}: {:?}",
                fault(line)
            );
        }
    }
}
