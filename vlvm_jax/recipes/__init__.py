"""Recipes: one file each, found by name (`--config=ftfv`), with a `get_config(arg)` that returns the whole config.

Files whose names begin with `_` hold what recipes share.
"""
