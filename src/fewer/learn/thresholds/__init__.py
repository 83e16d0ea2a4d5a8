"""Which pseudo-labels to believe: InstanT's threshold for every image, and those of its peers."""
