"""The network side: one small process between the agent's socket and the server (docs/adr: one process has the network).

    run: MCPClient -> UplinkTransport -> Link == frames (table.py) ==> serve.py -> HttpTransport -> the server

`run` has no network: it asks for one exchange after the other over a unix socket. `uplink` holds what the way to the server needs
(TLS, the private authority, the API key, the key of the client certificate) and nothing else of the host. What the server says is
verified in `run` alone, so whoever owns `uplink` can deny service, and do no more.
"""
