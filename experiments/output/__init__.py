"""What every command writes: tables as Markdown, JSON and CSV, versions, strips, curves and grids of pictures."""
