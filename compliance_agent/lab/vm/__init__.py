"""The part of `make lab` that needs a kernel of its own: dm-crypt, a clock, power cuts in the middle of a cure, boots.

`image` makes the disk once, `virtual` runs it under an emulated processor, `runner` is the program inside that does what it is
told, `place` puts the agent there, `matrix` lists every fault as data, `run` does them and judges.
"""
