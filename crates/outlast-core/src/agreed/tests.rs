//! Transcripts of what is agreed, random sequences that must keep the laws, and the page that describes it.

mod laws;
mod random;
mod script;
mod transcripts;
