"""The room of training: loop, loss, optimisers, log, held-out pairs, interruption, trainings side by side."""
