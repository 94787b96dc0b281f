//! `resource.Quantity`: exact decimal numbers with decimal SI, binary SI or exponent suffixes.
//!
//! In: text such as `100m`, `1.5Gi`, `12e6`. Out: the same number, its canonical text, integers rounded
//! away from zero, sums.
//! Invariant: nothing is ever a float inside; what parses keeps its value, except that more than nine
//! decimal places round away from zero and binary amounts cap at 2^63-1.
//! Behaves as apimachinery/pkg/api/resource, v1.36. Two differences, both where upstream loses a number:
//! integers that do not fit saturate instead of wrapping, and amounts beyond the largest suffix keep it.

mod decimal;

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::ops::{AddAssign, SubAssign};

use decimal::Decimal;

/// Longer text is no quantity. Upstream has no limit but the request body's.
pub const MAX_TEXT_LENGTH: usize = 512;

/// Powers of ten, for `scaled_value`.
pub const NANO: i32 = -9;
pub const MICRO: i32 = -6;
pub const MILLI: i32 = -3;
pub const KILO: i32 = 3;
pub const MEGA: i32 = 6;
pub const GIGA: i32 = 9;

/// How a quantity was written, and so how it prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Format {
    /// `12e6`
    DecimalExponent,
    /// `12Mi`
    BinarySi,
    /// `12M`
    #[default]
    DecimalSi,
}

/// Why text is not a quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// An exact amount. Equality and order are by value: `1 == 1000m`.
#[derive(Clone, Debug, Default)]
pub struct Quantity {
    amount: Decimal,
    format: Format,
    /// Text that was canonical enough when parsed is printed as it came; upstream keeps it too, so that
    /// `1.500` stays `1.500`.
    text: Option<Box<str>>,
}

/// Sign, digits before and after the point, and suffix.
struct Parts<'a> {
    negative: bool,
    whole: &'a str,
    fraction: &'a str,
    suffix: &'a str,
}

fn split(text: &str) -> Result<Parts<'_>, ParseError> {
    let (negative, rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let digits = |text: &str| text.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let rest = rest.trim_start_matches('0');
    let (whole, rest) = rest.split_at(digits(rest));
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(digits(rest)),
        None => ("", rest),
    };
    let letters = suffix.bytes().position(|byte| !b"eEinumkKMGTP".contains(&byte)).unwrap_or(suffix.len());
    let exponent = &suffix[letters..];
    let exponent = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
    if !exponent.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ParseError::Format);
    }
    Ok(Parts { negative, whole, fraction, suffix })
}

/// Base and exponent of a suffix.
fn interpret(suffix: &str) -> Option<(u32, i32, Format)> {
    let (base, exponent, format) = match suffix {
        "n" => (10, -9, Format::DecimalSi),
        "u" => (10, -6, Format::DecimalSi),
        "m" => (10, -3, Format::DecimalSi),
        "" => (10, 0, Format::DecimalSi),
        "k" => (10, 3, Format::DecimalSi),
        "M" => (10, 6, Format::DecimalSi),
        "G" => (10, 9, Format::DecimalSi),
        "T" => (10, 12, Format::DecimalSi),
        "P" => (10, 15, Format::DecimalSi),
        "E" => (10, 18, Format::DecimalSi),
        "Ki" => (2, 10, Format::BinarySi),
        "Mi" => (2, 20, Format::BinarySi),
        "Gi" => (2, 30, Format::BinarySi),
        "Ti" => (2, 40, Format::BinarySi),
        "Pi" => (2, 50, Format::BinarySi),
        "Ei" => (2, 60, Format::BinarySi),
        _ => {
            let digits = suffix.strip_prefix(['e', 'E'])?;
            // Bounded so that no arithmetic on exponents overflows; upstream keeps the low 32 bits.
            let exponent = digits.parse::<i64>().ok()?.clamp(-1_000_000_000, 1_000_000_000);
            (10, i32::try_from(exponent).ok()?, Format::DecimalExponent)
        }
    };
    Some((base, exponent, format))
}

impl Quantity {
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        if text.is_empty() || text.len() > MAX_TEXT_LENGTH {
            return Err(ParseError::Format);
        }
        let parts = split(text)?;
        let (base, exponent, mut format) = interpret(parts.suffix).ok_or(ParseError::Suffix)?;
        let mut amount = Decimal::from_digits(parts.whole, parts.fraction).ok_or(ParseError::Numeric)?;
        if amount.is_zero() {
            return Ok(Self { amount, format, text: None });
        }
        if base == 10 {
            amount.shift(exponent);
        } else {
            amount.multiply_power_of_two(exponent.unsigned_abs());
        }
        if amount.scale() < NANO {
            amount = amount.round_up(NANO).0;
        }
        if format == Format::BinarySi {
            let max = Decimal::from(i64::MAX);
            if amount > max {
                amount = max;
            } else if amount < Decimal::from(1) {
                format = Format::DecimalSi;
            }
        }
        if parts.negative {
            amount = amount.negated();
        }
        let kept = keeps_text(&parts, base, exponent, format).then(|| text.into());
        Ok(Self { amount, format, text: kept })
    }

    pub fn new(value: i64, format: Format) -> Self {
        Self { amount: Decimal::from(value), format, text: None }
    }

    /// `value * 10^scale`.
    pub fn scaled(value: i64, scale: i32, format: Format) -> Self {
        let mut amount = Decimal::from(value);
        amount.shift(scale);
        Self { amount, format, text: None }
    }

    pub fn milli(value: i64, format: Format) -> Self {
        Self::scaled(value, MILLI, format)
    }

    pub fn zero() -> Self {
        Self::default()
    }

    pub fn format(&self) -> Format {
        self.format
    }

    pub fn is_zero(&self) -> bool {
        self.amount.is_zero()
    }

    pub fn is_negative(&self) -> bool {
        self.amount.is_negative()
    }

    /// The amount in units, rounded away from zero.
    pub fn value(&self) -> i64 {
        self.scaled_value(0)
    }

    /// The amount in thousandths, rounded away from zero.
    pub fn milli_value(&self) -> i64 {
        self.scaled_value(MILLI)
    }

    /// The amount divided by `10^scale`, rounded away from zero; saturates.
    pub fn scaled_value(&self, scale: i32) -> i64 {
        self.amount.to_i64(scale)
    }

    /// The amount if it is a whole number that fits.
    pub fn as_i64(&self) -> Option<i64> {
        let (rounded, exact) = self.amount.round_up(0);
        let value = rounded.to_i64(0);
        (exact && Decimal::from(value) == rounded).then_some(value)
    }

    /// The nearest float, for ratios and metrics.
    pub fn as_f64(&self) -> f64 {
        self.amount.to_f64()
    }

    /// Rounds away from zero to a multiple of `10^scale`; whether nothing was lost.
    pub fn round_up(&mut self, scale: i32) -> bool {
        let (rounded, exact) = self.amount.round_up(scale);
        if !exact {
            self.text = None;
            self.amount = rounded;
        }
        exact
    }

    #[must_use]
    pub fn negated(&self) -> Self {
        Self { amount: self.amount.clone().negated(), format: self.format, text: None }
    }

    /// Multiplies by a whole number.
    #[must_use]
    pub fn times(&self, factor: i64) -> Self {
        Self { amount: self.amount.times(factor), format: self.format, text: None }
    }

    /// A sum takes the other's format when it starts from zero.
    pub fn add(&mut self, other: &Self) {
        if self.is_zero() {
            self.format = other.format;
        }
        self.text = None;
        self.amount = self.amount.plus(&other.amount);
    }

    pub fn sub(&mut self, other: &Self) {
        if self.is_zero() {
            self.format = other.format;
        }
        self.text = None;
        self.amount = self.amount.plus(&other.amount.clone().negated());
    }

    fn write_canonical(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_zero() {
            return f.write_str("0");
        }
        let kibi = Decimal::from(1024);
        if self.format == Format::BinarySi && self.amount.magnitude_cmp(&kibi) != Ordering::Less {
            let (whole, exact) = self.amount.round_up(0);
            // What binary suffixes cannot show exactly is shown in decimal.
            if exact {
                const SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
                let (digits, times) = whole.without_factors_of_1024(SUFFIXES.len() - 1);
                return write!(f, "{digits}{}", SUFFIXES[times]);
            }
        }
        let exponent_form = self.format == Format::DecimalExponent;
        let (digits, exponent) = self.amount.in_thousands(if exponent_form { i32::MAX } else { 18 });
        let suffix = match exponent {
            0 => "",
            _ if exponent_form => return write!(f, "{digits}e{exponent}"),
            -9 => "n",
            -6 => "u",
            -3 => "m",
            3 => "k",
            6 => "M",
            9 => "G",
            12 => "T",
            15 => "P",
            18 => "E",
            // Only `scaled` makes amounts below nano; they have no suffix.
            _ => return write!(f, "{digits}e{exponent}"),
        };
        write!(f, "{digits}{suffix}")
    }
}

/// Whether upstream prints this text unchanged: it does for numbers short enough for its fast path whose
/// suffix is already the right one.
fn keeps_text(parts: &Parts<'_>, base: u32, exponent: i32, format: Format) -> bool {
    let (whole, fraction) = (parts.whole.len().max(1), parts.fraction.len());
    // Lengths are bounded by `MAX_TEXT_LENGTH`.
    let (Ok(length), Ok(decimals)) = (i32::try_from(whole + fraction), i32::try_from(fraction)) else { return false };
    if base == 2 {
        let last = parts
            .whole
            .bytes()
            .rev()
            .take(3)
            .fold((0_u32, 1_u32), |(sum, place), digit| (sum + u32::from(digit - b'0') * place, place * 10));
        // 15 digits, less those the suffix stands for.
        return format == Format::BinarySi && fraction == 0 && 15 - length - exponent * 3 / 10 > 0 && last.0 % 8 != 0;
    }
    let scale = exponent - decimals;
    let zeros = {
        let trailing = |text: &str| text.bytes().rev().take_while(|byte| *byte == b'0').count();
        let in_fraction = trailing(parts.fraction);
        if in_fraction == fraction { in_fraction + trailing(parts.whole) } else { in_fraction }
    };
    18 - length >= 0 && scale >= NANO && scale % 3 == 0 && zeros < 3 && !parts.whole.is_empty()
}

/// The text a quantity is stored as: borrowed when `text` already is.
pub fn canonicalize(text: &str) -> Result<Cow<'_, str>, ParseError> {
    let trimmed = text.trim();
    let quantity = Quantity::parse(trimmed)?;
    if quantity.text.is_some() {
        return Ok(Cow::Borrowed(trimmed));
    }
    let canonical = quantity.to_string();
    Ok(if canonical == trimmed { Cow::Borrowed(trimmed) } else { Cow::Owned(canonical) })
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.text {
            Some(text) => f.write_str(text),
            None => self.write_canonical(f),
        }
    }
}

impl std::str::FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::parse(text)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.amount == other.amount
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.amount.cmp(&other.amount)
    }
}

impl AddAssign<&Quantity> for Quantity {
    fn add_assign(&mut self, other: &Quantity) {
        self.add(other);
    }
}

impl SubAssign<&Quantity> for Quantity {
    fn sub_assign(&mut self, other: &Quantity) {
        self.sub(other);
    }
}

#[cfg(test)]
mod tests;
