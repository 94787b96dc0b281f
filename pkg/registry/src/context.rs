//! Who asks, on whose behalf, and what to tell them besides the answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use rkube_apimachinery::status::ApiStatus;

use crate::admission::{Admission, Attributes};

/// Everything about a request that is not its target, its body or its options.
pub struct RequestContext {
    pub user: UserInfo,
    /// The field manager of a write that names none: the user agent up to its first slash.
    pub default_field_manager: String,
    /// The chain every write passes.
    pub admission: Arc<dyn Admission>,
    /// Asked before a PUT or an apply creates an object: the caller was authorized to update or patch.
    /// `None`: creating is allowed.
    pub create_authorizer: Option<Arc<dyn CreateAuthorizer>>,
    /// When the caller gives up, by the registry clock's `monotonic`. Waits for freshness end then.
    pub deadline: Option<Duration>,
    warnings: Mutex<Vec<String>>,
    audit_annotations: Mutex<BTreeMap<String, String>>,
}

/// Decides whether the caller may also create what it replaces or applies.
pub trait CreateAuthorizer: Send + Sync + 'static {
    fn authorize_create<'a>(&'a self, attributes: &'a Attributes) -> BoxFuture<'a, Result<(), ApiStatus>>;
}

/// The authenticated user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl RequestContext {
    pub fn new(user: UserInfo, admission: Arc<dyn Admission>) -> Self {
        Self {
            user,
            default_field_manager: String::new(),
            admission,
            create_authorizer: None,
            deadline: None,
            warnings: Mutex::default(),
            audit_annotations: Mutex::default(),
        }
    }

    /// The server acting on its own: no user, nothing to admit.
    pub fn internal() -> Self {
        let user = UserInfo { name: "system:apiserver".to_owned(), ..UserInfo::default() };
        let manager = "kube-apiserver".to_owned();
        Self { default_field_manager: manager, ..Self::new(user, Arc::new(crate::admission::AlwaysAdmit)) }
    }

    /// Adds a warning for the client, once.
    pub fn warn(&self, text: impl Into<String>) {
        let text = text.into();
        let mut warnings = self.warnings.lock();
        if !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.warnings.lock())
    }

    /// Adds an annotation to the request's audit event. The first value of a key stays.
    pub fn audit(&self, key: impl Into<String>, value: impl Into<String>) {
        self.audit_annotations.lock().entry(key.into()).or_insert_with(|| value.into());
    }

    pub fn take_audit_annotations(&self) -> BTreeMap<String, String> {
        std::mem::take(&mut self.audit_annotations.lock())
    }
}
