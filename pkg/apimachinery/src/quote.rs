//! Quotes text as Go's `%q` does, which is how names and values appear in every upstream message.
//!
//! Rust's `{:?}` agrees for printable text and differs for what a hostile client sends: control
//! characters, invisible characters and bytes outside the printable sets.

use std::fmt::{self, Write as _};

/// Displays `text` in double quotes with Go's escapes.
pub fn quote(text: &str) -> Quoted<'_> {
    Quoted(text)
}

/// A list as Go's `%q` prints it: `["a" "b"]`.
pub fn quote_list<T: AsRef<str>>(texts: &[T]) -> String {
    let quoted: Vec<String> = texts.iter().map(|text| quote(text.as_ref()).to_string()).collect();
    format!("[{}]", quoted.join(" "))
}

/// See [`quote`].
#[derive(Clone, Copy, Debug)]
pub struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for character in self.0.chars() {
            match character {
                '"' => f.write_str("\\\"")?,
                '\\' => f.write_str("\\\\")?,
                '\x07' => f.write_str("\\a")?,
                '\x08' => f.write_str("\\b")?,
                '\x0c' => f.write_str("\\f")?,
                '\n' => f.write_str("\\n")?,
                '\r' => f.write_str("\\r")?,
                '\t' => f.write_str("\\t")?,
                '\x0b' => f.write_str("\\v")?,
                ' '..='~' => f.write_char(character)?,
                '\0'..='\x7f' => write!(f, "\\x{:02x}", u32::from(character))?,
                _ if is_printable(character) => f.write_char(character)?,
                '\u{80}'..='\u{ffff}' => write!(f, "\\u{:04x}", u32::from(character))?,
                _ => write!(f, "\\U{:08x}", u32::from(character))?,
            }
        }
        f.write_char('"')
    }
}

/// Go's `unicode.IsPrint`.
pub fn is_print(character: char) -> bool {
    (' '..='~').contains(&character) || (!character.is_ascii() && is_printable(character))
}

/// `IsPrint` beyond ASCII: the standard library's table leaves out the same categories.
/// A combining mark counts as printable only after another character, hence the leading letter.
fn is_printable(character: char) -> bool {
    let mut buffer = String::with_capacity(5);
    buffer.push('a');
    buffer.push(character);
    buffer.escape_debug().nth(1) == Some(character)
}

/// JSON as Go's `encoding/json` writes it inside messages: `<`, `>`, `&` and the two separators escaped,
/// whole floats without a fraction.
pub fn go_json(value: &serde_json::Value) -> String {
    let mut out = String::new();
    write_json(value, &mut out);
    out
}

fn write_json(value: &serde_json::Value, out: &mut String) {
    use serde_json::Value;
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(flag) => out.push_str(if *flag { "true" } else { "false" }),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => out.push_str(&go_float(float, -6)),
            _ => {
                let _ = write!(out, "{number}");
            }
        },
        Value::String(text) => write_json_string(text, out),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_json(item, out);
            }
            out.push(']');
        }
        Value::Object(fields) => {
            out.push('{');
            for (index, (name, item)) in fields.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_json_string(name, out);
                out.push(':');
                write_json(item, out);
            }
            out.push('}');
        }
    }
}

fn write_json_string(text: &str, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\0'..='\x1f' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(character));
            }
            _ => out.push(character),
        }
    }
    out.push('"');
}

/// A value as Go's `%v` prints decoded JSON: `map[a:1 b:[x y]]`, `<nil>`.
pub fn go_print(value: &serde_json::Value) -> String {
    let mut out = String::new();
    print(value, &mut out);
    out
}

fn print(value: &serde_json::Value, out: &mut String) {
    use serde_json::Value;
    match value {
        Value::Null => out.push_str("<nil>"),
        Value::Bool(flag) => out.push_str(if *flag { "true" } else { "false" }),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => out.push_str(&go_float(float, -4)),
            _ => {
                let _ = write!(out, "{number}");
            }
        },
        Value::String(text) => out.push_str(text),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(' ');
                }
                print(item, out);
            }
            out.push(']');
        }
        Value::Object(fields) => {
            out.push_str("map[");
            for (index, (name, item)) in fields.iter().enumerate() {
                if index > 0 {
                    out.push(' ');
                }
                out.push_str(name);
                out.push(':');
                print(item, out);
            }
            out.push(']');
        }
    }
}

/// What Go's JSON decoder calls the type of a value.
pub fn go_json_kind(value: &serde_json::Value) -> &'static str {
    use serde_json::Value;
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// A float in Go's shortest form: plain between `10^low_exponent` and `10^21`, with an exponent outside.
/// `%v` has -4 for the lower bound, JSON has -6.
pub fn go_float(float: f64, low_exponent: i32) -> String {
    if float == 0.0 || !float.is_finite() {
        return format!("{float}");
    }
    let scientific = format!("{float:e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (low_exponent..21).contains(&exponent) {
        return format!("{float}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    // JSON writes e-7, `%v` e-07.
    let digits = exponent.unsigned_abs();
    if low_exponent == -6 && exponent < 0 && digits < 10 {
        format!("{mantissa}e{sign}{digits}")
    } else {
        format!("{mantissa}e{sign}{digits:02}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_like_go() {
        let cases = [
            ("plain", r#""plain""#),
            ("it's \"x\"\\", r#""it's \"x\"\\""#),
            ("a\tb\0\x7f\x1b", r#""a\tb\x00\x7f\x1b""#),
            ("zażółć 漢字 😀", r#""zażółć 漢字 😀""#),
            ("\u{feff}\u{a0}\u{e000}\u{f0000}", r#""\ufeff\u00a0\ue000\U000f0000""#),
        ];
        for (text, quoted) in cases {
            assert_eq!(quote(text).to_string(), quoted);
        }
    }

    #[test]
    fn floats_like_go() {
        for (float, json, plain) in [
            (1.0, "1", "1"),
            (1.5, "1.5", "1.5"),
            (1e21, "1e+21", "1e+21"),
            (1e20, "100000000000000000000", "100000000000000000000"),
            (1e-5, "0.00001", "1e-05"),
            (1e-7, "1e-7", "1e-07"),
        ] {
            assert_eq!(go_float(float, -6), json);
            assert_eq!(go_float(float, -4), plain);
        }
        assert_eq!(
            go_json(&serde_json::json!({"a": "<&>", "b": [1.0, null]})),
            r#"{"a":"\u003c\u0026\u003e","b":[1,null]}"#
        );
    }
}
