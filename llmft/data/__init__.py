"""From files and the hub to token ids: rows read, checked, rendered, encoded, packed."""
