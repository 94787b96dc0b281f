//! Every controller of kube-controller-manager, one folder each, in one descriptor table.
