"""The use cases of the server. They decide; `records.Store` remembers; `api/` and the viewer translate."""
