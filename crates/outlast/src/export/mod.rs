//! Parts of a topology in the formats of other systems.

pub mod kubernetes;
mod yaml;

#[cfg(test)]
mod tests;
