"""`make lab`: real hosts. A booted Debian with the agent installed is made to drift, and what the agent said is judged.

`recipe` makes the root file system once, `machine` boots a cheap copy of it, `network` joins it to a server, `install` puts the
agent there as its users do, `rows` lists every fault as data, `matrix` joins it, `judge` (pure) compares, `run` is the command.
"""
