"""The encoder, the modes it is trained in, and the LightningModule around it."""
