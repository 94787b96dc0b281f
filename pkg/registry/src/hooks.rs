//! What happens around the writes of a few kinds: allocation of addresses and ports.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use rkube_api::StoredObject;
use rkube_api::draft::Draft;
use rkube_apimachinery::status::ApiStatus;

/// Called around writes, in upstream's places: `begin_*` before the strategy prepares and validates.
///
/// # Guarantees
/// Each transaction from `begin_*` is ended exactly once: `commit` after the write happened, dropped
/// otherwise (a retry begins anew). Dry runs get no transaction that allocates.
pub(crate) trait Hooks: Send + Sync + 'static {
    fn begin_create<'a>(
        &'a self,
        _object: &'a mut Draft,
        _dry_run: bool,
    ) -> BoxFuture<'a, Result<Option<Box<dyn Transaction>>, ApiStatus>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    fn begin_update<'a>(
        &'a self,
        _new: &'a mut Draft,
        _old: &'a Arc<StoredObject>,
        _dry_run: bool,
    ) -> BoxFuture<'a, Result<Option<Box<dyn Transaction>>, ApiStatus>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    fn after_delete<'a>(&'a self, _object: &'a Arc<StoredObject>) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// Something allocated for a write that may still fail. Dropping it gives back what was allocated.
pub(crate) trait Transaction: Send {
    fn commit(self: Box<Self>) -> BoxFuture<'static, ()>;
}

/// For kinds that allocate nothing.
pub(crate) struct NoHooks;

impl Hooks for NoHooks {}
