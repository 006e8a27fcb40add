"""From files and hub to batches: rows are read, checked, encoded, paired and packed."""
