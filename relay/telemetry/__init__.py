"""Logs and metrics: what happened, one line a unit of work, and how much of it.

Law: telling never costs the work. A reader that blocks blocks a thread of its own, a line that cannot be written is
counted, and nothing here raises for what it is told. Nothing that strangers send becomes a key or a label.
"""
