//! What an authorizer is asked.
//!
//! Behaves as `k8s.io/apiserver/pkg/authorization/authorizer` and `pkg/endpoints/filters/authorization.go`,
//! v1.36.

use rkube_apimachinery::gvk::GroupResource;
use rkube_apimachinery::quote::quote;
use rkube_apimachinery::status::ApiStatus;
use rkube_registry::UserInfo;

use crate::request_info::RequestInfo;

/// A user and what they want to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    pub user: UserInfo,
    pub verb: String,
    pub is_resource: bool,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// For requests that are not about resources.
    pub path: String,
    pub field_selector: String,
    pub label_selector: String,
}

impl Attributes {
    pub fn of(info: &RequestInfo, user: &UserInfo) -> Self {
        Self {
            user: user.clone(),
            verb: info.verb.to_owned(),
            is_resource: info.is_resource,
            group: info.group.clone(),
            version: info.version.clone(),
            namespace: info.namespace.clone(),
            resource: info.resource.clone(),
            subresource: info.subresource.clone(),
            name: info.name.clone(),
            path: info.path.clone(),
            field_selector: info.field_selector.clone(),
            label_selector: info.label_selector.clone(),
        }
    }

    /// 403 with upstream's text.
    pub fn forbidden(&self, reason: &str) -> ApiStatus {
        let mut text = self.sentence();
        if !reason.is_empty() {
            text.push_str(": ");
            text.push_str(reason);
        }
        ApiStatus::forbidden(&GroupResource::new(&*self.group, &*self.resource), &self.name, &text)
    }

    fn sentence(&self) -> String {
        let user = quote(&self.user.name);
        if !self.is_resource {
            return format!("User {user} cannot {} path {}", self.verb, quote(&self.path));
        }
        let resource = if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        };
        let what = format!(
            "User {user} cannot {} resource {} in API group {}",
            self.verb,
            quote(&resource),
            quote(&self.group)
        );
        if self.namespace.is_empty() {
            format!("{what} at the cluster scope")
        } else {
            format!("{what} in the namespace {}", quote(&self.namespace))
        }
    }
}
