//! What one rule allows, and whether rules cover others.
//!
//! Behaves as `pkg/apis/rbac/v1/evaluation_helpers.go` and
//! `component-helpers/auth/rbac/validation/policy_comparator.go`, v1.36.

use rkube_api::k8s::rbac::v1::PolicyRule;
use rkube_apimachinery::quote::quote_list;

use super::policy::Request;

const ALL: &str = "*";

/// Whether `rule` allows `request`.
pub fn allows(rule: &PolicyRule, request: &Request<'_>) -> bool {
    match request {
        Request::Resource { verb, group, resource, subresource, name, .. } => {
            has(&rule.verbs, verb)
                && has(list(&rule.api_groups), group)
                && resource_matches(list(&rule.resources), resource, subresource)
                && name_matches(list(&rule.resource_names), name)
        }
        Request::Path { verb, path } => has(&rule.verbs, verb) && path_matches(list(&rule.non_resource_urls), path),
    }
}

fn list(field: &Option<Vec<String>>) -> &[String] {
    field.as_deref().unwrap_or_default()
}

fn has(known: &[String], wanted: &str) -> bool {
    known.iter().any(|one| one == ALL || one == wanted)
}

/// `*` is everything, `*/scale` a subresource of everything, `pods/log` itself.
fn resource_matches(known: &[String], resource: &str, subresource: &str) -> bool {
    known.iter().any(|one| match one.split_once('/') {
        _ if one == ALL => true,
        None => subresource.is_empty() && one == resource,
        Some((ALL, sub)) => !subresource.is_empty() && sub == subresource,
        Some((main, sub)) => main == resource && sub == subresource,
    })
}

fn name_matches(known: &[String], name: &str) -> bool {
    known.is_empty() || known.iter().any(|one| one == name)
}

fn path_matches(known: &[String], path: &str) -> bool {
    known.iter().any(|one| match one.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => one == path,
    })
}

/// Parts that rules may have to be compared: cluster-admin's own roles together have some thousand.
const PARTS_MAX: usize = 100_000;

/// Whether comparing `rules` part by part would take too long. A rule of a body's size can have billions of parts.
pub fn is_too_large(rules: &[PolicyRule]) -> bool {
    let parts = rules.iter().map(|rule| {
        let names = list(&rule.resource_names).len().max(1);
        let resources = [list(&rule.api_groups).len(), list(&rule.resources).len(), names];
        let resources = resources.into_iter().fold(1, usize::saturating_mul);
        rule.verbs.len().saturating_mul(resources.saturating_add(list(&rule.non_resource_urls).len()))
    });
    parts.fold(0, usize::saturating_add) > PARTS_MAX
}

/// The parts of `requested` that `owned` does not cover: empty if the owner may grant them all.
pub fn uncovered(owned: &[PolicyRule], requested: &[PolicyRule]) -> Vec<PolicyRule> {
    requested.iter().flat_map(break_down).filter(|part| !owned.iter().any(|rule| covers(rule, part))).collect()
}

/// One rule per verb, group, resource and name, and per verb and path.
fn break_down(rule: &PolicyRule) -> Vec<PolicyRule> {
    let mut parts = Vec::new();
    for verb in &rule.verbs {
        for group in list(&rule.api_groups) {
            for resource in list(&rule.resources) {
                let part = PolicyRule {
                    verbs: vec![verb.clone()],
                    api_groups: Some(vec![group.clone()]),
                    resources: Some(vec![resource.clone()]),
                    ..PolicyRule::default()
                };
                match list(&rule.resource_names) {
                    [] => parts.push(part),
                    names => parts.extend(
                        names
                            .iter()
                            .map(|name| PolicyRule { resource_names: Some(vec![name.clone()]), ..part.clone() }),
                    ),
                }
            }
        }
        for url in list(&rule.non_resource_urls) {
            parts.push(PolicyRule {
                verbs: vec![verb.clone()],
                non_resource_urls: Some(vec![url.clone()]),
                ..PolicyRule::default()
            });
        }
    }
    parts
}

/// Whether `owner` covers a rule from [`break_down`].
fn covers(owner: &PolicyRule, part: &PolicyRule) -> bool {
    let all_in = |owned: &[String], wanted: &[String]| {
        owned.iter().any(|one| one == ALL) || wanted.iter().all(|one| owned.contains(one))
    };
    let names = list(&owner.resource_names);
    let wanted_names = list(&part.resource_names);
    let names_match =
        names.is_empty() || (!wanted_names.is_empty() && wanted_names.iter().all(|one| names.contains(one)));
    let paths_match = list(&part.non_resource_urls).iter().all(|wanted| {
        list(&owner.non_resource_urls).iter().any(|owned| match owned.strip_suffix('*') {
            Some(prefix) => wanted.starts_with(prefix),
            None => owned == wanted,
        })
    });
    all_in(&owner.verbs, &part.verbs)
        && all_in(list(&owner.api_groups), list(&part.api_groups))
        && resources_cover(list(&owner.resources), list(&part.resources))
        && names_match
        && paths_match
}

fn resources_cover(owned: &[String], wanted: &[String]) -> bool {
    if owned.iter().any(|one| one == ALL) {
        return true;
    }
    wanted.iter().all(|one| {
        owned.contains(one)
            || one.split_once('/').is_some_and(|(_, sub)| {
                owned.iter().any(|owned| owned.strip_prefix("*/").is_some_and(|covered| covered == sub))
            })
    })
}

/// Puts the verbs of parts about the same resource and name together, for messages.
pub fn merge_verbs(parts: Vec<PolicyRule>) -> Vec<PolicyRule> {
    let mut merged: Vec<PolicyRule> = Vec::new();
    for part in parts {
        let same = merged.iter_mut().find(|known| {
            part.non_resource_urls.is_none()
                && known.api_groups == part.api_groups
                && known.resources == part.resources
                && known.resource_names == part.resource_names
                && known.non_resource_urls.is_none()
        });
        match same {
            Some(known) => known.verbs.extend(part.verbs),
            None => merged.push(part),
        }
    }
    merged
}

/// `{APIGroups:["apps"], Resources:["deployments"], Verbs:["get"]}`, as upstream writes missing rules.
pub fn compact(rule: &PolicyRule) -> String {
    let mut fields = Vec::new();
    let mut add = |name: &str, values: &[String]| {
        if !values.is_empty() {
            fields.push(format!("{name}:{}", quote_list(values)));
        }
    };
    add("APIGroups", list(&rule.api_groups));
    add("Resources", list(&rule.resources));
    add("NonResourceURLs", list(&rule.non_resource_urls));
    add("ResourceNames", list(&rule.resource_names));
    add("Verbs", &rule.verbs);
    format!("{{{}}}", fields.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verbs: &str, groups: &str, resources: &str, names: &str) -> PolicyRule {
        let words = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
        PolicyRule {
            verbs: words(verbs),
            api_groups: Some(words(groups)),
            resources: Some(words(resources)),
            resource_names: (!names.is_empty()).then(|| words(names)),
            non_resource_urls: None,
        }
    }

    fn on(path: &str) -> PolicyRule {
        PolicyRule {
            verbs: vec!["get".to_owned()],
            non_resource_urls: Some(vec![path.to_owned()]),
            ..PolicyRule::default()
        }
    }

    #[test]
    fn a_rule_allows_what_its_patterns_say_and_nothing_else() {
        let request = |resource: &'static str, subresource: &'static str, name: &'static str| Request::Resource {
            verb: "get",
            group: "",
            resource,
            subresource,
            namespace: "default",
            name,
        };
        let cases = [
            (rule("get", "", "pods", ""), request("pods", "", "a"), true),
            (rule("get", "", "pods", ""), request("pods", "log", "a"), false),
            (rule("get", "", "pods/log", ""), request("pods", "log", "a"), true),
            (rule("*", "*", "*/scale", ""), request("pods", "scale", "a"), true),
            (rule("*", "*", "*/scale", ""), request("pods", "", "a"), false),
            (rule("*", "*", "*", ""), request("pods", "exec", "a"), true),
            (rule("get", "", "pods", "b"), request("pods", "", "a"), false),
            (rule("get", "", "pods", "b"), request("pods", "", ""), false),
            (rule("list", "", "pods", ""), request("pods", "", "a"), false),
            (rule("get", "apps", "pods", ""), request("pods", "", "a"), false),
            (on("/healthz/*"), Request::Path { verb: "get", path: "/healthz/etcd" }, true),
            (on("/healthz/*"), Request::Path { verb: "get", path: "/healthz" }, false),
            (on("*"), Request::Path { verb: "get", path: "/metrics" }, true),
            (rule("get", "", "pods", ""), Request::Path { verb: "get", path: "/pods" }, false),
        ];
        for (rule, request, expected) in cases {
            assert_eq!(allows(&rule, &request), expected, "{rule:?} {request:?}");
        }
    }

    #[test]
    fn nobody_covers_more_than_they_own() {
        let owned = [
            rule("get,list", "", "pods,secrets", ""),
            rule("*", "apps", "*", ""),
            rule("get", "", "configmaps", "a,b"),
        ];
        let missing =
            |requested: PolicyRule| uncovered(&owned, &[requested]).iter().map(compact).collect::<Vec<_>>().join("; ");
        assert_eq!(missing(rule("get", "", "pods", "")), "");
        assert_eq!(missing(rule("delete,patch", "apps", "deployments/scale", "")), "");
        assert_eq!(missing(rule("get", "", "configmaps", "a")), "");
        assert_eq!(
            missing(rule("get", "", "configmaps", "a,c")),
            r#"{APIGroups:[""], Resources:["configmaps"], ResourceNames:["c"], Verbs:["get"]}"#
        );
        assert_eq!(
            missing(rule("get,watch", "", "pods,nodes", "")),
            concat!(
                r#"{APIGroups:[""], Resources:["nodes"], Verbs:["get"]}; "#,
                r#"{APIGroups:[""], Resources:["pods"], Verbs:["watch"]}; "#,
                r#"{APIGroups:[""], Resources:["nodes"], Verbs:["watch"]}"#
            )
        );
        assert_eq!(missing(rule("*", "", "pods", "")), r#"{APIGroups:[""], Resources:["pods"], Verbs:["*"]}"#);
    }
}
