"""What every explanation is: rows of numbers, a sentence that carries its own control, and a figure of them."""

import io
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from unfooled.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, SOFT, PALE = "#1d232b", "#5b6673", "#dfe3e8"
"""Text, lesser text, and lines of figures."""

COLOURS = ("#2b6cb0", "#c8571b", "#5a823c", "#825aa0", "#8a6d1d", "#3a8a8a", "#b0436e", "#6b7280", "#1d232b", "#9aa5b1")
"""Told apart in grey and by most eyes; the first is the main thing, the second what is set against it."""


class Explanation(ABC):
    """One measurement that explains something of a target; frozen data, made by a function of this package.

    `rows` are plain numbers and strings, ready for JSON or a table; `sentence` says what they mean together with the
    control or residual they were measured against; `plot` draws them with matplotlib (extra `explain`). It prints as
    its sentence.
    """

    size: ClassVar[tuple[float, float]] = (7.0, 4.2)
    """Width and height of the figure in inches."""

    def __init_subclass__(cls) -> None:
        """Print as the sentence: a dataclass would print every number."""
        cls.__repr__ = Explanation.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        return self.sentence()

    @abstractmethod
    def rows(self) -> list[dict[str, Any]]:
        """Return the numbers, one dict a row, every row with the same keys."""

    @abstractmethod
    def sentence(self) -> str:
        """Return in one or two sentences what was found and what the control says."""

    @abstractmethod
    def draw(self, figure: "Figure") -> None:
        """Draw onto an empty matplotlib figure."""

    def plot(self) -> "Figure":
        """Return the figure; raises MissingExtra where matplotlib is not installed."""
        try:
            from matplotlib import rc_context
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            raise MissingExtra("Figures need matplotlib: pip install 'unfooled[explain]'.") from None
        with rc_context(_STYLE):
            figure = Figure(figsize=self.size, layout="constrained")
            FigureCanvasAgg(figure)
            self.draw(figure)
        return figure

    def image(self, kind: Literal["png", "svg"] = "png", *, dpi: int = 150) -> bytes:
        """Return the figure as the bytes of a PNG or SVG file, the same bytes for the same rows."""
        from matplotlib import rc_context

        figure, buffer = self.plot(), io.BytesIO()
        quiet = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
        with rc_context(_STYLE):
            figure.savefig(buffer, format=kind, dpi=dpi, metadata=quiet)
        return buffer.getvalue()


_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "grid.color": PALE,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "image.interpolation": "nearest",
    "svg.hashsalt": "unfooled",
    "svg.fonttype": "none",
}
