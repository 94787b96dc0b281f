//! The client machinery: transport, typed client, reflector, informers, work queue, controller runner,
//! events, leader election.
//!
//! Behaves as `k8s.io/client-go` of v1.36.

pub mod transport;
