//! Programs that are there, and that Linux will not execute: scripts without a first line that it
//! understands, or with an interpreter that the sandbox does not show.

use std::{
    ffi::OsStr,
    io::Read as _,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use crate::files;

/// What is wrong with the program's first line, and what to do. `is_shown` knows the sandbox, and
/// `path` is its PATH, where that is known.
pub(super) fn fault(
    program: &Path,
    path: Option<&str>,
    is_shown: impl Fn(&Path) -> bool,
) -> Option<(String, String)> {
    let mut start = Vec::new();
    files::open(program)
        .and_then(|file| file.take(MAX_LINE).read_to_end(&mut start))
        .ok()?;
    let file = program.display();
    let Some(line) = start.strip_prefix(b"#!") else {
        // What is no text may be anything that a kernel was taught (binfmt_misc).
        let is_text = start
            .iter()
            .all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace());
        return (is_text && !start.is_empty()).then(|| {
            (
                format!("`{file}` is a script without a first line that says what runs it"),
                "write `#!/PATH/OF/ITS/INTERPRETER` there, or name the interpreter first: [\"/usr/bin/python3\", …]".to_owned(),
            )
        });
    };
    let line = line.split(|byte| *byte == b'\n').next()?;
    if line.ends_with(b"\r") {
        return Some((
            format!(
                "the first line of `{file}` ends as on Windows, with a carriage return that Linux takes for a part of the interpreter's name"
            ),
            format!("run `sed -i 's/\\r$//' {file}`"),
        ));
    }
    let mut words = line
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty())
        .map(|word| Path::new(OsStr::from_bytes(word)));
    let interpreter = words.next()?;
    // Whoever wrote the script need not be who reads this.
    let shown = |path: &Path| path.to_string_lossy().escape_debug().to_string();
    if !interpreter.exists() {
        return Some((
            format!(
                "there is no `{}`, which is to run `{file}`",
                shown(interpreter)
            ),
            "install it, or correct the first line".to_owned(),
        ));
    }
    if !is_shown(interpreter) {
        return Some((
            format!(
                "the server does not see `{}`, which is to run `{file}`",
                shown(interpreter)
            ),
            format!(
                "add the directory that it belongs to, such as `\"{}\"`, to `read-only` in [sandbox]",
                shown(&home(interpreter))
            ),
        ));
    }
    // `env` looks where the sandbox's PATH says.
    let wanted = words
        .next()
        .filter(|word| interpreter.ends_with("env") && is_name(word))?;
    let path = path?;
    // What is in a directory that is the sandbox's alone is not known here.
    let is_found = path
        .split(':')
        .map(Path::new)
        .any(|place| place.join(wanted).exists() || !place.exists());
    (!is_found).then(|| {
        (
            format!(
                "there is no `{}` in {}, which is to run `{file}`",
                shown(wanted),
                path.replace(':', " or ")
            ),
            "install it there, or name it by its path in `command`".to_owned(),
        )
    })
}

/// `/opt/venv` of `/opt/venv/bin/python`.
fn home(interpreter: &Path) -> PathBuf {
    let directory = interpreter.parent().unwrap_or(interpreter);
    match directory.ends_with("bin") {
        true => directory.parent().unwrap_or(directory).to_owned(),
        false => directory.to_owned(),
    }
}

/// Rather than an option of env's, or a variable that it sets.
fn is_name(word: &Path) -> bool {
    let text = word.as_os_str().as_bytes();
    !text.starts_with(b"-") && !text.contains(&b'=')
}

/// The kernel reads no more of a first line.
const MAX_LINE: u64 = 256;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_script_that_linux_would_not_run_is_told_by_its_first_line() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("server");
        let venv = directory.path().join("venv/bin/python3");
        fs::create_dir_all(venv.parent().unwrap()).unwrap();
        fs::write(&venv, "").unwrap();
        let said_at = |path: Option<&str>, text: &[u8]| {
            fs::write(&file, text).unwrap();
            fault(&file, path, |path| {
                path.starts_with("/usr") || path.starts_with("/bin")
            })
        };
        let said = |text: &[u8]| said_at(Some("/usr/bin:/bin"), text);
        let of_venv = format!("#!{}\n", venv.display());
        for (text, message, help) in [
            (
                &b"import os\n"[..],
                "without a first line",
                "#!/PATH/OF/ITS/INTERPRETER",
            ),
            (b"#!/bin/sh\r\n", "carriage return", "sed -i 's/\\r$//' "),
            (
                b"#! /bin/none-such -x\n",
                "no `/bin/none-such`",
                "install it",
            ),
            (of_venv.as_bytes(), "does not see `", "/venv\"`"),
            (
                b"#!/usr/bin/env none-such\n",
                "no `none-such`",
                "name it by its path",
            ),
        ] {
            let Some(found) = said(text) else {
                panic!("nothing is said of {text:?}");
            };
            assert!(
                found.0.contains(message) && found.1.contains(help),
                "{found:?}"
            );
        }
        for fine in [
            &b"#!/bin/sh -e\n"[..],
            b"#!/bin/sh",
            b"#!/usr/bin/env sh\n",
            b"#!/usr/bin/env -S none-such\n",
            b"#!/usr/bin/env A=b none-such\n",
            b"\x7fELF\x02\x01\x01\0",
            b"",
        ] {
            assert_eq!(said(fine), None, "{fine:?}");
        }
        // The server's own PATH counts, if it has one, and in a file of secrets nobody looks.
        let of_env = b"#!/usr/bin/env python3-of-venv\n";
        let own = venv.with_file_name("python3-of-venv");
        fs::write(&own, "").unwrap();
        let with = format!("/usr/bin:{}", own.parent().unwrap().display());
        assert!(said(of_env).is_some());
        for path in [Some(with.as_str()), Some("/usr/bin:/none-such/bin"), None] {
            assert_eq!(said_at(path, of_env), None, "{path:?}");
        }
        let none = fault(Path::new("/usr/none/such"), None, |_| true);
        assert_eq!(none, None);
        let escapes = said(b"#!/bin/\x1b[31mred\n").unwrap();
        assert!(!escapes.0.contains(char::is_control), "{escapes:?}");
    }
}
