"""What goes to the hub and comes from it."""
