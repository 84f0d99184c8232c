"""Files of a gallery: manifest, segments, records, snapshots, the writer, caches and their verification."""
