"""The same hardening by several processes, each with its share of every batch."""

from .workers import fit as fit
