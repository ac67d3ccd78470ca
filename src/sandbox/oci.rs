//! The profile of system calls as OCI runtimes read it (OCI runtime specification, Seccomp).
//!
//! The same data as for our own filter, in one list: a runtime's rules for one call must
//! not contradict each other, and one rule compares an argument once. So what is allowed
//! and not refused is taken apart into rules of masked comparisons, each of one argument
//! once, which none of the refusing ones meets.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::filter::{Comparison, FilterError, Group, profile};
use crate::config::{Addition, Seccomp};

/// What some calls are asked with: of each argument, which bits count and what they are.
/// An argument that is not named is any.
type Cube = BTreeMap<u8, (u32, u32)>;

/// The profile with its additions, for the machine this is built for.
pub fn oci((profile, additions): (Seccomp, &[Addition])) -> Result<String, FilterError> {
    oci_for(profile, additions, std::env::consts::ARCH)
}

fn oci_for(wanted: Seccomp, additions: &[Addition], machine: &str) -> Result<String, FilterError> {
    let profile = profile(wanted, additions)?;
    let architecture = match machine {
        "x86_64" => "SCMP_ARCH_X86_64",
        "aarch64" => "SCMP_ARCH_AARCH64",
        other => return Err(FilterError::of(format!("`{other}` is not known"))),
    };
    let here =
        |group: &&Group| group.arch.is_empty() || group.arch.iter().any(|arch| arch == machine);
    let allow: Vec<_> = profile.allow.iter().filter(here).collect();
    let refuse: Vec<_> = profile.refuse.iter().filter(here).collect();
    let calls: BTreeSet<&String> = allow
        .iter()
        .chain(&refuse)
        .flat_map(|group| &group.calls)
        .collect();
    // Calls whose arguments do not matter are one rule for each answer.
    let (mut free, mut refused) = (Vec::new(), Vec::new());
    let mut rules = Vec::new();
    for call in calls {
        let allowed = region(&allow, call);
        let not_allowed = region(&refuse, call);
        let let_through = and(&allowed, &complement(&refuse, call));
        match (is_all(&let_through), is_all(&not_allowed)) {
            (true, _) => free.push(call),
            (false, true) => refused.push(call),
            (false, false) => {
                rules.extend(let_through.iter().map(|cube| rule(&[call], cube, ALLOW)));
                rules.extend(not_allowed.iter().map(|cube| rule(&[call], cube, REFUSE)));
            }
        }
    }
    let mut all = vec![
        rule(&free, &Cube::new(), ALLOW),
        rule(&refused, &Cube::new(), REFUSE),
    ];
    all.extend(rules);
    let profile = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": libc::ENOSYS,
        // Not those of the same machine's other ways to call: they end the process.
        "architectures": [architecture],
        "syscalls": all,
    });
    Ok(profile.to_string())
}

fn rule(calls: &[&String], cube: &Cube, action: &str) -> Value {
    let args: Vec<Value> = cube
        .iter()
        .map(|(index, (mask, value))| {
            json!({ "index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ" })
        })
        .collect();
    let mut rule = json!({ "names": calls, "action": action, "args": args });
    if action == REFUSE {
        rule["errnoRet"] = libc::EPERM.into();
    }
    rule
}

/// Where any of the groups speaks of a call.
fn region(groups: &[&Group], call: &str) -> Vec<Cube> {
    let mut region = Vec::new();
    for group in groups.iter().filter(|group| names(group, call)) {
        if group.when.is_empty() {
            return vec![Cube::new()];
        }
        for all in &group.when {
            let truths = all.iter().flat_map(truth);
            region.extend(truths.fold(vec![Cube::new()], |so_far, one| and(&so_far, &one)));
        }
    }
    least(region)
}

/// Where none of them does.
fn complement(groups: &[&Group], call: &str) -> Vec<Cube> {
    let mut region = vec![Cube::new()];
    for group in groups.iter().filter(|group| names(group, call)) {
        if group.when.is_empty() {
            return Vec::new();
        }
        for all in &group.when {
            // Not all of them: not the first, or not the second …
            let none: Vec<Cube> = all.iter().flat_map(falsehood).collect();
            region = and(&region, &none);
        }
    }
    region
}

fn names(group: &Group, call: &str) -> bool {
    group.calls.iter().any(|known| known == call)
}

/// The ways in which a comparison holds: alternatives for each of its parts.
fn truth(comparison: &Comparison) -> Vec<Vec<Cube>> {
    let at = comparison.argument;
    let mut parts = Vec::new();
    parts.extend(
        comparison
            .is
            .map(|value| vec![cube(at, u32::MAX, low(value))]),
    );
    parts.extend(comparison.is_not.map(|value| all_but(at, low(value))));
    parts.extend(
        comparison
            .has
            .map(|bits| vec![cube(at, low(bits), low(bits))]),
    );
    parts
}

/// The ways in which it does not.
fn falsehood(comparison: &Comparison) -> Vec<Cube> {
    let at = comparison.argument;
    let mut ways = Vec::new();
    ways.extend(
        comparison
            .is
            .into_iter()
            .flat_map(|value| all_but(at, low(value))),
    );
    ways.extend(
        comparison
            .is_not
            .map(|value| cube(at, u32::MAX, low(value))),
    );
    ways.extend(comparison.has.into_iter().flat_map(|bits| {
        let bits = low(bits);
        (0..32)
            .map(|bit| 1_u32 << bit)
            .filter(move |bit| bits & bit != 0)
            .map(move |bit| cube(at, bit, 0))
    }));
    ways
}

/// Every value but one: those that differ first at each bit.
fn all_but(at: u8, value: u32) -> Vec<Cube> {
    (0..32)
        .map(|bit| {
            let mask = u32::MAX << bit;
            cube(at, mask, (value ^ (1 << bit)) & mask)
        })
        .collect()
}

fn cube(at: u8, mask: u32, value: u32) -> Cube {
    Cube::from([(at, (mask, value))])
}

/// The low 32 bits are what the kernel looks at (CVE-2019-10063).
fn low(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).expect("it was masked")
}

fn and(left: &[Cube], right: &[Cube]) -> Vec<Cube> {
    let both = left
        .iter()
        .flat_map(|left| right.iter().filter_map(move |right| both(left, right)));
    least(both.collect())
}

/// What is in both; nothing where a bit would have to be two things.
fn both(left: &Cube, right: &Cube) -> Option<Cube> {
    let mut merged = left.clone();
    for (at, (mask, value)) in right {
        let (known, bits) = merged.entry(*at).or_insert((0, 0));
        if (*bits ^ value) & *known & mask != 0 {
            return None;
        }
        *known |= mask;
        *bits |= value;
    }
    Some(merged)
}

/// Without those that lie within another.
fn least(mut cubes: Vec<Cube>) -> Vec<Cube> {
    cubes.sort();
    cubes.dedup();
    let within = |inner: &Cube, outer: &Cube| {
        outer.iter().all(|(at, (mask, value))| {
            inner
                .get(at)
                .is_some_and(|(known, bits)| known & mask == *mask && bits & mask == *value)
        })
    };
    let lie_within = |cube: &&Cube| {
        cubes
            .iter()
            .any(|other| other != *cube && within(cube, other))
    };
    cubes
        .iter()
        .filter(|cube| !lie_within(cube))
        .cloned()
        .collect()
}

fn is_all(region: &[Cube]) -> bool {
    region.iter().any(Cube::is_empty)
}

const ALLOW: &str = "SCMP_ACT_ALLOW";
const REFUSE: &str = "SCMP_ACT_ERRNO";

#[cfg(test)]
mod tests {
    use super::*;

    /// What a runtime's filter answers: the first rule whose comparisons hold.
    fn answer(profile: &Value, call: &str, arguments: &[(u64, u64)]) -> Option<&'static str> {
        let holds = |rule: &&Value| {
            let named = rule["names"]
                .as_array()
                .unwrap()
                .iter()
                .any(|name| name == call);
            named
                && rule["args"].as_array().unwrap().iter().all(|arg| {
                    let of = arguments.iter().find(|(at, _)| *at == arg["index"]);
                    let value = of.map_or(0, |(_, value)| *value);
                    value & arg["value"].as_u64().unwrap() == arg["valueTwo"].as_u64().unwrap()
                })
        };
        let rules = profile["syscalls"].as_array().unwrap();
        let answers: BTreeSet<_> = rules
            .iter()
            .filter(holds)
            .map(|rule| rule["action"].as_str().unwrap())
            .collect();
        assert!(
            answers.len() < 2,
            "{call} {arguments:?}: rules contradict each other"
        );
        answers.into_iter().next().map(|action| match action {
            ALLOW => "allow",
            _ => "refuse",
        })
    }

    fn exported(seccomp: Seccomp, additions: &[Addition]) -> Value {
        serde_json::from_str(&oci_for(seccomp, additions, "x86_64").unwrap()).unwrap()
    }

    #[test]
    fn the_exported_profile_answers_as_the_data_says() {
        let plain = exported(Seccomp::Default, &[]);
        let high = 1_u64 << 32;
        for (call, arguments, wanted) in [
            ("read", &[][..], Some("allow")),
            ("mount", &[], Some("refuse")),
            ("no_such_call", &[], None),
            ("clone3", &[], None),
            ("socket", &[(0, 1)], Some("allow")),
            ("socket", &[(0, 2), (2, 6)], Some("allow")),
            ("socket", &[(0, 16), (2, 0)], Some("allow")),
            ("socket", &[(0, 16), (2, 9)], Some("refuse")),
            ("socket", &[(0, 38)], Some("refuse")),
            ("socket", &[(0, 17)], Some("refuse")),
            ("socketpair", &[(0, 1)], Some("allow")),
            ("socketpair", &[(0, 2)], Some("refuse")),
            // probe-39: the high half is not looked at.
            ("ioctl", &[(1, 0x5412)], Some("refuse")),
            ("ioctl", &[(1, 0x5412 | high)], Some("refuse")),
            ("ioctl", &[(1, 0x541c)], Some("refuse")),
            ("ioctl", &[(1, 0x5413)], Some("allow")),
            ("ioctl", &[(1, 0)], Some("allow")),
            // probe-20: namespaces, alone and beside other flags.
            ("clone", &[(0, 0x1000_0000)], Some("refuse")),
            ("clone", &[(0, 0x0002_0011)], Some("refuse")),
            ("clone", &[(0, 0x003d_0f00)], Some("allow")),
            ("personality", &[(0, 0)], Some("allow")),
            ("personality", &[(0, 0xffff_ffff)], Some("allow")),
            ("personality", &[(0, 0x0004_0000)], Some("refuse")),
        ] {
            assert_eq!(
                answer(&plain, call, arguments),
                wanted,
                "{call} {arguments:?}"
            );
        }
        let strict = exported(Seccomp::Strict, &[]);
        for (call, arguments, wanted) in [
            ("mmap", &[(2, 5), (3, 2)][..], Some("allow")),
            ("mmap", &[(2, 7), (3, 2)], Some("refuse")),
            ("mmap", &[(2, 5), (3, 0x22)], Some("refuse")),
            ("mprotect", &[(2, 4)], Some("refuse")),
            ("mprotect", &[(2, 3)], Some("allow")),
            ("socket", &[(0, 16)], Some("refuse")),
        ] {
            assert_eq!(
                answer(&strict, call, arguments),
                wanted,
                "{call} {arguments:?}"
            );
        }
        let numa = exported(Seccomp::Default, &[Addition::Numa]);
        assert_eq!(answer(&numa, "mbind", &[]), Some("allow"));
        assert!(oci_for(Seccomp::Default, &[], "sparc").is_err());
    }

    #[test]
    fn the_rules_of_every_profile_are_few() {
        for machine in ["x86_64", "aarch64"] {
            for profile in Seccomp::ALL {
                let text = oci_for(profile, &Addition::ALL, machine).unwrap();
                let rules: Value = serde_json::from_str(&text).unwrap();
                let rules = rules["syscalls"].as_array().unwrap().len();
                assert!(rules < 500, "{machine} {profile:?}: {rules}");
            }
        }
    }
}
