//! Nodes.

use expect_test::expect;
use rkube_api::k8s::core::v1::Node;
use rkube_validation::core::node;
use serde_json::json;

use crate::Subject;

#[test]
fn the_single_pod_network_decides_where_the_two_fields_differ() {
    let subject = Subject::<Node> {
        object: json!({
            "metadata": {"name": "n", "resourceVersion": "1"},
            "spec": {"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24"]},
        }),
        defaults: node::set_defaults,
        validate: node::validate,
        validate_update: node::validate_update,
    };
    let changes = [
        ("/spec/podCIDR", json!("192.0.2.300")),
        ("/spec/podCIDR", json!("10.0.1.0/24")),
        ("/spec/podCIDRs", json!(["x"])),
        ("/spec/podCIDR", json!(null)),
    ];
    expect![[r#"
        /spec/podCIDR = "192.0.2.300"
          spec.podCIDRs: Forbidden: node updates may not change podCIDR except from "" to valid
        /spec/podCIDR = "10.0.1.0/24"
          spec.podCIDRs: Forbidden: node updates may not change podCIDR except from "" to valid
        /spec/podCIDRs = ["x"]
        /spec/podCIDR = null
    "#]]
    .assert_eq(&subject.updates(&changes));
}
