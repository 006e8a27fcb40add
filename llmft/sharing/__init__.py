"""What goes to and comes from the hub."""
