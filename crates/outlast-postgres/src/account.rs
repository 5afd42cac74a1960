//! Who PostgreSQL runs as. It refuses root.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::error::{Doing, Error};

/// An account of this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: String,
}

impl Account {
    /// Looks in `/etc/passwd`, then asks `getent`, which also knows accounts from elsewhere (LDAP, say).
    pub(crate) fn find(name: Option<&str>) -> Result<Account, Error> {
        let own = rustix::process::geteuid().as_raw();
        let local = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let key = name.map_or_else(|| own.to_string(), str::to_owned);
        let elsewhere = || {
            let output = Command::new("getent").args(["passwd", "--", &key]).output().ok()?;
            String::from_utf8(output.stdout).ok()
        };
        let account = Account::parse(&local, &key)
            .or_else(|| Account::parse(&elsewhere()?, &key))
            .ok_or_else(|| Error::new(format!("there is no user `{key}` on this machine")))?;
        match (account.uid, own) {
            (0, _) => Err(Error::new("PostgreSQL does not run as root: name another os_user")),
            (uid, own) if own != 0 && uid != own => {
                Err(Error::new(format!("only root can run PostgreSQL as `{}`", account.name)))
            }
            _ => Ok(account),
        }
    }

    /// Finds a line of passwd(5) by name or number.
    fn parse(passwd: &str, key: &str) -> Option<Account> {
        passwd.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, uid, gid, _, home, _] = fields.as_slice() else { return None };
            (*name == key || *uid == key).then_some(())?;
            let (name, home) = ((*name).to_owned(), (*home).to_owned());
            Some(Account { name, uid: uid.parse().ok()?, gid: gid.parse().ok()?, home })
        })
    }

    /// Has the command run as this account. Supplementary groups are dropped.
    pub(crate) fn take(&self, command: &mut Command) {
        if rustix::process::geteuid().is_root() {
            command.uid(self.uid).gid(self.gid);
        }
        command.env("USER", &self.name).env("LOGNAME", &self.name).env("HOME", &self.home);
    }

    /// Gives a file or directory to this account.
    pub(crate) fn own(&self, path: &Path) -> Result<(), Error> {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        chown(path, Some(self.uid), Some(self.gid)).doing(format!("give away {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_found_by_its_whole_name_or_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbad\npg:x:998:997:,,,:/srv/pg:/bin/false\n";
        let pg = Account { name: "pg".to_owned(), uid: 998, gid: 997, home: "/srv/pg".to_owned() };
        assert_eq!(Account::parse(passwd, "pg"), Some(pg.clone()));
        assert_eq!(Account::parse(passwd, "998"), Some(pg));
        assert_eq!(Account::parse(passwd, "p"), None);
        assert!(Account::find(Some("root")).is_err());
    }
}
