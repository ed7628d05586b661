"""The attack shelf: recipes that print as the calls that make them, and suites of them."""

from ..core.attack import RECIPES as RECIPES
from ..core.attack import Attack as Attack
from ..core.attack import parse as parse
from .decision import ray as ray
from .gradient import apgd as apgd
from .gradient import apgd_targeted as apgd_targeted
from .gradient import bim as bim
from .gradient import fgsm as fgsm
from .gradient import pgd as pgd
from .gradient import pgd_targeted as pgd_targeted
from .gradient import pixel_gradient as pixel_gradient
from .search import square as square
from .suites import SUITES as SUITES
from .suites import Suite as Suite
from .suites import suite as suite
from .transfer import composite_fgsm as composite_fgsm
from .transfer import di_fgsm as di_fgsm
from .transfer import mi_fgsm as mi_fgsm
from .transfer import ni_fgsm as ni_fgsm
from .transfer import si_fgsm as si_fgsm
from .transfer import ti_fgsm as ti_fgsm
from .transfer import vmi_fgsm as vmi_fgsm
from .transfer import vni_fgsm as vni_fgsm
