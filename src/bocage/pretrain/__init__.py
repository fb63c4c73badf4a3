"""From imagery to a model: samples, masking, losses, the training loop, export."""
