"""Benchmarks, one pure file each, over answer files of one form."""
