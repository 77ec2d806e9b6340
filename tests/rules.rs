//! The house rules, kept by tests instead of by memory.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, also in its helpers"
)]

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use portcullis::reject::CODES;

/// Longest file without its tests, longest function, longest body of THE PATH, in lines.
const FILE: usize = 600;
const FUNCTION: usize = 60;
const PATH: usize = 36;

/// Functions that are plain tables, and so may be longer: `file name`.
const TABLES: [&str; 0] = [];

/// The proofs, and the one room that may make each.
const PROOFS: [(&str, &str); 4] =
    [("Identity", "auth"), ("Permit", "access"), ("Ticket", "limit"), ("Lease", "pool")];

/// What panics; a panic drops somebody's connection.
const PANICS: [&str; 9] = [
    ".unwrap()",
    ".unwrap_err()",
    ".expect(",
    ".expect_err(",
    "panic!",
    "todo!",
    "unimplemented!",
    "unreachable!",
    "assert!",
];

/// Codes that no request can provoke, and the file whose test provokes them from inside.
const FROM_INSIDE: [(&str, &str); 1] = [("internal", "src/gateway/tests.rs")];

#[test]
fn a_room_uses_only_rooms_above_it() {
    let rooms = rooms();
    let mut faults = Faults::default();
    for source in sources() {
        let Some(room) = source.room() else { continue };
        let Some(own) = rooms.iter().position(|it| *it == room) else {
            faults.add(&source, 0, format!("`{room}` is no room; list it in src/lib.rs"));
            continue;
        };
        for (at, used) in source.rooms_used() {
            match rooms.iter().position(|it| *it == used) {
                None => faults.add(&source, at, format!("`{used}` is no room; write the room")),
                Some(other) if other > own => faults.add(
                    &source,
                    at,
                    format!(
                        "`{room}` uses `{used}`, which src/lib.rs lists below it; move what both \
                         need into a room above, or hand it over as an argument"
                    ),
                ),
                Some(_) => {}
            }
        }
    }
    faults.none();
}

#[test]
fn each_file_says_first_what_it_is_for() {
    let mut faults = Faults::default();
    for source in sources() {
        let sentence = source.text.lines().next().and_then(|line| line.strip_prefix("//! "));
        if sentence.is_none_or(str::is_empty) {
            faults.add(&source, 0, "begin with `//! ` and one sentence that says why it exists");
        }
    }
    faults.none();
}

#[test]
fn files_are_short() {
    let mut faults = Faults::default();
    for source in sources() {
        let lines = source.code.lines().count();
        if lines > FILE {
            let says = format!("{lines} lines without tests, more than {FILE}; divide the room");
            faults.add(&source, 0, says);
        }
    }
    faults.none();
}

#[test]
fn functions_are_short() {
    let mut faults = Faults::default();
    for source in sources() {
        for function in source.functions() {
            let id = format!("{} {}", source.path, function.name);
            if function.lines > FUNCTION && !TABLES.contains(&id.as_str()) {
                let Function { at, name, lines, .. } = function;
                let says = format!("`{name}` has {lines} lines, more than {FUNCTION}; divide it");
                faults.add(&source, at, says);
            }
        }
    }
    faults.none();
}

#[test]
fn the_path_fits_into_one_look() {
    let gateway = Source::read(&root().join("src/gateway.rs"));
    let serve: Vec<_> = gateway.functions().into_iter().filter(|it| it.name == "serve").collect();
    let [serve] = serve.as_slice() else {
        panic!("src/gateway.rs: one function is called `serve`: THE PATH; found {}", serve.len());
    };
    let mut faults = Faults::default();
    if serve.body > PATH {
        let says = format!("THE PATH has {} lines, more than {PATH}; a stage a line", serve.body);
        faults.add(&gateway, serve.at, says);
    }
    faults.none();
}

#[test]
fn nothing_panics_outside_tests() {
    let mut faults = Faults::default();
    for source in sources() {
        for what in PANICS {
            for at in source.words(what) {
                let says = format!("`{what}` panics; return an error, or make it impossible");
                faults.add(&source, at, says);
            }
        }
        for at in source.indexings() {
            faults.add(&source, at, "an index can be out of bounds; use `get`, or a pattern");
        }
    }
    faults.none();
}

#[test]
fn each_file_ends_with_its_tests() {
    let mut faults = Faults::default();
    for source in sources() {
        let rest = source.text.get(source.code.len()..).unwrap_or_default();
        let module = rest.lines().nth(1).unwrap_or_default();
        if !rest.is_empty() && !source.is_test && !module.starts_with("mod tests") {
            let says = "what is only for tests stands at the foot, in `mod tests`";
            faults.add(&source, source.code.len(), says);
        }
    }
    faults.none();
}

#[test]
fn a_proof_is_made_in_its_own_room_only() {
    let mut faults = Faults::default();
    for (proof, room) in PROOFS {
        let mut defined = false;
        for source in sources() {
            if source.room().as_deref() == Some(room) {
                defined |= proof_is_closed(&source, proof, &mut faults);
                continue;
            }
            for at in source.made(proof) {
                let says = format!("only `{room}` makes a `{proof}`; ask it for one");
                faults.add(&source, at, says);
            }
        }
        assert!(defined, "`pub struct {proof} {{` was not found in the room `{room}`");
    }
    faults.none();
}

/// Where the proof is defined, its fields are private, and nothing is derived that makes another.
fn proof_is_closed(source: &Source, proof: &str, faults: &mut Faults) -> bool {
    let Some(at) = source.code.find(&format!("pub struct {proof} {{")) else { return false };
    let fields = source.code.get(at..).unwrap_or_default().lines().skip(1);
    if fields.take_while(|line| *line != "}").any(|line| line.trim_start().starts_with("pub")) {
        faults.add(source, at, format!("a field of `{proof}` is public, so anybody can make one"));
    }
    let before = source.code.get(..at).unwrap_or_default();
    let derived = before.trim_end().lines().next_back().unwrap_or_default();
    let makes = |it: &&&str| derived.contains(**it) && (proof != "Identity" || **it != "Clone");
    if let Some(derive) = ["Clone", "Default", "Deserialize"].iter().find(makes) {
        faults.add(source, at, format!("`{derive}` makes a `{proof}` without its room's leave"));
    }
    true
}

#[test]
fn every_code_is_provoked_by_a_request() {
    let asked: String = files_under(&root().join("tests/it")).iter().map(|it| read(it)).collect();
    let mut missing = Vec::new();
    for code in CODES {
        let inside = FROM_INSIDE.iter().find(|(known, _)| *known == code);
        let text = inside.map_or_else(|| asked.clone(), |(_, file)| read(&root().join(file)));
        if !text.contains(&format!("\"{code}\"")) {
            missing.push(code);
        }
    }
    assert!(
        missing.is_empty(),
        "src/reject.rs: no test in tests/it provokes {}; write one that asks for it",
        missing.join(", ")
    );
}

#[test]
fn nothing_names_a_machine_or_a_package_registry() {
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output();
    let Some(listed) = listed.ok().filter(|it| it.status.success()) else {
        // Past the test's captured output, so that it is seen.
        let why = "no git working copy, so nobody knows which files are the project's";
        let _ = writeln!(std::io::stdout(), "\nskip: {why}");
        return;
    };
    let mut faults = Faults::default();
    for name in String::from_utf8(listed.stdout).unwrap().split_terminator('\0') {
        let lock = ["Cargo.lock", "package-lock.json"].iter().any(|it| name.ends_with(it));
        let Ok(bytes) = fs::read(root().join(name)) else { continue };
        let source = Source::of(name.to_owned(), String::from_utf8_lossy(&bytes).into_owned());
        for (what, advice) in unwanted().into_iter().filter(|_| !lock) {
            for (at, _) in source.text.match_indices(&what) {
                let rest = source.text.get(at + what.len()..).unwrap_or_default();
                // Where Ollama's own container keeps its models.
                if !(what == concat!("/ro", "ot/") && rest.starts_with(".ollama")) {
                    faults.add(&source, at, format!("`{what}`: {advice}"));
                }
            }
        }
    }
    faults.none();
}

/// Written in two halves, so that this file does not hold what it looks for.
fn unwanted() -> Vec<(String, &'static str)> {
    let place = "that is a place on one machine; use a relative path, or a temporary folder";
    let host = "that is a package registry's host; name the tool that asks it";
    let mut unwanted: Vec<_> = [
        (concat!("/wo", "rk/"), place),
        (concat!("/ro", "ot/"), place),
        (concat!("/tm", "p/"), place),
        (concat!("/Use", "rs/"), place),
        (concat!("crates", ".io"), host),
        (concat!("pypi", ".org"), host),
        (concat!("python", "hosted.org"), host),
        (concat!("npm", "js.org"), host),
        (concat!("npm", "js.com"), host),
        (concat!("yarn", "pkg.com"), host),
        (concat!("proxy.go", "lang.org"), host),
        (concat!("sum.go", "lang.org"), host),
        (concat!("repo.maven", ".apache.org"), host),
        (concat!("repo1.maven", ".org"), host),
    ]
    .map(|(what, advice)| (what.to_owned(), advice))
    .into();
    unwanted.push((env!("CARGO_MANIFEST_DIR").to_owned(), place));
    unwanted
}

// ---- what a rule says ------------------------------------------------------------------------

#[derive(Default)]
struct Faults(String);

impl Faults {
    fn add(&mut self, source: &Source, at: usize, says: impl AsRef<str>) {
        let line = source.text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count();
        writeln!(self.0, "{}:{}: {}", source.path, line + 1, says.as_ref()).unwrap();
    }

    fn none(self) {
        assert!(self.0.is_empty(), "\n{}", self.0);
    }
}

// ---- how the sources are read ----------------------------------------------------------------

struct Source {
    path: String,
    text: String,
    /// Without the tests; comments and the insides of strings are blanks.
    code: String,
    is_test: bool,
}

struct Function {
    at: usize,
    name: String,
    lines: usize,
    /// Lines between the braces.
    body: usize,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn rooms() -> Vec<String> {
    let rooms = read(&root().join("src/lib.rs"));
    let rooms = rooms.lines().filter_map(|line| line.strip_prefix("pub mod ")?.split_once(';'));
    let rooms: Vec<_> = rooms.map(|(room, _)| room.to_owned()).collect();
    assert!(rooms.len() > 10, "src/lib.rs lists the rooms as `pub mod NAME;`");
    rooms
}

fn sources() -> Vec<Source> {
    let sources: Vec<_> =
        files_under(&root().join("src")).iter().map(|path| Source::read(path)).collect();
    assert!(sources.len() > 20, "src/ was not found whole");
    sources
}

fn files_under(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_under(&path));
        } else if path.extension().is_some_and(|it| it == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

impl Source {
    fn read(path: &Path) -> Self {
        let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        Self::of(name, read(path))
    }

    fn of(path: String, text: String) -> Self {
        let is_test = path.ends_with("/tests.rs") || path.contains("/tests/");
        let mut code = if is_test { String::new() } else { without_words(&text) };
        if let Some(tests) = code.find("#[cfg(test)]") {
            code.truncate(tests);
        }
        Self { path, text, code, is_test }
    }

    /// Nothing for the two files that stand outside of every room.
    fn room(&self) -> Option<String> {
        let inside = self.path.strip_prefix("src/")?;
        let room = inside.split('/').next()?.trim_end_matches(".rs");
        (!matches!(room, "lib" | "main")).then(|| room.to_owned())
    }

    /// The rooms named behind `crate::`, or behind as many `super::` as lead there.
    fn rooms_used(&self) -> Vec<(usize, String)> {
        let up = "super::".repeat(self.path.matches('/').count());
        let mut used = Vec::new();
        for way in ["crate::", &up] {
            for at in self.words(way) {
                let rest = self.code.get(at + way.len()..).unwrap_or_default();
                match rest.strip_prefix('{') {
                    None => used.push((at, identifier(rest))),
                    Some(group) => used.extend(members(group).map(|it| (at, it))),
                }
            }
            // In a module inside a file, `super` leads to the file.
            used.retain(|(_, room)| way == "crate::" || rooms().contains(room));
        }
        used
    }

    fn functions(&self) -> Vec<Function> {
        let mut functions = Vec::new();
        for at in self.words("fn ") {
            let rest = self.code.get(at..).unwrap_or_default();
            let name = identifier(rest.get(3..).unwrap_or_default());
            let Some((open, close)) = body(rest).filter(|_| !name.is_empty()) else { continue };
            let newlines = |range: &str| range.matches('\n').count();
            let lines = newlines(rest.get(..close).unwrap_or_default()) + 1;
            let body = newlines(rest.get(open..close).unwrap_or_default()).saturating_sub(1);
            functions.push(Function { at, name, lines, body });
        }
        functions
    }

    /// Where this stands and is not the end of a longer word.
    fn words(&self, what: &str) -> Vec<usize> {
        let starts = what.starts_with(|first: char| first.is_alphanumeric());
        let before = |at: usize| self.code.get(..at).and_then(|it| it.chars().next_back());
        let found = self.code.match_indices(what).map(|(at, _)| at);
        found
            .filter(|at| {
                !starts || !before(*at).is_some_and(|it| it == '_' || it.is_alphanumeric())
            })
            .collect()
    }

    /// `x[i]` with anything but a plain number for `i`.
    fn indexings(&self) -> Vec<usize> {
        let bytes = self.code.as_bytes();
        let indexed = |at: usize| {
            let before = at.checked_sub(1).map_or(b' ', |at| bytes[at]);
            before.is_ascii_alphanumeric() || b"_)]?".contains(&before)
        };
        let literal = |at: usize| {
            let inside = self.code.get(at + 1..).and_then(|rest| rest.split(']').next());
            inside.is_some_and(|it| !it.is_empty() && it.bytes().all(|b| b.is_ascii_digit()))
        };
        let brackets = self.code.match_indices('[').map(|(at, _)| at);
        brackets.filter(|at| indexed(*at) && !literal(*at)).collect()
    }

    /// `Name {` where that is a value and not a type, a definition or an implementation.
    fn made(&self, name: &str) -> Vec<usize> {
        let is_value = |at: &usize| {
            let before = self.code.get(..*at).unwrap_or_default();
            let path = |it: char| it == ':' || it == '_' || it.is_alphanumeric();
            let before = before.trim_end_matches(path).trim_end().trim_end_matches('&').trim_end();
            !["->", ">", " for", "impl", "struct"].iter().any(|it| before.ends_with(it))
        };
        let literal = format!("{name} {{");
        let found = self.code.match_indices(&literal).map(|(at, _)| at);
        let whole = |at: &usize| {
            let before = self.code.get(..*at).and_then(|it| it.chars().next_back());
            !before.is_some_and(|it| it == '_' || it.is_alphanumeric())
        };
        found.filter(whole).filter(is_value).collect()
    }
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|it| *it == '_' || it.is_alphanumeric()).collect()
}

/// The first word of each member of `a, b::{c, d}, e}`.
fn members(group: &str) -> impl Iterator<Item = String> {
    let mut depth = 1;
    let mut members = vec![String::new()];
    for it in group.chars() {
        match it {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => members.push(String::new()),
            _ if depth == 1 => members.last_mut().unwrap().push(it),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    members.into_iter().map(|it| identifier(it.trim())).filter(|it| !it.is_empty())
}

/// The braces of a function, from its `fn` on; nothing for one without a body.
fn body(function: &str) -> Option<(usize, usize)> {
    let (mut inside, mut depth, mut open) = (0_usize, 0_usize, None);
    for (at, it) in function.bytes().enumerate() {
        match it {
            b'(' | b'[' if open.is_none() => inside += 1,
            b')' | b']' if open.is_none() => inside = inside.checked_sub(1)?,
            b';' if open.is_none() && inside == 0 => return None,
            b'{' if inside == 0 => {
                open = open.or(Some(at));
                depth += 1;
            }
            b'}' if open.is_some() => {
                depth -= 1;
                if depth == 0 {
                    return Some((open?, at));
                }
            }
            _ => {}
        }
    }
    None
}

/// The same text, but for comments and the insides of strings and characters: those are blanks.
fn without_words(text: &str) -> String {
    let mut code = text.as_bytes().to_vec();
    let mut at = 0;
    while at < code.len() {
        let rest = &text.as_bytes()[at..];
        let end = match rest {
            [b'/', b'/', ..] => rest.iter().position(|it| *it == b'\n').unwrap_or(rest.len()),
            [b'/', b'*', ..] => text[at..].find("*/").map_or(rest.len(), |end| end + 2),
            [b'r', b'"' | b'#', ..] if !follows_a_word(&code, at) => raw_string(rest),
            [b'"', ..] => quoted(rest),
            [b'\'', b'\\', ..] => {
                2 + rest[2..].iter().skip(1).position(|it| *it == b'\'').unwrap() + 2
            }
            [b'\'', b'"' | b'{' | b'}' | b'[' | b']' | b'(' | b')' | b'/', b'\'', ..] => 3,
            _ => 0,
        };
        for byte in &mut code[at..at + end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at += end.max(1);
    }
    String::from_utf8(code).unwrap()
}

fn follows_a_word(code: &[u8], at: usize) -> bool {
    // `br"` is a raw string as well.
    let at = if at > 0 && code[at - 1] == b'b' { at - 1 } else { at };
    at > 0 && (code[at - 1].is_ascii_alphanumeric() || code[at - 1] == b'_')
}

/// The length of `r#"…"#`; 0 for `r#name`.
fn raw_string(rest: &[u8]) -> usize {
    let hashes = rest[1..].iter().take_while(|it| **it == b'#').count();
    if rest.get(1 + hashes) != Some(&b'"') {
        return 0;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    let inside = &rest[hashes + 2..];
    let found = inside.windows(end.len()).position(|it| it == end.as_bytes());
    found.map_or(rest.len(), |found| hashes + 2 + found + end.len())
}

fn quoted(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != b'"' {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

#[test]
fn the_rules_see_what_they_look_for() {
    let code = |text: &str| Source::of("src/auth/x.rs".to_owned(), text.to_owned());
    let words =
        code("let a = \"b.unwrap()\"; // .unwrap()\nlet c = r#\"\"x.unwrap()\"#; d.unwrap();");
    assert_eq!(words.words(".unwrap()").len(), 1);
    let used =
        code("use crate::{config::{A, B}, pool};\nuse super::super::server; crate::meter::x();");
    let used: Vec<_> = used.rooms_used().into_iter().map(|(_, room)| room).collect();
    assert_eq!(used, ["config", "pool", "meter", "server"]);
    let indexed = code("let x: [u8; 4] = y[i] + z[0] + w()[..4]; #[derive(A)] let [a, b] = c;");
    assert_eq!(indexed.indexings().len(), 2);
    let made =
        code("fn a() -> &Lease { Lease { b } } impl Drop for Lease {} let c = pool::Lease { d };");
    assert_eq!(made.made("Lease").len(), 2);
    let functions =
        code("fn a(x: [u8; 2]) -> u8 {\n  '{'; '\\''; \"}\";\n  1\n}\nfn b();\n").functions();
    let [only] = functions.as_slice() else { panic!("{}", functions.len()) };
    assert_eq!((only.name.as_str(), only.lines, only.body), ("a", 4, 2));
}
