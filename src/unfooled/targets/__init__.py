"""Targets: what users name (a zoo name, a file of Python, a timm name, a module) as a `Target` that can be attacked."""

from unfooled.targets._http import http
from unfooled.targets._onnx import onnx
from unfooled.targets._regressor import Regression, regressor
from unfooled.targets._resolve import resolve
from unfooled.targets._sklearn import encode, sklearn
from unfooled.targets._weights import load_weights
from unfooled.targets.train import train
from unfooled.targets.zoo import ZOO, ZooEntry

__all__ = [
    "ZOO",
    "Regression",
    "ZooEntry",
    "encode",
    "http",
    "load_weights",
    "onnx",
    "regressor",
    "resolve",
    "sklearn",
    "train",
]
