//! The node network: netlink, nftables, IPAM, overlay, and the CNI plugin.
