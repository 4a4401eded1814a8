"""HTTP in, a service call, HTTP out. Nothing here decides; every refusal leaves as problem+json (RFC 9457)."""
