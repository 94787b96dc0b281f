//! Field selectors: `metadata.name=x,status.phase!=Running`, with backslash escapes in values.
//!
//! In: text of a query. Out: a [`Selector`] over named fields, whose labels the resource checks and
//! translates with [`Selector::transform`].
//! Invariant: `parse(selector.to_string()) == selector`.
//! Behaves as apimachinery/pkg/fields/selector.go, v1.36.

use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    Equals,
    NotEquals,
}

/// One condition on one field.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requirement {
    pub field: String,
    pub operator: Operator,
    pub value: String,
}

/// All requirements must hold; the empty selector matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

/// Why text is not a field selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("invalid selector: '{selector}'; can't understand '{term}'")]
    Term { selector: String, term: String },
    #[error("invalid field selector: invalid escape sequence: {0}")]
    Escape(String),
    /// Upstream prints the character's number.
    #[error("invalid field selector: unescaped character in value: {}", u32::from(*.0))]
    Unescaped(char),
}

impl Selector {
    pub fn everything() -> Self {
        Self::default()
    }

    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    pub fn equals(field: impl Into<String>, value: impl Into<String>) -> Self {
        Self::new(vec![Requirement { field: field.into(), operator: Operator::Equals, value: value.into() }])
    }

    pub fn new(requirements: Vec<Requirement>) -> Self {
        Self { requirements, nothing: false }
    }

    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut terms = split_terms(text);
        terms.sort_unstable();
        let mut requirements = Vec::new();
        for term in terms.into_iter().filter(|term| !term.is_empty()) {
            let Some((field, operator, value)) = split_term(term) else {
                return Err(ParseError::Term { selector: text.to_owned(), term: term.to_owned() });
            };
            requirements.push(Requirement { field: field.to_owned(), operator, value: unescape(value)? });
        }
        Ok(Self::new(requirements))
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    pub fn is_nothing(&self) -> bool {
        self.nothing
    }

    /// `get` gives a field's text, empty when the object does not have it.
    pub fn matches<'a>(&self, get: impl Fn(&str) -> &'a str) -> bool {
        !self.nothing
            && self.requirements.iter().all(|requirement| {
                (get(&requirement.field) == requirement.value) == (requirement.operator == Operator::Equals)
            })
    }

    /// The only value `field` may have, when the selector says so.
    pub fn requires_exact_match(&self, field: &str) -> Option<&str> {
        self.requirements
            .iter()
            .find(|requirement| requirement.operator == Operator::Equals && requirement.field == field)
            .map(|requirement| requirement.value.as_str())
    }

    /// Renames fields and rewrites values, or refuses one. A requirement that becomes empty on both sides
    /// is dropped.
    pub fn transform<E>(&self, mut rewrite: impl FnMut(&str, &str) -> Result<(String, String), E>) -> Result<Self, E> {
        let mut requirements = Vec::with_capacity(self.requirements.len());
        for requirement in &self.requirements {
            let (field, value) = rewrite(&requirement.field, &requirement.value)?;
            if !field.is_empty() || !value.is_empty() {
                requirements.push(Requirement { field, operator: requirement.operator, value });
            }
        }
        Ok(Self { requirements, nothing: self.nothing })
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operator = match self.operator {
            Operator::Equals => "=",
            Operator::NotEquals => "!=",
        };
        write!(f, "{}{operator}{}", self.field, escape(&self.value))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

/// Splits at commas that no backslash protects; backslashes stay.
fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let mut start = 0;
    let mut escaped = false;
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b',' => {
                terms.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

/// Splits at the first operator. Fields cannot hold one, so there is nothing to escape on the left.
fn split_term(term: &str) -> Option<(&str, Operator, &str)> {
    let at =
        term.char_indices().find(|(index, _)| term[*index..].starts_with('=') || term[*index..].starts_with("!="))?.0;
    let (field, rest) = term.split_at(at);
    if let Some(value) = rest.strip_prefix("!=") {
        return Some((field, Operator::NotEquals, value));
    }
    let value = rest.strip_prefix("==").or_else(|| rest.strip_prefix('='))?;
    Some((field, Operator::Equals, value))
}

/// Protects `\`, `,` and `=` in a value.
pub fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for character in value.chars() {
        if matches!(character, '\\' | ',' | '=') {
            out.push('\\');
        }
        out.push(character);
    }
    out
}

fn unescape(text: &str) -> Result<String, ParseError> {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some(escaped @ ('\\' | ',' | '=')) => out.push(escaped),
                Some(other) => return Err(ParseError::Escape(format!("\\{other}"))),
                None => return Err(ParseError::Escape("\\".to_owned())),
            },
            ',' | '=' => return Err(ParseError::Unescaped(character)),
            _ => out.push(character),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parses_and_fails_as_upstream() {
        let parsed = |text: &str| Selector::parse(text).map_or_else(|error| error.to_string(), |ok| ok.to_string());
        for (text, expected) in [
            ("", ""),
            ("x=a,y==b,z!=c", "x=a,y=b,z!=c"),
            ("z=1,a=2,,", "a=2,z=1"),
            (r"x=a\,b\=c\\", r"x=a\,b\=c\\"),
            ("x=", "x="),
            ("x", "invalid selector: 'x'; can't understand 'x'"),
            ("x=a||y=b", "invalid field selector: unescaped character in value: 61"),
            (r"x=\a", r"invalid field selector: invalid escape sequence: \a"),
            (r"x=a\", r"invalid field selector: invalid escape sequence: \"),
        ] {
            assert_eq!(parsed(text), expected, "{text:?}");
        }
    }

    #[test]
    fn matches_and_transforms() {
        let get = |field: &str| if field == "a" { "1" } else { "" };
        assert!(Selector::parse("a=1,b!=2,c=").expect("valid").matches(get));
        assert!(!Selector::parse("a!=1").expect("valid").matches(get));
        let selector = Selector::parse("a=1,b=2").expect("valid");
        let renamed = selector.transform(|field, value| {
            if field == "b" { Ok::<_, ()>(Default::default()) } else { Ok(("x".to_owned(), value.to_owned())) }
        });
        assert_eq!(renamed.expect("nothing is refused").to_string(), "x=1");
        assert_eq!(selector.requires_exact_match("b"), Some("2"));
    }

    proptest! {
        #[test]
        fn printing_then_parsing_changes_nothing(terms in prop::collection::vec(("[a-z.]{1,5}", any::<bool>(), ".{0,6}"), 0..4)) {
            let mut text: Vec<String> = terms
                .iter()
                .map(|(field, equal, value)| format!("{field}{}{}", if *equal { "=" } else { "!=" }, escape(value)))
                .collect();
            text.sort();
            let selector = Selector::parse(&text.join(",")).expect("escaped");
            prop_assert_eq!(Selector::parse(&selector.to_string()).expect("printed"), selector);
        }
    }
}
