//! Policy files → policies with the names that auditors see, or every problem in them.
//!
//! Strict: what does not fit the schema is refused at load, warnings included,
//! because a policy that fails while it is evaluated is skipped by Cedar, and a
//! skipped `forbid` permits (cedar-1). Reads no files: `config` did.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    str::FromStr,
};

use aws_lc_rs::digest;
use cedar_policy::{
    EntityUid, Policy, PolicyId, PolicySet, Schema, ValidationMode, Validator, ffi::DetailedError,
};

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
        let before = file
            .text
            .get(..offset.min(file.text.len()))
            .unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Self {
            file: file.path.clone(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message,
        }
    }

    fn of(file: &PolicyFile, error: DetailedError) -> Self {
        let offset = error
            .source_locations
            .first()
            .map_or(0, |label| label.loc.start);
        let mut message = error.message;
        if let Some(label) = error
            .source_locations
            .into_iter()
            .find_map(|label| label.label)
        {
            message = format!("{message} ({label})");
        }
        let rest = file.text.get(offset..).unwrap_or_default();
        if let Some(help) = mistaken(&message, rest).or(error.help) {
            message = format!("{message}; {help}");
        }
        Self::at(file, offset, message)
    }
}

/// What to do about what people know from elsewhere and Cedar's own help does not. `rest` begins where the mistake is.
fn mistaken(message: &str, rest: &str) -> Option<String> {
    if message == "invalid token" && rest.starts_with('#') {
        return Some("a comment begins with `//`".to_owned());
    }
    // It would suggest `Prompt`.
    message
        .contains("unrecognized entity type `Group`")
        .then(|| {
            "groups are no entities here: add `when { principal.groups.contains(\"…\") }`"
                .to_owned()
        })
}

/// A principal that a policy names, whether or not there is somebody of that name.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Named {
    /// The policy's name, as records have it.
    pub policy: String,
    /// `TYPE::"ID"`, as Cedar writes it.
    pub uid: String,
    /// The ID alone.
    pub id: String,
}

/// The schema that every policy must fit. Read from its JSON form, which takes half as long.
pub(super) fn schema() -> Schema {
    Schema::from_json_str(include_str!("thv.cedarschema.json"))
        .expect("the schema is a constant, and a test reads it")
}

/// What says that files of these texts have passed: all that the validator's answer depends on.
pub(super) fn vetted(files: &[PolicyFile]) -> String {
    let mut sum = digest::Context::new(&digest::SHA256);
    let cedar = cedar_policy::get_sdk_version().to_string();
    // This crate's version as well: what it refuses besides, and all that Cedar stands on.
    let about = [
        env!("CARGO_PKG_VERSION"),
        VETTING,
        &cedar,
        include_str!("thv.cedarschema.json"),
    ];
    for text in about
        .into_iter()
        .chain(files.iter().map(|file| file.text.as_str()))
    {
        // Lengths first, so that no two sets of texts give the same bytes.
        sum.update(&(text.len() as u64).to_be_bytes());
        sum.update(text.as_bytes());
    }
    let sum = sum.finish();
    sum.as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Reads every file, or says everything that is wrong in any of them. Those that `are_vetted`
/// have been read before, and are not validated again: that takes four times as long as the rest.
pub(super) fn read(
    files: &[PolicyFile],
    are_vetted: bool,
) -> Result<Vec<Policy>, Vec<PolicyProblem>> {
    on_large_stack(|| read_here(files, are_vetted))
}

/// Cedar parses, validates and writes recursively: on a stack whose size does not
/// depend on who calls (cedar-8). Not a thread's: a start would wait for two turns of the
/// processor more.
pub(super) fn on_large_stack<T>(work: impl FnOnce() -> T) -> T {
    stacker::grow(STACK, work)
}

fn read_here(files: &[PolicyFile], are_vetted: bool) -> Result<Vec<Policy>, Vec<PolicyProblem>> {
    let validator = (!are_vetted).then(|| Validator::new(schema()));
    let mut problems = Vec::new();
    let mut policies = Vec::new();
    let mut names: HashMap<String, &Path> = HashMap::new();
    for file in files {
        match parse(file) {
            Ok(set) => {
                if let Some(validator) = &validator {
                    problems.extend(check(validator, file, &set));
                }
                for policy in ordered(&set) {
                    match rename(file, policy) {
                        Ok(policy) => {
                            let name = policy.id().to_string();
                            match names.insert(name, &file.path) {
                                None => policies.push(policy),
                                Some(other) => problems.push(PolicyProblem::at(
                                    file,
                                    start(&policy),
                                    twice(&policy, other),
                                )),
                            }
                        }
                        Err(problem) => problems.push(problem),
                    }
                }
            }
            Err(found) => problems.extend(found),
        }
    }
    if problems.is_empty() {
        Ok(policies)
    } else {
        Err(problems)
    }
}

fn parse(file: &PolicyFile) -> Result<PolicySet, Vec<PolicyProblem>> {
    if file.text.len() > MAX_FILE {
        let message = format!(
            "the file has {} bytes; at most {MAX_FILE} are read",
            file.text.len()
        );
        return Err(vec![PolicyProblem::at(file, 0, message)]);
    }
    if let Some(offset) = too_deep(&file.text) {
        let message = format!(
            "nested deeper than {MAX_NESTING} or longer than {MAX_OPERATORS} operators in one policy"
        );
        return Err(vec![PolicyProblem::at(file, offset, message)]);
    }
    let set = PolicySet::from_str(&file.text).map_err(|errors| {
        errors
            .iter()
            .map(|error| PolicyProblem::of(file, DetailedError::from(error)))
            .collect::<Vec<_>>()
    })?;
    if let Some(template) = set.templates().next() {
        let offset = template.as_ref().loc().map_or(0, |loc| loc.start());
        let message =
            "a template (`?principal`, `?resource`) decides nothing here: write the policy out"
                .to_owned();
        return Err(vec![PolicyProblem::at(file, offset, message)]);
    }
    if set.is_empty() {
        // Also what a half-written file looks like.
        let message = "no policy in this file: write one, or take the file out of [authz] policies"
            .to_owned();
        return Err(vec![PolicyProblem::at(file, 0, message)]);
    }
    Ok(set)
}

fn check(validator: &Validator, file: &PolicyFile, set: &PolicySet) -> Vec<PolicyProblem> {
    let result = validator.validate(set, ValidationMode::Strict);
    let errors = result.validation_errors().map(DetailedError::from);
    let mut problems: Vec<_> = errors.map(|error| PolicyProblem::of(file, error)).collect();
    if problems.is_empty() {
        // Beside an error, a warning mostly says the same again ("impossible").
        let warnings = result.validation_warnings().map(DetailedError::from);
        problems.extend(warnings.map(|warning| PolicyProblem::of(file, warning)));
    }
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
    format!(
        "the policy name `{}` is taken already, in {}: give it another @id, or the file another name",
        policy.id(),
        other.display()
    )
}

/// The principals that are named in policies, whether in their scope or in a condition.
pub(super) fn principals(policies: &[Policy]) -> Vec<Named> {
    let is_principal = |uid: &EntityUid| {
        let kind = uid.type_name();
        kind.namespace().is_empty() && matches!(kind.basename(), "User" | "Client")
    };
    let mut named: Vec<_> = policies
        .iter()
        .flat_map(|policy| {
            let uids = policy.entity_literals().into_iter().filter(is_principal);
            uids.map(|uid| Named {
                policy: policy.id().to_string(),
                uid: uid.to_string(),
                id: uid.id().unescaped().to_owned(),
            })
        })
        .collect();
    named.sort();
    named.dedup();
    named
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
            b'i' if text[at..].starts_with("in ") || text[at..].starts_with("is ") => {
                operators += 1
            }
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

/// How [`check`] asks the validator, and what it refuses; another name when that changes.
const VETTING: &str = "strict, no warnings";
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

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, thread};

    use cedar_policy::{Context, Entities, Request, SchemaFragment};

    use super::*;
    use crate::{
        auth::Kind,
        authz::{
            Engine, entity,
            fixture::{alice, build, engine, file, tool},
        },
        config::{Authz, ServerName},
        mcp::{Target, method},
    };

    /// The file is refused at this place, and the message says this.
    #[track_caller]
    fn refused(text: &str, line: usize, column: usize, says: &str) {
        let problems =
            build(vec![file("/p/x.cedar", text)]).expect_err("the file should be refused");
        let found = problems.iter().any(|problem| {
            (problem.line, problem.column) == (line, column) && problem.message.contains(says)
        });
        assert!(found, "{problems:#?}");
        assert!(
            problems[0].to_string().starts_with("/p/x.cedar:"),
            "{}",
            problems[0]
        );
    }

    #[test]
    fn the_schema_that_is_read_is_the_one_that_is_installed() {
        let (installed, warnings) =
            SchemaFragment::from_cedarschema_str(include_str!("thv.cedarschema")).unwrap();
        assert_eq!(warnings.count(), 0);
        let read: serde_json::Value =
            serde_json::from_str(include_str!("thv.cedarschema.json")).unwrap();
        assert_eq!(
            installed.to_json_value().unwrap(),
            read,
            "`cedar translate-schema --direction cedar-to-json` makes the one of the other"
        );
    }

    #[test]
    fn the_schema_has_exactly_the_methods_that_are_decided() {
        let actions: BTreeSet<String> = schema()
            .actions()
            .map(|action| action.id().unescaped().to_owned())
            .collect();
        assert_eq!(
            actions,
            method::DECIDED
                .iter()
                .map(|method| (*method).to_owned())
                .collect()
        );
        assert_eq!(
            schema().action_groups().count(),
            0,
            "slice::speaks_of relies on it"
        );
    }

    #[test]
    fn the_entities_that_are_built_are_those_of_the_schema() {
        let schema = schema();
        let server = entity::server(&ServerName::parse("github").unwrap());
        for kind in [Kind::User, Kind::Client] {
            for client in [None, Some("ide")] {
                let principal = entity::principal(&alice().with(kind, client, &["g"], &["s"]));
                for (method, target) in [
                    ("tools/call", Target::Tool("x")),
                    ("prompts/get", Target::Prompt("x")),
                    ("resources/read", Target::Resource("x:y")),
                    ("resources/subscribe", Target::Resource("x:y")),
                    ("resources/unsubscribe", Target::Resource("x:y")),
                    ("initialize", Target::Server),
                    ("tools/list", Target::Server),
                ] {
                    let resource = entity::target(&target, &server.uid());
                    let uid = resource.as_ref().unwrap_or(&server).uid();
                    Request::new(
                        principal.uid(),
                        entity::action(method),
                        uid,
                        Context::empty(),
                        Some(&schema),
                    )
                    .unwrap();
                    let all = [principal.clone(), server.clone()]
                        .into_iter()
                        .chain(resource);
                    Entities::from_entities(all, Some(&schema)).unwrap();
                }
            }
        }
    }

    #[test]
    fn a_syntax_error_is_refused_with_its_place() {
        refused(
            "permit (principal, action, resource);\n  permitt (principal, action, resource);",
            2,
            3,
            "either `permit` or `forbid`",
        );
        refused(
            "permit (principal, action, resource)",
            1,
            37,
            "end of input",
        );
        refused(
            "// é\npermit (principal, actiön, resource);",
            2,
            24,
            "invalid token",
        );
        refused(
            "# as in a shell\npermit (principal, action, resource);",
            1,
            1,
            "begins with `//`",
        );
        refused(
            "permit (principal in Group::\"developers\", action, resource);",
            1,
            22,
            "`when { principal.groups.contains(",
        );
    }

    /// cedar-1, cedar-2: what would fail while it is evaluated does not get that far.
    #[test]
    fn a_policy_that_does_not_fit_the_schema_is_refused() {
        refused(
            "\n forbid (principal, action, resource) when { principal.client == \"x\" };",
            2,
            46,
            "client",
        );
        refused(
            "forbid (principal, action, resource) when { principal.subject > 10 };",
            1,
            45,
            "String",
        );
        refused(
            "forbid (principal, action, resource) when { context.args.path like \"/etc/*\" };",
            1,
            45,
            "args",
        );
        refused(
            "permit (principal, action == Action::\"tools/cal\", resource);",
            1,
            30,
            "tools/cal",
        );
        refused(
            "permit (principal == Admin::\"x\", action, resource);",
            1,
            22,
            "Admin",
        );
        engine(
            "forbid (principal, action, resource) when { principal has client && principal.client == \"x\" };",
        );
    }

    #[test]
    fn a_warning_is_refused_too() {
        refused(
            "permit (principal, action == Action::\"tools/call\", resource is Prompt);",
            1,
            1,
            "impossible",
        );
        refused(
            "permit (principal, action, resource) when { false };",
            1,
            1,
            "impossible",
        );
        refused(
            "permit (principal, action, resource == Tool::\"s\u{443}stem\");",
            1,
            1,
            "mixed scripts",
        );
    }

    #[test]
    fn every_problem_of_every_file_is_reported_at_once() {
        let problems = build(vec![
            file("/p/a.cedar", "permit (principal, action, resource) when { principal.x };\nforbid (principal, action, resource) when { principal.y };"),
            file("/p/b.cedar", "permit (principal, action, resource);"),
            file("/p/c.cedar", "oops"),
        ])
        .unwrap_err();
        let places: Vec<_> = problems
            .iter()
            .map(|problem| (problem.file.to_str().unwrap(), problem.line))
            .collect();
        assert_eq!(places.first(), Some(&("/p/a.cedar", 1)));
        assert!(places.contains(&("/p/a.cedar", 2)));
        assert_eq!(places.last(), Some(&("/p/c.cedar", 1)));
        assert!(
            places.iter().all(|(file, _)| *file != "/p/b.cedar"),
            "{problems:#?}"
        );
    }

    /// fault-51: the engine is built anew, or not at all; keeping the old one is the caller's part.
    #[test]
    fn a_file_without_a_policy_is_refused_for_it_may_be_half_written() {
        refused("", 1, 1, "no policy");
        refused("// nothing yet\n", 1, 1, "no policy");
    }

    #[test]
    fn what_was_vetted_is_not_validated_again_and_anything_else_is() {
        let server = ServerName::parse("github").unwrap();
        let again = |text: &str, vetted: Option<&str>| {
            let files = Authz::Policies(vec![file("/p/x.cedar", text)]);
            Engine::build_again(&files, &server, vetted)
        };
        let good = "permit (principal, action, resource);";
        // Valid Cedar that does not fit the schema: only the validator can tell.
        let bad = "permit (principal, action, resource) when { principal.name == 1 };";
        let sum = again(good, None).unwrap().vetted().unwrap().to_owned();
        assert!(again(bad, None).is_err());
        for vetted in ["", "x", &sum, &sum[..8]] {
            assert!(again(bad, Some(vetted)).is_err(), "{vetted}");
        }
        // Were it believed, it would be for these texts alone, in this order.
        let sum_of = |texts: &[&str]| {
            let files: Vec<_> = texts.iter().map(|text| file("/p/x.cedar", text)).collect();
            vetted(&files)
        };
        assert!(again(bad, Some(&sum_of(&[bad]))).is_ok());
        assert_ne!(sum_of(&[bad, good]), sum_of(&[good, bad]));
        assert_ne!(sum_of(&[bad, good]), sum_of(&[&[bad, good].concat()]));
        // What the validator is not needed for is found all the same.
        assert!(again("permit (", Some(&sum_of(&["permit ("]))).is_err());
        assert!(again("", Some(&sum_of(&[""]))).is_err());
    }

    #[test]
    fn a_template_is_refused() {
        refused(
            "\npermit (principal == ?principal, action, resource);",
            2,
            1,
            "template",
        );
    }

    #[test]
    fn two_policies_of_one_name_are_refused() {
        let text = "@id(\"a\") permit (principal, action, resource);";
        refused(&format!("{text}\n{text}"), 2, 1, "taken already");
        let same_stem =
            build(vec![file("/p/a.cedar", text), file("/q/a.cedar", text)]).unwrap_err();
        assert_eq!(same_stem[0].file, Path::new("/q/a.cedar"));
        assert!(build(vec![file("/p/a.cedar", text), file("/q/b.cedar", text)]).is_ok());
        refused(
            "@id(\"\") permit (principal, action, resource);",
            1,
            1,
            "@id",
        );
        refused(
            "@id(\"a\\nb\") permit (principal, action, resource);",
            1,
            1,
            "@id",
        );
    }

    /// cedar-8: the parser is recursive, and would end the process.
    #[test]
    fn a_policy_that_nests_too_deeply_is_refused_before_it_is_parsed() {
        let nested = |n: usize| {
            format!(
                "permit (principal, action, resource) when {{ {}true{} }};",
                "(".repeat(n),
                ")".repeat(n)
            )
        };
        let sets = |n: usize| {
            format!(
                "permit (principal, action, resource) when {{ {}{} == [] }};",
                "[".repeat(n),
                "]".repeat(n)
            )
        };
        refused(&nested(5_000), 1, 92, "nested deeper");
        refused(&sets(5_000), 1, 92, "nested deeper");
        assert!(too_deep(&nested(MAX_NESTING - 1)).is_none());
        // Brackets in strings and comments are none.
        let text = "(".repeat(100);
        engine(&format!(
            "// {text}\npermit (principal, action, resource == Tool::\"\\\"{text}\"); // \" {text}"
        ));
    }

    /// cedar-8, fault-54: as deep as they may be, policies are parsed, validated, asked and dropped within a worker's stack.
    #[test]
    fn the_longest_and_deepest_policies_that_are_accepted_do_not_exhaust_a_stack() {
        let term = r#"principal.subject == "x""#;
        let or = vec![term; MAX_OPERATORS / 5].join(" || ");
        let and = vec![r#"principal.subject != "x""#; MAX_OPERATORS / 5].join(" && ");
        let ifs = format!(
            "{}true",
            format!("if {term} then false else ").repeat(MAX_OPERATORS / 5)
        );
        let sum = format!("1{} == 5", " + 1".repeat(MAX_OPERATORS - 10));
        let deep = format!(
            "{}true{}",
            "(!".repeat(MAX_NESTING - 2),
            ")".repeat(MAX_NESTING - 2)
        );
        for condition in [or, and, ifs, sum, deep] {
            let text = format!("permit (principal, action, resource) when {{ {condition} }};");
            assert_eq!(too_deep(&text), None, "{}", &text[..120]);
            thread::Builder::new()
                .stack_size(2 << 20)
                .spawn(move || {
                    // A warning ("always false") is as good as an answer here: it came back.
                    if let Ok(engine) = build(vec![file("/p/x.cedar", &text)]) {
                        // Also where it is denied, and scopes are looked for that would help.
                        let _ = engine.decide(&alice(), tool("x"));
                    }
                })
                .unwrap()
                .join()
                .unwrap();
        }
    }

    #[test]
    fn the_manual_lists_every_action_and_its_examples_are_valid() {
        let manual = include_str!("../../man/thv-cedar.7");
        for method in method::DECIDED {
            assert!(
                manual.contains(&format!(".It Li Action::\\(dq{method}\\(dq")),
                "{method} is missing from thv-cedar(7)"
            );
        }
        let examples: Vec<_> = manual
            .split(".Bd -literal -offset indent\n")
            .skip(1)
            .map(|rest| rest.split(".Ed").next().unwrap())
            .collect();
        assert_eq!(examples.len(), 5);
        let files = examples
            .iter()
            .enumerate()
            .map(|(n, text)| file(&format!("/p/{n}.cedar"), text))
            .collect();
        if let Err(problems) = build(files) {
            panic!("{problems:#?}");
        }
    }
}
