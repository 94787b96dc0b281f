//! The API's error: `metav1.Status`, with upstream's reasons, codes and message texts. Clients match
//! on reasons, people on texts.
//!
//! Behaves as apimachinery/pkg/api/errors, v1.36.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::field;
use crate::gvk::{GroupKind, GroupResource};
use crate::quote::quote;

/// Why a request failed. Boxed inside, so that results stay small.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiStatus(Box<Status>);

/// The wire form of a failure (or, for DELETE, of a success).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    pub kind: String,
    pub api_version: String,
    pub metadata: ListMeta,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub status: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<StatusDetails>,
    #[serde(skip_serializing_if = "is_zero")]
    pub code: u16,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListMeta {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    #[serde(rename = "continue", skip_serializing_if = "String::is_empty")]
    pub continue_token: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remaining_item_count: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatusDetails {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// The resource, or the kind for `Invalid`: upstream uses one field for both.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<StatusCause>,
    #[serde(skip_serializing_if = "is_zero")]
    pub retry_after_seconds: u16,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusCause {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(number: &u16) -> bool {
    *number == 0
}

/// `metav1.StatusReason`, for those the server sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    Unknown,
    Unauthorized,
    Forbidden,
    NotFound,
    AlreadyExists,
    Conflict,
    Gone,
    Invalid,
    ServerTimeout,
    StoreReadError,
    Timeout,
    TooManyRequests,
    BadRequest,
    MethodNotAllowed,
    NotAcceptable,
    RequestEntityTooLarge,
    UnsupportedMediaType,
    InternalError,
    Expired,
    ServiceUnavailable,
}

impl Reason {
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "NotFound",
            Self::AlreadyExists => "AlreadyExists",
            Self::Conflict => "Conflict",
            Self::Gone => "Gone",
            Self::Invalid => "Invalid",
            Self::ServerTimeout => "ServerTimeout",
            Self::StoreReadError => "StorageReadError",
            Self::Timeout => "Timeout",
            Self::TooManyRequests => "TooManyRequests",
            Self::BadRequest => "BadRequest",
            Self::MethodNotAllowed => "MethodNotAllowed",
            Self::NotAcceptable => "NotAcceptable",
            Self::RequestEntityTooLarge => "RequestEntityTooLarge",
            Self::UnsupportedMediaType => "UnsupportedMediaType",
            Self::InternalError => "InternalError",
            Self::Expired => "Expired",
            Self::ServiceUnavailable => "ServiceUnavailable",
        }
    }

    pub fn code(self) -> u16 {
        match self {
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::AlreadyExists | Self::Conflict => 409,
            Self::Gone | Self::Expired => 410,
            Self::Invalid => 422,
            Self::Timeout => 504,
            Self::TooManyRequests => 429,
            Self::BadRequest => 400,
            Self::MethodNotAllowed => 405,
            Self::NotAcceptable => 406,
            Self::RequestEntityTooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::ServiceUnavailable => 503,
            Self::Unknown | Self::ServerTimeout | Self::StoreReadError | Self::InternalError => 500,
        }
    }
}

impl ApiStatus {
    /// A failure with no details. Prefer the named constructors, which know upstream's texts.
    pub fn failure(reason: Reason, message: impl Into<String>) -> Self {
        Self(Box::new(Status {
            kind: "Status".to_owned(),
            api_version: "v1".to_owned(),
            status: "Failure".to_owned(),
            message: message.into(),
            reason: reason.name().to_owned(),
            code: reason.code(),
            ..Status::default()
        }))
    }

    /// What another server answered.
    pub fn from_wire(status: Status) -> Self {
        Self(Box::new(status))
    }

    fn about(mut self, resource: &GroupResource, name: &str) -> Self {
        let details = self.details_mut();
        details.group = resource.group.clone();
        details.kind = resource.resource.clone();
        details.name = name.to_owned();
        self
    }

    pub fn not_found(resource: &GroupResource, name: &str) -> Self {
        Self::failure(Reason::NotFound, format!("{resource} {} not found", quote(name))).about(resource, name)
    }

    pub fn already_exists(resource: &GroupResource, name: &str) -> Self {
        Self::failure(Reason::AlreadyExists, format!("{resource} {} already exists", quote(name))).about(resource, name)
    }

    /// No free name was found for a `generateName`.
    pub fn generate_name_conflict(resource: &GroupResource, name: &str, retry_after_seconds: u16) -> Self {
        let message = format!(
            "{resource} {} already exists, the server was not able to generate a unique name for the object",
            quote(name)
        );
        Self::failure(Reason::AlreadyExists, message).about(resource, name).retry_after(retry_after_seconds)
    }

    /// Server-side apply met fields that others own; one cause per field.
    pub fn apply_conflict(causes: Vec<StatusCause>, message: impl Into<String>) -> Self {
        let mut status = Self::failure(Reason::Conflict, message);
        status.details_mut().causes = causes;
        status
    }

    /// `error` says what clashed; see [`OPTIMISTIC_LOCK`] for the usual one.
    pub fn conflict(resource: &GroupResource, name: &str, error: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {resource} {}: {error}", quote(name));
        Self::failure(Reason::Conflict, message).about(resource, name)
    }

    /// `error` is empty or says why.
    pub fn forbidden(resource: &GroupResource, name: &str, error: &str) -> Self {
        let message = match (resource.resource.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {error}"),
            (false, true) => format!("{resource} is forbidden: {error}"),
            (false, false) => format!("{resource} {} is forbidden: {error}", quote(name)),
        };
        Self::failure(Reason::Forbidden, message).about(resource, name)
    }

    pub fn invalid(kind: &GroupKind, name: &str, errors: &[field::Error]) -> Self {
        let text = field::aggregate(errors);
        let message = if text.is_empty() {
            format!("{kind} {} is invalid", quote(name))
        } else {
            format!("{kind} {} is invalid: {text}", quote(name))
        };
        let mut status = Self::failure(Reason::Invalid, message);
        let details = status.details_mut();
        details.group = kind.group.clone();
        details.kind = kind.kind.clone();
        details.name = name.to_owned();
        details.causes = errors
            .iter()
            .map(|error| StatusCause {
                reason: error.kind.reason().to_owned(),
                message: error.body(),
                field: error.field.clone(),
            })
            .collect();
        status
    }

    /// A patch that parses and does not apply. Upstream does not say why.
    pub fn unprocessable_patch() -> Self {
        let message = "the server rejected our request due to an error in our request";
        let mut status = Self::failure(Reason::Invalid, message);
        status.details_mut();
        status
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::failure(Reason::BadRequest, message)
    }

    pub fn unauthorized() -> Self {
        Self::failure(Reason::Unauthorized, "Unauthorized")
    }

    pub fn method_not_supported(resource: &GroupResource, action: &str) -> Self {
        let message = format!("{action} is not supported on resources of kind {}", quote(&resource.to_string()));
        Self::failure(Reason::MethodNotAllowed, message).about(resource, "")
    }

    pub fn expired(message: impl Into<String>) -> Self {
        Self::failure(Reason::Expired, message)
    }

    pub fn too_large_resource_version(requested: u64, current: u64, retry_after_seconds: u16) -> Self {
        let message = format!("Timeout: Too large resource version: {requested}, current: {current}");
        let mut status = Self::failure(Reason::Timeout, message);
        let details = status.details_mut();
        details.retry_after_seconds = retry_after_seconds;
        details.causes.push(StatusCause {
            reason: "ResourceVersionTooLarge".to_owned(),
            message: "Too large resource version".to_owned(),
            field: String::new(),
        });
        status
    }

    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u16) -> Self {
        Self::failure(Reason::TooManyRequests, message).retry_after(retry_after_seconds)
    }

    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Self::failure(Reason::ServiceUnavailable, message)
    }

    /// The text is prefixed with `Timeout: `.
    pub fn timeout(message: impl fmt::Display, retry_after_seconds: u16) -> Self {
        Self::failure(Reason::Timeout, format!("Timeout: {message}")).retry_after(retry_after_seconds)
    }

    pub fn server_timeout(resource: &GroupResource, operation: &str, retry_after_seconds: u16) -> Self {
        let message = format!(
            "The {operation} operation against {resource} could not be completed at this time, please try again."
        );
        let mut status = Self::failure(Reason::ServerTimeout, message);
        let details = status.details_mut();
        details.group = resource.group.clone();
        details.kind = resource.resource.clone();
        details.name = operation.to_owned();
        status.retry_after(retry_after_seconds)
    }

    pub fn internal(message: impl fmt::Display) -> Self {
        Self::failure(Reason::InternalError, format!("Internal error occurred: {message}")).cause(
            "",
            message.to_string(),
            "",
        )
    }

    /// The text is prefixed with `Request entity too large: `, as in `... limit is 3145728`.
    pub fn request_entity_too_large(message: impl fmt::Display) -> Self {
        Self::failure(Reason::RequestEntityTooLarge, format!("Request entity too large: {message}"))
    }

    pub fn not_acceptable(message: impl Into<String>) -> Self {
        Self::failure(Reason::NotAcceptable, message)
    }

    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::failure(Reason::UnsupportedMediaType, message)
    }

    #[must_use]
    pub fn cause(mut self, reason: &str, message: impl Into<String>, field: &str) -> Self {
        let cause = StatusCause { reason: reason.to_owned(), message: message.into(), field: field.to_owned() };
        self.details_mut().causes.push(cause);
        self
    }

    #[must_use]
    pub fn retry_after(mut self, seconds: u16) -> Self {
        self.details_mut().retry_after_seconds = seconds;
        self
    }

    /// For a 410 on an expired continue token: where the client may go on, at a newer revision.
    #[must_use]
    pub fn with_continue(mut self, token: String) -> Self {
        self.0.metadata.continue_token = token;
        self
    }

    pub fn status(&self) -> &Status {
        &self.0
    }

    pub fn into_status(self) -> Status {
        *self.0
    }

    pub fn details_mut(&mut self) -> &mut StatusDetails {
        self.0.details.get_or_insert_with(StatusDetails::default)
    }

    pub fn code(&self) -> u16 {
        self.0.code
    }

    pub fn message(&self) -> &str {
        &self.0.message
    }

    pub fn is(&self, reason: Reason) -> bool {
        self.0.reason == reason.name()
    }

    pub fn is_not_found(&self) -> bool {
        self.is(Reason::NotFound)
    }

    pub fn is_conflict(&self) -> bool {
        self.is(Reason::Conflict)
    }

    pub fn is_already_exists(&self) -> bool {
        self.is(Reason::AlreadyExists)
    }

    /// A 410 of either name: the version asked for is no longer there.
    pub fn is_expired(&self) -> bool {
        self.is(Reason::Expired) || self.is(Reason::Gone)
    }
}

/// The text of a lost optimistic update.
pub const OPTIMISTIC_LOCK: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

impl fmt::Display for ApiStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for ApiStatus {}
