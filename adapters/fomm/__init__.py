"""The first-order motion model (Siarohin et al., NeurIPS 2019) as a host."""
