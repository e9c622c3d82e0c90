"""What happens while a model writes: today, how sure it is of every token."""
