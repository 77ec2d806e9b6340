//! A roster: one key for each line of a CSV file (RFC 4180).

use std::path::Path;

use anyhow::{Context, anyhow, bail};

use super::values;
use crate::store::KeyDetails;

/// Reads every line, or tells the first that is wrong; empty fields are as in `usual`.
pub(super) fn read(file: &Path, usual: &KeyDetails) -> anyhow::Result<Vec<KeyDetails>> {
    let text = super::read(file)?;
    parse(text.trim_start_matches('\u{feff}'), usual)
        .map_err(|(line, says)| anyhow!("{}:{line}: {says}; no key was made", file.display()))
}

/// A line's number, and what is wrong with it.
type Wrong = (usize, String);

fn parse(text: &str, usual: &KeyDetails) -> Result<Vec<KeyDetails>, Wrong> {
    let mut rows = rows(text)?.into_iter();
    let (_, headings) = rows.next().ok_or((1, "the file is empty".to_owned()))?;
    let headings: Vec<_> = headings.iter().map(|it| it.trim().to_ascii_lowercase()).collect();
    if !headings.iter().any(|heading| heading == "name") {
        return Err((
            1,
            "the first line has to name the columns, and one of them is name".to_owned(),
        ));
    }
    let mut all = Vec::new();
    for (line, fields) in rows {
        if fields.len() > headings.len() {
            return Err((line, "more fields than the first line has".to_owned()));
        }
        let mut details = usual.clone();
        for (heading, field) in headings.iter().zip(&fields) {
            put(&mut details, heading, field.trim())
                .map_err(|error| (line, format!("{heading}: {error:#}")))?;
        }
        if let Some(fault) = details.fault() {
            return Err((line, fault));
        }
        all.push(details);
    }
    if all.is_empty() { Err((1, "no line follows the first".to_owned())) } else { Ok(all) }
}

fn put(details: &mut KeyDetails, heading: &str, field: &str) -> anyhow::Result<()> {
    if field.is_empty() {
        return Ok(());
    }
    let said = |says: String| anyhow!(says);
    match heading {
        "name" => field.clone_into(&mut details.name),
        "owner" => details.owner = Some(field.to_owned()),
        "role" => details.role = values::role(field).map_err(said)?.0,
        "models" => details.models = Some(values::models(field).map_err(said)?),
        "cloud" => details.cloud = Some(field.parse().context("expected true or false")?),
        "expires" => details.expires = values::expiry(field).map_err(said)?.0,
        "networks" => {
            let all = values::words(field).map(values::network).collect::<Result<_, _>>();
            details.networks = Some(all.map_err(said)?);
        }
        "limits" => details.limits = field.parse().map_err(said)?,
        "note" => field.clone_into(&mut details.note),
        _ => bail!(
            "there is no such column; there are name, owner, role, models, cloud, expires, networks, \
             limits and note"
        ),
    }
    Ok(())
}

/// Every row that is not blank, with the number of its line.
fn rows(text: &str) -> Result<Vec<(usize, Vec<String>)>, Wrong> {
    let mut rows = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if !line.trim().is_empty() {
            rows.push((
                at + 1,
                fields(line).ok_or((at + 1, "a quote without its end".to_owned()))?,
            ));
        }
    }
    Ok(rows)
}

/// A quote within a quoted field is doubled. A field does not go over the end of its line.
fn fields(line: &str) -> Option<Vec<String>> {
    let mut fields = vec![String::new()];
    let (mut is_quoted, mut letters) = (false, line.chars().peekable());
    while let Some(letter) = letters.next() {
        match letter {
            '"' if is_quoted && letters.peek() == Some(&'"') => {
                letters.next();
                fields.last_mut()?.push('"');
            }
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => fields.push(String::new()),
            letter => fields.last_mut()?.push(letter),
        }
    }
    (!is_quoted).then_some(fields)
}

/// As one field.
pub(super) fn quoted(text: &str) -> String {
    match text.contains([',', '"']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Role;

    fn usual() -> KeyDetails {
        KeyDetails { role: Some(Role::User), note: "autumn".to_owned(), ..KeyDetails::default() }
    }

    #[test]
    fn each_line_is_a_key_and_what_it_leaves_empty_is_as_usual() {
        let text = "Name,role,models,networks,limits,note\r\ns01,,,,,\n\n\
                    \"s02, the \"\"second\"\"\",operator,gemma3* qwen3*,10.0.0.0/8;::1,tokens_per_day=9 concurrent=2,late\n";
        let all = parse(text, &usual()).unwrap();
        assert_eq!(all[0], KeyDetails { name: "s01".to_owned(), ..usual() });
        assert_eq!(all[1].name, "s02, the \"second\"");
        assert_eq!(all[1].role, Some(Role::Operator));
        assert_eq!(all[1].models.as_ref().unwrap().to_string(), "gemma3*, qwen3*");
        assert_eq!(all[1].networks.as_ref().unwrap().len(), 2);
        assert_eq!(all[1].limits.to_string(), "tokens_per_day=9 concurrent=2");
        assert_eq!(all[1].note, "late");
        assert_eq!(all.len(), 2);
        assert_eq!(fields(&quoted(&all[1].name)).unwrap(), [all[1].name.clone()]);
    }

    #[test]
    fn a_line_that_is_wrong_is_told_by_its_number() {
        for (text, line, says) in [
            ("", 1, "empty"),
            ("name\n", 1, "no line"),
            ("owner\nanna\n", 1, "name the columns"),
            ("name,rule\ns01,x\n", 2, "no such column"),
            ("name,role\ns01,user\ns02,king\n", 3, "role"),
            ("name\ns01,x\n", 2, "more fields"),
            ("name\n\"s01\n", 2, "quote"),
            ("name\n\na/b\n", 3, "a/b"),
            ("name,note\n,x\n", 2, "no name"),
            ("name,cloud\ns01,maybe\n", 2, "true or false"),
            ("name,limits\ns01,tokens=9\n", 2, "there is no limit"),
            ("name,expires\ns01,2001-01-01\n", 2, "over already"),
        ] {
            let (at, told) = parse(text, &usual()).unwrap_err();
            assert!(at == line && told.contains(says), "{text:?}: {at}: {told}");
        }
    }
}
