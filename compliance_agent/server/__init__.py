"""The MCP server: takes evidence in, gives receipts out, and answers who is compliant and who is silent.

    app         wiring: `create_app(settings)` chooses the real store, keys and clock
    api/        thin handlers: HTTP in, service call, HTTP out; every refusal is problem+json (RFC 9457)
    services/   the use cases: enrol, check-in, ingest, fleet, users; they reach the database only through records.Store
    store/      SQLAlchemy Core on SQLite (PostgreSQL later): one writer, committed before anything is answered
    records     the words that services and store share, and the contract between them

A row belongs to a site, a caller to sites; every question is asked through a handle that is bound to the caller's sites.
"""
