"""Pre-activation residual networks for small images (He et al. 2016, Identity mappings, arXiv:1603.05027)."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two 3 x 3 convolutions, each after batch norm and ReLU, added to what came in (their figure 1b).

    Where size or width change, what came in passes a 1 x 1 convolution after the first norm and ReLU.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(before), nn.BatchNorm2d(after)
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        same = stride == 1 and before == after
        self.short = nn.Identity() if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, before, h, w] to [n, after, h / stride, w / stride]."""
        ready = F.relu(self.norm1(x))
        kept = x if isinstance(self.short, nn.Identity) else self.short(ready)
        out: Tensor = kept + self.conv2(F.relu(self.norm2(self.conv1(ready))))
        return out


def residual(stem: nn.Conv2d, widths: Sequence[int], blocks: Sequence[int], classes: int = 10) -> nn.Sequential:
    """Return a stem, stages of blocks whose first halves the image (but not in the first stage), mean and linear."""
    layers: list[nn.Module] = [stem]
    before = stem.out_channels
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        for place in range(count):
            layers.append(Block(before, width, 2 if stage and place == 0 else 1))
            before = width
    end = (nn.BatchNorm2d(before), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))
    return nn.Sequential(*layers, *end)


def cifar_cnn() -> nn.Sequential:
    """Return a network for 32 x 32 colour images: a strided stem and five blocks, 401,482 parameters."""
    return residual(nn.Conv2d(3, 32, 4, 2, 1, bias=False), (32, 64, 128), (2, 2, 1))


def preact_resnet18() -> nn.Sequential:
    """Return ResNet-18 as robust CIFAR-10 training uses it: pre-activation, a 3 x 3 stem, 11,172,170 parameters."""
    return residual(nn.Conv2d(3, 64, 3, 1, 1, bias=False), (64, 128, 256, 512), (2, 2, 2, 2))
