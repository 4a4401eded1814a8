"""What the entries of a site's log say, and what follows from their order: keys, rotations, times, what was destroyed.

Pure, and over `log`, which knows of trees, notes and proofs and nothing of what is in them.
"""
