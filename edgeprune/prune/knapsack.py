"""The most valuable widths whose joint cost stays below a limit: a multiple-choice knapsack with pairwise
costs.

    maximise  sum_g V_g[j_g]   subject to   sum_t T_t[j_a, j_b, ...] <= limit

One choice j_g for each group g (a coupling's width); a cost term t is a table over the few groups that set a
layer's input and output widths, after MDP (Sun et al., CVPR 2025, arXiv 2504.02168), which hands the same
problem to a mixed-integer solver. Here (ours): Lagrange multipliers by bisection, each relaxed problem solved
exactly by variable elimination, which also bounds the optimum from above; single steps and exchanges close
most of the gap; a depth-first search with that bound then proves the optimum or stops after `nodes` looks.
Deterministic; numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import BudgetNotMet

Array = NDArray[np.float64]
_WIDEST = 2_000_000  # entries of a table that elimination may build; beyond it, groups are split off


@dataclass(frozen=True)
class Cost:
    """A table over the choices of `groups` (distinct), one axis each in that order."""

    groups: tuple[int, ...]
    table: Array


@dataclass(frozen=True)
class Choice:
    """What was found. bound: no choice within the limit is worth more; proved: this one is the best."""

    picks: tuple[int, ...]
    value: float
    cost: float
    bound: float
    proved: bool


def solve(values: Sequence[Array], costs: Sequence[Cost], limit: float, nodes: int = 20_000) -> Choice:
    """Choose j_g for each group. values[g]: (J_g,) worth of each choice; BudgetNotMet when the cheapest
    exceeds limit.
    """
    problem = _Problem([np.asarray(v, dtype=float) for v in values], costs, limit)
    cheapest = problem.relaxed(None)[0]
    if problem.cost(cheapest) > limit:
        raise BudgetNotMet(
            f"the cheapest choice of widths costs {problem.cost(cheapest):.6g} and the limit is {limit:.6g}"
        )
    best, bound, price = problem.bisect(cheapest)
    best = problem.improve(best)
    best, proved = problem.prove(best, price, nodes)
    value = problem.value(best)
    return Choice(tuple(best), value, problem.cost(best), value if proved else max(bound, value), proved)


class _Problem:
    def __init__(self, values: Sequence[Array], costs: Sequence[Cost], limit: float) -> None:
        self.values, self.costs, self.limit = values, costs, limit
        self.of: list[list[int]] = [[] for _ in values]
        for t, cost in enumerate(costs):
            for g in cost.groups:
                self.of[g].append(t)
        self.order = self._elimination_order()

    def value(self, picks: Sequence[int]) -> float:
        return float(sum(v[j] for v, j in zip(self.values, picks, strict=True)))

    def cost(self, picks: Sequence[int]) -> float:
        return float(sum(c.table[tuple(picks[g] for g in c.groups)] for c in self.costs))

    def _elimination_order(self) -> list[int]:
        """Fewest neighbours first, ties by number: narrow tables on chains, trees and residual stages."""
        near = [{h for t in self.of[g] for h in self.costs[t].groups} - {g} for g in range(len(self.values))]
        left, order = set(range(len(self.values))), []
        while left:
            g = min(left, key=lambda n: (len(near[n]), n))
            order.append(g)
            left.remove(g)
            for a in near[g]:
                near[a] = (near[a] | near[g]) - {a, g}
        return order

    def relaxed(self, price: float | None) -> tuple[list[int], float, list[Cost]]:
        """Maximise value - price * cost (None: minus cost alone): picks, an upper bound, and each group's
        message.

        Exact unless a table would pass _WIDEST entries; then factors are maximised apart, which still bounds.
        """
        gain = 0.0 if price is None else 1.0
        weight = 1.0 if price is None else price
        factors = [Cost((g,), gain * v) for g, v in enumerate(self.values)]
        factors += [Cost(c.groups, -weight * c.table) for c in self.costs]
        steps: list[tuple[int, list[Cost]]] = []
        messages: list[Cost] = []
        for g in self.order:
            mine = [f for f in factors if g in f.groups]
            factors = [f for f in factors if g not in f.groups]
            steps.append((g, mine))
            for bucket in _buckets(mine, self._length):
                message = _sum(bucket, self._length, first=g)
                out = Cost(message.groups[1:], message.table.max(axis=0))
                factors.append(out)
                messages.append(out)
        bound = float(sum(float(f.table) for f in factors))
        picks = [0] * len(self.values)
        for g, mine in reversed(steps):
            picks[g] = int(np.argmax(sum(f.table[_at(f, g, picks)] for f in mine)))
        return picks, bound, messages

    def _length(self, g: int) -> int:
        return len(self.values[g])

    def bisect(self, cheapest: list[int]) -> tuple[list[int], float, float]:
        """The price at which the relaxed optimum just fits: the best picks met, the least bound, its price."""
        best, bound, at = cheapest, float(sum(v.max() for v in self.values)), 0.0
        low, high = 0.0, 1.0
        picks, top, _ = self.relaxed(0.0)
        if self.cost(picks) <= self.limit:
            return picks, top, 0.0
        for _ in range(120):
            price = high if best is cheapest else (low + high) / 2  # doubled until something fits
            picks, top, _ = self.relaxed(price)
            if top + price * self.limit < bound:
                bound, at = top + price * self.limit, price
            if self.cost(picks) <= self.limit:
                if best is cheapest or self.value(picks) > self.value(best):
                    best = picks
                high = price
            else:
                low, high = price, 2 * price if best is cheapest else high
            if best is not cheapest and high - low <= 1e-9 * high:
                break
        return best, bound, at

    def improve(self, picks: list[int]) -> list[int]:
        """Single moves, then pairs of moves, each the most valuable that fits, until none helps."""
        best = [*picks]
        for _ in range(200):
            moved = self._single(best) or self._pair(best)
            if moved is None:
                break
            best = moved
        return best

    def _moves(self, picks: Sequence[int]) -> list[tuple[float, float, int, int]]:
        """(value gained, cost added, group, choice) of every change of one group."""
        out = []
        for g, v in enumerate(self.values):
            added = np.zeros(len(v))
            for t in self.of[g]:
                added += self.costs[t].table[_at(self.costs[t], g, picks)]
            for j in range(len(v)):
                if j != picks[g]:
                    out.append((float(v[j] - v[picks[g]]), float(added[j] - added[picks[g]]), g, j))
        return out

    def _single(self, picks: list[int]) -> list[int] | None:
        room = self.limit - self.cost(picks)
        fitting = [m for m in self._moves(picks) if m[1] <= room and m[0] > 1e-12]
        if not fitting:
            return None
        _, _, g, j = max(fitting, key=lambda m: (m[0], -m[2], -m[3]))
        moved = [*picks]
        moved[g] = j
        return moved if self.cost(moved) <= self.limit else None

    def _pair(self, picks: list[int]) -> list[int] | None:
        """One group worth more and another that pays for it, the cost checked jointly."""
        moves = self._moves(picks)
        ups = sorted((m for m in moves if m[0] > 1e-12), key=lambda m: -m[0] / max(m[1], 1e-12))[:60]
        now, best = self.value(picks), None
        for gain, _, g, j in ups:
            raised = [*picks]
            raised[g] = j
            room = self.limit - self.cost(raised)
            for lost, added, h, k in self._moves(raised):
                if (
                    h != g
                    and added <= room
                    and gain + lost > 1e-12
                    and (best is None or now + gain + lost > best[0])
                ):
                    moved = [*raised]
                    moved[h] = k
                    if self.cost(moved) <= self.limit:
                        best = (now + gain + lost, moved)
        return None if best is None else best[1]

    def prove(self, picks: list[int], price: float, nodes: int) -> tuple[list[int], bool]:
        """Depth-first from the last eliminated group to the first; what cannot beat the best by its bound is
        left.
        """
        best, top = picks, self.value(picks)
        messages = self.relaxed(price)[2]
        place = {g: n for n, g in enumerate(reversed(self.order))}
        ready: list[list[Cost]] = [
            [] for _ in self.order
        ]  # factors fully known once the n-th group is picked
        for term in self.costs:
            ready[max((place[g] for g in term.groups), default=0)].append(term)
        ahead = self._ahead(messages, place)
        sequence = list(reversed(self.order))
        stack = [(0, 0.0, 0.0, [0] * len(picks))]
        looked = 0
        while stack:
            depth, value, cost, chosen = stack.pop()
            if depth == len(sequence):
                if cost <= self.limit and value > top + 1e-12:
                    best, top = chosen, value
                continue
            looked += 1
            if looked > nodes:
                return best, False
            g = sequence[depth]
            found: list[tuple[float, tuple[int, float, float, list[int]]]] = []
            for j in range(len(self.values[g])):
                now = [*chosen]
                now[g] = j
                v = value + float(self.values[g][j])
                spent = cost + float(sum(t.table[tuple(now[h] for h in t.groups)] for t in ready[depth]))
                rest = sum(float(m.table[tuple(now[h] for h in m.groups)]) for m in ahead[depth])
                reach = v - price * spent + rest + price * self.limit
                if reach > top + 1e-9 * (1 + abs(top)):
                    found.append((reach, (depth + 1, v, spent, now)))
            stack += [state for _, state in sorted(found, key=lambda f: f[0])]
        return best, True

    def _ahead(self, messages: Sequence[Cost], place: dict[int, int]) -> list[list[Cost]]:
        """For each depth, the messages of groups not picked yet that speak only of groups picked by then."""
        ahead: list[list[Cost]] = [[] for _ in self.order]
        owners = self._owners(messages)
        for message, owner in zip(messages, owners, strict=True):
            known = max((place[g] for g in message.groups), default=-1)
            for depth in range(max(known, 0), place[owner]):
                ahead[depth].append(message)
        return ahead

    def _owners(self, messages: Sequence[Cost]) -> list[int]:
        """Which group each message eliminated, in the order that `relaxed` makes them."""
        factors = [Cost((g,), v) for g, v in enumerate(self.values)] + list(self.costs)
        owners: list[int] = []
        made = iter(messages)
        for g in self.order:
            mine = [f for f in factors if g in f.groups]
            factors = [f for f in factors if g not in f.groups]
            for _ in _buckets(mine, self._length):
                factors.append(next(made))
                owners.append(g)
        return owners


def _at(cost: Cost, free: int, picks: Sequence[int]) -> tuple[int | slice, ...]:
    """The index of a table at some picks, with one group left free."""
    return tuple(slice(None) if g == free else picks[g] for g in cost.groups)


def _buckets(factors: Sequence[Cost], length: object) -> list[list[Cost]]:
    """Factors in as few sums as stay below _WIDEST entries, the widest first."""
    assert callable(length)
    buckets: list[tuple[set[int], list[Cost]]] = []
    for factor in sorted(factors, key=lambda f: -f.table.size):
        for scope, bucket in buckets:
            joint = scope | set(factor.groups)
            if np.prod([float(length(g)) for g in joint]) <= _WIDEST:
                scope |= set(factor.groups)
                bucket.append(factor)
                break
        else:
            buckets.append((set(factor.groups), [factor]))
    return [b for _, b in buckets]


def _sum(factors: Sequence[Cost], length: object, first: int) -> Cost:
    """The sum of factors over the union of their groups, `first` on the first axis, the rest in order."""
    assert callable(length)
    groups = (first, *sorted({g for f in factors for g in f.groups} - {first}))
    total = np.zeros([int(length(g)) for g in groups])
    for factor in factors:
        order = [g for g in groups if g in factor.groups]
        table = factor.table.transpose([factor.groups.index(g) for g in order])
        total = total + table.reshape([int(length(g)) if g in factor.groups else 1 for g in groups])
    return Cost(groups, total)
