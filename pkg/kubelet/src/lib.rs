//! The node agent: pod workers, PLEG, probes, status, volumes, images, eviction and the kubelet server.
