"""The small CLIP that cleanplate ships: config, weights, concept thresholds, and the script that made them."""
