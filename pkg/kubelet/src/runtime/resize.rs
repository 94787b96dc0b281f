//! Gives running containers other resources.
//!
//! Memory before CPU, and of each what shrinks before what grows: the containers of a pod share its limits.
//! Behaves as doPodResizeAction in pkg/kubelet/kuberuntime/kuberuntime_manager.go, v1.36.

use std::cmp::Ordering;

use rkube_api::k8s::core::v1::Pod;
use rkube_cri::v1::UpdateContainerResourcesRequest;

use crate::pod::PodExt;
use crate::runtime::Runtime;
use crate::runtime::actions::Resize;
use crate::runtime::resources::{self, Resizable};
use crate::runtime::sync::SyncOutcome;

/// What a lower limit of memory is measured against.
#[derive(Clone, Copy)]
pub struct MemoryInUse<'a> {
    /// The pod's new limit, where it is lower than the one in force.
    pub lower_pod_limit: Option<i64>,
    /// Bytes in use by a container, or by the whole pod; `None` when nobody knows.
    pub of: &'a (dyn Fn(Option<&str>) -> Option<i64> + Send + Sync),
}

impl MemoryInUse<'_> {
    /// A limit below what is in use would kill what uses it.
    fn allows(&self, resizes: &[Resize]) -> Result<(), String> {
        let mut errors = Vec::new();
        if let Some(limit) = self.lower_pod_limit {
            match (self.of)(None) {
                None => errors.push("missing pod memory usage".to_owned()),
                Some(used) if used >= limit => {
                    errors.push(format!("attempting to set pod memory limit ({limit}) below current usage ({used})"))
                }
                Some(_) => {}
            }
        }
        for resize in resizes {
            let Some(limit) = resize.to.memory_limit.filter(|limit| *limit != 0) else { continue };
            if resize.from.memory_limit.is_some_and(|before| before != 0 && limit >= before) {
                continue;
            }
            let name = &resize.name;
            match (self.of)(Some(&resize.id)) {
                None => errors.push(format!("missing container {name:?} memory usage")),
                Some(used) if used >= limit => errors.push(format!(
                    "attempting to set container {name:?} memory limit ({limit}) below current usage ({used})"
                )),
                Some(_) => {}
            }
        }
        match errors.as_slice() {
            [] => Ok(()),
            [one] => Err(format!("cannot decrease memory limits: {one}")),
            many => Err(format!("cannot decrease memory limits: [{}]", many.join(", "))),
        }
    }
}

impl Runtime {
    /// Stops at the first failure: what is left is done by a later sync.
    pub(crate) async fn resize(
        &self,
        pod: &Pod,
        resizes: &[Resize],
        memory: &MemoryInUse<'_>,
        outcome: &mut SyncOutcome,
    ) {
        if let Err(error) = memory.allows(resizes) {
            outcome.resize_error = Some(error);
            return;
        }
        let mut given: Vec<_> = resizes.iter().map(|resize| resize.from).collect();
        for half in [Resizable::Memory, Resizable::Cpu] {
            let compare = |index: usize| resizes.get(index).map(|resize| resize.from.compare(&resize.to, half));
            let mut order: Vec<usize> =
                (0..resizes.len()).filter(|index| compare(*index) != Some(Ordering::Equal)).collect();
            order.sort_by_key(|index| compare(*index));
            for index in order {
                let (Some(resize), Some(given)) = (resizes.get(index), given.get_mut(index)) else { continue };
                *given = given.with(&resize.to, half);
                let request = UpdateContainerResourcesRequest {
                    container_id: resize.id.clone(),
                    linux: Some(resources::from_numbers(given, self.settings.cgroup_v2)),
                    ..UpdateContainerResourcesRequest::default()
                };
                if let Err(error) = self.service.update_container_resources(request).await {
                    outcome.resize_error = Some(error.to_string());
                    return;
                }
                self.allocations.actuate(&pod.uid(), &resize.id, *given);
                outcome.resized = true;
            }
        }
        for (resize, given) in resizes.iter().zip(given) {
            // No limit and one of zero are the same to the runtime, and not to us.
            if given != resize.to {
                self.allocations.actuate(&pod.uid(), &resize.id, resize.to);
                outcome.resized = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::resources::ContainerResources;

    fn resize(name: &str, from: Option<i64>, to: Option<i64>) -> Resize {
        let limit = |memory_limit| ContainerResources { memory_limit, ..ContainerResources::default() };
        Resize { id: name.to_owned(), name: name.to_owned(), from: limit(from), to: limit(to) }
    }

    #[test]
    fn a_limit_goes_no_lower_than_what_is_in_use() {
        // `b` uses 50, the pod 70, of `c` nothing is known.
        let of = |container: Option<&str>| match container {
            None => Some(70),
            Some("b") => Some(50),
            Some("c") => None,
            Some(_) => Some(1),
        };
        let check = |lower_pod_limit, resizes: &[Resize], expected: &str| {
            let allows = MemoryInUse { lower_pod_limit, of: &of }.allows(resizes);
            assert_eq!(allows.err().unwrap_or_default(), expected);
        };
        check(None, &[resize("b", Some(40), Some(45)), resize("b", Some(45), None)], "");
        check(Some(71), &[resize("b", Some(100), Some(51))], "");
        check(
            Some(70),
            &[],
            "cannot decrease memory limits: attempting to set pod memory limit (70) below current usage (70)",
        );
        check(
            None,
            &[resize("b", None, Some(50)), resize("c", Some(9), Some(8))],
            "cannot decrease memory limits: [attempting to set container \"b\" memory limit (50) below current usage \
             (50), missing container \"c\" memory usage]",
        );
    }
}
