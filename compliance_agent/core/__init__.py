"""Pure decisions: data in, decisions out. No files, sockets, processes, randomness or current time."""
