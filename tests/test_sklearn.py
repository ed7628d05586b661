"""scikit-learn targets: modules are the estimators exactly, the rest is asked, and attacks reach the exact distance."""

import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn import (
    decomposition,
    discriminant_analysis,
    ensemble,
    feature_selection,
    linear_model,
    model_selection,
    naive_bayes,
    neighbors,
    neural_network,
    preprocessing,
    svm,
    tree,
)
from sklearn.datasets import load_digits
from sklearn.pipeline import make_pipeline

import unfooled as uf
from unfooled.cli import _app
from unfooled.errors import InputError, TargetError
from unfooled.targets import encode, resolve, sklearn
from unfooled.testing import Linear, linear_distance

X, Y = load_digits(return_X_y=True)
X = X / 16
TWO = Y < 2


def said(error) -> str:
    text = str(error.value)
    assert text and "\n" not in text and text[-1] in ".?", f"not one sentence: {text!r}"
    return text


def fit(estimator, *, classes: int = 10):
    part = Y < classes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return estimator.fit(X[part][:600], Y[part][:600])


def same_class(target, estimator) -> float:
    """The share of images on which the target's best class is the one that the estimator predicts."""
    with torch.no_grad():
        label = target.scores(torch.from_numpy(X)).argmax(1)
    number = {c: i for i, c in enumerate(estimator.classes_)}
    return float(np.mean(label.numpy() == [number[v] for v in estimator.predict(X)]))


S = preprocessing
WHITE = {
    "logistic": linear_model.LogisticRegression(),
    "linear svc": svm.LinearSVC(),
    "ridge": linear_model.RidgeClassifier(),
    "sgd": linear_model.SGDClassifier(random_state=0),
    "perceptron": linear_model.Perceptron(random_state=0),
    "lda": discriminant_analysis.LinearDiscriminantAnalysis(),
    "standard": make_pipeline(S.StandardScaler(), linear_model.LogisticRegression()),
    "minmax": make_pipeline(S.MinMaxScaler((-1, 1), clip=True), svm.LinearSVC()),
    "maxabs": make_pipeline(S.MaxAbsScaler(), linear_model.RidgeClassifier()),
    "robust": make_pipeline(S.RobustScaler(), "passthrough", linear_model.RidgeClassifier()),
    "two scalers": make_pipeline(S.MinMaxScaler((2, 3)), S.StandardScaler(), svm.LinearSVC()),
    "unit l1": make_pipeline(S.Normalizer("l1"), linear_model.LogisticRegression()),
    "whitened": make_pipeline(decomposition.PCA(20, whiten=True, random_state=0), svm.LinearSVC()),
    "svd": make_pipeline(decomposition.TruncatedSVD(15, random_state=0), linear_model.LogisticRegression()),
    "chosen": make_pipeline(feature_selection.SelectKBest(k=30), S.StandardScaler(), linear_model.Perceptron()),
    "searched": model_selection.GridSearchCV(linear_model.LogisticRegression(), {"C": [0.1, 1]}, cv=2),
    "mlp relu": neural_network.MLPClassifier((12,), max_iter=30, random_state=0),
    "mlp tanh": neural_network.MLPClassifier((9, 7), "tanh", max_iter=30, random_state=0),
    "mlp logistic": neural_network.MLPClassifier((9,), "logistic", max_iter=30, random_state=0),
}
KERNELS = {k: svm.SVC(kernel=k, coef0=0.5) for k in ("rbf", "poly", "sigmoid", "linear")}
BLACK = {
    "forest": ensemble.RandomForestClassifier(8, random_state=0),
    "tree": tree.DecisionTreeClassifier(random_state=0),
    "boosting": ensemble.HistGradientBoostingClassifier(max_iter=3),
    "neighbours": neighbors.KNeighborsClassifier(3),
    "bayes": naive_bayes.GaussianNB(),
    "votes of pairs": svm.SVC(),
}


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("name", WHITE)
def test_what_is_simple_becomes_a_module_with_the_estimators_own_scores(name, classes):
    estimator = fit(WHITE[name], classes=classes)
    target = sklearn(estimator)
    assert target.access is uf.Access.GRADIENT and target.dtype == torch.float64
    assert same_class(target, estimator) == 1.0
    with torch.no_grad():
        z = target.scores(torch.from_numpy(X)).numpy()
    gap = z[:, 1] - z[:, 0] if classes == 2 else z
    if hasattr(estimator, "decision_function"):
        theirs = estimator.decision_function(X)
    else:
        theirs = np.log(estimator.predict_proba(X).clip(1e-300))
        gap = z - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True)) - z.max(1, keepdims=True)
        gap, theirs = gap[theirs.min(1) > -600], theirs[theirs.min(1) > -600]
    assert np.abs(gap - theirs).max() <= 1e-9 * np.abs(theirs).max()


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_machines_of_two_classes_are_white_too(kernel):
    estimator = fit(KERNELS[kernel], classes=2)
    target = sklearn(estimator)
    assert target.access is uf.Access.GRADIENT
    with torch.no_grad():
        z = target.scores(torch.from_numpy(X)).numpy()
    assert np.abs(z[:, 1] - z[:, 0] - estimator.decision_function(X)).max() < 1e-9


@pytest.mark.parametrize("name", BLACK)
def test_the_others_are_asked_and_predict_has_the_last_word(name):
    estimator = fit(BLACK[name])
    target = sklearn(estimator)
    assert target.access is uf.Access.SCORES and same_class(target, estimator) == 1.0


def test_a_module_that_would_disagree_is_not_used():
    estimator = fit(linear_model.LogisticRegression(), classes=2)
    odd = type("LogisticRegression", (linear_model.LogisticRegression,), {})()
    odd.__dict__.update(estimator.__dict__)
    honest = odd.decision_function
    odd.decision_function = lambda x: honest(x) ** 3
    target = sklearn(odd)
    assert target.access is uf.Access.SCORES and same_class(target, odd) == 1.0


def exact(estimator, shape=(64,)) -> Linear:
    """The multiplied-out linear classifier, from scikit-learn's own decision function and nothing of ours."""
    d = int(np.prod(shape))
    bias = np.atleast_2d(np.asarray(estimator.decision_function(np.zeros((1, d)))))
    rows = np.asarray(estimator.decision_function(np.eye(d))).reshape(d, -1) - bias.reshape(1, -1)
    w, b = rows.T, bias.reshape(-1)
    if len(w) == 1:
        w, b = np.concatenate([-w / 2, w / 2]), np.concatenate([-b / 2, b / 2])
    return Linear(torch.from_numpy(w), torch.from_numpy(b))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("name", "classes"), [("standard", 2), ("whitened", 10), ("lda", 10)])
def test_gradient_attacks_reach_the_exact_distance_and_never_less(name, classes, norm):
    estimator = fit(WHITE[name], classes=classes)
    target, d = sklearn(estimator), exact(estimator)
    x = torch.from_numpy(X[Y < classes][600:624] if classes == 10 else X[TWO][300:324])
    y = encode(estimator.predict(x.numpy()), estimator)
    far = linear_distance(d, x, y, norm)
    assert np.isfinite(far).all() and far.min() > 0
    attacks = ["pgd(steps=100)", "apgd(steps=100, loss='margin')", "apgd_targeted(steps=60)"]
    for scale, wanted in ((1.05, True), (0.99, False)):
        for i in range(0, len(x), 8):
            ball = getattr(uf, norm)(scale * float(far[i]))
            got = uf.run(attacks, target, x[i : i + 1], y[i : i + 1], ball)
            assert bool(got.success[0]) is wanted, (scale, i)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize(("name", "classes"), [("standard", 2), ("lda", 10)])
def test_the_smallest_change_is_the_exact_distance(name, classes, norm):
    estimator = fit(WHITE[name], classes=classes)
    target = sklearn(estimator)
    x = torch.from_numpy(X[Y < classes][600:632] if classes == 10 else X[TWO][300:332])
    y = encode(estimator.predict(x.numpy()), estimator)
    found = uf.run("fmn(steps=100)", target, x, y, getattr(uf, norm)())
    ratio = found.distance.numpy() / linear_distance(exact(estimator), x, y, norm)
    assert found.success.all() and ratio.min() > 1 - 1e-9
    assert np.median(ratio) < 1.01 and (classes > 2 or ratio.max() < 1.02)


@pytest.mark.parametrize("attack", ["square(queries=300)", "ray(queries=300)", "hop_skip_jump(queries=400)"])
@pytest.mark.parametrize("name", ["forest", "neighbours", "votes of pairs"])
def test_black_box_attacks_break_what_is_asked(name, attack):
    estimator = fit(BLACK[name])
    target = sklearn(estimator)
    x = torch.from_numpy(X[800:816]).float()
    y = encode(estimator.predict(x.double().numpy()), estimator)
    found = uf.run(attack, target, x, y, uf.linf(0.3))
    assert found.success.float().mean() > 0.3
    wrong = encode(estimator.predict(found.x_adv.double().numpy()), estimator) != y
    assert torch.equal(wrong, found.success)
    assert float((found.x_adv - x).abs().max()) <= 0.3 * (1 + 1e-6)
    assert int(found.forward.sum() + found.padding[0] + found.overrun[0]) == target.sent[0]


def test_a_classifier_without_scores_is_asked_for_its_class():
    votes = fit(ensemble.VotingClassifier([("a", BLACK["forest"]), ("b", BLACK["bayes"]), ("c", BLACK["tree"])]))
    target = sklearn(votes)
    assert target.access is uf.Access.LABEL and same_class(target, votes) == 1.0
    x, y = torch.from_numpy(X[800:812]).float(), torch.from_numpy(votes.predict(X[800:812]))
    assert uf.run("ray(queries=200)", target, x, y, uf.linf(0.3)).success.any()
    with pytest.raises(uf.AccessError):
        uf.run("square(queries=20)", target, x, y, uf.linf(0.3))


def test_classes_of_any_kind_are_numbered():
    names = np.array(["zero", "one"])[Y[TWO]]
    estimator = linear_model.LogisticRegression().fit(X[TWO], names)
    target = sklearn(estimator)
    assert target.classes == ["one", "zero"]
    assert encode(names[:5], estimator).tolist() == encode(list(names[:5]), target).tolist()
    assert encode(names, target).tolist() == [["one", "zero"].index(v) for v in names]
    assert torch.equal(target.scores(torch.from_numpy(X[TWO])).argmax(1), encode(estimator.predict(X[TWO]), target))
    with pytest.raises(InputError) as error:
        encode(["zeroo"], target)
    assert "'zeroo' is none of the 2 classes" in said(error) and "'zero'" in said(error)
    assert encode(np.array([3, 7]), [3, 5, 7]).tolist() == [0, 2]


def test_ranges_make_a_change_a_share_of_each_feature():
    raw = X * np.linspace(1, 100, 64) - 3
    low, high = raw.min(0), raw.max(0)
    for estimator in (svm.LinearSVC(), ensemble.RandomForestClassifier(5, random_state=0)):
        fitted = estimator.fit(raw[:600], Y[:600])
        target = sklearn(fitted, ranges=(low, high))
        unit = np.where(high > low, (raw - low) / np.where(high > low, high - low, 1), 0.5)
        label = target.scores(torch.from_numpy(unit)).argmax(1).numpy()
        assert (label == fitted.predict(raw)).mean() > 0.99
    with pytest.raises(InputError) as error:
        sklearn(fitted, ranges=(low[1:], high))
    assert "64 features" in said(error)
    with pytest.raises(InputError) as error:
        sklearn(fitted, ranges=(low, high), bounds=(0, 2))
    assert "leave bounds out" in said(error)


class Booster:
    """Looks like the wrappers of other libraries: predict_proba, classes_, and nothing of scikit-learn's."""

    classes_ = np.array([0, 1])

    def predict_proba(self, x):
        p = 1 / (1 + np.exp(-8 * (x.mean(1) - 0.5)))
        return np.stack([1 - p, p], 1).astype(np.float32)

    def predict(self, x):
        return self.classes_[self.predict_proba(x).argmax(1)]


def test_other_libraries_objects_are_taken_by_their_methods():
    target = sklearn(Booster(), features=10)
    x = torch.full((4, 10), 0.45)
    found = uf.run("square(queries=100)", target, x, torch.zeros(4, dtype=torch.int64), uf.linf(0.1))
    assert target.access is uf.Access.SCORES and found.success.all()
    with pytest.raises(InputError) as error:
        sklearn(Booster())
    assert "features=" in said(error)


def test_two_classifiers_do_not_pass_for_one_another():
    a, b = (sklearn(ensemble.RandomForestClassifier(5, random_state=i).fit(X[:300], Y[:300])) for i in (0, 1))
    again = sklearn(ensemble.RandomForestClassifier(5, random_state=0).fit(X[:300], Y[:300]))
    assert a.fingerprint() == again.fingerprint() != b.fingerprint()


@pytest.mark.parametrize(
    ("thing", "word"),
    [
        (linear_model.LogisticRegression(), "not fitted"),
        (linear_model.Ridge().fit(X[:50], Y[:50]), "regressor"),
        (SimpleNamespace(), "no predict()"),
        (neighbors.KNeighborsClassifier().fit(X[:50], np.stack([Y[:50], Y[:50]], 1)), "several labels"),
        (SimpleNamespace(predict=lambda x: np.zeros(len(x)), n_features_in_=3), "classes=[...]"),
    ],
)
def test_what_is_no_classifier_is_refused_in_a_sentence(thing, word):
    with pytest.raises(InputError) as error:
        sklearn(thing)
    assert word in said(error)


def test_inputs_of_another_size_are_refused_in_a_sentence():
    target = sklearn(fit(BLACK["tree"]))
    with pytest.raises(TargetError) as error:
        uf.run("square(queries=10)", target, torch.rand(2, 1, 7, 7), torch.zeros(2, dtype=torch.int64), uf.linf(0.1))
    assert "takes 64 values" in said(error)
    with pytest.raises(InputError) as error:
        uf.run("square(queries=10)", BLACK["tree"], torch.rand(2, 4), torch.zeros(2, dtype=torch.int64), uf.linf(0.1))
    assert "targets.sklearn" in said(error)


def test_resolving_keeps_what_a_target_knows():
    estimator = fit(BLACK["forest"])
    target = resolve(estimator, classes=[f"digit {i}" for i in range(10)])
    assert target.access is uf.Access.SCORES and target.kind == "probabilities" and target.classes[3] == "digit 3"
    wide = resolve(uf.Target(torch.nn.Linear(2, 3), bounds=(-1, 2), reject="last"), classes=["a", "b"])
    assert wide.bounds == (-1, 2) and wide.reject == "last"


CODE = """
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import RidgeClassifier
from unfooled.targets import sklearn

x, y = load_digits(return_X_y=True)

def linear():
    return RidgeClassifier().fit(x[:500] / 16, y[:500])

def forest():
    return RandomForestClassifier(5, random_state=0).fit(x[:500] / 16, y[:500])

raw = sklearn(RidgeClassifier().fit(x[:500], y[:500]), bounds=(0, 16))
"""


@pytest.mark.parametrize("name", ["linear", "forest", "raw"])
def test_the_command_line_takes_a_file_that_makes_one(tmp_path: Path, name: str, capsys) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    scale = 16 if name == "raw" else 1
    np.savez(tmp_path / "data.npz", images=(X[600:612] * scale).astype(np.float32), labels=Y[600:612])
    words = ["evaluate", f"{tmp_path / 'mine.py'}:{name}", str(tmp_path / "data.npz"), "--threat", f"linf({scale / 4})"]
    code = _app.call([*words, "--out", str(tmp_path / "out"), "--json", "--no-curve"])
    summary = json.loads(capsys.readouterr().out)
    assert code in (0, 3) and summary["counts"]["broken"] >= 6
    assert (tmp_path / "out" / "report.html").is_file()
    assert _app.call(["verify", str(tmp_path / "out")]) == 0
