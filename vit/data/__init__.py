"""Data sets, splits, decoding, augmentation and the loader."""
