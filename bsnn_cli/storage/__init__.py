"""What lies on the disk: records, checkpoints, run directories, and where each stored result comes from."""
