"""Regressors: a change is found exactly where the prediction can leave its tolerance, and never below."""

import numpy as np
import pytest
import torch
from sklearn import ensemble, linear_model, neural_network, pipeline, preprocessing, svm
from sklearn.datasets import load_diabetes
from torch import nn

import unfooled as uf
from unfooled.errors import InputError, TargetError
from unfooled.targets import regressor
from unfooled.testing import halfspace_distance

X, Y = load_diabetes(return_X_y=True)
X = preprocessing.minmax_scale(X)
RIDGE = linear_model.Ridge(0.1).fit(X[:300], Y[:300])
HERE = torch.from_numpy(X[300:324])


def said(error) -> str:
    text = str(error.value)
    assert text and "\n" not in text and text[-1] in ".?", f"not one sentence: {text!r}"
    return text


def exact(w: np.ndarray, off: np.ndarray, tolerance: np.ndarray, x: np.ndarray, norm: str) -> np.ndarray:
    """The smallest change of each x [n, d] that takes w.x + b, which is off by `off` [n], out of the tolerance [n]."""
    found = []
    for row, r, t in zip(x, off, tolerance, strict=True):
        both = ((w, t - r), (-w, t + r))
        rooms = [np.where(c > 0, 1 - row, row) for c, _ in both]
        found.append(min(halfspace_distance(c, gap, room, norm) for (c, gap), room in zip(both, rooms, strict=True)))
    return np.array(found)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("truth", ["its own prediction", "the true value"])
def test_a_linear_regressor_falls_at_the_exact_distance_and_not_before(norm, truth):
    off = np.zeros(24) if truth == "its own prediction" else RIDGE.predict(X[300:324]) - Y[300:324]
    tolerance = np.abs(off) + np.linspace(15, 30, 24)
    made = regressor(
        RIDGE,
        HERE,
        torch.from_numpy(tolerance),
        reference=None if truth == "its own prediction" else torch.from_numpy(Y[300:324]),
    )
    assert made.target.access is uf.Access.GRADIENT
    far = exact(RIDGE.coef_, off, tolerance, HERE.numpy(), norm)
    for scale, wanted in ((1.03, True), (0.99, False)):
        for i in range(0, 24, 8):
            ball = made.threat(getattr(uf, norm)(float(far[i]) * scale))
            found = uf.run(
                ["pgd(steps=40)", "apgd_targeted(steps=80)"], made.target, made.x[i : i + 1], made.y[i : i + 1], ball
            )
            assert bool(found.success[0]) is wanted, (i, scale)
            if wanted:
                value = made.predict(found.x_adv)[0]
                assert abs(value - made.reference[i]) > tolerance[i]
                assert torch.equal(found.x_adv[0, -1], made.x[i, -1])  # its number stands


def test_without_the_box_it_is_the_dual_norm():
    w = torch.tensor([[0.5, -2.0, 1.0, 0.25]], dtype=torch.float64)
    f = nn.Linear(4, 1).double()
    with torch.no_grad():
        f.weight.copy_(w)
    x, residual, tolerance = torch.full((1, 4), 0.5, dtype=torch.float64), 0.1, 0.4
    made = regressor(f, x, tolerance, reference=f(x).detach()[:, 0] - residual)
    for norm, dual in (("linf", 3.75), ("l2", float(w.norm()))):
        far = (tolerance - residual) / dual
        for scale, wanted in ((1.01, True), (0.999, False)):
            found = uf.run(
                "apgd_targeted(steps=50)", made.target, made.x, made.y, made.threat(getattr(uf, norm)(far * scale))
            )
            assert bool(found.success[0]) is wanted


WHITE = {
    "mlp": neural_network.MLPRegressor(hidden_layer_sizes=(8,), max_iter=300, random_state=0, learning_rate_init=0.05),
    "svr": svm.SVR(C=100),
    "scaled": pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.Lasso(0.1)),
    "linear svr": svm.LinearSVR(C=10, max_iter=10_000),
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", WHITE)
def test_what_is_simple_is_white(name):
    f = WHITE[name].fit(X[:300], Y[:300])
    made = regressor(f, HERE, 10.0)
    assert made.target.access is uf.Access.GRADIENT
    np.testing.assert_allclose(made.predict(made.x).numpy(), f.predict(HERE.numpy()), rtol=1e-6)
    found = uf.run("apgd_targeted(steps=30)", made.target, made.x, made.y, made.threat(uf.linf(0.2)))
    moved = np.abs(f.predict(made.unwrap(found.x_adv).numpy()) - f.predict(HERE.numpy()))
    assert (moved[found.success.numpy()] > 10).all() and found.success.float().mean() > 0.3


@pytest.mark.parametrize("attack", ["square(queries=300)", "ray(queries=300)"])
def test_trees_are_asked(attack):
    f = ensemble.RandomForestRegressor(10, random_state=0).fit(X[:300], Y[:300])
    made = regressor(f, HERE.float(), 40.0)
    assert made.target.access is uf.Access.SCORES
    found = uf.run(attack, made.target, made.x, made.y, made.threat(uf.linf(0.2)))
    inputs = made.unwrap(found.x_adv)
    assert inputs.shape == HERE.shape and float((inputs - HERE).abs().max()) <= 0.2 * (1 + 1e-6)
    moved = np.abs(f.predict(inputs.numpy()) - made.reference.numpy())
    assert np.array_equal(moved > 40, found.success.numpy()) and found.success.float().mean() > 0.3


def test_images_and_callables(recwarn):
    x = torch.rand(5, 1, 3, 3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 1))
    answers = {
        "module": net,
        "callable": lambda v: v.flatten(1).sum(1),
        "numpy": lambda v: v.numpy().sum((1, 2, 3)),
        "list": lambda v: [float(row.sum()) for row in v],
    }
    for name, f in answers.items():
        made = regressor(f, x, 0.05)
        white = name in ("module", "callable")
        assert made.target.access is (uf.Access.GRADIENT if white else uf.Access.SCORES)
        attack = "pgd(steps=10)" if white else "square(queries=60)"
        found = uf.run(attack, made.target, made.x, made.y, made.threat(uf.linf(0.3)))
        assert found.success.all(), name
        assert made.unwrap(found.x_adv).shape == x.shape
    assert not [str(w.message) for w in recwarn.list]


def test_a_side_can_be_wanted():
    made = regressor(RIDGE, HERE, 5.0)
    for side, sign in ((1, 1), (2, -1)):
        found = uf.run(
            "pgd_targeted(steps=20)", made.target, made.x, made.y, made.threat(uf.linf(0.2)), goal=uf.Targeted(side)
        )
        assert found.success.all()
        assert (sign * (made.predict(found.x_adv) - made.reference) > 5).all()


def test_predictions_that_are_off_already_are_no_success():
    wrong = torch.from_numpy(RIDGE.predict(X[300:324]))
    wrong[:4] += 50
    made = regressor(RIDGE, HERE, 10.0, reference=wrong)
    found = uf.run("pgd(steps=3)", made.target, made.x, made.y, made.threat(uf.linf(1e-9)))
    assert [s.value for s in found.status] == ["misclassified"] * 4 + ["survived"] * 20


def test_some_features_may_be_frozen_too():
    mask = torch.zeros(10, dtype=torch.bool)
    mask[2] = True
    made = regressor(RIDGE, HERE, 5.0)
    found = uf.run("apgd_targeted(steps=20)", made.target, made.x, made.y, made.threat(uf.linf(0.3, mask=mask)))
    moved = (made.unwrap(found.x_adv) - HERE).abs().amax(0)
    assert found.success.any() and moved[2] > 0 and not moved[~mask].any()


def test_an_evaluation_from_end_to_end(tmp_path):
    made = regressor(RIDGE, HERE, 15.0)
    result = uf.evaluate(made.target, made.x, made.y, made.threat(uf.linf(0.05)), suite="quick")
    far = exact(RIDGE.coef_, np.zeros(24), np.full(24, 15.0), HERE.numpy(), "linf")
    assert result.count(uf.Status.BROKEN) == int((far < 0.05).sum()) > 0
    assert (far <= 0.05 * 1.001).any() and result.classes == ["within tolerance", "too high", "too low"]
    uf.report.write(result, tmp_path / "out")


def test_what_does_not_fit_is_refused_in_a_sentence():
    classifier = linear_model.LogisticRegression().fit(X[:50], Y[:50] > 100)
    ok = {"f": RIDGE, "x": HERE, "tolerance": 1.0}
    for wrong, word in (
        ({"tolerance": 0}, "larger than 0"),
        ({"tolerance": torch.ones(3)}, "larger than 0"),
        ({"tolerance": "much"}, "larger than 0"),
        ({"x": HERE[0]}, "batch"),
        ({"x": HERE[:, :4]}, "takes 10 values"),
        ({"f": classifier}, "classifier"),
        ({"f": 3}, "no regressor"),
        ({"f": uf.Target(nn.Linear(10, 1))}, "not a Target"),
        ({"reference": torch.ones(3)}, "24 finite numbers"),
        ({"reference": torch.full((24,), torch.nan)}, "24 finite numbers"),
        ({"bounds": (1e9, 1e9 + 1e-6)}, "cannot be told apart"),
    ):
        with pytest.raises(InputError) as error:
            regressor(**(ok | wrong))
        assert word in said(error)
    with pytest.raises(TargetError) as error:
        regressor(nn.Linear(10, 2).double(), HERE, 1.0)
    assert "one number per input" in said(error)
