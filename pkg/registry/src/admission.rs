//! The place of admission in the write path. What the chain holds is the server's business.
//!
//! Behaves as `apiserver/pkg/admission/interfaces.go`, v1.36.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use rkube_api::StoredObject;
use rkube_api::draft::Draft;
use rkube_api::resource::SharedResource;
use rkube_apimachinery::gvk::GroupVersionKind;
use rkube_apimachinery::status::ApiStatus;

use crate::context::RequestContext;
use crate::options::{CreateOptions, DeleteOptions, PatchOptions, UpdateOptions};

/// Mutating, then validating admission.
///
/// # Guarantees
/// `admit` is called before defaulting by the strategy is final and before validation; `validate` after
/// validation, on the object as it will be stored. Both are called again when a conflict makes the
/// store try again.
/// # Assumptions
/// `validate` changes no object: it gets `&mut` only because a draft converts itself on demand.
pub trait Admission: Send + Sync + 'static {
    fn admit<'a>(&'a self, attributes: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>>;

    fn validate<'a>(&'a self, attributes: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>>;
}

/// One operation on one object.
pub struct Attributes {
    pub operation: Operation,
    pub resource: SharedResource,
    /// Empty for the resource itself.
    pub subresource: String,
    /// The kind of `object`; a subresource's own (`Scale`, `Eviction`) where it has one.
    pub kind: GroupVersionKind,
    pub namespace: Arc<str>,
    /// Empty for a create with a generated name that is not generated yet, and for a collection.
    pub name: Arc<str>,
    /// The incoming object in the requested version; `None` for deletes.
    pub object: Option<Draft>,
    /// The stored object for updates and deletes.
    pub old_object: Option<Arc<StoredObject>>,
    pub options: OperationOptions,
    pub dry_run: bool,
    pub context: Arc<RequestContext>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// The options the client sent, as webhooks see them.
#[derive(Clone, Debug)]
pub enum OperationOptions {
    Create(CreateOptions),
    Update(UpdateOptions),
    Patch(PatchOptions),
    Delete(DeleteOptions),
    None,
}

/// Admits everything unchanged.
#[derive(Debug)]
pub struct AlwaysAdmit;

impl Admission for AlwaysAdmit {
    fn admit<'a>(&'a self, _: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn validate<'a>(&'a self, _: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>> {
        Box::pin(std::future::ready(Ok(())))
    }
}
