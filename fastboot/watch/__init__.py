"""What people and programs see: events and logs."""
