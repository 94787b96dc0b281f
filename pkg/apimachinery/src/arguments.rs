//! Settings of a component by the names of its upstream flags, as `--kubelet-arg name=value` gives them.
//!
//! One table per component; what is not in it is refused, so that a setting never silently does nothing.

use std::str::FromStr;
use std::time::Duration;

/// Why an argument is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum ArgumentError {
    #[error("{0:?} is not name=value")]
    Form(String),
    #[error("{component} argument {name} is unknown; known are {known}")]
    Unknown { component: &'static str, name: String, known: String },
    #[error("{component} argument {name}={value}: {reason}")]
    Value { component: &'static str, name: &'static str, value: String, reason: String },
}

/// Puts a value where it belongs, or says what is wrong with it.
pub type Set<T> = fn(&mut T, &str) -> Result<(), String>;

/// Every argument a component knows, in the order they are applied.
pub struct Arguments<T: 'static> {
    pub component: &'static str,
    pub table: &'static [(&'static str, Set<T>)],
}

impl<T> Arguments<T> {
    /// Applies `name=value` arguments, whatever their order.
    pub fn apply(&self, config: &mut T, arguments: &[String]) -> Result<(), ArgumentError> {
        let mut pairs = Vec::with_capacity(arguments.len());
        for argument in arguments {
            let pair = argument.trim_start_matches("--").split_once('=');
            let (name, value) = pair.ok_or_else(|| ArgumentError::Form(argument.clone()))?;
            if !self.table.iter().any(|(known, _)| *known == name) {
                let known = self.table.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
                return Err(ArgumentError::Unknown { component: self.component, name: name.to_owned(), known });
            }
            pairs.push((name, value));
        }
        for (name, set) in self.table {
            for (_, value) in pairs.iter().filter(|(given, _)| given == name) {
                set(config, value).map_err(|reason| self.wrong(name, value, reason))?;
            }
        }
        Ok(())
    }

    /// The refusal of a value that is wrong only together with others.
    pub fn wrong(&self, name: &'static str, value: &str, reason: String) -> ArgumentError {
        ArgumentError::Value { component: self.component, name, value: value.to_owned(), reason }
    }
}

pub fn put<T>(place: &mut T, value: T) -> Result<(), String> {
    *place = value;
    Ok(())
}

pub fn number<T: FromStr>(value: &str) -> Result<T, String> {
    value.parse().map_err(|_| "it is not a number in range".to_owned())
}

/// A number from zero up.
pub fn amount<T: FromStr + Default + PartialOrd>(value: &str) -> Result<T, String> {
    number(value).and_then(|found: T| if found >= T::default() { Ok(found) } else { Err("it is negative".to_owned()) })
}

pub fn percent(value: &str) -> Result<u8, String> {
    number(value).and_then(|percent| if percent <= 100 { Ok(percent) } else { Err("it is over 100".to_owned()) })
}

pub fn duration(value: &str) -> Result<Duration, String> {
    let duration = crate::time::parse_duration(value).map_err(|error| error.to_string())?;
    Duration::try_from(duration).map_err(|_| "it is negative".to_owned())
}

/// A duration that something is repeated after.
pub fn period(value: &str) -> Result<Duration, String> {
    duration(value).and_then(|period| if period.is_zero() { Err("it is zero".to_owned()) } else { Ok(period) })
}
