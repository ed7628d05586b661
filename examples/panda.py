"""The panda that is a gibbon, on a real ImageNet network: `python -m examples.panda [OUT]` from the repository root.

MobileNetV2 takes the giant panda of the ImageNet sample for a gibbon, an ostrich and a vulture after changes of at most
2/255 per pixel. Network and picture come from the data folder (`UNFOOLED_DATA`, default `../shared/data`); what is
written stays under OUT (default `runs/panda`): for each animal `adversarial.png`, `attack.json` and the figure
`panel.png` with the original, the amplified change, the result, and random noise of the same size as a control.
"""

from __future__ import annotations

import sys
from pathlib import Path

import unfooled as uf
from benchmarks import published
from unfooled.evaluate.single import Look, Single, attack_image
from unfooled.report.panel import Caption, attack_panel

PANDA = 388
WANTED = ("gibbon", "ostrich", "vulture")
EPS = 2 / 255


def panda_target() -> uf.Target:
    """Return MobileNetV2 with the names of its 1,001 classes; class 0 is the background."""
    return uf.Target(
        published.mobilenet_v2(), classes=["background", *published.imagenet_names()], name="MobileNetV2 1.0 224"
    )


def fool(wanted: str, target: uf.Target, out: Path) -> Single:
    """Turn the panda into `wanted` within Linf 2/255, save the image and the figure under `out`, return the record."""
    x, _ = published.images("imagenet", [PANDA])
    single = attack_image(x[0], target, to=wanted, threat=uf.linf(EPS), steps=40, out=out)
    panel = attack_panel(
        single.x,
        single.x_adv,
        single.noise,
        original=caption(single.original),
        adversarial=caption(single.adversarial),
        control=caption(single.control),
        change=f"Linf {single.distance * 255:.0f}/255",
        trace=single.trace,
        note=f"{single.target}, {single.attack}; random noise of the same size fools it in {single.noise_fooled} of "
        f"{single.noise_draws} draws",
    )
    panel.save(out / "panel.png")
    return single


def caption(look: Look) -> Caption:
    """Return what the figure says of one image."""
    return Caption(look.name, look.confidence)


def main(out: Path) -> None:
    """Make the three figures."""
    target = panda_target()
    for wanted in WANTED:
        print(fool(wanted, target, out / wanted))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/panda"))
