//! The table of what a member does, rules for acknowledgements under random changes, and one test for each mistake that the
//! simulation found.

mod covered;
mod found;
mod judge;
mod regions;
mod table;
mod takeover;
