//! The selector grammar, with upstream's tolerance (`x in ()`, `a=`, blanks anywhere) and texts.

use std::collections::BTreeSet;

use crate::field::{self, Path};
use crate::names;

use super::{BINARY_OPERATORS, Operator, Requirement, SelectorError};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    End,
    Close,
    Comma,
    Not,
    DoubleEquals,
    Equals,
    Greater,
    Identifier,
    In,
    Less,
    NotEquals,
    NotIn,
    Open,
}

/// The symbol text begins with; the longest wins.
fn symbol(text: &str) -> Option<(Token, &str)> {
    const SYMBOLS: [(&str, Token); 9] = [
        ("==", Token::DoubleEquals),
        ("!=", Token::NotEquals),
        (")", Token::Close),
        (",", Token::Comma),
        ("!", Token::Not),
        ("=", Token::Equals),
        (">", Token::Greater),
        ("<", Token::Less),
        ("(", Token::Open),
    ];
    SYMBOLS.iter().find(|(symbol, _)| text.starts_with(symbol)).map(|(symbol, token)| (*token, *symbol))
}

fn is_special(character: char) -> bool {
    matches!(character, '=' | '!' | '(' | ')' | ',' | '>' | '<')
}

fn is_blank(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\r' | '\n')
}

/// Splits text into tokens; the last is always `End`. A NUL ends the text, as it does upstream.
fn scan(text: &str) -> Vec<(Token, String)> {
    let text = text.split('\0').next().unwrap_or_default();
    let mut tokens = Vec::new();
    let mut rest = text.trim_start_matches(is_blank);
    while !rest.is_empty() {
        let (token, text) = symbol(rest).unwrap_or_else(|| {
            let end = rest.find(|character| is_special(character) || is_blank(character)).unwrap_or(rest.len());
            match &rest[..end] {
                word @ "in" => (Token::In, word),
                word @ "notin" => (Token::NotIn, word),
                word => (Token::Identifier, word),
            }
        });
        tokens.push((token, text.to_owned()));
        rest = rest[text.len()..].trim_start_matches(is_blank);
    }
    tokens.push((Token::End, String::new()));
    tokens
}

struct Parser {
    tokens: Vec<(Token, String)>,
    position: usize,
}

/// Whether `in` and `notin` are operators here, or names and values like any other.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Context {
    Operator,
    Values,
}

impl Parser {
    /// The token at the position; past the end it stays `End`.
    fn look(&self, context: Context) -> (Token, &str) {
        let (token, text) = self.tokens.get(self.position).map_or((Token::End, ""), |(token, text)| (*token, text));
        match token {
            Token::In | Token::NotIn if context == Context::Values => (Token::Identifier, text),
            _ => (token, text),
        }
    }

    fn next(&mut self, context: Context) -> (Token, String) {
        let (token, text) = self.look(context);
        let found = (token, text.to_owned());
        self.position += 1;
        found
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let (mut token, mut key) = self.next(Context::Values);
        let negated = token == Token::Not;
        if negated {
            (token, key) = self.next(Context::Values);
        }
        if token != Token::Identifier {
            return Err(SelectorError::new(format!("found '{key}', expected: identifier")));
        }
        let faults = names::is_qualified_name(&key);
        if !faults.is_empty() {
            let error = field::Error::invalid(&Path::root(), key.as_str(), faults.join("; "));
            return Err(SelectorError::new(error.to_string()));
        }
        let ends = matches!(self.look(Context::Values).0, Token::End | Token::Comma);
        if negated {
            // An operator after a negated key is left for the caller to stumble over, as upstream does.
            return Requirement::new(&key, Operator::DoesNotExist, Vec::new());
        }
        if ends {
            return Requirement::new(&key, Operator::Exists, Vec::new());
        }
        let (token, text) = self.next(Context::Operator);
        let operator = match token {
            Token::In => Operator::In,
            Token::NotIn => Operator::NotIn,
            Token::Equals => Operator::Equals,
            Token::DoubleEquals => Operator::DoubleEquals,
            Token::NotEquals => Operator::NotEquals,
            Token::Greater => Operator::GreaterThan,
            Token::Less => Operator::LessThan,
            _ => return Err(SelectorError::new(format!("found '{text}', expected: {BINARY_OPERATORS}"))),
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => self.exact_value()?,
        };
        Requirement::new(&key, operator, values.into_iter().collect())
    }

    fn values(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        let (token, text) = self.next(Context::Values);
        if token != Token::Open {
            return Err(SelectorError::new(format!("found '{text}' expected: '('")));
        }
        let (token, text) = self.look(Context::Values);
        match token {
            Token::Identifier | Token::Comma => {
                let text = text.to_owned();
                let values = self.identifiers()?;
                if self.next(Context::Values).0 != Token::Close {
                    return Err(SelectorError::new(format!("found '{text}', expected: ')'")));
                }
                Ok(values)
            }
            Token::Close => {
                self.position += 1;
                Ok(BTreeSet::from([String::new()]))
            }
            _ => Err(SelectorError::new(format!("found '{text}', expected: ',', ')' or identifier"))),
        }
    }

    /// `a,b`, where a missing value between, before or after commas is the empty string.
    fn identifiers(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        let mut values = BTreeSet::new();
        loop {
            let (token, text) = self.next(Context::Values);
            match token {
                Token::Identifier => {
                    values.insert(text);
                    match self.look(Context::Values) {
                        (Token::Comma, _) => {}
                        (Token::Close, _) => return Ok(values),
                        (_, text) => {
                            return Err(SelectorError::new(format!("found '{text}', expected: ',' or ')'")));
                        }
                    }
                }
                Token::Comma => {
                    if values.is_empty() {
                        values.insert(String::new());
                    }
                    match self.look(Context::Values).0 {
                        Token::Close => {
                            values.insert(String::new());
                            return Ok(values);
                        }
                        Token::Comma => {
                            values.insert(String::new());
                        }
                        _ => {}
                    }
                }
                _ => return Err(SelectorError::new(format!("found '{text}', expected: ',', or identifier"))),
            }
        }
    }

    fn exact_value(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        if matches!(self.look(Context::Values).0, Token::End | Token::Comma) {
            return Ok(BTreeSet::from([String::new()]));
        }
        match self.next(Context::Values) {
            (Token::Identifier, text) => Ok(BTreeSet::from([text])),
            (_, text) => Err(SelectorError::new(format!("found '{text}', expected: identifier"))),
        }
    }
}

pub(super) fn parse(text: &str) -> Result<Vec<Requirement>, SelectorError> {
    let mut parser = Parser { tokens: scan(text), position: 0 };
    let mut requirements = Vec::new();
    loop {
        match parser.look(Context::Values) {
            (Token::Identifier | Token::Not, _) => {
                let requirement = parser
                    .requirement()
                    .map_err(|error| SelectorError::new(format!("unable to parse requirement: {error}")))?;
                requirements.push(requirement);
                match parser.next(Context::Values) {
                    (Token::End, _) => return Ok(requirements),
                    (Token::Comma, _) => {
                        let (token, text) = parser.look(Context::Values);
                        if !matches!(token, Token::Identifier | Token::Not) {
                            let text = format!("found '{text}', expected: identifier after ','");
                            return Err(SelectorError::new(text));
                        }
                    }
                    (_, text) => {
                        let text = format!("found '{text}', expected: ',' or 'end of string'");
                        return Err(SelectorError::new(text));
                    }
                }
            }
            (Token::End, _) => return Ok(requirements),
            (_, text) => {
                let text = format!("found '{text}', expected: !, identifier, or 'end of string'");
                return Err(SelectorError::new(text));
            }
        }
    }
}
