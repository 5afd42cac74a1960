//! The report for programs: every number in full, shares as shares, times in hours.

use outlast_core::topology::PartRef;
use outlast_model::{Certainty, Figures, NinesRow, Report, Spof};
use serde_json::{Value, json};

/// The report as `outlast check --json` prints it. What is not known is null.
pub fn render_json(report: &Report) -> Value {
    json!({
        "cluster": report.cluster,
        "services": report.services.iter().map(figures).collect::<Value>(),
        "parts": report.parts.iter().map(figures).collect::<Value>(),
        "single_points_of_failure": report.spofs.iter().map(spof).collect::<Value>(),
        "assumed": report
            .assumed
            .iter()
            .map(|missing| json!({ "subject": missing.subject, "text": missing.text }))
            .collect::<Value>(),
        "caveats": report.caveats,
        "revenue_per_hour": report.revenue_per_hour,
        "currency": report.currency,
    })
}

/// One row of the table of nines.
pub fn nine_nines_json(row: &NinesRow) -> Value {
    let downtime = row.downtime;
    json!({
        "availability": row.availability.up(),
        "downtime_hours": {
            "year": downtime.year_hours,
            "month": downtime.month_hours,
            "week": downtime.week_hours,
            "day": downtime.day_hours,
        },
    })
}

fn figures(figures: &Figures) -> Value {
    let known = figures.certainty != Certainty::Unknown;
    let of_known = |value: f64| known.then_some(value);
    let nines = figures.nines.filter(|_| known);
    let downtime = figures.downtime;
    json!({
        "name": figures.part.to_string(),
        "critical": figures.critical,
        "at_least": figures.at_least,
        "of": figures.cells,
        "certainty": certainty_word(figures.certainty),
        "exact": figures.exact,
        "availability": of_known(figures.availability.up()),
        "unavailability": of_known(figures.availability.down()),
        "availability_itself": of_known(figures.itself.up()),
        "nines": nines.map(|nines| nines.whole),
        "nines_exact": nines.map(|nines| nines.exact),
        "downtime_hours": {
            "year": of_known(downtime.year_hours),
            "month": of_known(downtime.month_hours),
            "week": of_known(downtime.week_hours),
            "day": of_known(downtime.day_hours),
        },
        "outage_cost_per_year": figures.outage_cost_per_year.filter(|_| known),
    })
}

fn certainty_word(certainty: Certainty) -> &'static str {
    match certainty {
        Certainty::Stated => "stated",
        Certainty::AtMost => "at-most",
        Certainty::Unknown => "unknown",
    }
}

fn spof(spof: &Spof) -> Value {
    json!({
        "subject": spof.subject.to_string(),
        "takes_down": spof.takes_down.iter().map(PartRef::to_string).collect::<Value>(),
        "nodes": spof.nodes,
        "reason": spof.reason,
    })
}
