//! What stands between clients of one era and a child that speaks nothing but the other.
//!
//! There is none where both speak the same. `probe` finds out, once, as a session begins; what a bridge does stands in
//! the files for its pair of eras.

use crate::{
    mcp::{bridge::LegacyServer, reverse::ModernServer},
    session::Session,
};

/// The server at the other end, as it has spoken of itself.
pub(super) enum Bridge {
    /// The clients are modern.
    ToLegacy(LegacyServer),
    /// The client is legacy.
    ToModern(ModernServer),
}

impl Session {
    /// From now on what goes between is translated; `false` if it was already.
    pub(super) fn bridge_by(&self, bridge: Bridge) -> bool {
        self.bridge.set(Box::new(bridge)).is_ok()
    }

    pub(super) fn bridge(&self) -> Option<&Bridge> {
        self.bridge.get().map(|bridge| &**bridge)
    }

    /// Its child, where that speaks legacy MCP alone and its clients are modern.
    pub(super) fn legacy_server(&self) -> Option<&LegacyServer> {
        match self.bridge()? {
            Bridge::ToLegacy(server) => Some(server),
            Bridge::ToModern(_) => None,
        }
    }

    /// Its child, where that speaks modern MCP alone and its client is legacy.
    pub(super) fn modern_server(&self) -> Option<&ModernServer> {
        match self.bridge()? {
            Bridge::ToModern(server) => Some(server),
            Bridge::ToLegacy(_) => None,
        }
    }
}
