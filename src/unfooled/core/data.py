"""Data: images and true labels under one type, read from a name, a file, a folder, a loader or a pair, and checked.

Files are untrusted: nothing is unpickled, sizes are checked before anything is decoded, and every refusal is one
sentence of `InputError` that says how to mend it.
"""

import hashlib
import io
import json
import math
import os
import warnings
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unfooled.errors import InputError, MissingExtra, nearest

Split: TypeAlias = Literal["train", "test"]
Size: TypeAlias = int | tuple[int, int]

MAX_PIXELS = 50_000_000
"""Largest picture that is decoded, in pixels; the size is read from the header first."""

MAX_FILE_BYTES = 256 * 2**20
"""Largest single picture file that is opened, in bytes."""

MAX_VALUES = 2**32
"""Most numbers that an array of an .npz may declare (16 GiB as float32)."""

MAX_RATIO = 200
"""How many times its size in the file an array of more than 256 MiB may have: what unpacks to more is a bomb."""

_NAMED = 5  # pictures left out that a note names

FORGIVEN = 1e-6
"""Values outside the bounds by no more than this share of the range are rounding and are clamped."""

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}


@dataclass(frozen=True, eq=False)
class Data:
    """Images x, float32 [n, c, h, w] in [0, 1] (or [n, ...] from Python), and true labels y, int64 [n].

    `classes` holds one name per label, `files` where each image came from, `notes` what was converted on the way,
    in sentences.
    """

    x: Tensor
    y: Tensor
    name: str = "data"
    classes: tuple[str, ...] | None = None
    files: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.x)

    def __repr__(self) -> str:
        """Return the name and the shape."""
        return f"Data({self.name!r}, {tuple(self.x.shape)})"

    def take(self, limit: int | None) -> "Data":
        """Return the first `limit` examples, all of them for None; raises InputError when `limit` is below 1."""
        if limit is None or limit >= len(self):
            return self
        _positive(limit)
        files = self.files[:limit] if self.files else None
        return replace(self, x=self.x[:limit], y=self.y[:limit], files=files)

    def only(self, rows: Tensor) -> "Data":
        """Return the examples at the places `rows`, int64 [k], in that order."""
        files = tuple(self.files[i] for i in rows.tolist()) if self.files else None
        return replace(self, x=self.x[rows.to(self.x.device)], y=self.y[rows.to(self.y.device)], files=files)

    def fingerprint(self) -> str:
        """Return the SHA-256 of shape, pixels and labels, as hexadecimal text."""
        digest = hashlib.sha256(repr(tuple(self.x.shape)).encode())
        for part in (self.x, self.y):
            digest.update(np.ascontiguousarray(part.detach().cpu().numpy()).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class DatasetInfo:
    """One data set that loads by name; `shape` is [c, h, w] and `n` the number of images per split.

    `paper` and `source` say whose it is, `doc` what is loaded, `file` what the data directory must hold, `hub` where
    the Hugging Face hub has it.
    """

    name: str
    paper: str
    source: str
    n: dict[Split, int]
    shape: tuple[int, int, int]
    classes: tuple[str, ...] | None
    doc: str
    file: dict[Split, tuple[str, ...]] | None = None
    hub: "HubFiles | None" = None


@dataclass(frozen=True)
class HubFiles:
    """Where the Hugging Face hub has a data set: one Parquet file per split, a column of pictures, one of labels."""

    repo: str
    path: dict[Split, str]
    image: str
    label: str = "label"


_DIGITS = tuple("0123456789")
_CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

DATASETS: dict[str, DatasetInfo] = {
    info.name: info
    for info in (
        DatasetInfo(
            "digits",
            "Kaynak 1995 (Methods of combining multiple classifiers, MSc thesis); UCI Optical Recognition test set",
            "scikit-learn, load_digits",
            {"train": 1000, "test": 797},
            (1, 8, 8),
            _DIGITS,
            "Handwritten digits, 17 grey levels divided by 16. A fixed permutation, RandomState(0).permutation(1797), "
            "mixes the writers: its first 1,000 are the training set, its last 797 the test set.",
        ),
        DatasetInfo(
            "mnist",
            "LeCun, Bottou, Bengio, Haffner 1998, Gradient-based learning applied to document recognition",
            "mnist.npz in the data directory, or ylecun/mnist on the Hugging Face hub",
            {"train": 60_000, "test": 10_000},
            (1, 28, 28),
            _DIGITS,
            "The full set in its original order.",
            {"train": ("mnist.npz",), "test": ("mnist.npz",)},
            HubFiles(
                "ylecun/mnist",
                {"train": "mnist/train-00000-of-00001.parquet", "test": "mnist/test-00000-of-00001.parquet"},
                "image",
            ),
        ),
        DatasetInfo(
            "cifar10",
            "Krizhevsky 2009, Learning multiple layers of features from tiny images",
            "cifar10_train_0..4.npz and cifar10_test.npz in a data directory, or uoft-cs/cifar10 on the hub",
            {"train": 50_000, "test": 1000},
            (3, 32, 32),
            _CIFAR,
            "Test is the first 1,000 test images, the customary set of robustness papers, wherever it is read from.",
            {"train": tuple(f"cifar10_train_{i}.npz" for i in range(5)), "test": ("cifar10_test.npz",)},
            HubFiles(
                "uoft-cs/cifar10",
                {
                    "train": "plain_text/train-00000-of-00001.parquet",
                    "test": "plain_text/test-00000-of-00001.parquet",
                },
                "img",
            ),
        ),
        DatasetInfo(
            "imagenet-sample",
            "Deng et al. 2009, ImageNet; Russakovsky et al. 2015, arXiv:1409.0575",
            "imagenet_sample.npz in the data directory",
            {"train": 0, "test": 1000},
            (3, 224, 224),
            None,
            "One picture per class, 224 x 224; the labels are the usual 0 to 999.",
            {"train": (), "test": ("imagenet_sample.npz",)},
        ),
    )
}


def load_data(
    spec: Any,
    *,
    split: Split = "test",
    limit: int | None = None,
    data_dir: str | Path | None = None,
    resize: Size | None = None,
    classes: Sequence[str] | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    allow_hub: bool | None = None,
) -> Data:
    """Read and check images and labels.

    Args:
        spec: a name of `DATASETS`; the path of an `.npz` with `images` (uint8, or float within the bounds; NHW, NHWC or
            NCHW, the last where both readings fit; or vectors, floats [n, d]) and `labels`; the path of a folder of
            class folders of PNG, JPEG, WebP or BMP files; a `Data`; a pair (x, y) of arrays or tensors; a Dataset; or
            any iterable of batches (x, y), such as a DataLoader.
        split: which half of a named data set.
        limit: take the first `limit` examples. A folder is read class by class in the order of file names, so the
            first examples are spread evenly over its classes instead.
        data_dir: where named data sets lie; default the variable UNFOOLED_DATA, then ../shared/data.
        resize: an int makes the shorter side this long and keeps the centre square; (h, w) stretches.
        classes: one name per label; for a folder also which class folder has which label, unless the folders are named
            numbers, which are labels.
        bounds: what float images are checked against; uint8 images are divided by 255.
        allow_hub: fetch named data from the Hugging Face hub when the data directory has it not; default the variable
            UNFOOLED_ALLOW_HUB (1 allows).

    Raises:
        InputError: nothing by that name, a damaged or hostile file, pixels that are NaN or outside the bounds, labels
            that are none, no examples at all.
        MissingExtra: the hub is asked for and huggingface_hub is not installed.
    """
    if split not in ("train", "test"):
        raise InputError(f"Unknown split {split!r}: use 'test' or 'train'.")
    if limit is not None:
        _positive(limit)
    if isinstance(spec, (str, os.PathLike)):
        data = _by_string(
            os.fspath(spec),
            split=split,
            limit=limit,
            data_dir=data_dir,
            resize=resize,
            classes=classes,
            bounds=bounds,
            allow_hub=allow_hub,
        )
    elif isinstance(spec, Data):
        data = _checked(spec.x, spec.y, spec, bounds)
    elif _is_pair(spec):
        data = _from_pair(spec[0], spec[1], bounds)
    elif isinstance(spec, Iterable) or (hasattr(spec, "__getitem__") and hasattr(spec, "__len__")):
        data = _from_batches(spec, limit, bounds)
    else:
        raise InputError(
            f"Data must be a name, a path, a pair (x, y) or an iterable of batches (x, y), not {type(spec).__name__}."
        )
    data = data.take(limit)
    if resize is not None:
        data = replace(data, x=_resized(data.x, resize))
    if classes is not None:
        check_labels(data.y, len(classes))
        data = replace(data, classes=tuple(classes))
    return data


def load_alike(spec: Any, like: Data, *, classes: Sequence[str] | None = None, **how: Any) -> Data:
    """Read further data as `load_data` does; class folders get the labels that `like` has for classes of their names.

    Raises InputError as `load_data`, and for a folder of a class that `like` has not; for other data see `check_names`.
    """
    folder = (
        isinstance(spec, (str, os.PathLike)) and os.fspath(spec) not in DATASETS and Path(spec).expanduser().is_dir()
    )
    return load_data(spec, classes=like.classes if classes is None and folder else classes, **how)


def check_names(data: Data, like: Data) -> None:
    """Raise InputError where a label of the data has another class name than in `like`; without names nothing is known.

    Labels that no example has are not looked at.
    """
    if data.classes is None or like.classes is None:
        return
    for label in sorted(set(data.y.tolist())):
        name, known = (each.classes[label : label + 1] for each in (data, like) if each.classes)
        if name and name != known:
            said = f"calls it {known[0]!r}" if known else f"knows {len(like.classes)} classes and not this one"
            raise InputError(
                f"{data.name} calls label {label} {name[0]!r}, {like.name} {said}: "
                "give both the same class names, one per label (--classes, or classes= of load_data)."
            )


def check_labels(y: Tensor, classes: int, offset: int = 0) -> None:
    """Raise InputError when a label of y, int64 [n], is outside 0..classes-1 after adding `offset`."""
    wrong = ((y + offset < 0) | (y + offset >= classes)).nonzero().flatten()
    if len(wrong):
        first = int(wrong[0])
        more = f" and {len(wrong) - 1:,} more" if len(wrong) > 1 else ""
        raise InputError(
            f"Label {int(y[first]) + offset} is outside 0..{classes - 1} (example {first}{more}): "
            f"the labels belong to another set of classes than these {classes}."
        )


def as_labels(y: Any, n: int) -> tuple[Tensor, str]:
    """Return labels as int64 [n] and a sentence about what was converted ("" for nothing).

    Takes integers [n], [n, 1] and one-hot [n, k]; raises InputError for anything else, negative labels included.
    """
    try:
        array = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    except (ValueError, TypeError):
        raise InputError("Labels have rows of different lengths; expected one integer per image.") from None
    if array.dtype.kind not in "iufb":
        raise InputError(f"Labels are {array.dtype}, not numbers; expected one integer from 0 per image.")
    said = ""
    if array.ndim == 2 and array.shape == (n, 1):
        said, array = f"Labels had shape {array.shape}; they were flattened.", array[:, 0]
    elif array.ndim == 2 and len(array) == n and array.size:
        hot = ((array == 0) | (array == 1)).all(1) & (array.sum(1) == 1)
        if not hot.all():
            raise InputError(
                f"Labels have shape {array.shape} and row {int(np.argmin(hot))} is not one-hot; expected shape ({n},)."
            )
        said, array = f"Labels were one-hot of shape {array.shape}; they were converted.", array.argmax(1)
    if array.shape != (n,):
        raise InputError(f"Labels have shape {array.shape} for {n:,} images; expected ({n},).")
    whole = np.isfinite(array) & (array == np.floor(array)) & (array >= 0) & (array < 2**31)
    if not whole.all():
        first = int(np.argmin(whole))
        raise InputError(f"Label {array[first]} (example {first}) is no class: labels are whole numbers from 0.")
    return torch.from_numpy(array.astype(np.int64)), said


def read_classes(path: str | Path) -> tuple[str, ...]:
    """Return class names from a text file with one name per line, or JSON: a list, or an object {"0": "name", ...}.

    Raises InputError when there is no such file, it is no such text, or it is empty.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no file of class names at {str(path)!r}.{_neighbours(path)}")
    try:
        text = path.read_bytes()[: 2**24].decode("utf-8-sig")
        named = (
            json.loads(text) if path.suffix.lower() == ".json" else [s for s in map(str.strip, text.splitlines()) if s]
        )
        if isinstance(named, dict):
            named = [named[str(i)] for i in range(len(named))]
    except (ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r} is no readable list of class names: {_short(error)}.") from None
    except KeyError as error:
        raise InputError(f"{str(path)!r} names no class {error.args[0]}: number them from 0 without gaps.") from None
    if not isinstance(named, list) or not named or not all(isinstance(s, str) for s in named):
        raise InputError(f"{str(path)!r} must hold one class name per line, or a JSON list of names.")
    return tuple(named)


# --- strings ---------------------------------------------------------------------------------------------------------


def _by_string(
    spec: str,
    *,
    split: Split,
    limit: int | None,
    data_dir: str | Path | None,
    resize: Size | None,
    classes: Sequence[str] | None,
    bounds: tuple[float, float],
    allow_hub: bool | None,
) -> Data:
    if spec in DATASETS:
        return _named(DATASETS[spec], split, limit, data_dir, allow_hub=allow_hub)
    path = Path(spec).expanduser()
    if path.is_dir():
        return _from_folder(path, limit, resize, classes)
    if not path.exists():
        if path.suffix or os.sep in spec or "/" in spec:
            raise InputError(f"There is no file or folder at {spec!r}.{_neighbours(path)}")
        raise InputError(
            f"Unknown data set {spec!r}: use {', '.join(DATASETS)}, an .npz file or a folder.{nearest(spec, DATASETS)}"
        )
    if path.suffix.lower() != ".npz":
        raise InputError(f"{spec!r} is neither an .npz file nor a folder of class folders of images.")
    arrays = _npz(path, ("images", "labels"))
    data = _from_arrays(arrays["images"], arrays["labels"], path.name, bounds, limit)
    return replace(data, files=tuple(f"{path.name}[{i}]" for i in range(len(data))))


def _neighbours(path: Path) -> str:
    try:
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    except OSError:
        names = []
    return nearest(path.name, names)


def _named(
    info: DatasetInfo, split: Split, limit: int | None, data_dir: str | Path | None, *, allow_hub: bool | None
) -> Data:
    if info.n[split] == 0:
        raise InputError(f"{info.name} has no {split} split; use the other one.")
    if info.name == "digits":
        return _digits(split, limit)
    assert info.file is not None
    folder = Path(data_dir or os.environ.get("UNFOOLED_DATA") or Path("..", "shared", "data")).expanduser()
    absent = [name for name in info.file[split] if not (folder / name).is_file()]
    if not absent:
        return _READERS[info.name](info, folder, split, limit)
    if allow_hub is None:
        allow_hub = os.environ.get("UNFOOLED_ALLOW_HUB", "").lower() in ("1", "true", "yes")
    if allow_hub and info.hub is not None:
        return _from_hub(info, info.hub, split, limit)
    fetch = ", or allow_hub=True (UNFOOLED_ALLOW_HUB=1) to fetch it from the Hugging Face hub" if info.hub else ""
    raise InputError(
        f"{info.name} needs {', '.join(absent)}, not found in {str(folder)!r}: "
        f"give another data directory (--data-dir or UNFOOLED_DATA){fetch}."
    )


def _digits(split: Split, limit: int | None) -> Data:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtra("The digits data set needs scikit-learn: pip install scikit-learn.") from None
    bunch = load_digits()
    order = np.random.RandomState(0).permutation(1797)  # numpy has frozen RandomState's streams
    rows = (order[:1000] if split == "train" else order[1000:])[:limit]
    x = torch.from_numpy(np.ascontiguousarray(bunch.images[rows])).to(torch.float32).div_(16)[:, None]
    y = torch.from_numpy(bunch.target[rows].astype(np.int64))
    return Data(x, y, "digits", _DIGITS, tuple(f"load_digits()[{int(i)}]" for i in rows))


def _mnist(info: DatasetInfo, folder: Path, split: Split, limit: int | None) -> Data:
    path = folder / "mnist.npz"
    ours, keras = (f"{split}_images", f"{split}_labels"), (f"x_{split}", f"y_{split}")
    names = keras if keras[0] in _members(path) else ours
    arrays = _npz(path, names)
    return _from_arrays(arrays[names[0]], arrays[names[1]], info.name, (0.0, 1.0), limit, info.classes)


def _cifar10(info: DatasetInfo, folder: Path, split: Split, limit: int | None) -> Data:
    """Decode lossless WebP montages of 1,000 images, 200 rows of 5, as many as the limit needs."""
    assert info.file is not None
    wanted = min(limit or info.n[split], info.n[split])
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for file in info.file[split]:
        path = folder / file
        montages = sorted((k for k in _members(path) if k.startswith("webp_")), key=lambda k: (len(k), k))
        montages = montages[: math.ceil((wanted - sum(map(len, images))) / 1000)]
        if not montages:
            break
        arrays = _npz(path, ("labels", *montages))
        for k in montages:
            m = _decode(io.BytesIO(arrays[k].tobytes()), f"{file}[{k}]")
            if m.ndim != 3 or m.shape[0] % 32 or m.shape[1] % 32:
                raise InputError(f"{file}[{k}] is no montage of 32 x 32 colour images: its shape is {m.shape}.")
            images.append(m.reshape(-1, 32, m.shape[1] // 32, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3))
        labels.append(arrays["labels"][: 1000 * len(montages)])
    return _from_arrays(np.concatenate(images), np.concatenate(labels), info.name, (0.0, 1.0), wanted, info.classes)


def _imagenet(info: DatasetInfo, folder: Path, split: Split, limit: int | None) -> Data:
    file = "imagenet_sample.npz"
    arrays = _npz(folder / file, ("jpeg_bytes", "jpeg_offsets", "label", "name", "wnid"))
    ends, packed = arrays["jpeg_offsets"].astype(np.int64), arrays["jpeg_bytes"]
    rows = range(min(limit or len(ends) - 1, len(ends) - 1))
    if len(ends) < 2 or (np.diff(ends) < 0).any() or ends[0] < 0 or ends[-1] > len(packed):
        raise InputError(f"{file} is damaged: its jpeg_offsets do not fit its jpeg_bytes.")
    images = [_decode(io.BytesIO(packed[ends[i] : ends[i + 1]].tobytes()), f"{file}[{i}]") for i in rows]
    if len({im.shape for im in images}) > 1:
        raise InputError(f"{file} is damaged: its pictures have different sizes.")
    order = np.argsort(arrays["label"], kind="stable")
    whole = np.array_equal(arrays["label"][order], np.arange(len(order)))
    classes = tuple(str(arrays["name"][i]).replace("_", " ") for i in order) if whole else None
    data = _from_arrays(np.stack(images), arrays["label"][: len(images)], info.name, (0.0, 1.0), limit, classes)
    return replace(data, files=tuple(f"{arrays['wnid'][i]}.jpg" for i in rows))


_READERS: dict[str, Callable[[DatasetInfo, Path, Split, int | None], Data]] = {
    "mnist": _mnist,
    "cifar10": _cifar10,
    "imagenet-sample": _imagenet,
}


def _from_hub(info: DatasetInfo, hub: HubFiles, split: Split, limit: int | None) -> Data:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise MissingExtra(
            f"Fetching {info.name} from the Hugging Face hub needs huggingface_hub: pip install 'unfooled[hub]'."
        ) from None
    try:
        path = hf_hub_download(repo_id=hub.repo, filename=hub.path[split], repo_type="dataset")
    except Exception as error:  # the hub's errors are many and none is ours: offline, refused, moved, disk full
        raise InputError(
            f"{info.name} could not be fetched from the Hugging Face hub ({_short(error)}): "
            f"go online, or put {info.source.split(' in ')[0]} into the data directory."
        ) from None
    try:
        import duckdb
    except ImportError:
        raise MissingExtra("Reading Parquet needs duckdb: pip install duckdb.") from None
    wanted = min(limit or info.n[split], info.n[split])
    query = f'SELECT "{hub.image}".bytes, "{hub.label}" FROM read_parquet(?) LIMIT {wanted}'
    try:
        with duckdb.connect() as db:
            rows = db.execute(query, [str(path)]).fetchall()
    except duckdb.Error as error:
        raise InputError(f"{hub.path[split]} of {hub.repo} is not as expected: {_short(error)}.") from None
    if not rows:
        raise InputError(f"{hub.path[split]} of {hub.repo} holds no images.")
    images = [_decode(io.BytesIO(blob), f"{hub.repo}[{i}]") for i, (blob, _) in enumerate(rows)]
    if len({im.shape for im in images}) > 1:
        raise InputError(f"{hub.path[split]} of {hub.repo} holds pictures of different sizes.")
    return _from_arrays(np.stack(images), [y for _, y in rows], info.name, (0.0, 1.0), wanted, info.classes)


# --- arrays ----------------------------------------------------------------------------------------------------------


def _members(path: Path) -> set[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{str(path)!r} is no .npz archive: {_short(error)}.") from None


def _npz(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Read named arrays; what each declares is compared with what the archive holds before any memory is asked for."""
    held = _members(path)
    for name in names:
        if name not in held:
            raise InputError(
                f"{path.name} has no array {name!r}, it has {', '.join(sorted(held)) or 'none'}: "
                f"save it with np.savez(file, {', '.join(f'{k}=...' for k in names)})."
            )
    try:
        with zipfile.ZipFile(path) as archive:
            for name in names:
                entry = archive.getinfo(f"{name}.npy")
                if entry.file_size > 2**28 and entry.file_size > MAX_RATIO * max(entry.compress_size, 1):
                    raise InputError(
                        f"{path.name}: the array {name!r} unpacks to {entry.file_size:,} bytes, "
                        f"more than {MAX_RATIO} times what the file holds; nothing was loaded."
                    )
                with archive.open(entry) as stream:
                    declared = _declared(stream)
                if declared[0] > MAX_VALUES or declared[1] > entry.file_size:
                    raise InputError(
                        f"{path.name}: the array {name!r} declares {declared[0]:,} numbers, more than "
                        f"{'is read here' if declared[0] > MAX_VALUES else 'the file holds'}; nothing was loaded."
                    )
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except InputError:
        raise
    except Exception as error:  # damaged archives raise a dozen types from three libraries
        raise InputError(
            f"{path.name} cannot be read as plain arrays ({_short(error)}): save numbers, not Python objects."
        ) from None


def _declared(stream: IO[bytes]) -> tuple[int, int]:
    """Return the numbers and the bytes that a .npy header declares."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects")
    count = math.prod(int(s) for s in shape)
    return count, count * dtype.itemsize


def _from_arrays(
    images: np.ndarray,
    labels: Any,
    name: str,
    bounds: tuple[float, float],
    limit: int | None,
    classes: tuple[str, ...] | None = None,
) -> Data:
    """Return checked Data from images NHW, NHWC or NCHW and labels; only the first `limit` are converted."""
    if images.ndim == 0 or len(images) == 0:
        raise InputError(f"{name} holds no images.")
    try:
        y, said = as_labels(labels, len(images))
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    x = torch.from_numpy(np.ascontiguousarray(_pixels(_channels_first(images[:limit], name), name)))
    return _checked(x, y[:limit], Data(x, y[:limit], name, classes, None, (said,) if said else ()), bounds)


def _channels_first(images: np.ndarray, name: str) -> np.ndarray:
    """Return [n, c, h, w] from NHW, NHWC or NCHW with 1 or 3 channels; vectors of floats [n, d] stay as they are."""
    if images.ndim == 2 and images.shape[1] and images.dtype.kind == "f":
        return images
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return images
    if images.ndim == 4 and images.shape[3] in (1, 3):
        return images.transpose(0, 3, 1, 2)
    raise InputError(
        f"{name}: images have shape {images.shape}; expected [n, h, w], [n, h, w, c] or [n, c, h, w], c = 1 or 3, "
        "or vectors of floats [n, d]."
    )


def _pixels(images: np.ndarray, name: str) -> np.ndarray:
    """Return float32: uint8 divided by 255, floats as they are."""
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    if images.dtype.kind == "f":
        return images.astype(np.float32, copy=True)
    raise InputError(f"{name}: images are {images.dtype}; use uint8 from 0 to 255, or floats from 0 to 1.")


def _is_pair(spec: Any) -> bool:
    return isinstance(spec, (tuple, list)) and len(spec) == 2 and isinstance(spec[0], (Tensor, np.ndarray))


def _from_pair(x: Any, y: Any, bounds: tuple[float, float]) -> Data:
    """Return Data from arrays in the model's own layout, [n, ...]."""
    array = x.detach().cpu().numpy() if isinstance(x, Tensor) else x
    if array.ndim < 2 or len(array) == 0:
        raise InputError(f"x has shape {tuple(array.shape)}; expected a batch [n, ...] of at least one input.")
    pixels = torch.from_numpy(np.ascontiguousarray(_pixels(array, "x")))
    labels, said = as_labels(y, len(pixels))
    return _checked(pixels, labels, Data(pixels, labels, notes=(said,) if said else ()), bounds)


def _from_batches(spec: Any, limit: int | None, bounds: tuple[float, float]) -> Data:
    if isinstance(spec, torch.utils.data.Dataset) and not isinstance(spec, torch.utils.data.IterableDataset):
        spec = torch.utils.data.DataLoader(spec, batch_size=64)
    xs: list[Tensor] = []
    ys: list[Tensor] = []
    for batch in spec:
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise InputError(f"A batch must be a pair (x, y), not {type(batch).__name__}.")
        part = _from_pair(torch.as_tensor(batch[0]), batch[1], bounds)
        if xs and part.x.shape[1:] != xs[0].shape[1:]:
            raise InputError(
                f"Batch {len(xs)} has inputs of shape {tuple(part.x.shape[1:])}, others {tuple(xs[0].shape[1:])}."
            )
        xs.append(part.x)
        ys.append(part.y)
        if limit is not None and sum(map(len, xs)) >= limit:
            break
    if not xs:
        raise InputError("The loader gave no batches: the data set is empty.")
    return Data(torch.cat(xs), torch.cat(ys))


def _checked(x: Tensor, y: Tensor, made: Data, bounds: tuple[float, float]) -> Data:
    """Return `made` with images that are finite and inside the bounds, clamped where float rounding left them."""
    if len(x) == 0:
        raise InputError(f"{made.name} holds no images.")
    odd = (~torch.isfinite(x)).flatten(1).sum(1)  # [n]
    if bool(odd.any()):
        first, more = int(odd.nonzero()[0]), int((odd > 0).sum()) - 1
        raise InputError(
            f"{made.name}: image {first} contains {int(odd[first])} pixels that are NaN or infinite"
            f"{f' and {more:,} more images do' if more else ''}: mend them or leave them out."
        )
    low, high = float(x.min()), float(x.max())
    slack = FORGIVEN * (bounds[1] - bounds[0])
    if low < bounds[0] - slack or high > bounds[1] + slack:
        hint = "divide by 255" if low >= 0 and 2 < high <= 255 else "put the normalisation inside the model (mean, std)"
        raise InputError(
            f"{made.name}: pixels span [{low:.4g}, {high:.4g}] but must lie in [{bounds[0]:g}, {bounds[1]:g}]: {hint}; "
            "nothing was attacked."
        )
    if low < bounds[0] or high > bounds[1]:
        x = x.clamp(*bounds)
    return replace(made, x=x, y=y)


def _positive(limit: int) -> None:
    if limit < 1:
        raise InputError(f"limit must be 1 or more, not {limit}.")


# --- pictures --------------------------------------------------------------------------------------------------------


def read_image(path: str | Path, *, resize: Size | None = None) -> Tensor:
    """Return one picture file as float32 [c, h, w] in [0, 1], c = 1 for grey and 3 for colour.

    Raises InputError for a missing, damaged, animated or oversized file and for formats but PNG, JPEG, WebP and BMP.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no picture at {str(path)!r}.{_neighbours(path)}")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"{str(path)!r} is larger than {MAX_FILE_BYTES >> 20} MiB.")
    with path.open("rb") as stream:
        pixels = _decode(stream, str(path))
    x = torch.from_numpy(_pixels(_channels_first(pixels[None], str(path)), str(path)).copy())
    return (x if resize is None else _resized(x, resize))[0]


def _decode(stream: IO[bytes], where: str) -> np.ndarray:
    """Decode one picture to uint8 [h, w] or [h, w, 3]; its size is checked before its pixels are."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise MissingExtra("Reading pictures needs Pillow: pip install pillow.") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(stream, formats=sorted(set(FORMATS.values()))) as im:
                if im.width * im.height > MAX_PIXELS:
                    raise InputError(
                        f"{where} has {im.width} x {im.height} pixels, more than the {MAX_PIXELS:,} that are decoded."
                    )
                if getattr(im, "n_frames", 1) != 1:
                    raise InputError(f"{where} is animated; give a picture with one frame.")
                if im.mode in ("I", "F") or im.mode.startswith("I;"):
                    raise InputError(f"{where} has more than 8 bits per pixel; save it with 8 bits.")
                im.load()
                try:
                    upright = ImageOps.exif_transpose(im)  # as the camera was held
                except Exception:  # damaged EXIF says nothing about the pixels
                    upright = im
                return np.array(upright.convert("L" if im.mode in ("1", "L") else "RGB"))
    except InputError:
        raise
    except Image.UnidentifiedImageError:
        raise InputError(f"{where} is no PNG, JPEG, WebP or BMP picture.") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise InputError(f"{where} has far more pixels than the {MAX_PIXELS:,} that are decoded.") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and more on damaged files
        raise InputError(f"{where} is damaged: {_short(error)}.") from None


def _from_folder(path: Path, limit: int | None, resize: Size | None, classes: Sequence[str] | None) -> Data:
    folders = sorted((p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")), key=lambda p: p.name)
    if not folders:
        raise InputError(
            f"{str(path)!r} has no class folders: put the images of each class into a folder named after it."
        )
    folders, labels, names = _folder_labels(folders, classes)
    per_class = [
        sorted(f for f in folder.iterdir() if f.is_file() and f.suffix.lower() in FORMATS and f.name[0] != ".")
        for folder in folders
    ]
    # turn by turn through the classes, so that a limit keeps them balanced; without one they stay together
    turns = [
        (turn if limit is not None else 0, place, label, file)
        for place, (label, files) in enumerate(zip(labels, per_class, strict=True))
        for turn, file in enumerate(files)
    ]
    if not turns:
        raise InputError(f"{str(path)!r} has class folders but no PNG, JPEG, WebP or BMP files in them.")
    chosen: list[tuple[int, Path]] = []
    images: list[Tensor] = []
    faults: list[InputError] = []
    for _, _, label, file in sorted(turns):
        if len(chosen) == limit:
            break
        try:
            images.append(read_image(file, resize=resize))
        except InputError as error:  # one bad file among thousands is left out, and said
            faults.append(error)
            continue
        chosen.append((label, file))
    if not chosen:
        raise faults[0]
    if any(len(im) == 3 for im in images):
        images = [im.expand(3, -1, -1) for im in images]
    odd = next((i for i, im in enumerate(images) if im.shape != images[0].shape), None)
    if odd is not None:
        (h, w), (h2, w2) = images[0].shape[1:], images[odd].shape[1:]
        raise InputError(
            f"The pictures have different sizes ({chosen[0][1].name} {h} x {w}, {chosen[odd][1].name} {h2} x {w2}): "
            "give resize (--resize), for example 224."
        )
    x, y = torch.stack(images), torch.tensor([label for label, _ in chosen], dtype=torch.int64)
    files = tuple(f"{file.parent.name}/{file.name}" for _, file in chosen)
    notes: tuple[str, ...] = ()
    if faults:
        end = "; ..." if len(faults) > _NAMED else "."
        said = "; ".join(str(fault).rstrip(".") for fault in faults[:_NAMED])
        notes = (f"{len(faults):,} of {len(faults) + len(chosen):,} pictures were left out: {said}{end}",)
    return Data(x, y, path.resolve().name or str(path), names, files, notes)


def _folder_labels(
    folders: list[Path], classes: Sequence[str] | None
) -> tuple[list[Path], list[int], tuple[str, ...] | None]:
    """Return the folders in order of label, their labels, and the class names.

    Labels are places in `classes` where the folders are named after them; else the folders' own numbers where all names
    are numbers (10 after 9), `classes` naming them where given; else places in the sorted list of names.
    """
    names = [p.name for p in folders]
    numbers = all(name.isascii() and name.isdigit() and len(name) < 10 for name in names)
    numbers = numbers and len(set(map(int, names))) == len(names)
    if classes is not None and not (numbers and not set(names) <= set(classes)):
        wanted = {name: i for i, name in enumerate(classes)}
        for name in names:
            if name not in wanted:
                raise InputError(
                    f"The folder {name!r} is none of the {len(wanted)} classes: rename it, or leave it out."
                    f"{nearest(name, wanted)}"
                )
        folders = sorted(folders, key=lambda p: wanted[p.name])
        return folders, [wanted[p.name] for p in folders], tuple(classes)
    if numbers:
        folders = sorted(folders, key=lambda p: int(p.name))
        return folders, [int(p.name) for p in folders], None if classes is None else tuple(classes)
    return folders, list(range(len(names))), tuple(names)


def _resized(x: Tensor, size: Size) -> Tensor:
    """Return x [n, c, h, w] resized (bilinear, antialiased); an int keeps the proportions and the centre square."""
    square = isinstance(size, int)
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise InputError(f"resize must be at least 1 and at most {MAX_PIXELS:,} pixels, not {size}.")
    if x.dim() != 4:
        raise InputError(f"resize needs images [n, c, h, w], not inputs of shape {tuple(x.shape)}.")
    h, w = x.shape[2:]
    if square:
        scale = height / min(h, w)
        tall, wide = max(height, round(h * scale)), max(width, round(w * scale))
        if tall * wide > MAX_PIXELS:
            raise InputError(f"A picture of {h} x {w} pixels is too long and narrow to be resized to {size}.")
    else:
        tall, wide = height, width
    if (tall, wide) != (h, w):
        x = F.interpolate(x, (tall, wide), mode="bilinear", antialias=True, align_corners=False).clamp_(0, 1)
    top, left = (tall - height) // 2, (wide - width) // 2
    return x[:, :, top : top + height, left : left + width].contiguous()


def _short(error: BaseException) -> str:
    """Return the first line of an error's text, at most 120 characters, printable, without its full stop."""
    text = next(iter(str(error).splitlines()), "") or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text)[:120].rstrip(". ")
