"""Data: file formats, sources, the phantom world, mixes, and the studies as batches."""
