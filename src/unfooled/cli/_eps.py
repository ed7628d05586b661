"""`unfooled eps`: one size of change in the three units that people write it in."""

import math
import sys
from fractions import Fraction
from typing import Literal

from unfooled._numbers import parse_number
from unfooled.cli import _words
from unfooled.errors import InputError

Unit = Literal["unit", "signed", "8bit"]

# how wide the whole range of a pixel is in each unit
_WIDTH: dict[Unit, int] = {"unit": 1, "signed": 2, "8bit": 255}
_NAMES: dict[Unit, str] = {"unit": "inputs in [0, 1]", "signed": "inputs in [-1, 1]", "8bit": "8-bit grey levels"}
_SLIDE = (
    'A slide that many have copied says "1/127 = 0.08" and means inputs in [-1, 1]. There 1/127 is 0.0079, about one '
    "grey level, and 0.08 is about ten, which the eye sees; for inputs in [0, 1] they are about two and twenty."
)


def eps(value: str, /, *, unit: Unit = "unit", json: _words.Flag = False) -> None:
    """Convert an eps between [0, 1], [-1, 1] and 8-bit units, and say what survives rounding to 8 bits.

    A slide that many have copied reads 1/127 as 0.08; try `unfooled eps 1/127 --unit signed`: it is 0.0079.

    Parameters
    ----------
    value
        The eps, such as 8/255 or 0.03.
    unit
        What the number counts: `unit` for inputs in [0, 1], `signed` for inputs in [-1, 1], `8bit` for grey levels.
    json
        Print the numbers as JSON.
    """
    share = fraction_of_range(value, unit)
    size = {name: share * width for name, width in _WIDTH.items()}
    remarks = [survival(size["8bit"])]
    if share > 0.5:
        remarks.append("It is more than half of the range: any image can be turned into plain grey.")
    if unit != "8bit" and any(math.isclose(size[unit], said, rel_tol=0.02) for said in (1 / 127, 0.08)):
        remarks.append(_SLIDE)
    if json:
        import json as json_

        sys.stdout.write(json_.dumps({**size, "remarks": remarks}) + "\n")
        return
    rows = [(_NAMES[name], f"{size[name]:.6g}", _in_grey_levels(size[name], width)) for name, width in _WIDTH.items()]
    for name, number, fraction in rows:
        sys.stdout.write(f"{name:<18}  {number:<10}  {fraction}".rstrip() + "\n")
    sys.stdout.write("\n".join(["", *remarks]) + "\n")


def fraction_of_range(text: str, unit: Unit) -> float:
    """Return the eps as a share of the whole range of a pixel; raises InputError when it is no size of a change."""
    number = parse_number(text)
    if not (math.isfinite(number) and number >= 0):
        raise InputError(f"eps must be 0 or larger, not {text.strip()}.")
    share = number / _WIDTH[unit]
    if share > 1:
        meant = f" Did you mean {number:g}/255, or --unit 8bit?" if unit != "8bit" and number <= 255 else ""
        raise InputError(f"eps={number:g} is {share:.3g} times the whole range of {_NAMES[unit]}.{meant}")
    return share


def survival(levels: float) -> str:
    """Say in a sentence what is left of a change of `levels` grey levels after rounding to 8 bits."""
    whole = math.floor(levels * (1 + 1e-9) + 1e-12)
    if levels == 0:
        return "Nothing may change."
    if levels < 0.5 * (1 - 1e-9):
        return (
            "Nothing survives rounding to 8 bits: it is below half a grey level, so every changed pixel rounds back to "
            "what it was. Such a change exists in floating point only, not in a saved picture."
        )
    if whole == 0:
        return (
            "Below one grey level: rounding to 8 bits undoes the change or makes it a whole grey level, more than this "
            "eps. No saved picture that differs stays inside it."
        )
    levels_text = "1 grey level survives" if whole == 1 else f"{whole} grey levels survive"
    if math.isclose(levels, whole, rel_tol=1e-6):
        return f"{levels_text} rounding to 8 bits."
    return f"{levels_text} rounding to 8 bits inside this eps; the remaining {levels - whole:.2g} of a level does not."


def _in_grey_levels(size: float, width: int) -> str:
    if width == 255:
        return ""
    fraction = Fraction(size * 255).limit_denominator(2)
    return f"{fraction}/255" if fraction.denominator == 1 and math.isclose(size * 255, fraction, rel_tol=1e-6) else ""
