"""What a run leaves: its folder, its metrics, its tracking, its lines on the terminal."""
