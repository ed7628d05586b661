"""Hardening: objectives, ways by name, and training that an attack judges after every epoch."""

from .recipes import WAYS as WAYS
from .recipes import Way as Way
from .recipes import way as way
from .trainer import Choose as Choose
from .trainer import Hardened as Hardened
from .trainer import Line as Line
from .trainer import fit as fit
