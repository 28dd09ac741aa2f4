"""Training: rows and their mining, sampling of sub-networks, losses, stages and the trainer."""
