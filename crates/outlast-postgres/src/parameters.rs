//! PostgreSQL's parameters: what we set, what the user may set, and what a standby must not start below.

use std::collections::BTreeMap;

/// Defaults that a user may override, with why they are not PostgreSQL's own.
pub(crate) const DEFAULTS: [(&str, &str); 14] = [
    // A dead upstream is noticed in seconds, not in a minute (traps 13, 37).
    ("wal_receiver_timeout", "5s"),
    ("wal_sender_timeout", "5s"),
    ("wal_receiver_status_interval", "1s"),
    // Ours does not wait five seconds between two tries (trap 52).
    ("wal_retrieve_retry_interval", "250ms"),
    // A dead standby's slot must not fill the disk (trap 36); without a slot, a short absence is no clone.
    ("max_slot_wal_keep_size", "8GB"),
    ("wal_keep_size", "128MB"),
    // One for each peer, and as many for copies and backups.
    ("max_replication_slots", "10"),
    // A client that is gone without a word does not keep its session.
    ("tcp_user_timeout", "10s"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "3"),
    ("tcp_keepalives_count", "3"),
    // The agent looks through one of these, also when clients have taken all others (trap 45).
    ("superuser_reserved_connections", "5"),
    ("log_line_prefix", "%m [%p] %q%u@%d "),
    ("log_lock_waits", "on"),
];

/// What stays as it is, because safety or the agent's own work rests on it.
const FIXED: [(&str, &str); 9] = [
    // A restart in place would show waiting commits as done, unseen by the agent (trap 25).
    ("restart_after_crash", "off"),
    ("hot_standby", "on"),
    ("wal_log_hints", "on"),
    ("fsync", "on"),
    ("full_page_writes", "on"),
    ("update_process_title", "on"),
    ("logging_collector", "off"),
    ("log_destination", "stderr"),
    ("recovery_target_timeline", "latest"),
];

/// Parameters whose value is the agent's to choose, and why.
const OURS: [(&str, &str); 22] = [
    ("synchronous_standby_names", "outlast decides which standbys are waited for"),
    ("primary_conninfo", "outlast decides who is followed"),
    ("primary_slot_name", "outlast keeps the slots"),
    ("listen_addresses", "it follows from the node's address"),
    ("port", "it follows from the node's address"),
    ("unix_socket_directories", "outlast reaches the server through its own socket"),
    ("unix_socket_permissions", "outlast reaches the server through its own socket"),
    ("cluster_name", "it is the database's name"),
    ("data_directory", "it is a key of its own"),
    ("hba_file", "outlast keeps a part of pg_hba.conf"),
    ("ident_file", "outlast keeps a part of pg_ident.conf"),
    ("default_transaction_read_only", "outlast uses it to quiet a primary"),
    ("ssl", "it follows from the node's certificates"),
    ("ssl_ca_file", "it follows from the node's certificates"),
    ("ssl_cert_file", "it follows from the node's certificates"),
    ("ssl_key_file", "it follows from the node's certificates"),
    ("external_pid_file", "outlast finds the process by itself"),
    ("recovery_end_command", "a promotion waits for nothing else"),
    ("promote_trigger_file", "outlast alone promotes"),
    ("zero_damaged_pages", "it destroys data"),
    ("ignore_checksum_failure", "it hides destroyed data"),
    ("ignore_invalid_pages", "it hides destroyed data"),
];

/// A parameter of the user's that is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub name: String,
    pub why: String,
}

/// Those of the user's parameters that are not taken, with why; for the file's reader.
pub fn refused(parameters: &BTreeMap<String, String>) -> Vec<Refused> {
    let refusal = |(name, value): (&String, &String)| {
        let why = why_refused(name, value)?;
        Some(Refused { name: name.clone(), why })
    };
    parameters.iter().filter_map(refusal).collect()
}

/// Whether a parameter is never the user's to set, by whatever way.
pub(crate) fn is_kept_from_users(name: &str) -> bool {
    let is = |(other, _): &(&str, &str)| name.eq_ignore_ascii_case(other);
    let target = name.to_ascii_lowercase().starts_with("recovery_target");
    target || OURS.iter().any(is) || FIXED.iter().any(is)
}

fn why_refused(name: &str, value: &str) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    let word = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'$')
            && !part.starts_with(|c: char| c.is_ascii_digit())
    };
    if !lower.split('.').all(word) {
        return Some("it is not the name of a parameter".to_owned());
    }
    if value.contains(['\n', '\r', '\0']) {
        return Some("its value has more than one line".to_owned());
    }
    if let Some((_, why)) = OURS.iter().find(|(ours, _)| *ours == lower) {
        return Some((*why).to_owned());
    }
    if let Some((_, fixed)) = FIXED.iter().find(|(fixed, _)| *fixed == lower) {
        let same = value.eq_ignore_ascii_case(fixed);
        return (!same).then(|| format!("it must stay `{fixed}`"));
    }
    let at_least = |least: u64| {
        let low = value.trim().parse::<u64>().is_ok_and(|value| value < least);
        low.then(|| format!("it must be {least} or more"))
    };
    match lower.as_str() {
        "wal_level" => {
            let enough = ["replica", "logical"].contains(&value.to_ascii_lowercase().as_str());
            (!enough).then(|| "it must be `replica` or `logical`".to_owned())
        }
        "max_wal_senders" | "max_replication_slots" => at_least(10),
        "superuser_reserved_connections" => at_least(3),
        "include" | "include_dir" | "include_if_exists" => {
            Some("it is not a parameter but another file".to_owned())
        }
        _ if lower.starts_with("recovery_target") => {
            Some("a standby follows to the end; restore to a point with a backup".to_owned())
        }
        _ => None,
    }
}

/// What a standby must not start below: the values that the control file remembers of its primary (trap 42).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demands {
    pub max_connections: u64,
    pub max_worker_processes: u64,
    pub max_wal_senders: u64,
    pub max_prepared_transactions: u64,
    pub max_locks_per_transaction: u64,
}

impl Demands {
    /// PostgreSQL's own defaults, with ours where they differ.
    pub const DEFAULT: Demands = Demands {
        max_connections: 100,
        max_worker_processes: 8,
        max_wal_senders: 10,
        max_prepared_transactions: 0,
        max_locks_per_transaction: 64,
    };

    /// What the user wishes.
    pub fn wished(parameters: &BTreeMap<String, String>) -> Demands {
        let wish = |name: &str, default: u64| {
            let mut own = parameters.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
            own.find_map(|(_, value)| value.trim().parse().ok()).unwrap_or(default)
        };
        let least = Demands::DEFAULT;
        Demands {
            max_connections: wish("max_connections", least.max_connections),
            max_worker_processes: wish("max_worker_processes", least.max_worker_processes),
            max_wal_senders: wish("max_wal_senders", least.max_wal_senders),
            max_prepared_transactions: wish(
                "max_prepared_transactions",
                least.max_prepared_transactions,
            ),
            max_locks_per_transaction: wish(
                "max_locks_per_transaction",
                least.max_locks_per_transaction,
            ),
        }
    }

    /// The values to use now. A primary takes what is wished; a standby takes that or what the control file demands,
    /// whichever is more, and so never refuses to start or stops replaying.
    pub fn to_use(wished: Demands, control: Option<Demands>, primary: bool) -> Demands {
        let Some(control) = control.filter(|_| !primary) else { return wished };
        Demands {
            max_connections: wished.max_connections.max(control.max_connections),
            max_worker_processes: wished.max_worker_processes.max(control.max_worker_processes),
            max_wal_senders: wished.max_wal_senders.max(control.max_wal_senders),
            max_prepared_transactions: wished
                .max_prepared_transactions
                .max(control.max_prepared_transactions),
            max_locks_per_transaction: wished
                .max_locks_per_transaction
                .max(control.max_locks_per_transaction),
        }
    }

    /// Names of those that are higher here than in `wished`.
    pub fn above(self, wished: Demands) -> Vec<&'static str> {
        let pairs = self.listed().into_iter().zip(wished.listed());
        pairs.filter(|((_, here), (_, wished))| here > wished).map(|((name, _), _)| name).collect()
    }

    /// Names and values, as the configuration has them.
    pub(crate) fn listed(self) -> [(&'static str, u64); 5] {
        [
            ("max_connections", self.max_connections),
            ("max_worker_processes", self.max_worker_processes),
            ("max_wal_senders", self.max_wal_senders),
            ("max_prepared_transactions", self.max_prepared_transactions),
            ("max_locks_per_transaction", self.max_locks_per_transaction),
        ]
    }
}

/// All parameters that do not depend on the node's role at the moment: defaults, over them the user's, over them what
/// is fixed.
pub(crate) fn lasting(
    user: &BTreeMap<String, String>,
    demands: Demands,
) -> BTreeMap<String, String> {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let mut all: BTreeMap<String, String> = DEFAULTS.iter().map(owned).collect();
    all.insert("wal_level".to_owned(), "replica".to_owned());
    let taken = user.iter().filter(|(name, value)| why_refused(name, value).is_none());
    all.extend(taken.map(|(name, value)| (name.to_ascii_lowercase(), value.clone())));
    all.extend(FIXED.iter().map(owned));
    all.extend(demands.listed().map(|(name, value)| (name.to_owned(), value.to_string())));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(list: &[(&str, &str)]) -> BTreeMap<String, String> {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_safety_needs_is_refused_and_the_rest_is_taken() {
        for (name, value) in [
            ("fsync", "off"),
            ("FULL_PAGE_WRITES", "off"),
            ("synchronous_standby_names", "*"),
            ("primary_conninfo", ""),
            ("recovery_target_lsn", "0/1"),
            ("recovery_target_timeline", "current"),
            ("wal_level", "minimal"),
            ("max_wal_senders", "1"),
            ("port", "1"),
            ("include", "x.conf"),
            ("a b", "1"),
            ("work_mem", "1MB\nfsync = off"),
        ] {
            assert_eq!(refused(&map(&[(name, value)])).len(), 1, "{name}");
        }
        let fine = [
            ("work_mem", "64MB"),
            ("fsync", "on"),
            ("wal_level", "logical"),
            ("max_connections", "300"),
            ("pg_stat_statements.max", "100"),
            ("archive_command", "cp %p /x/%f"),
        ];
        assert_eq!(refused(&map(&fine)), []);
    }

    #[test]
    fn the_user_overrides_defaults_and_nothing_else() {
        let user = map(&[("wal_sender_timeout", "9s"), ("fsync", "off"), ("Work_Mem", "8MB")]);
        let all = lasting(&user, Demands::DEFAULT);
        for (name, value) in [("wal_sender_timeout", "9s"), ("fsync", "on"), ("work_mem", "8MB")] {
            assert_eq!(all[name], value, "{name}");
        }
    }

    /// Trap 42.
    #[test]
    fn a_standby_never_uses_less_than_its_control_file_demands() {
        let wished = Demands::wished(&map(&[("max_connections", "50"), ("max_wal_senders", "20")]));
        let control = Demands { max_connections: 200, ..Demands::DEFAULT };
        let standby = Demands::to_use(wished, Some(control), false);
        assert_eq!((standby.max_connections, standby.max_wal_senders), (200, 20));
        assert_eq!(Demands::to_use(wished, Some(control), true), wished);
        assert_eq!(Demands::to_use(wished, None, false), wished);
    }
}
