"""HTTP for those who have no ZeroMQ: the operations of docs/protocol.md, one to one, as docs/http.md describes them.

`gateway` is the part of the daemon; `app` puts the pages together; `guard` lets in; `asking` reaches the one job
logic, `daemon.api.operations`.
"""
