"""The root side of orders for a baseline, and of approvals: what root takes, it has verified itself.

    nonce (root's own) -> order, signed by people, for this host, once -> baseline, signed, the one that the order names
        -> permissions, made of these bytes behind walls -> state, durable -> signature, baseline, permissions
                                                                       -> or: state, durable -> one approval more for `heal`
    statement of two keys -> signed by the key that root knows, and by the next -> state, durable -> root knows that one

`run` brings bytes, and nothing that it says is believed. Whose orders count here, and whose baselines, stands in a file of root's
(trust.py); nonces, numbers and versions are kept in another (state.py). The rules, and the names of the refusals, are those of the
agent (`core/orders.py`, `core/order_roots.py`), which judges first. It has no network and writes its two directories alone.

Standard library alone, synchronous, one question at a time. forms.py (documents, to the last field), ed25519.py (signatures),
trust.py (root, list of keys), orders.py (the order), rotation.py (this host's next key), state.py, service.py (the socket),
protocol.py (what may be said there).
"""
