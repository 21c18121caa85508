"""LoRA from scratch, and a reproduction study of the article "Code LoRA from Scratch"."""
