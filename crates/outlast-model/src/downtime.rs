//! What a share of time means to people: hours, nines, money.

use crate::availability::Availability;

/// Hours of a year of 365 days.
pub const YEAR_HOURS: f64 = 8760.0;
/// Hours of a month of 30 days.
pub const MONTH_HOURS: f64 = 720.0;
/// Hours of a week.
pub const WEEK_HOURS: f64 = 168.0;
/// Hours of a day.
pub const DAY_HOURS: f64 = 24.0;

/// Expected time down, in hours: U times the hours of the period.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Downtime {
    pub year_hours: f64,
    pub month_hours: f64,
    pub week_hours: f64,
    pub day_hours: f64,
}

impl Downtime {
    /// Of a thing that is up this share of the time.
    pub fn of(availability: Availability) -> Downtime {
        let down = availability.down();
        Downtime {
            year_hours: down * YEAR_HOURS,
            month_hours: down * MONTH_HOURS,
            week_hours: down * WEEK_HOURS,
            day_hours: down * DAY_HOURS,
        }
    }
}

/// How many nines an availability begins with: 99.95 % has 3, or 3.30 on the scale that the whole ones are points of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Nines {
    pub whole: u32,
    /// -log10(U).
    pub exact: f64,
}

impl Nines {
    /// `None` of a thing that is never down: there is no end to its nines.
    pub fn of(availability: Availability) -> Option<Nines> {
        let down = availability.down();
        if down <= 0.0 {
            return None;
        }
        let mut whole = 0;
        let mut limit = 0.1;
        // 99.9 % is three nines although 0.001 is no binary fraction.
        while down <= limit * (1.0 + 1e-9) {
            whole += 1;
            limit /= 10.0;
        }
        Some(Nines { whole, exact: -down.log10() })
    }
}

/// What the outages of a year cost: U times 8760 h times the revenue of an hour, in the currency of the revenue.
pub fn outage_cost_per_year(availability: Availability, revenue_per_hour: f64) -> f64 {
    availability.down() * YEAR_HOURS * revenue_per_hour
}

/// One line of the table of nines.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NinesRow {
    pub availability: Availability,
    pub downtime: Downtime,
}

/// From one nine to nine, with 95 % as everybody's second step.
pub fn nine_nines() -> Vec<NinesRow> {
    [0.1, 0.05, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9]
        .into_iter()
        .map(|down| {
            let availability = Availability::of_down(down);
            NinesRow { availability, downtime: Downtime::of(availability) }
        })
        .collect()
}
