//! Acting as another user, by headers, for those who are authorized to `impersonate` every part of them.
//!
//! Behaves as `k8s.io/apiserver/pkg/endpoints/filters/impersonation/impersonation.go`, v1.36. Not here: the finer
//! verbs of constrained impersonation, which upstream tries first and which only ever allow less.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName};
use percent_encoding::percent_decode_str;
use rkube_apimachinery::status::ApiStatus;
use rkube_registry::UserInfo;

use super::basic::{ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED};
use super::{Attributes, Authorizer, Decision, Impersonation};

const USER: HeaderName = HeaderName::from_static("impersonate-user");
const UID: HeaderName = HeaderName::from_static("impersonate-uid");
const GROUP: HeaderName = HeaderName::from_static("impersonate-group");
const EXTRA: &str = "impersonate-extra-";
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";
const AUTHENTICATION: &str = "authentication.k8s.io";

/// Asks the authorizer about each part of the user to act as.
pub struct ByAuthorization;

impl Impersonation for ByAuthorization {
    fn impersonate<'a>(
        &'a self,
        headers: &'a mut HeaderMap,
        user: &'a UserInfo,
        authorizer: &'a Arc<dyn Authorizer>,
    ) -> BoxFuture<'a, Result<Option<UserInfo>, ApiStatus>> {
        Box::pin(async move {
            let Some(wanted) = Wanted::read(headers)? else { return Ok(None) };
            for attributes in wanted.attributes(user) {
                match authorizer.authorize(&attributes).await {
                    Decision::Allow { .. } => {}
                    Decision::Deny { reason } | Decision::NoOpinion { reason } => {
                        return Err(attributes.forbidden(&reason));
                    }
                }
            }
            let names: Vec<HeaderName> = headers
                .keys()
                .filter(|name| [USER, UID, GROUP].contains(name) || name.as_str().starts_with(EXTRA))
                .cloned()
                .collect();
            for name in names {
                headers.remove(name);
            }
            Ok(Some(wanted.into_user()))
        })
    }
}

/// Whom the headers name.
struct Wanted {
    user: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

impl Wanted {
    fn read(headers: &HeaderMap) -> Result<Option<Self>, ApiStatus> {
        let first = |name: &HeaderName| {
            headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).unwrap_or_default()
        };
        let all = |name: &HeaderName| -> Vec<String> {
            headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
        };
        let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for name in headers.keys() {
            if let Some(key) = name.as_str().strip_prefix(EXTRA) {
                // A key that is no UTF-8 after decoding is kept as it was sent.
                let key = percent_decode_str(key).decode_utf8().map_or_else(|_| key.to_owned(), |key| key.into_owned());
                extra.entry(key).or_default().extend(all(name));
            }
        }
        let wanted = Self { user: first(&USER), uid: first(&UID), groups: all(&GROUP), extra };
        if !wanted.user.is_empty() {
            return Ok(Some(wanted));
        }
        if wanted.groups.is_empty() && wanted.extra.is_empty() && wanted.uid.is_empty() {
            return Ok(None);
        }
        let parts = wanted.groups.iter().chain(wanted.extra.keys()).map(String::as_str);
        let parts: Vec<&str> = parts.chain((!wanted.uid.is_empty()).then_some(wanted.uid.as_str())).collect();
        Err(ApiStatus::bad_request(format!("requested [{}] without impersonating a user", parts.join(" "))))
    }

    /// One question for each part.
    fn attributes(&self, user: &UserInfo) -> Vec<Attributes> {
        let ask = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| Attributes {
            user: user.clone(),
            verb: "impersonate".to_owned(),
            is_resource: true,
            group: group.to_owned(),
            version: "v1".to_owned(),
            namespace: namespace.to_owned(),
            resource: resource.to_owned(),
            subresource: subresource.to_owned(),
            name: name.to_owned(),
            ..Attributes::default()
        };
        let mut questions = Vec::new();
        match self.service_account() {
            Some((namespace, name)) => questions.push(ask("", "serviceaccounts", "", namespace, name)),
            None => questions.push(ask("", "users", "", "", &self.user)),
        }
        questions.extend(self.groups.iter().map(|group| ask("", "groups", "", "", group)));
        for (key, values) in &self.extra {
            questions.extend(values.iter().map(|value| ask(AUTHENTICATION, "userextras", key, "", value)));
        }
        if !self.uid.is_empty() {
            questions.push(ask(AUTHENTICATION, "uids", "", "", &self.uid));
        }
        questions
    }

    /// Namespace and name of a service account's user name.
    fn service_account(&self) -> Option<(&str, &str)> {
        let (namespace, name) = self.user.strip_prefix(SERVICE_ACCOUNT)?.split_once(':')?;
        (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
    }

    fn into_user(self) -> UserInfo {
        let mut groups = match self.service_account() {
            // The groups of a service account are known, unless others are asked for.
            Some((namespace, _)) if self.groups.is_empty() => {
                vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")]
            }
            _ => self.groups.clone(),
        };
        let has = |groups: &[String], name: &str| groups.iter().any(|group| group == name);
        if self.user == ANONYMOUS {
            if !has(&groups, UNAUTHENTICATED) {
                groups.push(UNAUTHENTICATED.to_owned());
            }
        } else if !has(&groups, AUTHENTICATED) && !has(&groups, UNAUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        UserInfo { name: self.user, uid: self.uid, groups, extra: self.extra }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::auth::Rules;

    /// Allows everything but to act as what is called `root`.
    struct NotRoot;

    impl Authorizer for NotRoot {
        fn authorize<'a>(&'a self, attributes: &'a Attributes) -> BoxFuture<'a, Decision> {
            let decision = if attributes.name == "root" {
                Decision::NoOpinion { reason: String::new() }
            } else {
                Decision::Allow { reason: String::new() }
            };
            Box::pin(std::future::ready(decision))
        }

        fn rules<'a>(&'a self, _: &'a UserInfo, _: &'a str) -> BoxFuture<'a, Rules> {
            Box::pin(std::future::ready(Rules::default()))
        }
    }

    async fn act_as(pairs: &[(&'static str, &str)]) -> Result<Option<UserInfo>, String> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        let sender = UserInfo { name: "admin".to_owned(), ..UserInfo::default() };
        let authorizer: Arc<dyn Authorizer> = Arc::new(NotRoot);
        let result = ByAuthorization.impersonate(&mut headers, &sender, &authorizer).await;
        if matches!(result, Ok(Some(_))) {
            assert!(headers.is_empty(), "the headers reach nobody else");
        }
        result.map_err(|status| status.message().to_owned())
    }

    #[tokio::test]
    async fn every_part_is_authorized_and_groups_follow_the_user() {
        assert_eq!(act_as(&[]).await, Ok(None));
        let account = act_as(&[("impersonate-user", "system:serviceaccount:ns:sa")]).await.unwrap().unwrap();
        assert_eq!(account.groups, ["system:serviceaccounts", "system:serviceaccounts:ns", AUTHENTICATED]);
        let full = [
            ("impersonate-user", "jane"),
            ("impersonate-group", "dev"),
            ("impersonate-uid", "7"),
            ("impersonate-extra-acme.example%2fscope", "view"),
        ];
        let jane = act_as(&full).await.unwrap().unwrap();
        assert_eq!(
            (jane.name.as_str(), jane.uid.as_str(), jane.groups.join(" ")),
            ("jane", "7", format!("dev {AUTHENTICATED}"))
        );
        assert_eq!(jane.extra["acme.example/scope"], ["view"]);
        let group = act_as(&[("impersonate-user", "jane"), ("impersonate-group", "root")]).await.unwrap_err();
        assert_eq!(
            group,
            "groups \"root\" is forbidden: User \"admin\" cannot impersonate resource \"groups\" in API group \"\" at the cluster scope"
        );
        let nobody = act_as(&[("impersonate-group", "dev")]).await.unwrap_err();
        assert_eq!(nobody, "requested [dev] without impersonating a user");
    }
}
