"""What lets a training run survive kills, full disks and bad batches."""
