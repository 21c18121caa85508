"""What to do with a finished run: predictions, adapters, merged models, model cards."""
