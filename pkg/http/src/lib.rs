//! TLS listener, router, shutdown, WebSocket, SPDY/3.1 and the remote transport.
