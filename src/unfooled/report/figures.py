"""From numbers to pictures: pure functions that turn rows of a record into PIL images and vega charts."""

import base64
import io
import math
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from unfooled.core.result import CurvePoint

if TYPE_CHECKING:
    import altair as alt
    from PIL import Image, ImageDraw, ImageFont
    from torch import Tensor

Theme = Literal["light", "dark"]
Bounds = tuple[float, float]

# blue and orange keep apart for every common form of colour blindness; grey is for what the attack did not cause
INK = {"light": "#1d232b", "dark": "#e8eaed"}
SOFT = {"light": "#5b6673", "dark": "#a7b0bb"}
GRID = {"light": "#dfe3e8", "dark": "#353d47"}
ROBUST = {"light": "#2b6cb0", "dark": "#6fb1f2"}
BROKEN = {"light": "#c8571b", "dark": "#f2965a"}

FACTORS = [1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100, 120, 150, 200, 250, 300, 400, 500, 1000]


def is_picture(x: "Tensor") -> bool:
    """Return whether one example [c, h, w] can be shown as a picture: one to four channels, at least 2 x 2."""
    return x.ndim == 3 and x.shape[0] in (1, 2, 3, 4) and min(x.shape[1:]) >= 2


def is_strip(x: "Tensor") -> bool:
    """Return whether one example is a sequence [t, f], or [c, h, w] with other channels, to be shown as a strip."""
    return x.ndim in (2, 3) and not is_picture(x) and x.numel() > 0


def picture(x: "Tensor", bounds: Bounds = (0.0, 1.0)) -> "Image.Image":
    """Return one example [c, h, w] in `bounds` as an 8-bit picture: grey for one or two channels, else colour."""
    import numpy as np
    from PIL import Image

    low, high = bounds
    unit = ((x.detach().cpu().double() - low) / (high - low)).nan_to_num(0.5).clamp(0, 1)
    pixels = (unit * 255).round().to(dtype=_uint8()).numpy()
    if pixels.shape[0] >= 3:
        return Image.fromarray(np.ascontiguousarray(pixels[:3].transpose(1, 2, 0)))
    return Image.fromarray(np.ascontiguousarray(pixels[0]))


def strip(x: "Tensor", bounds: Bounds = (0.0, 1.0)) -> "Image.Image":
    """Return a sequence [t, f] (or [c, h, w], channels above one another) as a grey strip, time from left to right."""
    flat = x.reshape(-1, x.shape[-1]) if x.ndim == 3 else x.T  # [rows, columns]
    return picture(flat[None], bounds)


def nice_factor(peak: float, room: float = 0.5) -> float:
    """Return the largest round factor that scales a change of size `peak` (>= 0) to at most `room`; 1 for no change."""
    if not peak > 0 or not math.isfinite(peak):
        return 1
    if room / peak > FACTORS[-1]:
        return 10.0 ** math.floor(math.log10(room / peak))
    return max((f for f in FACTORS if f * peak <= room * 1.0001), default=0.5)


def change(
    x: "Tensor", x_adv: "Tensor", bounds: Bounds = (0.0, 1.0), *, factor: float | None = None
) -> tuple["Tensor", float]:
    """Return mid-grey plus the change scaled by `factor` (shape of x, in [0, 1]), and the factor.

    Without a `factor` the largest round one is taken at which nothing leaves the scale.
    """
    unit = (x_adv.detach().cpu().double() - x.detach().cpu().double()) / (bounds[1] - bounds[0])
    if factor is None:
        factor = nice_factor(float(unit.abs().max()) if unit.numel() else 0.0)
    return (0.5 + factor * unit).clamp(0, 1), factor


def enlarged(image: "Image.Image", side: int) -> "Image.Image":
    """Return `image` fitted into a square of `side` pixels; small pictures keep hard pixel edges."""
    from PIL import Image

    longest = max(image.size)
    if longest < 100:
        times = max(1, side // longest)
        return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    scale = side / longest
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def reduced(image: "Image.Image", side: int) -> "Image.Image":
    """Return `image`, made smaller when its longer edge is over `side` pixels."""
    from PIL import Image

    if max(image.size) <= side:
        return image
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def png(image: "Image.Image") -> bytes:
    """Return `image` as PNG bytes without any metadata."""
    buffer = io.BytesIO()
    clean = image.copy()
    clean.info = {}
    clean.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """Return `content` as a data: address of MIME type `kind`."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def font(size: float) -> "ImageFont.ImageFont | ImageFont.FreeTypeFont":
    """Return the font that ships with Pillow at `size` pixels."""
    from PIL import ImageFont

    return ImageFont.load_default(size)


def drawable(text: str) -> str:
    """Return `text` with what the font has no shape for as "?", accents taken off first where that helps."""
    letters = font(20)
    nothing = letters.getmask("\uffff")
    missing = nothing.getbbox(), bytes(nothing)

    def known(c: str) -> bool:
        shape = letters.getmask(c)
        return c.isspace() or (shape.getbbox(), bytes(shape)) != missing

    def plain(c: str) -> str:
        if known(c):
            return c
        bare = unicodedata.normalize("NFKD", c)[0]
        return bare if known(bare) else "?"

    return text if text.isascii() else "".join(map(plain, text))


def fit_text(draw: "ImageDraw.ImageDraw", text: str, size: float, width: float) -> str:
    """Return `text`, cut with an ellipsis so that it is at most `width` pixels wide at `size`."""
    letters = font(size)
    if draw.textlength(text, font=letters) <= width:
        return text
    while text and draw.textlength(text + "…", font=letters) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def curve_chart(
    points: Sequence[CurvePoint], theme: Theme, *, clean: float | None = None, eps_title: str = "eps"
) -> "alt.LayerChart":
    """Return robust accuracy against eps as a line with its 95% interval; `clean` is drawn as the level at eps 0."""
    import altair as alt

    rows = [{"eps": p.eps, "robust": p.robust_accuracy, "low": p.low, "high": p.high} for p in points]
    x = alt.X("eps:Q", title=eps_title, axis=alt.Axis(tickCount=6), scale=alt.Scale(zero=True))
    scale = alt.Scale(domain=[0, 1])
    y = alt.Y("robust:Q", title="robust accuracy, at most", scale=scale, axis=alt.Axis(format="%", tickCount=5))
    base = alt.Chart(alt.Data(values=rows))
    band = base.mark_area(opacity=0.18, color=ROBUST[theme]).encode(x=x, y=alt.Y("low:Q", scale=scale), y2="high:Q")
    line = base.mark_line(color=ROBUST[theme], strokeWidth=2.5).encode(x=x, y=y)
    dots = base.mark_point(color=ROBUST[theme], filled=True, size=60, opacity=1).encode(x=x, y=y)
    layers: list[Any] = [band, line, dots]
    if clean is not None:
        level = alt.Chart(alt.Data(values=[{"clean": clean, "text": "without attack"}]))
        ink = SOFT[theme]
        layers.append(level.mark_rule(color=ink, strokeDash=[4, 4]).encode(y=alt.Y("clean:Q", scale=scale)))
        over = clean < 0.93
        label = level.mark_text(
            color=ink, align="right", baseline="bottom" if over else "top", dx=-4, dy=-5 if over else 6
        )
        layers.append(label.encode(y=alt.Y("clean:Q", scale=scale), x=alt.value(440), text="text:N"))
    return _styled(alt.layer(*layers), theme, 440, 240)


def histogram(
    values: Sequence[float], theme: Theme, *, title: str, unit: str, bins: int = 20, percent: bool = False,
    extent: tuple[float, float] | None = None, colour: dict[str, str] = BROKEN,
) -> "alt.Chart":  # fmt: skip
    """Return a histogram of `values`; `title` names the x axis, `unit` what is counted."""
    import altair as alt

    edges, counts = counted(values, bins=bins, extent=extent)
    rows = [{"from": a, "to": b, "count": k} for a, b, k in zip(edges, edges[1:], counts, strict=False)]
    axis = alt.Axis(format="%", tickCount=6) if percent else alt.Axis(tickCount=6)
    ends = alt.Scale(domain=[edges[0], edges[-1]], nice=False)
    chart = alt.Chart(alt.Data(values=rows)).mark_bar(color=colour[theme], binSpacing=1)
    return _styled(
        chart.encode(
            x=alt.X("from:Q", title=title, axis=axis, scale=ends, bin="binned"),
            x2="to:Q",
            y=alt.Y("count:Q", title=unit, axis=alt.Axis(tickCount=4, tickMinStep=1, format="d")),
        ),
        theme,
        420,
        170,
    )


def counted(
    values: Sequence[float], *, bins: int = 20, extent: tuple[float, float] | None = None
) -> tuple[list[float], list[int]]:
    """Return the bin edges and counts of `values`; whole numbers get bins that hold equally many of them."""
    import numpy as np

    array = np.asarray([v for v in values if math.isfinite(v)], dtype=float)
    low, high = extent or (float(array.min()), float(array.max()))
    if extent is None and len(array) and bool((array == np.round(array)).all()):
        width = max(1, math.ceil((high - low + 1) / bins))
        edges = np.arange(low, high + width + 0.5, width) - 0.5
    else:
        edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    counts, edges = np.histogram(array, edges)
    return edges.tolist(), counts.tolist()


def svg(chart: Any) -> bytes:
    """Return an altair chart as SVG, drawn without a browser."""
    import vl_convert

    return str(vl_convert.vegalite_to_svg(chart.to_dict(validate=False))).encode("utf-8")


def _styled(chart: Any, theme: Theme, width: int, height: int) -> Any:
    ink, soft, grid = INK[theme], SOFT[theme], GRID[theme]
    axis = {
        "labelColor": ink, "titleColor": ink, "gridColor": grid, "domainColor": soft, "tickColor": soft,
        "labelFontSize": 13, "titleFontSize": 13, "titleFontWeight": "normal", "titlePadding": 8, "domain": False,
    }  # fmt: skip
    return (
        chart.properties(width=width, height=height, background="transparent")
        .configure(font="Helvetica, Arial, sans-serif", padding=6)
        .configure_view(stroke=None)
        .configure_axis(**axis)
    )


def _uint8() -> Any:
    import torch

    return torch.uint8
