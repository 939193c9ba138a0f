"""Whole ways from an adapted network to a slim one: one paper a file, each a schedule over the parts in `job`.

The only floor that joins objectives and pruning.
"""
