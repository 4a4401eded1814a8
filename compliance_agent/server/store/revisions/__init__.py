"""Steps of the schema, oldest first. A file is named NNNN_what_it_does.py, says its `revision` and the one before it, and has
`upgrade` and `downgrade`; the way down refuses to lose a row.
"""
