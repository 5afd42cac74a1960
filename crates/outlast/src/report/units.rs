//! Shares, spans and sums of money in the unit and with the digits that people expect.

use outlast_model::Availability;

/// `99.9499 %`: enough digits to tell it from 100 % and to know how far it is from it.
pub(super) fn show_percent(availability: Availability) -> String {
    let down = availability.down() * 100.0;
    if down <= 0.0 {
        return "100 %".to_owned();
    }
    // A double holds no more digits behind 99.
    if down < 1e-11 {
        return "over 99.99999999999 %".to_owned();
    }
    // Three digits of what is missing.
    let places = (2..=13).find(|&places| down * 10_f64.powi(places) >= 100.0).unwrap_or(13);
    let places = usize::try_from(places).expect("2 to 13");
    format!("{} %", decimal(100.0 - down, places))
}

/// Hours in the largest unit of which there is one: `36.5 d`, `4.39 h`, `52.56 min`, `31.5 s`, `86.4 µs`.
pub(super) fn show_span(hours: f64) -> String {
    let seconds = hours * 3600.0;
    let (value, places, unit) = if seconds <= 0.0 {
        return "0 s".to_owned();
    } else if hours >= 24.0 {
        (hours / 24.0, 2, "d")
    } else if hours >= 1.0 {
        (hours, 2, "h")
    } else if seconds >= 60.0 {
        (seconds / 60.0, 2, "min")
    } else if seconds >= 10.0 {
        (seconds, 1, "s")
    } else if seconds >= 1.0 {
        (seconds, 2, "s")
    } else if seconds >= 1e-3 {
        (seconds * 1e3, 1, "ms")
    } else if seconds >= 1e-7 {
        (seconds * 1e6, 1, "µs")
    } else {
        return "under 0.1 µs".to_owned();
    };
    format!("{} {unit}", decimal(value, places))
}

/// `$5,007`, `5,007 EUR`, `5,007`; cents only of small sums.
pub(super) fn show_money(amount: f64, currency: Option<&str>) -> String {
    let places = if amount < 100.0 { 2 } else { 0 };
    let text = format!("{amount:.places$}");
    let (whole, cents) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (place, digit) in whole.char_indices() {
        if place > 0 && (whole.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    match currency {
        Some(word) if word.chars().any(char::is_alphabetic) => format!("{grouped}{cents} {word}"),
        Some(sign) => format!("{sign}{grouped}{cents}"),
        None => format!("{grouped}{cents}"),
    }
}

/// At most so many digits after the point, without trailing zeros.
fn decimal(value: f64, places: usize) -> String {
    let text = format!("{value:.places$}");
    if !text.contains('.') {
        return text;
    }
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
