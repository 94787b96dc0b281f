//! `intstr.IntOrString`: a number, or text that is a name or a percentage.
//!
//! Behaves as apimachinery/pkg/util/intstr, v1.36.

use std::fmt;

use serde_json::Value;

use crate::quote::quote;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum IntOrString {
    Int(i32),
    String(String),
}

/// Why a percentage cannot be scaled, in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScaleError {
    #[error("invalid value for IntOrString: invalid type: string is not a percentage")]
    NotAPercentage,
    #[error("invalid value for IntOrString: invalid value {}: strconv.Atoi: parsing {}: {reason}", quote(.text), quote(.digits))]
    NotANumber { text: String, digits: String, reason: &'static str },
}

/// Which way a fraction goes: `maxSurge` rounds up, `maxUnavailable` down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    Up,
    Down,
}

impl IntOrString {
    /// Digits become a number, everything else stays text.
    pub fn parse(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::String(text.to_owned()), Self::Int)
    }

    /// From JSON; `None` if it is neither a string nor a 32-bit integer.
    pub fn from_json(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Some(Self::String(text.clone())),
            Value::Number(number) => i32::try_from(number.as_i64()?).ok().map(Self::Int),
            _ => None,
        }
    }

    pub fn to_json(&self) -> Value {
        match self {
            Self::Int(number) => Value::from(*number),
            Self::String(text) => Value::from(text.as_str()),
        }
    }

    /// The number, also of text that is one; 0 for other text.
    pub fn int_value(&self) -> i64 {
        match self {
            Self::Int(number) => i64::from(*number),
            Self::String(text) => text.parse().unwrap_or(0),
        }
    }

    /// The number, or the percentage of `total`.
    pub fn scaled(&self, total: i64, rounding: Rounding) -> Result<i64, ScaleError> {
        let text = match self {
            Self::Int(number) => return Ok(i64::from(*number)),
            Self::String(text) => text,
        };
        let digits = text.strip_suffix('%').ok_or(ScaleError::NotAPercentage)?;
        let percent: i64 = digits.parse().map_err(|error: std::num::ParseIntError| {
            use std::num::IntErrorKind::{NegOverflow, PosOverflow};
            let overflow = matches!(error.kind(), PosOverflow | NegOverflow);
            let reason = if overflow { "value out of range" } else { "invalid syntax" };
            ScaleError::NotANumber { text: text.clone(), digits: digits.to_owned(), reason }
        })?;
        let product = i128::from(percent) * i128::from(total);
        let floor = product.div_euclid(100);
        let scaled = if rounding == Rounding::Up && product.rem_euclid(100) != 0 { floor + 1 } else { floor };
        Ok(i64::try_from(scaled).unwrap_or(if scaled < 0 { i64::MIN } else { i64::MAX }))
    }
}

impl fmt::Display for IntOrString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(number) => number.fmt(f),
            Self::String(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_percentages() {
        let scaled =
            |text: &str, total, rounding| IntOrString::parse(text).scaled(total, rounding).map_err(|e| e.to_string());
        assert_eq!(scaled("25%", 10, Rounding::Up), Ok(3));
        assert_eq!(scaled("25%", 10, Rounding::Down), Ok(2));
        assert_eq!(scaled("7", 10, Rounding::Up), Ok(7));
        assert_eq!(scaled("0%", 10, Rounding::Up), Ok(0));
        assert_eq!(
            scaled("abc", 10, Rounding::Up),
            Err("invalid value for IntOrString: invalid type: string is not a percentage".to_owned())
        );
        assert_eq!(
            scaled("x%", 10, Rounding::Up),
            Err("invalid value for IntOrString: invalid value \"x%\": strconv.Atoi: parsing \"x\": invalid syntax"
                .to_owned())
        );
    }
}
