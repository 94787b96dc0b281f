//! YAML as kubectl reads and writes it: YAML 1.1 scalars, to a JSON tree and from one.

use rkube_apimachinery::quote::quote;
use serde_json::Value;
use serde_saphyr::options::DuplicateKeyPolicy;

/// Text that is not YAML, or more of it than a request may hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum YamlError {
    #[error("error converting YAML to JSON: {0}")]
    Syntax(String),
    #[error("writing YAML: {0}")]
    Write(String),
}

/// As deep as JSON may go.
const MAX_DEPTH: usize = 128;
/// More than manifests have: a body of 3 MiB with two bytes to a node would be 1.5 million.
const MAX_NODES: usize = 1_000_000;
const MAX_EVENTS: usize = 2 * MAX_NODES;
/// Aliases are how a small text makes a large tree: what they add stays below this many nodes.
const MAX_FROM_ALIASES: usize = 50_000;

/// A tree, and what strict decoding has against the text: a key that comes twice.
#[derive(Debug)]
pub struct Parsed {
    pub value: Value,
    pub duplicate: Option<String>,
}

fn options(duplicate_keys: DuplicateKeyPolicy) -> serde_saphyr::Options {
    serde_saphyr::options! {
        duplicate_keys: duplicate_keys,
        legacy_octal_numbers: true,
        with_snippet: false,
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_FROM_ALIASES },
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: MAX_EVENTS,
            max_recorded_anchor_events: MAX_FROM_ALIASES,
            max_documents: 1,
        },
    }
}

/// Parses one document. Where a key comes twice, the last one counts and `duplicate` says so.
pub fn parse(bytes: &[u8]) -> Result<Parsed, YamlError> {
    let read = |policy| serde_saphyr::from_slice_with_options::<Value>(bytes, options(policy));
    let syntax = |error: serde_saphyr::Error| YamlError::Syntax(format!("yaml: {}", one_line(&error.to_string())));
    match read(DuplicateKeyPolicy::Error) {
        Ok(value) => Ok(Parsed { value, duplicate: None }),
        Err(error) => {
            let Some(duplicate) = duplicate(&error) else { return Err(syntax(error)) };
            let value = read(DuplicateKeyPolicy::LastWins).map_err(syntax)?;
            Ok(Parsed { value, duplicate: Some(duplicate) })
        }
    }
}

/// Upstream's words for a key that comes twice.
fn duplicate(error: &serde_saphyr::Error) -> Option<String> {
    let serde_saphyr::Error::DuplicateMappingKey { key, location } = error.without_snippet() else { return None };
    let key = quote(key.as_deref().unwrap_or_default()).to_string();
    Some(format!("yaml: unmarshal errors:\n  line {}: key {key} already set in map", location.line()))
}

/// The parser's messages go on with an excerpt of the text, which does not belong into an answer.
fn one_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default().trim_end_matches(':')
}

/// Writes a tree as a block-style document.
pub fn write(value: &Value) -> Result<String, YamlError> {
    let options = serde_saphyr::ser_options! { min_fold_chars: usize::MAX };
    serde_saphyr::to_string_with_options(value, options).map_err(|error| YamlError::Write(error.to_string()))
}
