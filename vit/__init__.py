"""vit: train, kill, resume and evaluate Vision Transformers."""
