"""Episodes, videos and their slots on disk."""
