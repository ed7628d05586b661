"""What comes from outside stays data: it runs nothing, controls no terminal, and adds nothing to a page or a table."""

import ast
import functools
import io
import json
import pickle
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import unfooled
from unfooled import report
from unfooled.cli import _app, _evaluate, _progress, _words
from unfooled.core.data import load_data, read_classes, read_image
from unfooled.core.journal import Journal
from unfooled.core.result import Finding, Progress
from unfooled.errors import InputError, UnfooledError, safe_text
from unfooled.report.page import render

from .hostile import WORDS
from .test_report import Page, checked, everywhere

SRC = Path(unfooled.__file__).resolve().parent
EACH = pytest.mark.parametrize("word", WORDS, ids=range(len(WORDS)))

MODEL = """
import torch

class Levels(torch.nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, classes * 36).view(classes, 36).sin())

    def forward(self, x):
        return x.flatten(1) @ self.weight.T

def many():
    return Levels({classes})

def raises():
    class Raises(Levels):
        def forward(self, x):
            raise ValueError({word!r})
    return Raises(2)
"""


def test_the_corpus_is_a_corpus() -> None:
    assert len(set(WORDS)) == len(WORDS) >= 60


def shows_nothing_but_text(said: str) -> None:
    """Assert that a terminal that is sent this does nothing but show letters in colours."""
    bare = re.sub(r"\x1b\[[\d;]*m", "", said)  # rich's colours
    odd = {c for c in bare if unicodedata.category(c) in ("Cc", "Cs") and c != "\n"}
    odd |= set(bare) & set("\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")
    assert not odd, odd
    said.encode("utf-8")


def terminal() -> tuple[Console, io.StringIO]:
    sink = io.StringIO()
    return Console(file=sink, force_terminal=True, color_system="truecolor", width=150, highlight=False), sink


# --- the terminal -----------------------------------------------------------------------------------------------------


@EACH
def test_a_word_from_outside_is_shown_on_a_terminal_and_does_nothing(word: str, tmp_path: Path) -> None:
    screen, sink = terminal()
    screen.print(_evaluate.summary(everywhere(word), tmp_path), crop=False)
    said = sink.getvalue()
    shows_nothing_but_text(said)
    bare = re.sub(r"\x1b\[[\d;]*m", "", said)
    assert sum(line.startswith("robust accuracy") for line in bare.splitlines()) == 1
    assert safe_text(word) in bare.splitlines()[0]  # as it is: no markup, no emoji, no format


@EACH
def test_findings_are_shown_as_they_are(word: str) -> None:
    screen, sink = terminal()
    screen.print(_words.findings([Finding(word, word, f"{word} | end", "suspect")]))
    shows_nothing_but_text(sink.getvalue())
    assert "| end" in " ".join(sink.getvalue().split()) or len(word) > 100


@EACH
def test_progress_shows_names_as_they_are(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    screen, sink = terminal()
    monkeypatch.setattr(_progress, "console", lambda **_: screen)
    with _progress.Live() as live:
        live.say(word)
        live.note(word)
        live(Progress(1, 2, word, 0.5, 10, 10, 1.0))
        live._bar.refresh()
    said = re.sub(r"\x1b\[(\?25[lh]|\d*[ABGK])|\r", "", sink.getvalue())  # rich moves its own line
    shows_nothing_but_text(said)


@EACH
def test_an_exception_is_one_sentence_of_text(word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(MODEL.format(classes=2, word=word.encode("utf-8", "replace").decode()))
    np.savez(tmp_path / "d.npz", images=np.zeros((2, 6, 6), np.uint8), labels=np.zeros(2, np.int64))
    words = ["evaluate", f"{tmp_path / 'mine.py'}:raises", str(tmp_path / "d.npz"), "--out", str(tmp_path / "out")]
    assert _app.call(words) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("unfooled: ") and said.err.count("\n") == 1
    shows_nothing_but_text(said.err)
    for given in (["eps", word], ["evaluate", word], ["evaluate", "digits-cnn", word], ["list", word], [f"--{word}"]):
        code = _app.call(given) if word.strip() else 2
        said = capsys.readouterr()
        if code == 2:
            assert said.out == "" and said.err.count("\n") <= 1
        shows_nothing_but_text(said.err)


# --- the files --------------------------------------------------------------------------------------------------------


@functools.cache
def without_images() -> Page:
    return checked(render(everywhere("x"), images=False, written="now"))


@EACH
def test_the_run_directory_holds_words_as_data(word: str, tmp_path: Path) -> None:
    e = everywhere(word)
    out = report.write(e, tmp_path / "run", images=False)
    assert {p.name for p in tmp_path.rglob("*")} == {
        "run",
        "summary.json",
        "run.json",
        "examples.parquet",
        "report.html",
    }
    for name in ("summary.json", "run.json"):
        text = (out / name).read_text(encoding="utf-8")
        shows_nothing_but_text(text)
        json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    summary, run = (json.loads((out / n).read_text(encoding="utf-8")) for n in ("summary.json", "run.json"))
    assert summary["target"] == summary["data"] == summary["findings"][0]["sentence"] == word
    assert summary["notes"] == summary["reasons"] == [word] and summary["attacks"][0]["name"] == word
    assert run["classes"] == [word] * 10 and run["settings"][word] == word
    with duckdb.connect() as database:
        query = f"SELECT DISTINCT broken_by FROM '{out / 'examples.parquet'}'"
        rows = database.execute(query).fetchall()
    assert rows == [(safe_text(word),)]
    page = checked((out / "report.html").read_text(encoding="utf-8"))
    if word.strip():  # what is empty is left out, with its element
        assert page.structure == without_images().structure


def possible(word: str) -> bool:
    """Whether a file system can hold a folder of this name, and a data folder is expected to read it."""
    try:
        return 0 < len(word.encode("utf-8", "surrogateescape")) < 256 and not set(word) & set("/\0") and word[0] != "."
    except UnicodeEncodeError:
        return False


def test_folders_with_hostile_names_become_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = sorted({w for w in WORDS if possible(w)} | {"\udcff not utf-8"})
    assert len(names) >= 40
    data = tmp_path / "<img src=x onerror=alert(1)>\x1b[2J\u202e"
    for i, name in enumerate(names):
        (data / name).mkdir(parents=True)
        Image.new("L", (6, 6), 4 * i).save(data / name / "\x1b]0;x\x07<b>.png")
    (data / names[3] / "cut\x1b[2J\n<script>.png").write_bytes(b"nothing")
    (tmp_path / "mine.py").write_text(MODEL.format(classes=len(names), word=""))
    out = tmp_path / "out"
    words = ["evaluate", f"{tmp_path / 'mine.py'}:many", str(data), "--no-curve", "--threat", "linf(8/255)"]
    assert _app.call([*words, "--out", str(out)]) in (0, 3, 4)
    said = capsys.readouterr()
    shows_nothing_but_text(said.out)
    shows_nothing_but_text(said.err)
    assert "1 of " in said.out and "pictures were left out" in said.out
    for name in ("summary.json", "run.json"):
        shows_nothing_but_text((out / name).read_text(encoding="utf-8"))
    assert json.loads((out / "run.json").read_text(encoding="utf-8"))["classes"] == names
    checked((out / "report.html").read_text(encoding="utf-8"))
    assert {p.name for p in tmp_path.iterdir()} == {data.name, "mine.py", "out"}
    assert not any(p.name == "owned" for p in [*tmp_path.rglob("*"), *Path.cwd().iterdir()])


def test_the_picture_of_an_attack_is_drawn_with_hostile_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "names.json").write_text(json.dumps(WORDS))
    (tmp_path / "mine.py").write_text(MODEL.format(classes=len(WORDS), word=""))
    np.savez(tmp_path / "d.npz", images=np.full((1, 6, 6), 90, np.uint8), labels=np.zeros(1, np.int64))
    words = ["attack", "0", f"{tmp_path / 'mine.py'}:many", "--data", str(tmp_path / "d.npz"), "--out"]
    assert _app.call([*words, str(tmp_path / "out"), "--classes", str(tmp_path / "names.json")]) in (0, 1)
    said = capsys.readouterr()
    shows_nothing_but_text(said.out)
    shows_nothing_but_text(said.err)
    assert {p.name for p in (tmp_path / "out").iterdir()} <= {
        "picture.png",
        "adversarial.png",
        "original.png",
        "attack.json",
    }
    shows_nothing_but_text((tmp_path / "out" / "attack.json").read_text(encoding="utf-8"))


# --- nothing untrusted runs -------------------------------------------------------------------------------------------


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def boxed(payload: Payload, *shape: int) -> np.ndarray:
    array = np.empty(shape or (1,), dtype=object)
    array.fill(payload)
    return array


def archive(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


PIXELS, LABELS = np.zeros((2, 8, 8), np.uint8), np.zeros(2, np.int64)
LOADERS: dict[str, Callable[[Path, Payload], object]] = {
    "npz images": lambda d, p: load_data(archive(d / "a.npz", images=boxed(p, 2, 8, 8), labels=LABELS)),
    "npz labels": lambda d, p: load_data(archive(d / "a.npz", images=PIXELS, labels=boxed(p, 2))),
    "npz that is a pickle": lambda d, p: load_data(pickled(d / "a.npz", p)),
    "npy inside that is a pickle": lambda d, p: load_data(zipped(d / "a.npz", p)),
    "mnist": lambda d, p: load_data(
        "mnist", data_dir=archive(d / "mnist.npz", test_images=boxed(p, 2, 8, 8), test_labels=LABELS).parent
    ),
    "cifar10": lambda d, p: load_data(
        "cifar10", data_dir=archive(d / "cifar10_test.npz", webp_0=boxed(p, 9), labels=LABELS).parent
    ),
    "picture": lambda d, p: read_image(pickled(d / "a.png", p)),
    "class names": lambda d, p: read_classes(pickled(d / "a.json", p)),
    "class names as text": lambda d, p: read_classes(pickled(d / "a.txt", p)),
    "weights .pth": lambda d, p: weights(pickled(d / "a.pth", p)),
    "weights .pt saved by torch": lambda d, p: weights(saved(d / "a.pt", p)),
    "weights .pt, the old format": lambda d, p: weights(saved(d / "a.pt", p, _use_new_zipfile_serialization=False)),
    "weights in a state dict": lambda d, p: weights(saved(d / "a.th", {"state_dict": {"w": p}})),
    "journal": lambda d, p: Journal(pickled(d / "journal.jsonl", p), {"seed": 0}),
    "journal with a line that is one": lambda d, p: Journal(half_a_journal(d / "journal.jsonl", p), {"seed": 0}),
    "weights .safetensors": lambda d, p: weights(pickled(d / "a.safetensors", p)),
    "weights .safetensors saved by torch": lambda d, p: weights(saved(d / "a.safetensors", p)),
}


def pickled(path: Path, payload: object) -> Path:
    path.write_bytes(pickle.dumps(payload))
    return path


def half_a_journal(path: Path, payload: object) -> Path:
    Journal(path, {"seed": 0}).close()
    path.write_bytes(path.read_bytes() + pickle.dumps(payload) + b"\n" + path.read_bytes())
    return path


def zipped(path: Path, payload: object) -> Path:
    import zipfile

    with zipfile.ZipFile(path, "w") as made:
        made.writestr("images.npy", pickle.dumps(payload))
        made.writestr("labels.npy", pickle.dumps(payload))
    return path


def saved(path: Path, content: object, **how: bool) -> Path:
    torch.save(content, path, **how)
    return path


def weights(path: Path) -> object:
    return unfooled.targets.resolve(torch.nn.Linear(2, 2), weights=path)


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("loader", LOADERS)
def test_a_payload_runs_through_no_loader(
    loader: str, forced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    canary = tmp_path / "canary"
    try:
        LOADERS[loader](tmp_path, Payload(canary))
    except UnfooledError as error:
        assert isinstance(error, InputError)
    else:
        assert loader == "class names as text"  # any text is a list of names
    assert not canary.exists()


@pytest.mark.filterwarnings("ignore:Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD:UserWarning")
def test_the_payload_is_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the same files run code where they are loaded carelessly."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    careless: list[Callable[[Path, Payload], object]] = [
        lambda d, p: pickle.loads(pickled(d / "a", p).read_bytes()),
        lambda d, p: torch.load(saved(d / "b", p)),
        lambda d, p: np.load(archive(d / "c.npz", images=boxed(p)), allow_pickle=True)["images"],
    ]
    for i, load in enumerate(careless):
        canary = tmp_path / f"canary{i}"
        load(tmp_path, Payload(canary))
        assert canary.exists()


def test_weights_that_are_no_numbers_are_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save_file

    state = {k: v.clone() for k, v in unfooled.targets.resolve("digits-cnn").module.state_dict().items()}
    next(iter(state.values())).view(-1)[0] = torch.nan
    save_file(state, tmp_path / "w.safetensors")
    words = ["evaluate", "digits-cnn", "--weights", str(tmp_path / "w.safetensors"), "--out", str(tmp_path / "out")]
    assert _app.call(words) == 2
    assert "NaN or infinite" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- the source -------------------------------------------------------------------------------------------------------

CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "pty.spawn", "tempfile.mktemp",
    "torch.hub.load", "torch.hub.load_state_dict_from_url", "torch.jit.load", "yaml.load", "yaml.unsafe_load",
    "yaml.full_load", "np.fromfile", "Markup", "markupsafe.Markup",
}  # fmt: skip
METHODS = {"extractall", "extract", "unpack_archive", "unsafe_load", "load_module"}
ROOMS = {
    "pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "subprocess", "yaml", "ctypes",
    "urllib", "requests", "httpx", "httpx2", "socket", "http", "ftplib", "telnetlib", "tarfile", "xml", "webbrowser",
}  # fmt: skip


def dangers(source: str) -> list[str]:
    """What code that reads untrusted files has no business with, each with its line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [f"{node.lineno}: import {a.name}" for a in node.names if a.name.split(".")[0] in ROOMS]
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] in ROOMS:
            found.append(f"{node.lineno}: from {node.module}")
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in CALLS or name.rpartition(".")[2] in METHODS:
                found.append(f"{node.lineno}: {name}")
            given = {k.arg: k.value for k in node.keywords}
            if name.endswith("torch.load") and ast.unparse(given.get("weights_only", ast.Constant(None))) != "True":
                found.append(f"{node.lineno}: torch.load without weights_only=True")
            if (
                name in ("np.load", "numpy.load")
                and ast.unparse(given.get("allow_pickle", ast.Constant(None))) != "False"
            ):
                found.append(f"{node.lineno}: np.load without allow_pickle=False")
            if name.endswith("Environment") and ast.unparse(given.get("autoescape", ast.Constant(None))) != "True":
                found.append(f"{node.lineno}: {name} without autoescape=True")
            if "shell" in given or "trust_remote_code" in given:
                found.append(f"{node.lineno}: {name} with shell or trust_remote_code")
        elif isinstance(node, ast.Attribute) and node.attr == "MAX_IMAGE_PIXELS":
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("file", sorted(SRC.rglob("*.py")), ids=lambda f: str(f.relative_to(SRC)))
def test_the_source_runs_nothing_that_it_reads(file: Path) -> None:
    found = dangers(file.read_text(encoding="utf-8"))
    if file.name == "_http.py":  # the one place that asks the network, where the user names an address
        found = [danger for danger in found if not danger.endswith("import httpx2")]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "eval(x)", "exec(x)", "import pickle", "from pickle import load", "import subprocess as s", "run(x, shell=1)",
        "import yaml", "yaml.load(f)", "archive.extractall()", "torch.load(p)", "torch.load(p, weights_only=False)",
        "np.load(p)", "np.load(p, allow_pickle=True)", "jinja2.Environment()", "Image.MAX_IMAGE_PIXELS = None",
        "load(x, trust_remote_code=True)", "os.system(x)", "import urllib.request", "torch.hub.load(a, b)",
        "import httpx2",
    ],
)  # fmt: skip
def test_the_lint_sees_each_danger(source: str) -> None:
    assert len(dangers(source)) == 1


@pytest.mark.parametrize("template", sorted(SRC.rglob("*.j2")), ids=lambda path: path.name)
def test_templates_switch_no_escaping_off(template: Path) -> None:
    text = template.read_text(encoding="utf-8").replace('{% include "style.css.j2" %}', "")  # a file of ours, by name
    assert not re.search(r"\|\s*safe\b|autoescape|Markup|\{%-?\s*include|<script", text)
