//! A new configuration for a gateway that runs: refused in words, or a reason to make way.
//!
//! Nothing that runs is changed in place. Each decision is made by the one
//! configuration that its process was built with (fault-52).

use tracing::{info, warn};

use super::{Setup, build::build, edge, record_refusal};
use crate::pipeline::Gateway;

/// Whether `gateway` should make way for one that has read what the files say now.
pub(super) fn wants_another(gateway: &Gateway, setup: &Setup) -> bool {
    // All that a start would do, but for the start.
    let tried = (setup.load)().and_then(|config| {
        edge::entrance(&config, setup).1?;
        let digest = config.digest.clone();
        build(config, setup).map(|_| digest)
    });
    match tried {
        Ok(digest) if digest == gateway.config.digest => {
            info!("nothing in the configuration has changed");
            false
        }
        Ok(_) => {
            info!("the configuration has changed, making way for a new process");
            true
        }
        Err(problems) => {
            record_refusal(&problems, setup);
            warn!("the changed configuration is refused, going on with the one from before");
            false
        }
    }
}
