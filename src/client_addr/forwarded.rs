//! The hops of a request as the `Forwarded` header names them (RFC 7239).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whom each element of a line names, from the left: `None` for a name that is no address, or none.
/// A line that cannot be read is one such hop, for nobody can say where its hops begin.
pub(super) fn hops(line: &[u8]) -> Vec<Option<IpAddr>> {
    let mut rest = std::str::from_utf8(line).unwrap_or("\u{fffd}");
    let mut hops = Vec::new();
    while let Some(element) = Element::take(&mut rest) {
        match element {
            Element::Empty => {}
            Element::Named(hop) => hops.push(hop),
            Element::Broken => return vec![None],
        }
    }
    hops
}

enum Element {
    /// A list may have them (RFC 9110, 5.6.1.2).
    Empty,
    Named(Option<IpAddr>),
    Broken,
}

impl Element {
    /// `None` at the end of the line.
    fn take(rest: &mut &str) -> Option<Self> {
        if rest.is_empty() {
            return None;
        }
        let (mut is_empty, mut named) = (true, None);
        loop {
            skip_blanks(rest);
            if !rest.starts_with([',', ';']) && !rest.is_empty() {
                let Some((name, value)) = pair(rest) else { return Some(Self::Broken) };
                is_empty = false;
                if name.eq_ignore_ascii_case("for") && named.replace(value).is_some() {
                    return Some(Self::Broken);
                }
                skip_blanks(rest);
            }
            if let Some(more) = rest.strip_prefix(';') {
                *rest = more;
            } else if rest.is_empty() || rest.starts_with(',') {
                *rest = rest.get(1..).unwrap_or_default();
                break;
            } else {
                return Some(Self::Broken);
            }
        }
        Some(match is_empty {
            true => Self::Empty,
            false => Self::Named(named.and_then(|node| address(&node))),
        })
    }
}

fn skip_blanks(rest: &mut &str) {
    *rest = rest.trim_start_matches([' ', '\t']);
}

/// `name=value`, the value bare or in quotes.
fn pair<'a>(rest: &mut &'a str) -> Option<(&'a str, String)> {
    let (name, after) = rest.split_once('=')?;
    if name.is_empty() || !name.bytes().all(is_token) {
        return None;
    }
    let (value, after) = match after.strip_prefix('"') {
        Some(quoted) => unquoted(quoted)?,
        None => {
            // Colons and brackets should stand in quotes, and are often sent without.
            let is_bare =
                |c: char| u8::try_from(c).is_ok_and(|b| is_token(b) || b":[]".contains(&b));
            let end = after.find(|c| !is_bare(c)).unwrap_or(after.len());
            (after.get(..end)?.to_owned(), after.get(end..)?)
        }
    };
    *rest = after;
    Some((name, value))
}

/// Up to the closing quote, and what follows it.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let (mut value, mut chars) = (String::new(), text.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, text.get(at + 1..)?)),
            '\\' => value.push(chars.next()?.1),
            _ => value.push(c),
        }
    }
    None
}

/// RFC 9110, 5.6.2.
fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

/// Of a node (RFC 7239, 6); `unknown` and names that hide somebody are none.
fn address(node: &str) -> Option<IpAddr> {
    let (ip, port) = match node.strip_prefix('[') {
        Some(v6) => {
            let (ip, port) = v6.split_once(']')?;
            (ip.parse::<Ipv6Addr>().ok()?.into(), port)
        }
        None => {
            let end = node.find(':').unwrap_or(node.len());
            (IpAddr::from(node.get(..end)?.parse::<Ipv4Addr>().ok()?), node.get(end..)?)
        }
    };
    let is_port = |port: &str| {
        !port.is_empty() && port.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    (port.is_empty() || port.strip_prefix(':').is_some_and(is_port)).then(|| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_element_names_a_hop() {
        for (line, named) in [
            ("for=192.0.2.43", "192.0.2.43"),
            ("For=\"[2001:db8:cafe::17]:4711\"", "2001:db8:cafe::17"),
            ("for=192.0.2.60;proto=http;by=203.0.113.43", "192.0.2.60"),
            ("proto=https ; FOR=\"192.0.2.60:80\";host=\"a,b;for=6.6.6.6\"", "192.0.2.60"),
            ("for=192.0.2.43, for=198.51.100.17", "192.0.2.43 198.51.100.17"),
            ("for=192.0.2.43:47011,for=[::ffff:192.0.2.1]", "192.0.2.43 192.0.2.1"),
            ("for=\"192.0.2.43:_port\"", "192.0.2.43"),
            ("for=\"1\\92.0.2.43\"", "192.0.2.43"),
            ("for=192.0.2.43,, ;,", "192.0.2.43"),
            ("for=_hidden, for=unknown, for=\"_SEVKISEK\"", "- - -"),
            ("proto=http", "-"),
            ("for=192.0.2.43, by=10.0.0.1", "192.0.2.43 -"),
            ("", ""),
        ] {
            let hops = hops(line.as_bytes());
            let hops = hops.iter().map(|it| it.map_or_else(|| "-".into(), |ip| ip.to_string()));
            assert_eq!(hops.collect::<Vec<_>>().join(" "), named, "{line}");
        }
    }

    #[test]
    fn a_line_that_could_be_read_in_two_ways_names_nobody() {
        for line in [
            "for=192.0.2.1;for=192.0.2.2",
            "for=\"192.0.2.1, for=192.0.2.2",
            "for=\"192.0.2.1\" x, for=192.0.2.2",
            "for = 192.0.2.1",
            "192.0.2.1",
            "=192.0.2.1",
            "for=192.0.2.1 for=192.0.2.2",
            "for=\"192.0.2.1\\",
        ] {
            assert_eq!(hops(line.as_bytes()), [None], "{line}");
        }
        assert_eq!(hops(b"for=192.0.2.1, for=\xff"), [None]);
        for node in ["2001:db8::1", "[192.0.2.1]", "192.0.2.1:", "192.0.2.1:8 0", "[::1]x", "[::1"]
        {
            assert_eq!(address(node), None, "{node}");
        }
    }
}
