"""The artifact folder, the one thing that passes between commands."""
