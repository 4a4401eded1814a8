"""The transparency log, pure: RFC 6962 trees as C2SP tiles, signed checkpoints, cosignatures, receipts and trust policies.

Server, agent, witness, verifier and packet share it; bytes in, decisions out. What the entries say is read in `entries`; reading
and writing files is for others.
"""
