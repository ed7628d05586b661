"""Domains: for each kind of input how it is read, written and shown."""
