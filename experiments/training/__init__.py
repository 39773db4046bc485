"""Training: the loop, its loss, optimisers and log, held-out pairs, interruption, trainings side by side."""
