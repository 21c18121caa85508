"""What a run leaves, and the folder that it leaves it in."""
