"""Which indices of which axes live and die together: a union-find over labels, with products.

Each index of a tracked axis carries a label. Two labels that must go together are unified. A label may be a
product (head k, dimension i): it dies when any of its factors dies, which is how a view that splits an axis,
a flattening that merges two, and a grouped convolution are exact. What a forward fixes by a constant is
pinned, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


class Labels:
    """A growing set of labels; arrays of them stand for the indices along an axis."""

    def __init__(self) -> None:
        self._parent: Ids = np.arange(1024, dtype=np.int64)
        self._count = 0
        self._factors: dict[int, tuple[int, ...]] = {}
        self._products: dict[tuple[int, ...], int] = {}
        self._splits: dict[tuple[bytes, tuple[int, ...]], list[Ids | None]] = {}
        self.pinned: dict[int, str] = {}

    def new(self, count: int) -> Ids:
        """`count` fresh labels, free of each other."""
        while self._count + count > len(self._parent):
            self._parent = np.concatenate([self._parent, np.arange(len(self._parent), 2 * len(self._parent))])
        start, self._count = self._count, self._count + count
        return np.arange(start, start + count, dtype=np.int64)

    def roots(self, ids: Ids) -> Ids:
        """The representative of each label."""
        found = self._parent[ids]
        while True:
            up = self._parent[found]
            if np.array_equal(up, found):
                self._parent[ids] = found
                return found
            found = up

    def pin(self, ids: Ids | None, why: str) -> None:
        """These may never be removed; the first reason is kept."""
        if ids is not None:
            for root in set(self.roots(ids).tolist()):
                self.pinned.setdefault(root, why)

    def unify(self, one: Ids, two: Ids, why: str = "two axes that meet have different readings") -> None:
        """Index by index, these go together (lengths are equal)."""
        a, b = self.roots(one), self.roots(two)
        if a is b or np.array_equal(a, b):
            return
        differ = a != b
        for x, y in zip(a[differ].tolist(), b[differ].tolist(), strict=True):
            self._merge(x, y, why)

    def root(self, label: int) -> int:
        """The representative of one label."""
        while (up := int(self._parent[label])) != label:
            label = up
        return label

    def _merge(self, one: int, two: int, why: str) -> None:
        a, b = self.root(one), self.root(two)
        if a == b:
            return
        self._parent[b] = a
        if b in self.pinned:
            self.pinned.setdefault(a, self.pinned[b])
        left, right = self._factors.get(a), self._factors.pop(b, None)
        if right is None:
            return
        if left is None:
            self._factors[a] = right
            return
        rest_left = [self.root(f) for f in left]
        rest_right = []
        for factor in (self.root(f) for f in right):
            if factor in rest_left:
                rest_left.remove(factor)
            else:
                rest_right.append(factor)
        if len(rest_left) == len(rest_right):
            for x, y in zip(rest_left, rest_right, strict=True):
                self._merge(x, y, why)
        else:
            for factor in rest_left + rest_right:
                self.pinned.setdefault(self.root(factor), why)

    def product(self, parts: Sequence[Ids]) -> Ids:
        """Labels of the merged axis, row-major: index (i, j, ...) dies when any of its parts does."""
        grids = np.meshgrid(*[self.roots(p) for p in parts], indexing="ij")
        rows = np.stack([g.ravel() for g in grids], 1)
        made = np.empty(len(rows), dtype=np.int64)
        for n, row in enumerate(rows.tolist()):
            key = tuple(dict.fromkeys(row))
            if len(key) == 1:
                made[n] = key[0]
                continue
            if key not in self._products:
                label = int(self.new(1)[0])
                self._factors[label] = key
                self._products[key] = label
            made[n] = self._products[key]
        return made

    def split(self, ids: Ids, sizes: tuple[int, ...]) -> list[Ids | None]:
        """An axis seen as several (row-major): the labels of each, None where nothing varies along it."""
        roots = self.roots(ids)
        key = (roots.tobytes(), sizes)
        if key not in self._splits:
            self._splits[key] = self._split(roots, sizes)
        return self._splits[key]

    def _split(self, roots: Ids, sizes: tuple[int, ...]) -> list[Ids | None]:
        cube = roots.reshape(sizes)
        varies = [
            axis
            for axis in range(len(sizes))
            if not np.array_equal(cube, np.broadcast_to(cube.take([0], axis), sizes))
        ]
        made: list[Ids | None] = [None] * len(sizes)
        if not varies:
            self.pin(roots, "all channels of an axis hang together")
        elif len(varies) == 1:
            axis = varies[0]
            made[axis] = np.moveaxis(cube, axis, 0).reshape(sizes[axis], -1)[:, 0].copy()
        else:
            for axis in varies:
                made[axis] = self.new(sizes[axis])
            whole = self.product([p for p in made if p is not None])
            small = np.broadcast_to(
                whole.reshape([s if n in varies else 1 for n, s in enumerate(sizes)]), sizes
            ).ravel()
            self.unify(roots, small)
        return made

    def resolve(self, label: int) -> frozenset[int]:
        """The primitive labels whose death kills this one."""
        found: set[int] = set()
        self._resolve(self.root(label), found, ())
        return frozenset(found)

    def _resolve(self, root: int, found: set[int], above: tuple[int, ...]) -> None:
        factors = self._factors.get(root)
        if factors is None or root in above:
            found.add(root)
            return
        for factor in factors:
            self._resolve(self.root(factor), found, (*above, root))

    def settle(self) -> None:
        """Pinning a product pins its factors."""
        for root in list(self._factors):
            why = self.pinned.get(self.root(root))
            if why is not None:
                for primitive in self.resolve(root):
                    self.pinned.setdefault(primitive, why)
