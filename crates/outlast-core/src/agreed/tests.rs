//! Transcripts of what is agreed, random sequences that must keep the laws, and the page that describes it.

mod bounds;
mod judged;
mod laws;
mod page;
mod procedures;
mod random;
mod script;
mod transcripts;
