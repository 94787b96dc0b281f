//! Cron schedules: when the next time is. Validation and the CronJob controller must agree on them.
//!
//! Five fields with lists, ranges, steps and names, `?` for `*`, the usual macros, `@every` with a duration, and a
//! time zone in front (`TZ=` or `CRON_TZ=`). Without a zone times are UTC.
//!
//! Behaves as `cron.ParseStandard` of github.com/robfig/cron/v3, which upstream uses, error texts included.
//!
//! // Differs from upstream: without a zone it is not the machine's, so that a schedule means the same everywhere.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use crate::time::{DurationError, parse_duration};

/// A schedule that never comes, like February 30, is given up after this many years.
const YEARS_MAX: i16 = 5;

/// Why a text is not a schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CronError {
    #[error("empty spec string")]
    Empty,
    /// A zone and nothing after it. The text is that of a panic which upstream catches.
    #[error("invalid schedule format: runtime error: slice bounds out of range [:-1]")]
    ZoneOnly,
    #[error("provided bad location {0}: unknown time zone {0}")]
    BadZone(String),
    #[error("expected exactly 5 fields, found {found}: [{fields}]")]
    FieldCount { found: usize, fields: String },
    #[error("unrecognized descriptor: {0}")]
    UnknownDescriptor(String),
    #[error("failed to parse duration {text}: {reason}")]
    BadDuration { text: String, reason: DurationError },
    #[error("too many hyphens: {0}")]
    TooManyHyphens(String),
    #[error("too many slashes: {0}")]
    TooManySlashes(String),
    #[error("beginning of range ({start}) below minimum ({low}): {text}")]
    BelowMinimum { start: u32, low: u32, text: String },
    #[error("end of range ({end}) above maximum ({high}): {text}")]
    AboveMaximum { end: u32, high: u32, text: String },
    #[error("beginning of range ({start}) beyond end of range ({end}): {text}")]
    Reversed { start: u32, end: u32, text: String },
    #[error("step of range should be a positive number: {0}")]
    ZeroStep(String),
    #[error("negative number ({number}) not allowed: {text}")]
    Negative { number: i64, text: String },
    #[error("failed to parse int from {0}: strconv.Atoi: parsing {quoted}: invalid syntax", quoted = crate::quote::quote(.0))]
    NotANumber(String),
}

/// A time zone by its IANA name.
pub fn time_zone(name: &str) -> Option<TimeZone> {
    if name == "UTC" { Some(TimeZone::UTC) } else { TimeZone::get(name).ok() }
}

struct Bounds {
    low: u32,
    high: u32,
    /// Of numbers, from `low` on.
    names: &'static [&'static str],
}

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const MINUTE: Bounds = Bounds { low: 0, high: 59, names: &[] };
const HOUR: Bounds = Bounds { low: 0, high: 23, names: &[] };
const DAY_OF_MONTH: Bounds = Bounds { low: 1, high: 31, names: &[] };
const MONTH: Bounds = Bounds { low: 1, high: 12, names: &MONTHS };
const DAY_OF_WEEK: Bounds = Bounds { low: 0, high: 6, names: &DAYS };

/// The numbers of one field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Field {
    bits: u64,
    /// `*` or `?`: it does not restrict, which matters where days of month and of week are both given.
    star: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Times {
    Fields {
        minute: Field,
        hour: Field,
        day_of_month: Field,
        month: Field,
        day_of_week: Field,
    },
    /// After each time again, in whole seconds.
    Every(SignedDuration),
}

/// When something is to happen, again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    times: Times,
    zone: TimeZone,
}

impl Schedule {
    pub fn parse(text: &str) -> Result<Self, CronError> {
        if text.is_empty() {
            return Err(CronError::Empty);
        }
        let Some(rest) = text.strip_prefix("TZ=").or_else(|| text.strip_prefix("CRON_TZ=")) else {
            return Ok(Self { times: Times::parse(text)?, zone: TimeZone::UTC });
        };
        let (name, times) = rest.split_once(' ').ok_or(CronError::ZoneOnly)?;
        let zone = time_zone(name).ok_or_else(|| CronError::BadZone(name.to_owned()))?;
        Ok(Self { times: Times::parse(times.trim())?, zone })
    }

    /// The same times in another zone.
    #[must_use]
    pub fn in_zone(self, zone: TimeZone) -> Self {
        Self { zone, ..self }
    }

    /// The first time after `after`, in whole seconds; none if there is none within five years.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let second = Timestamp::from_second(after.as_nanosecond().div_euclid(1_000_000_000).try_into().ok()?).ok()?;
        match &self.times {
            Times::Every(delay) => second.checked_add(*delay).ok(),
            Times::Fields { .. } => self.next_of_fields(second.checked_add(SignedDuration::from_secs(1)).ok()?),
        }
    }

    /// Moves from the largest unit to the smallest, and starts over when a larger one wraps.
    fn next_of_fields(&self, start: Timestamp) -> Option<Timestamp> {
        let Times::Fields { minute, hour, month, .. } = &self.times else { return None };
        let mut at = Walker { zone: &self.zone, time: start };
        let last_year = at.civil().year().saturating_add(YEARS_MAX);
        // Whether smaller units were set to their beginning, which happens once.
        let mut moved = false;
        'wrap: loop {
            if at.civil().year() > last_year {
                return None;
            }
            while !month.has(at.civil().month()) {
                let now = at.civil();
                let (year, next) = if now.month() == 12 { (now.year() + 1, 1) } else { (now.year(), now.month() + 1) };
                at.set(DateTime::new(year, next, 1, if moved { now.hour() } else { 0 }, 0, 0, 0).ok()?)?;
                moved = true;
                if next == 1 {
                    continue 'wrap;
                }
            }
            while !self.day_matches(at.civil()) {
                let now = at.civil();
                let midnight = if moved { now } else { now.date().at(0, 0, 0, 0) };
                moved = true;
                at.set(midnight.date().tomorrow().ok()?.to_datetime(midnight.time()))?;
                // Midnight may be missing or twice where clocks change at that hour.
                let hour = at.civil().hour();
                let off = i64::from(if hour > 12 { 24 - hour } else { -hour });
                at.add(SignedDuration::from_hours(off))?;
                if at.civil().day() == 1 {
                    continue 'wrap;
                }
            }
            while !hour.has(at.civil().hour()) {
                if !moved {
                    at.set(at.civil().date().at(at.civil().hour(), 0, 0, 0))?;
                    moved = true;
                }
                at.add(SignedDuration::from_hours(1))?;
                if at.civil().hour() == 0 {
                    continue 'wrap;
                }
            }
            while !minute.has(at.civil().minute()) {
                at.next_minute()?;
                moved = true;
                if at.civil().minute() == 0 {
                    continue 'wrap;
                }
            }
            if at.civil().second() == 0 {
                return Some(at.time);
            }
            at.next_minute()?;
            moved = true;
        }
    }

    /// Where both days are given, one of them is enough.
    fn day_matches(&self, now: DateTime) -> bool {
        let Times::Fields { day_of_month, day_of_week, .. } = &self.times else { return false };
        let (by_month, by_week) = (day_of_month.has(now.day()), day_of_week.has(now.weekday().to_sunday_zero_offset()));
        if day_of_month.star || day_of_week.star { by_month && by_week } else { by_month || by_week }
    }
}

/// A moment, seen as clocks in a zone show it.
struct Walker<'a> {
    zone: &'a TimeZone,
    time: Timestamp,
}

impl Walker<'_> {
    fn civil(&self) -> DateTime {
        self.zone.to_datetime(self.time)
    }

    /// Goes to what a clock shows. Of a time that is shown twice, or never, Go's choice.
    fn set(&mut self, shown: DateTime) -> Option<()> {
        let as_utc = TimeZone::UTC.to_timestamp(shown).ok()?;
        let before =
            |offset: jiff::tz::Offset| as_utc.checked_sub(SignedDuration::from_secs(i64::from(offset.seconds()))).ok();
        let guess = before(self.zone.to_offset(as_utc))?;
        self.time = before(self.zone.to_offset(guess))?;
        Some(())
    }

    fn add(&mut self, duration: SignedDuration) -> Option<()> {
        self.time = self.time.checked_add(duration).ok()?;
        Some(())
    }

    fn next_minute(&mut self) -> Option<()> {
        let past = self.time.as_second().rem_euclid(60);
        self.add(SignedDuration::from_secs(60 - past))
    }
}

impl Field {
    fn has(self, number: i8) -> bool {
        u32::try_from(number).is_ok_and(|number| self.bits >> number & 1 == 1)
    }

    fn one(number: u32) -> Self {
        Self { bits: 1 << number, star: false }
    }

    fn all(bounds: &Bounds) -> Self {
        Self { bits: bits(bounds.low, bounds.high, 1), star: true }
    }

    /// Comma-separated ranges.
    fn parse(text: &str, bounds: &Bounds) -> Result<Self, CronError> {
        let ranges = text.split(',').filter(|range| !range.is_empty());
        ranges.map(|range| Self::parse_range(range, bounds)).try_fold(Self::default(), |all, range| {
            let range = range?;
            Ok(Self { bits: all.bits | range.bits, star: all.star || range.star })
        })
    }

    /// `number | number-number | * | ?`, and `/step` after it.
    fn parse_range(text: &str, bounds: &Bounds) -> Result<Self, CronError> {
        let mut parts = text.split('/');
        let range = parts.next().unwrap_or_default();
        let (step, more) = (parts.next(), parts.next());
        let mut ends = range.split('-');
        let low = ends.next().unwrap_or_default();
        let (high, extra) = (ends.next(), ends.next());
        let any = matches!(low, "*" | "?");
        let (start, end) = if any {
            (bounds.low, bounds.high)
        } else {
            let start = number_or_name(low, bounds)?;
            let end = match high {
                Some(high) if extra.is_none() => number_or_name(high, bounds)?,
                Some(_) => return Err(CronError::TooManyHyphens(text.to_owned())),
                None if step.is_some() => bounds.high,
                None => start,
            };
            (start, end)
        };
        let step = match (step, more) {
            (None, _) => 1,
            (Some(step), None) => number(step)?,
            (Some(_), Some(_)) => return Err(CronError::TooManySlashes(text.to_owned())),
        };
        let text = || text.to_owned();
        if start < bounds.low {
            return Err(CronError::BelowMinimum { start, low: bounds.low, text: text() });
        }
        if end > bounds.high {
            return Err(CronError::AboveMaximum { end, high: bounds.high, text: text() });
        }
        if start > end {
            return Err(CronError::Reversed { start, end, text: text() });
        }
        if step == 0 {
            return Err(CronError::ZeroStep(text()));
        }
        Ok(Self { bits: bits(start, end, step), star: any && step == 1 })
    }
}

fn bits(start: u32, end: u32, step: u32) -> u64 {
    let step = usize::try_from(step).unwrap_or(usize::MAX);
    (start..=end).step_by(step).fold(0, |bits, number| bits | 1 << number)
}

fn number_or_name(text: &str, bounds: &Bounds) -> Result<u32, CronError> {
    let name = text.to_lowercase();
    match (bounds.low..).zip(bounds.names).find(|(_, known)| **known == name) {
        Some((number, _)) => Ok(number),
        None => number(text),
    }
}

fn number(text: &str) -> Result<u32, CronError> {
    match text.parse::<i64>() {
        Ok(number) if number < 0 => Err(CronError::Negative { number, text: text.to_owned() }),
        // Too large for any field.
        Ok(number) => Ok(u32::try_from(number).unwrap_or(u32::MAX)),
        Err(_) => Err(CronError::NotANumber(text.to_owned())),
    }
}

impl Times {
    fn parse(text: &str) -> Result<Self, CronError> {
        if text.starts_with('@') {
            return Self::parse_descriptor(text);
        }
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day_of_month, month, day_of_week] = fields.as_slice() else {
            return Err(CronError::FieldCount { found: fields.len(), fields: fields.join(" ") });
        };
        Ok(Self::Fields {
            minute: Field::parse(minute, &MINUTE)?,
            hour: Field::parse(hour, &HOUR)?,
            day_of_month: Field::parse(day_of_month, &DAY_OF_MONTH)?,
            month: Field::parse(month, &MONTH)?,
            day_of_week: Field::parse(day_of_week, &DAY_OF_WEEK)?,
        })
    }

    fn parse_descriptor(text: &str) -> Result<Self, CronError> {
        let [any_hour, any_day, any_month, any_weekday] = [&HOUR, &DAY_OF_MONTH, &MONTH, &DAY_OF_WEEK].map(Field::all);
        let (zero, one) = (Field::one(0), Field::one(1));
        let (hour, day_of_month, month, day_of_week) = match text {
            "@yearly" | "@annually" => (zero, one, one, any_weekday),
            "@monthly" => (zero, one, any_month, any_weekday),
            "@weekly" => (zero, any_day, any_month, zero),
            "@daily" | "@midnight" => (zero, any_day, any_month, any_weekday),
            "@hourly" => (any_hour, any_day, any_month, any_weekday),
            _ => {
                let unknown = || CronError::UnknownDescriptor(text.to_owned());
                let duration = text.strip_prefix("@every ").ok_or_else(unknown)?;
                let bad = |reason| CronError::BadDuration { text: text.to_owned(), reason };
                let seconds = parse_duration(duration).map_err(bad)?.as_secs();
                return Ok(Self::Every(SignedDuration::from_secs(seconds.max(1))));
            }
        };
        Ok(Self::Fields { minute: zero, hour, day_of_month, month, day_of_week })
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    /// The next four times, as clocks in the schedule's zone show them.
    fn check(schedule: &str, after: &str, expected: Expect) {
        let schedule = Schedule::parse(schedule).expect("a schedule");
        let mut time: Timestamp = after.parse().expect("a timestamp");
        let mut times = Vec::new();
        for _ in 0..4 {
            let Some(next) = schedule.next(time) else { break };
            assert!(next > time, "{next} is not after {time}");
            time = next;
            let shown = schedule.zone.to_datetime(next);
            times.push(
                shown.strftime("%a %Y-%m-%dT%H:%M:%S").to_string() + &format!(" {}", schedule.zone.to_offset(next)),
            );
        }
        expected.assert_eq(&times.join("\n"));
    }

    const NEW_YEAR: &str = "2026-01-01T00:00:00Z";

    #[test]
    fn fields_are_lists_of_ranges_with_steps_and_names() {
        check(
            "* * * * *",
            "2026-01-01T00:00:30.5Z",
            expect![[r#"
            Thu 2026-01-01T00:01:00 +00
            Thu 2026-01-01T00:02:00 +00
            Thu 2026-01-01T00:03:00 +00
            Thu 2026-01-01T00:04:00 +00"#]],
        );
        check(
            "*/20 9-17/4 * * MON-fri",
            NEW_YEAR,
            expect![[r#"
            Thu 2026-01-01T09:00:00 +00
            Thu 2026-01-01T09:20:00 +00
            Thu 2026-01-01T09:40:00 +00
            Thu 2026-01-01T13:00:00 +00"#]],
        );
        check(
            "5/25 0 ? jan,3 ?",
            NEW_YEAR,
            expect![[r#"
            Thu 2026-01-01T00:05:00 +00
            Thu 2026-01-01T00:30:00 +00
            Thu 2026-01-01T00:55:00 +00
            Fri 2026-01-02T00:05:00 +00"#]],
        );
        check(
            "0 0 29 2 *",
            NEW_YEAR,
            expect![[r#"
            Tue 2028-02-29T00:00:00 +00
            Sun 2032-02-29T00:00:00 +00
            Fri 2036-02-29T00:00:00 +00
            Wed 2040-02-29T00:00:00 +00"#]],
        );
    }

    #[test]
    fn either_day_is_enough_unless_one_is_a_star() {
        check(
            "0 0 13 * 5",
            NEW_YEAR,
            expect![[r#"
            Fri 2026-01-02T00:00:00 +00
            Fri 2026-01-09T00:00:00 +00
            Tue 2026-01-13T00:00:00 +00
            Fri 2026-01-16T00:00:00 +00"#]],
        );
        check(
            "0 0 13 * *",
            NEW_YEAR,
            expect![[r#"
            Tue 2026-01-13T00:00:00 +00
            Fri 2026-02-13T00:00:00 +00
            Fri 2026-03-13T00:00:00 +00
            Mon 2026-04-13T00:00:00 +00"#]],
        );
        // A star with a step restricts.
        check(
            "0 0 */10 * 5",
            NEW_YEAR,
            expect![[r#"
            Fri 2026-01-02T00:00:00 +00
            Fri 2026-01-09T00:00:00 +00
            Sun 2026-01-11T00:00:00 +00
            Fri 2026-01-16T00:00:00 +00"#]],
        );
    }

    #[test]
    fn macros() {
        check(
            "@yearly",
            NEW_YEAR,
            expect![[r#"
            Fri 2027-01-01T00:00:00 +00
            Sat 2028-01-01T00:00:00 +00
            Mon 2029-01-01T00:00:00 +00
            Tue 2030-01-01T00:00:00 +00"#]],
        );
        check(
            "@monthly",
            NEW_YEAR,
            expect![[r#"
            Sun 2026-02-01T00:00:00 +00
            Sun 2026-03-01T00:00:00 +00
            Wed 2026-04-01T00:00:00 +00
            Fri 2026-05-01T00:00:00 +00"#]],
        );
        check(
            "@weekly",
            NEW_YEAR,
            expect![[r#"
            Sun 2026-01-04T00:00:00 +00
            Sun 2026-01-11T00:00:00 +00
            Sun 2026-01-18T00:00:00 +00
            Sun 2026-01-25T00:00:00 +00"#]],
        );
        check(
            "@midnight",
            NEW_YEAR,
            expect![[r#"
            Fri 2026-01-02T00:00:00 +00
            Sat 2026-01-03T00:00:00 +00
            Sun 2026-01-04T00:00:00 +00
            Mon 2026-01-05T00:00:00 +00"#]],
        );
        check(
            "@hourly",
            NEW_YEAR,
            expect![[r#"
            Thu 2026-01-01T01:00:00 +00
            Thu 2026-01-01T02:00:00 +00
            Thu 2026-01-01T03:00:00 +00
            Thu 2026-01-01T04:00:00 +00"#]],
        );
        check(
            "@every 1h30m0.7s",
            "2026-01-01T00:00:10.3Z",
            expect![[r#"
            Thu 2026-01-01T01:30:10 +00
            Thu 2026-01-01T03:00:10 +00
            Thu 2026-01-01T04:30:10 +00
            Thu 2026-01-01T06:00:10 +00"#]],
        );
        check(
            "@every -3s",
            NEW_YEAR,
            expect![[r#"
            Thu 2026-01-01T00:00:01 +00
            Thu 2026-01-01T00:00:02 +00
            Thu 2026-01-01T00:00:03 +00
            Thu 2026-01-01T00:00:04 +00"#]],
        );
    }

    #[test]
    fn zones_have_days_of_23_and_25_hours() {
        // Half past two is skipped on March 29, 2026 and comes twice on October 25.
        check(
            "TZ=Europe/Berlin 30 2 * * *",
            "2026-03-27T12:00:00Z",
            expect![[r#"
            Sat 2026-03-28T02:30:00 +01
            Mon 2026-03-30T02:30:00 +02
            Tue 2026-03-31T02:30:00 +02
            Wed 2026-04-01T02:30:00 +02"#]],
        );
        check(
            "CRON_TZ=Europe/Berlin 30 2 * * *",
            "2026-10-23T12:00:00Z",
            expect![[r#"
            Sat 2026-10-24T02:30:00 +02
            Sun 2026-10-25T02:30:00 +02
            Sun 2026-10-25T02:30:00 +01
            Mon 2026-10-26T02:30:00 +01"#]],
        );
        // An hour that is not whole, and a midnight that does not exist.
        check(
            "TZ=Asia/Kolkata 0 9 * * *",
            NEW_YEAR,
            expect![[r#"
            Thu 2026-01-01T09:00:00 +05:30
            Fri 2026-01-02T09:00:00 +05:30
            Sat 2026-01-03T09:00:00 +05:30
            Sun 2026-01-04T09:00:00 +05:30"#]],
        );
        check(
            "TZ=America/Havana 0 0 * * *",
            "2026-03-06T12:00:00Z",
            expect![[r#"
            Sat 2026-03-07T00:00:00 -05
            Mon 2026-03-09T00:00:00 -04
            Tue 2026-03-10T00:00:00 -04
            Wed 2026-03-11T00:00:00 -04"#]],
        );
    }

    #[test]
    fn a_day_that_never_comes_is_given_up() {
        check("0 0 31 2 *", NEW_YEAR, expect![[""]]);
    }

    #[test]
    fn what_is_no_schedule_says_why() {
        let texts = [
            "",
            "* * * *",
            "60 * * * *",
            "* * 0 * *",
            "5-1 * * * *",
            "*/0 * * * *",
            "1-2-3 * * * *",
            "1/2/3 * * * *",
            "x * * * *",
            "-1 * * * *",
            "* * * foo *",
            "@sometimes",
            "@every 1x",
            "@every",
            "TZ=UTC",
            "TZ=Nowhere * * * * *",
        ];
        let errors = texts.map(|text| format!("{text:?}: {}", Schedule::parse(text).expect_err("no schedule")));
        expect![[r#"
            "": empty spec string
            "* * * *": expected exactly 5 fields, found 4: [* * * *]
            "60 * * * *": end of range (60) above maximum (59): 60
            "* * 0 * *": beginning of range (0) below minimum (1): 0
            "5-1 * * * *": beginning of range (5) beyond end of range (1): 5-1
            "*/0 * * * *": step of range should be a positive number: */0
            "1-2-3 * * * *": too many hyphens: 1-2-3
            "1/2/3 * * * *": too many slashes: 1/2/3
            "x * * * *": failed to parse int from x: strconv.Atoi: parsing "x": invalid syntax
            "-1 * * * *": failed to parse int from : strconv.Atoi: parsing "": invalid syntax
            "* * * foo *": failed to parse int from foo: strconv.Atoi: parsing "foo": invalid syntax
            "@sometimes": unrecognized descriptor: @sometimes
            "@every 1x": failed to parse duration @every 1x: time: unknown unit "x" in duration "1x"
            "@every": unrecognized descriptor: @every
            "TZ=UTC": invalid schedule format: runtime error: slice bounds out of range [:-1]
            "TZ=Nowhere * * * * *": provided bad location Nowhere: unknown time zone Nowhere"#]]
        .assert_eq(&errors.join("\n"));
    }
}
