"""The demo: a small host trained with and without the memory, compared on people that neither has seen."""
