//! The node network: netlink, nftables, IPAM, routes between nodes, and the CNI plugin.
//!
//! Everything that talks to the kernel is synchronous and acts on the network namespace of the calling
//! thread: [`netns::within`] runs a function in another one, and a [`netlink::Socket`] stays in the one it
//! was opened in. [`node::NodeNetwork`] is the component that ties the parts together on a node.
//!
//! **Invariant:** only what bears our marks is changed: links by our names, routes by our protocol number,
//! one nftables table. What else is on the host is neither read for meaning nor written.

pub mod netlink;
pub mod netns;
pub mod sysctl;

pub mod nft;
pub mod table;

pub mod conntrack;
pub mod ipam;

pub mod cni;
pub mod conflist;

pub mod address;
pub mod node;
pub mod removal;
