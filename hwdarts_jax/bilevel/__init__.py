"""How an architecture is chosen: pure functions over pytrees."""
