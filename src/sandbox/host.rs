//! What of a host its children are shown, as far as that differs from host to host.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// What of this host the plan depends on.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Host {
    /// `/bin`, `/lib` … where they are links into `/usr`, and where they lead.
    pub links: Vec<(PathBuf, PathBuf)>,
    /// Those of the others that exist.
    pub present: Vec<PathBuf>,
    /// Where `/sys/fs/cgroup` is version 2.
    pub has_cgroup2: bool,
    /// How names are found here; only a child in the host's network is shown it.
    pub resolver: Vec<PathBuf>,
}

impl Host {
    /// Looks at the host.
    pub fn look() -> Self {
        let mut host = Self::default();
        for name in ["/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"] {
            match fs::symlink_metadata(name) {
                Ok(kind) if kind.is_symlink() => {
                    host.links
                        .extend(fs::read_link(name).ok().map(|to| (PathBuf::from(name), to)));
                }
                Ok(_) => host.present.push(name.into()),
                Err(_) => {}
            }
        }
        let etc = fs::read_dir("/etc")
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path());
        let java = etc.filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("java"))
        });
        let mut java: Vec<PathBuf> = java.collect();
        java.sort();
        let wanted = ETC.iter().map(PathBuf::from).chain(java);
        // A dangling link is not there.
        host.present.extend(wanted.filter(|path| path.exists()));
        host.has_cgroup2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let resolver = RESOLVER.iter().map(PathBuf::from);
        host.resolver.extend(resolver.filter(|path| path.exists()));
        host
    }
}

/// Parts of `/etc` that programs need and that hold no secret.
const ETC: &[&str] = &[
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/ca-certificates.conf",
    "/etc/crypto-policies",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/pki",
    "/etc/protocols",
    "/etc/services",
    "/etc/ssl",
];
/// What says how names are found.
pub(super) const RESOLVER: &[&str] = &["/etc/hosts", "/etc/nsswitch.conf", "/etc/resolv.conf"];
