"""Public implementations of the shelf's attacks behind one call: (network, question) -> (points, what it claims).

Every library is optional and imported inside the function that needs it; none is installed with this project. Settings
that the question does not name are each library's defaults; what differs is said where it is set.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import io
import math
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Question:
    """What an implementation is asked: images [n, c, h, w] in [0, 1], labels, norm, eps (inf: the smallest change).

    `steps` iterations (or queries, for attacks that count them); `size` the step in units of eps.
    """

    x: Tensor
    y: Tensor
    norm: str
    eps: float
    steps: int
    size: float = 0.0

    @property
    def p(self) -> float:
        """The norm's order."""
        return {"linf": math.inf, "l2": 2, "l1": 1, "l0": 0}[self.norm]


Found = tuple[Tensor, Tensor | None]
"""Points [n, c, h, w], and where the implementation claims a success, bool [n] (None: it says nothing)."""
Adapter = Callable[[nn.Module, Question], Found]


@dataclass(frozen=True)
class Peer:
    """One public implementation of one attack; `note` says what was set apart from its defaults."""

    library: str
    run: Adapter
    norms: tuple[str, ...]
    note: str = ""


PEERS: dict[str, list[Peer]] = {}
PACKAGES = {
    "foolbox": "foolbox",
    "torchattacks": "torchattacks",
    "adv-lib": "adv-lib",
    "ART": "adversarial-robustness-toolbox",
    "secml-torch": "secml-torch",
    "torchattack": "torchattack",
    "CleverHans": "cleverhans",
    "AutoAttack": "pyautoattack",
}


def installed(library: str) -> str | None:
    """Return the installed version of a library, or None."""
    try:
        return version(PACKAGES[library])
    except PackageNotFoundError:
        return None


def peer(library: str, *attacks: str, norms: tuple[str, ...], note: str = "") -> Callable[[Adapter], Adapter]:
    """Register an adapter for the named attacks of the shelf."""

    def register(run: Adapter) -> Adapter:
        for attack in attacks:
            PEERS.setdefault(attack, []).append(Peer(library, run, norms, note))
        return run

    return register


def prepare() -> None:
    """Make the libraries importable as they are: what they import beyond their use is stood in for.

    adv-lib imports visdom for plots. A torchvision built for CUDA registers fakes for two operators that it could not
    load beside a CPU build of torch. ART 1.20 and others ask NumPy for names that NumPy 2 dropped.
    """
    import numpy as np

    if "visdom" not in sys.modules:
        try:
            importlib.import_module("visdom")
        except ImportError:
            stub = types.ModuleType("visdom")
            stub.__spec__ = importlib.machinery.ModuleSpec("visdom", None)
            stub.Visdom = object  # type: ignore[attr-defined]
            sys.modules["visdom"] = stub
    if torch.version.cuda is None and "torchvision" not in sys.modules:
        try:
            importlib.import_module("torchvision")
        except RuntimeError:
            for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
                del sys.modules[name]
            library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _KEPT.append(library)
        except ImportError:
            pass
    if not hasattr(np, "mat"):
        np.mat = np.asmatrix  # type: ignore[attr-defined]


_KEPT: list[Any] = []
_ROOMS = {
    "foolbox": ("foolbox",),
    "torchattacks": ("torchattacks",),
    "adv-lib": ("adv_lib.attacks",),
    "ART": ("art.attacks.evasion", "art.estimators.classification"),
    "secml-torch": ("secmlt.adv.evasion.pgd", "secmlt.adv.evasion.ddn", "secmlt.adv.evasion.fmn"),
    "torchattack": ("torchattack",),
    "CleverHans": ("cleverhans.torch.attacks.projected_gradient_descent",),
    "AutoAttack": ("pyautoattack.autopgd_base", "pyautoattack.fab_pt", "pyautoattack.square"),
}


def load(library: str) -> None:
    """Import what the adapters of a library use, so that no import is timed; a failure shows when it is used."""
    with contextlib.suppress(Exception), silence():
        for room in _ROOMS[library]:
            importlib.import_module(room)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep progress bars and prints of the libraries off the terminal."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


# --- Foolbox ----------------------------------------------------------------------------------------------------------


def _foolbox(make: Callable[[Any, Question], Any]) -> Adapter:
    def run(module: nn.Module, q: Question) -> Found:
        import foolbox

        model = foolbox.PyTorchModel(module, bounds=(0, 1))
        attack = make(foolbox.attacks, q)
        _, x_adv, success = attack(model, q.x, q.y, epsilons=q.eps if math.isfinite(q.eps) else None)
        return x_adv, success

    return run


_foolbox_fast = {"linf": "LinfFastGradientAttack", "l2": "L2FastGradientAttack"}
_foolbox_basic = {"linf": "LinfBasicIterativeAttack", "l2": "L2BasicIterativeAttack"}
_foolbox_pgd = {
    "linf": "LinfProjectedGradientDescentAttack", "l2": "L2ProjectedGradientDescentAttack",
    "l1": "L1ProjectedGradientDescentAttack",
}  # fmt: skip
_foolbox_mi = {"linf": "LinfMomentumIterativeFastGradientMethod", "l2": "L2MomentumIterativeFastGradientMethod"}
_foolbox_fmn = {"linf": "LInfFMNAttack", "l2": "L2FMNAttack", "l1": "L1FMNAttack", "l0": "L0FMNAttack"}
_foolbox_deepfool = {"linf": "LinfDeepFoolAttack", "l2": "L2DeepFoolAttack"}

peer("foolbox", "fgsm", norms=("linf", "l2"))(_foolbox(lambda room, q: getattr(room, _foolbox_fast[q.norm])()))
peer("foolbox", "bim", norms=("linf", "l2"))(
    _foolbox(lambda room, q: getattr(room, _foolbox_basic[q.norm])(rel_stepsize=q.size, steps=q.steps))
)
peer("foolbox", "pgd", norms=("linf", "l2", "l1"))(
    _foolbox(lambda room, q: getattr(room, _foolbox_pgd[q.norm])(rel_stepsize=q.size, steps=q.steps))
)
peer("foolbox", "mi_fgsm", norms=("linf", "l2"))(
    _foolbox(lambda room, q: getattr(room, _foolbox_mi[q.norm])(rel_stepsize=q.size, steps=q.steps))
)
peer("foolbox", "ddn", norms=("l2",))(_foolbox(lambda room, q: room.DDNAttack(steps=q.steps)))
peer("foolbox", "fmn", norms=("linf", "l2", "l1", "l0"))(
    _foolbox(lambda room, q: getattr(room, _foolbox_fmn[q.norm])(steps=q.steps))
)
peer("foolbox", "deepfool", norms=("linf", "l2"))(
    _foolbox(lambda room, q: getattr(room, _foolbox_deepfool[q.norm])(steps=q.steps))
)
peer("foolbox", "cw", norms=("l2",), note="9 searches")(
    _foolbox(lambda room, q: room.L2CarliniWagnerAttack(binary_search_steps=9, steps=q.steps // 9))
)
peer("foolbox", "ead", norms=("l1",), note="9 searches, rule L1, beta 0.01")(
    _foolbox(lambda room, q: room.EADAttack(binary_search_steps=9, steps=q.steps // 9, decision_rule="L1"))
)
peer("foolbox", "boundary", norms=("l2",))(_foolbox(lambda room, q: room.BoundaryAttack(steps=q.steps)))
peer("foolbox", "hop_skip_jump", norms=("linf", "l2"))(
    _foolbox(lambda room, q: room.HopSkipJumpAttack(steps=_hop_steps(q.steps), constraint=q.norm))
)


def _hop_steps(queries: int) -> int:
    """Return how many iterations of HopSkipJump `queries` pay for: 100 sqrt(t) for the t-th gradient, then a search."""
    spent, t = 0.0, 0
    while spent < queries:
        t += 1
        spent += 100 * math.sqrt(t) + 25
    return t


# --- torchattacks -----------------------------------------------------------------------------------------------------


def _torchattacks(make: Callable[[Any, nn.Module, Question], Any]) -> Adapter:
    def run(module: nn.Module, q: Question) -> Found:
        import torchattacks

        return make(torchattacks, module, q)(q.x, q.y), None

    return run


_FAR = {"linf": 1.0, "l2": 1e3, "l1": 1e4}
"""FAB keeps only what is nearer than its eps after a restart; without restarts it returns the smallest change."""
_NESTEROV = "5 scales, and NI-FGSM's look ahead"
_SHORT = {"linf": "Linf", "l2": "L2", "l1": "L1"}

peer("torchattacks", "fgsm", norms=("linf",))(_torchattacks(lambda t, m, q: t.FGSM(m, eps=q.eps)))
peer("torchattacks", "bim", norms=("linf",))(
    _torchattacks(lambda t, m, q: t.BIM(m, eps=q.eps, alpha=q.size * q.eps, steps=q.steps))
)
peer("torchattacks", "pgd", norms=("linf", "l2"))(
    _torchattacks(
        lambda t, m, q: (t.PGD if q.norm == "linf" else t.PGDL2)(m, eps=q.eps, alpha=q.size * q.eps, steps=q.steps)
    )
)
for _name, _kind in {
    "mi_fgsm": "MIFGSM", "ni_fgsm": "NIFGSM", "di_fgsm": "DIFGSM", "ti_fgsm": "TIFGSM", "si_fgsm": "SINIFGSM",
    "vmi_fgsm": "VMIFGSM", "vni_fgsm": "VNIFGSM",
}.items():  # fmt: skip

    def _transfer(t: Any, m: nn.Module, q: Question, kind: str = _kind) -> Any:
        more = {"decay": 1.0} if kind in ("DIFGSM", "TIFGSM") else {}
        return getattr(t, kind)(m, eps=q.eps, alpha=q.size * q.eps, steps=q.steps, **more)

    peer("torchattacks", _name, norms=("linf",), note=_NESTEROV if _name == "si_fgsm" else "")(_torchattacks(_transfer))
peer("torchattacks", "apgd", norms=("linf", "l2"))(
    _torchattacks(lambda t, m, q: t.APGD(m, norm=_SHORT[q.norm], eps=q.eps, steps=q.steps))
)
peer("torchattacks", "apgd_targeted", norms=("linf", "l2"))(
    _torchattacks(lambda t, m, q: t.APGDT(m, norm=_SHORT[q.norm], eps=q.eps, steps=q.steps))
)
peer("torchattacks", "square", norms=("linf", "l2"))(
    _torchattacks(lambda t, m, q: t.Square(m, norm=_SHORT[q.norm], eps=q.eps, n_queries=q.steps))
)
peer("torchattacks", "cw", norms=("l2",), note="c = 1, no search")(
    _torchattacks(lambda t, m, q: t.CW(m, c=1, steps=q.steps, lr=0.01))
)
peer("torchattacks", "deepfool", norms=("l2",))(_torchattacks(lambda t, m, q: t.DeepFool(m, steps=q.steps)))
peer("torchattacks", "ead", norms=("l1",), note="9 searches, rule L1")(
    _torchattacks(lambda t, m, q: t.EADL1(m, binary_search_steps=9, max_iterations=q.steps // 9))
)
peer("torchattacks", "fab", norms=("linf", "l2", "l1"))(
    _torchattacks(lambda t, m, q: t.FAB(m, norm=_SHORT[q.norm], eps=_FAR[q.norm], steps=q.steps))
)
peer("torchattacks", "jsma", norms=("l0",), note="towards class y + 1, theta 1, gamma 1")(
    _torchattacks(lambda t, m, q: t.JSMA(m, theta=1.0, gamma=1.0))
)
peer("torchattacks", "one_pixel", norms=("l0",))(
    _torchattacks(lambda t, m, q: t.OnePixel(m, pixels=int(q.eps), steps=q.steps // 100 - 1, popsize=100))
)
peer("torchattacks", "spsa", norms=("linf",), note="128 samples a step, delta 0.01, Adam 0.01")(
    _torchattacks(lambda t, m, q: t.SPSA(m, eps=q.eps, nb_iter=max(1, q.steps // 256), nb_sample=128))
)


# --- adv-lib ----------------------------------------------------------------------------------------------------------


def _adv_lib(make: Callable[[Any, nn.Module, Question], Tensor]) -> Adapter:
    def run(module: nn.Module, q: Question) -> Found:
        from adv_lib import attacks

        return make(attacks, module, q), None

    return run


peer("adv-lib", "pgd", norms=("linf",))(
    _adv_lib(lambda a, m, q: a.pgd_linf(m, q.x, q.y, ε=q.eps, steps=q.steps, relative_step_size=q.size))
)
peer("adv-lib", "apgd", norms=("linf", "l2", "l1"))(
    _adv_lib(
        lambda a, m, q: a.apgd(
            m, q.x, q.y, eps=q.eps, norm=q.p, n_iter=q.steps, loss_function="ce", use_large_reps=q.norm == "l1"
        )
    )
)
peer("adv-lib", "apgd_targeted", norms=("linf", "l2", "l1"))(
    _adv_lib(
        lambda a, m, q: a.apgd_targeted(
            m, q.x, q.y, eps=q.eps, norm=q.p, n_iter=q.steps, use_large_reps=q.norm == "l1", num_targets=9
        )
    )
)
peer("adv-lib", "cw", norms=("l2", "linf"), note="9 searches (L2)")(
    _adv_lib(
        lambda a, m, q: (
            a.carlini_wagner_l2(m, q.x, q.y, binary_search_steps=9, max_iterations=q.steps // 9)
            if q.norm == "l2"
            else a.carlini_wagner_linf(m, q.x, q.y, max_iterations=q.steps)
        )
    )
)
peer("adv-lib", "deepfool", norms=("l2", "linf"))(_adv_lib(lambda a, m, q: a.df(m, q.x, q.y, steps=q.steps, norm=q.p)))
peer("adv-lib", "superdeepfool", norms=("l2",))(_adv_lib(lambda a, m, q: a.sdf(m, q.x, q.y, steps=q.steps)))
for _name, _targeted in {"fab": False, "fab_targeted": True}.items():
    peer("adv-lib", _name, norms=("linf", "l2", "l1"))(
        _adv_lib(
            lambda a, m, q, targeted=_targeted: a.fab(m, q.x, q.y, norm=q.p, n_iter=q.steps, targeted_restarts=targeted)
        )
    )
peer("adv-lib", "ddn", norms=("l2",), note="no 8-bit rounding")(
    _adv_lib(lambda a, m, q: a.ddn(m, q.x, q.y, steps=q.steps, levels=None))
)
peer("adv-lib", "fmn", norms=("linf", "l2", "l1", "l0"))(
    _adv_lib(lambda a, m, q: a.fmn(m, q.x, q.y, norm=q.p, steps=q.steps))
)
peer("adv-lib", "alma", norms=("l2", "l1"))(
    _adv_lib(
        lambda a, m, q: a.alma(
            m, q.x, q.y, num_steps=q.steps, distance=q.norm,
            **({"lr_init": 0.5, "init_lr_distance": 1.0} if q.norm == "l1" else {}),
        )
    )
)  # fmt: skip
peer("adv-lib", "pdpgd", norms=("linf", "l2", "l1", "l0"))(
    _adv_lib(lambda a, m, q: a.pdpgd(m, q.x, q.y, norm=q.p, num_steps=q.steps))
)
peer("adv-lib", "sigma_zero", norms=("l0",))(_adv_lib(lambda a, m, q: a.sigma_zero(m, q.x, q.y, num_steps=q.steps)))
peer("adv-lib", "jsma", norms=("l0",), note="its VFGA, the nearest it has")(
    _adv_lib(lambda a, m, q: a.vfga(m, q.x, q.y, targeted=False))
)


# --- AutoAttack -------------------------------------------------------------------------------------------------------


def _autoattack(make: Callable[[Any, nn.Module, Question], Any]) -> Adapter:
    def run(module: nn.Module, q: Question) -> Found:
        import pyautoattack.autopgd_base
        import pyautoattack.fab_pt
        import pyautoattack.square

        made = make(pyautoattack, module, q)
        found = made.perturb(q.x, q.y)
        return (found[1] if isinstance(found, tuple) else found), None

    return run


peer("AutoAttack", "apgd", norms=("linf", "l2", "l1"))(
    _autoattack(
        lambda a, m, q: a.autopgd_base.APGDAttack(
            m, n_iter=q.steps, norm=_SHORT[q.norm], eps=q.eps, use_largereps=q.norm == "l1", device="cpu"
        )
    )
)
peer("AutoAttack", "apgd_targeted", norms=("linf", "l2", "l1"))(
    _autoattack(
        lambda a, m, q: a.autopgd_base.APGDAttack_targeted(
            m, n_iter=q.steps, norm=_SHORT[q.norm], eps=q.eps, use_largereps=q.norm == "l1", device="cpu"
        )
    )
)
peer("AutoAttack", "square", norms=("linf", "l2"))(
    _autoattack(
        lambda a, m, q: a.square.SquareAttack(m, norm=_SHORT[q.norm], n_queries=q.steps, eps=q.eps, device="cpu")
    )
)
peer("AutoAttack", "fab", norms=("linf", "l2", "l1"))(
    _autoattack(
        lambda a, m, q: a.fab_pt.FABAttack_PT(
            m, norm=_SHORT[q.norm], n_iter=q.steps, eps=_FAR[q.norm], targeted=False, device="cpu"
        )
    )
)


class _EachClass:
    """FAB-T towards each class, the nearest success kept: its own loop leaves an image after the first one."""

    def __init__(self, attack: Any, network: nn.Module, p: float) -> None:
        self.attack, self.network, self.p = attack, network, p

    def perturb(self, x: Tensor, y: Tensor) -> Tensor:
        best, nearest = x.clone(), torch.full((len(x),), math.inf)
        torch.manual_seed(0)
        for k in range(2, self.attack.n_target_classes + 2):
            self.attack.target_class = k
            with torch.no_grad():
                z = self.attack.attack_single_run(x, y, use_rand_start=False, is_targeted=True)
                size = (z - x).flatten(1).norm(p=self.p, dim=1)
                better = (self.network(z).argmax(1) != y) & (size < nearest)
            best[better], nearest[better] = z[better], size[better]
        return best


peer("AutoAttack", "fab_targeted", norms=("linf", "l2", "l1"), note="each class, the nearest kept")(
    _autoattack(
        lambda a, m, q: _EachClass(
            a.fab_pt.FABAttack_PT(
                m, norm=_SHORT[q.norm], n_iter=q.steps, eps=_FAR[q.norm], targeted=True, device="cpu"
            ),
            m, q.p,
        )
    )
)  # fmt: skip


# --- ART --------------------------------------------------------------------------------------------------------------


class _Single(nn.Module):
    """The network for inputs of any precision (ART's decision-based attacks send float64)."""

    def __init__(self, module: nn.Module, *, probabilities: bool = False) -> None:
        super().__init__()
        self.module, self.probabilities = module, probabilities

    def forward(self, x: Tensor) -> Tensor:
        z = self.module(x.float())
        return z.softmax(1) if self.probabilities else z


def _art(make: Callable[[Any, Any, Question], Any], *, probabilities: bool = False, labels: bool = True) -> Adapter:
    def run(module: nn.Module, q: Question) -> Found:
        import art.attacks.evasion
        import numpy as np
        from art.estimators.classification import PyTorchClassifier

        with torch.no_grad():
            classes = module(q.x[:1]).shape[1]
        wrapped = PyTorchClassifier(
            _Single(module, probabilities=probabilities), nn.CrossEntropyLoss(), tuple(q.x.shape[1:]), classes,
            clip_values=(0.0, 1.0), device_type="cpu",
        )  # fmt: skip
        x, y = q.x.numpy().copy(), np.eye(classes, dtype=np.float32)[q.y.numpy()]
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # GeoDA leaves a file where it runs
            x_adv = make(art.attacks.evasion, wrapped, q).generate(x, y if labels else None)
        return torch.from_numpy(np.asarray(x_adv, dtype=np.float32)), None

    return run


def _quiet(q: Question) -> dict[str, Any]:
    return {"batch_size": len(q.x), "verbose": False}


peer("ART", "fgsm", norms=("linf", "l2"))(
    _art(lambda e, c, q: e.FastGradientMethod(c, norm=q.p, eps=q.eps, batch_size=len(q.x)))
)
peer("ART", "bim", norms=("linf",))(
    _art(lambda e, c, q: e.BasicIterativeMethod(c, eps=q.eps, eps_step=q.size * q.eps, max_iter=q.steps, **_quiet(q)))
)
peer("ART", "mi_fgsm", norms=("linf", "l2"))(
    _art(
        lambda e, c, q: e.MomentumIterativeMethod(
            c, norm=q.p, eps=q.eps, eps_step=q.size * q.eps, max_iter=q.steps, **_quiet(q)
        )
    )
)
peer("ART", "pgd", norms=("linf", "l2", "l1"), note="one random start")(
    _art(
        lambda e, c, q: e.ProjectedGradientDescentPyTorch(
            c, norm=q.p, eps=q.eps, eps_step=q.size * q.eps, max_iter=q.steps, num_random_init=1, **_quiet(q)
        )
    )
)
peer("ART", "apgd", norms=("linf", "l2", "l1"), note="one start")(
    _art(
        lambda e, c, q: e.AutoProjectedGradientDescent(
            c, norm=q.p, eps=q.eps, eps_step=2 * q.eps, max_iter=q.steps, nb_random_init=1,
            loss_type="cross_entropy", **_quiet(q),
        )
    )
)  # fmt: skip
peer("ART", "square", norms=("linf", "l2"))(
    _art(lambda e, c, q: e.SquareAttack(c, norm=q.p, eps=q.eps, max_iter=q.steps, **_quiet(q)))
)
peer("ART", "cw", norms=("l2",), note="9 searches")(
    _art(lambda e, c, q: e.CarliniL2Method(c, binary_search_steps=9, max_iter=q.steps // 9, **_quiet(q)))
)
peer("ART", "cw", norms=("linf",))(_art(lambda e, c, q: e.CarliniLInfMethod(c, max_iter=q.steps, **_quiet(q))))
peer("ART", "deepfool", norms=("l2",))(_art(lambda e, c, q: e.DeepFool(c, max_iter=q.steps, **_quiet(q))))
peer("ART", "ead", norms=("l1",), note="9 searches, rule L1")(
    _art(
        lambda e, c, q: e.ElasticNet(
            c, binary_search_steps=9, max_iter=q.steps // 9, decision_rule="L1", **_quiet(q)
        )
    )
)  # fmt: skip
peer("ART", "jsma", norms=("l0",), note="random wanted class, theta 1")(
    _art(lambda e, c, q: e.SaliencyMapMethod(c, theta=1.0, gamma=1.0, **_quiet(q)), labels=False)
)
peer("ART", "one_pixel", norms=("l0",), note="differential evolution")(
    _art(lambda e, c, q: e.PixelAttack(c, th=int(q.eps), es=1, max_iter=q.steps // 400))
)


def _within_eps(run: Adapter) -> Adapter:
    """Take back what lies beyond eps: the implementation knows no ball."""

    def inside(module: nn.Module, q: Question) -> Found:
        x_adv, claims = run(module, q)
        near = (x_adv.double() - q.x.double()).flatten(1).norm(p=q.p, dim=1) <= q.eps
        return torch.where(near.view(-1, 1, 1, 1), x_adv, q.x), claims

    return inside


peer("ART", "simba", norms=("l2",), note="pixels, steps of 0.2, what lies beyond eps is taken back")(
    _within_eps(
        _art(
            lambda e, c, q: e.SimBA(c, attack="px", max_iter=q.steps, epsilon=0.2, batch_size=1, verbose=False),
            probabilities=True,
        )
    )
)
peer("ART", "hop_skip_jump", norms=("l2", "linf"), note="inputs cast to float32")(
    _art(
        lambda e, c, q: e.HopSkipJump(
            c, norm=q.p, max_iter=_hop_steps(q.steps), **(_quiet(q) | {"batch_size": min(len(q.x), 64)})
        )
    )
)
peer("ART", "boundary", norms=("l2",), note="inputs cast to float32")(
    _art(lambda e, c, q: e.BoundaryAttack(c, targeted=False, max_iter=q.steps // 25, **_quiet(q)))
)
peer("ART", "geoda", norms=("l2", "linf"), note="NumPy's matrix put back")(
    _art(lambda e, c, q: e.GeoDA(c, norm=q.p, max_iter=q.steps, **_quiet(q)))
)
peer("ART", "sign_opt", norms=("l2",))(
    _art(
        lambda e, c, q: e.SignOPTAttack(
            c, targeted=False, query_limit=q.steps, max_iter=1000, batch_size=len(q.x), verbose=False
        )
    )
)
peer("ART", "universal_deepfool", norms=("linf", "l2"))(
    _art(
        lambda e, c, q: e.UniversalPerturbation(
            c, attacker="deepfool", eps=q.eps, norm=q.p, max_iter=q.steps, batch_size=len(q.x), verbose=False
        )
    )
)


# --- secml-torch ------------------------------------------------------------------------------------------------------


def _secml(make: Callable[[Question], Any]) -> Adapter:
    def run(module: nn.Module, q: Question) -> Found:
        from secmlt.models.pytorch.base_pytorch_nn import BasePyTorchClassifier
        from torch.utils.data import DataLoader, TensorDataset

        rows = DataLoader(TensorDataset(q.x, q.y), batch_size=len(q.x))
        found = make(q)(BasePyTorchClassifier(module), rows)
        return torch.cat([x for x, _ in found]), None

    return run


def _secml_pgd(q: Question) -> Any:
    from secmlt.adv.evasion.pgd import PGD

    return PGD(
        q.norm, epsilon=q.eps, num_steps=q.steps, step_size=q.size * q.eps, random_start=True, backend="native"
    )  # fmt: skip


def _secml_ddn(q: Question) -> Any:
    from secmlt.adv.evasion.ddn import DDN

    return DDN(num_steps=q.steps, eps_init=1.0, backend="native")


def _secml_fmn(q: Question) -> Any:
    from secmlt.adv.evasion.fmn import FMN

    return FMN(q.norm, num_steps=q.steps, step_size=1.0, backend="native")


peer("secml-torch", "pgd", norms=("linf", "l2", "l1"), note="native")(_secml(_secml_pgd))
peer("secml-torch", "ddn", norms=("l2",), note="native, first radius 1")(_secml(_secml_ddn))
peer("secml-torch", "fmn", norms=("linf", "l2", "l1", "l0"), note="native, step 1")(_secml(_secml_fmn))


# --- torchattack ------------------------------------------------------------------------------------------------------


def _torchattack(name: str, **more: Any) -> Adapter:
    def run(module: nn.Module, q: Question) -> Found:
        import torchattack

        given: dict[str, Any] = dict(more)
        if math.isfinite(q.eps):
            given |= {"eps": q.eps}
        if q.steps > 1:
            given |= {"steps": q.steps}
        if q.size and q.steps > 1:
            given |= {"alpha": q.size * q.eps}
        made = getattr(torchattack, "PGDL2" if name == "PGD" and q.norm == "l2" else name)
        return made(module, None, torch.device("cpu"), **given)(q.x, q.y), None

    return run


for _name, _kind in {
    "fgsm": "FGSM", "pgd": "PGD", "mi_fgsm": "MIFGSM", "ni_fgsm": "NIFGSM", "di_fgsm": "DIFGSM", "ti_fgsm": "TIFGSM",
    "si_fgsm": "SINIFGSM", "vmi_fgsm": "VMIFGSM", "vni_fgsm": "VNIFGSM",
}.items():  # fmt: skip
    peer(
        "torchattack", _name, norms=("linf", "l2") if _name == "pgd" else ("linf",),
        note=_NESTEROV if _name == "si_fgsm" else "",
    )(_torchattack(_kind, **({"m": 5} if _name == "si_fgsm" else {})))  # fmt: skip
peer("torchattack", "deepfool", norms=("l2",))(_torchattack("DeepFool", num_classes=10))


# --- CleverHans -------------------------------------------------------------------------------------------------------


def _cleverhans(room: str, run: Callable[[Any, nn.Module, Question], Any]) -> Adapter:
    def adapter(module: nn.Module, q: Question) -> Found:
        found = run(getattr(importlib.import_module(f"cleverhans.torch.attacks.{room}"), room), module, q)
        return found.detach(), None

    return adapter


peer("CleverHans", "fgsm", norms=("linf", "l2"))(
    _cleverhans("fast_gradient_method", lambda f, m, q: f(m, q.x, q.eps, q.p, clip_min=0, clip_max=1, y=q.y))
)
peer("CleverHans", "bim", norms=("linf",))(
    _cleverhans(
        "projected_gradient_descent",
        lambda f, m, q: f(
            m, q.x, q.eps, q.size * q.eps, q.steps, q.p, clip_min=0, clip_max=1, y=q.y, rand_init=False,
            sanity_checks=False,
        ),
    )
)  # fmt: skip
peer("CleverHans", "pgd", norms=("linf", "l2"))(
    _cleverhans(
        "projected_gradient_descent",
        lambda f, m, q: f(
            m, q.x, q.eps, q.size * q.eps, q.steps, q.p, clip_min=0, clip_max=1, y=q.y, sanity_checks=False
        ),
    )
)
peer("CleverHans", "cw", norms=("l2",), note="5 searches")(
    _cleverhans(
        "carlini_wagner_l2", lambda f, m, q: f(m, q.x, 10, y=q.y, binary_search_steps=5, max_iterations=q.steps // 5)
    )
)
peer("CleverHans", "spsa", norms=("linf",), note="128 samples a step, delta 0.01, Adam 0.01")(
    _cleverhans(
        "spsa",
        lambda f, m, q: torch.cat(
            [
                f(
                    m, q.x[i : i + 1], q.eps, max(1, q.steps // 256), clip_min=0, clip_max=1, y=q.y[i : i + 1],
                    sanity_checks=False,
                )
                for i in range(len(q.x))
            ]
        ),
    )
)  # fmt: skip
peer("CleverHans", "hop_skip_jump", norms=("l2", "linf"))(
    _cleverhans(
        "hop_skip_jump_attack",
        lambda f, m, q: f(m, q.x, q.p, num_iterations=_hop_steps(q.steps), constraint=q.p, verbose=False),
    )
)
