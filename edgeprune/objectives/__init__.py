"""Adaptation losses: one objective a file, each with its paper, its formula, and what is ours."""
