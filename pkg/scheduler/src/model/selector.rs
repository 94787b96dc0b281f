//! Label selectors of typed objects, compiled.

use std::collections::BTreeMap;

use rkube_api::meta::pkg::apis::meta::v1::LabelSelector;
use rkube_apimachinery::labels::{Labels, Selector};

/// The labels of an object, absent ones as none.
pub(crate) struct LabelsOf<'a>(pub(crate) Option<&'a BTreeMap<String, String>>);

impl Labels for LabelsOf<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0?.get(key).map(String::as_str)
    }
}

/// An absent selector selects nothing, and so does one that validation should have refused.
pub(crate) fn compile(selector: Option<&LabelSelector>) -> Selector {
    let Some(selector) = selector else { return Selector::nothing() };
    let labels = selector.match_labels.iter().flatten().map(|(key, value)| (key.as_str(), value.as_str()));
    let expressions = selector.match_expressions.iter().flatten().map(|expression| {
        let values = expression.values.clone().unwrap_or_default();
        (expression.key.as_str(), expression.operator.as_str(), values)
    });
    Selector::from_label_selector(labels, expressions).unwrap_or_else(|_| Selector::nothing())
}
