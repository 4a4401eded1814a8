"""The root side: a fixed table of changes to this machine, for the agent that looks and decides without being root.

    question (typed frame) -> its row: check -> keep what is there, durable -> do -> verify -> answer

It can move the host two ways alone: towards what root has permitted (permits.py, made from the adopted baseline), and back to what
it found by itself before it changed anything in the same cure (found.py). Nothing that is put anywhere is taken from the asker's
word: content must be of the permitted form, or the very bytes that were found. The gates, the schedule and the record are not
its business; they are `run`'s.

Standard library alone, synchronous, one question at a time, under 1,000 lines: it is meant to be read in one sitting.
protocol.py (what may be said), permits.py, approvals.py, found.py, machine.py (files and programs), rows.py (the table), service.py
(the socket).
"""
