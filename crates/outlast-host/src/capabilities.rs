//! Gives up what this process may do beyond an ordinary one.
//!
//! Capabilities belong to threads: who gives them up does so before there is a second one. Threads and programs that are
//! started later have no more than is left.

use std::io;

use rustix::thread::{
    CapabilitySets, capabilities, capability_is_in_bounding_set, no_new_privs,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

pub use rustix::thread::CapabilitySet;

/// Bits of a set: Linux has 41 capabilities, and room for no more than these.
const NUMBERS: u32 = u64::BITS;

/// What programs may do that this process starts from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Programs {
    /// Root's: as much as before. A user's who is not root: what that user was given to pass on, and is kept.
    Inheriting,
    /// The same, but nothing is passed on.
    WithoutInheritance,
    /// None is started. Nothing that is tried nevertheless gets any rights, whatever is set on the file.
    Never,
}

/// What there was, and what is left of it.
#[derive(Debug)]
pub struct Kept {
    pub had: CapabilitySet,
    pub has: CapabilitySet,
    /// What the kernel did not let go of; the rest is given up all the same.
    pub trouble: Option<io::Error>,
}

/// Keeps this much of what the calling thread may do. What it does not have it does not get.
pub fn keep_only(keep: CapabilitySet, programs: Programs) -> io::Result<Kept> {
    let before = capabilities(None)?;
    let (passes_on, limited) = match programs {
        Programs::Inheriting => (keep, Ok(())),
        Programs::WithoutInheritance => (CapabilitySet::empty(), Ok(())),
        Programs::Never => {
            let limited = empty_bounding_set(before.effective);
            let sealed = set_no_new_privs(true).map_err(io::Error::from);
            (CapabilitySet::empty(), limited.and(sealed))
        }
    };
    let has = before.permitted & keep;
    let inheritable = before.inheritable & passes_on;
    // The kernel takes out of the ambient set whatever is missing in one of these.
    let lowered =
        set_capabilities(None, CapabilitySets { effective: has, permitted: has, inheritable });
    let lowered = lowered.map_err(io::Error::from);
    let has = if lowered.is_ok() { has } else { before.permitted };
    let trouble = limited.and(lowered).err();
    Ok(Kept { had: before.permitted, has, trouble })
}

/// Leaves nothing that programs of root could get, for good. Who may not do that is left as it is: who is not root starts no
/// programs that are root's, but for those that the administrator has marked as such.
fn empty_bounding_set(effective: CapabilitySet) -> io::Result<()> {
    if !effective.contains(CapabilitySet::SETPCAP) {
        return Ok(());
    }
    for one in each() {
        // Of one that it does not know the kernel says that it is invalid.
        if capability_is_in_bounding_set(one).unwrap_or(false) {
            remove_capability_from_bounding_set(one)?;
        }
    }
    Ok(())
}

/// Whether this process has again what it gave up once it becomes another image.
pub fn come_back_with_another_image() -> bool {
    rustix::process::geteuid().is_root() && no_new_privs().is_ok_and(|sealed| !sealed)
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

    #[track_caller]
    fn must_be_root() {
        let all = capabilities(None).unwrap().effective;
        let is = rustix::process::geteuid().is_root() && all.contains(CapabilitySet::SETPCAP);
        assert!(is, "run this test as root with CAP_SETPCAP: it gives up what others do not have");
    }

    const KEEP: CapabilitySet = CapabilitySet::KILL.union(CapabilitySet::NET_RAW);

    #[test]
    fn what_is_not_kept_is_gone_and_what_was_not_there_does_not_come() {
        let (before, kept, after) = apart(|| {
            let before = own();
            let kept = keep_only(KEEP, Programs::Inheriting).unwrap();
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
    fn who_keeps_all_is_as_before() {
        let (before, after) = apart(|| {
            let before = own();
            let kept = keep_only(CapabilitySet::all(), Programs::Inheriting).unwrap();
            assert!(kept.trouble.is_none() && kept.had == kept.has, "{kept:?}");
            (before, own())
        });
        assert_eq!(after, before);
    }

    #[test]
    fn programs_of_root_get_as_much_as_is_said() {
        must_be_root();
        let before = own();
        for (programs, gets) in [
            (Programs::Inheriting, before.bounding),
            (Programs::WithoutInheritance, before.bounding),
            (Programs::Never, 0),
        ] {
            let (kept, program, after, comes_back) = apart(move || {
                let kept = keep_only(KEEP, programs).unwrap();
                (kept, of_program(), own(), come_back_with_another_image())
            });
            assert!(kept.trouble.is_none(), "{programs:?}: {kept:?}");
            assert_eq!(program.permitted, gets, "{programs:?}");
            assert_eq!((program.bounding, after.bounding), (gets, gets), "{programs:?}");
            assert_eq!(after.permitted, before.permitted & KEEP.bits(), "{programs:?}");
            assert_eq!(after.no_new, programs == Programs::Never || before.no_new);
            assert_eq!(comes_back, !after.no_new, "{programs:?}");
        }
    }

    /// A user who is not root and was given something to pass on, as a service manager does it.
    #[test]
    fn what_a_user_was_given_to_pass_on_is_passed_on_as_said() {
        must_be_root();
        let given = CapabilitySet::NET_RAW | CapabilitySet::SYS_NICE;
        for (programs, keep, passed) in [
            (Programs::Inheriting, CapabilitySet::all(), given),
            (Programs::Inheriting, KEEP, CapabilitySet::NET_RAW),
            (Programs::WithoutInheritance, KEEP, CapabilitySet::empty()),
            (Programs::Never, KEEP, CapabilitySet::empty()),
        ] {
            let (had, kept, program) = apart(move || {
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
                (permitted, keep_only(keep, programs).unwrap(), of_program())
            });
            assert!(kept.trouble.is_none(), "{programs:?}: {kept:?}");
            assert_eq!(program.permitted, passed.bits(), "{programs:?}");
            assert_eq!(program.ambient, passed.bits(), "{programs:?}");
            assert_eq!(kept.has, had & keep, "{programs:?}");
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
