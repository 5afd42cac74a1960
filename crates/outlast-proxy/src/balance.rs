//! Chooses the backend for a request.

use crate::table::Balance;

/// What the choice looks at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// May be chosen: up, not ejected, not full, not tried before.
    pub usable: bool,
    pub in_flight: u32,
    /// Share of full traffic during slow start, above 0 and at most 1.
    pub weight: f32,
    /// Stable hash of the backend's name.
    pub hash: u64,
}

/// Chooses among the candidates; `turn` counts requests, `random` is fresh, `key` is the request's hash.
pub fn choose(
    balance: &Balance,
    candidates: &[Candidate],
    turn: u64,
    random: u64,
    key: u64,
) -> Option<usize> {
    let usable = candidates.iter().filter(|c| c.usable).count();
    if usable == 0 {
        return None;
    }
    let nth = |n: usize| {
        candidates.iter().enumerate().filter(|(_, c)| c.usable).nth(n % usable).map(|(i, _)| i)
    };
    let first = match balance {
        Balance::RoundRobin => nth(below(turn, usable))?,
        Balance::Random => nth(below(random, usable))?,
        Balance::LeastRequests => {
            let a = nth(below(random, usable))?;
            // A second, different one.
            let b = nth(below(random, usable) + 1 + below(random >> 32, usable.max(2) - 1))?;
            if load(&candidates[b]) < load(&candidates[a]) { b } else { a }
        }
        Balance::HashIp | Balance::HashPath | Balance::HashHeader(_) | Balance::HashCookie(_) => {
            let weighed = candidates.iter().enumerate().filter(|(_, c)| c.usable);
            return weighed.max_by_key(|(_, c)| mix(c.hash ^ key)).map(|(i, _)| i);
        }
    };
    // Slow start: a new backend passes on the share that it is not ready for.
    let skip = candidates[first].weight < 1.0 && unit(mix(random)) >= candidates[first].weight;
    if !skip {
        return Some(first);
    }
    let full = candidates.iter().enumerate().cycle().skip(first + 1).take(candidates.len());
    Some(full.filter(|(_, c)| c.usable && c.weight >= 1.0).map(|(i, _)| i).next().unwrap_or(first))
}

/// Requests in flight, as heavy as they are for a backend in slow start.
fn load(candidate: &Candidate) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a positive number of requests"
    )]
    let load = (f64::from(candidate.in_flight + 1) * 1000.0 / f64::from(candidate.weight)) as u64;
    load
}

fn below(number: u64, limit: usize) -> usize {
    usize::try_from(number % (limit as u64)).expect("below a usize")
}

/// A number in [0, 1).
fn unit(random: u64) -> f32 {
    (random >> 40) as f32 / (1u64 << 24) as f32
}

/// FNV-1a over the bytes, finished by `mix`; stable over processes and versions.
pub fn hash(bytes: &[u8]) -> u64 {
    let fnv = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    mix(fnv)
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014).
pub fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(n: u64) -> Vec<Candidate> {
        (0..n)
            .map(|i| Candidate {
                usable: true,
                in_flight: 0,
                weight: 1.0,
                hash: hash(&i.to_le_bytes()),
            })
            .collect()
    }

    fn counts(balance: &Balance, candidates: &[Candidate], rounds: u64) -> Vec<usize> {
        let mut counts = vec![0; candidates.len()];
        for turn in 0..rounds {
            let random = mix(turn.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            counts[choose(balance, candidates, turn, random, random).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn round_robin_is_even() {
        assert_eq!(counts(&Balance::RoundRobin, &candidates(3), 300), [100, 100, 100]);
    }

    #[test]
    fn random_and_least_are_about_even_when_idle() {
        for balance in [Balance::Random, Balance::LeastRequests, Balance::HashPath] {
            let counts = counts(&balance, &candidates(4), 4000);
            assert!(counts.iter().all(|&c| (850..1150).contains(&c)), "{balance:?} {counts:?}");
        }
    }

    #[test]
    fn least_requests_avoids_the_busy_one() {
        let mut some = candidates(2);
        some[0].in_flight = 10;
        assert_eq!(counts(&Balance::LeastRequests, &some, 100), [0, 100]);
    }

    #[test]
    fn unusable_ones_are_never_chosen() {
        let mut some = candidates(3);
        some[1].usable = false;
        for balance in
            [Balance::RoundRobin, Balance::Random, Balance::LeastRequests, Balance::HashIp]
        {
            assert_eq!(counts(&balance, &some, 500)[1], 0);
        }
        some.iter_mut().for_each(|c| c.usable = false);
        assert_eq!(choose(&Balance::Random, &some, 1, 2, 3), None);
    }

    #[test]
    fn the_loss_of_a_backend_moves_only_its_own_keys() {
        let all = candidates(5);
        let mut fewer = all.clone();
        fewer[2].usable = false;
        for key in (0..2000).map(|k| hash(&u64::to_le_bytes(k))) {
            let before = choose(&Balance::HashIp, &all, 0, 0, key);
            let after = choose(&Balance::HashIp, &fewer, 0, 0, key);
            assert!(before == after || before == Some(2), "{key}");
        }
    }

    #[test]
    fn slow_start_gets_its_share() {
        let mut some = candidates(2);
        some[0].weight = 0.2;
        let counts = counts(&Balance::RoundRobin, &some, 10_000);
        assert!((800..1200).contains(&counts[0]), "{counts:?}");
    }
}
