"""JPEGs with restart markers, decoded on the GPU piece by piece."""
