//! Gives up what this process may do beyond an ordinary one.
//!
//! Capabilities belong to threads: who gives them up does so before there is a second one. Threads and programs that are
//! started later have no more than is left.

use std::io;

use rustix::thread::{
    CapabilitySets, capabilities, capability_is_in_ambient_set, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};

pub use rustix::thread::CapabilitySet;

/// Bits of a set: Linux has 41 capabilities, and room for no more than these.
const NUMBERS: u32 = u64::BITS;

/// What programs may do that this process starts from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Programs {
    /// What they could do if nothing had been given up: they are not ours, and nobody knows what they need.
    AsBefore,
    /// The same, but for what a user who is not root has been given to pass on.
    WithoutInheritance,
    /// This at most, if they are root's; what this process keeps, and was given to pass on, if not.
    AtMost(CapabilitySet),
    /// None is started. Nothing that is tried nevertheless gets any rights, whatever is set on the file.
    Never,
}

/// What there was, and what is left of it.
#[derive(Debug)]
pub struct Kept {
    pub had: CapabilitySet,
    pub has: CapabilitySet,
    /// Programs that are root's get less than before.
    pub limits_programs: bool,
    /// What the kernel did not let go of; the rest is given up all the same.
    pub trouble: Option<io::Error>,
}

/// Keeps this much of what the calling thread may do. What it does not have it does not get.
pub fn keep_only(keep: CapabilitySet, programs: Programs) -> io::Result<Kept> {
    let before = capabilities(None)?;
    let (limits_programs, limited) = match programs {
        Programs::AsBefore | Programs::WithoutInheritance => (false, Ok(())),
        Programs::AtMost(most) => limit(most, before.effective),
        Programs::Never => {
            let (limits, limited) = limit(CapabilitySet::empty(), before.effective);
            (limits, limited.and(set_no_new_privs(true).map_err(io::Error::from)))
        }
    };
    let inherits = match programs {
        Programs::AsBefore => ambient(),
        Programs::AtMost(_) => ambient() & keep,
        Programs::WithoutInheritance | Programs::Never => CapabilitySet::empty(),
    };
    let cleared = if inherits.is_empty() {
        clear_ambient_capability_set().map_err(io::Error::from)
    } else {
        Ok(())
    };
    // What may be passed on has to be had as well.
    let has = before.permitted & (keep | inherits);
    let inheritable = match programs {
        Programs::AsBefore => before.inheritable & (has | inherits),
        Programs::AtMost(_) | Programs::WithoutInheritance | Programs::Never => inherits,
    };
    // The kernel takes out of the ambient set whatever is missing in one of these.
    let lowered =
        set_capabilities(None, CapabilitySets { effective: has, permitted: has, inheritable });
    let lowered = lowered.map_err(io::Error::from);
    let has = if lowered.is_ok() { has } else { before.permitted };
    let trouble = limited.and(cleared).and(lowered).err();
    Ok(Kept { had: before.permitted, has, limits_programs, trouble })
}

/// Takes all but this out of what root's programs get; whether that was anything. Who may not do that is left as it is: who is
/// not root starts no programs that are root's, but for those that the administrator has marked as such.
fn limit(most: CapabilitySet, effective: CapabilitySet) -> (bool, io::Result<()>) {
    if !effective.contains(CapabilitySet::SETPCAP) {
        return (false, Ok(()));
    }
    let mut limits = false;
    for one in each().filter(|one| !most.contains(*one)) {
        match capability_is_in_bounding_set(one) {
            Ok(true) => {}
            // Beyond the last one that this kernel knows.
            Ok(false) | Err(_) => continue,
        }
        if let Err(error) = remove_capability_from_bounding_set(one) {
            return (limits, Err(error.into()));
        }
        limits = true;
    }
    (limits, Ok(()))
}

/// What programs get of a user who is not root.
fn ambient() -> CapabilitySet {
    each().filter(|one| capability_is_in_ambient_set(*one).unwrap_or(false)).collect()
}

fn each() -> impl Iterator<Item = CapabilitySet> {
    (0..NUMBERS).map(|number| CapabilitySet::from_bits_retain(1 << number))
}

/// As people and service managers write them: `CAP_NET_ADMIN CAP_NET_RAW`.
pub fn names(set: CapabilitySet) -> String {
    let names: Vec<String> = set.iter_names().map(|(name, _)| format!("CAP_{name}")).collect();
    names.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// The sets of a program that is started, as the kernel writes them.
    #[derive(Debug, PartialEq, Eq)]
    struct Sets {
        permitted: u64,
        bounding: u64,
        ambient: u64,
        no_new: bool,
    }

    fn of_status(status: &str) -> Sets {
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        let bits = |name: &str| u64::from_str_radix(field(name).trim(), 16).unwrap();
        Sets {
            permitted: bits("CapPrm:"),
            bounding: bits("CapBnd:"),
            ambient: bits("CapAmb:"),
            no_new: field("NoNewPrivs:").trim() == "1",
        }
    }

    fn own() -> Sets {
        of_status(&std::fs::read_to_string("/proc/thread-self/status").unwrap())
    }

    fn of_program() -> Sets {
        let output = Command::new("cat").arg("/proc/self/status").output().unwrap();
        of_status(&String::from_utf8(output.stdout).unwrap())
    }

    /// On a thread of its own: the others keep what they have.
    fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        std::thread::spawn(work).join().unwrap()
    }

    fn is_root() -> bool {
        let all = capabilities(None).unwrap().effective;
        let is = rustix::process::geteuid().is_root() && all.contains(CapabilitySet::SETPCAP);
        if !is {
            println!("not tested: needs root with CAP_SETPCAP");
        }
        is
    }

    const KEEP: CapabilitySet = CapabilitySet::KILL.union(CapabilitySet::NET_RAW);

    #[test]
    fn what_is_not_kept_is_gone_and_what_was_not_there_does_not_come() {
        let (before, kept, after) = apart(|| {
            let before = own();
            let kept = keep_only(KEEP, Programs::AsBefore).unwrap();
            (before, kept, own())
        });
        assert!(kept.trouble.is_none(), "{kept:?}");
        assert_eq!(after.permitted, before.permitted & KEEP.bits());
        assert_eq!(kept.has.bits(), after.permitted);
        assert_eq!((after.bounding, after.no_new), (before.bounding, before.no_new));
        // Other threads are as they were.
        assert_eq!(own(), before);
    }

    #[test]
    fn programs_of_root_get_as_much_as_is_said() {
        if !is_root() {
            return;
        }
        let before = own();
        let most = KEEP | CapabilitySet::CHOWN;
        for (programs, gets, limits) in [
            (Programs::AsBefore, before.bounding, false),
            (Programs::WithoutInheritance, before.bounding, false),
            (Programs::AtMost(most), before.bounding & most.bits(), true),
            (Programs::Never, 0, true),
        ] {
            let (kept, program, after) = apart(move || {
                let kept = keep_only(KEEP, programs).unwrap();
                (kept, of_program(), own())
            });
            assert!(kept.trouble.is_none(), "{programs:?}: {kept:?}");
            assert_eq!(program.permitted, gets, "{programs:?}");
            assert_eq!(kept.limits_programs, limits, "{programs:?}");
            assert_eq!(after.permitted, before.permitted & KEEP.bits(), "{programs:?}");
            assert_eq!(after.no_new, programs == Programs::Never || before.no_new);
        }
    }

    /// A user who is not root and was given something to pass on, as a service manager does it.
    #[test]
    fn what_a_user_was_given_to_pass_on_is_passed_on_as_said() {
        if !is_root() {
            return;
        }
        let given = CapabilitySet::NET_RAW | CapabilitySet::SYS_NICE;
        for (programs, passed) in [
            (Programs::AsBefore, given),
            (Programs::AtMost(KEEP), CapabilitySet::NET_RAW),
            (Programs::WithoutInheritance, CapabilitySet::empty()),
            (Programs::Never, CapabilitySet::empty()),
        ] {
            let (kept, program) = apart(move || {
                // In place of another user: root's own programs get nothing but what they inherit.
                rustix::thread::set_capabilities_secure_bits(
                    rustix::thread::CapabilitiesSecureBits::NO_ROOT,
                )
                .unwrap();
                let permitted = capabilities(None).unwrap().permitted;
                let sets = CapabilitySets { effective: permitted, permitted, inheritable: given };
                set_capabilities(None, sets).unwrap();
                for one in each().filter(|one| given.contains(*one)) {
                    rustix::thread::configure_capability_in_ambient_set(one, true).unwrap();
                }
                (keep_only(KEEP, programs).unwrap(), of_program())
            });
            assert!(kept.trouble.is_none(), "{programs:?}: {kept:?}");
            assert_eq!(program.permitted, passed.bits(), "{programs:?}");
            assert_eq!(program.ambient, passed.bits(), "{programs:?}");
            assert_eq!(kept.has, KEEP | passed, "{programs:?}");
        }
    }

    #[test]
    fn they_are_named_as_service_managers_name_them() {
        assert_eq!(
            names(CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW),
            "CAP_NET_ADMIN CAP_NET_RAW"
        );
        assert_eq!(names(CapabilitySet::empty()), "");
    }
}
