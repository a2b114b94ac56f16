"""What data sets there are on disk: which images, of which classes, in which split."""
