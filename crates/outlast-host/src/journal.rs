//! Stand-in until the journal arrives.
use outlast_core::event::Event;
use std::path::Path;
#[derive(Debug)]
pub struct Journal;
impl Journal {
    pub fn open(_dir: &Path, _node: &str) -> anyhow::Result<Journal> {
        Ok(Journal)
    }
    pub fn next_seq(&self) -> u64 {
        1
    }
    pub fn append(&mut self, _event: &Event) -> anyhow::Result<()> {
        Ok(())
    }
}
