"""Certificates: what no attack can break, by randomised smoothing and by bounds on small ReLU networks."""

from .bounds import certified_radius as certified_radius
from .bounds import margins as margins
from .smoothing import Smoothed as Smoothed
from .smoothing import smoothed as smoothed
