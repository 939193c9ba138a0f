"""Latency that can be trusted: measured interleaved, compared with an interval, recorded with its machine."""
