//! The system call filter: commented data to BPF (seccomp(2)).

use std::collections::BTreeSet;

use seccompiler::{BpfProgram, TargetArch, compile_from_json};
use serde::Deserialize;
use serde_json::{Value, json};

use super::bpf;
use crate::config::{Addition, Seccomp};

/// The compiled filter. Made once for each configuration, applied to every child.
pub struct Filter {
    program: BpfProgram,
}

/// Why the filter cannot be compiled: a fault of this build, or an architecture that it is not for.
#[derive(Debug, thiserror::Error)]
#[error("the system call filter cannot be compiled: {0}")]
pub struct FilterError(String);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Profile {
    #[serde(default)]
    pub(super) allow: Vec<Group>,
    pub(super) refuse: Vec<Group>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Additions {
    addition: Vec<Named>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    name: String,
    #[allow(dead_code, reason = "its presence is what counts")]
    why: String,
    calls: Vec<String>,
    /// What the runner's unit needs besides, for whoever reads the file.
    #[allow(dead_code, reason = "its presence is what counts")]
    unit: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Group {
    /// For whoever reads the file; required.
    #[allow(dead_code, reason = "its presence is what counts")]
    why: String,
    pub(super) calls: Vec<String>,
    #[serde(default)]
    pub(super) arch: Vec<String>,
    #[serde(default)]
    pub(super) when: Vec<Vec<Comparison>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Comparison {
    pub(super) argument: u8,
    pub(super) is: Option<u64>,
    pub(super) is_not: Option<u64>,
    pub(super) has: Option<u64>,
}

impl FilterError {
    pub(super) fn of(why: String) -> Self {
        Self(why)
    }
}

/// The data of a profile with its additions.
pub(super) fn profile(profile: Seccomp, additions: &[Addition]) -> Result<Profile, FilterError> {
    read(profile, additions).map_err(|error| FilterError(error.to_string()))
}

impl Filter {
    /// Compiles a profile and its additions for this machine.
    pub fn compile((profile, additions): (Seccomp, &[Addition])) -> Result<Self, FilterError> {
        let machine = std::env::consts::ARCH;
        // To compile takes a runner longer than all else that it does before a child, and most
        // servers have this one.
        if profile == Seccomp::Default
            && additions.is_empty()
            && let Some(program) = compiled(machine).and_then(bpf::read)
        {
            return Ok(Self { program });
        }
        Self::compile_for(profile, additions, machine)
    }

    fn compile_for(
        profile: Seccomp,
        additions: &[Addition],
        machine: &str,
    ) -> Result<Self, FilterError> {
        let [allow, refuse] = programs_for(profile, additions, machine)?;
        let short = |(whole, rest): (BpfProgram, BpfProgram)| bpf::shorten(&whole, &rest);
        Ok(Self {
            // What is refused first: of two that say no, the refusal is heard.
            program: bpf::one_after_another(&short(refuse), &short(allow)),
        })
    }

    /// Binds this thread, and what it execs, for good.
    pub(super) fn apply(&self) -> Result<(), seccompiler::Error> {
        seccompiler::apply_filter(&self.program)
    }
}

/// What the default profile compiles to, where that was written down; a test compares.
fn compiled(machine: &str) -> Option<&'static str> {
    match machine {
        "x86_64" => Some(include_str!("filters/default.x86_64.bpf")),
        "aarch64" => Some(include_str!("filters/default.aarch64.bpf")),
        _ => None,
    }
}

/// What allows and what refuses, each whole, and again for those calls alone whose arguments matter.
pub(super) fn programs_for(
    profile: Seccomp,
    additions: &[Addition],
    machine: &str,
) -> Result<[(BpfProgram, BpfProgram); 2], FilterError> {
    let wrong = |error: &dyn std::fmt::Display| FilterError(error.to_string());
    let profile = read(profile, additions).map_err(|error| wrong(&error))?;
    let arch = TargetArch::try_from(machine).map_err(|error| wrong(&error))?;
    let program = |mismatch: &Value, matched: &Value, rules: &[Value]| {
        let filter = json!({ "filter": {
            "mismatch_action": mismatch, "match_action": matched, "filter": rules,
        } });
        let mut programs = compile_from_json(filter.to_string().as_bytes(), arch)
            .map_err(|error| wrong(&error))?;
        programs
            .remove("filter")
            .ok_or_else(|| FilterError("no program".to_owned()))
    };
    let both = |groups: &[Group], mismatch: Value, matched: Value| {
        let whole = rules(groups, machine);
        let with_arguments: BTreeSet<String> = whole
            .iter()
            .filter(|rule| rule.get("args").is_some())
            .map(|rule| rule["syscall"].to_string())
            .collect();
        let rest: Vec<Value> = whole
            .iter()
            .filter(|rule| with_arguments.contains(&rule["syscall"].to_string()))
            .cloned()
            .collect();
        let program = |rules: &[Value]| program(&mismatch, &matched, rules);
        Ok::<_, FilterError>((program(&whole)?, program(&rest)?))
    };
    let allow = json!("allow");
    let error = |number: i32| json!({ "errno": number });
    Ok([
        both(&profile.allow, error(libc::ENOSYS), allow.clone())?,
        both(&profile.refuse, allow, error(libc::EPERM))?,
    ])
}

/// A profile with its additions: what these name is no longer refused, but allowed.
fn read(profile: Seccomp, additions: &[Addition]) -> Result<Profile, toml::de::Error> {
    let mut whole: Profile = toml::from_str(DEFAULT)?;
    match profile {
        Seccomp::Default => {}
        Seccomp::Strict => whole
            .refuse
            .extend(toml::from_str::<Profile>(STRICT)?.refuse),
    }
    let known: Additions = toml::from_str(ADDITIONS)?;
    for named in known.addition {
        if additions
            .iter()
            .all(|addition| addition.name() != named.name)
        {
            continue;
        }
        for group in &mut whole.refuse {
            group.calls.retain(|call| !named.calls.contains(call));
        }
        whole.allow.push(Group {
            why: named.why,
            calls: named.calls,
            arch: Vec::new(),
            when: Vec::new(),
        });
    }
    Ok(whole)
}

fn rules(groups: &[Group], machine: &str) -> Vec<Value> {
    let mut rules = Vec::new();
    for group in groups
        .iter()
        .filter(|group| group.arch.is_empty() || group.arch.iter().any(|arch| arch == machine))
    {
        for call in &group.calls {
            if group.when.is_empty() {
                rules.push(json!({ "syscall": call }));
            }
            for all in &group.when {
                let args: Vec<Value> = all.iter().flat_map(comparisons).collect();
                rules.push(json!({ "syscall": call, "args": args }));
            }
        }
    }
    rules
}

fn comparisons(comparison: &Comparison) -> impl Iterator<Item = Value> {
    let compare = |op: Value, value: Option<u64>| {
        value.map(|value| json!({ "index": comparison.argument, "type": "dword", "op": op, "val": value }))
    };
    let has = comparison
        .has
        .map_or(Value::Null, |bits| json!({ "masked_eq": bits }));
    [
        compare(json!("eq"), comparison.is),
        compare(json!("ne"), comparison.is_not),
        compare(has, comparison.has),
    ]
    .into_iter()
    .flatten()
}

const DEFAULT: &str = include_str!("filters/default.toml");
const STRICT: &str = include_str!("filters/strict.toml");
const ADDITIONS: &str = include_str!("filters/additions.toml");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_compiles_and_fits_on_every_machine() {
        for machine in ["x86_64", "aarch64"] {
            for profile in Seccomp::ALL {
                for additions in [&[][..], &Addition::ALL] {
                    let filter = Filter::compile_for(profile, additions, machine)
                        .unwrap_or_else(|error| panic!("{machine} {profile:?}: {error}"));
                    // The kernel takes 4096 instructions (seccomp(2)).
                    assert!(filter.program.len() < 4096);
                }
            }
        }
        assert!(Filter::compile_for(Seccomp::Default, &[], "sparc").is_err());
    }

    #[test]
    fn the_default_profile_is_the_one_that_was_compiled_ahead() {
        for machine in ["x86_64", "aarch64"] {
            let filter = Filter::compile_for(Seccomp::Default, &[], machine).unwrap();
            let compiled = compiled(machine).unwrap();
            let written = bpf::write(&filter.program);
            assert!(
                compiled == written,
                "put this into src/sandbox/filters/default.{machine}.bpf:\n{written}"
            );
        }
        let own = Filter::compile((Seccomp::Default, &[])).unwrap();
        let compiled = Filter::compile_for(Seccomp::Default, &[], std::env::consts::ARCH).unwrap();
        assert_eq!(own.program, compiled.program);
        // All else is compiled.
        let strict = Filter::compile((Seccomp::Strict, &[])).unwrap();
        let with = Filter::compile((Seccomp::Default, &Addition::ALL)).unwrap();
        assert!(strict.program != own.program && with.program != own.program);
    }

    #[test]
    fn an_addition_lets_through_what_the_profile_refuses_and_no_more() {
        let known: Additions = toml::from_str(ADDITIONS).unwrap();
        let names: Vec<_> = known
            .addition
            .iter()
            .map(|named| named.name.as_str())
            .collect();
        assert_eq!(names, Addition::ALL.map(Addition::name));
        let plain: Profile = read(Seccomp::Default, &[]).unwrap();
        let refused = |profile: &Profile, call: &String| {
            profile
                .refuse
                .iter()
                .any(|group| group.calls.contains(call))
        };
        for named in &known.addition {
            for call in &named.calls {
                assert!(refused(&plain, call), "{call} is not refused without it");
            }
        }
        let with = read(Seccomp::Default, &[Addition::Numa]).unwrap();
        assert!(!refused(&with, &"mbind".to_owned()) && refused(&with, &"ptrace".to_owned()));
    }

    #[test]
    fn no_call_is_both_allowed_and_refused_whatever_its_arguments() {
        let profile: Profile = read(Seccomp::Default, &[]).unwrap();
        let allowed: BTreeSet<_> = profile
            .allow
            .iter()
            .flat_map(|group| &group.calls)
            .collect();
        let refused = profile
            .refuse
            .iter()
            .filter(|group| group.when.is_empty())
            .flat_map(|group| &group.calls);
        for call in refused {
            assert!(!allowed.contains(call), "{call}");
        }
        assert!(
            !allowed.contains(&"clone3".to_owned()),
            "its flags cannot be looked at"
        );
    }
}
