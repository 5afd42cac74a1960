use super::{check_close, check_printed};
use crate::{
    Availability, Downtime, Nines, k_of_n, nine_nines, outage_cost_per_year, parallel, serial,
};
use outlast_core::topology::Reliability;
use proptest::collection::vec;
use proptest::prelude::*;
use std::time::Duration;

fn of(shares: &[f64]) -> Vec<Availability> {
    shares.iter().map(|&share| Availability::of(share)).collect()
}

#[test]
fn a_chain_is_weaker_than_its_links() {
    let whole = serial(&of(&[0.9999, 0.9995, 0.999]));
    check_printed(whole.up() * 100.0, 2, "99.84");
    check_printed(Downtime::of(whole).year_hours, 2, "14.01");
}

#[test]
fn two_parts_at_three_nines_make_six() {
    let whole = parallel(&of(&[0.999, 0.999]));
    check_close(whole.down(), 1e-6);
    check_printed(whole.up() * 100.0, 4, "99.9999");
    check_printed(Downtime::of(whole).year_hours * 60.0, 2, "0.53");
}

#[test]
fn the_complete_system_is_as_weak_as_its_database() {
    let load_balancers = parallel(&of(&[0.999; 2]));
    let web_servers = parallel(&of(&[0.999; 3]));
    let whole = serial(&[load_balancers, web_servers, Availability::of(0.9995)]);
    check_printed(whole.up() * 100.0, 4, "99.9499");
    check_printed(Downtime::of(whole).year_hours, 2, "4.39");
}

#[test]
fn an_outage_costs_the_revenue_of_its_hours() {
    let lost =
        |share, revenue_per_hour| outage_cost_per_year(Availability::of(share), revenue_per_hour);
    let per_hour_of_10_million_a_year = 10e6 / 8760.0;
    check_close(lost(0.99, per_hour_of_10_million_a_year), 100e3);
    let per_hour_of_100_thousand_a_day = 100e3 / 24.0;
    check_close(lost(0.99, per_hour_of_100_thousand_a_day), 365e3);
    check_close(lost(0.999, per_hour_of_100_thousand_a_day), 36.5e3);
}

#[test]
fn nine_nines_are_exact_to_the_last_digit_that_was_written() {
    assert_eq!(Availability::of(0.999_999_999).down().to_string(), "0.000000001");
    assert_eq!(Availability::of(0.9995).down().to_string(), "0.0005");
    assert_eq!(Availability::of_down(1e-9).up().to_string(), "0.999999999");
    assert_eq!(Availability::of(1.0), Availability::PERFECT);
    assert_eq!(Availability::of(0.0), Availability::NONE);
    // Three times nine nines in parallel: 27 nines, where 1 - up would be 0.
    check_close(parallel(&of(&[0.999_999_999; 3])).down(), 1e-27);
}

#[test]
fn a_repairable_part_is_up_for_mtbf_of_mtbf_and_mttr() {
    let mtbf = Duration::from_secs(999 * 3600);
    let part =
        Availability::of_reliability(Reliability::Mtbf { mtbf, mttr: Duration::from_secs(3600) });
    check_close(part.up(), 0.999);
    check_close(part.down(), 0.001);
}

#[test]
fn nines_are_counted_from_the_point() {
    let nines = |share| Nines::of(Availability::of(share)).map(|nines| nines.whole);
    assert_eq!(nines(0.5), Some(0));
    assert_eq!(nines(0.9), Some(1));
    assert_eq!(nines(0.95), Some(1));
    assert_eq!(nines(0.9989), Some(2));
    assert_eq!(nines(0.999), Some(3));
    assert_eq!(nines(0.9995), Some(3));
    assert_eq!(nines(0.999_999_999), Some(9));
    assert_eq!(nines(1.0), None);
    check_close(Nines::of(Availability::of(0.9995)).unwrap().exact, 2000_f64.log10());
}

#[test]
fn the_table_of_nines_is_the_textbooks() {
    let table = nine_nines();
    check_close(table[0].downtime.year_hours, 36.5 * 24.0);
    check_close(table[1].downtime.year_hours, 18.25 * 24.0);
    check_close(table[2].downtime.year_hours, 3.65 * 24.0);
    let shares: Vec<String> = table.iter().map(|row| row.availability.up().to_string()).collect();
    assert_eq!(
        shares,
        [
            "0.9",
            "0.95",
            "0.99",
            "0.999",
            "0.9999",
            "0.99999",
            "0.999999",
            "0.9999999",
            "0.99999999",
            "0.999999999"
        ]
    );
    let six = &table[6].downtime;
    check_printed(six.year_hours * 3600.0, 1, "31.5");
    check_printed(six.month_hours * 3600.0, 2, "2.59");
    check_printed(table[3].downtime.month_hours * 60.0, 1, "43.2");
    check_printed(table[3].downtime.week_hours * 60.0, 1, "10.1");
    check_printed(table[3].downtime.day_hours * 60.0, 2, "1.44");
}

/// Adds up every case of parts up and down in which at least `k` are up, and in which fewer are.
fn counted(k: usize, shares: &[f64]) -> (f64, f64) {
    (0_u32..1 << shares.len()).fold((0.0, 0.0), |(up, down), case| {
        let mass: f64 = (0..)
            .zip(shares)
            .map(|(bit, &share)| if case >> bit & 1 == 1 { share } else { 1.0 - share })
            .product();
        if case.count_ones() as usize >= k { (up + mass, down) } else { (up, down + mass) }
    })
}

#[test]
fn none_of_many_and_too_many_of_few_are_certain() {
    assert_eq!(k_of_n(0, &[]), Availability::PERFECT);
    assert_eq!(k_of_n(1, &[]), Availability::NONE);
    assert_eq!(k_of_n(3, &of(&[0.9, 0.9])), Availability::NONE);
    assert_eq!(serial(&[]), Availability::PERFECT);
    assert_eq!(parallel(&[]), Availability::NONE);
}

proptest! {
    #[test]
    fn k_of_n_is_the_sum_of_its_cases(shares in vec(0.0..=1.0, 0..9), k in 0..10_usize) {
        let whole = k_of_n(k, &of(&shares));
        let (up, down) = counted(k, &shares);
        prop_assert!((whole.up() - up).abs() < 1e-12, "{whole:?} {up}");
        prop_assert!((whole.down() - down).abs() < 1e-12, "{whole:?} {down}");
        prop_assert!((whole.up() + whole.down() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn one_of_n_is_parallel_and_n_of_n_is_serial(shares in vec(0.0..=1.0, 1..9)) {
        let parts = of(&shares);
        let close = |a: Availability, b: Availability| {
            (a.up() - b.up()).abs() < 1e-12 && (a.down() - b.down()).abs() < 1e-12
        };
        prop_assert!(close(k_of_n(1, &parts), parallel(&parts)));
        prop_assert!(close(k_of_n(parts.len(), &parts), serial(&parts)));
    }

    #[test]
    fn redundancy_never_hurts_and_a_chain_never_helps(shares in vec(0.0..=1.0, 1..9)) {
        let parts = of(&shares);
        let best = shares.iter().copied().fold(0.0, f64::max);
        let worst = shares.iter().copied().fold(1.0, f64::min);
        prop_assert!(parallel(&parts).up() >= best * (1.0 - 1e-12));
        prop_assert!(serial(&parts).up() <= worst * (1.0 + 1e-12));
    }

    #[test]
    fn a_better_part_makes_no_whole_worse(
        shares in vec(0.0..=1.0, 1..9), which: prop::sample::Index, gain in 0.0..=1.0, k in 1..9_usize,
    ) {
        let which = which.index(shares.len());
        let mut better = shares.clone();
        better[which] += (1.0 - better[which]) * gain;
        let (before, after) = (k_of_n(k, &of(&shares)), k_of_n(k, &of(&better)));
        prop_assert!(after.up() >= before.up() - 1e-12);
        prop_assert!(after.down() <= before.down() + 1e-12);
    }

    #[test]
    fn what_was_written_comes_back_exactly(thousandths in 1..1_000_u32, zeros in 0..7_usize) {
        // 0.000123 down is 0.999877 up, digit by digit.
        let down: f64 = format!("0.{}{thousandths:03}", "0".repeat(zeros)).parse().unwrap();
        let up: f64 = format!("0.{}{:03}", "9".repeat(zeros), 1_000 - thousandths).parse().unwrap();
        prop_assert_eq!(Availability::of(up).down(), down);
        prop_assert_eq!(Availability::of_down(down).up(), up);
    }
}
