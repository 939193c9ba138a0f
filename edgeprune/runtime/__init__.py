"""Whatever runs a network behind one protocol; each runtime is one file, opened on use."""

from edgeprune.runtime.runner import Feeds, Runner

__all__ = ["Feeds", "Runner"]
