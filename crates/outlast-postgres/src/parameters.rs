//! PostgreSQL's parameters: what we set, what the user may set, and what a standby must not start below.

use std::collections::BTreeMap;

/// When a commit is acknowledged.
const SYNCHRONOUS_COMMIT: &str = "synchronous_commit";

/// Defaults that a user may override, with why they are not PostgreSQL's own.
pub(crate) const DEFAULTS: [(&str, &str); 15] = [
    // Anything less acknowledges a write that only this node has; lines of the user's files must not say it unseen.
    (SYNCHRONOUS_COMMIT, "on"),
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

/// Parameters that the user sets within bounds: among those of the file, where the bounds are kept, and by no other way.
const BOUNDED: [&str; 5] = [
    SYNCHRONOUS_COMMIT,
    "wal_level",
    "max_wal_senders",
    "max_replication_slots",
    "superuser_reserved_connections",
];

/// Processes that PostgreSQL can have (`MAX_BACKENDS`).
const BACKENDS_MAX: u64 = (1 << 18) - 1;

/// Numbers that outlast itself goes by, with what may be written: PostgreSQL's own range, from where outlast needs more.
const NUMBERS: [(&str, u64, u64); 7] = [
    ("max_connections", 1, BACKENDS_MAX),
    ("max_worker_processes", 0, BACKENDS_MAX),
    ("max_wal_senders", 10, BACKENDS_MAX),
    ("max_prepared_transactions", 0, BACKENDS_MAX),
    ("max_locks_per_transaction", 10, i32::MAX as u64),
    ("max_replication_slots", 10, BACKENDS_MAX),
    ("superuser_reserved_connections", 3, BACKENDS_MAX),
];

/// A parameter of the user's that is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub name: String,
    pub why: String,
    /// Another value would be taken.
    pub is_settable: bool,
}

/// Those of the user's parameters that are not taken, with why; for the file's reader. `waits`: commits wait for others.
pub fn refused(parameters: &BTreeMap<String, String>, waits: bool) -> Vec<Refused> {
    let refusal = |(name, value): (&String, &String)| {
        let why = why_refused(name, value, waits)?;
        let is_settable = !is_decided_by_us(name);
        Some(Refused { name: name.clone(), why, is_settable })
    };
    let mut all: Vec<Refused> = parameters.iter().filter_map(refusal).collect();
    if all.is_empty() {
        all.extend(no_place_for_clients(parameters));
    }
    all
}

/// PostgreSQL does not start where every connection is kept for its administrators.
fn no_place_for_clients(parameters: &BTreeMap<String, String>) -> Option<Refused> {
    let max_connections = Demands::wished(parameters).max_connections;
    let default = |name| DEFAULTS.iter().find(|(other, _)| *other == name)?.1.parse().ok();
    let number = |name| wished(parameters, name).or_else(|| default(name)).unwrap_or(0);
    let reserved =
        number("superuser_reserved_connections").saturating_add(number("reserved_connections"));
    (max_connections <= reserved).then(|| {
        let names = ["max_connections", "superuser_reserved_connections", "reserved_connections"];
        let is_one = |key: &&String| names.iter().any(|name| key.eq_ignore_ascii_case(name));
        let name = parameters.keys().find(is_one).cloned().unwrap_or_default();
        let why = format!(
            "`max_connections` is {max_connections} and must be more than the {reserved} that are reserved"
        );
        Refused { name, why, is_settable: true }
    })
}

/// Whether a parameter has one value whatever the user says.
fn is_decided_by_us(name: &str) -> bool {
    let is = |(other, _): &(&str, &str)| name.eq_ignore_ascii_case(other);
    let target = name.to_ascii_lowercase().starts_with("recovery_target");
    target || OURS.iter().any(is) || FIXED.iter().any(is)
}

/// Whether what a user has set past the file does not count: nobody has held it against what outlast needs.
pub(crate) fn is_kept_from_users(name: &str) -> bool {
    is_decided_by_us(name) || BOUNDED.iter().any(|bounded| name.eq_ignore_ascii_case(bounded))
}

fn why_refused(name: &str, value: &str, waits: bool) -> Option<String> {
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
    if let Some((_, least, most)) = NUMBERS.iter().find(|(number, ..)| *number == lower) {
        let fits = value.trim().parse::<u64>().is_ok_and(|n| (*least..=*most).contains(&n));
        return (!fits).then(|| format!("it must be a whole number of {least} to {most}"));
    }
    match lower.as_str() {
        SYNCHRONOUS_COMMIT if waits => {
            let waits = ["on", "remote_apply"].contains(&value.to_ascii_lowercase().as_str());
            (!waits).then(|| {
                "it must be `on` or `remote_apply`: with less, a write is acknowledged before other nodes have it; durability = \"async\" allows that".to_owned()
            })
        }
        "wal_level" => {
            let enough = ["replica", "logical"].contains(&value.to_ascii_lowercase().as_str());
            (!enough).then(|| "it must be `replica` or `logical`".to_owned())
        }
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
        let wish = |name: &str, default: u64| wished(parameters, name).unwrap_or(default);
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

/// A number of the user's.
fn wished(parameters: &BTreeMap<String, String>, name: &str) -> Option<u64> {
    let mut own = parameters.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
    own.find_map(|(_, value)| value.trim().parse().ok())
}

/// All parameters that do not depend on the node's role at the moment: defaults, over them the user's, over them what
/// is fixed. `waits`: commits wait for others, and nothing of the user's lets them go before.
pub(crate) fn lasting(
    user: &BTreeMap<String, String>,
    demands: Demands,
    waits: bool,
) -> BTreeMap<String, String> {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let mut all: BTreeMap<String, String> = DEFAULTS.iter().map(owned).collect();
    all.insert("wal_level".to_owned(), "replica".to_owned());
    let taken = user.iter().filter(|(name, value)| why_refused(name, value, waits).is_none());
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
            ("max_connections", "many"),
            ("Max_Connections", "300.5"),
            ("max_worker_processes", "-1"),
            ("max_locks_per_transaction", "3000000000"),
            ("max_connections", "5"),
            ("superuser_reserved_connections", "100"),
            ("reserved_connections", "95"),
            ("port", "1"),
            ("include", "x.conf"),
            ("a b", "1"),
            ("work_mem", "1MB\nfsync = off"),
        ] {
            assert_eq!(refused(&map(&[(name, value)]), true).len(), 1, "{name} = {value}");
        }
        let fine = [
            ("work_mem", "64MB"),
            ("fsync", "on"),
            ("wal_level", "logical"),
            ("max_connections", "300"),
            ("max_prepared_transactions", "0"),
            ("pg_stat_statements.max", "100"),
            ("archive_command", "cp %p /x/%f"),
        ];
        assert_eq!(refused(&map(&fine), true), []);
    }

    #[test]
    fn the_user_overrides_defaults_and_nothing_else() {
        let user = map(&[("wal_sender_timeout", "9s"), ("fsync", "off"), ("Work_Mem", "8MB")]);
        let all = lasting(&user, Demands::DEFAULT, true);
        for (name, value) in [("wal_sender_timeout", "9s"), ("fsync", "on"), ("work_mem", "8MB")] {
            assert_eq!(all[name], value, "{name}");
        }
    }

    #[test]
    fn no_commit_that_is_waited_for_is_acknowledged_before_others_have_it() {
        for (value, waiting, alone) in [
            ("on", true, true),
            ("Remote_Apply", true, true),
            ("remote_write", false, true),
            ("local", false, true),
            ("off", false, true),
        ] {
            let user = map(&[("Synchronous_Commit", value)]);
            for (waits, taken) in [(true, waiting), (false, alone)] {
                assert_eq!(refused(&user, waits).is_empty(), taken, "{value} {waits}");
                let all = lasting(&user, Demands::DEFAULT, waits);
                let expected = if taken { value } else { "on" };
                assert_eq!(all["synchronous_commit"], expected, "{value} {waits}");
            }
        }
        let none = lasting(&map(&[]), Demands::DEFAULT, false);
        assert_eq!(none["synchronous_commit"], "on");
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
