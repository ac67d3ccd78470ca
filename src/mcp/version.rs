//! The protocol versions there are.

/// Versions with `initialize` and sessions that are served, newest first.
pub const LEGACY: &[&str] = &["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];

/// The newest of them, as a JSON string.
pub const NEWEST_LEGACY_JSON: &[u8] = br#""2025-11-25""#;

/// The stateless version.
pub const MODERN: &str = "2026-07-28";

/// All of them, newest first.
pub fn all() -> Vec<&'static str> {
    [MODERN].into_iter().chain(LEGACY.iter().copied()).collect()
}
