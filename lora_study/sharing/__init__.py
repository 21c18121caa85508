"""What a finished run is good for: predictions, adapters, merged models, cards."""
