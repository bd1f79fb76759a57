"""The ZeroMQ interface of the daemon, as docs/protocol.md describes it."""
