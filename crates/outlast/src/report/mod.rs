//! A report of the model as people read it and as programs do.

mod json;
mod table;
mod units;

pub use json::{nine_nines_json, render_json};
pub use table::{TableOptions, nine_nines_table, render_table};

#[cfg(test)]
mod tests;
