"""The encoder, the modes it can be trained in, and the LightningModule around it."""
