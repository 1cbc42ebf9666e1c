"""Preparation of data sets: each module writes one in its official file layout, without torch."""
