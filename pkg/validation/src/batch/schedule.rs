//! Whether a text is a cron schedule, and why not.
//!
//! Only the form is checked here; the times are computed by the controller.
//!
//! Behaves as `cron.ParseStandard` of github.com/robfig/cron/v3, which upstream uses.

struct Bounds {
    low: u32,
    high: u32,
    names: &'static [&'static str],
}

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const FIELDS: [Bounds; 5] = [
    Bounds { low: 0, high: 59, names: &[] },
    Bounds { low: 0, high: 23, names: &[] },
    Bounds { low: 1, high: 31, names: &[] },
    Bounds { low: 1, high: 12, names: &MONTHS },
    Bounds { low: 0, high: 6, names: &DAYS },
];

pub(crate) fn is_time_zone(name: &str) -> bool {
    name == "UTC" || jiff::tz::TimeZone::get(name).is_ok()
}

pub(crate) fn check(text: &str) -> Result<(), String> {
    let mut spec = text;
    if spec.is_empty() {
        return Err("empty spec string".to_owned());
    }
    if let Some(rest) = spec.strip_prefix("TZ=").or_else(|| spec.strip_prefix("CRON_TZ=")) {
        let Some((zone, schedule)) = rest.split_once(' ') else {
            return Err("invalid schedule format: runtime error: slice bounds out of range [:-1]".to_owned());
        };
        if !is_time_zone(zone) {
            return Err(format!("provided bad location {zone}: unknown time zone {zone}"));
        }
        spec = schedule.trim();
    }
    if spec.starts_with('@') {
        return check_descriptor(spec);
    }
    let fields: Vec<&str> = spec.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        let found = fields.len();
        return Err(format!("expected exactly 5 fields, found {found}: [{}]", fields.join(" ")));
    }
    fields.iter().zip(&FIELDS).try_for_each(|(field, bounds)| check_field(field, bounds))
}

fn check_descriptor(text: &str) -> Result<(), String> {
    match text {
        "@yearly" | "@annually" | "@monthly" | "@weekly" | "@daily" | "@midnight" | "@hourly" => Ok(()),
        _ => match text.strip_prefix("@every ") {
            Some(duration) if is_duration(duration) => Ok(()),
            Some(duration) => Err(format!("failed to parse duration {text}: time: invalid duration {duration:?}")),
            None => Err(format!("unrecognized descriptor: {text}")),
        },
    }
}

/// Go's form: `1h30m`, `1.5s`.
fn is_duration(text: &str) -> bool {
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return true;
    }
    if rest.is_empty() {
        return false;
    }
    while !rest.is_empty() {
        let number = rest.find(|character: char| !character.is_ascii_digit() && character != '.').unwrap_or(rest.len());
        let (digits, tail) = rest.split_at(number);
        if !digits.contains(|character: char| character.is_ascii_digit()) || digits.matches('.').count() > 1 {
            return false;
        }
        let Some(unit) = ["ns", "us", "µs", "μs", "ms", "s", "m", "h"].iter().find(|unit| {
            tail.strip_prefix(**unit).is_some_and(|after| !after.starts_with(|next: char| next.is_ascii_alphabetic()))
        }) else {
            return false;
        };
        rest = &tail[unit.len()..];
    }
    true
}

/// Comma-separated ranges.
fn check_field(field: &str, bounds: &Bounds) -> Result<(), String> {
    field.split(',').filter(|range| !range.is_empty()).try_for_each(|range| check_range(range, bounds))
}

/// `number | number-number | * | ?`, and `/step` after it.
fn check_range(text: &str, bounds: &Bounds) -> Result<(), String> {
    let mut parts = text.split('/');
    let range = parts.next().unwrap_or_default();
    let (step, more) = (parts.next(), parts.next());
    let mut ends = range.split('-');
    let low = ends.next().unwrap_or_default();
    let (high, extra) = (ends.next(), ends.next());
    let (start, end) = if matches!(low, "*" | "?") {
        (bounds.low, bounds.high)
    } else {
        let start = number_or_name(low, bounds.names)?;
        let end = match high {
            Some(high) if extra.is_none() => number_or_name(high, bounds.names)?,
            Some(_) => return Err(format!("too many hyphens: {text}")),
            None if step.is_some() => bounds.high,
            None => start,
        };
        (start, end)
    };
    let step = match (step, more) {
        (None, _) => 1,
        (Some(step), None) => number(step)?,
        (Some(_), Some(_)) => return Err(format!("too many slashes: {text}")),
    };
    if start < bounds.low {
        return Err(format!("beginning of range ({start}) below minimum ({}): {text}", bounds.low));
    }
    if end > bounds.high {
        return Err(format!("end of range ({end}) above maximum ({}): {text}", bounds.high));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {text}"));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {text}"));
    }
    Ok(())
}

fn number_or_name(text: &str, names: &[&str]) -> Result<u32, String> {
    let name = text.to_lowercase();
    if let Some(index) = names.iter().position(|known| *known == name) {
        // Months count from one, days from zero.
        let first = u32::from(names.len() == MONTHS.len());
        return Ok(u32::try_from(index).unwrap_or(0) + first);
    }
    number(text)
}

fn number(text: &str) -> Result<u32, String> {
    match text.parse::<i64>() {
        Ok(number) => match u32::try_from(number) {
            Ok(number) => Ok(number),
            Err(_) => Err(format!("negative number ({number}) not allowed: {text}")),
        },
        Err(_) => Err(format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax")),
    }
}
