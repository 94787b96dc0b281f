//! The API server through its sockets and its in-process transport, over memory storage.

mod kubelet;
mod requests;
mod server;
mod streams;
