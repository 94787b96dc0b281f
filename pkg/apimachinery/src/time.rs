//! Times and durations in the forms the API has: `metav1.Time`, `metav1.MicroTime`, Go durations, and the
//! ages people read in tables.
//!
//! Behaves as apimachinery/pkg/apis/meta/v1/{time,micro_time,duration}.go, pkg/util/duration, v1.36, and
//! Go's `time` package, whose error texts end up in answers.

use jiff::civil::Date;
use jiff::{SignedDuration, Timestamp};

use crate::quote::quote;

const RFC3339: &str = "2006-01-02T15:04:05Z07:00";
const RFC3339_MICRO: &str = "2006-01-02T15:04:05.000000Z07:00";

/// Why text is not a time, in Go's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    #[error("parsing time {} as {}: cannot parse {} as {}", quote(.value), quote(.layout), quote(.rest), quote(.element))]
    Syntax { value: String, layout: &'static str, rest: String, element: &'static str },
    #[error("parsing time {}: {what} out of range", quote(.value))]
    Range { value: String, what: &'static str },
    #[error("parsing time {}: extra text: {}", quote(.value), quote(.rest))]
    Extra { value: String, rest: String },
}

/// `2006-01-02T15:04:05Z`.
pub fn format(time: Timestamp) -> String {
    let utc = jiff::tz::Offset::UTC.to_datetime(time);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        utc.year(),
        utc.month(),
        utc.day(),
        utc.hour(),
        utc.minute(),
        utc.second()
    )
}

/// `2006-01-02T15:04:05.000000Z`.
pub fn format_micro(time: Timestamp) -> String {
    let utc = jiff::tz::Offset::UTC.to_datetime(time);
    let mut text = format(time);
    text.pop();
    format!("{text}.{:06}Z", utc.subsec_nanosecond() / 1000)
}

/// Parses a `metav1.Time`: RFC 3339, with a fraction or without.
pub fn parse(text: &str) -> Result<Timestamp, TimeError> {
    Cursor { value: text, rest: text, layout: RFC3339 }.parse(false)
}

/// Parses a `metav1.MicroTime`: RFC 3339 with exactly six digits of fraction.
pub fn parse_micro(text: &str) -> Result<Timestamp, TimeError> {
    Cursor { value: text, rest: text, layout: RFC3339_MICRO }.parse(true)
}

/// Cuts fractions of a second off: what a time looks like after a round trip through the API.
pub fn whole_seconds(time: Timestamp) -> Timestamp {
    let back = time.subsec_nanosecond();
    let back = if back < 0 { 1_000_000_000 + back } else { back };
    time.checked_sub(SignedDuration::from_nanos(i64::from(back))).unwrap_or(time)
}

struct Cursor<'a> {
    value: &'a str,
    rest: &'a str,
    layout: &'static str,
}

impl<'a> Cursor<'a> {
    fn parse(mut self, micro: bool) -> Result<Timestamp, TimeError> {
        let year = self.digits(4, 4, "2006")?;
        self.literal("-")?;
        let month = self.digits(2, 2, "01")?;
        self.range(month, 1, 12, "month")?;
        self.literal("-")?;
        let day = self.digits(2, 2, "02")?;
        self.literal("T")?;
        // Go reads an hour of one digit.
        let hour = self.digits(1, 2, "15")?;
        self.range(hour, 0, 23, "hour")?;
        self.literal(":")?;
        let minute = self.digits(2, 2, "04")?;
        self.range(minute, 0, 59, "minute")?;
        self.literal(":")?;
        let second = self.digits(2, 2, "05")?;
        self.range(second, 0, 59, "second")?;
        let nanos = if micro { self.six_digits()? } else { self.fraction() };
        let offset = self.zone()?;
        if !self.rest.is_empty() {
            return Err(TimeError::Extra { value: self.value.to_owned(), rest: self.rest.to_owned() });
        }
        // All numbers have at most four digits.
        let narrow = |number: u32| i8::try_from(number).unwrap_or(i8::MAX);
        let out_of_range = || TimeError::Range { value: self.value.to_owned(), what: "day" };
        let date = Date::new(i16::try_from(year).unwrap_or(i16::MAX), narrow(month), narrow(day))
            .map_err(|_| out_of_range())?;
        let local = date.at(narrow(hour), narrow(minute), narrow(second), i32::try_from(nanos).unwrap_or(0));
        let utc = jiff::tz::Offset::UTC.to_timestamp(local).map_err(|_| out_of_range())?;
        utc.checked_sub(SignedDuration::from_secs(offset)).map_err(|_| out_of_range())
    }

    fn fail(&self, element: &'static str) -> TimeError {
        TimeError::Syntax { value: self.value.to_owned(), layout: self.layout, rest: self.rest.to_owned(), element }
    }

    fn range(&self, number: u32, low: u32, high: u32, what: &'static str) -> Result<(), TimeError> {
        if (low..=high).contains(&number) {
            return Ok(());
        }
        Err(TimeError::Range { value: self.value.to_owned(), what })
    }

    fn literal(&mut self, literal: &'static str) -> Result<(), TimeError> {
        self.rest = self.rest.strip_prefix(literal).ok_or_else(|| self.fail(literal))?;
        Ok(())
    }

    fn digits(&mut self, least: usize, most: usize, element: &'static str) -> Result<u32, TimeError> {
        let count = self.rest.bytes().take(most).take_while(u8::is_ascii_digit).count();
        if count < least {
            return Err(self.fail(element));
        }
        let (digits, rest) = self.rest.split_at(count);
        let number = digits.parse().map_err(|_| self.fail(element))?;
        self.rest = rest;
        Ok(number)
    }

    /// Nanoseconds of an optional fraction; digits past the ninth are dropped.
    fn fraction(&mut self) -> u32 {
        let Some(rest) = self.rest.strip_prefix(['.', ',']) else { return 0 };
        let count = rest.bytes().take_while(u8::is_ascii_digit).count();
        if count == 0 {
            return 0;
        }
        let (digits, rest) = rest.split_at(count);
        self.rest = rest;
        digits.bytes().chain(std::iter::repeat(b'0')).take(9).fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0'))
    }

    fn six_digits(&mut self) -> Result<u32, TimeError> {
        let digits = self.rest.strip_prefix(['.', ',']).and_then(|rest| rest.get(..6));
        match digits {
            Some(digits) if digits.bytes().all(|digit| digit.is_ascii_digit()) => {
                self.rest = &self.rest[7..];
                Ok(digits.bytes().fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0')) * 1000)
            }
            _ => Err(self.fail(".000000")),
        }
    }

    /// Seconds east of Greenwich.
    fn zone(&mut self) -> Result<i64, TimeError> {
        if let Some(rest) = self.rest.strip_prefix('Z') {
            self.rest = rest;
            return Ok(0);
        }
        let number = |text: &[u8]| match text {
            [a @ b'0'..=b'9', b @ b'0'..=b'9'] => Some(u32::from(a - b'0') * 10 + u32::from(b - b'0')),
            _ => None,
        };
        let (sign, hours, minutes) = match self.rest.as_bytes() {
            [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2, ..] => (*sign, number(&[*h1, *h2]), number(&[*m1, *m2])),
            _ => return Err(self.fail("Z07:00")),
        };
        let (Some(hours), Some(minutes)) = (hours, minutes) else { return Err(self.fail("Z07:00")) };
        self.range(hours, 0, 24, "time zone offset hour")?;
        self.range(minutes, 0, 60, "time zone offset minute")?;
        self.rest = &self.rest[6..];
        let seconds = i64::from(hours * 3600 + minutes * 60);
        Ok(if sign == b'-' { -seconds } else { seconds })
    }
}

/// Why text is not a Go duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    #[error("time: invalid duration {}", quote(.0))]
    Invalid(String),
    #[error("time: missing unit in duration {}", quote(.0))]
    MissingUnit(String),
    #[error("time: unknown unit {} in duration {}", quote(.unit), quote(.text))]
    UnknownUnit { unit: String, text: String },
}

/// Parses `1h30m`, `1.5s`, `-2ms`, `0`. The result fits in 64 bits of nanoseconds, as Go's does.
pub fn parse_duration(text: &str) -> Result<SignedDuration, DurationError> {
    let invalid = || DurationError::Invalid(text.to_owned());
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(SignedDuration::ZERO);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let limit = 1_i128 << 63;
    let mut total = 0_i128;
    while !rest.is_empty() {
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let (whole, after) = rest.split_at(digits(rest));
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => after.split_at(digits(after)),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let unit_length = after.find(|character: char| character == '.' || character.is_ascii_digit());
        let (unit, after) = after.split_at(unit_length.unwrap_or(after.len()));
        let unit: i128 = match unit {
            "" => return Err(DurationError::MissingUnit(text.to_owned())),
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            other => return Err(DurationError::UnknownUnit { unit: other.to_owned(), text: text.to_owned() }),
        };
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
        // Digits past the eighteenth cannot matter: the largest unit has thirteen.
        let fraction = &fraction[..fraction.len().min(18)];
        let power = 10_i128.pow(u32::try_from(fraction.len()).unwrap_or(0));
        let part: i128 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| invalid())? };
        total = whole
            .checked_mul(unit)
            .and_then(|nanos| nanos.checked_add(part * unit / power))
            .and_then(|nanos| nanos.checked_add(total))
            .filter(|total| *total <= limit)
            .ok_or_else(invalid)?;
        rest = after;
    }
    let signed = if negative { -total } else { total };
    i64::try_from(signed).map(SignedDuration::from_nanos).map_err(|_| invalid())
}

/// `1h30m0s`, `1.5s`, `300ms`, `0s`.
pub fn format_duration(duration: SignedDuration) -> String {
    let nanos = duration.as_nanos();
    let (sign, nanos) = (if nanos < 0 { "-" } else { "" }, nanos.unsigned_abs());
    let decimal = |unit: u128| {
        let text = format!("{}.{:0width$}", nanos / unit, nanos % unit, width = unit.ilog10() as usize);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{sign}{nanos}ns"),
        1_000..1_000_000 => format!("{sign}{}µs", decimal(1_000)),
        1_000_000..1_000_000_000 => format!("{sign}{}ms", decimal(1_000_000)),
        _ => {
            let minute = 60_000_000_000;
            let (minutes, below) = (nanos / minute, nanos % minute);
            let seconds = format!("{}.{:09}", below / 1_000_000_000, below % 1_000_000_000);
            let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{sign}{seconds}s"),
                (0, minutes) => format!("{sign}{minutes}m{seconds}s"),
                (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

/// The age column: at most two units, fewer as it grows. `<invalid>` before the future becomes clear.
pub fn human_duration(duration: SignedDuration) -> String {
    let seconds = duration.as_secs();
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    if seconds < 0 {
        return "0s".to_owned();
    }
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    let two = |high: i64, high_unit: &str, low: i64, low_unit: &str| {
        if low == 0 { format!("{high}{high_unit}") } else { format!("{high}{high_unit}{low}{low_unit}") }
    };
    if seconds < 120 {
        format!("{seconds}s")
    } else if minutes < 10 {
        two(minutes, "m", seconds % 60, "s")
    } else if minutes < 180 {
        format!("{minutes}m")
    } else if hours < 8 {
        two(hours, "h", minutes % 60, "m")
    } else if hours < 48 {
        format!("{hours}h")
    } else if hours < 192 {
        two(days, "d", hours % 24, "h")
    } else if hours < 24 * 365 * 2 {
        format!("{days}d")
    } else if hours < 24 * 365 * 8 {
        two(years, "y", days % 365, "d")
    } else {
        format!("{years}y")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_parse_and_print() {
        let shown = |text: &str| parse(text).map_or_else(|error| error.to_string(), format_micro);
        for (text, expected) in [
            ("2024-02-29T12:00:00Z", "2024-02-29T12:00:00.000000Z"),
            ("2024-02-29T12:00:00.1234567+02:00", "2024-02-29T10:00:00.123456Z"),
            ("2024-02-29T1:00:00-01:30", "2024-02-29T02:30:00.000000Z"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000000Z"),
            ("2023-02-29T12:00:00Z", "parsing time \"2023-02-29T12:00:00Z\": day out of range"),
            ("2023-13-29T12:00:00Z", "parsing time \"2023-13-29T12:00:00Z\": month out of range"),
            ("2023-12-29T25:00:00Z", "parsing time \"2023-12-29T25:00:00Z\": hour out of range"),
            ("2023-12-29T12:00:00Zx", "parsing time \"2023-12-29T12:00:00Zx\": extra text: \"x\""),
            (
                "2023-12-29 12:00:00Z",
                "parsing time \"2023-12-29 12:00:00Z\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \" 12:00:00Z\" as \"T\"",
            ),
            ("", "parsing time \"\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"\" as \"2006\""),
        ] {
            assert_eq!(shown(text), expected, "{text:?}");
        }
        assert!(parse_micro("2024-02-29T12:00:00Z").is_err());
        let time = parse_micro("2024-02-29T12:00:00.123456Z").expect("valid");
        assert_eq!(format(time), "2024-02-29T12:00:00Z");
        assert_eq!(format_micro(whole_seconds(time)), "2024-02-29T12:00:00.000000Z");
    }

    #[test]
    fn durations_parse_and_print() {
        let shown = |text: &str| parse_duration(text).map_or_else(|error| error.to_string(), format_duration);
        for (text, expected) in [
            ("0", "0s"),
            ("1h30m", "1h30m0s"),
            ("1.5s", "1.5s"),
            ("-1.5h", "-1h30m0s"),
            ("300ms", "300ms"),
            ("1500us", "1.5ms"),
            ("1µs", "1µs"),
            (".5m", "30s"),
            ("100000s", "27h46m40s"),
            ("", "time: invalid duration \"\""),
            ("3", "time: missing unit in duration \"3\""),
            ("3d", "time: unknown unit \"d\" in duration \"3d\""),
            (".s", "time: invalid duration \".s\""),
            ("9223372036854775808ns", "time: invalid duration \"9223372036854775808ns\""),
            ("-9223372036854775808ns", "-2562047h47m16.854775808s"),
        ] {
            assert_eq!(shown(text), expected, "{text:?}");
        }
    }

    #[test]
    fn ages_read_as_upstream() {
        for (seconds, age) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (600, "10m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 60, "3h1m"),
            (8 * 3600 + 60, "8h"),
            (48 * 3600, "2d"),
            (49 * 3600, "2d1h"),
            (8 * 24 * 3600, "8d"),
            (2 * 365 * 24 * 3600, "2y"),
            (2 * 365 * 24 * 3600 + 24 * 3600, "2y1d"),
            (8 * 365 * 24 * 3600 + 24 * 3600, "8y"),
        ] {
            assert_eq!(human_duration(SignedDuration::from_secs(seconds)), age);
        }
    }

    proptest! {
        #[test]
        fn printed_durations_parse_to_themselves(nanos in any::<i64>()) {
            let duration = SignedDuration::from_nanos(nanos);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn printed_times_parse_to_themselves(seconds in -62_000_000_000_i64..250_000_000_000, micros in 0..1_000_000_i32) {
            let time = Timestamp::new(seconds, micros * 1000).expect("in range");
            prop_assert_eq!(parse_micro(&format_micro(time)), Ok(time));
            prop_assert_eq!(parse(&format(time)), Ok(whole_seconds(time)));
        }
    }
}
