"""One HTTP attempt at a target, in parts that never raise for what the target did, and the loop that runs them."""
