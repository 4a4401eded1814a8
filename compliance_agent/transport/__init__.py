"""Talking to the server: protocol.py builds requests and reads replies (pure), http.py is the socket."""
