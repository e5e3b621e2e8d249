"""The tensors of a ResNet-50, as gradients to communicate; nothing but numbers."""

from __future__ import annotations

import math

Shape = tuple[int, ...]
# He et al., "Deep residual learning for image recognition", table 1: (blocks, width, output channels) of each stage.
_STAGES = ((3, 64, 256), (4, 128, 512), (6, 256, 1024), (3, 512, 2048))
_FILLER: Shape = (1024,)


def _conv_bn(out: int, into: int, kernel: int) -> list[Shape]:
    return [(out, into, kernel, kernel), (out,), (out,)]


def resnet50() -> list[Shape]:
    """All 161 parameters in the order of the model: 25,557,032 elements."""
    shapes = _conv_bn(64, 3, 7)
    into = 64
    for blocks, width, out in _STAGES:
        for block in range(blocks):
            shapes += _conv_bn(width, into, 1) + _conv_bn(width, width, 3) + _conv_bn(out, width, 1)
            if block == 0:
                shapes += _conv_bn(out, into, 1)  # the shortcut
            into = out
    return [*shapes, (1000, 2048), (1000,)]


def resnet50_like(num_tensors: int = 200) -> list[Shape]:
    """The first of :func:`resnet50`, topped up with vectors of 1024 elements: 25,596,968 elements in 200 tensors."""
    shapes = resnet50()[:num_tensors]
    return shapes + [_FILLER] * (num_tensors - len(shapes))


def num_elements(shapes: list[Shape]) -> int:
    """Of all tensors."""
    return sum(math.prod(shape) for shape in shapes)
