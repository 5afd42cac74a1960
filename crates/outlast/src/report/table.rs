//! The report for people: aligned, in units that one can picture.

use outlast_model::{Certainty, Figures, Report, nine_nines};

use super::units::{show_money, show_percent, show_span};

/// How a table is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableOptions {
    /// Whether the output may have ANSI colours.
    pub colour: bool,
}

/// The report as `outlast check` prints it.
pub fn render_table(report: &Report, options: TableOptions) -> String {
    if report.services.is_empty() && report.parts.is_empty() {
        return "nothing to count: the file names no service and no part\n".to_owned();
    }
    let mut blocks = vec![figures_block(report, options), spofs_block(report, options)];
    let assumed: Vec<&str> = report.assumed.iter().map(|missing| missing.text.as_str()).collect();
    blocks.extend(list_block("not known", &assumed, options));
    let caveats: Vec<&str> = report.caveats.iter().map(String::as_str).collect();
    blocks.extend(list_block("beware", &caveats, options));
    blocks.join("\n")
}

/// The table of nines: downtime at 90 % to 99.9999999 %.
pub fn nine_nines_table() -> String {
    let heads = ["availability", "down/year", "down/month", "down/week", "down/day"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    rows.extend(nine_nines().into_iter().map(|row| {
        let down = row.downtime;
        let spans = [down.year_hours, down.month_hours, down.week_hours, down.day_hours];
        [show_percent(row.availability)].into_iter().chain(spans.map(show_span)).collect()
    }));
    aligned(&rows).join("\n") + "\n"
}

/// Services, then other parts, in the same columns.
fn figures_block(report: &Report, options: TableOptions) -> String {
    let mut rows = Vec::new();
    let mut heads = Vec::new();
    for (title, figures) in [("services", &report.services), ("parts", &report.parts)] {
        if figures.is_empty() {
            continue;
        }
        if !rows.is_empty() {
            rows.push(Vec::new());
        }
        heads.push(rows.len());
        rows.push(figures_heads(title, report));
        rows.extend(figures.iter().map(|figures| figures_row(figures, report)));
    }
    let mut lines = aligned(&rows);
    for head in heads {
        lines[head] = Paint::Bold.on(&lines[head], options);
    }
    lines.join("\n") + "\n"
}

fn figures_heads(title: &str, report: &Report) -> Vec<String> {
    let mut heads = vec![
        title,
        "must be up",
        "availability",
        "nines",
        "down/year",
        "down/month",
        "down/week",
        "down/day",
    ];
    if report.revenue_per_hour.is_some() {
        heads.push("lost/year");
    }
    heads.into_iter().map(str::to_owned).collect()
}

fn figures_row(figures: &Figures, report: &Report) -> Vec<String> {
    let name = figures.part.to_string();
    let cells = format!("{} of {}", figures.at_least, figures.cells);
    let (no_better, no_less) = match figures.certainty {
        Certainty::Stated => ("", ""),
        Certainty::AtMost => ("≤ ", "≥ "),
        Certainty::Unknown => {
            let mut row = vec![name, cells, "unknown".to_owned()];
            row.resize(if report.revenue_per_hour.is_some() { 9 } else { 8 }, "-".to_owned());
            return row;
        }
    };
    let nines = figures.nines.map_or("-".to_owned(), |nines| format!("{:.1}", nines.exact));
    let mut row = vec![
        name,
        cells,
        format!("{no_better}{}", show_percent(figures.availability)),
        nines,
        format!("{no_less}{}", show_span(figures.downtime.year_hours)),
        format!("{no_less}{}", show_span(figures.downtime.month_hours)),
        format!("{no_less}{}", show_span(figures.downtime.week_hours)),
        format!("{no_less}{}", show_span(figures.downtime.day_hours)),
    ];
    if let Some(cost) = figures.outage_cost_per_year {
        row.push(format!("{no_less}{}", show_money(cost, report.currency.as_deref())));
    }
    row
}

fn spofs_block(report: &Report, options: TableOptions) -> String {
    let title = match report.spofs.len() {
        0 if !report.has_critical_parts() => {
            let text = "single points of failure were not looked for: no service is critical, and no database is there for itself";
            return Paint::Yellow.on(text, options) + "\n";
        }
        0 => return Paint::Green.on("no single point of failure", options) + "\n",
        1 => "1 single point of failure".to_owned(),
        many => format!("{many} single points of failure"),
    };
    let lines: Vec<String> =
        report.spofs.iter().map(|spof| format!("  {}: {}\n", spof.subject, spof.reason)).collect();
    format!("{}\n{}", Paint::Red.on(&title, options), lines.concat())
}

fn list_block(title: &str, lines: &[&str], options: TableOptions) -> Option<String> {
    if lines.is_empty() {
        return None;
    }
    let lines: Vec<String> = lines.iter().map(|line| format!("  {line}\n")).collect();
    Some(format!("{}\n{}", Paint::Yellow.on(title, options), lines.concat()))
}

/// Columns two spaces apart: the first to the left, the others to the right.
fn aligned(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max()
        })
        .map(Option::unwrap_or_default)
        .collect();
    rows.iter()
        .map(|row| {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
                if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            cells.collect::<Vec<String>>().join("  ").trim_end().to_owned()
        })
        .collect()
}

#[derive(Clone, Copy)]
enum Paint {
    Bold,
    Red,
    Green,
    Yellow,
}

impl Paint {
    /// In ANSI colours, if the caller says that they are welcome.
    fn on(self, text: &str, options: TableOptions) -> String {
        let code = match self {
            Paint::Bold => "1",
            Paint::Red => "1;31",
            Paint::Green => "1;32",
            Paint::Yellow => "1;33",
        };
        if options.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
