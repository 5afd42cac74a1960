//! Shares of time, and how those of parts make that of a whole.

use outlast_core::topology::Reliability;

/// The share of time that a thing is up and the share that it is down; together they are 1.
///
/// Both are carried through every formula as sums of positive terms. `1 - up` is never computed: at nine nines a
/// subtraction would leave half of the digits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Availability {
    up: f64,
    down: f64,
}

impl Availability {
    /// Never down.
    pub const PERFECT: Availability = Availability { up: 1.0, down: 0.0 };
    /// Never up.
    pub const NONE: Availability = Availability { up: 0.0, down: 1.0 };

    /// From the share of time that it is up, 0 to 1, as a person wrote it: 0.999999999 is down 1e-9 of the time.
    pub fn of(share: f64) -> Availability {
        assert!((0.0..=1.0).contains(&share), "a share of time is between 0 and 1");
        Availability { up: share, down: complement(share) }
    }

    /// From the share of time that it is down, 0 to 1.
    pub fn of_down(share: f64) -> Availability {
        assert!((0.0..=1.0).contains(&share), "a share of time is between 0 and 1");
        Availability { up: complement(share), down: share }
    }

    /// As the file says it: a share, or mtbf / (mtbf + mttr).
    pub fn of_reliability(reliability: Reliability) -> Availability {
        match reliability {
            Reliability::Availability(share) => Availability::of(share),
            Reliability::Mtbf { mtbf, mttr } => {
                let cycle = mtbf.as_secs_f64() + mttr.as_secs_f64();
                assert!(cycle > 0.0, "a part that fails has a time between failures");
                Availability { up: mtbf.as_secs_f64() / cycle, down: mttr.as_secs_f64() / cycle }
            }
        }
    }

    /// The share of time that it is up.
    pub fn up(self) -> f64 {
        self.up
    }

    /// The share of time that it is down.
    pub fn down(self) -> f64 {
        self.down
    }

    /// Up while both are: A = A1 A2.
    pub fn and(self, other: Availability) -> Availability {
        Availability { up: self.up * other.up, down: self.down + self.up * other.down }
    }

    /// Up while one is: U = U1 U2.
    pub fn or(self, other: Availability) -> Availability {
        Availability { up: self.up + self.down * other.up, down: self.down * other.down }
    }

    pub(crate) fn from_masses(up: f64, down: f64) -> Availability {
        Availability { up, down }
    }
}

/// Up while every part is: A = A1 A2 ... An, of independent parts.
pub fn serial(parts: &[Availability]) -> Availability {
    parts.iter().fold(Availability::PERFECT, |whole, &part| whole.and(part))
}

/// Up while at least one part is: A = 1 - (1 - A1)(1 - A2) ... (1 - An), of independent parts.
pub fn parallel(parts: &[Availability]) -> Availability {
    parts.iter().fold(Availability::NONE, |whole, &part| whole.or(part))
}

/// Up while at least `k` of the parts are, of independent parts that need not be alike.
pub fn k_of_n(k: usize, parts: &[Availability]) -> Availability {
    if k == 0 {
        return Availability::PERFECT;
    }
    let Some(spare) = parts.len().checked_sub(k) else { return Availability::NONE };
    // live[j]: the probability that j of the parts so far are up, while it is still open whether k will be.
    let mut live = vec![0.0; k];
    live[0] = 1.0;
    let (mut up, mut down) = (0.0, 0.0);
    for (seen, part) in parts.iter().enumerate() {
        let lowest = seen.saturating_sub(spare);
        for j in (lowest..=seen.min(k - 1)).rev() {
            let mass = live[j];
            live[j] = mass * part.down;
            match live.get_mut(j + 1) {
                Some(more) => *more += mass * part.up,
                None => up += mass * part.up,
            }
        }
        if seen >= spare {
            // One more than the spare ones is lost.
            down += live[lowest];
            live[lowest] = 0.0;
        }
    }
    Availability { up, down }
}

/// `1 - share`, on the digits of the shortest decimal that reads back as `share`: what a person wrote, not its nearest
/// binary fraction.
fn complement(share: f64) -> f64 {
    let text = share.to_string();
    let Some((_, digits)) = text.split_once('.') else { return 1.0 - share };
    let mut rest = String::from("0.");
    for (place, digit) in digits.bytes().enumerate() {
        // The last digit of a shortest decimal is not 0, so that nothing is carried.
        let whole = if place + 1 == digits.len() { 10 } else { 9 };
        rest.push(char::from(b'0' + (whole - (digit - b'0'))));
    }
    rest.parse().expect("digits after a point are a number")
}
