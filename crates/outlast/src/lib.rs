//! The binary's library: the file, its report, the agent and its data plane.

pub mod addresses;
pub mod agent;
mod apart;
pub mod authority;
pub mod cluster;
pub mod database;
pub mod dataplane;
pub mod elsewhere;
pub mod export;
pub mod file;
pub mod names;
pub mod report;
pub mod rights;

/// The version that people are told.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What tells one binary from another: the version and a hash of the running image.
pub fn build_id() -> &'static str {
    static ID: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    ID.get_or_init(|| {
        let image = std::fs::read("/proc/self/exe").unwrap_or_default();
        let hash = image.chunks(8).fold(0xcbf2_9ce4_8422_2325_u64, |hash, chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            outlast_proxy::balance::mix(hash ^ u64::from_le_bytes(word))
                .wrapping_add(0x9e37_79b9_7f4a_7c15)
        });
        format!("{VERSION}-{hash:016x}")
    })
}
