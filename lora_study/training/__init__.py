"""One experiment: a config in, one record out."""
