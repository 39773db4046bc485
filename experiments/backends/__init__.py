"""What reads faces for the metrics: landmarks, identity, action units, head pose; one package or file each."""
