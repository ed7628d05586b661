"""The page on targets beyond torch: its code runs, and does what it says."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from .serving import serving
from .test_onnx import B, W, linear

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "targets-beyond-torch.md").read_text(encoding="utf-8")
BLOCKS = dict(
    zip(
        ("sklearn", "onnx", "http", "regressor", "function"),
        re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL),
        strict=True,
    )
)


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Run a block of the page, after the imports of its first one, and return what it left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODEL_KEY", "a-key")

    def run(name: str, *, port: int = 8000) -> dict:
        scope: dict = {}
        exec("import torch\nimport unfooled as uf\n" + BLOCKS[name].replace(":8000", f":{port}"), scope)
        return scope

    return run


def test_the_scikit_learn_block(page):
    scope = page("sklearn")
    assert scope["found"].success.float().mean() > 0.3 and scope["asked"].success.any()
    assert scope["target"].access == 3 and scope["forest"].access == 2


def test_the_onnx_block(page, tmp_path):
    linear(tmp_path / "model.onnx")
    target = page("onnx")["target"]
    x = torch.rand(3, 4)
    np.testing.assert_allclose(target.scores(x).numpy(), x.numpy() @ W.T + B, rtol=1e-5)


def test_the_http_block(page):
    with serving("a-key") as server:
        scope = page("http", port=server.port)
    assert server.served == scope["target"].module.counts["spent"] <= 500
    assert Path("queries.ledger").is_file() and scope["found"].success.any()


def test_the_regressor_block(page):
    scope = page("regressor")
    found = scope["found"]
    assert found.success.any() and scope["inputs"].shape[1] == 10
    assert torch.equal(scope["moved"].abs() > 20, found.success)


def test_the_block_of_a_function(page):
    assert page("function")["found"].success.all()
