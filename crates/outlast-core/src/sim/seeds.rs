//! The seeds of a test run, and how one that breaks a law is told.

use std::ops::Range;
use std::string::String;
use std::vec::Vec;

/// What breaks a law: the law, and what led there if that was wanted.
pub(super) type Broken = (String, String);

/// Lines that lead to a broken law, unless one seed alone is replayed: then it is all of them.
const LINES: usize = 80;

/// Runs many seeds, fewer in a debug build, and hands out what each came to; how many there were. `OUTLAST_SEEDS` is how many,
/// or `from..to`; `OUTLAST_SEED` replays one. `run` takes a seed, and whether it is to write down what happens.
pub(super) fn each_seed<T>(
    [debug, release]: [u64; 2],
    run: impl Fn(u64, bool) -> Result<T, Broken>,
    mut ran: impl FnMut(u64, T),
) -> u64 {
    let seeds = wanted(if cfg!(debug_assertions) { debug } else { release });
    let count = seeds.end - seeds.start;
    for seed in seeds {
        match run(seed, false) {
            Ok(outcome) => ran(seed, outcome),
            Err((law, _)) => {
                let text = run(seed, true).err().expect("the same seed breaks it again").1;
                let lines = if count == 1 { usize::MAX } else { LINES };
                let mut tail: Vec<&str> = text.lines().rev().take(lines).collect();
                tail.reverse();
                panic!("{}\n{law}; replay it with OUTLAST_SEED={seed}", tail.join("\n"));
            }
        }
    }
    count
}

fn wanted(many: u64) -> Range<u64> {
    let variable = |name: &str| std::env::var(name).ok();
    if let Some(seed) = variable("OUTLAST_SEED") {
        let seed = number(&seed);
        return seed..seed + 1;
    }
    let Some(text) = variable("OUTLAST_SEEDS") else { return 0..many };
    seeds_of(&text)
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_invalid| panic!("`{text}` is no number of a seed"))
}

fn seeds_of(text: &str) -> Range<u64> {
    let Some((from, to)) = text.split_once("..") else { return 0..number(text) };
    let seeds = number(from)..number(to);
    assert!(
        !seeds.is_empty(),
        "OUTLAST_SEEDS={text} has no seed: the first number is to be less than the second"
    );
    seeds
}

#[test]
fn seeds_are_how_many_or_from_where_to_where() {
    assert_eq!(seeds_of("7"), 0..7);
    assert_eq!(seeds_of("3..9"), 3..9);
}

#[test]
#[should_panic(expected = "OUTLAST_SEEDS=9..3 has no seed")]
fn seeds_that_are_the_wrong_way_round_are_refused() {
    seeds_of("9..3");
}
