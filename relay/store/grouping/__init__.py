"""Group commit: what the writer of every store is made of.

Law: no SQL and no word of a particular database stands here. Whoever calls waits on a future; what waits is taken up
together, run in one transaction, and told after its commit. A store brings the transaction, and what an outage is.
"""
