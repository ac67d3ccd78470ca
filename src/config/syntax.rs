//! What is wrong with a text that is no TOML: one mistake, one problem.
//!
//! The parser goes on behind a mistake, and then takes what follows for more of the same:
//! a list that nobody has closed makes each of the next lines an error. So the text is
//! cut into its statements, and each is judged alone. Called by `table` for a text that
//! the parser has refused; decides nothing about one that it takes. Never shows a part of the
//! text that is, or was meant to be, a value: what is said goes to the journal.

use std::ops::Range;

use toml::de::{DeTable, Error};

/// One mistake: where it is, what is wrong, and what to type.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Mistake {
    pub(super) at: usize,
    pub(super) message: String,
    pub(super) help: String,
}

impl Mistake {
    fn new(at: usize, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            at,
            message: message.into(),
            help: help.into(),
        }
    }
}

/// The mistakes of a text that is no TOML, in its order; at least one.
pub(super) fn mistakes(text: &str) -> Vec<Mistake> {
    let mut found = Vec::new();
    let (mut start, mut sound) = (0, text.len());
    while start < text.len() {
        let statement = Statement::read(text, start);
        let own = of_statement(text, &statement);
        if found.is_empty() && !own.is_empty() {
            sound = start;
        }
        found.extend(own);
        start = statement.span.end;
    }
    // What is said twice shows only in the whole, and of that only as far as all is sound:
    // behind a broken header keys seem to belong to another table.
    let twice = errors(&text[..sound]).into_iter();
    let twice: Vec<_> = twice.map(|error| explained(text, &error)).collect();
    found.splice(0..0, twice);
    if found.is_empty() {
        // The parser and the cuts differ, and the parser is right.
        let first = errors(text).into_iter().next();
        let first = first.map(|error| explained(text, &error));
        found.extend(first);
    }
    // A file of another kind is wrong in each of its lines.
    let more = found.len().saturating_sub(MAX_MISTAKES);
    if more > 0 {
        found.truncate(MAX_MISTAKES + 1);
        let rest = &mut found[MAX_MISTAKES];
        rest.message = format!("so it goes on: {more} more");
        rest.help = "mend those above first".to_owned();
    }
    found
}

/// A key with its value, a table's header, or what was meant to be one; with its line break.
struct Statement {
    span: Range<usize>,
    /// The first thing that is begun in it and not ended.
    open: Option<Open>,
}

struct Open {
    at: usize,
    what: What,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum What {
    List,
    Table,
    /// By the quotes that would end it.
    Text(&'static str),
}

impl Statement {
    fn read(text: &str, start: usize) -> Self {
        let is_header = text[start..].trim_start().starts_with('[');
        let mut brackets: Vec<Open> = Vec::new();
        let mut open: Option<Open> = None;
        let mut last = '\n';
        let mut at = start;
        while let Some(next) = text[at..].chars().next() {
            let behind = at + next.len_utf8();
            match next {
                '#' => {
                    at = line_end(text, at);
                    continue;
                }
                '"' | '\'' => {
                    let (end, what) = quoted(text, at);
                    if let Some(what) = what {
                        open.get_or_insert(Open { at, what });
                    }
                    at = end;
                    last = next;
                    continue;
                }
                '[' if !is_header => brackets.push(Open {
                    at,
                    what: What::List,
                }),
                '{' if !is_header => brackets.push(Open {
                    at,
                    what: What::Table,
                }),
                ']' | '}' => {
                    let closed = if next == ']' { What::List } else { What::Table };
                    // Without one of its kind it closes nothing, and the parser says so.
                    if brackets.iter().any(|bracket| bracket.what == closed) {
                        while let Some(bracket) = brackets.pop() {
                            if bracket.what == closed {
                                break;
                            }
                            open.get_or_insert(bracket);
                        }
                    }
                }
                '\n' => {
                    let goes_on = brackets
                        .last()
                        .is_some_and(|inner| !begins(&text[behind..], inner.what, last));
                    if !goes_on {
                        at = behind;
                        break;
                    }
                }
                _ => {}
            }
            if !next.is_whitespace() {
                last = next;
            }
            at = behind;
        }
        if open.is_none() {
            open = brackets.pop();
        }
        Self {
            span: start..at,
            open,
        }
    }
}

/// Where the string that begins at `start` ends, and by what it would, if it does not.
fn quoted(text: &str, start: usize) -> (usize, Option<What>) {
    let rest = &text[start..];
    let quotes = ["\"\"\"", "'''", "\"", "'"];
    let quotes = quotes.into_iter().find(|quotes| rest.starts_with(quotes));
    let quotes = quotes.expect("a quote is what it was called for");
    let is_long = quotes.len() > 1;
    let mut at = start + quotes.len();
    loop {
        let rest = &text[at..];
        let Some(next) = rest.chars().next() else {
            return (at, Some(What::Text(quotes)));
        };
        if rest.starts_with(quotes) {
            at += quotes.len();
            // Up to two quotes may stand before those that end it.
            let more = text[at..]
                .bytes()
                .take(2)
                .take_while(|byte| *byte == quotes.as_bytes()[0]);
            return (at + if is_long { more.count() } else { 0 }, None);
        }
        if next == '\n' && !is_long {
            return (at, Some(What::Text(quotes)));
        }
        at += next.len_utf8();
        if next == '\\' && quotes.starts_with('"') {
            let escaped = text[at..]
                .chars()
                .next()
                .filter(|escaped| is_long || *escaped != '\n');
            at += escaped.map_or(0, char::len_utf8);
        }
    }
}

/// Whether a new statement begins with `rest`, though a bracket is open: the last thing in it
/// ended with `last`.
fn begins(rest: &str, inside: What, last: char) -> bool {
    let line = rest.lines().next().unwrap_or_default().trim();
    if let Some(name) = line.strip_prefix('[') {
        let name = name.trim_start_matches('[').trim_start();
        let word = name.split(|c: char| !is_bare(c)).next().unwrap_or_default();
        let is_value = matches!(word, "" | "true" | "false" | "inf" | "nan")
            || word.starts_with(|c: char| c.is_ascii_digit() || c == '-');
        return !is_value && name.contains(']') && !name.contains(',');
    }
    let is_key = match line.split_once('=') {
        Some((key, _)) => {
            !key.trim().is_empty()
                && key
                    .trim()
                    .chars()
                    .all(|c| is_bare(c) || "\"'. ".contains(c))
        }
        None => false,
    };
    // In a table such a line may go on, behind a comma.
    is_key && !(inside == What::Table && matches!(last, ',' | '{'))
}

fn of_statement(text: &str, statement: &Statement) -> Vec<Mistake> {
    let own = &text[statement.span.clone()];
    let start = statement.span.start;
    let mut errors = errors(own);
    errors.sort_by_key(|error| error.span().unwrap_or_default().start);
    let Some(first) = errors.first() else {
        return Vec::new();
    };
    let first_at = start + first.span().unwrap_or_default().start;
    match &statement.open {
        Some(open) if open.at <= first_at => return vec![not_ended(open)],
        Some(Open {
            what: What::Text(quotes),
            ..
        }) if !is_bare_text(own, first) => {
            let quote = &quotes[..1];
            return vec![Mistake::new(
                first_at,
                format!("a `{quote}` is missing here, or before"),
                format!("each string begins and ends with `{quote}`"),
            )];
        }
        _ => {}
    }
    let mistake = |error: &Error| {
        let mut mistake = explained(own, error);
        mistake.at += start;
        mistake
    };
    // Behind a key that is none nothing is what it seems; nor behind what was not ended.
    let equals = own.find('=').map_or(usize::MAX, |equals| start + equals);
    if first_at <= equals || statement.open.is_some() {
        return vec![mistake(first)];
    }
    // The second error of a line mostly follows from the first.
    let line = |error: &Error| {
        let at = error.span().unwrap_or_default().start;
        own[..at].matches('\n').count()
    };
    errors.dedup_by_key(|error| line(error));
    errors.iter().map(mistake).collect()
}

fn not_ended(open: &Open) -> Mistake {
    let (what, end) = match open.what {
        What::List => ("the list", "]"),
        What::Table => ("the table", "}"),
        What::Text(quotes @ ("\"" | "'")) => {
            return Mistake::new(
                open.at,
                "the string that begins here does not end on its line",
                format!("add `{quotes}` at its end"),
            );
        }
        What::Text(quotes) => ("the string", quotes),
    };
    Mistake::new(
        open.at,
        format!("{what} that begins here does not end"),
        format!("add `{end}` at its end"),
    )
}

/// The parser's words, and what they mean for who writes configurations.
fn explained(own: &str, error: &Error) -> Mistake {
    let span = error.span().unwrap_or_default();
    let said = words(error);
    let found = own.get(span.clone()).unwrap_or_default();
    let rest = own.get(span.start..).unwrap_or_default();
    let is_key = !own[..span.start].contains('=');
    let trimmed = own.trim_start();
    let (message, help) = if said.starts_with("duplicate key") {
        // Between quotes may stand what was to be a value.
        let name = Some(found.trim()).filter(|name| name.chars().all(is_bare));
        let name = name.map_or_else(|| "this".to_owned(), |name| format!("`{}`", shown(name)));
        (
            format!("{name} is said above already"),
            "say it once".to_owned(),
        )
    } else if is_key && trimmed.starts_with('[') {
        let closing = if trimmed.starts_with("[[") { "]]" } else { "]" };
        (
            format!("this is no table's header: {said}"),
            format!(
                "write it as `{}NAME{closing}` on a line of its own",
                closing.replace(']', "[")
            ),
        )
    } else if is_key {
        of_key(trimmed)
    } else if is_bare_text(own, error) {
        // A value may be a secret wherever it stands, and so may what was to be one: it is shown
        // to nobody, not even as what to type.
        let word = unquoted(rest);
        let (message, help) = match word {
            "yes" | "on" | "Yes" | "On" | "YES" | "ON" | "True" | "TRUE" => {
                (format!("`{word}` is no value"), "write `true`")
            }
            "no" | "off" | "No" | "Off" | "NO" | "OFF" | "False" | "FALSE" => {
                (format!("`{word}` is no value"), "write `false`")
            }
            _ if is_pair(word) => (
                "this is no value".to_owned(),
                "keys and their values stand in `{` and `}`, as a value",
            ),
            _ => (
                "the value has no quotes".to_owned(),
                "text stands in quotes: write `\"…\"`",
            ),
        };
        (message, help.to_owned())
    } else if rest.trim_start().is_empty()
        || found.trim().is_empty() && rest.starts_with(['\r', '\n'])
    {
        (
            "the value is missing".to_owned(),
            "write one behind the `=`".to_owned(),
        )
    } else if said.starts_with("missing comma") {
        (
            "a comma is missing before this".to_owned(),
            "add `,`".to_owned(),
        )
    } else if said.starts_with("unexpected key or value") {
        let help = if rest.starts_with(',') {
            "several values are a list: write them in `[` and `]`"
        } else if rest.starts_with("//") || rest.starts_with(';') {
            "a comment begins with `#`"
        } else {
            "end the line there; the next key stands on its own line"
        };
        ("nothing may follow the value".to_owned(), help.to_owned())
    } else if said.contains("escape") || said.contains("unicode") {
        (
            said,
            "write `\\\\` for a backslash, or the string in single quotes".to_owned(),
        )
    } else {
        (said, SEE.to_owned())
    };
    Mistake::new(span.start, message, help)
}

/// What was to be a key and a value. It may be the second line of a secret as well.
fn of_key(own: &str) -> (String, String) {
    let help = if own.starts_with("//") || own.starts_with([';', '%']) {
        "a comment begins with `#`"
    } else {
        "write `KEY = VALUE`, or `[TABLE]`"
    };
    (
        "this is neither a key with its value nor a table".to_owned(),
        help.to_owned(),
    )
}

/// Whether the error is about text that stands there without quotes.
fn is_bare_text(own: &str, error: &Error) -> bool {
    let at = error.span().unwrap_or_default().start;
    let is_value = own[..at].contains('=');
    let begin = own[at..].chars().next();
    let said = error.message();
    is_value
        && (said.starts_with("string values must be quoted")
            || said.starts_with("invalid float")
            || said.starts_with("invalid boolean"))
        && begin.is_some_and(|c| !c.is_whitespace() && !",]}#\"'".contains(c))
}

/// Whether this is a key with a value, such as `A = "b"`; what ends with a `=` may be base64.
fn is_pair(word: &str) -> bool {
    let Some((name, value)) = word.split_once('=') else {
        return false;
    };
    !name.is_empty() && name.trim_end().chars().all(is_bare) && !value.trim_matches('=').is_empty()
}

/// The text up to where a value ends.
fn unquoted(rest: &str) -> &str {
    let end = rest
        .find(['\n', '\r', ',', ']', '}', '#'])
        .unwrap_or(rest.len());
    rest[..end].trim_end()
}

fn errors(text: &str) -> Vec<Error> {
    DeTable::parse_recoverable(text).1
}

/// The parser's text may go over lines (`expected …`): one problem is one line.
fn words(error: &Error) -> String {
    error.message().lines().collect::<Vec<_>>().join(", ")
}

fn line_end(text: &str, at: usize) -> usize {
    text[at..]
        .find('\n')
        .map_or(text.len(), |length| at + length)
}

fn is_bare(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_')
}

/// A part of the text as it may stand in a one-line message.
fn shown(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(MAX_SHOWN)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

const SEE: &str = "thv.toml(5) shows how it is written";
/// Mistakes of one file that are told one by one.
const MAX_MISTAKES: usize = 20;
/// Characters of the text in a message.
const MAX_SHOWN: usize = 64;

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    /// The mistakes of a text as `LINE:COLUMN: message; help`.
    fn said(text: &str) -> String {
        let mut said = String::new();
        for Mistake { at, message, help } in mistakes(text) {
            let before = &text[..at];
            let column = at - before.rfind('\n').map_or(0, |newline| newline + 1) + 1;
            let line = before.matches('\n').count() + 1;
            writeln!(said, "{line}:{column}: {message}; {help}").unwrap();
        }
        said
    }

    #[test]
    fn one_mistake_is_one_problem_and_says_what_to_type() {
        for (text, expected) in [
            (
                "command = [\"/bin/sh\nresource = \"https://h/x\"\n[auth]\nmode = \"none\"\n",
                "1:12: the string that begins here does not end on its line; add `\"` at its end\n",
            ),
            (
                "command = [\"/bin/sh\", \"-c\"\nresource = \"https://h/x\"\nhosts = [\"a\"]\n[auth]\nmode = \"none\"\n",
                "1:11: the list that begins here does not end; add `]` at its end\n",
            ),
            (
                "env = { A = \"b\", C = \"d\"\nresource = \"x\"\n[auth]\na = 1\n",
                "1:7: the table that begins here does not end; add `}` at its end\n",
            ),
            (
                "env = A = \"b\" }\nresource = \"x\"\n",
                "1:7: this is no value; keys and their values stand in `{` and `}`, as a value\n",
            ),
            (
                "a = 1\nb = \"\"\"\nc = d\n[x]\n",
                "2:5: the string that begins here does not end; add `\"\"\"` at its end\n",
            ),
            (
                "[auth\nmode = \"none\"\n[authz]\nmode = \"none\"\n",
                "1:6: this is no table's header: unclosed table, expected `]`; write it as `[NAME]` on a line of its own\n",
            ),
            (
                "command: [\"/bin/sh\"]\nx = 1\n",
                "1:8: this is neither a key with its value nor a table; write `KEY = VALUE`, or `[TABLE]`\n",
            ),
            (
                "{\n \"command\": \"x\",\n \"resource\": \"y\"\n}\n",
                "1:1: this is neither a key with its value nor a table; write `KEY = VALUE`, or `[TABLE]`\n",
            ),
            (
                "a = [\"x\" \"y\"]\n",
                "1:10: a comma is missing before this; add `,`\n",
            ),
            (
                "a = \"x\", \"y\"\n",
                "1:8: nothing may follow the value; several values are a list: write them in `[` and `]`\n",
            ),
            (
                "a = \"x\" // why\n",
                "1:9: nothing may follow the value; a comment begins with `#`\n",
            ),
            (
                "a =\n",
                "1:4: the value is missing; write one behind the `=`\n",
            ),
            (
                "[a]\nx = 1\n[b]\n[a]\n",
                "4:2: `a` is said above already; say it once\n",
            ),
        ] {
            assert_eq!(said(text), expected, "{text}");
        }
    }

    /// Problems go to the journal, which more people read than the file.
    #[test]
    fn no_mistake_shows_a_value() {
        for text in [
            // Variables.
            "[env]\nTOKEN = s3cret\n",
            "[env]\ndb_password = s3cret\n",
            "[env]\nlower = s3cret\n",
            "[env]\n\"db.word\" = s3cret\n",
            "env.TOKEN=s3cret\n",
            "env = { A = \"b\", TOKEN = s3cret }\n",
            "env = { token = s3cret, B = \"c\" }\n",
            "env = TOKEN=s3cret\n",
            "env = TOKEN=\"s3cret\"\n",
            "env = s3cret\n",
            "[env]\nTOKEN=s3cret more\n",
            "[env]\nTOKEN = s3cret==\n",
            "[env]\nTOKEN = \"s3cret\n",
            "[env]\nTOKEN = “s3cret”\n",
            "[env]\nTOKEN = \"a\" s3cret\n",
            "[env]\nTOKEN = \"s3cret\" s3cret\n",
            "[env]\nTOKEN = \"a\\s3cret\"\n",
            "[env]\nTOKEN = \"\\us3cret\"\n",
            "[env]\nTOKEN: s3cret\n",
            "[env]\nTOKEN s3cret\n",
            "[env]\ns3cret\n",
            "[env]\ns3cret=\n",
            "[env]\nexport TOKEN=s3cret\n",
            "TOKEN=\"a\ns3cret\"\n",
            "[env]\nTOKEN = 1s3cret\n",
            "[env]\nTOKEN = +s3cret\n",
            "[env]\nTOKEN = trues3cret\n",
            "[env]\nTOKEN = 2026-11-26s3cret\n",
            "[env]\nTOKEN == s3cret\n",
            // Lists.
            "command = [\"x\", s3cret]\n",
            "command = [s3cret]\n",
            "command = [\"x\" s3cret]\n",
            "command = [\"x\", --token=s3cret]\n",
            "command = [\"x\", TOKEN=s3cret]\n",
            "command = [\n  \"x\",\n  s3cret,\n]\n",
            "command = [\n  \"x\",\n  s3cret = 1,\n]\n",
            "command = [\"x\", \"--token\", 's3cret]\n",
            "command = [\"x\", [s3cret]]\n",
            "command = [\"x\", { TOKEN = s3cret }]\n",
            "command = [\"x\", \"s3cret\"\n",
            "command = \"x\", s3cret\n",
            "command = \"x\" \"s3cret\"\n",
            "command =\n[\"x\", \"s3cret\"]\n",
            "command =\n[\"s3cret\"]\n[\"s3cret\"]\n",
            "command = x s3cret\n",
            "command = x, s3cret\n",
            "command: [\"x\", s3cret]\n",
            "[env]\nTOKENS = [s3cret, s3cret]\n",
            "[env]\nTOKENS = [{ a = s3cret }]\n",
            // Tables within a line.
            "[env]\nTOKEN = { credential = s3cret }\n",
            "[env]\nTOKEN = { credential s3cret }\n",
            "[env]\nTOKEN = { s3cret }\n",
            "[env]\nTOKEN = { \"s3cret\" }\n",
            "[env]\nTOKEN = { credential = \"s3cret\", credential = \"s3cret\" }\n",
            "[env]\nTOKEN = { credential = \"s3cret\"\n",
            "[env]\nTOKEN = { credential: s3cret }\n",
            "upstream = { authorization = Bearer s3cret }\n",
            "url = https://h/x?token=s3cret\n",
            // Strings over lines.
            "[env]\nKEY = \"\"\"\nb\ns3cret\n",
            "[env]\nKEY = '''\nb\ns3cret\n",
            "[env]\nKEY = \"\"\"\nb\n\"\"\" s3cret\n",
            "[env]\nKEY = \"\"\"\nb\"\"\"\ns3cret\n\"\"\"\n",
            "[env]\nKEY = -----BEGIN KEY-----\ns3cret\n-----END KEY-----\n",
            "[env]\nKEY = \"-----BEGIN KEY-----\ns3cret\n-----END KEY-----\"\n",
            "[env]\nKEY = \"\"\"\n\\s3cret\n\"\"\"\n",
            "[env]\nKEY = |\n  s3cret\n",
            "[env]\nKEY = \"a\\\n  s3cret\"\n",
            // What was meant to be a comment, a header or nothing.
            "[env] TOKEN = s3cret\n",
            "[env\nTOKEN = s3cret\n",
            "[env s3cret]\n",
            "[[s3cret]\n",
            "// s3cret\n",
            "TOKEN = \"a\" // s3cret\n",
            "; s3cret\n",
            "- TOKEN=s3cret\n",
            "$TOKEN = s3cret\n",
            "{ \"env\": { \"TOKEN\": \"s3cret\" } }\n",
            "s3cret\r\ns3cret\r\n",
            "\u{feff}\u{feff}s3cret\n",
        ] {
            let found = said(text);
            assert!(
                !found.is_empty() && !found.contains("s3cret"),
                "{text}{found}"
            );
        }
    }

    #[test]
    fn independent_mistakes_are_each_a_problem() {
        let text = "a = 1\na = 2\nmode = none\n[b\nc = [\n \"x\",\n y,\n z\n]\nd = yes\n";
        assert_eq!(
            said(text),
            "2:1: `a` is said above already; say it once\n\
             3:8: the value has no quotes; text stands in quotes: write `\"…\"`\n\
             4:3: this is no table's header: unclosed table, expected `]`; write it as `[NAME]` on a line of its own\n\
             7:2: the value has no quotes; text stands in quotes: write `\"…\"`\n\
             8:2: the value has no quotes; text stands in quotes: write `\"…\"`\n\
             10:5: `yes` is no value; write `true`\n"
        );
    }

    #[test]
    fn any_character_that_is_missing_is_one_problem_on_its_line() {
        let design = include_str!("../../tests/trees/config-design/etc/thv/servers/github.toml");
        let mut broken = 0;
        for (at, _) in design.char_indices() {
            let mut text = design.to_owned();
            text.remove(at);
            if errors(&text).is_empty() {
                continue;
            }
            broken += 1;
            let line = design[..at].matches('\n').count() + 1;
            let found = said(&text);
            assert_eq!(found.lines().count(), 1, "{text}\n{found}");
            assert!(found.starts_with(&format!("{line}:")), "{text}\n{found}");
        }
        assert!(broken > 100, "{broken}");
    }

    #[test]
    fn a_file_of_another_kind_is_not_told_of_line_by_line() {
        let found = said(&"nothing of this is TOML\n".repeat(40_000));
        assert_eq!(found.lines().count(), MAX_MISTAKES + 1);
        let last = "21:9: so it goes on: 39980 more; mend those above first\n";
        assert!(found.ends_with(last), "{found}");
    }

    proptest! {
        /// What the parser refuses has a mistake, in a place that is there, and which shows no value.
        #[test]
        fn whatever_is_no_toml_has_a_mistake(
            parts in proptest::collection::vec(
                prop::sample::select(vec![
                    "[", "]", "{", "}", "\"", "'", "\"\"\"", "'''", "=", ",", "\n", "\r\n", "#", "\\", "\\u12",
                    "a", "b.c", " ", "1", "true", "é", "“", "a = 1\n", "[t]\n", "k = [", "\u{0}", ":", "-",
                    "= s3cret", ", s3cret", "[s3cret", "\"s3cret",
                ]),
                0..24,
            )
        ) {
            let text = parts.concat();
            if !errors(&text).is_empty() {
                let found = mistakes(&text);
                prop_assert!(!found.is_empty(), "{text:?}");
                for Mistake { at, message, help } in found {
                    prop_assert!(text.is_char_boundary(at), "{text:?}");
                    prop_assert!(!message.contains("s3cret") && !help.contains("s3cret"), "{text:?}");
                    prop_assert!(!message.is_empty() && !message.contains('\n'), "{text:?}");
                    prop_assert!(!help.is_empty() && !help.contains('\n'), "{text:?}");
                }
            }
        }
    }
}
