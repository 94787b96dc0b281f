//! Label selectors: parsing, printing, matching, and building from `metav1.LabelSelector`.
//!
//! In: selector text of a query (`app=web,tier in (a,b),!x`) or a LabelSelector as JSON. Out: a
//! [`Selector`], or the upstream error text.
//! Invariant: `parse(selector.to_string())` selects the same labels.
//! Behaves as apimachinery/pkg/labels/selector.go and apis/meta/v1/helpers.go, v1.36.

mod parse;

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use crate::field::{self, Path};
use crate::names;

/// What a selector looks at.
pub trait Labels {
    fn get(&self, key: &str) -> Option<&str>;
}

impl Labels for serde_json::Map<String, Value> {
    fn get(&self, key: &str) -> Option<&str> {
        serde_json::Map::get(self, key)?.as_str()
    }
}

/// `metadata.labels` as JSON; anything but an object has no labels.
impl Labels for Value {
    fn get(&self, key: &str) -> Option<&str> {
        self.as_object()?.get(key)?.as_str()
    }
}

impl Labels for BTreeMap<String, String> {
    fn get(&self, key: &str) -> Option<&str> {
        BTreeMap::get(self, key).map(String::as_str)
    }
}

impl<L: Labels> Labels for Option<L> {
    fn get(&self, key: &str) -> Option<&str> {
        self.as_ref()?.get(key)
    }
}

impl<L: Labels + ?Sized> Labels for &L {
    fn get(&self, key: &str) -> Option<&str> {
        (**self).get(key)
    }
}

/// Sorted by key.
impl Labels for [(String, String)] {
    fn get(&self, key: &str) -> Option<&str> {
        let found = self.binary_search_by(|(known, _)| known.as_str().cmp(key)).ok()?;
        <[(String, String)]>::get(self, found).map(|(_, value)| value.as_str())
    }
}

/// Sorted by key.
impl Labels for Vec<(String, String)> {
    fn get(&self, key: &str) -> Option<&str> {
        Labels::get(self.as_slice(), key)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    In,
    NotIn,
    Equals,
    DoubleEquals,
    NotEquals,
    GreaterThan,
    LessThan,
    Exists,
    DoesNotExist,
}

/// The operators that take values, as messages list them.
const BINARY_OPERATORS: &str = "in, notin, =, ==, !=, gt, lt";

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

/// All requirements must hold. The empty selector matches everything, [`Selector::nothing`] matches nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selector {
    /// Sorted by key.
    requirements: Vec<Requirement>,
    nothing: bool,
}

/// Why text or a LabelSelector is not a selector, in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub(crate) String);

impl SelectorError {
    fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl Requirement {
    /// Checks key, number of values and values against the operator.
    pub fn new(key: &str, operator: Operator, values: Vec<String>) -> Result<Self, SelectorError> {
        let shown = Value::from(values.clone());
        Self::checked(key, operator, values, shown)
    }

    fn checked(key: &str, operator: Operator, values: Vec<String>, shown: Value) -> Result<Self, SelectorError> {
        let mut errors = Vec::new();
        let faults = names::is_qualified_name(key);
        if !faults.is_empty() {
            errors.push(field::Error::invalid(&Path::new("key"), key, faults.join("; ")));
        }
        let path = Path::new("values");
        let fault = match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                Some("for 'in', 'notin' operators, values set can't be empty")
            }
            Operator::Equals | Operator::DoubleEquals | Operator::NotEquals if values.len() != 1 => {
                Some("exact-match compatibility requires one single value")
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                Some("values set must be empty for exists and does not exist")
            }
            Operator::GreaterThan | Operator::LessThan if values.len() != 1 => {
                Some("for 'Gt', 'Lt' operators, exactly one value is required")
            }
            _ => None,
        };
        if let Some(fault) = fault {
            errors.push(field::Error::invalid(&path, shown, fault));
        }
        if matches!(operator, Operator::GreaterThan | Operator::LessThan) {
            for (index, value) in values.iter().enumerate() {
                if value.parse::<i64>().is_err() {
                    let detail = "for 'Gt', 'Lt' operators, the value must be an integer";
                    errors.push(field::Error::invalid(&path.index(index), value.as_str(), detail));
                }
            }
        }
        for (index, value) in values.iter().enumerate() {
            let faults = names::is_label_value(value);
            if !faults.is_empty() {
                let path = path.index(index).key(key);
                errors.push(field::Error::invalid(&path, value.as_str(), faults.join("; ")));
            }
        }
        if errors.is_empty() {
            Ok(Self { key: key.to_owned(), operator, values })
        } else {
            Err(SelectorError::new(field::aggregate(&errors)))
        }
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    pub fn operator(&self) -> Operator {
        self.operator
    }

    pub fn values(&self) -> &[String] {
        &self.values
    }

    fn has_value(&self, value: &str) -> bool {
        self.values.iter().any(|known| known == value)
    }

    pub fn matches(&self, labels: &(impl Labels + ?Sized)) -> bool {
        let found = labels.get(&self.key);
        match (self.operator, found) {
            (Operator::In | Operator::Equals | Operator::DoubleEquals, Some(value)) => self.has_value(value),
            (Operator::NotIn | Operator::NotEquals, Some(value)) => !self.has_value(value),
            (Operator::NotIn | Operator::NotEquals | Operator::DoesNotExist, None) | (Operator::Exists, Some(_)) => {
                true
            }
            (Operator::GreaterThan | Operator::LessThan, Some(value)) => {
                let [limit] = self.values.as_slice() else { return false };
                match (value.parse::<i64>(), limit.parse::<i64>()) {
                    (Ok(value), Ok(limit)) if self.operator == Operator::GreaterThan => value > limit,
                    (Ok(value), Ok(limit)) => value < limit,
                    _ => false,
                }
            }
            _ => false,
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut values: Vec<&str> = self.values.iter().map(String::as_str).collect();
        values.sort_unstable();
        let (key, values) = (&self.key, values.join(","));
        match self.operator {
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::Exists => f.write_str(key),
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::DoubleEquals => write!(f, "{key}=={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
        }
    }
}

impl Selector {
    pub fn everything() -> Self {
        Self::default()
    }

    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    pub fn new(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Self { requirements, nothing: false }
    }

    /// Parses the text form.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        parse::parse(text).map(Self::new)
    }

    /// Exactly these labels, unchecked: for sets that come from valid objects (`spec.selector` of a Service).
    pub fn from_set<'a>(set: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let equals = |(key, value): (&str, &str)| Requirement {
            key: key.to_owned(),
            operator: Operator::Equals,
            values: vec![value.to_owned()],
        };
        Self::new(set.into_iter().map(equals).collect())
    }

    /// From the parts of a `metav1.LabelSelector`; an empty one selects everything. Expressions are key,
    /// operator (`In`, `NotIn`, `Exists`, `DoesNotExist`) and values.
    pub fn from_label_selector<'a>(
        match_labels: impl IntoIterator<Item = (&'a str, &'a str)>,
        match_expressions: impl IntoIterator<Item = (&'a str, &'a str, Vec<String>)>,
    ) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for (key, value) in match_labels {
            requirements.push(Requirement::new(key, Operator::Equals, vec![value.to_owned()])?);
        }
        for (key, operator, values) in match_expressions {
            let operator = match operator {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    let other = crate::quote::quote(other);
                    return Err(SelectorError::new(format!("{other} is not a valid label selector operator")));
                }
            };
            // Upstream prints an absent list of the object as null.
            let shown = if values.is_empty() { Value::Null } else { Value::from(values.clone()) };
            requirements.push(Requirement::checked(key, operator, values, shown)?);
        }
        Ok(Self::new(requirements))
    }

    /// From a `metav1.LabelSelector` as JSON. An absent one selects nothing, an empty one everything.
    pub fn from_json(selector: Option<&Value>) -> Result<Self, SelectorError> {
        let Some(selector) = selector.filter(|selector| !selector.is_null()) else { return Ok(Self::nothing()) };
        let labels = selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten();
        let expressions = selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten();
        let text = |value: &'_ Value, name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        let parts: Vec<(String, String, Vec<String>)> = expressions
            .map(|expression| {
                let values = expression.get("values").and_then(Value::as_array).into_iter().flatten();
                (
                    text(expression, "key").unwrap_or_default(),
                    text(expression, "operator").unwrap_or_default(),
                    values.filter_map(Value::as_str).map(str::to_owned).collect(),
                )
            })
            .collect();
        Self::from_label_selector(
            labels.map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default())),
            parts.iter().map(|(key, operator, values)| (key.as_str(), operator.as_str(), values.clone())),
        )
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether every set of labels matches.
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// Whether this is [`Selector::nothing`].
    pub fn is_nothing(&self) -> bool {
        self.nothing
    }

    #[must_use]
    pub fn and(&self, requirement: Requirement) -> Self {
        if self.nothing {
            return self.clone();
        }
        let mut requirements = self.requirements.clone();
        requirements.push(requirement);
        Self::new(requirements)
    }

    pub fn matches(&self, labels: &(impl Labels + ?Sized)) -> bool {
        !self.nothing && self.requirements.iter().all(|requirement| requirement.matches(labels))
    }

    /// The only value `key` may have, when the selector says so.
    pub fn requires_exact_match(&self, key: &str) -> Option<&str> {
        let requirement = self.requirements.iter().find(|requirement| requirement.key == key)?;
        match (requirement.operator, requirement.values.as_slice()) {
            (Operator::Equals | Operator::DoubleEquals | Operator::In, [only]) => Some(only),
            _ => None,
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

impl std::str::FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests;
