"""The room of backends, which read faces for the metrics: landmarks, identity, action units, head pose."""
