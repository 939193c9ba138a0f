"""Runs -> one self-contained HTML page; and how numbers are written, on it and on the terminal."""
