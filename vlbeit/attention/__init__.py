"""Where an image tower looks: maps of one layer's heads, drawn over a picture or measured against objects."""
