//! The kernel's configuration protocol: messages, a socket, and what we say over it about the network.
//!
//! Own encoding instead of a library: the same forty lines serve links and routes, nftables and connection
//! tracking, without a runtime, which a CNI plugin that lives for two milliseconds would have to start.

pub mod wire;

mod news;
mod socket;

pub mod link;
pub mod route;

pub use news::LinkNews;
pub use socket::{NetlinkError, Socket, gone};
