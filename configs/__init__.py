"""Configs: one file a target, `get_config(arg)` and `sweep_*` generators."""
