"""What changes images: augmentation of training batches, corruptions for evaluation."""
