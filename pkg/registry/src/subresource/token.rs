//! `serviceaccounts/token`: a signed token for a service account, bound to an object if asked.
//!
//! What is in the token and how it is signed is the server's business; who may be named in it is decided
//! here.
//!
//! Behaves as `pkg/registry/core/serviceaccount/storage/token.go`, v1.36.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use jiff::SignedDuration;
use rkube_api::StoredObject;
use rkube_api::draft::Draft;
use rkube_api::object::Selection;
use rkube_apimachinery::field::{Error, ErrorList, Path};
use rkube_apimachinery::gvk::{GroupKind, GroupResource, GroupVersionKind, GroupVersionResource};
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::meta::{Meta, MetaMut};
use rkube_apimachinery::status::ApiStatus;
use rkube_apimachinery::time;
use serde_json::{Value, json};

use super::member;
use crate::admission::{Operation, OperationOptions};
use crate::context::RequestContext;
use crate::options::{CreateOptions, GetOptions};
use crate::store::{Answer, Store, Target};

const GROUP: &str = "authentication.k8s.io";
const EXPIRATION_SECONDS_DEFAULT: i64 = 3600;
const EXPIRATION_SECONDS_MIN: i64 = 600;
const EXPIRATION_SECONDS_MAX: i64 = 1 << 32;
/// What projected volumes ask for: such a token is extended, and its use after the hour is only counted.
const EXPIRATION_SECONDS_EXTENDED: i64 = 3607;
const EXTENSION_SECONDS: i64 = 24 * 365 * 3600;

/// Signs service account tokens.
pub trait TokenSigner: Send + Sync + 'static {
    fn policy(&self) -> TokenPolicy;

    fn sign<'a>(&'a self, request: &'a TokenToSign) -> BoxFuture<'a, Result<String, ApiStatus>>;
}

/// What the server has configured about tokens.
#[derive(Clone, Debug, Default)]
pub struct TokenPolicy {
    /// The audiences of this API server: those of a token that names none.
    pub audiences: Vec<String>,
    /// Longest validity; 0 for no limit.
    pub expiration_seconds_max: i64,
    /// Extend pod-bound tokens for this server to a year, and warn after the time asked for.
    pub extend_expiration: bool,
}

/// What a token says.
#[derive(Clone, Debug, Default)]
pub struct TokenToSign {
    pub namespace: String,
    pub service_account: NameAndUid,
    pub pod: Option<NameAndUid>,
    pub secret: Option<NameAndUid>,
    /// The node it is bound to, or on which its pod runs. The uid is empty when the node does not exist.
    pub node: Option<NameAndUid>,
    pub audiences: Vec<String>,
    pub expiration_seconds: i64,
    /// From then on the use of the token is reported. 0 for never.
    pub warn_after_seconds: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameAndUid {
    pub name: String,
    pub uid: String,
}

impl NameAndUid {
    fn of(object: &StoredObject) -> Self {
        Self { name: object.key.name.to_string(), uid: object.selection.uid.clone() }
    }
}

impl Store {
    pub(crate) async fn request_token(
        &self,
        context: &Arc<RequestContext>,
        target: &Target,
        request: Value,
        options: &CreateOptions,
    ) -> Result<Answer, ApiStatus> {
        options.validate()?;
        let signer = self.core().shared.token_signer.clone();
        let signer =
            signer.ok_or_else(|| ApiStatus::service_unavailable("service account tokens are not configured"))?;
        let policy = signer.policy();
        let mut attributes = self.attributes(
            context,
            target,
            Operation::Create,
            target.name.clone(),
            Some(Draft::new(request)),
            None,
            OperationOptions::Create(options.clone()),
            options.is_dry_run(),
        );
        attributes.kind = GroupVersionKind::new(GROUP, "v1", "TokenRequest");
        context.admission.admit(&mut attributes).await?;
        let gone = || ApiStatus::internal("admission removed the request");
        let request = attributes.object.take().ok_or_else(gone)?.into_value();
        check_metadata(&request, target)?;
        let account = self
            .get_object(context, &Target::new(target.namespace.clone(), target.name.clone()), &GetOptions::default())
            .await?;
        let request = self.complete(request, &account, &policy)?;
        let errors = validate(&request);
        if !errors.is_empty() {
            return Err(ApiStatus::invalid(&kind(), "", &errors));
        }
        attributes.object = Some(Draft::new(request));
        context.admission.validate(&mut attributes).await?;
        let mut request = attributes.object.take().ok_or_else(gone)?.into_value();

        let mut token = TokenToSign {
            namespace: target.namespace.to_string(),
            service_account: NameAndUid::of(&account),
            audiences: audiences(&request),
            ..TokenToSign::default()
        };
        self.bind_token(context, target, &request, &mut token).await?;
        let asked = limit_expiration(context, &mut request, &policy)?;
        token.expiration_seconds = asked;
        let ours = token.audiences.iter().all(|audience| policy.audiences.contains(audience));
        if policy.extend_expiration && token.pod.is_some() && asked == EXPIRATION_SECONDS_EXTENDED && ours {
            token.warn_after_seconds = asked;
            token.expiration_seconds = EXTENSION_SECONDS;
        }
        let expires = self.core().shared.clock.now() + SignedDuration::from_secs(asked);
        let signed = signer.sign(&token).await?;
        member(&mut request, "status")?.extend([
            ("token".to_owned(), Value::from(signed)),
            ("expirationTimestamp".to_owned(), Value::from(time::format(expires))),
        ]);
        let json = serde_json::to_vec(&request).map_err(|error| ApiStatus::internal(error.to_string()))?;
        let key = ObjectKey::new(target.namespace.clone(), target.name.clone());
        Ok(Answer::Object(Arc::new(StoredObject::new(key, 0, json.into(), Selection::default()))))
    }

    /// Fills in what the request leaves to the server.
    fn complete(&self, mut request: Value, account: &StoredObject, policy: &TokenPolicy) -> Result<Value, ApiStatus> {
        let uid = &account.selection.uid;
        if !request.uid().is_empty() && request.uid() != uid {
            let text = format!(
                "the UID in the token request ({}) does not match the UID of the service account ({uid})",
                request.uid()
            );
            return Err(ApiStatus::conflict(&GroupResource::new(GROUP, "TokenRequest"), &account.key.name, &text));
        }
        request.set_name(&account.key.name);
        request.set_namespace(&account.key.namespace);
        request.set_uid(uid);
        request.set_creation_timestamp(Some(self.core().shared.clock.now()));
        let root = request.as_object_mut().ok_or_else(super::invalid_object)?;
        root.insert("apiVersion".to_owned(), json!("authentication.k8s.io/v1"));
        root.insert("kind".to_owned(), json!("TokenRequest"));
        root.remove("status");
        let spec = member(&mut request, "spec")?;
        if spec.get("audiences").and_then(Value::as_array).is_none_or(Vec::is_empty) {
            spec.insert("audiences".to_owned(), json!(policy.audiences));
        }
        let seconds = spec.entry("expirationSeconds").or_insert(Value::Null);
        if seconds.is_null() {
            *seconds = json!(EXPIRATION_SECONDS_DEFAULT);
        }
        Ok(request)
    }

    async fn bind_token(
        &self,
        context: &Arc<RequestContext>,
        target: &Target,
        request: &Value,
        token: &mut TokenToSign,
    ) -> Result<(), ApiStatus> {
        let Some(reference) = request.pointer("/spec/boundObjectRef").filter(|reference| !reference.is_null()) else {
            return Ok(());
        };
        let text = |field: &str| reference.get(field).and_then(Value::as_str).unwrap_or_default();
        let (api_version, kind, name) = (text("apiVersion"), text("kind"), text("name"));
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let found = match (group, kind) {
            ("", "Pod") => {
                let pod = self.other(context, "pods", &target.namespace, name).await?;
                let value = pod.value().map_err(|error| ApiStatus::internal(error.to_string()))?;
                let spec =
                    |field: &str| value.pointer(&format!("/spec/{field}")).and_then(Value::as_str).unwrap_or_default();
                if spec("serviceAccountName") != &*target.name {
                    return Err(ApiStatus::bad_request(format!(
                        "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                        &*target.name
                    )));
                }
                let node = spec("nodeName");
                if !node.is_empty() {
                    token.node = Some(match self.other(context, "nodes", "", node).await {
                        Ok(node) => NameAndUid::of(&node),
                        Err(status) if status.is_not_found() => {
                            NameAndUid { name: node.to_owned(), uid: String::new() }
                        }
                        Err(status) => return Err(status),
                    });
                }
                token.pod = Some(NameAndUid::of(&pod));
                pod
            }
            ("", "Node") => {
                let node = self.other(context, "nodes", "", name).await?;
                token.node = Some(NameAndUid::of(&node));
                node
            }
            ("", "Secret") => {
                let secret = self.other(context, "secrets", &target.namespace, name).await?;
                token.secret = Some(NameAndUid::of(&secret));
                secret
            }
            _ => {
                let version = api_version.rsplit('/').next().unwrap_or_default();
                let shown = if group.is_empty() { format!("/{version}") } else { format!("{group}/{version}") };
                return Err(ApiStatus::bad_request(format!(
                    "cannot bind token to object of type {shown}, Kind={kind}"
                )));
            }
        };
        let uid = text("uid");
        if !uid.is_empty() && uid != found.selection.uid {
            let text = format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. \
                 The object might have been deleted and then recreated"
            );
            return Err(ApiStatus::conflict(&GroupResource::new(group, kind), name, &text));
        }
        Ok(())
    }

    async fn other(
        &self,
        context: &Arc<RequestContext>,
        plural: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<StoredObject>, ApiStatus> {
        let resource = GroupVersionResource::new("", "v1", plural);
        let store = self.core().shared.store(&resource);
        let store = store.ok_or_else(|| ApiStatus::not_found(&resource.group_resource(), name))?;
        store.get_object(context, &Target::new(namespace, name), &GetOptions::default()).await
    }
}

fn kind() -> GroupKind {
    GroupKind::new(GROUP, "TokenRequest")
}

fn check_metadata(request: &Value, target: &Target) -> Result<(), ApiStatus> {
    let path = Path::new("metadata");
    let fields = [("name", request.name(), &target.name), ("namespace", request.namespace(), &target.namespace)];
    for (field, given, expected) in fields {
        if !given.is_empty() && given != &**expected {
            let detail = format!("must match the service account {field} if specified");
            let error = Error::invalid(&path.child(field), given, detail);
            return Err(ApiStatus::invalid(&kind(), &target.name, &[error]));
        }
    }
    Ok(())
}

fn expiration(request: &Value) -> i64 {
    request.pointer("/spec/expirationSeconds").and_then(Value::as_i64).unwrap_or(0)
}

fn validate(request: &Value) -> ErrorList {
    let path = Path::new("spec").child("expirationSeconds");
    let seconds = expiration(request);
    let mut errors = ErrorList::new();
    if seconds < EXPIRATION_SECONDS_MIN {
        errors.push(Error::invalid(&path, seconds, "may not specify a duration less than 10 minutes"));
    }
    if seconds > EXPIRATION_SECONDS_MAX {
        errors.push(Error::invalid(&path, seconds, "may not specify a duration larger than 2^32 seconds"));
    }
    errors
}

fn audiences(request: &Value) -> Vec<String> {
    let audiences = request.pointer("/spec/audiences").and_then(Value::as_array);
    audiences.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn limit_expiration(context: &RequestContext, request: &mut Value, policy: &TokenPolicy) -> Result<i64, ApiStatus> {
    let asked = expiration(request);
    let longest = policy.expiration_seconds_max;
    if longest <= 0 || asked <= longest {
        return Ok(asked);
    }
    context.warn(format!("requested expiration of {asked} seconds shortened to {longest} seconds"));
    member(request, "spec")?.insert("expirationSeconds".to_owned(), Value::from(longest));
    Ok(longest)
}
