//! Who a program runs as.

use std::fs;
use std::process::Command;

/// An account of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) home: String,
}

impl User {
    /// Looks in `/etc/passwd`, then asks `getent`, which also knows accounts from elsewhere (LDAP, say).
    pub(super) fn find(name: &str) -> Result<User, String> {
        let local = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let elsewhere = || {
            let output = Command::new("getent").args(["passwd", "--", name]).output().ok()?;
            String::from_utf8(output.stdout).ok()
        };
        User::parse(&local, name)
            .or_else(|| User::parse(&elsewhere()?, name))
            .ok_or_else(|| format!("there is no user `{name}` on this machine"))
    }

    fn parse(passwd: &str, name: &str) -> Option<User> {
        passwd.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [login, _, uid, gid, _, home, _] = fields.as_slice() else { return None };
            (*login == name).then_some(())?;
            let (name, home) = (name.to_owned(), (*home).to_owned());
            Some(User { name, uid: uid.parse().ok()?, gid: gid.parse().ok()?, home })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_found_by_its_whole_name() {
        let passwd =
            "root:x:0:0:root:/root:/bin/bash\nbad line\napi:x:998:997:,,,:/srv/api:/bin/false\n";
        let api = User { name: "api".to_owned(), uid: 998, gid: 997, home: "/srv/api".to_owned() };
        assert_eq!(User::parse(passwd, "api"), Some(api));
        assert_eq!(User::parse(passwd, "ap"), None);
        assert_eq!(User::find("root").unwrap().uid, 0);
        assert_eq!(
            User::find("no-such-user").unwrap_err(),
            "there is no user `no-such-user` on this machine"
        );
    }
}
