use super::units::{show_money, show_percent, show_span};
use super::{TableOptions, nine_nines_table, render_json, render_table};
use expect_test::expect;
use outlast_core::topology::{External, Reliability, Topology};
use outlast_model::{Availability, Report, analyse};
use std::num::NonZeroU16;

fn external(availability: Option<f64>, instances: u16) -> External {
    External {
        url: None,
        probe: None,
        reliability: availability.map(Reliability::Availability),
        instances: NonZeroU16::new(instances).unwrap(),
        at_least: NonZeroU16::MIN,
    }
}

/// Parts of every certainty; a service is made of one of them, so that the figures are of the model itself.
fn report() -> Report {
    let mut topology = Topology::default();
    topology.cluster.name = "shop".to_owned();
    topology.cost.revenue_per_hour = Some(1141.0);
    topology.cost.currency = Some("$".to_owned());
    for (name, availability, instances) in [
        ("database", Some(0.9995), 1),
        ("load_balancer", Some(0.999), 2),
        ("bank", None, 1),
        ("sun", Some(1.0), 1),
    ] {
        topology.externals.insert(name.to_owned(), external(availability, instances));
    }
    let mut report = analyse(&topology);
    let mut shop = report.parts[1].clone();
    shop.part.kind = outlast_core::topology::PartKind::Service;
    shop.part.name = "shop".to_owned();
    shop.certainty = outlast_model::Certainty::AtMost;
    report.spofs.push(outlast_model::Spof {
        subject: outlast_model::Subject::Part(report.parts[1].part.clone()),
        takes_down: vec![shop.part.clone()],
        nodes: Vec::new(),
        reason: "it has one instance: without it service.shop is down".to_owned(),
    });
    report.services.push(shop);
    report
}

#[test]
fn a_report_reads_at_a_glance() {
    expect![[r#"
        services                must be up  availability  nines  down/year  down/month   down/week  down/day  lost/year
        service.shop                1 of 1     ≤ 99.95 %    3.3   ≥ 4.38 h  ≥ 21.6 min  ≥ 5.04 min  ≥ 43.2 s   ≥ $4,998

        parts                   must be up  availability  nines  down/year  down/month   down/week  down/day  lost/year
        external.bank               1 of 1       unknown      -          -           -           -         -          -
        external.database           1 of 1       99.95 %    3.3     4.38 h    21.6 min    5.04 min    43.2 s     $4,998
        external.load_balancer      1 of 2     99.9999 %    6.0     31.5 s      2.59 s    604.8 ms   86.4 ms     $10.00
        external.sun                1 of 1         100 %      -        0 s         0 s         0 s       0 s      $0.00

        1 single point of failure
          external.database: it has one instance: without it service.shop is down

        not known
          external.bank has no availability: counted as 100 %; write `availability = 0.999`, or `mtbf` and `mttr`, in [external.bank]
    "#]].assert_eq(&render_table(&report(), TableOptions::default()));
}

#[test]
fn an_empty_report_does_not_look_like_a_good_one() {
    expect![[r#"
        nothing to count: the file names no service and no part
    "#]]
    .assert_eq(&render_table(&analyse(&Topology::default()), TableOptions::default()));
}

#[test]
fn what_nobody_needs_is_not_said_to_have_no_single_point_of_failure() {
    let mut topology = Topology::default();
    topology.externals.insert("bank".to_owned(), external(Some(0.999), 1));
    let table = render_table(&analyse(&topology), TableOptions::default());
    let said = "\nsingle points of failure were not looked for: no service is critical, and no database is there for itself\n";
    assert!(table.contains(said), "{table}");
    assert!(!table.contains("no single point of failure"), "{table}");
}

#[test]
fn colour_is_only_for_those_who_ask() {
    let plain = render_table(&report(), TableOptions { colour: false });
    let coloured = render_table(&report(), TableOptions { colour: true });
    assert!(!plain.contains('\x1b'));
    assert!(coloured.contains("\x1b[1;31m1 single point of failure\x1b[0m\n"));
    let mut stripped = coloured;
    for code in ["\x1b[1m", "\x1b[1;31m", "\x1b[1;32m", "\x1b[1;33m", "\x1b[0m"] {
        stripped = stripped.replace(code, "");
    }
    assert_eq!(stripped, plain);
}

#[test]
fn an_unknown_is_null_to_programs() {
    let json = render_json(&report());
    assert_eq!(json["parts"][0]["name"], "external.bank");
    assert_eq!(json["parts"][0]["certainty"], "unknown");
    for key in ["availability", "unavailability", "nines", "outage_cost_per_year"] {
        assert!(json["parts"][0][key].is_null(), "{key}");
    }
    assert!(json["parts"][0]["downtime_hours"]["year"].is_null());
    assert_eq!(json["assumed"][0]["subject"], "external.bank");
}

#[test]
fn programs_get_every_number_in_full() {
    let json = render_json(&report());
    assert_eq!(json["cluster"], "shop");
    let database = &json["parts"][1];
    assert_eq!(database["name"], "external.database");
    assert_eq!(database["availability"], 0.9995);
    assert_eq!(database["unavailability"], 0.0005);
    assert_eq!(database["nines"], 3);
    assert_eq!(database["downtime_hours"]["year"], 0.0005 * 8760.0);
    assert_eq!(database["outage_cost_per_year"], 0.0005 * 8760.0 * 1141.0);
    assert_eq!(json["single_points_of_failure"][0]["subject"], "external.database");
    assert_eq!(json["single_points_of_failure"][0]["takes_down"][0], "service.shop");
}

#[test]
fn the_table_of_nines_is_shown_in_units_that_one_can_picture() {
    expect![[r#"
        availability  down/year  down/month  down/week  down/day
        90 %             36.5 d         3 d     16.8 h     2.4 h
        95 %            18.25 d       1.5 d      8.4 h     1.2 h
        99 %             3.65 d       7.2 h     1.68 h  14.4 min
        99.9 %           8.76 h    43.2 min  10.08 min  1.44 min
        99.99 %       52.56 min    4.32 min   1.01 min    8.64 s
        99.999 %       5.26 min      25.9 s     6.05 s    864 ms
        99.9999 %        31.5 s      2.59 s   604.8 ms   86.4 ms
        99.99999 %       3.15 s    259.2 ms    60.5 ms    8.6 ms
        99.999999 %    315.4 ms     25.9 ms       6 ms    864 µs
        99.9999999 %    31.5 ms      2.6 ms   604.8 µs   86.4 µs
    "#]]
    .assert_eq(&nine_nines_table());
}

#[test]
fn a_share_has_as_many_digits_as_it_takes() {
    for (down, text) in [
        (0.0, "100 %"),
        (1.0, "0 %"),
        (0.1, "90 %"),
        (0.00159935, "99.84 %"),
        (0.000501, "99.9499 %"),
        (1e-6, "99.9999 %"),
        (1.23e-9, "99.999999877 %"),
        (1e-13, "99.99999999999 %"),
        (1e-27, "over 99.99999999999 %"),
    ] {
        assert_eq!(show_percent(Availability::of_down(down)), text);
    }
}

#[test]
fn a_span_is_in_the_largest_unit_that_fits() {
    for (hours, text) in [
        (876.0, "36.5 d"),
        (87.6, "3.65 d"),
        (14.0103, "14.01 h"),
        (4.3888, "4.39 h"),
        (0.876, "52.56 min"),
        (0.00876, "31.5 s"),
        (0.000876, "3.15 s"),
        (1e-4, "360 ms"),
        (2.4e-8, "86.4 µs"),
        (0.0, "0 s"),
        (1e-20, "under 0.1 µs"),
    ] {
        assert_eq!(show_span(hours), text);
    }
}

#[test]
fn money_is_grouped_and_has_its_currency() {
    assert_eq!(show_money(99_951.6, Some("$")), "$99,952");
    assert_eq!(show_money(1_234_567.0, Some("EUR")), "1,234,567 EUR");
    assert_eq!(show_money(12.5, None), "12.50");
    assert_eq!(show_money(0.0, Some("$")), "$0.00");
}
