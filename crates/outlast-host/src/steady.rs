//! Keeps one thread able to run when the machine is short of memory or of time.
//!
//! Only little is locked, page by page as it is used: a lock on everything (mlockall) would also cover what is allocated
//! later, and the allocator could never give memory back.

#![expect(unsafe_code, reason = "locking pages and real-time scheduling are raw calls")]

use std::io;
use std::ops::Range;

use rustix::mm::{MlockFlags, mlock_with};

/// Locks the stack of the calling thread, the first heap, and the program itself: what has been used of them is not taken
/// out of memory any more. The smallest comes first; the error is that of the first piece that could not be locked.
pub fn stay_in_memory() -> io::Result<()> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let mut first = Ok(());
    for piece in pieces(&maps, std::ptr::from_ref(&maps).addr()) {
        let length = piece.len();
        let start = std::ptr::with_exposed_provenance_mut(piece.start);
        // SAFETY: locking changes no memory; a range that is no longer mapped is refused.
        if let Err(error) = unsafe { mlock_with(start, length, MlockFlags::ONFAULT) } {
            first = first.and(Err(error.into()));
        }
    }
    first
}

/// Puts the calling thread before all ordinary ones. It must sleep nearly always.
pub fn go_first() -> io::Result<()> {
    // SAFETY: `sched_param` is plain data, for which all zeros are a value.
    let mut lowest: libc::sched_param = unsafe { std::mem::zeroed() };
    lowest.sched_priority = 1;
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: 0 is the calling thread, and `lowest` lives during the call.
    match unsafe { libc::sched_setscheduler(0, policy, &raw const lowest) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What to lock of the mappings of a process, for a thread that has `on_stack` on its stack.
fn pieces(maps: &str, on_stack: usize) -> Vec<Range<usize>> {
    let mut ranked: Vec<(u8, Range<usize>)> = maps
        .lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let (range, rights) = (words.next()?, words.next()?);
            let path = words.nth(3).unwrap_or_default();
            let (start, end) = range.split_once('-')?;
            let hex = |digits| usize::from_str_radix(digits, 16).ok();
            let range = hex(start)?..hex(end)?;
            let rank = match path {
                _ if range.contains(&on_stack) => 0,
                "[heap]" => 1,
                _ if path.starts_with('/') && rights.starts_with('r') => 2,
                _ => return None,
            };
            Some((rank, range))
        })
        .collect();
    ranked.sort_by_key(|(rank, range)| (*rank, range.start));
    ranked.into_iter().map(|(_, range)| range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stack_comes_first_and_then_the_heap_and_then_the_program() {
        let maps = "\
55d0a0000000-55d0a0100000 r-xp 00000000 fe:00 17 /usr/bin/a b
55d0a0200000-55d0a0300000 ---p 00000000 fe:00 17 /usr/bin/a b
55d0a1000000-55d0a1021000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000021000 rw-p 00000000 00:00 0
7f0000100000-7f0000200000 rw-p 00000000 00:00 0
7fff00000000-7fff00001000 r-xp 00000000 00:00 0                          [vdso]
";
        assert_eq!(
            pieces(maps, 0x7f00_0010_0000),
            [
                0x7f00_0010_0000..0x7f00_0020_0000,
                0x55d0_a100_0000..0x55d0_a102_1000,
                0x55d0_a000_0000..0x55d0_a010_0000
            ]
        );
        assert_eq!(pieces("nonsense\n\n1-2\n", 1), []);
    }

    #[test]
    fn a_thread_can_be_kept_and_raised_or_is_told_why_not() {
        std::thread::spawn(|| {
            for result in [stay_in_memory(), go_first()] {
                if let Err(error) = result {
                    let allowed = [libc::EPERM, libc::ENOMEM, libc::EAGAIN];
                    assert!(allowed.contains(&error.raw_os_error().unwrap()), "{error}");
                }
            }
        })
        .join()
        .unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        assert!(status.contains("VmLck:"));
    }
}
