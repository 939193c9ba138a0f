"""The demo's "cloud" network: small, with batch-norm and two residual blocks; a laptop trains it in a minute."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

SPEC = "edgeprune.digits_net:digits_net"


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Residual(nn.Module):
    """Two 3x3 convolutions around an identity: (N, C, H, W) -> the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _conv(width, width)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        out: Tensor = (x + self.second(self.first(x))).relu()
        return out


class DigitsNet(nn.Module):
    """Five stages for 32x32 images, 0.5 M parameters: (N, 3, 32, 32) -> logits (N, 10)."""

    default_cfg: ClassVar[dict[str, Any]] = {
        "input_size": (3, 32, 32),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
    }

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _conv(3, 32, 2),
            _conv(32, 64),
            Residual(64),
            _conv(64, 128, 2),
            Residual(128),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 32, 32) -> logits (N, 10)."""
        out: Tensor = self.classifier(self.features(x))
        return out


def digits_net() -> DigitsNet:
    """The network with fresh random weights."""
    return DigitsNet()
