"""Why a target is fooled: functions that return an `Explanation`: rows, a sentence with its control, a figure."""

from .features import non_robust_set as non_robust_set
from .features import relabelled as relabelled
from .features import robust_set as robust_set
from .features import useful_and_robust as useful_and_robust
from .geometry import curvature as curvature
from .geometry import decision_slice as decision_slice
from .geometry import distances as distances
from .geometry import slice_through as slice_through
from .geometry import slice_towards as slice_towards
from .linearity import growth as growth
from .linearity import local_linearity as local_linearity
from .linearity import logits_along as logits_along
from .manifold import aliasing as aliasing
from .manifold import autoencoder as autoencoder
from .manifold import dimples as dimples
from .manifold import off_manifold as off_manifold
from .manifold import pca as pca
from .manifold import spectrum as spectrum
from .nearby import directions as directions
from .nearby import gaas as gaas
from .nearby import subspaces as subspaces
from .transfer import agreement as agreement
from .transfer import transfer as transfer
from .visualise import visualise as visualise
from .volume import volume as volume
