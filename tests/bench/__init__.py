"""Benchmarks: Karta beside its peers, in one interleaved run. `make bench`; see run.py."""
