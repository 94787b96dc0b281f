//! The CRI v1 protocol: messages, client, service traits and fakes.
