"""DaGAN (Hong et al., CVPR 2022): a first-order host that knows the depth of faces."""
