"""The thin-plate spline motion model (Zhao & Zhang, CVPR 2022): its networks, taps and loss terms."""
