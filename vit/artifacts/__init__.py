"""What a run leaves on disk: the folder, checkpoints, logs."""
