//! Which policies the last process found nothing wrong with, kept in the state directory.
//!
//! Called by [`super::build()`]. Validating takes most of a start, and says the same of the same
//! texts: a gateway that was idle need not do it again. The directory is the gateway's own
//! (`StateDirectory=`, mode 0700), and the keys that it believes lie there as well.

use std::{io, path::Path};

use crate::files;

/// What was kept there; of no use where it is something else.
pub(super) fn kept(directory: &Path) -> Option<String> {
    files::read_text(&directory.join(FILE), MAX_SUM).ok()
}

/// Keeps it for the next process, in place of what was kept before.
pub(super) fn keep(directory: &Path, sum: &str) -> io::Result<()> {
    files::replace(&directory.join(FILE), sum.as_bytes())
}

const FILE: &str = "policies.sum";
/// More than any has.
const MAX_SUM: usize = 128;

#[cfg(test)]
mod tests {
    use std::{fs, net::TcpListener};

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;
    use crate::{
        audit::Audit,
        child::Connection,
        config::{self, OwnerRule, ServerName},
        daemon::{Setup, build::build},
    };

    /// A gateway's first start validates; what it keeps is no help to policies that are wrong.
    #[tokio::test]
    async fn policies_that_have_passed_are_remembered_and_others_are_refused_all_the_same() {
        let (root, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let write = |at: &str, text: &str| {
            let at = root.path().join(at);
            fs::create_dir_all(at.parent().unwrap()).unwrap();
            fs::write(at, text).unwrap();
        };
        write(
            "etc/thv/servers/it.toml",
            "command = [\"/bin/sh\"]\nresource = \"http://localhost/x\"\nauth.mode = \"none\"\nauthz.policies = [\"/etc/thv/p.cedar\"]\n",
        );
        let server = ServerName::parse("it").unwrap();
        let starts = |policy: &str, state: &Path| {
            write("etc/thv/p.cedar", policy);
            let (audit, _) = Audit::memory(&server);
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let nobody = (Connection::Path("/nowhere".into()), String::new());
            let setup = Setup {
                state: Some(state.to_owned()),
                ..Setup::alone(root.path(), &server, listener, nobody, audit).unwrap()
            };
            let config = config::load(root.path(), &server, OwnerRule::RootOrCaller).unwrap();
            build(config, &setup).is_ok()
        };
        let good = "permit (principal, action, resource);";
        let bad = "permit (principal, action, resource) when { principal.name == 1 };";
        assert!(!starts(bad, state.path()));
        assert_eq!(kept(state.path()), None, "nothing has passed");
        assert!(starts(good, state.path()));
        let sum = kept(state.path()).unwrap();
        assert!(starts(good, state.path()));
        assert!(!starts(bad, state.path()));
        assert_eq!(kept(state.path()), Some(sum));
        assert!(starts(good, Path::new("/proc/self")), "nowhere to keep it");
    }

    #[test]
    fn what_is_kept_is_found_and_what_cannot_be_is_done_without() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(kept(directory.path()), None);
        keep(directory.path(), "a longer sum").unwrap();
        keep(directory.path(), "sum").unwrap();
        assert_eq!(kept(directory.path()).as_deref(), Some("sum"));
        fs::write(directory.path().join(FILE), [0xff; 4]).unwrap();
        assert_eq!(kept(directory.path()), None);
        fs::remove_file(directory.path().join(FILE)).unwrap();
        mkfifo(&directory.path().join(FILE), Mode::S_IRWXU).unwrap();
        assert_eq!(kept(directory.path()), None, "nobody waits for its writer");
        keep(directory.path(), "sum").unwrap();
        assert_eq!(kept(directory.path()).as_deref(), Some("sum"));
        assert!(keep(Path::new("/proc/self"), "sum").is_err());
    }
}
