"""Targets: the zoo is what its cards say, names and files resolve, weight files run nothing and must fit."""

import json
import pickle
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from unfooled.core.access import Access
from unfooled.core.data import load_data
from unfooled.core.target import Target
from unfooled.core.threat import linf
from unfooled.errors import InputError, MissingExtra
from unfooled.targets import ZOO, load_weights, resolve, train
from unfooled.targets.train import TRAINING, Training, markdown, measured
from unfooled.targets.zoo import WEIGHTS, digest, read_card, table, untrained


def said(error) -> str:
    text = str(error.value)
    assert text and "\n" not in text and text[-1] in ".?", f"not one sentence: {text!r}"
    return text


# --- the zoo ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_a_shipped_target_is_what_its_card_says(name):
    entry, card = ZOO[name], ZOO[name].card()
    assert entry.file.stat().st_size == card["weights"]["bytes"] < 3_000_000
    assert digest(entry.file) == card["weights"]["sha256"]
    assert card["command"].startswith(f"unfooled train {name} ") and card["made"] and card["versions"]["torch"]
    assert (entry.clean, entry.robust) == (card["clean"]["accuracy"], card["robust"]["accuracy"])
    for part in (card["clean"], card["robust"]):
        low, high = part["interval"]
        assert 0 <= low <= part["accuracy"] <= high <= 1 and part["n"] >= 100
    assert {"threat", "suite", "seed"} <= set(card["robust"]) and card["robust"]["threat"] == repr(linf(entry.eps))
    assert (WEIGHTS / f"{name}.md").read_text(encoding="utf-8") == markdown(card)
    target = resolve(name)
    assert target.name == name and len(target.classes) == 10 and not target.module.training
    assert sum(p.numel() for p in target.module.parameters()) == card["parameters"]
    shipped = {k: v for k, v in card["training"].items() if k in Training.__dataclass_fields__}
    assert Training(**shipped) == TRAINING[name], "the recipe was changed after the weights were made"


@pytest.mark.parametrize("name", ["digits-cnn", "digits-cnn-robust"])
def test_the_clean_accuracy_on_digits_is_the_cards(name):
    test = load_data("digits")
    card = ZOO[name].card()
    assert test.fingerprint() == card["data"]["test"]["sha256"]
    with torch.no_grad():
        right = (resolve(name).scores(test.x).argmax(1) == test.y).float().mean()
    assert float(right) == pytest.approx(card["clean"]["accuracy"], abs=1e-6)


def test_robust_training_bought_robustness():
    for plain, robust in (("digits-cnn", "digits-cnn-robust"), ("mnist-cnn", "mnist-cnn-robust")):
        assert ZOO[plain].data == ZOO[robust].data and ZOO[robust].robust > 0.85
    assert 0.1 < ZOO["digits-cnn"].robust < 0.7  # the demo shows a number worth looking at
    plain, robust = ZOO["cifar-cnn"], ZOO["cifar-cnn-robust"]
    assert plain.data == robust.data and plain.eps == robust.eps and robust.robust > plain.robust + 0.3
    assert plain.clean >= 0.8 and robust.clean >= 0.8
    assert ZOO["mnist-cnn"].clean > 0.99 and ZOO["mnist-cnn-robust"].clean > 0.98


def test_the_page_of_targets_shows_the_cards():
    page = Path(__file__).parents[1] / "docs" / "targets.md"
    assert table() in page.read_text(encoding="utf-8")


def test_damaged_shipped_weights_are_noticed(tmp_path, monkeypatch):
    from unfooled.targets import zoo

    blob = bytearray(ZOO["digits-cnn"].file.read_bytes())
    blob[-5] ^= 1
    (tmp_path / "digits-cnn.safetensors").write_bytes(blob)
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    with pytest.raises(InputError) as error:
        resolve("digits-cnn")
    assert "damaged" in said(error)


def test_the_models_end_in_logits_of_ten_classes_without_softmax():
    for name in ZOO:
        shape = {"digits": (3, 1, 8, 8), "mnist": (3, 1, 28, 28), "cifar10": (3, 3, 32, 32)}[ZOO[name].data]
        z = resolve(name).scores(torch.rand(shape))
        assert z.shape == (3, 10) and float(z.detach().min()) < 0
        assert not any(isinstance(m, nn.Softmax | nn.LogSoftmax) for m in resolve(name).module.modules())


# --- training --------------------------------------------------------------------------------------------------------

TINY = {
    "plain": Training(epochs=2, lr=5e-3, batch_size=32, ema=0.9),
    "adversarial": Training(epochs=1, lr=5e-3, attack="pgd(steps=2, step_size=0.5)", eps=0.1, ramp=0.5),
    "by name": Training(
        epochs=1, lr=5e-3, way="n-fgsm", eps=0.1, augment="shifts(1)", precision="bf16", channels_last=True, ema=0.9
    ),
}


@pytest.mark.parametrize("kind", TINY)
def test_training_twice_gives_the_same_bits(tmp_path, kind):
    threads = torch.get_num_threads()
    cards = []
    for place, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(ord(place))
        cards.append(train("digits-cnn", out=tmp_path / place, seed=seed, recipe=TINY[kind]))
    assert torch.get_num_threads() == threads
    sums = [c["weights"]["sha256"] for c in cards]
    assert sums[0] == sums[1] != sums[2]
    assert digest(tmp_path / "a" / "digits-cnn.safetensors") == sums[0]
    assert json.loads((tmp_path / "a" / "digits-cnn.json").read_text()) == cards[0]
    assert "not measured" in (tmp_path / "a" / "digits-cnn.md").read_text()
    assert kind != "plain" or cards[0]["clean"]["accuracy"] > 0.5  # it learned something


def test_every_part_of_a_recipe_counts(tmp_path):
    recipes = {
        **TINY,
        "no way": replace(TINY["by name"], way=""),
        "no augmentation": replace(TINY["by name"], augment=""),
        "float32": replace(TINY["by name"], precision="float32"),
    }
    sums = {train("digits-cnn", out=tmp_path / k, recipe=r)["weights"]["sha256"] for k, r in recipes.items()}
    assert len(sums) == len(recipes)


def test_training_overwrites_nothing_and_measuring_is_written_down(tmp_path):
    train("digits-cnn", out=tmp_path, recipe=TINY["plain"])
    with pytest.raises(InputError) as error:
        train("digits-cnn", out=tmp_path, recipe=TINY["plain"])
    assert "already" in said(error)
    asked = []

    def measure(target, data, threat):
        asked.append((target.name, len(data), repr(threat)))
        return {
            "accuracy": 0.5,
            "n": 797,
            "interval": [0.46, 0.54],
            "threat": repr(threat),
            "suite": "quick",
            "seed": 0,
        }

    card = measured("digits-cnn", tmp_path, measure)
    assert asked == [("digits-cnn", 797, "linf(0.1)")]
    assert card["robust"]["accuracy"] == 0.5 and "50.00%" in (tmp_path / "digits-cnn.md").read_text()
    (tmp_path / "digits-cnn.safetensors").write_bytes(b"other")
    with pytest.raises(InputError) as error:
        measured("digits-cnn", tmp_path, measure)
    assert "not the file" in said(error)
    with pytest.raises(InputError):
        measured("mnist-cnn", tmp_path, measure)


def test_training_refuses_in_sentences(tmp_path):
    for wrong, word in (
        ({"name": "digit-cnn"}, "'digits-cnn'"),
        ({"name": "mnist-cnn", "data_dir": tmp_path}, "mnist.npz"),
        ({"name": "digits-cnn", "threads": 0}, "threads"),
    ):
        with pytest.raises(InputError) as error:
            train(out=tmp_path / "out", **wrong)
        assert word in said(error) and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_shipped_digits_recipe_reaches_the_shipped_accuracy(tmp_path):
    card = train("digits-cnn", out=tmp_path)
    assert card["clean"]["accuracy"] == pytest.approx(ZOO["digits-cnn"].clean, abs=0.01)


# --- names -----------------------------------------------------------------------------------------------------------


def test_unknown_names_say_the_nearest(monkeypatch):
    with pytest.raises((InputError, MissingExtra)) as error:
        resolve("digits-cmm")
    assert "'digits-cnn'" in said(error)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtra) as missing:
        resolve("timm:resnet18")
    assert "unfooled[vision]" in said(missing)


def test_modules_callables_and_targets_pass_through():
    module = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(4, 3)).train()
    target = resolve(module, mean=[0.5], std=[0.25], classes=["a", "b", "c"])
    assert target.module is module and not module.training and target.classes == ["a", "b", "c"]
    x = torch.rand(2, 1, 2, 2)
    torch.testing.assert_close(target.scores(x), module((x - 0.5) / 0.25))
    assert resolve(target) is target
    renamed = resolve(target, classes=["x", "y", "z"])
    assert renamed.classes == ["x", "y", "z"]
    torch.testing.assert_close(renamed.scores(x), target.scores(x))  # the normalisation came along
    assert resolve(lambda x: x.flatten(1)).scores(x).shape == (2, 4)


def test_class_names_come_from_a_file(tmp_path):
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    assert resolve(nn.Linear(2, 3), classes=str(tmp_path / "names.txt")).classes == ["a", "b", "c"]


def test_resize_shows_the_module_another_size_and_lets_gradients_through():
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    target = resolve(module, resize=4)
    x = torch.rand(2, 1, 9, 9, requires_grad=True)
    (g,) = torch.autograd.grad(target.scores(x).sum(), x)
    assert g.shape == x.shape and (g != 0).any()
    same = torch.rand(2, 1, 4, 4)
    assert torch.equal(target.scores(same), module(same))


def test_devices_are_checked():
    assert resolve(nn.Linear(2, 2), device="cpu").device.type == "cpu"
    assert resolve(nn.Linear(2, 2), device="auto").device.type in ("cpu", "cuda")
    for wrong in ("gpu", "cuda:99"):
        with pytest.raises(InputError) as error:
            resolve(nn.Linear(2, 2), device=wrong)
        assert wrong in said(error)


# --- files of Python -------------------------------------------------------------------------------------------------

CODE = """
from dataclasses import dataclass
from torch import nn
import neighbour_of_mine

@dataclass
class Config:
    classes: int = neighbour_of_mine.CLASSES

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, Config().classes))

module = make()
number = 3

def fails():
    raise ValueError("no such checkpoint.\\nsecond line")

def gives_a_list():
    return [1]
"""


@pytest.fixture
def model_file(tmp_path):
    (tmp_path / "neighbour_of_mine.py").write_text("CLASSES = 3\n")
    (tmp_path / "model.py").write_text(CODE)
    yield tmp_path / "model.py"
    sys.modules.pop("neighbour_of_mine", None)


def test_a_file_names_a_function_or_a_module(model_file):
    before = list(sys.path)
    for name in ("make", "module"):
        target = resolve(f"{model_file}:{name}")
        assert target.name == name and target.scores(torch.rand(2, 1, 2, 2)).shape == (2, 3)
    assert sys.path == before


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("maker", "'make'"),
        ("number", "int"),
        ("fails", "raised ValueError: no such checkpoint."),
        ("gives_a_list", "list"),
    ],
)
def test_what_a_file_does_not_give_is_a_sentence(model_file, name, word):
    with pytest.raises(InputError) as error:
        resolve(f"{model_file}:{name}")
    assert word in said(error)


def test_a_missing_or_broken_file_is_a_sentence(model_file):
    with pytest.raises(InputError) as error:
        resolve(f"{model_file.parent / 'modle.py'}:make")
    assert "no Python file" in said(error) and "'model.py'" in said(error)
    with pytest.raises(InputError) as error:
        resolve(str(model_file))
    assert "after a colon" in said(error)
    model_file.write_text("def make(:\n")
    with pytest.raises(InputError) as error:
        resolve(f"{model_file}:make")
    assert "SyntaxError" in said(error)
    with pytest.raises(InputError) as error:
        resolve("weights.pth")
    assert "--weights" in said(error)


# --- weights ---------------------------------------------------------------------------------------------------------


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))


def write(path: Path, state) -> Path:
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".th"])
def test_weights_of_every_kind_load(tmp_path, suffix):
    donor = network()
    path = write(tmp_path / f"w{suffix}", donor.state_dict())
    target = resolve(network(), weights=path)
    assert torch.equal(target.module[1].weight, donor[1].weight)


def test_wrappers_and_the_prefix_of_parallel_training_are_taken_off(tmp_path):
    donor = network()
    prefixed = {f"module.{k}": v for k, v in donor.state_dict().items()}
    for i, state in enumerate(({"state_dict": prefixed, "epoch": 3}, prefixed, {"model": donor.state_dict()})):
        loaded = load_weights(write(tmp_path / f"{i}.pth", state))
        assert set(loaded) == {"1.weight", "1.bias"} and torch.equal(loaded["1.weight"], donor[1].weight)


def test_zoo_architectures_take_other_weights(tmp_path):
    donor = untrained("digits-cnn", 5)
    target = resolve("digits-cnn", weights=write(tmp_path / "w.safetensors", donor.state_dict()))
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(target.scores(x), donor.eval()(x)) and target.name == "digits-cnn"


def test_what_does_not_fit_is_listed_and_nothing_is_loaded(tmp_path):
    module = network()
    before = module[1].weight.clone()
    state = {"1.weight": torch.zeros(3, 5), "2.extra": torch.zeros(1)}
    with pytest.raises(InputError) as error:
        resolve(module, weights=write(tmp_path / "w.pth", state))
    text = said(error)
    assert "1 missing (1.bias)" in text and "1 unknown to the module (2.extra)" in text
    assert "1.weight is (3, 5) there and (3, 4) here" in text
    assert torch.equal(module[1].weight, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_that_are_no_numbers_are_refused(tmp_path, suffix, value):
    state = network().state_dict()
    state["1.weight"][1, :2] = value
    with pytest.raises(InputError) as error:
        load_weights(write(tmp_path / f"w{suffix}", state))
    assert "'1.weight' holds 2 values" in said(error)


class Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return (Path.touch, (self.canary,))


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".th", ".safetensors"])
@pytest.mark.parametrize("how", ["torch", "pickle", "nested"])
def test_a_payload_in_a_checkpoint_is_never_run(tmp_path, monkeypatch, suffix, how, forced):
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    canary, path = tmp_path / "canary", tmp_path / f"w{suffix}"
    hostile = (
        {"state_dict": {"1.weight": torch.zeros(3, 4), "x": Payload(canary)}} if how == "nested" else Payload(canary)
    )
    if how == "pickle":
        path.write_bytes(pickle.dumps(hostile))
    else:
        torch.save(hostile, path)
    with pytest.raises(InputError) as error:
        resolve(network(), weights=path)
    assert "nothing in it was run" in said(error)
    assert not canary.exists()


def test_the_payload_would_have_run(tmp_path):
    """The control: the same file is no dud."""
    canary = tmp_path / "canary"
    torch.save(Payload(canary), tmp_path / "w.pth")
    torch.load(tmp_path / "w.pth", weights_only=False)
    assert canary.exists()


def test_other_weight_files_are_refused_in_a_sentence(tmp_path):
    for name, make, word in (
        ("w.npy", lambda p: p.write_bytes(b"x"), "none of the endings"),
        ("w.pth", lambda p: p.write_bytes(b"hello"), "damaged"),
        ("w.safetensors", lambda p: p.write_bytes(b"\xff" * 100), "damaged"),
        ("l.pth", lambda p: torch.save([torch.zeros(1)], p), "no dict of tensors"),
        ("e.pth", lambda p: torch.save({}, p), "no dict of tensors"),
        ("n.pth", lambda p: torch.save({"a": 3}, p), "no dict of tensors"),
    ):
        make(tmp_path / name)
        with pytest.raises(InputError) as error:
            load_weights(tmp_path / name)
        assert word in said(error)
    with pytest.raises(InputError) as error:
        load_weights(tmp_path / "w.pht")
    assert "no weight file" in said(error) and "'w.pth'" in said(error)
    with pytest.raises(InputError) as error:
        resolve(lambda x: x, weights=tmp_path / "w.pth")
    assert "torch module" in said(error)


# --- timm ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def timm(monkeypatch):
    """A stand-in with timm's three functions; it records what it was asked."""
    module = types.ModuleType("timm")
    module.__spec__ = types.SimpleNamespace(name="timm")
    module.asked = []

    def create_model(name, pretrained):
        module.asked.append((name, pretrained))
        net = network()
        net.pretrained_cfg = {"mean": (0.5,), "std": (0.25,)}
        return net

    module.is_model = lambda name: name == "resnet18"
    module.list_models = lambda: ["resnet18"]
    module.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", module)
    monkeypatch.delenv("UNFOOLED_ALLOW_HUB", raising=False)
    return module


def test_a_timm_name_brings_its_normalisation_and_downloads_only_when_allowed(timm, tmp_path):
    with pytest.raises(InputError) as error:
        resolve("resnet18")
    assert "--weights" in said(error) and not timm.asked
    target = resolve("timm:resnet18", weights=write(tmp_path / "w.pth", network().state_dict()))
    assert timm.asked == [("resnet18", False)] and target.name == "resnet18"
    assert target.mean.tolist() == [0.5] and target.std.tolist() == [0.25]
    assert resolve("resnet18", allow_hub=True, mean=[0.1]).mean.tolist() == pytest.approx([0.1])
    assert timm.asked[-1] == ("resnet18", True)
    with pytest.raises(InputError) as error:
        resolve("resnet81")
    assert "'resnet18'" in said(error)

    def away(name, pretrained):
        raise OSError("offline\nmore")

    timm.create_model = away
    with pytest.raises(InputError) as error:
        resolve("resnet18", allow_hub=True)
    assert "offline" in said(error)


def test_a_target_s_own_access_and_bounds_survive():
    target = Target(nn.Linear(2, 2), bounds=(-1, 1), access=Access.LABEL, name="mine")
    for again in (resolve(target, classes=["a", "b"]), resolve(target, device="cpu")):
        assert (again.bounds, again.access, again.name) == ((-1, 1), Access.LABEL, "mine")


def test_cards_are_read_once():
    assert read_card("no-such-target") == {}
