"""Data: every kind of source on small files, and files that lie."""

import io
import json
import os
import struct
import sys
import types
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unfooled.core import data as data_module
from unfooled.core.data import DATASETS, Data, as_labels, check_labels, load_data, read_classes, read_image
from unfooled.errors import InputError, MissingExtra

ROWS = [1081, 1707, 927, 566, 1546, 1276]  # the first digits of the training and of the test set


def said(error) -> str:
    text = str(error.value)
    assert text and "\n" not in text and text[-1] in ".?", f"not one sentence: {text!r}"
    return text


def save_npz(path: Path, **arrays) -> Path:
    np.savez(path, **arrays)
    return path


def save_image(path: Path, array, **how) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path, **how)
    return path


# --- digits ----------------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_and_the_split_is_fixed():
    from sklearn.datasets import load_digits

    train, test = load_data("digits", split="train"), load_data("digits")
    assert (len(train), len(test)) == (1000, 797)
    assert test.x.shape == (797, 1, 8, 8) and test.x.dtype == torch.float32 and test.y.dtype == torch.int64
    assert float(test.x.min()) == 0 and float(test.x.max()) == 1
    rows = [int(f[14:-1]) for f in (*train.files, *test.files)]
    assert sorted(rows) == list(range(1797))  # every digit once, in one split only
    bunch = load_digits()
    both = torch.cat([train.x, test.x])[:, 0].double().numpy()
    np.testing.assert_array_equal(both * 16, bunch.images[rows])
    np.testing.assert_array_equal(torch.cat([train.y, test.y]).numpy(), bunch.target[rows])
    # the split is a promise to whoever quotes a number: these rows may never change
    assert rows[:3] + rows[1000:1003] == ROWS
    assert test.classes == tuple("0123456789")


def test_limit_takes_the_first_and_the_fingerprint_covers_pixels_and_labels():
    whole, part = load_data("digits"), load_data("digits", limit=10)
    assert torch.equal(part.x, whole.x[:10]) and part.files == whole.files[:10]
    assert part.fingerprint() == whole.take(10).fingerprint() != whole.fingerprint()
    moved = Data(part.x.clone(), part.y)
    moved.x[0, 0, 0, 0] += 0.5
    assert moved.fingerprint() != part.fingerprint()
    assert Data(part.x, part.y + 1).fingerprint() != part.fingerprint()


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one_is_refused(limit):
    with pytest.raises(InputError) as error:
        load_data("digits", limit=limit)
    assert str(limit) in said(error)


# --- names and paths -------------------------------------------------------------------------------------------------


def test_unknown_names_and_missing_files_name_the_nearest(tmp_path, monkeypatch):
    with pytest.raises(InputError) as error:
        load_data("digit")
    assert "'digits'" in said(error)
    save_npz(tmp_path / "faces.npz", images=np.zeros((1, 2, 2), np.uint8), labels=[0])
    with pytest.raises(InputError) as error:
        load_data(tmp_path / "face.npz")
    assert "no file" in said(error) and "'faces.npz'" in said(error)
    with pytest.raises(InputError) as error:
        load_data(str(tmp_path / "gone" / "x.npz"))
    assert "no file" in said(error)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError) as error:
        load_data(tmp_path / "notes.txt")
    assert "neither an .npz" in said(error)
    with pytest.raises(InputError) as error:
        load_data(7)
    assert "int" in said(error)
    with pytest.raises(InputError) as error:
        load_data("digits", split="validation")
    assert "validation" in said(error)


def test_a_missing_data_directory_says_what_it_should_hold(tmp_path, monkeypatch):
    monkeypatch.delenv("UNFOOLED_ALLOW_HUB", raising=False)
    with pytest.raises(InputError) as error:
        load_data("mnist", data_dir=tmp_path)
    assert "mnist.npz" in said(error) and "UNFOOLED_DATA" in said(error) and "allow_hub" in said(error)
    with pytest.raises(InputError) as error:
        load_data("cifar10", split="train", data_dir=tmp_path)
    assert "cifar10_train_4.npz" in said(error)
    with pytest.raises(InputError) as error:
        load_data("imagenet-sample", split="train", data_dir=tmp_path)
    assert "no train split" in said(error)


# --- the data directory's formats ------------------------------------------------------------------------------------


@pytest.mark.parametrize("keras", [False, True])
def test_mnist_reads_both_layouts_and_the_environment_variable(tmp_path, monkeypatch, keras):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (6, 28, 28), dtype=np.uint8), np.array([3, 1, 4, 1, 5, 9], np.uint8)
    names = (
        ("x_test", "y_test", "x_train", "y_train")
        if keras
        else ("test_images", "test_labels", "train_images", "train_labels")
    )
    save_npz(tmp_path / "mnist.npz", **dict(zip(names, (images, labels, images[::-1], labels[::-1]), strict=True)))
    monkeypatch.setenv("UNFOOLED_DATA", str(tmp_path))
    test, train = load_data("mnist", limit=4), load_data("mnist", split="train")
    assert test.x.shape == (4, 1, 28, 28) and train.y.tolist() == [9, 5, 1, 4, 1, 3]
    np.testing.assert_array_equal((test.x[:, 0] * 255).round().byte().numpy(), images[:4])


def montage(images: np.ndarray) -> np.ndarray:
    rows = len(images) // 5
    m = images.reshape(rows, 5, 32, 32, 3).transpose(0, 2, 1, 3, 4).reshape(rows * 32, 5 * 32, 3)
    out = io.BytesIO()
    Image.fromarray(m).save(out, "WEBP", lossless=True)
    return np.frombuffer(out.getvalue(), np.uint8)


def test_cifar10_decodes_montages_in_order_and_only_as_many_as_needed(tmp_path):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (2000, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, 2000).astype(np.uint8)
    broken = np.frombuffer(b"RIFF....WEBPnot a picture", np.uint8)
    for i in range(5):
        second = broken if i else montage(images[1000:])
        save_npz(tmp_path / f"cifar10_train_{i}.npz", webp_0=montage(images[:1000]), webp_1=second, labels=labels)
    data = load_data("cifar10", split="train", data_dir=tmp_path, limit=1500)
    assert data.x.shape == (1500, 3, 32, 32) and data.classes[3] == "cat"
    np.testing.assert_array_equal((data.x * 255).round().byte().permute(0, 2, 3, 1).numpy(), images[:1500])
    np.testing.assert_array_equal(data.y.numpy(), labels[:1500])
    with pytest.raises(InputError) as error:
        load_data("cifar10", split="train", data_dir=tmp_path)  # now the damaged ones are needed
    assert "cifar10_train_1.npz" in said(error)


def test_imagenet_sample_reads_pictures_and_orders_class_names_by_label(tmp_path):
    blobs = []
    for grey in (20, 120, 220):
        out = io.BytesIO()
        Image.new("RGB", (8, 8), (grey, grey, grey)).save(out, "JPEG")
        blobs.append(out.getvalue())
    path = save_npz(
        tmp_path / "imagenet_sample.npz",
        jpeg_bytes=np.frombuffer(b"".join(blobs), np.uint8),
        jpeg_offsets=np.cumsum([0, *map(len, blobs)]),
        label=np.array([2, 0, 1]),
        name=np.array(["great_white", "tench", "goldfish"]),
        wnid=np.array(["n3", "n1", "n2"]),
    )
    data = load_data("imagenet-sample", data_dir=tmp_path, limit=2)
    assert data.classes == ("tench", "goldfish", "great white") and data.y.tolist() == [2, 0]
    assert data.files == ("n3.jpg", "n1.jpg")
    assert data.x.mean((1, 2, 3)).tolist() == pytest.approx([20 / 255, 120 / 255], abs=0.01)
    with np.load(path) as z:
        arrays = dict(z)
    arrays["jpeg_offsets"] = arrays["jpeg_offsets"] + 10_000
    save_npz(path, **arrays)
    with pytest.raises(InputError) as error:
        load_data("imagenet-sample", data_dir=tmp_path)
    assert "damaged" in said(error)


DATA_DIR = Path(os.environ.get("UNFOOLED_DATA", "../shared/data"))


@pytest.mark.skipif(not (DATA_DIR / "mnist.npz").is_file(), reason="UNFOOLED_DATA holds no mnist.npz")
def test_the_real_mnist_is_the_original():
    test = load_data("mnist", data_dir=DATA_DIR)
    assert len(test) == DATASETS["mnist"].n["test"] and test.y[:5].tolist() == [7, 2, 1, 0, 4]
    assert torch.bincount(test.y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]  # LeCun's counts


@pytest.mark.skipif(not (DATA_DIR / "cifar10_test.npz").is_file(), reason="UNFOOLED_DATA holds no cifar10_test.npz")
def test_the_real_cifar10_is_read_as_its_readme_says():
    test = load_data("cifar10", data_dir=DATA_DIR)
    assert test.x.shape == (1000, 3, 32, 32)
    assert [test.classes[i] for i in test.y[:6].tolist()] == ["cat", "ship", "ship", "airplane", "frog", "frog"]
    assert test.x.mean((0, 2, 3)).tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.02)  # the usual mean


@pytest.mark.skipif(not (DATA_DIR / "imagenet_sample.npz").is_file(), reason="UNFOOLED_DATA holds no imagenet sample")
def test_the_real_imagenet_sample_is_read():
    data = load_data("imagenet-sample", data_dir=DATA_DIR, limit=5)
    assert data.x.shape == (5, 3, 224, 224) and data.classes[388] == "giant panda" and len(data.classes) == 1000


# --- the hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for huggingface_hub; its download function is set by the test."""
    module = types.ModuleType("huggingface_hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


def test_the_hub_is_asked_only_when_allowed_and_its_parquet_is_read(tmp_path, hub, monkeypatch):
    import duckdb

    rng = np.random.default_rng(2)
    images, labels = rng.integers(0, 256, (3, 28, 28), dtype=np.uint8), [5, 0, 4]
    path, asked = tmp_path / "test.parquet", []
    with duckdb.connect() as db:
        db.execute("CREATE TABLE t (image STRUCT(bytes BLOB, path VARCHAR), label BIGINT)")
        for image, label in zip(images, labels, strict=True):
            out = io.BytesIO()
            Image.fromarray(image).save(out, "PNG")
            db.execute("INSERT INTO t VALUES ({'bytes': ?::BLOB, 'path': 'x.png'}, ?)", [out.getvalue(), label])
        db.execute(f"COPY t TO '{path}' (FORMAT parquet)")

    hub.hf_hub_download = lambda **what: asked.append(what) or str(path)
    monkeypatch.delenv("UNFOOLED_ALLOW_HUB", raising=False)
    with pytest.raises(InputError):
        load_data("mnist", data_dir=tmp_path)
    assert not asked
    data = load_data("mnist", data_dir=tmp_path, allow_hub=True, limit=2)
    assert asked == [
        {"repo_id": "ylecun/mnist", "filename": "mnist/test-00000-of-00001.parquet", "repo_type": "dataset"}
    ]
    np.testing.assert_array_equal((data.x[:, 0] * 255).round().byte().numpy(), images[:2])
    assert data.y.tolist() == [5, 0]
    monkeypatch.setenv("UNFOOLED_ALLOW_HUB", "1")
    assert len(load_data("mnist", data_dir=tmp_path)) == 3


def test_a_hub_that_is_away_or_not_installed_is_a_sentence(tmp_path, hub, monkeypatch):
    def away(**_):
        raise OSError("no route\nsecond line")

    hub.hf_hub_download = away
    with pytest.raises(InputError) as error:
        load_data("mnist", data_dir=tmp_path, allow_hub=True)
    assert "no route" in said(error)
    hub.hf_hub_download = lambda **_: str(save_npz(tmp_path / "x.npz", a=[1]))
    with pytest.raises(InputError) as error:
        load_data("cifar10", data_dir=tmp_path, allow_hub=True)
    assert "uoft-cs/cifar10" in said(error)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra) as error:
        load_data("mnist", data_dir=tmp_path, allow_hub=True)
    assert "unfooled[hub]" in str(error.value)


# --- .npz ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "channels"), [((4, 5, 6), 1), ((4, 5, 6, 3), 3), ((4, 5, 6, 1), 1), ((4, 3, 5, 6), 3), ((4, 1, 5, 6), 1)]
)
@pytest.mark.parametrize("kind", ["uint8", "float32", "float64", "float16"])
def test_npz_layouts_and_dtypes(tmp_path, shape, channels, kind):
    raw = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    images = raw if kind == "uint8" else (raw / 255).astype(kind)
    data = load_data(save_npz(tmp_path / "a.npz", images=images, labels=np.arange(4)))
    assert data.x.shape == (4, channels, 5, 6) and data.x.dtype == torch.float32
    last = raw[..., None] if raw.ndim == 3 else raw if shape[1] == 5 else raw.transpose(0, 2, 3, 1)
    np.testing.assert_allclose(data.x.permute(0, 2, 3, 1).numpy(), last / 255, atol=5e-4 if kind == "float16" else 1e-6)


@pytest.mark.parametrize(
    ("images", "labels", "word"),
    [
        (np.full((3, 4, 4), 2.64, np.float32) * [[[1]], [[0]], [[-0.8]]], [0, 1, 2], "span [-2.112, 2.64]"),
        (np.linspace(0, 255, 32).reshape(2, 4, 4), [0, 1], "divide by 255"),
        (np.zeros((2, 4, 4), np.int64), [0, 1], "int64"),
        (np.zeros((2, 4, 4), np.uint16), [0, 1], "uint16"),
        (np.zeros((2, 4, 4), complex), [0, 1], "complex"),
        (np.zeros((2, 4, 4, 4), np.uint8), [0, 1], "(2, 4, 4, 4)"),
        (np.zeros((2, 16), np.uint8), [0, 1], "(2, 16)"),
        (np.zeros((0, 4, 4), np.uint8), np.zeros(0, int), "no images"),
        (np.uint8(3), [0], "no images"),
        (np.zeros((2, 4, 4), np.uint8), [0, 1, 2], "shape (3,)"),
        (np.zeros((2, 4, 4), np.uint8), ["cat", "dog"], "not numbers"),
        (np.zeros((2, 4, 4), np.uint8), [0, -1], "Label -1 (example 1)"),
        (np.zeros((2, 4, 4), np.uint8), [0.5, 1], "Label 0.5 (example 0)"),
        (np.zeros((2, 4, 4), np.uint8), [0, np.nan], "Label nan (example 1)"),
        (np.zeros((2, 4, 4), np.uint8), [[1, 0], [1, 1]], "row 1 is not one-hot"),
    ],
)
def test_npz_with_wrong_content_is_refused_in_one_sentence(tmp_path, images, labels, word):
    with pytest.raises(InputError) as error:
        load_data(save_npz(tmp_path / "a.npz", images=images, labels=np.asarray(labels)))
    assert word in said(error)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_image_with_a_pixel_that_is_no_number_is_named(tmp_path, value):
    images = np.zeros((5, 4, 4), np.float32)
    images[3, 1, 1:3] = value
    images[4] = value
    with pytest.raises(InputError) as error:
        load_data(save_npz(tmp_path / "a.npz", images=images, labels=np.arange(5)))
    assert "image 3 contains 2 pixels" in said(error) and "1 more" in said(error)


def test_rounding_outside_the_bounds_is_forgiven_and_clamped(tmp_path):
    images = np.array([[[-5e-7, 1 + 5e-7]]], np.float32)
    data = load_data(save_npz(tmp_path / "a.npz", images=images, labels=[0]))
    assert data.x.flatten().tolist() == [0, 1]
    with pytest.raises(InputError):
        load_data(save_npz(tmp_path / "a.npz", images=images * 20, labels=[0]))


class Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return (Path.touch, (self.canary,))


def test_pickles_are_never_run(tmp_path):
    canary = tmp_path / "canary"
    boxed = np.array([Payload(canary)], dtype=object)
    with pytest.raises(InputError) as error:
        load_data(save_npz(tmp_path / "a.npz", images=boxed, labels=[0]))
    assert "Python objects" in said(error)
    with pytest.raises(InputError):
        load_data(save_npz(tmp_path / "b.npz", images=np.zeros((1, 2, 2), np.uint8), labels=boxed))
    import pickle

    (tmp_path / "c.npz").write_bytes(pickle.dumps(Payload(canary)))
    with pytest.raises(InputError) as error:
        load_data(tmp_path / "c.npz")
    assert "no .npz archive" in said(error)
    assert not canary.exists()


def test_an_array_that_declares_more_than_the_file_holds_allocates_nothing(tmp_path):
    def lying(shape) -> bytes:
        header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 64

    good = io.BytesIO()
    np.lib.format.write_array(good, np.zeros(4, np.int64))
    for shape in ((4, 100, 100), (10**7, 1000, 1000), (2**40, 2**40, 2**40)):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("images.npy", lying(shape))
            archive.writestr("labels.npy", good.getvalue())
        with pytest.raises(InputError) as error:
            load_data(tmp_path / "a.npz")
        assert "declares" in said(error)


def test_damaged_archives_are_one_sentence(tmp_path):
    path = save_npz(
        tmp_path / "a.npz",
        images=np.random.default_rng(0).integers(0, 255, (9, 8, 8), dtype=np.uint8),
        labels=np.arange(9),
    )
    whole = path.read_bytes()
    for cut in (0, 10, 100, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError) as error:
            load_data(path)
        said(error)
    flipped = bytearray(whole)
    flipped[200] ^= 0xFF
    path.write_bytes(flipped)
    with pytest.raises(InputError) as error:
        load_data(path)
    said(error)
    with pytest.raises(InputError) as error:
        load_data(save_npz(tmp_path / "b.npz", pictures=np.zeros((1, 2, 2)), labels=[0]))
    assert "'images'" in said(error) and "pictures" in said(error)


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_of_class_folders(tmp_path):
    for name, grey in (("cat", 10), ("ant", 200)):
        for i in range(3):
            save_image(tmp_path / "set" / name / f"{i}.png", np.full((4, 6), grey + i))
    (tmp_path / "set" / "cat" / "readme.txt").write_text("no picture")
    (tmp_path / "set" / ".hidden").mkdir()
    data = load_data(tmp_path / "set")
    assert data.name == "set" and data.classes == ("ant", "cat") and data.x.shape == (6, 1, 4, 6)
    assert data.files == ("ant/0.png", "ant/1.png", "ant/2.png", "cat/0.png", "cat/1.png", "cat/2.png")
    assert data.y.tolist() == [0, 0, 0, 1, 1, 1]
    assert (data.x[:, 0, 0, 0] * 255).round().tolist() == [200, 201, 202, 10, 11, 12]
    assert load_data(tmp_path / "set", limit=2).files == ("ant/0.png", "cat/0.png")  # balanced
    named = load_data(str(tmp_path / "set"), classes=["cat", "dog", "ant"])
    assert named.y.tolist() == [0, 0, 0, 2, 2, 2] and named.classes == ("cat", "dog", "ant")
    with pytest.raises(InputError) as error:
        load_data(tmp_path / "set", classes=["cart", "ant"])
    assert "'cat'" in said(error) and "'cart'" in said(error)


def test_a_list_of_names_names_folders_that_are_numbered(tmp_path):
    for label in (0, 2, 10):
        save_image(tmp_path / str(label) / "a.png", np.full((2, 2), label))
    names = [f"class {i}" for i in range(11)]
    data = load_data(tmp_path, classes=names)
    assert data.y.tolist() == [0, 2, 10] and data.classes == tuple(names)
    with pytest.raises(InputError, match=r"Label 10 is outside 0\.\.9"):
        load_data(tmp_path, classes=names[:10])
    backwards = [str(10 - i) for i in range(11)]  # names that are numbers stay names
    assert load_data(tmp_path, classes=backwards).y.tolist() == [0, 8, 10]


def test_a_photograph_stands_as_the_camera_was_held(tmp_path):
    from PIL import Image, ImageOps

    pixels = Image.fromarray(np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        pixels.save(tmp_path / "a.png", exif=exif)
        with Image.open(tmp_path / "a.png") as file:
            upright = np.array(ImageOps.exif_transpose(file))
        assert (read_image(tmp_path / "a.png")[0] * 255).round().numpy().tolist() == upright.tolist()
    assert upright.tolist() == np.rot90(np.array(pixels)).tolist()  # 8: the camera's top was to the left
    pixels.save(tmp_path / "damaged.png", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff garbage")
    assert tuple(read_image(tmp_path / "damaged.png").shape) == (1, 4, 6)


def test_folders_named_by_numbers_are_labels_in_numeric_order(tmp_path):
    for label in (2, 10, 9):
        save_image(tmp_path / str(label) / "a.png", np.full((2, 2), label))
    data = load_data(tmp_path)
    assert data.y.tolist() == [2, 9, 10] and (data.x[:, 0, 0, 0] * 255).round().tolist() == [2, 9, 10]


@pytest.mark.parametrize(
    ("suffix", "how"), [("png", {}), ("bmp", {}), ("webp", {"lossless": True}), ("jpg", {"quality": 100})]
)
def test_picture_formats(tmp_path, suffix, how):
    colour = np.zeros((8, 8, 3), np.uint8) + np.array([250, 120, 10], np.uint8)
    x = read_image(save_image(tmp_path / f"a.{suffix}", colour, **how))
    assert x.shape == (3, 8, 8)
    assert (x.mean((1, 2)) * 255).tolist() == pytest.approx([250, 120, 10], abs=3)


def test_grey_and_colour_pictures_mix_to_colour(tmp_path):
    save_image(tmp_path / "a" / "0.png", np.full((4, 4), 51))
    save_image(tmp_path / "a" / "1.png", np.full((4, 4, 3), (0, 51, 255)))
    data = load_data(tmp_path)
    assert (data.x[:, :, 0, 0] * 255).round().tolist() == [[51, 51, 51], [0, 51, 255]]


def test_different_sizes_need_resize(tmp_path):
    save_image(tmp_path / "a" / "0.png", np.full((8, 4), 100))
    wide = np.concatenate([np.full((6, 4), 0), np.full((6, 4), 100), np.full((6, 4), 0)], 1)
    save_image(tmp_path / "a" / "1.png", wide)
    with pytest.raises(InputError) as error:
        load_data(tmp_path)
    assert "8 x 4" in said(error) and "6 x 12" in said(error) and "resize" in said(error)
    data = load_data(tmp_path, resize=4)
    assert data.x.shape == (2, 1, 4, 4)
    assert float(data.x[1, 0, :, 1:3].mean()) == pytest.approx(100 / 255, abs=0.02)  # the centre was kept
    assert load_data(tmp_path, resize=(3, 5)).x.shape == (2, 1, 3, 5)
    for size in (0, (2, 0), 100_000):
        with pytest.raises(InputError) as error:
            load_data(tmp_path, resize=size)
        assert "resize" in said(error)


def test_resize_agrees_with_pillow():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 30), dtype=np.uint8)
    x = torch.from_numpy(image)[None, None] / 255
    ours = data_module._resized(x, (13, 11))[0, 0].numpy() * 255
    theirs = np.asarray(Image.fromarray(image).resize((11, 13), Image.Resampling.BILINEAR), float)
    assert np.abs(ours - theirs).max() <= 1.01  # Pillow rounds to grey levels twice


def test_empty_folders_are_refused(tmp_path):
    with pytest.raises(InputError) as error:
        load_data(tmp_path)
    assert "no class folders" in said(error)
    (tmp_path / "cat").mkdir()
    with pytest.raises(InputError) as error:
        load_data(tmp_path)
    assert "no PNG" in said(error)


# --- hostile pictures ------------------------------------------------------------------------------------------------


def png(width: int, height: int) -> bytes:
    """A PNG of a few bytes that declares any size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(9000, 9000), (11_000, 11_000), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_bombs_are_refused_before_they_are_decoded(tmp_path, size, monkeypatch):
    path = tmp_path / "cat" / "bomb.png"
    path.parent.mkdir()
    path.write_bytes(png(*size))
    monkeypatch.setattr(Image.Image, "convert", lambda *a: pytest.fail("it was decoded"))
    with pytest.raises(InputError) as error:
        load_data(tmp_path)
    assert "pixels" in said(error) and "bomb.png" in said(error)


def test_bad_pictures_among_many_are_left_out_counted_and_named(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for i in range(10):
            Image.new("L", (5, 5), 20 * i).save(tmp_path / label / f"{i}.png")
    whole = load_data(tmp_path)
    assert (len(whole), whole.notes) == (20, ())
    (tmp_path / "cat" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    (tmp_path / "cat" / "4.png").write_bytes(png(9000, 9000))
    (tmp_path / "dog" / "0.png").write_bytes(b"")
    data = load_data(tmp_path)
    assert len(data) == len(data.files) == 17
    left = [i for i, name in enumerate(whole.files) if name not in ("cat/3.png", "cat/4.png", "dog/0.png")]
    assert torch.equal(data.x, whole.x[left]) and torch.equal(data.y, whole.y[left])
    (note,) = data.notes
    assert note.startswith("3 of 20 pictures were left out: ")
    assert all(str(tmp_path / name) in note for name in ("cat/3.png", "cat/4.png", "dog/0.png"))
    assert "9000 x 9000 pixels" in note
    assert len(load_data(tmp_path, limit=12)) == 12  # others take the places of the bad ones
    for i in range(10):
        (tmp_path / "dog" / f"{i}.png").write_bytes(b"")
    assert load_data(tmp_path).notes[0].startswith("12 of 20") and load_data(tmp_path).notes[0].endswith("; ...")


def test_an_archive_that_unpacks_to_far_more_than_it_holds_is_not_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, images=np.zeros((2**28 // 100 + 2, 10, 10), np.uint8), labels=np.zeros(3, np.int64))
    assert path.stat().st_size < 2**20
    monkeypatch.setattr(np, "load", lambda *a, **k: pytest.fail("it was unpacked"))
    with pytest.raises(InputError) as error:
        load_data(path)
    assert "more than 200 times" in said(error)


def test_a_header_of_a_size_that_no_header_has_is_refused(tmp_path):
    good = io.BytesIO()
    np.lib.format.write_array(good, np.zeros(4, np.int64))
    text = ("{'descr': '|u1', 'fortran_order': False, 'shape': (" + "1," * 50_000 + "), }").encode() + b"\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text + b"\0" * 64)
        archive.writestr("labels.npy", good.getvalue())
    with pytest.raises(InputError) as error:
        load_data(tmp_path / "a.npz")
    assert "cannot be read as plain arrays" in said(error)


def test_a_file_is_what_it_is_and_not_what_it_is_called(tmp_path):
    folder = tmp_path / "cat"
    folder.mkdir()
    wrong = {
        "eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "text.jpg": b"hello",
        "empty.webp": b"",
        "cut.png": png(20, 20)[:48],
    }
    gif = io.BytesIO()
    Image.new("L", (3, 3)).save(gif, "GIF")
    wrong["gif.png"] = gif.getvalue()
    for name, blob in wrong.items():
        (folder / name).write_bytes(blob)
        with pytest.raises(InputError) as error:
            load_data(tmp_path)
        assert name in said(error)
        (folder / name).unlink()


def test_animations_and_deep_pictures_are_refused(tmp_path):
    path = tmp_path / "a.webp"
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    with pytest.raises(InputError) as error:
        read_image(path)
    assert "animated" in said(error)
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(InputError) as error:
        read_image(tmp_path / "b.png")
    assert "8 bits" in said(error)


def test_too_large_a_file_is_not_opened(tmp_path, monkeypatch):
    path = save_image(tmp_path / "a.png", np.zeros((4, 4)))
    monkeypatch.setattr(data_module, "MAX_FILE_BYTES", 10)
    with pytest.raises(InputError) as error:
        read_image(path)
    assert "larger" in said(error)
    with pytest.raises(InputError) as error:
        read_image(tmp_path / "b.png")
    assert "'a.png'" in said(error)


# --- from Python -----------------------------------------------------------------------------------------------------


def test_a_loader_a_dataset_a_generator_and_a_pair_give_the_same():
    x, y = torch.rand(10, 3, 4, 4), torch.arange(10)
    dataset = torch.utils.data.TensorDataset(x, y)
    for spec in (
        (x, y),
        [x.numpy(), y.numpy()],
        (x.double(), y.int()),
        torch.utils.data.DataLoader(dataset, batch_size=3),
        dataset,
        ((x[i : i + 4], y[i : i + 4]) for i in (0, 4, 8)),
        Data(x, y),
    ):
        data = load_data(spec, limit=7)
        assert torch.equal(data.x, x[:7]) and torch.equal(data.y, y[:7]) and data.y.dtype == torch.int64


def test_a_loader_is_read_no_further_than_the_limit():
    def endless():
        while True:
            yield torch.rand(2, 5), torch.zeros(2, dtype=torch.int64)

    assert len(load_data(endless(), limit=5)) == 5


def test_pairs_keep_their_shape_and_may_have_other_bounds():
    x = torch.rand(4, 7) * 2 - 1
    with pytest.raises(InputError) as error:
        load_data((x, torch.zeros(4)))
    assert "span" in said(error)
    assert torch.equal(load_data((x, torch.zeros(4)), bounds=(-1, 1)).x, x)
    eight = torch.tensor([[0, 255]], dtype=torch.uint8)
    assert load_data((eight, [0])).x.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ([], "no batches"),
        ([torch.rand(2, 3), torch.rand(2, 3), torch.rand(2, 3)], "pair"),
        ([(torch.rand(2, 3), torch.zeros(2)), (torch.rand(2, 4), torch.zeros(2)), 0], "shape (4,)"),
        ((torch.rand(0, 3), torch.zeros(0)), "at least one"),
        ((torch.rand(3), torch.zeros(3)), "shape (3,)"),
        ((torch.rand(3, 2), torch.zeros(2)), "shape (2,)"),
        ((torch.rand(3, 2), [[0], [1, 2], [0]]), "different lengths"),
        ((torch.zeros(3, 2, dtype=torch.int32), [0, 1, 2]), "int32"),
    ],
)
def test_wrong_python_values_are_one_sentence(spec, word):
    with pytest.raises(InputError) as error:
        load_data(spec)
    assert word in said(error)


def test_labels_are_converted_only_with_a_word():
    y, note = as_labels(torch.tensor([[1], [2]]), 2)
    assert y.tolist() == [1, 2] and "flattened" in note
    y, note = as_labels(np.eye(3)[[2, 0]], 2)
    assert y.tolist() == [2, 0] and "one-hot" in note
    assert as_labels([3, 4], 2)[1] == ""
    assert "flattened" in load_data((torch.rand(2, 3), torch.tensor([[1], [2]]))).notes[0]


def test_label_range():
    y = torch.tensor([0, 9, 10, 11])
    with pytest.raises(InputError) as error:
        check_labels(y, 10)
    assert "Label 10 is outside 0..9 (example 2 and 1 more)" in said(error)
    check_labels(y, 12)
    with pytest.raises(InputError):
        check_labels(y, 12, offset=1)
    with pytest.raises(InputError):
        load_data((torch.rand(4, 2), y), classes=["a", "b"])


def test_class_names_from_files(tmp_path):
    (tmp_path / "a.txt").write_text("cat\n\n dog \n", encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps(["cat", "dog"]))
    (tmp_path / "c.json").write_text(json.dumps({"1": "dog", "0": "cat"}))
    for name in ("a.txt", "b.json", "c.json"):
        assert read_classes(tmp_path / name) == ("cat", "dog")
    for name, text, word in (
        ("d.json", '{"1": "dog"}', "class 0"),
        ("e.json", "[1, 2]", "list of names"),
        ("f.json", "[", "readable"),
        ("g.txt", "", "one class name"),
        ("h.json", "[" * 10**5, "readable"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError) as error:
            read_classes(tmp_path / name)
        assert word in said(error)
    (tmp_path / "i.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError):
        read_classes(tmp_path / "i.txt")
    with pytest.raises(InputError) as error:
        read_classes(tmp_path / "names.txt")
    assert "no file" in said(error)
