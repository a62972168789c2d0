"""Measures a real relay on this machine: senders and targets in processes of their own, all on loopback.

Law: what is measured is the program that users run, with its log, its checks and its fsyncs; no figure comes from
inside it but those that the system keeps of any process. Whatever happens, it ends in time and leaves nothing behind.
"""
