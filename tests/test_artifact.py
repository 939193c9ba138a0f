"""Facts beside a file survive, and a write is all or nothing."""

from pathlib import Path

import pytest

from edgeprune import artifact
from edgeprune.artifact import Artifact, TensorSpec
from edgeprune.errors import DataError


def test_sidecar_keeps_the_facts(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"graph")
    spec = TensorSpec("images", ("batch", 3, 8, 8))
    made = Artifact(file, "onnx", artifact.sha256(file), (spec,), (), ("abc",), "cpu", {"classes": ["a"]})
    made.write_sidecar()
    assert artifact.read(file) == made


def test_the_digest_is_of_the_file_not_of_the_sidecar(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"old")
    Artifact(file, "onnx", "stale").write_sidecar()
    file.write_bytes(b"new")
    assert artifact.read(file).sha256 == artifact.sha256(file)


def test_helpful_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file; expected a checkpoint, an ONNX file or an engine"):
        artifact.read(tmp_path / "none.onnx")
    other = tmp_path / "model.txt"
    other.write_text("x")
    with pytest.raises(
        DataError, match=r"the ending '.txt' is not known; expected one of .safetensors, .onnx"
    ):
        artifact.read(other)
    file = tmp_path / "model.onnx"
    file.write_bytes(b"x")
    artifact.sidecar(file).write_text("[]")
    with pytest.raises(DataError, match="not a sidecar of EdgePrune"):
        artifact.read(file)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a"
    artifact.write_atomically(file, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        artifact.write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]
