//! Values as Go prints them, for messages that clients compare.

use rkube_api::meta::pkg::apis::meta::v1::LabelSelector;

/// A selector as Go prints it in messages.
pub(crate) fn selector_text(selector: Option<&LabelSelector>) -> String {
    let Some(selector) = selector else { return "nil".to_owned() };
    let labels = selector.match_labels.iter().flatten();
    let labels: String = labels.map(|(key, value)| format!("{key}: {value},")).collect();
    let expressions = selector.match_expressions.iter().flatten().map(|expression| {
        let values = expression.values.as_deref().unwrap_or_default().join(" ");
        let (key, operator) = (&expression.key, &expression.operator);
        format!("LabelSelectorRequirement{{Key:{key},Operator:{operator},Values:[{values}],}},")
    });
    let expressions: String = expressions.collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}"
    )
}

#[cfg(test)]
mod tests {
    use rkube_api::meta::pkg::apis::meta::v1::LabelSelectorRequirement;

    use super::*;
    use crate::testing::labels;

    #[test]
    fn selectors_read_as_in_go() {
        let expression = LabelSelectorRequirement {
            key: "tier".to_owned(),
            operator: "In".to_owned(),
            values: Some(vec!["a".to_owned(), "b".to_owned()]),
        };
        let selector = LabelSelector {
            match_labels: Some(labels(&[("x", "1"), ("y", "2")])),
            match_expressions: Some(vec![expression]),
        };
        assert_eq!(
            selector_text(Some(&selector)),
            "&LabelSelector{MatchLabels:map[string]string{x: 1,y: 2,},MatchExpressions:[]LabelSelectorRequirement\
             {LabelSelectorRequirement{Key:tier,Operator:In,Values:[a b],},},}"
        );
    }
}
