//! The API server through its sockets and its in-process transport, over memory storage.

mod requests;
mod server;
