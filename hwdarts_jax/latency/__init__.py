"""What an architecture costs: tables, cost models, the latency predictor."""
