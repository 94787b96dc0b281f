//! Resources that are answered and never stored: reviews of tokens and of access, bindings, component
//! statuses.
//!
//! Behaves as `pkg/registry/authentication` and `pkg/registry/authorization`, v1.36.

use std::sync::Arc;

use http::{Response, StatusCode};
use rkube_api::Kind;
use rkube_apimachinery::field::ErrorList;
use rkube_apimachinery::gvk::GroupKind;
use rkube_apimachinery::status::ApiStatus;
use rkube_http::body::Body;
use rkube_registry::UserInfo;
use rkube_validation as validation;
use serde_json::{Map, Value, json};

use super::write::{bind, body_kind};
use super::{output, table_options};
use crate::admission::aggregate;
use crate::auth::{Attributes, Decision};
use crate::negotiation::Output;
use crate::respond;
use crate::scope::Target;
use crate::server::Inner;
use crate::wire::{decode, read_body};

pub(super) async fn answer(
    server: &Arc<Inner>,
    target: &Target,
    verb: &str,
    body: Body,
) -> Result<Response<Body>, ApiStatus> {
    let scope = &target.scope;
    if target.row.plural == "bindings" {
        return bind(server, target, body).await;
    }
    if target.row.plural == "componentstatuses" {
        return component_statuses(server, target, verb, output(target, false)?);
    }
    // What is not stored has no table.
    let output = Output::negotiate_plain(&scope.headers, &target.query())?;
    let bytes = read_body(body).await?;
    let options = target.query().create_options();
    options.validate()?;
    let mut review = decode(&bytes, &scope.headers, &body_kind(target), &options.field_validation, &scope.context)?;
    let status = match target.row.plural.as_ref() {
        "tokenreviews" => token_review(server, &review).await?,
        "selfsubjectreviews" => json!({"userInfo": user_info(&scope.user)}),
        "subjectaccessreviews" => {
            check(target, &review, validation::reviews::validate)?;
            access(server, &review, reviewed_user(&review)).await?
        }
        "localsubjectaccessreviews" => {
            // An object that names no namespace is in that of the request.
            if review.pointer("/metadata/namespace").is_none() {
                review["metadata"]["namespace"] = Value::from(scope.info.namespace.as_str());
            }
            check(target, &review, validation::reviews::validate_local)?;
            let given = review.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default();
            if given != scope.info.namespace {
                let message =
                    format!("spec.resourceAttributes.namespace must match namespace: {}", scope.info.namespace);
                return Err(ApiStatus::bad_request(message));
            }
            access(server, &review, reviewed_user(&review)).await?
        }
        "selfsubjectaccessreviews" => {
            check(target, &review, validation::reviews::validate_self)?;
            access(server, &review, scope.user.clone()).await?
        }
        "selfsubjectrulesreviews" => {
            let namespace = review.pointer("/spec/namespace").and_then(Value::as_str).unwrap_or_default();
            if namespace.is_empty() {
                return Err(ApiStatus::bad_request("no namespace on request"));
            }
            let rules = server.authorizer.rules(&scope.user, namespace).await;
            let mut status = json!({
                "resourceRules": rules.resource_rules,
                "nonResourceRules": rules.non_resource_rules,
                "incomplete": rules.incomplete,
            });
            if !rules.errors.is_empty() {
                status["evaluationError"] = json!(aggregate(&rules.errors));
            }
            status
        }
        _ => return Err(ApiStatus::service_unavailable(format!("{} is not served", target.row.gvr()))),
    };
    review["status"] = status;
    if review.get("metadata").is_none() {
        review["metadata"] = json!({});
    }
    Ok(respond::value(StatusCode::CREATED, &review, output, &scope.headers))
}

async fn token_review(server: &Inner, review: &Value) -> Result<Value, ApiStatus> {
    let token = review.pointer("/spec/token").and_then(Value::as_str).unwrap_or_default();
    if token.is_empty() {
        return Err(ApiStatus::bad_request("token is required for TokenReview in authentication"));
    }
    let audiences = texts(review.pointer("/spec/audiences"));
    Ok(match server.authenticator.authenticate_token(token, &audiences).await {
        Ok(Some(found)) => {
            let user = crate::auth::basic::authenticated(found.user);
            let mut status = json!({"authenticated": true, "user": user_info(&user)});
            if !found.audiences.is_empty() {
                status["audiences"] = json!(found.audiences);
            }
            status
        }
        Ok(None) => json!({"user": {}}),
        Err(error) => json!({"user": {}, "error": error.to_string()}),
    })
}

/// The user as `authentication.k8s.io` writes it.
pub(crate) fn user_info(user: &UserInfo) -> Value {
    let mut value = Map::new();
    if !user.name.is_empty() {
        value.insert("username".to_owned(), json!(user.name));
    }
    if !user.uid.is_empty() {
        value.insert("uid".to_owned(), json!(user.uid));
    }
    if !user.groups.is_empty() {
        value.insert("groups".to_owned(), json!(user.groups));
    }
    if !user.extra.is_empty() {
        value.insert("extra".to_owned(), json!(user.extra));
    }
    Value::Object(value)
}

fn texts(value: Option<&Value>) -> Vec<String> {
    let items = value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    items.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn reviewed_user(review: &Value) -> UserInfo {
    let text = |path: &str| review.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let extra = review.pointer("/spec/extra").and_then(Value::as_object);
    UserInfo {
        name: text("/spec/user"),
        uid: text("/spec/uid"),
        groups: texts(review.pointer("/spec/groups")),
        // Keys of extra are compared without case.
        extra: extra
            .map(|extra| extra.iter().map(|(key, values)| (key.to_lowercase(), texts(Some(values)))).collect())
            .unwrap_or_default(),
    }
}

/// Refuses a question that makes no sense.
fn check<K: Kind>(target: &Target, review: &Value, validate: fn(&K) -> ErrorList) -> Result<(), ApiStatus> {
    let typed = K::from_value(review.clone()).map_err(|error| ApiStatus::bad_request(error.to_string()))?;
    let errors = validate(&typed);
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiStatus::invalid(&GroupKind::new(&*target.row.group, &*target.row.kind), "", &errors))
}

async fn access(server: &Inner, review: &Value, user: UserInfo) -> Result<Value, ApiStatus> {
    let spec = review.get("spec").cloned().unwrap_or_default();
    let resource = spec.get("resourceAttributes").filter(|value| !value.is_null());
    let path = spec.get("nonResourceAttributes").filter(|value| !value.is_null());
    let text = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    // Validation has seen that there is one of them.
    let attributes = match (resource, path) {
        (Some(resource), _) => Attributes {
            user,
            verb: text(resource, "verb"),
            is_resource: true,
            group: text(resource, "group"),
            version: text(resource, "version"),
            namespace: text(resource, "namespace"),
            resource: text(resource, "resource"),
            subresource: text(resource, "subresource"),
            name: text(resource, "name"),
            ..Attributes::default()
        },
        (None, path) => {
            let of = |name: &str| path.map(|path| text(path, name)).unwrap_or_default();
            Attributes { user, verb: of("verb"), path: of("path"), ..Attributes::default() }
        }
    };
    let decision = server.authorizer.authorize(&attributes).await;
    let mut status = json!({"allowed": decision.is_allowed()});
    if matches!(decision, Decision::Deny { .. }) {
        status["denied"] = json!(true);
    }
    if !decision.reason().is_empty() {
        status["reason"] = json!(decision.reason());
    }
    Ok(status)
}

/// What is left of an old API: the server is healthy when it answers.
fn component_statuses(
    server: &Inner,
    target: &Target,
    verb: &str,
    output: Output,
) -> Result<Response<Body>, ApiStatus> {
    let component = |name: &str| {
        json!({
            "apiVersion": "v1",
            "kind": "ComponentStatus",
            "metadata": {"name": name},
            "conditions": [{"type": "Healthy", "status": "True", "message": "ok"}],
        })
    };
    let names = ["controller-manager", "etcd-0", "scheduler"];
    let objects = |names: &[&str]| -> Vec<Arc<rkube_api::StoredObject>> {
        names
            .iter()
            .map(|name| {
                Arc::new(rkube_api::StoredObject::new(
                    rkube_apimachinery::key::ObjectKey::cluster(*name),
                    0,
                    bytes::Bytes::from(component(name).to_string()),
                    rkube_api::object::Selection::default(),
                ))
            })
            .collect()
    };
    let table = table_options(server, output, &target.query())?;
    if verb == "list" {
        let page = rkube_registry::store::ListPage { items: objects(&names), ..Default::default() };
        return super::list::respond_list(&target.row, page, output, &table, &target.scope.headers);
    }
    let name = target.scope.info.path_name();
    if !names.contains(&name) {
        return Err(ApiStatus::not_found(&target.row.group_resource(), name));
    }
    let found = objects(&[name]);
    match found.first() {
        Some(object) => Ok(respond::object(StatusCode::OK, &target.row, object, output, &table, &target.scope.headers)),
        None => Err(ApiStatus::not_found(&target.row.group_resource(), name)),
    }
}
