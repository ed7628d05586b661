"""Evaluation: checks first, then a suite, then one honest number with what it covers."""

from .measure import doctor as doctor
from .measure import evaluate as evaluate
