"""scikit-learn classifiers, and whatever answers like one, as targets: white-box where the mathematics is simple."""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unfooled.core.access import Access
from unfooled.core.target import Target
from unfooled.errors import InputError, MissingExtra, TargetError, nearest

PROBES = 64
"""Random points of the box on which a torch module must agree with the estimator that it stands for."""

AGREE = 1e-6
"""How far their scores may differ, in units of the largest score."""


def sklearn(
    estimator: Any,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    ranges: tuple[Any, Any] | None = None,
    features: int | None = None,
    classes: Sequence[Any] | None = None,
    white_box: bool = True,
    name: str = "",
) -> Target:
    """Return a fitted classifier as a target; inputs [n, ...] are flattened to the features that it was fitted on.

    Linear classifiers, binary kernel machines (SVC, NuSVC) and MLPClassifier, also at the end of a Pipeline of
    scalers, projections and feature selections, become torch modules in float64, which attacks may differentiate,
    once their scores agree with the estimator's at random points of the box. Everything else is asked for its scores
    (`decision_function`, else `predict_proba`) or, where it has neither, for its class (`predict`). Objects that only
    look like scikit-learn's (XGBoost, LightGBM, your own) are taken by their methods.

    Classes are numbered in the order of `classes_`: `encode` turns labels of any kind into these numbers.

    Args:
        estimator: fitted, with `predict` and `classes_` (else its classes are 0, 1, ...).
        bounds: lowest and highest value of a feature.
        ranges: lowest and highest value of each feature, [d] and [d]: inputs in [0, 1] then stand for values between
            them, and a change of 0.1 is a tenth of each feature's range.
        features: how many there are, where the estimator has no `n_features_in_`.
        classes: its classes in order, where it has no `classes_`.
        white_box: False asks the estimator itself even where a module could stand for it.
        name: how reports call it.

    Raises:
        InputError: it is no fitted classifier of one label per example.
    """
    if not callable(getattr(estimator, "predict", None)):
        raise InputError(f"A {type(estimator).__name__} has no predict(); give a fitted classifier.")
    if callable(getattr(estimator, "fit", None)) and not _fitted(estimator):
        raise InputError(f"{type(estimator).__name__} is not fitted: call its fit(x, y) first.")
    if _is_regressor(estimator):
        raise InputError(
            f"{type(estimator).__name__} is a regressor: targets.regressor takes it, with a tolerance as the goal."
        )
    count = features or getattr(estimator, "n_features_in_", None)
    if count is None:
        raise InputError(f"{type(estimator).__name__} does not say how many features it takes: give features=.")
    x = probes(int(count), bounds)
    scale = _scale(ranges, bounds, int(count))
    box = Estimator(estimator, x, classes, scale)
    module: nn.Module = (as_module(estimator, box, x, scale) if white_box else None) or box
    target = Target(
        module,
        bounds=bounds,
        name=name or type(_last(estimator)).__name__,
        classes=[str(c) for c in box.classes],
        access=Access.GRADIENT if module is not box else Access.SCORES if box.method else Access.LABEL,
    )
    if module is box:
        target.kind, target.labels = box.kind, 0 if box.method else len(box.classes)
    return target


def encode(labels: Any, classes: Any) -> Tensor:
    """Return labels of any kind as class numbers, int64 [n].

    `classes` is the fitted estimator, a target made of it, or its classes in order. Raises InputError for a label that
    is none of them.
    """
    known = getattr(classes, "classes_", None)
    if isinstance(classes, Target):
        known = classes.classes
    known = list(classes if known is None else known)
    given = list(np.asarray(labels).reshape(-1)) if not isinstance(labels, list | tuple) else list(labels)
    number = {_plain(c): i for i, c in enumerate(known)}
    if isinstance(classes, Target):
        given = [str(_plain(v)) for v in given]
    lost = [v for v in given if _plain(v) not in number]
    if lost:
        near = nearest(str(lost[0]), map(str, known))
        raise InputError(f"{_plain(lost[0])!r} is none of the {len(known)} classes that the target knows.{near}")
    return torch.tensor([number[_plain(v)] for v in given], dtype=torch.int64)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def probes(features: int, bounds: tuple[float, float]) -> Tensor:
    """Return random points of the box, float64 [PROBES, features], the same ones each time."""
    g = np.random.default_rng(0)
    return torch.from_numpy(g.uniform(*bounds, (PROBES, features)))


def is_estimator(thing: Any) -> bool:
    """Whether a thing predicts like scikit-learn's estimators do."""
    return not isinstance(thing, nn.Module | Target) and callable(getattr(thing, "predict", None))


class Estimator(nn.Module):
    """A fitted classifier asked through its own methods: NumPy in, scores [n, k] or class numbers [n] out.

    `method` is what scores come from ("" where there are none) and `kind` how they are to be read. The buffer `digest`
    is a hash of its answers at the probes x [m, d], so that two classifiers do not pass for one another.
    """

    digest: Tensor

    def __init__(
        self, estimator: Any, x: Tensor, classes: Sequence[Any] | None = None, scale: "Affine | None" = None
    ) -> None:
        super().__init__()
        self.estimator, self.features = estimator, x.shape[1]
        self.range = None if scale is None else (scale.weight.detach().numpy(), scale.bias.detach().numpy())
        label = self._asked("predict", x)
        known = classes if classes is not None else getattr(estimator, "classes_", None)
        known = known if classes is None else np.asarray(classes, dtype=object)
        if isinstance(known, list) or label.ndim != 1 or len(label) != len(x):
            raise InputError(
                f"{type(estimator).__name__} predicts several labels for one example; give a classifier of one label."
            )
        self.method, self.lifted = "", False
        self.classes: list[Any] = [_plain(c) for c in known] if known is not None else []
        best, own = np.inf, None
        for method in ("decision_function", "predict_proba"):
            try:
                scores = self._asked(method, x)
            except Exception:  # a method that this setting of the estimator does not offer, whatever it raises
                continue
            z = _columns(scores)
            if not self.classes:
                self.classes = list(range(z.shape[1]))
            if z.shape != (len(x), len(self.classes)) or not np.isfinite(z).all():
                continue
            wrong = float((z.argmax(1) != self._numbers(label)).mean())
            if wrong < best:
                best, own, self.method, self.lifted = wrong, z, method, wrong > 0
        if not self.classes:
            raise InputError(f"{type(estimator).__name__} has no classes_: give them, classes=[...].")
        if best > 0.5:  # scores of something else
            self.method, own = "", None
        answers = self._numbers(label) if own is None else own
        self.register_buffer("digest", torch.frombuffer(bytearray(_digest(estimator, answers)), dtype=torch.uint8))

    @property
    def kind(self) -> Any:
        """How Target reads the scores."""
        return "probabilities" if self.method == "predict_proba" else "scores"

    def forward(self, x: Tensor) -> Tensor:
        """Return scores float64 [n, k], or class numbers int64 [n]."""
        flat = flattened(x, self.features, self.estimator)
        if not self.method:
            return torch.from_numpy(self._numbers(self._asked("predict", flat)))
        z = _columns(self._asked(self.method, flat))
        if self.method == "predict_proba":  # sums of votes: what differs by their rounding is a tie
            z = z.round(12)
        if self.lifted:  # votes and probabilities break ties differently from predict, which has the last word
            rows, label = np.arange(len(z)), self._numbers(self._asked("predict", flat))
            top = z.max(1)
            off = z.argmax(1) != label
            z[rows[off], label[off]] = (top + 1e-9 * np.maximum(np.abs(top), 1.0))[off]
        return torch.from_numpy(z)

    def _asked(self, method: str, x: Tensor) -> np.ndarray:
        with warnings.catch_warnings():  # fitted on a table with named columns
            warnings.filterwarnings("ignore", message="X does not have valid feature names")
            given = x.detach().cpu().double().numpy()
            given = given if self.range is None else given * self.range[0] + self.range[1]
            return np.asarray(getattr(self.estimator, method)(given))

    def _numbers(self, labels: np.ndarray) -> np.ndarray:
        if not self.classes:
            return labels.astype(np.int64)
        number = {c: i for i, c in enumerate(self.classes)}
        return np.array([number.get(_plain(v), -1) for v in labels], dtype=np.int64)


def flattened(x: Tensor, features: int, what: Any) -> Tensor:
    """Return inputs [n, ...] as [n, features]; raises TargetError where they have another number of values."""
    flat = x.reshape(len(x), -1)
    if flat.shape[1] != features:
        raise TargetError(f"{type(what).__name__} takes {features} values per example; these have {flat.shape[1]}.")
    return flat


def _columns(scores: np.ndarray) -> np.ndarray:
    """Return scores float64 [n, k]; one column of a binary decision function becomes two whose gap it is."""
    z = np.asarray(scores, dtype=np.float64)
    if z.ndim == 1 or z.shape[1] == 1:
        z = np.stack([-z.reshape(-1) / 2, z.reshape(-1) / 2], 1)
    return np.array(z)


def _digest(estimator: Any, answers: np.ndarray) -> bytes:
    return hashlib.sha256(type(estimator).__name__.encode() + np.ascontiguousarray(answers).tobytes()).digest()


def _last(estimator: Any) -> Any:
    estimator = getattr(estimator, "best_estimator_", estimator)
    steps = getattr(estimator, "steps", None)
    return steps[-1][1] if isinstance(steps, list) and steps else estimator


def _fitted(estimator: Any) -> bool:
    """Whether an estimator has been fitted: scikit-learn's own check, where it is one of its own."""
    try:
        from sklearn.exceptions import NotFittedError
        from sklearn.utils.validation import check_is_fitted
    except ImportError:
        raise MissingExtra("scikit-learn is missing: pip install scikit-learn.") from None
    try:
        check_is_fitted(estimator)
    except NotFittedError:
        return False
    except Exception:  # not one of scikit-learn's: its predict will say
        return True
    return True


def _is_regressor(estimator: Any) -> bool:
    return getattr(_last(estimator), "_estimator_type", None) == "regressor" or (
        any(c.__name__ == "RegressorMixin" for c in type(_last(estimator)).__mro__)
    )


# ---- estimators as torch modules


class Affine(nn.Module):
    """x -> W x + b for inputs [n, ...] flattened to d values; W float64 [k, d], or [d] for its diagonal, b [k]."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(np.array(weight, dtype=np.float64)))
        self.bias = nn.Parameter(torch.from_numpy(np.array(bias, dtype=np.float64)))

    def forward(self, x: Tensor) -> Tensor:
        """Return [n, k]."""
        x = flattened(x, self.weight.shape[-1], self)
        return x * self.weight + self.bias if self.weight.dim() == 1 else x @ self.weight.T + self.bias

    @torch.no_grad()
    def after(self, first: "Affine") -> "Affine":
        """Return both as one, `first` being first."""
        w, v = self.weight, first.weight
        if w.dim() == 2:
            both, shift = w @ v if v.dim() == 2 else w * v, w @ first.bias
        else:
            both, shift = w.view(-1, *[1] * (v.dim() - 1)) * v, w * first.bias
        return Affine(both.numpy(), (shift + self.bias).numpy())


class Kernel(nn.Module):
    """The decision function of a binary kernel machine: sum_i a_i K(v_i, x) + b with support vectors v [m, d]."""

    def __init__(self, machine: Any) -> None:
        super().__init__()
        self.kernel, self.degree = machine.kernel, float(machine.degree)
        self.gamma, self.coef0 = float(machine._gamma), float(machine.coef0)
        vectors, weights = np.asarray(machine.support_vectors_), np.asarray(machine.dual_coef_)
        self.vectors = nn.Parameter(torch.from_numpy(np.array(vectors, dtype=np.float64)))
        self.last = Affine(weights, np.asarray(machine.intercept_))

    def forward(self, x: Tensor) -> Tensor:
        """Return [n, 1]."""
        x = flattened(x, self.vectors.shape[1], self)
        inner = x @ self.vectors.T
        match self.kernel:
            case "linear":
                k = inner
            case "poly":
                k = (self.gamma * inner + self.coef0) ** self.degree
            case "sigmoid":
                k = (self.gamma * inner + self.coef0).tanh()
            case _:
                square = (x * x).sum(1, keepdim=True) - 2 * inner + (self.vectors * self.vectors).sum(1)
                k = (-self.gamma * square).exp()
        return self.last(k)


class Function(nn.Module):
    """A step without parameters of its own."""

    def __init__(self, call: Callable[[Tensor], Tensor], what: str) -> None:
        super().__init__()
        self.call, self.what = call, what

    def forward(self, x: Tensor) -> Tensor:
        """Return what the step makes of x [n, d]."""
        return self.call(x.reshape(len(x), -1))

    def extra_repr(self) -> str:
        """Return the step's name."""
        return self.what


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "logistic": torch.sigmoid,
}


def as_module(estimator: Any, box: Estimator | None, x: Tensor, scale: Affine | None = None) -> nn.Module | None:
    """Return a module with the estimator's scores [n, k] (or predictions [n, 1] without `box`), None where none fits.

    Steps that are affine are multiplied out into one. At the probes x [m, d] the module must agree with the estimator.
    """
    try:
        layers = [*([] if scale is None else [scale]), *_layers(estimator)]
    except (AttributeError, NotImplementedError, TypeError, ValueError, KeyError):
        return None
    module = nn.Sequential(*_folded(layers))
    if box is not None:
        module.append(Function(_two, "two columns"))
    module.eval()
    with torch.no_grad():
        try:
            mine = module(x).numpy()
        except RuntimeError:
            return None
    if box is None:
        raw = x if scale is None else scale(x).detach()
        theirs = np.asarray(estimator.predict(raw.numpy()), dtype=np.float64).reshape(len(mine), -1)
    elif box.method == "predict_proba":
        theirs, mine = box(x).numpy(), torch.from_numpy(mine).softmax(1).numpy()
    elif box.method:
        theirs = box(x).numpy()
    else:
        return None
    if mine.shape != theirs.shape or not np.isfinite(mine).all():
        return None
    gap = np.abs(mine - theirs).max() / max(1e-12, np.abs(theirs).max())
    same = box is None or bool((mine.argmax(1) == theirs.argmax(1)).all())
    return module if gap <= AGREE and same else None


def _two(z: Tensor) -> Tensor:
    return torch.cat([-z / 2, z / 2], 1) if z.shape[1] == 1 else z


def _folded(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """Return the layers with neighbouring affine ones multiplied out."""
    out: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, Affine) and out and isinstance(out[-1], Affine):
            out[-1] = layer.after(out[-1])
        else:
            out.append(layer)
    return out


def _scale(ranges: tuple[Any, Any] | None, bounds: tuple[float, float], count: int) -> Affine | None:
    if ranges is None:
        return None
    low, high = (np.asarray(r, dtype=np.float64).reshape(-1) for r in ranges)
    if low.shape != (count,) or high.shape != (count,) or not np.isfinite(low + high).all() or (high < low).any():
        raise InputError(f"ranges must be the lowest and the highest value of each of the {count} features.")
    if tuple(bounds) != (0.0, 1.0):
        raise InputError("With ranges the inputs lie in [0, 1]: leave bounds out.")
    return Affine(high - low, low)


def _layers(e: Any) -> Iterator[nn.Module]:
    """Yield the layers of an estimator's decision function; raises NotImplementedError where it has no simple form."""
    if e is None or (isinstance(e, str) and e == "passthrough"):
        return
    if isinstance(getattr(e, "steps", None), list):
        for _, step in e.steps:
            yield from _layers(step)
        return
    if hasattr(e, "best_estimator_"):  # a search over settings
        yield from _layers(e.best_estimator_)
        return
    d = getattr(e, "n_features_in_", 0)
    kind = type(e).__name__
    if kind == "StandardScaler":
        scale = np.ones(d) if e.scale_ is None else e.scale_
        mean = np.zeros(d) if e.mean_ is None else e.mean_
        yield Affine(1 / scale, -mean / scale)
    elif kind == "MinMaxScaler":
        yield Affine(e.scale_, e.min_)
        if e.clip:
            lo, hi = e.feature_range
            yield Function(lambda x: x.clamp(lo, hi), f"clip to {lo}..{hi}")
    elif kind == "MaxAbsScaler":
        yield Affine(1 / e.scale_, np.zeros(d))
    elif kind == "RobustScaler":
        scale = np.ones(d) if e.scale_ is None else e.scale_
        centre = np.zeros(d) if e.center_ is None else e.center_
        yield Affine(1 / scale, -centre / scale)
    elif kind == "Normalizer":
        order = {"l1": 1.0, "l2": 2.0, "max": torch.inf}[e.norm]
        yield Function(lambda x: x / _length(x, order), f"unit {e.norm}")
    elif kind in ("PCA", "IncrementalPCA"):
        w = e.components_
        if e.whiten:
            w = w / np.sqrt(np.maximum(e.explained_variance_, np.finfo(float).eps))[:, None]
        yield Affine(w, -w @ e.mean_ if e.mean_ is not None else np.zeros(len(w)))
    elif kind == "TruncatedSVD":
        yield Affine(e.components_, np.zeros(len(e.components_)))
    elif callable(getattr(e, "get_support", None)):
        chosen = torch.from_numpy(np.asarray(e.get_support(indices=True)))
        yield Function(lambda x: x[:, chosen], f"{len(chosen)} of {d} features")
    elif kind in ("SVC", "NuSVC"):
        if len(e.classes_) != 2 or e.kernel not in ("linear", "poly", "rbf", "sigmoid"):
            raise NotImplementedError  # pairs vote: their count has no gradient
        yield Kernel(e)
    elif kind in ("SVR", "NuSVR"):
        yield Kernel(e)
    elif kind in ("MLPClassifier", "MLPRegressor"):
        for i, (w, b) in enumerate(zip(e.coefs_, e.intercepts_, strict=True)):
            if i and e.activation != "identity":
                yield Function(_ACTIVATIONS[e.activation], e.activation)
            yield Affine(w.T, b)
        if e.out_activation_ not in ("identity", "softmax", "logistic"):
            raise NotImplementedError
    elif hasattr(e, "coef_"):
        w = np.atleast_2d(np.asarray(e.coef_, dtype=np.float64))
        yield Affine(w, np.broadcast_to(np.asarray(e.intercept_, dtype=np.float64), (len(w),)))
    else:
        raise NotImplementedError


def _length(x: Tensor, order: float) -> Tensor:
    size = torch.linalg.vector_norm(x, order, dim=1, keepdim=True)
    return torch.where(size == 0, 1.0, size)
