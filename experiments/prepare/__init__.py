"""From raw videos to clips to train on: heads are found, followed, cropped to fixed squares, and split by person."""
