"""Evaluation: which pairs, who predicts them, the panel of metrics, scores, and the tables made of them."""
