//! Events: validated by the version the client spoke, and nobody's dependents.

use rkube_api::k8s::core::v1::Event;
use rkube_apimachinery::field::ErrorList;
use rkube_validation::core::event;

use crate::strategy::{GarbageCollectionPolicy, Registration, StrategyContext, TypedStrategy};

struct EventStrategy;

pub(super) fn events() -> Registration {
    Registration::new("", "events", EventStrategy)
}

fn by_core(context: &StrategyContext<'_>) -> bool {
    context.resource.group.is_empty()
}

impl TypedStrategy for EventStrategy {
    type Object = Event;

    fn default(&self, object: &mut Event) {
        event::set_defaults(object);
    }

    fn validate(&self, context: &StrategyContext<'_>, object: &Event) -> ErrorList {
        event::validate(object, by_core(context))
    }

    fn validate_update(&self, context: &StrategyContext<'_>, new: &Event, old: &Event) -> ErrorList {
        event::validate_update(new, old, by_core(context))
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn default_garbage_collection_policy(&self) -> GarbageCollectionPolicy {
        GarbageCollectionPolicy::Unsupported
    }
}
