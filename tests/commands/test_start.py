"""What a working command sets up before it works."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from edgeprune import absent
from edgeprune.commands import start
from edgeprune.data.pixels import Pixels
from edgeprune.images import Preprocess
from edgeprune.model import Network

FAULTS = """
import resource
import torch
from edgeprune.commands.start import keep_freed_memory

def work():
    for _ in range(5):
        torch.ones(16_000_000)  # 64 MB, freed at once

def faults():
    work()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
print(keep_freed_memory(), first, faults())
"""


def pages(**environment: str) -> tuple[str, int, int]:
    """Whether memory is kept, and page faults of the same work before and after."""
    words = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES" and not k.startswith("MALLOC_")}
    out = subprocess.run(
        [sys.executable, "-c", FAULTS],
        capture_output=True,
        text=True,
        check=True,
        env={**words, **environment},
    ).stdout.split()
    return out[0], int(out[1]), int(out[2])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back at once")
def test_freed_memory_is_kept() -> None:
    kept, before, after = pages()
    assert kept == "True"
    assert before > 100, "each large tensor is mapped anew, even where pages are huge"
    assert after < before / 2  # a machine that takes memory back by itself makes some


def test_what_the_user_says_about_memory_stands() -> None:
    kept, _, _ = pages(MALLOC_MMAP_MAX_="65536")
    assert kept == "False"


LEAST = """
import torch
from edgeprune.commands.start import flush_denormals

able = flush_denormals()
x = torch.full((2_000_000,), 1e-30, requires_grad=True)
y = x * 1e-9  # 1e-39: below the smallest normal number
(y * 1e-9).sum().backward()
print(able, bool(y.any()), bool((x.grad * 1e-21).any()), float(x[0].detach() * 1e7))
"""


@pytest.mark.parametrize("threads", ["1", "2"])
def test_numbers_below_normal_are_none_in_every_thread(threads: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    said = subprocess.run(
        [sys.executable, "-c", LEAST], capture_output=True, text=True, check=True, env=environment
    ).stdout.split()
    if said[0] == "False":
        pytest.skip("this processor has no such mode")
    assert said[1:3] == ["False", "False"]
    assert float(said[3]) == pytest.approx(1e-23, rel=1e-5)


def test_images_of_dropped_classes_have_a_label_that_no_answer_is(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    """The labels of the others index what is left, and one class more dropped leaves these as they are."""
    images = make_images(tmp_path / "i", ("blue", "green", "red"), count=4)
    history = [{"command": "drop-absent-classes", "of": ["blue", "green", "red"]}]
    network = Network(nn.Identity(), "x", Preprocess((8, 8)), ("blue", "red"), "head", history=history)
    found = start.evaluated(images, network, tmp_path / "c")
    assert found.labels is not None
    assert found.labels.tolist() == [0] * 4 + [-1] * 4 + [1] * 4
    assert start.never_right(found) == [
        "--evaluate: 4 of 12 images are of classes that the network dropped, so no answer is right for them"
    ]
    fewer = absent.relabelled(found, ("red",), torch.tensor([1]))
    assert fewer.labels is not None
    assert fewer.labels.tolist() == [-1] * 8 + [0] * 4


def test_a_source_without_some_classes_is_told() -> None:
    network = Network(nn.Identity(), "x", Preprocess((8, 8)), ("a", "b", "c"), "head")
    images = torch.zeros(4, 8, 8, 3, dtype=torch.uint8)
    whole, part = (Pixels(images, torch.tensor(rows), list("wxyz")) for rows in ([0, 1, 2, 2], [0, 2, 2, 0]))
    assert start.lacking(network, None) == start.lacking(network, whole) == []
    assert start.lacking(network, part) == [
        "--source: no image of 1 of 3 classes; what learns from it forgets b"
    ]
