"""Hardening: objectives that train a module against an attack, which they receive as an argument."""
