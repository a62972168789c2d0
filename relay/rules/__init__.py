"""Pure decisions: what is proven, where an event goes, what leaves with it, when it is tried again, who is disabled.

Law: no clock, no chance, no I/O. `now` and `rng` are arguments, results are values, and every decision is total over
what strangers may send.
"""
