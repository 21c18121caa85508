"""The reviews: sources, splits, duplicates, tokenisation, batching and the Lightning data module.

A review table is a DataFrame with columns ``id`` (str, unique), ``text`` (str), ``label`` (int64, 0 or 1) and
``split`` ("train", "test", or None if the source does not say).
"""
