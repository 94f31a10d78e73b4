"""Results on recorded data: what is trained, what is measured, how it is kept and shown."""
