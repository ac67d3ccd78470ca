//! Durations, sizes, paths and names as configuration writes them.
//!
//! Pure; called by `fragment` only. Each error says what would be right.

use std::{
    net::IpAddr,
    path::{Component, Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use ipnet::IpNet;

use super::{Addition, Layer, Scope, Seccomp, spelling::nearest, table::NOT_YET};

/// A time span such as `30s`, `5min` or `1h 30min`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration <= MAX_DURATION => Ok(duration),
        Ok(_) => Err("the time span is longer than 365 days".to_owned()),
        Err(_) => Err(format!(
            "{text:?} is not a time span such as \"30s\" or \"5min\""
        )),
    }
}

/// A time span that is not zero.
pub(super) fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("the time span must not be zero".to_owned()),
        duration => Ok(duration),
    }
}

/// A clock difference: beyond five minutes the clocks want repair, not leeway.
pub(super) fn leeway(text: &str) -> Result<Duration, String> {
    let leeway = duration(text)?;
    if leeway <= MAX_LEEWAY {
        Ok(leeway)
    } else {
        Err("a leeway is at most 5min; synchronise the clocks".to_owned())
    }
}

/// Bytes, such as `512M`; K, M, G and T are powers of 1024, as in systemd.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!("{text:?} is not a size such as \"512M\" (K, M, G, T, or bytes without a letter)")
    };
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        Some(b'T') => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let number = digits_only(digits).ok_or_else(wrong)?;
    match number.checked_mul(1 << shift) {
        Some(bytes @ MIN_SIZE..=MAX_SIZE) => Ok(bytes),
        _ => Err("a size is from 1K to 16T".to_owned()),
    }
}

/// A request body: it is held in memory as a whole.
pub(super) fn body_size(text: &str) -> Result<usize, String> {
    let bytes = size(text)?;
    if bytes <= MAX_BODY {
        usize::try_from(bytes).map_err(|error| error.to_string())
    } else {
        Err("a body is at most 64M".to_owned())
    }
}

/// One message of a server's: it is held in memory as a whole.
pub(super) fn message_size(text: &str) -> Result<usize, String> {
    let bytes = size(text)?;
    if (MIN_MESSAGE..=MAX_BODY).contains(&bytes) {
        usize::try_from(bytes).map_err(|error| error.to_string())
    } else {
        Err("a message is from 64K to 64M".to_owned())
    }
}

/// Per cent of one processor, such as `150%`.
pub(super) fn percent(text: &str) -> Result<u64, String> {
    match text.strip_suffix('%').and_then(digits_only) {
        Some(number @ 1..=100_000) => Ok(number),
        _ => Err(format!(
            "{text:?} is not a share of processors such as \"100%\" (one) or \"250%\""
        )),
    }
}

/// An absolute path without `.` and `..`.
pub(super) fn absolute_path(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    let plain = path
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !text.starts_with('/') {
        Err(format!("{} is not an absolute path", shown(text)))
    } else if text.contains(char::is_control) || !plain || text.split('/').any(|part| part == ".") {
        Err("a path here has no `.`, no `..` and no control character".to_owned())
    } else {
        // Without a final slash, so that paths can be compared.
        Ok(path.components().collect())
    }
}

/// A path that a unit file takes literally: no spaces, quotes, specifiers or separators.
pub fn plain_path(text: &str) -> Result<PathBuf, String> {
    let path = absolute_path(text)?;
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+@,=~".contains(c);
    if path == Path::new("/") {
        Err("this is the whole host; name a directory".to_owned())
    } else if text.chars().all(is_plain) {
        Ok(path)
    } else {
        Err(format!(
            "{text:?} has characters that mean something in a unit file; use `systemctl edit`"
        ))
    }
}

/// A host path that a child may be shown.
pub fn shown_path(text: &str) -> Result<PathBuf, String> {
    let path = absolute_path(text)?;
    if path == Path::new("/") {
        return Err("the whole host cannot be shown; name directories".to_owned());
    }
    if let Some(own) = OWN_PLACES.iter().find(|own| path.starts_with(own)) {
        return Err(format!("`{own}` is made by the sandbox itself"));
    }
    // Neither one of them, nor what lies in one, nor what holds one.
    let secret = |secret: &&&str| path.starts_with(secret) || Path::new(secret).starts_with(&path);
    match SECRETS.iter().find(secret) {
        Some(secret) => Err(format!(
            "it would show `{secret}`; name what is needed alone"
        )),
        None => Ok(path),
    }
}

/// Whether it could be a password or a key: nobody is shown it.
pub fn may_be_secret(text: &str) -> bool {
    let is_plain = |c: char| c.is_alphanumeric() || "/.:_-*,[] ".contains(c);
    let words = text.split_whitespace().count();
    // What is as long as a key may be one.
    let is_key = |word: &str| word.len() > MAX_WORD;
    let has_key = text.split(|c: char| !c.is_alphanumeric()).any(is_key);
    text.len() > MAX_SHOWN || words > 1 || !text.chars().all(is_plain) || has_key
}

/// The text, where a problem may show it: what could hold a password or a key is `this`.
pub(super) fn shown(text: &str) -> String {
    if may_be_secret(text) {
        "this".to_owned()
    } else {
        format!("{text:?}")
    }
}

/// A program argument or an environment value.
pub(super) fn no_null(text: &str) -> Result<String, String> {
    if text.contains('\0') {
        Err("there must be no null byte".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

/// Text that is compared with claims.
pub(super) fn not_empty(text: &str) -> Result<String, String> {
    if text.is_empty() {
        Err("must not be empty".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

/// A scope (RFC 6749 §3.3).
pub(super) fn scope(text: &str) -> Result<String, String> {
    if !text.is_empty()
        && text
            .bytes()
            .all(|byte| matches!(byte, 0x21 | 0x23..=0x5B | 0x5D..=0x7E))
    {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "{text:?} is no scope: no spaces, quotes or backslashes, one a string"
        ))
    }
}

/// A point in time (RFC 3339, UTC), in seconds since 1970.
pub(super) fn point_in_time(text: &str) -> Result<u64, String> {
    humantime::parse_rfc3339(text)
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
        .map(|since| since.as_secs())
        .ok_or(format!(
            "{text:?} is not a time such as \"2026-11-25T10:00:00Z\""
        ))
}

/// The name of a systemd credential: a file name (systemd.exec(5)).
pub fn credential(text: &str) -> Result<String, String> {
    let legal = !text.is_empty()
        && text.len() <= 255
        && text != "."
        && text != ".."
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if legal {
        Ok(text.to_owned())
    } else {
        // Who writes the secret itself here has it in the journal else.
        Err("this is no name of a credential: letters, digits, `-`, `_` and `.`".to_owned())
    }
}

/// A block of addresses, or one.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let wrong = || format!("{text:?} is not an address block such as \"10.0.0.0/8\"");
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.into());
    }
    let network: IpNet = text.parse().map_err(|_| wrong())?;
    if network.trunc() == network {
        Ok(network)
    } else {
        Err(format!(
            "{text:?} is within a block; write \"{}\"",
            network.trunc()
        ))
    }
}

/// A signature algorithm by its JOSE name.
pub(super) fn algorithm(text: &str) -> Result<String, String> {
    if ALGORITHMS.contains(&text) {
        Ok(text.to_owned())
    } else if text == "none" || text.starts_with("HS") {
        Err(format!(
            "`{text}` proves nothing about the issuer; use one of {}",
            ALGORITHMS.join(", ")
        ))
    } else {
        Err(format!("{text:?} is none of {}", ALGORITHMS.join(", ")))
    }
}

/// The name of a sandbox layer that may be missing.
pub(super) fn layer(text: &str) -> Result<Layer, String> {
    let known = Layer::ALL.into_iter().find(|layer| layer.name() == text);
    match known {
        Some(layer) if layer.may_be_missing() => Ok(layer),
        Some(layer) => Err(format!(
            "{:?} is what all the others stand on: it is always required",
            layer.name()
        )),
        None => {
            let optional: Vec<_> = Layer::ALL
                .into_iter()
                .filter(|layer| layer.may_be_missing())
                .map(Layer::name)
                .collect();
            Err(one_of(text, &optional, &[]))
        }
    }
}

/// Whom one child serves.
pub(super) fn scope_of_child(text: &str) -> Result<Scope, String> {
    named(text, Scope::ALL, Scope::name)
}

/// A profile of system calls.
pub(super) fn profile(text: &str) -> Result<Seccomp, String> {
    named(text, Seccomp::ALL, Seccomp::name)
}

/// A named addition to a profile.
pub(super) fn addition(text: &str) -> Result<Addition, String> {
    named(text, Addition::ALL, Addition::name)
}

/// The one of `all` that has this name.
fn named<T: Copy, const N: usize>(
    text: &str,
    all: [T; N],
    name: fn(T) -> &'static str,
) -> Result<T, String> {
    all.into_iter()
        .find(|one| name(*one) == text)
        .ok_or_else(|| one_of(text, &all.map(name), &[]))
}

/// How long a start may take: the gateway's own patience ends at [`MAX_START`].
pub(super) fn start_timeout(text: &str) -> Result<Duration, String> {
    let time = positive_duration(text)?;
    if time <= MAX_START {
        Ok(time)
    } else {
        Err(
            "a start takes at most 25s; what a server does before it answers is not meant"
                .to_owned(),
        )
    }
}

/// Bytes a second; less than one line at most would stall a lawful answer for long.
pub(super) fn output_rate(text: &str) -> Result<u64, String> {
    let bytes = size(text)?;
    if bytes >= MIN_OUTPUT {
        Ok(bytes)
    } else {
        Err("an output rate is at least 64K a second".to_owned())
    }
}

/// One word of `now`; those of `later` are for later versions.
pub(super) fn word(
    text: &str,
    now: &[&'static str],
    later: &[&str],
) -> Result<&'static str, String> {
    now.iter()
        .find(|word| **word == text)
        .copied()
        .ok_or_else(|| one_of(text, now, later))
}

fn one_of(text: &str, now: &[&str], later: &[&str]) -> String {
    if later.contains(&text) {
        return format!("{text:?} is {NOT_YET}");
    }
    if let [only] = now {
        return format!("{text:?} is not known here: the one word is {only:?}");
    }
    let choice = now
        .iter()
        .map(|word| format!("{word:?}"))
        .collect::<Vec<_>>()
        .join(", ");
    match nearest(text, now) {
        Some(near) => format!("{text:?} is none of {choice}; did you mean {near:?}?"),
        None => format!("{text:?} is none of {choice}"),
    }
}

fn digits_only(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().ok()
    } else {
        None
    }
}

/// What may sign a token, where the configuration does not say: everything asymmetric.
pub(super) const ALGORITHMS: &[&str] = &[
    "RS256", "RS384", "PS256", "PS384", "ES256", "ES384", "EdDSA", "Ed25519",
];

const OWN_PLACES: &[&str] = &["/dev", "/proc", "/sys"];
/// What no server is shown: passwords, other servers' files, and sockets that run commands.
const SECRETS: &[&str] = &[
    "/etc/gshadow",
    "/etc/shadow",
    "/etc/thv",
    "/run/credentials",
    "/run/dbus",
    "/run/systemd",
    "/run/thv",
    "/var/lib/private",
];

const MAX_LEEWAY: Duration = Duration::from_secs(5 * 60);
const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 60 * 60);
const MIN_SIZE: u64 = 1 << 10;
const MAX_SIZE: u64 = 16 << 40;
const MAX_START: Duration = Duration::from_secs(25);
const MIN_OUTPUT: u64 = 64 << 10;
/// Bytes of a text that a problem shows.
const MAX_SHOWN: usize = 128;
/// The same without anything between them.
const MAX_WORD: usize = 30;
const MAX_BODY: u64 = 64 << 20;
/// Bytes of a server's message that may always be.
const MIN_MESSAGE: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    /// probe-1: no path shows a secret, by itself or by what holds it.
    #[test]
    fn what_no_server_is_shown_cannot_be_named() {
        for secret in [
            "/etc",
            "/etc/shadow",
            "/etc/thv/servers",
            "/run",
            "/run/systemd",
            "/var",
            "/var/lib/private/x",
        ] {
            assert!(shown_path(secret).is_err(), "{secret}");
        }
        for fine in [
            "/srv/repos",
            "/etc/ssl",
            "/var/lib/git",
            "/run/x",
            "/etcetera",
        ] {
            assert!(shown_path(fine).is_ok(), "{fine}");
        }
    }

    #[test]
    fn time_spans_have_units() {
        assert_eq!(duration("5min"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        for bad in ["", "5", "min", "-1s", "5 parsecs", "400days"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert!(positive_duration("0s").is_err());
        assert_eq!(leeway("5min"), Ok(Duration::from_secs(300)));
        assert!(leeway("301s").is_err());
    }

    #[test]
    fn sizes_are_powers_of_1024_and_bounded() {
        assert_eq!(size("512M"), Ok(512 << 20));
        assert_eq!(size("4096"), Ok(4096));
        for bad in [
            "",
            "M",
            "1.5G",
            "+5K",
            "512m",
            "512 M",
            "512MB",
            "1",
            "17T",
            "99999999999999999999",
        ] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert_eq!(body_size("64M"), Ok(64 << 20));
        assert!(body_size("65M").is_err());
        assert_eq!(message_size("64K"), Ok(64 << 10));
        assert!(message_size("63K").is_err() && message_size("65M").is_err());
        assert_eq!(percent("250%"), Ok(250));
        for bad in ["100", "0%", "%", "1.5%", "-1%"] {
            assert!(percent(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_are_absolute_and_plain() {
        assert_eq!(
            absolute_path("/srv/repos/"),
            Ok(PathBuf::from("/srv/repos"))
        );
        for bad in ["", "srv", "/a/../b", "/a/./b", "/a\0b", "/a\nb"] {
            assert!(absolute_path(bad).is_err(), "{bad:?}");
        }
        assert!(shown_path("/srv").is_ok());
        assert!(shown_path("/process").is_ok());
        for bad in ["/", "//", "/proc", "/proc/1", "/dev/sda", "/sys/fs"] {
            assert!(shown_path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn symmetric_and_absent_signatures_are_refused_by_name() {
        assert!(algorithm("ES256").is_ok());
        for bad in ["none", "HS256", "RS512", "rs256", ""] {
            assert!(algorithm(bad).is_err(), "{bad}");
        }
    }
}
