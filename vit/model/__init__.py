"""The Vision Transformer and its parts."""
