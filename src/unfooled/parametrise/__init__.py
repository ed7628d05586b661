"""Parametrisations of an input: from a few or smooth numbers to the pixels that a target sees."""
