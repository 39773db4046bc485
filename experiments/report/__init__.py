"""A benchmark as one self-contained page: `collect` makes its videos and pictures, `page` puts everything together."""
