"""Reports on a trained model, and two models compared."""
