"""What a run leaves behind, and the folder it leaves it in."""
