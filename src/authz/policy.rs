//! Policy files → policies with the names that auditors see, or every problem in them.
//!
//! Strict: what does not fit the schema is refused at load, warnings included,
//! because a policy that fails while it is evaluated is skipped by Cedar, and a
//! skipped `forbid` permits (cedar-1). Reads no files: `config` did.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    str::FromStr,
    thread,
};

use cedar_policy::{Policy, PolicyId, PolicySet, Schema, ValidationMode, Validator, ffi::DetailedError};

use crate::config::PolicyFile;

/// One thing that is wrong with a policy file.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{}:{line}:{column}: {message}", file.display())]
pub struct PolicyProblem {
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    pub message: String,
}

impl PolicyProblem {
    fn at(file: &PolicyFile, offset: usize, message: String) -> Self {
        // Cedar's offsets are bytes; one that is no character boundary counts as the start of the file.
        let before = file.text.get(..offset.min(file.text.len())).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Self {
            file: file.path.clone(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message,
        }
    }

    fn of(file: &PolicyFile, error: DetailedError) -> Self {
        let offset = error.source_locations.first().map_or(0, |label| label.loc.start);
        let mut message = error.message;
        if let Some(label) = error.source_locations.into_iter().find_map(|label| label.label) {
            message = format!("{message} ({label})");
        }
        if let Some(help) = error.help {
            message = format!("{message}; {help}");
        }
        Self::at(file, offset, message)
    }
}

/// The schema that every policy must fit.
pub(super) fn schema() -> Schema {
    Schema::from_str(include_str!("thv.cedarschema")).expect("the schema is a constant, and a test reads it")
}

/// Reads every file, or says everything that is wrong in any of them.
pub(super) fn read(files: &[PolicyFile]) -> Result<Vec<Policy>, Vec<PolicyProblem>> {
    // Cedar parses and validates recursively: on a stack whose size does not
    // depend on who calls (cedar-8).
    thread::scope(|scope| {
        thread::Builder::new()
            .name("policies".to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, || read_here(files))
            .map_err(|error| {
                let file = files.first().map_or_else(PathBuf::new, |file| file.path.clone());
                vec![PolicyProblem { file, line: 1, column: 1, message: format!("no thread to read policies on: {error}") }]
            })?
            .join()
            .expect("reading policies returns its errors")
    })
}

fn read_here(files: &[PolicyFile]) -> Result<Vec<Policy>, Vec<PolicyProblem>> {
    let validator = Validator::new(schema());
    let mut problems = Vec::new();
    let mut policies = Vec::new();
    let mut names: HashMap<String, &Path> = HashMap::new();
    for file in files {
        match parse(file) {
            Ok(set) => {
                problems.extend(check(&validator, file, &set));
                for policy in ordered(&set) {
                    match rename(file, policy) {
                        Ok(policy) => {
                            let name = policy.id().to_string();
                            match names.insert(name, &file.path) {
                                None => policies.push(policy),
                                Some(other) => problems.push(PolicyProblem::at(file, start(&policy), twice(&policy, other))),
                            }
                        }
                        Err(problem) => problems.push(problem),
                    }
                }
            }
            Err(found) => problems.extend(found),
        }
    }
    if problems.is_empty() { Ok(policies) } else { Err(problems) }
}

fn parse(file: &PolicyFile) -> Result<PolicySet, Vec<PolicyProblem>> {
    if file.text.len() > MAX_FILE {
        let message = format!("the file has {} bytes; at most {MAX_FILE} are read", file.text.len());
        return Err(vec![PolicyProblem::at(file, 0, message)]);
    }
    if let Some(offset) = too_deep(&file.text) {
        let message = format!("nested deeper than {MAX_NESTING} or longer than {MAX_OPERATORS} operators in one policy");
        return Err(vec![PolicyProblem::at(file, offset, message)]);
    }
    let set = PolicySet::from_str(&file.text).map_err(|errors| {
        errors.iter().map(|error| PolicyProblem::of(file, DetailedError::from(error))).collect::<Vec<_>>()
    })?;
    if let Some(template) = set.templates().next() {
        let offset = template.as_ref().loc().map_or(0, |loc| loc.start());
        let message = "a template (`?principal`, `?resource`) decides nothing here: write the policy out".to_owned();
        return Err(vec![PolicyProblem::at(file, offset, message)]);
    }
    if set.is_empty() {
        // Also what a half-written file looks like.
        let message = "no policy in this file: write one, or take the file out of [authz] policies".to_owned();
        return Err(vec![PolicyProblem::at(file, 0, message)]);
    }
    Ok(set)
}

fn check(validator: &Validator, file: &PolicyFile, set: &PolicySet) -> Vec<PolicyProblem> {
    let result = validator.validate(set, ValidationMode::Strict);
    let errors = result.validation_errors().map(DetailedError::from);
    let warnings = result.validation_warnings().map(DetailedError::from);
    let mut problems: Vec<_> = errors.chain(warnings).map(|error| PolicyProblem::of(file, error)).collect();
    problems.sort_by_key(|problem| (problem.line, problem.column));
    problems
}

/// The policies in the order they stand in the file.
fn ordered(set: &PolicySet) -> Vec<&Policy> {
    let mut policies: Vec<_> = set.policies().collect();
    policies.sort_by_key(|policy| start(policy));
    policies
}

fn start(policy: &Policy) -> usize {
    policy.as_ref().loc().map_or(0, |loc| loc.start())
}

/// Gives a policy the name that records carry: `FILE-STEM:ID`, where ID is its
/// `@id` annotation or what Cedar calls it (`policy0`, in order).
fn rename(file: &PolicyFile, policy: &Policy) -> Result<Policy, PolicyProblem> {
    let id = match policy.annotation("id") {
        Some(id) if id.is_empty() || id.len() > MAX_ID || id.chars().any(char::is_control) => {
            let message = format!("@id must be 1 to {MAX_ID} bytes without control characters");
            return Err(PolicyProblem::at(file, start(policy), message));
        }
        Some(id) => id.to_owned(),
        None => policy.id().to_string(),
    };
    let stem = file.path.file_stem().unwrap_or_default().to_string_lossy();
    Ok(policy.new_id(PolicyId::new(format!("{stem}:{id}"))))
}

fn twice(policy: &Policy, other: &Path) -> String {
    format!("the policy name `{}` is taken already, in {}: give it another @id, or the file another name", policy.id(), other.display())
}

/// Where a text nests too deeply, or one policy has too many operators for
/// recursive code. Looks at characters only; strings and comments do not count.
fn too_deep(text: &str) -> Option<usize> {
    let (mut depth, mut operators) = (0_usize, 0_usize);
    let mut bytes = text.bytes().enumerate().peekable();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => {
                while let Some((_, inner)) = bytes.next() {
                    match inner {
                        b'\\' => drop(bytes.next()),
                        b'"' => break,
                        _ => {}
                    }
                }
            }
            b'/' if bytes.peek().is_some_and(|(_, next)| *next == b'/') => {
                while bytes.next_if(|(_, inner)| *inner != b'\n').is_some() {}
            }
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            b';' => (depth, operators) = (0, 0),
            // Each of these can make an expression one level deeper: a || b, a.b, a + b, -a, !a, a == b, if … then.
            b'|' | b'&' | b'.' | b'+' | b'-' | b'*' | b'!' | b'<' | b'>' | b'=' => operators += 1,
            b't' if text[at..].starts_with("then") => operators += 1,
            b'i' if text[at..].starts_with("in ") || text[at..].starts_with("is ") => operators += 1,
            b'h' if text[at..].starts_with("has ") => operators += 1,
            b'l' if text[at..].starts_with("like ") => operators += 1,
            _ => {}
        }
        if depth > MAX_NESTING || operators > MAX_OPERATORS {
            return Some(at);
        }
    }
    None
}

/// Stack for Cedar's recursive parser and validator.
const STACK: usize = 8 << 20;
/// Bytes of one policy file.
const MAX_FILE: usize = 1 << 20;
/// Brackets within brackets.
const MAX_NESTING: usize = 48;
/// Operators of one policy.
const MAX_OPERATORS: usize = 4_000;
/// Bytes of an `@id`.
const MAX_ID: usize = 128;
