"""Hardening: objectives, ways by name, and training that an attack judges after every epoch."""

from .recipes import WAYS as WAYS
from .recipes import Rounds as Rounds
from .recipes import Way as Way
from .recipes import way as way
from .trainer import Choose as Choose
from .trainer import Hardened as Hardened
from .trainer import Line as Line
from .trainer import check as check
from .trainer import fit as fit
from .wear import DEFENCES as DEFENCES
from .wear import Defence as Defence
from .wear import bare as bare
from .wear import wear as wear
from .wrappers import Blurred as Blurred
from .wrappers import Guarded as Guarded
from .wrappers import Jpeg as Jpeg
from .wrappers import Median as Median
from .wrappers import Noisy as Noisy
from .wrappers import Quantised as Quantised
from .wrappers import RadialBasis as RadialBasis
from .wrappers import RandomResized as RandomResized
from .wrappers import Sigmoids as Sigmoids
from .wrappers import overhead as overhead
