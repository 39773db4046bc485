"""What several hosts are made of: blocks, encoders, loss terms, motion transfer, checked parameters."""
