//! The protocol versions there are.

use crate::mcp::Era;

/// Versions with `initialize` and sessions that are served, newest first.
pub const LEGACY: &[&str] = &["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];

/// The newest of them, as a JSON string.
pub const NEWEST_LEGACY_JSON: &[u8] = br#""2025-11-25""#;

/// The one version that has batches (mcp-O2).
pub const BATCHES: &str = "2025-03-26";

/// The stateless version.
pub const MODERN: &str = "2026-07-28";

/// A version as a client or a server names it, if it is one with `initialize` that is served.
pub fn legacy(named: &str) -> Option<&'static str> {
    LEGACY.iter().copied().find(|version| *version == named)
}

/// Those that serve a request of this era.
pub fn supported(era: Era) -> Vec<&'static str> {
    match era {
        Era::Modern => vec![MODERN],
        Era::Legacy => [MODERN].into_iter().chain(LEGACY.iter().copied()).collect(),
    }
}
