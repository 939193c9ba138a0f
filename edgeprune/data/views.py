"""Random views of a batch: float or uint8 (B, 3, H, W) in 0..255 in, float32 (B, 3, H, W) in 0..255 out.

Every random number comes from the generator that is passed in: the transforms of torchvision draw from the
global one, which belongs to training and cannot be shared with a thread. The operations themselves are
torchvision's.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn.functional import affine_grid, grid_sample
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as ops


def crop_and_flip(images: Tensor, generator: Generator, *, area: tuple[float, float], flip: bool) -> Tensor:
    """Random resized crop (share of the area in `area`, aspect 3/4..4/3, Szegedy et al. 2015), mirror image.

    All images at once by bilinear sampling: crops are enlarged, never reduced, so no anti-aliasing is needed.
    """
    count = len(images)
    share = _uniform(count, generator, *area)
    aspect = _uniform(count, generator, -math.log(4 / 3), math.log(4 / 3)).exp()
    # An aspect that would not fit into the image is cut to what does.
    width, height = (share * aspect).sqrt().clamp(max=1), (share / aspect).sqrt().clamp(max=1)
    x, y = (_uniform(count, generator, -1, 1) * (1 - side) for side in (width, height))
    return _sample(images, (width * _mirror(count, generator, flip), height), (x, y))


def shift_and_flip(images: Tensor, generator: Generator, *, flip: bool, by: float = 0.125) -> Tensor:
    """Mirror image, and a shift by whole pixels of at most `by` of each side (FixMatch, section 2.3).

    The border is reflected.
    """
    count = len(images)
    ones = torch.ones(count)
    x, y = (
        2 / side * (by * side * _uniform(count, generator, -1, 1)).round()
        for side in (images.shape[3], images.shape[2])
    )
    return _sample(images, (ones * _mirror(count, generator, flip), ones), (x, y))


def strong(images: Tensor, generator: Generator, *, flip: bool, count: int = 2) -> Tensor:
    """Flip and shift, `count` operations of random strength, a cutout (FixMatch's RandAugment, appendix D).

    Ours: the cutout is grey and its side up to half of the image's.
    """
    weak = shift_and_flip(images, generator, flip=flip).round().clamp(0, 255).to(torch.uint8)
    out = torch.empty(weak.shape, dtype=torch.float32)
    for i in range(len(weak)):
        image = weak[i]
        for _ in range(count):
            chosen = _OPERATIONS[int(torch.randint(len(_OPERATIONS), (), generator=generator))]
            image = chosen(image, float(_uniform(1, generator, -1, 1)))
        out[i] = _cutout(image, generator)
    return out


def _cutout(image: Tensor, generator: Generator) -> Tensor:
    height, width = image.shape[-2:]
    share, v, u = torch.rand(3, generator=generator).tolist()
    h, w = round(share * height / 2), round(share * width / 2)
    top, left = int(v * height) - h // 2, int(u * width) - w // 2
    image = image.clone()
    image[:, max(0, top) : max(0, top + h), max(0, left) : max(0, left + w)] = 128
    return image


def _affine(
    image: Tensor, angle: float = 0.0, shift: tuple[int, int] = (0, 0), shear: tuple[float, float] = (0, 0)
) -> Tensor:
    moved: Tensor = ops.affine(
        image,
        angle,
        list(shift),
        1.0,
        list(shear),
        interpolation=InterpolationMode.BILINEAR,
        fill=[128.0] * 3,
    )
    return moved


# Each takes uint8 (3, H, W) and a strength in -1..1. The operations and geometric ranges are FixMatch's, appendix D,
# table 12; there brightness, colour, contrast and sharpness are only ever lowered, here raised, too (ours).
_OPERATIONS: tuple[Callable[[Tensor, float], Tensor], ...] = (
    lambda image, s: image,
    lambda image, s: ops.autocontrast(image),
    lambda image, s: ops.equalize(image),
    lambda image, s: ops.adjust_brightness(image, 1 + 0.95 * s if s < 0 else 1 + s * 0.9),
    lambda image, s: ops.adjust_saturation(image, 1 + 0.9 * s),
    lambda image, s: ops.adjust_contrast(image, 1 + 0.9 * s),
    lambda image, s: ops.adjust_sharpness(image, 1 + 0.9 * s),
    lambda image, s: ops.posterize(image, 6 + round(2 * s)),
    lambda image, s: ops.solarize(image, 127.5 * (1 + s)),
    lambda image, s: _affine(image, angle=30 * s),
    lambda image, s: _affine(image, shear=(math.degrees(math.atan(0.3 * s)), 0)),
    lambda image, s: _affine(image, shear=(0, math.degrees(math.atan(0.3 * s)))),
    lambda image, s: _affine(image, shift=(round(0.3 * s * image.shape[-1]), 0)),
    lambda image, s: _affine(image, shift=(0, round(0.3 * s * image.shape[-2]))),
)


def _uniform(count: int, generator: Generator, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _mirror(count: int, generator: Generator, flip: bool) -> Tensor:
    # Drawn also when unused, so that `flip` changes nothing else.
    sign = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    return sign if flip else torch.ones(count)


def _sample(images: Tensor, scale: tuple[Tensor, Tensor], centre: tuple[Tensor, Tensor]) -> Tensor:
    """Read the window `centre` +- `scale` (x, y; the whole image is 0 +- 1) of each image at its own size."""
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = scale
    theta[:, 0, 2], theta[:, 1, 2] = centre
    grid = affine_grid(theta, list(images.shape), align_corners=False)
    return grid_sample(images.to(torch.float32), grid, padding_mode="reflection", align_corners=False)
