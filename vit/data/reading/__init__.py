"""From files to pixels: decoding, the transform of an image, workers, the cache, look-ahead."""
