"""A trained model on images: load, predict, evaluate, explain."""
