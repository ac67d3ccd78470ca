//! The system call filter: commented data to BPF (seccomp(2)).

use seccompiler::{BpfProgram, TargetArch, compile_from_json};
use serde::Deserialize;
use serde_json::{Value, json};

/// The compiled filter. Made once, applied to every child.
pub struct Filter {
    /// Innermost first: of two that say no, the one applied last is heard.
    programs: [BpfProgram; 2],
}

/// Why the filter cannot be compiled: a fault of this build, or an architecture that it is not for.
#[derive(Debug, thiserror::Error)]
#[error("the system call filter cannot be compiled: {0}")]
pub struct FilterError(String);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Profile {
    allow: Vec<Group>,
    refuse: Vec<Group>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    /// For whoever reads the file; required.
    #[allow(dead_code, reason = "its presence is what counts")]
    why: String,
    calls: Vec<String>,
    #[serde(default)]
    arch: Vec<String>,
    #[serde(default)]
    when: Vec<Vec<Comparison>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Comparison {
    argument: u8,
    is: Option<u64>,
    is_not: Option<u64>,
    has: Option<u64>,
}

impl Filter {
    /// Compiles the profile `default` for this machine.
    pub fn compile() -> Result<Self, FilterError> {
        let wrong = |error: &dyn std::fmt::Display| FilterError(error.to_string());
        let profile: Profile = toml::from_str(DEFAULT).map_err(|error| wrong(&error))?;
        let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| wrong(&error))?;
        let allow = json!({ "filter": {
            "mismatch_action": { "errno": libc::ENOSYS }, "match_action": "allow", "filter": rules(&profile.allow),
        } });
        let refuse = json!({ "filter": {
            "mismatch_action": "allow", "match_action": { "errno": libc::EPERM }, "filter": rules(&profile.refuse),
        } });
        let program = |filter: Value| {
            let mut programs = compile_from_json(filter.to_string().as_bytes(), arch)
                .map_err(|error| wrong(&error))?;
            programs
                .remove("filter")
                .ok_or_else(|| FilterError("no program".to_owned()))
        };
        Ok(Self {
            programs: [program(allow)?, program(refuse)?],
        })
    }

    /// Binds this thread, and what it execs, for good.
    pub(super) fn apply(&self) -> Result<(), seccompiler::Error> {
        self.programs
            .iter()
            .try_for_each(|program| seccompiler::apply_filter(program))
    }
}

fn rules(groups: &[Group]) -> Vec<Value> {
    let mut rules = Vec::new();
    for group in groups.iter().filter(|group| {
        group.arch.is_empty() || group.arch.iter().any(|arch| arch == std::env::consts::ARCH)
    }) {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_profile_compiles_and_fits() {
        let filter = Filter::compile().unwrap();
        // The kernel takes 4096 instructions (seccomp(2)).
        assert!(filter.programs.iter().all(|program| program.len() < 4096));
    }

    #[test]
    fn no_call_is_both_allowed_and_refused_whatever_its_arguments() {
        let profile: Profile = toml::from_str(DEFAULT).unwrap();
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
