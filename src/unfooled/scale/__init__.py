"""The same hardening by several processes, each with its share of every batch."""

from .on_ray import fit_on_ray as fit_on_ray
from .workers import fit as fit
