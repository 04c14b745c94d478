"""Configs: one file a target, with `get_config(arg)`."""
