"""From files to batches: records, sources, text, masks, transforms, collation, loading."""
