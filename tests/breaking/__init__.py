"""The check of the checks: lines that carry a promise are broken one by one, and the tests must turn red each time.

`python -m tests.breaking` tries every break of `lines`; `--help` tells how to try others.
"""
