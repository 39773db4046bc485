"""MCNet (Hong & Xu, ICCV 2023): the host that the paper itself builds its memory into."""
