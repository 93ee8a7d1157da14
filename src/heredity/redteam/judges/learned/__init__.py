"""The learned judge: an encoder, signs and a linear head."""
