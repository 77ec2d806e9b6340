//! Roles, and who has which.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::problems::shown;

/// What a caller may do, the weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Viewer,
    User,
    Operator,
    Admin,
}

impl Role {
    pub const ALL: [Self; 4] = [Self::Viewer, Self::User, Self::Operator, Self::Admin];
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Viewer => "viewer",
            Self::User => "user",
            Self::Operator => "operator",
            Self::Admin => "admin",
        })
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.into_iter().find(|role| role.to_string() == text);
        named.ok_or_else(|| {
            format!("{} is no role; viewer, user, operator and admin are", shown(text))
        })
    }
}

/// A name, or one with `*` for any run of characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    is_exact: bool,
}

impl Pattern {
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self { text: text.to_owned(), is_exact: !text.contains('*') }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    pub(super) fn is_exact(&self) -> bool {
        self.is_exact
    }

    /// Whether it matches all that the other matches, as far as can be seen from both.
    #[must_use]
    pub(super) fn covers(&self, other: &Self) -> bool {
        // A star within the other stands for what a star here may match, and for itself.
        self.matches(&other.text)
    }

    /// Takes time in proportion to both lengths, whatever the pattern.
    #[must_use]
    pub fn matches(&self, name: impl AsRef<[u8]>) -> bool {
        let (text, name) = (self.text.as_bytes(), name.as_ref());
        if self.is_exact {
            return text == name;
        }
        let mut parts = text.split(|byte| *byte == b'*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = name.strip_prefix(first) else { return false };
        let last = parts.next_back().unwrap_or_default();
        for part in parts {
            let Some(at) = memchr::memmem::find(rest, part) else { return false };
            rest = rest.get(at + part.len()..).unwrap_or_default();
        }
        rest.ends_with(last)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

/// Who has which role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roles {
    default: Role,
    exact: BTreeMap<String, Role>,
    patterns: Vec<(Pattern, Role)>,
}

impl Roles {
    /// Of one name with two roles, the lesser counts.
    #[must_use]
    pub fn new(default: Role, named: Vec<(Pattern, Role)>) -> Self {
        let mut roles = Self { default, exact: BTreeMap::new(), patterns: Vec::new() };
        for (pattern, role) in named {
            if pattern.is_exact() {
                let held = roles.exact.entry(pattern.text).or_insert(role);
                *held = role.min(*held);
            } else {
                roles.patterns.push((pattern, role));
            }
        }
        roles
    }

    pub(super) fn set_default(&mut self, role: Role) {
        self.default = role;
    }

    /// # Errors
    /// Where one name would have two roles.
    pub(super) fn add(&mut self, pattern: Pattern, role: Role) -> Result<(), String> {
        let by_pattern = || self.patterns.iter().find(|(known, _)| *known == pattern);
        let held = self.exact.get(&pattern.text).or_else(|| by_pattern().map(|(_, role)| role));
        match held {
            Some(held) if *held != role => {
                let name = shown(&pattern.text);
                Err(format!("{name} is named as {held} already; a name has one role"))
            }
            Some(_) => Ok(()),
            None if pattern.is_exact() => {
                self.exact.insert(pattern.text, role);
                Ok(())
            }
            None => {
                self.patterns.push((pattern, role));
                Ok(())
            }
        }
    }

    /// That of each name, where none is written.
    #[must_use]
    pub fn of_everybody(&self) -> Option<Role> {
        (self.exact.is_empty() && self.patterns.is_empty()).then_some(self.default)
    }

    /// By exact name, then by pattern (of two, the lesser role), then the default.
    #[must_use]
    pub fn role_of(&self, name: &str) -> Role {
        let by_pattern = || self.matching(name).map(|(_, role)| *role).min();
        self.exact.get(name).copied().or_else(by_pattern).unwrap_or(self.default)
    }

    /// The patterns that decide on a name; none where it is named exactly.
    #[must_use]
    pub fn patterns_matching(&self, name: &str) -> Vec<(Pattern, Role)> {
        if self.exact.contains_key(name) {
            return Vec::new();
        }
        self.matching(name).cloned().collect()
    }

    fn matching(&self, name: &str) -> impl Iterator<Item = &(Pattern, Role)> {
        self.patterns.iter().filter(move |(pattern, _)| pattern.matches(name))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn roles(named: &[(&str, Role)]) -> Roles {
        let named = named.iter().map(|(name, role)| (Pattern::new(name), *role)).collect();
        Roles::new(Role::User, named)
    }

    #[test]
    fn an_exact_name_goes_before_a_pattern_and_a_pattern_before_the_default() {
        let roles = roles(&[("s*", Role::Viewer), ("sam", Role::Admin)]);
        assert_eq!(roles.role_of("sam"), Role::Admin);
        assert_eq!(roles.role_of("sue"), Role::Viewer);
        assert_eq!(roles.role_of("bob"), Role::User);
    }

    #[test]
    fn of_two_patterns_the_lesser_role_counts() {
        let roles = roles(&[("s*", Role::Admin), ("*m", Role::Operator)]);
        assert_eq!(roles.role_of("sim"), Role::Operator);
        assert_eq!(roles.patterns_matching("sim").len(), 2);
    }

    #[test]
    fn a_star_is_a_pattern_even_for_a_name_with_a_star() {
        // A file may name a key `a*`; that it is spelt like a pattern makes it no exact name.
        let roles = roles(&[("a*", Role::Admin), ("*", Role::Viewer)]);
        assert_eq!(roles.role_of("a*"), Role::Viewer);
    }

    #[test]
    fn a_name_cannot_be_given_a_second_role() {
        let mut roles = roles(&[]);
        for (name, role, is_good) in [
            ("anna", Role::Admin, true),
            ("anna", Role::Admin, true),
            ("anna", Role::User, false),
            ("s*", Role::User, true),
            ("s*", Role::Operator, false),
            ("Anna", Role::User, true),
        ] {
            assert_eq!(roles.add(Pattern::new(name), role).is_ok(), is_good, "{name} {role}");
        }
        assert_eq!(roles.role_of("anna"), Role::Admin);
    }

    #[test]
    fn roles_are_ordered_by_power_and_read_as_they_are_written() {
        assert!(Role::ALL.is_sorted());
        for role in Role::ALL {
            assert_eq!(role.to_string().parse(), Ok(role));
        }
        assert!("Admin".parse::<Role>().is_err());
    }

    #[test]
    fn stars_match_any_run() {
        for (pattern, name, is) in [
            ("*", "", true),
            ("a*b", "ab", true),
            ("a*b", "aXbYb", true),
            ("a*b", "a", false),
            ("ab*ba", "aba", false),
            ("*x*y*", "1x2y3", true),
            ("*x*y*", "1y2x3", false),
            ("gemma", "gemma", true),
            ("gemma", "gemma3", false),
            ("Gemma*", "gemma3", false),
        ] {
            assert_eq!(Pattern::new(pattern).matches(name), is, "{pattern} {name}");
        }
    }

    proptest! {
        #[test]
        fn a_pattern_matches_what_it_was_made_from(parts in prop::collection::vec("[a-c]{0,3}", 1..5)) {
            let (pattern, name) = (parts.join("*"), parts.join("xyz"));
            prop_assert!(Pattern::new(&pattern).matches(&name));
        }

        #[test]
        fn stars_match_what_a_slow_reader_finds(pattern in "[abé*]{0,7}", name in "[abé]{0,8}") {
            let slowly = slowly(pattern.as_bytes(), name.as_bytes());
            prop_assert_eq!(Pattern::new(&pattern).matches(&name), slowly);
        }
    }

    fn slowly(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, _) => name.is_empty(),
            (Some((b'*', later)), None) => slowly(later, name),
            (Some((b'*', later)), Some((_, rest))) => slowly(later, name) || slowly(pattern, rest),
            (Some((wanted, later)), Some((byte, rest))) => wanted == byte && slowly(later, rest),
            (Some(_), None) => false,
        }
    }
}
