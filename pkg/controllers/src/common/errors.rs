//! What the API's refusals mean to controllers.

use rkube_client::ClientError;

/// The namespace is going away; whatever is created in it would be deleted, and every try is refused.
pub(crate) fn namespace_terminating(error: &ClientError) -> bool {
    has_cause(error, "NamespaceTerminating")
}

pub(crate) fn has_cause(error: &ClientError, reason: &str) -> bool {
    let details = error.status().and_then(|status| status.status().details.as_ref());
    details.is_some_and(|details| details.causes.iter().any(|cause| cause.reason == reason))
}

/// `Ok` if the object is gone already.
pub(crate) fn ignore_not_found<T: Default>(result: Result<T, ClientError>) -> Result<T, ClientError> {
    match result {
        Err(error) if error.is_not_found() => Ok(T::default()),
        other => other,
    }
}
