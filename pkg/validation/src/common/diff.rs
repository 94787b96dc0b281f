//! What changed between two objects, for the texts of immutability errors.
//!
//! Differs from upstream: upstream prints Go values with go-cmp, whose output is not stable; here every changed
//! field is one line per side, with its path.

use std::fmt::Write;

use serde_json::Value;

use super::report::shown;

/// Lines shown at most: the text goes into a status message.
const LINES_MAX: usize = 40;

pub(crate) fn diff<T: serde::Serialize>(old: &T, new: &T) -> String {
    let mut lines = Vec::new();
    walk("", &shown(old), &shown(new), &mut lines);
    let mut text = String::new();
    for line in lines.iter().take(LINES_MAX) {
        let _ = writeln!(text, "{line}");
    }
    if lines.len() > LINES_MAX {
        let _ = writeln!(text, "... {} more lines", lines.len() - LINES_MAX);
    }
    text
}

fn walk(path: &str, old: &Value, new: &Value, lines: &mut Vec<String>) {
    match (old, new) {
        (old, new) if old == new => {}
        (Value::Object(old), Value::Object(new)) => {
            let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                walk(&path, old.get(key).unwrap_or(&Value::Null), new.get(key).unwrap_or(&Value::Null), lines);
            }
        }
        (Value::Array(old), Value::Array(new)) => {
            for index in 0..old.len().max(new.len()) {
                let (old, new) = (old.get(index).unwrap_or(&Value::Null), new.get(index).unwrap_or(&Value::Null));
                walk(&format!("{path}[{index}]"), old, new, lines);
            }
        }
        (old, new) => {
            if !old.is_null() {
                lines.push(format!("- {path}: {old}"));
            }
            if !new.is_null() {
                lines.push(format!("+ {path}: {new}"));
            }
        }
    }
}
