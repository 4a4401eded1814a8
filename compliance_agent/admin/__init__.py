"""The agent's admin API: HTTP over a unix socket, for `curl --unix-socket`, a Prometheus scraper and this package's own commands.

    door    who may come in, and which page it is        pages   what is read: health, status, figures
    acts    what is changed: pause, check, log level ... client  the commands' side

No TCP. The kernel says who is at the other end; members of the agent's group read, root and the agent's own user change
(core/access.py). Nothing here is needed for a cycle: where the socket cannot be made, the agent says so and goes on.
"""
