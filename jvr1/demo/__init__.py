"""The embedded data set and the tiny model: what the demo and the tests learn from, made from a seed."""
