"""The root side of an order for a baseline: what root believes, it has verified itself. Standard library alone.

ed25519.py verifies signatures.
"""
